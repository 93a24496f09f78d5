"""What must hold on a node in trouble: full and failing disks, no room for a process, what cannot be killed.

Through the command line and a real sshd. How executions end is in tests/agent/test_ends.py, what a full disk does to the log in
tests/agent/test_faults.py; here is what the person sees of it.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.person import Person, wait_until
from tests.lab.hosts import Host
from tests.lab.machine import Process

pytestmark = pytest.mark.lab


def agents(host: Host, which: str = "") -> list[Process]:
    """The processes of our agent on a host: `keeper`, `talker` or both; those of the fallback as well."""
    found = []
    for process in host.processes():
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{process.outer_pid}/comm").read_text().strip()
            if name == f"orch-{which}" or (
                not which and (name.startswith("orch-") or "fallback-" in process.command)
            ):
                found.append(process)
    return found


def end_agents(host: Host) -> None:
    for process in agents(host):
        host.kill(process.pid)
    wait_until("the agents' end", lambda: not agents(host))


@pytest.fixture
def node(h1: Host) -> Iterator[Host]:
    """The host, and no agent there before and after."""
    end_agents(h1)
    yield h1
    end_agents(h1)


def told(done: subprocess.CompletedProcess[bytes]) -> str:
    said = done.stderr.decode()
    assert "Traceback" not in said
    return said


# ---------------------------------------------------------------- disks


@contextlib.contextmanager
def home_of(host: Host, options: str) -> Iterator[None]:
    """A small disk in the place of root's home."""
    host.run(f"mount -t tmpfs -o mode=0700,{options} tmpfs /root")
    try:
        yield
    finally:
        end_agents(host)
        host.run("umount -l /root")


#: A disk, and what fills it to the last block or the last name.
SMALL = {
    "blocks": ("size=2m", "cat /dev/zero > /root/.full 2>/dev/null; true"),
    "inodes": (
        "size=64m,nr_inodes=200",
        "i=0; while [ $i -lt 200 ]; do i=$((i+1)); (: > /root/.full$i) || break; done 2>/dev/null; true",
    ),
}
#: Makes files until there are no more names, then a large one.
FILLS = "i=0; while [ $i -lt 220 ]; do (: > made$i) || break; i=$((i+1)); done; head -c 10000000 /dev/zero > made.big; exit 3\n"


@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_the_exit_code_comes_home_from_a_full_disk_and_the_agent_works_on(
    node: Host, asker: Person, what: str
) -> None:
    options, fill = SMALL[what]
    with home_of(node, options):
        asker.write("run.sh", "echo room\n")
        assert asker.run("exec", "h1", "run.sh").returncode == 0
        before = [process.pid for process in agents(node)]
        asker.write("run.sh", FILLS)
        done = asker.run("exec", "h1", "run.sh")
        assert done.returncode == 3, told(done)
        assert "the node's disk is full: /root/" in told(done)
        shown = asker.json("show", "last")
        assert (shown["state"], shown["reason"], shown["exit_code"]) == ("failed", "exit", 3)
        # What there was room for is here, and the host is as it was before.
        assert (asker.folder / "made0").exists()
        for each in asker.folder.glob("made*"):
            each.unlink()
        asker.write("run.sh", "echo room\n")
        # Now it is full before anything starts.
        node.run(fill)
        done = asker.run("exec", "h1", "run.sh")
        assert done.returncode == 255
        assert "/root/orchestra" in told(done)
        assert "No space left on device" in told(done)
        done = asker.run("exec", "h1", "sh", "--", "-c", "echo lost; exit 0")
        # Its code is 0, but what it wrote is nowhere, or it could not be started.
        assert (done.returncode, done.stdout) == (255, b"")
        assert "the node's disk is full" in told(done) or "No space left on device" in told(done)
        node.run("rm -f /root/.full*")
        done = asker.run("exec", "h1", "run.sh")
        assert (done.returncode, done.stdout) == (0, b"room\n"), told(done)
        assert [process.pid for process in agents(node)] == before
