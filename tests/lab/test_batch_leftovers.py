"""What a batch leaves behind when things went wrong: its results here, and nothing on its hosts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli.person import Person, wait_until
from tests.lab.durability import pids_named
from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.lab


def test_a_batch_whose_results_find_no_room_here_waits_for_some(h1: Host, asker: Person) -> None:
    asker.write("run.sh", "head -c 3000000 /dev/urandom > big.bin; echo done\n")
    target = asker.folder / "out"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", target], check=True)
    try:
        with open(asker.root / "said", "wb") as said:
            batch = asker.start(
                "batch", "h1", "run.sh", "--slots", "2", "--grid", "n=1..2", "-o", "out/$RUNAWAY_PARAM_N",
                stdout=said, stderr=said,
            )  # fmt: skip
        told = asker.root / "said"
        wait_until("word of the full disk", lambda: b"goes on when there is room" in told.read_bytes())
        assert batch.poll() is None
        subprocess.run(["mount", "-o", "remount,size=20m", target], check=True)
        assert batch.wait(30) == 0, told.read_text()
        for n in ("1", "2"):
            assert (target / n / "big.bin").stat().st_size == 3_000_000
            assert (target / n / "stdout").read_bytes() == b"done\n"
    finally:
        subprocess.run(["umount", "-l", target], check=True)
    assert not h1.path("/root/orchestra").exists()


def test_attempts_that_were_lost_leave_neither_folders_nor_output_on_their_host(
    h1: Host, asker: Person
) -> None:
    once = "head -c 100000 /dev/zero; mkdir /root/first-$1 2>/dev/null && sleep 60; echo made > made\n"
    asker.write("run.sh", once)
    batch = asker.start(
        "batch", "h1", "run.sh", "--slots", "2", "--retries", "3", "--grid", "n=1..4", "--", "{n}"
    )
    try:
        wait_until("two that run", lambda: len(list(h1.home.glob("first-*"))) == 2)
        for n in (3, 4):
            (h1.home / f"first-{n}").mkdir(exist_ok=True)
        for pid in pids_named(h1, "orch-keeper"):
            h1.kill(pid)
        out, err = batch.communicate(timeout=50)
        assert batch.returncode == 0, (out + err).decode()
    finally:
        h1.run("rm -rf /root/first-*")
    attempts = [row["attempt"] for row in asker.executions()]
    assert sorted(attempts) == [1, 1, 2, 2]
    assert not h1.path("/root/orchestra").exists()
    ids = {row["id"] for row in asker.executions()}
    kept = [
        path
        for path in Path(h1.path("/root/.local/state/orchestra")).rglob("*")
        if path.name.split(".")[0] in ids
    ]
    assert kept == []


def test_a_folder_that_executions_share_is_tidied_by_the_last_of_them(h1: Host, asker: Person) -> None:
    asker.write("run.sh", "sleep $1; cat data; touch made-$1\n")
    asker.write("data", "there\n")
    done = asker.run(
        "batch", "h1", "run.sh", "--slots", "3", "-r", "$HOME/shared", "-o", "out/$RUNAWAY_PARAM_S",
        "--grid", "s=0,0.5,1", "--", "{s}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    for s in ("0", "0.5", "1"):
        assert (asker.folder / "out" / s / "stdout").read_bytes() == b"there\n"
        assert (asker.folder / "out" / s / f"made-{s}").exists()
    assert not h1.path("/root/shared").exists()


def test_a_client_killed_while_it_waits_for_a_host_to_tidy_leaves_that_to_attach(
    h1: Host, rough: Lab, asker: Person
) -> None:
    h2 = rough.host("h2")
    asker.write("run.sh", "until [ -e /root/go ]; do sleep 0.05; done\n")
    told = asker.root / "said"
    try:
        with open(told, "wb") as said:
            batch = asker.start(
                "batch", "h1,h2", "run.sh", "--slots", "1", "--grid", "n=1..2", stdout=said, stderr=said
            )
        wait_until("one on each", lambda: [row["state"] for row in asker.executions()] == ["running"] * 2)
        h2.run("touch /root/go")
        wait_until(
            "the end of one", lambda: {row["state"] for row in asker.executions()} == {"running", "succeeded"}
        )
        h2.cut()
        h1.run("touch /root/go")
        wait_until("the end of the other", lambda: b"2 succeeded" in told.read_bytes())
        assert batch.poll() is None, told.read_text()
        batch.kill()
        batch.wait()
        h2.restore()
        assert h2.path("/root/orchestra").exists()
        batch_id = asker.run("ps", "--batches", "-q").stdout.decode().strip()
        done = asker.run("attach", batch_id)
        assert done.returncode == 0, done.stderr.decode()
    finally:
        h2.restore()
        for host in (h1, h2):
            host.run("rm -f /root/go")
    assert not h1.path("/root/orchestra").exists()
    assert not h2.path("/root/orchestra").exists()
    done = asker.run("attach", batch_id)
    assert (done.returncode, b"has ended" in done.stderr) == (0, True)
