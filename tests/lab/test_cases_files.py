"""Cases of sending, fetching, folders, patterns and slots, through `runaway exec` and a real sshd."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

import liborch
from liborch.specs import SlotSpec
from tests.cli.person import Person
from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.lab


def run(asker: Person, *words: str, status: int = 0, **variables: str) -> subprocess.CompletedProcess[bytes]:
    done = asker.run("exec", *words, **variables)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr.decode())
    assert b"Traceback" not in done.stderr
    return done


def listed(asker: Person, *words: str) -> list[str]:
    """What a script that lists its folder says."""
    asker.write("ls.sh", "find . -type f ! -name ls.sh | sort\n")
    return run(asker, "-S", "h1", "ls.sh", *words).stdout.decode().split()


def test_ignore_files_decide_what_is_sent_and_what_comes_back(h1: Host, asker: Person) -> None:
    for name in ("1", "3", "folder/2", "a/b.gz", "data/x"):
        asker.write(name, name)
    assert listed(asker) == ["./1", "./3", "./a/b.gz", "./data/x", "./folder/2"]
    asker.write(".sendignore", "# a comment\n\nfolder/*\n*.gz\ndata/\n")
    assert listed(asker) == ["./1", "./3"]
    asker.write(".sendignore", "folder/*\n!folder/2\n")
    assert "./folder/2" in listed(asker)
    # Only .sendignore: what the run made or changed comes back.
    asker.write("change.sh", "echo changed > 3; echo made > new.txt; mkdir -p deep/er; echo x > deep/er/y\n")
    before = (asker.folder / "1").stat().st_mtime_ns
    run(asker, "h1", "change.sh")
    assert (asker.folder / "3").read_text() == "changed\n"
    assert (asker.folder / "new.txt").read_text() == "made\n"
    assert (asker.folder / "deep/er/y").read_text() == "x\n"
    assert (asker.folder / "1").stat().st_mtime_ns == before
    asker.write(".fetchignore", "*\n!only.txt\n")
    asker.write("two.sh", "echo 1 > only.txt; echo 2 > other.txt\n")
    run(asker, "h1", "two.sh")
    assert (asker.folder / "only.txt").exists()
    assert not (asker.folder / "other.txt").exists()


def test_odd_names_and_kinds_make_the_round_trip_or_are_named(h1: Host, asker: Person) -> None:
    odd = [b"a b", b"qu'o\"te", b"new\nline", b"-dash", b"\xff\xfe", b"\xc3\xa9"]
    for name in odd:
        (Path(os.fsdecode(os.fsencode(asker.folder) + b"/" + name))).write_bytes(name)
    (asker.folder / "empty").mkdir()
    (asker.folder / "nothing").touch()
    (asker.folder / "link").symlink_to("nothing")
    (asker.folder / "dangling").symlink_to("nowhere")
    (asker.folder / "outside").symlink_to("/etc/passwd")
    with socket.socket(socket.AF_UNIX) as line:
        here = os.getcwd()
        os.chdir(asker.folder)
        try:
            line.bind("socket")
        finally:
            os.chdir(here)
    asker.write(
        "run.py",
        "import os\nos.mkdir('back')\n"
        "for name in sorted(os.listdir(b'.')):\n"
        "    if name[:1] in b'aqn-\\xff\\xc3' and os.path.isfile(name) and not os.path.islink(name):\n"
        "        open(b'back/' + name, 'wb').write(open(name, 'rb').read())\n"
        "os.symlink('/etc/shadow', 'back/evil')\nos.mkfifo('back/pipe')\n"
        "print(os.readlink('link'), os.path.isdir('empty'))\n",
    )
    done = run(asker, "h1", "run.py", "-V")
    assert done.stdout == b"nothing True\n"
    back = {name: (asker.folder / "back" / os.fsdecode(name)).read_bytes() for name in odd}
    assert back == {name: name for name in odd}
    for name in (b"socket", b"back/pipe"):
        assert name in done.stderr
    assert not (asker.folder / "back" / "pipe").exists()
    assert not (asker.folder / "back" / "evil").exists() or (asker.folder / "back" / "evil").is_symlink()


def test_the_host_sees_the_state_at_submission(h1: Host, asker: Person) -> None:
    asker.write("code.txt", "then")
    asker.write("run.sh", "sleep 1; cat code.txt\n")
    running = asker.start("exec", "h1", "run.sh")
    asker.wait_state("running", "placed", "staging")
    asker.write("code.txt", "now")
    out, err = running.communicate(timeout=30)
    assert out == b"then", err.decode()
    assert (asker.folder / "code.txt").read_text() == "now"


def test_patterns_name_folders_before_and_after(h1: Host, asker: Person) -> None:
    asker.write("run.sh", "echo made > made.txt; exit 3\n")
    run(asker, "h1", "run.sh", "-o", "batch/$RUNAWAY_ECODE/$RUNAWAY_UUID", status=3)
    x = asker.executions()[0]["id"]
    assert (asker.folder / "batch" / "3" / x / "made.txt").read_text() == "made\n"
    run(asker, "h1", "run.sh", "-o", "out/${RUNAWAY_TAG}", status=3, RUNAWAY_TAG="x")
    assert (asker.folder / "out" / "x" / "made.txt").exists()
    refused = run(asker, "h1", "run.sh", "-o", "out/$RUNAWAY_TAG", "--no-env-read", status=2, RUNAWAY_TAG="x")
    assert b"RUNAWAY_TAG" in refused.stderr
    run(asker, "h1", "run.sh", "-o", "by/$RUNAWAY_NODE_ID", status=3, RUNAWAY_NODE="wrong")
    assert (asker.folder / "by" / "h1" / "made.txt").exists()


def test_what_is_left_on_the_host_is_what_was_asked_for(h1: Host, asker: Person) -> None:
    there = h1.home / "orchestra"
    asker.write("run.sh", "echo made > made.txt\n")
    (h1.home / "mine").mkdir(exist_ok=True)
    (h1.home / "mine" / "old.txt").write_text("precious")
    for leave in ("nothing", "code", "everything"):
        run(asker, "h1", "run.sh", "-l", leave, "-r", "$HOME/mine", "-o", "../results")
        assert (h1.home / "mine" / "old.txt").read_text() == "precious"
        assert (h1.home / "mine" / "run.sh").exists() == (leave != "nothing")
        assert (h1.home / "mine" / "made.txt").exists() == (leave == "everything")
    again = run(asker, "h1", "run.sh", "-l", "code", "-r", "$HOME/mine", "-o", "../results")
    assert b"sending 0 files" in again.stderr
    run(asker, "h1", "run.sh", "-L", "-r", "$HOME/stays")
    assert not (asker.folder / "made.txt").exists()
    assert (h1.home / "stays" / "made.txt").read_text() == "made\n"
    before = sorted(path.name for path in there.iterdir()) if there.exists() else []
    run(asker, "h1", "run.sh")
    assert (sorted(path.name for path in there.iterdir()) if there.exists() else []) == before


def test_two_runs_from_one_folder_do_not_disturb_each_other(h1: Host, asker: Person) -> None:
    asker.write("run.sh", "echo $1 > own-$1.txt; sleep 0.5; ls own-* | wc -l; cat own-$1.txt\n")
    both = [asker.start("exec", "-S", "h1", "run.sh", "--", str(n)) for n in range(2)]
    for number, running in enumerate(both):
        out, err = running.communicate(timeout=40)
        assert out.split() == [b"1", b"%d" % number], err.decode()
        assert (asker.folder / f"own-{number}.txt").exists()


def test_results_that_find_no_room_are_no_success_and_stay_on_the_host(h1: Host, asker: Person) -> None:
    asker.write("run.sh", "head -c 3000000 /dev/urandom > big.bin; echo done\n")
    target = asker.folder / "small"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", target], check=True)
    try:
        done = run(asker, "h1", "run.sh", "-o", "small", "-r", "$HOME/kept", status=255)
    finally:
        subprocess.run(["umount", "-l", target], check=True)
    assert done.stdout == b"done\n"
    assert b"No space left" in done.stderr
    assert b"small" in done.stderr
    assert (h1.home / "kept" / "big.bin").stat().st_size == 3_000_000


def test_a_cancel_while_sending_leaves_nothing_on_the_host(h1: Host, rough: Lab, asker: Person) -> None:
    slow = rough.delay_proxy("h1", 0.0, 2e6)
    (asker.folder / "data.bin").write_bytes(os.urandom(8 << 20))
    asker.write("run.sh", "touch /root/never\n")
    running = asker.start("exec", slow, "run.sh", "-r", "$HOME/cancelled")
    asker.wait_state("staging")
    time.sleep(0.5)
    row = asker.executions()[0]
    assert asker.run("kill", row["id"]).returncode in (0, 130)
    _, err = running.communicate(timeout=40)
    assert running.returncode == 130, err.decode()
    assert not (h1.home / "cancelled").exists()
    assert not (h1.home / "never").exists()


def test_a_script_that_is_not_there_starts_nothing(h1: Host, asker: Person) -> None:
    done = run(asker, "h1", "runn.sh", "-o", "x/$RUNAWAY_NONSENSE", status=2)
    assert done.stderr
    assert asker.executions() == []


def test_bad_profiles_are_named_with_file_line_and_key(h1: Host, asker: Person) -> None:
    asker.write("run.sh", "true\n")
    folder = asker.root / "config" / "orchestra" / "hosts"
    folder.mkdir(parents=True)
    for text, words in {
        "name: bad\nssh: h1\ndirectroy: /tmp\n": [b":3", b"directroy"],
        "name: bad\nssh: [h1\n": [b"bad.yaml:"],
        "name: bad\nssh: h1\nslots: {cpus: many}\n": [b":3", b"cpus"],
        "ssh: h1\nname: [1]\n": [b"name"],
    }.items():
        (folder / "bad.yaml").write_text(text)
        done = run(asker, "bad", "run.sh", status=2)
        for word in (*words, b"bad.yaml"):
            assert word in done.stderr, (text, done.stderr)


async def test_two_slots_and_five_executions_are_never_three_at_once(h1: Host, asker: Person) -> None:
    profile = liborch.HostProfile("two", "h1", slots=SlotSpec(count=2))
    script = "echo $RUNAWAY_NODE_ID $RUNAWAY_HANDLE_ID; mkdir -p /tmp/now; touch /tmp/now/$$; ls /tmp/now | wc -l; sleep 0.3; rm /tmp/now/$$"
    async with liborch.open_host(profile) as host:
        executions = [host.submit(["sh", "-c", script]) for _ in range(5)]
        seen = [(await execution).stdout.split() for execution in executions]
    assert {where for where, _, _ in seen} == {b"two"}
    assert {slot for _, slot, _ in seen} == {b"0", b"1"}
    assert max(int(count) for _, _, count in seen) == 2
