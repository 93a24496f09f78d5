"""The client is killed in each phase of an execution on a real host; `runaway attach` ends it properly, once."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.person import Person, lines, wait_until
from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.lab

#: Bytes per second that a slow link carries, and what takes it about two seconds.
RATE = 2_000_000
BULK_BYTES = 4_000_000

RUN = """
import hashlib, os, pathlib, sys, time
home = pathlib.Path.home()
with open(home / (sys.argv[1] + ".starts"), "a") as log: log.write("start\\n")
bulk = pathlib.Path("bulk.bin").read_bytes() if os.path.exists("bulk.bin") else b""
print("bulk", hashlib.sha256(bulk).hexdigest(), flush=True)
while sys.argv[2] == "wait" and not (home / (sys.argv[1] + ".go")).exists(): time.sleep(0.02)
if sys.argv[2] == "make": pathlib.Path("made.bin").write_bytes(os.urandom(int(sys.argv[3])))
pathlib.Path("result.txt").write_text("result")
sys.exit(5)
"""


@pytest.fixture
def far(tmp_path: Path, lab: Lab) -> Iterator[Person]:
    """Somebody who uses the lab's hosts."""
    somebody = Person(tmp_path, lab.ssh_config)
    somebody.write("run.py", RUN)
    yield somebody
    somebody.close()


def ends_properly(person: Person, host: Host, tag: str) -> None:
    """Attach, and see that it ran once, ended once, and left nothing on the host."""
    attached = person.run("attach", "last", timeout_s=90)
    assert attached.returncode == 5, attached.stderr.decode()
    bulk = person.folder / "bulk.bin"
    sent = bulk.read_bytes() if bulk.exists() else b""
    assert lines(attached.stdout) == [f"bulk {hashlib.sha256(sent).hexdigest()}"]
    assert (person.folder / "result.txt").read_text() == "result"
    assert host.path(f"/root/{tag}.starts").read_text() == "start\n"
    (row,) = person.executions()
    assert (row["state"], row["exit_code"]) == ("failed", 5)
    assert not host.path(f"/root/orchestra/{row['id']}").exists()


def kill(client: subprocess.Popen[bytes]) -> None:
    client.kill()
    client.wait()


def test_killed_while_packing_nothing_was_begun_and_the_same_command_does_it(far: Person, lab: Lab) -> None:
    for number in range(3000):
        (far.folder / f"file{number}").write_text(str(number))
    client = far.start("exec", "h1", "run.py", "--", "packing", "go")
    assert client.stderr is not None
    while client.stderr.readline() != b"packing\n":
        assert client.poll() is None
    kill(client)
    assert far.executions() == []
    assert far.run("exec", "h1", "run.py", "--", "packing", "go").returncode == 5
    assert lab.host("h1").path("/root/packing.starts").read_text() == "start\n"


def test_killed_while_sending(far: Person, lab: Lab) -> None:
    (far.folder / "bulk.bin").write_bytes(os.urandom(BULK_BYTES))
    slow = lab.delay_proxy("h1", 0.0, RATE)
    client = far.start("exec", slow, "run.py", "--", "sending", "go")
    far.wait_state("staging")
    kill(client)
    assert far.executions()[0]["state"] == "staging"
    ends_properly(far, lab.host("h1"), "sending")


def test_killed_while_waiting(far: Person, lab: Lab) -> None:
    host = lab.host("h1")
    cores = os.cpu_count() or 1
    blocker = "while [ ! -e $HOME/waiting.free ]; do sleep 0.05; done"
    far.run("exec", "--detach", "--cpus", str(cores), "h1", "sh", "--", "-c", blocker)
    far.wait_state("running", "placed")
    client = far.start("exec", "h1", "run.py", "--", "waiting", "go")
    wait_until("its record", lambda: len(far.executions()) == 2)
    kill(client)
    host.path("/root/waiting.free").touch()
    x = far.executions()[0]["id"]
    assert far.run("wait", far.executions()[1]["id"]).returncode == 0
    assert far.run("clean", far.executions()[1]["id"]).returncode == 0
    assert [row["id"] for row in far.executions()] == [x]
    ends_properly(far, host, "waiting")


def test_killed_while_it_runs_and_again_while_it_is_taken_over(far: Person, lab: Lab) -> None:
    host = lab.host("h2")
    client = far.start("exec", "h2", "run.py", "--", "running", "wait")
    assert client.stdout is not None
    assert client.stdout.readline().startswith(b"bulk ")
    kill(client)
    for _ in range(2):
        again = far.start("attach", "last")
        assert again.stdout is not None
        assert again.stdout.readline().startswith(b"bulk ")
        kill(again)
    assert b"was left" in far.run("ps").stderr
    host.path("/root/running.go").touch()
    ends_properly(far, host, "running")


def test_killed_while_fetching(far: Person, lab: Lab) -> None:
    slow = lab.delay_proxy("h2", 0.0, RATE)
    client = far.start("exec", slow, "run.py", "--", "fetching", "make", str(BULK_BYTES))
    far.wait_state("collecting")
    kill(client)
    assert far.executions()[0]["state"] == "collecting"
    ends_properly(far, lab.host("h2"), "fetching")
    assert (far.folder / "made.bin").stat().st_size == BULK_BYTES
    assert [path.name for path in far.folder.iterdir() if path.name.startswith(".")] == []


def test_a_host_that_cannot_be_reached_is_said_and_nothing_is_declared_failed(far: Person, lab: Lab) -> None:
    host = lab.host("h3")
    client = far.start("exec", "h3", "run.py", "--", "cut", "wait")
    assert client.stdout is not None
    assert client.stdout.readline().startswith(b"bulk ")
    far.wait_state("running")
    host.reset_connections()
    host.stop_sshd(sessions=True)
    try:
        wait_until("its being out of reach", lambda: far.executions()[0]["unreachable_since"] is not None)
        assert b"unreachable since" in far.run("ps").stdout
        assert far.executions()[0]["state"] == "running"
        assert b"h3: " in far.run("explain", "last").stdout
    finally:
        host.start_sshd()
    host.path("/root/cut.go").touch()
    out, err = client.communicate(timeout=60)
    assert client.returncode == 5, err
    assert (far.folder / "result.txt").read_text() == "result"
    assert out == b""


def test_doctor_examines_a_real_host(far: Person, lab: Lab) -> None:
    done = far.run("doctor", "h1")
    assert done.returncode == 0, done.stdout.decode()
    seen = [line.split()[1] for line in lines(done.stdout) if line[0] != " "]
    for step in (
        "name",
        "tcp",
        "host",
        "login",
        "shell",
        "python3",
        "home",
        "agent",
        "clock",
        "directory",
        "slots",
    ):
        assert step in seen
    checked = far.run("hosts", "check", "h1", "h2")
    assert checked.returncode == 0, checked.stdout
