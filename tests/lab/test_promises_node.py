"""What must hold on a node in trouble: full and failing disks, no room for a process, what cannot be killed.

Through the command line and a real sshd. How executions end is in tests/agent/test_ends.py, what a full disk does to the log in
tests/agent/test_faults.py; here is what the person sees of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import liborch
from liborch.agent.captures import Captures
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


def test_a_batch_on_a_full_disk_says_that_what_did_well_may_have_left_less(node: Host, asker: Person) -> None:
    with home_of(node, "size=2m"):
        fill = "'cat /dev/zero > /root/.full 2>/dev/null; echo lost; exit 0'"
        done = asker.run("batch", "h1", "sh", "--", "-c", fill)
        assert done.returncode == 1, told(done)
        assert "1 x succeeded, but the node's disk is full: /root/" in told(done)
        node.run("rm -f /root/.full")
        done = asker.run("batch", "h1", "echo", "--", "there")
        assert done.returncode == 0, told(done)


def test_a_disk_that_was_full_for_a_moment_is_held_against_what_ran_then(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], check=True)
    try:
        captures = Captures(str(tmp_path))
        capture = captures.open(0, "x.1", False)
        began = time.monotonic()
        assert captures.trouble(capture.out, began) == ""
        with contextlib.suppress(OSError), open(tmp_path / "full", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        captures.look()
        (tmp_path / "full").unlink()
        assert "the node's disk is full" in captures.trouble(capture.out, began)
        assert captures.trouble(capture.out, time.monotonic()) == ""
        capture.done()
        for fd in captures.pairs.pop(0):
            os.close(fd)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_the_fallback_brings_the_exit_code_home_from_a_full_disk_as_well(
    node: Host, asker: Person, what: str
) -> None:
    options, fill = SMALL[what]
    node.bind("/bin/false", "/usr/bin/python3")
    try:
        with home_of(node, options):
            asker.write("run.sh", FILLS)
            # The second time what was set aside has been used once.
            for _ in range(2):
                done = asker.run("exec", "h1", "run.sh")
                assert done.returncode == 3, told(done)
                assert "the node's disk is full: /root/" in told(done)
                for each in asker.folder.glob("made*"):
                    each.unlink()
            node.run(fill)
            done = asker.run("exec", "h1", "echo", "--", "never")
            assert (done.returncode, done.stdout) == (255, b"")
            assert "/root/" in told(done)
            node.run("rm -f /root/.full*")
            done = asker.run("exec", "h1", "echo", "--", "room")
            assert (done.returncode, done.stdout) == (0, b"room\n"), told(done)
    finally:
        node.unbind("/usr/bin/python3")


@pytest.mark.skipif(
    not os.access("/dev/loop-control", os.W_OK), reason="no loop device for a disk that breaks"
)
def test_what_runs_on_a_disk_that_gives_up_ends_with_its_own_code(node: Host, asker: Person) -> None:
    with ext4_home(node) as give_up:
        running = waiting(asker)
        give_up()
        node.run("touch /tmp/node-go")
        out, err = running.communicate(timeout=60)
        assert running.returncode == 6
        # What it printed since then is on no disk.
        assert out == b""
        assert "output may be cut: /root/.local/state/orchestra/nodes/h1/captures: Read-only" in err.decode()
        done = asker.run("exec", "h1", "touch", "--", "/tmp/node-never")
        assert done.returncode == 255
        assert "/root/.local/state/orchestra/nodes/h1" in told(done)
        assert "Read-only file system" in told(done)
        seen = asker.run("doctor", "h1")
        assert seen.returncode == 1
        assert b"Read-only file system" in seen.stdout
        assert not node.path("/tmp/node-never").exists()
    assert asker.run("exec", "h1", "echo", "--", "room").stdout == b"room\n"


@contextlib.contextmanager
def ext4_home(host: Host) -> Iterator[Callable[[], object]]:
    """A disk of its own in the place of root's home; what is given has it find itself damaged: read-only from then on."""
    image = host.folder / "disk"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    host.run(f"mount -o loop,errors=remount-ro {image} /root")
    device = Path(host.run("findmnt -no SOURCE /root").stdout.strip()).name
    try:
        yield functools.partial(
            Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text, "the lab's own disk\n"
        )
    finally:
        end_agents(host)
        host.run("umount -l /root")


def waiting(asker: Person) -> subprocess.Popen[bytes]:
    """An execution that runs until /tmp/node-go is there, then prints and ends with 6."""
    asker.run("exec", "h1", "rm", "--", "-f", "/tmp/node-go")
    wait = "echo first; until [ -e /tmp/node-go ]; do sleep 0.05; done; echo last; exit 6"
    running = asker.start("exec", "h1", "sh", "--", "-c", wait)
    assert running.stdout is not None
    assert running.stdout.readline() == b"first\n"
    asker.wait_state("running")
    return running


@contextlib.contextmanager
def failing(process: Process, call: str, error: str) -> Iterator[None]:
    """A call of a process ends with an error, every time."""
    strace = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error={error}",
         "-p", str(process.outer_pid)],
    )  # fmt: skip
    threads = Path(f"/proc/{process.outer_pid}/task")

    def is_watched() -> bool:
        assert strace.poll() is None, "strace ended"
        return all("TracerPid:\t0\n" not in (each / "status").read_text() for each in threads.iterdir())

    try:
        wait_until("strace", is_watched)
        yield
    finally:
        strace.terminate()
        strace.wait(10)


def test_a_disk_that_fails_is_named_and_verdicts_still_come(node: Host, asker: Person) -> None:
    running = waiting(asker)
    (keeper,) = agents(node, "keeper")
    with failing(keeper, "pwrite64", "EIO"):
        node.run("touch /tmp/node-go")
        out, err = running.communicate(timeout=60)
        assert (running.returncode, out) == (6, b"last\n"), err.decode()
        # What cannot be put on record is not begun.
        done = asker.run("exec", "h1", "touch", "--", "/tmp/node-never")
        assert done.returncode == 255
        assert "/root/.local/state/orchestra/nodes/h1: Input/output error" in told(done)
        seen = asker.run("doctor", "h1")
        assert seen.returncode == 1
        assert b"/root/.local/state/orchestra/nodes/h1: Input/output error" in seen.stdout
    done = asker.run("exec", "h1", "echo", "--", "room")
    assert (done.returncode, done.stdout) == (0, b"room\n"), told(done)
    assert not node.path("/tmp/node-never").exists()
    assert [row["attempt"] for row in asker.executions()] == [1] * 4
    assert [process.pid for process in agents(node, "keeper")] == [keeper.pid]


def test_a_disk_that_cannot_be_synced_stops_nobody_and_doctor_names_it(node: Host, asker: Person) -> None:
    assert asker.run("exec", "h1", "true").returncode == 0
    (keeper,) = agents(node, "keeper")
    with failing(keeper, "fdatasync", "EIO"):
        done = asker.run("exec", "h1", "sh", "--", "-c", "echo said; exit 4")
        assert (done.returncode, done.stdout) == (4, b"said\n"), told(done)
        wait_until("a sync", lambda: b"warning record" in asker.run("doctor", "h1").stdout)
    # It stays said: what was lost then is lost.
    seen = asker.run("doctor", "h1")
    assert seen.returncode == 0
    assert b"/root/.local/state/orchestra/nodes/h1: Input/output error" in seen.stdout


# ---------------------------------------------------------------- processes


def children(host: Host) -> list[str]:
    """What the keeper has for children: running, or a zombie."""
    (keeper,) = agents(host, "keeper")
    return Path(f"/proc/{keeper.outer_pid}/task/{keeper.outer_pid}/children").read_text().split()


@contextlib.contextmanager
def few_processes(host: Host, most: int, processes: Iterable[Process]) -> Iterator[None]:
    """These, and what they start, may be so many processes in all."""
    group = host.path("/sys/fs/cgroup/pids/few")
    group.mkdir(exist_ok=True)
    (group / "pids.max").write_text(f"{most}\n")
    try:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                (group / "cgroup.procs").write_text(str(process.outer_pid))
        yield
    finally:
        (group / "pids.max").write_text("max\n")
        for word in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (group.parent / "cgroup.procs").write_text(word)


#: Three children each, six generations: 1,092 processes in all, were there room for them.
BOMB = """
import os, sys, time
def breed(generations):
    for _ in range(3):
        try: child = os.fork()
        except OSError: continue
        if child == 0:
            os.setsid()
            if generations: breed(generations - 1)
            time.sleep(300)
            os._exit(0)
while not os.path.exists("/tmp/node-go"): time.sleep(0.05)
breed(5)
print("full", flush=True)
time.sleep(300)
"""


def test_a_kill_takes_effect_on_a_node_that_has_no_room_for_a_process(node: Host, asker: Person) -> None:
    asker.write("bomb.py", BOMB)
    asker.run("exec", "h1", "rm", "--", "-f", "/tmp/node-go")
    running = asker.start("exec", "h1", "bomb.py")
    bomb = asker.wait_state("running")
    before = [process.pid for process in agents(node)]
    with few_processes(node, 80, [process for process in node.processes() if process.pid != 1]):
        node.run("touch /tmp/node-go")
        assert running.stdout is not None
        assert running.stdout.readline() == b"full\n"
        assert node.path("/sys/fs/cgroup/pids/few/pids.current").read_text() == "80\n"
        killed = asker.run("kill", bomb["id"])
        assert killed.returncode == 0, told(killed)
        running.communicate(timeout=60)
        assert running.returncode in (137, 143)
        assert node.pids_matching("bomb.py") == []
    wait_until("the last zombie's end", lambda: children(node) == [])
    assert [process.pid for process in agents(node)] == before
    assert asker.run("exec", "h1", "echo", "--", "room").stdout == b"room\n"


def test_a_start_without_room_for_a_process_is_the_nodes_failure(node: Host, asker: Person) -> None:
    assert asker.run("exec", "h1", "true").returncode == 0
    with few_processes(node, 2, agents(node, "keeper")):  # its two threads
        done = asker.run("exec", "h1", "true")
        assert done.returncode == 255
        assert "Resource temporarily unavailable" in told(done)
    assert asker.run("exec", "h1", "true").returncode == 0


#: A process that is replaced by its own child at once, again and again: nobody is there for long. It ends by its count.
HOPPER = """
import os, sys, time
if os.fork() == 0:
    if os.fork(): os._exit(0)
    for _ in range(100_000):
        if sys.argv[1] == "sessions": os.setsid()
        if os.fork(): os._exit(0)
    open("/tmp/node-outlived", "w")
    os._exit(0)
print("up", flush=True)
if sys.argv[2] == "stays": time.sleep(300)
"""


@pytest.mark.parametrize("way", ["group", "sessions"])
def test_one_that_is_replaced_by_its_child_again_and_again_is_ended_as_well(
    node: Host, asker: Person, way: str
) -> None:
    asker.write("hop.py", HOPPER)
    node.run("rm -f /tmp/node-outlived")
    running = asker.start("exec", "h1", "hop.py", "--", way, "stays")
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    killed = asker.run("kill", asker.wait_state("running")["id"])
    assert killed.returncode == 0, told(killed)
    assert node.pids_matching("hop.py") == []
    running.communicate(timeout=60)
    assert running.returncode in (137, 143)
    # And when nobody asked: what outlives its script goes with it.
    assert asker.run("exec", "h1", "hop.py", "--", way, "goes").returncode == 0
    wait_until("their end", lambda: node.pids_matching("hop.py") == [] and children(node) == [])
    assert not node.path("/tmp/node-outlived").exists()


def test_they_stand_still_while_paused(node: Host, asker: Person) -> None:
    asker.write("hop.py", HOPPER)
    running = asker.start("exec", "h1", "hop.py", "--", "sessions", "stays")
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    row = asker.wait_state("running")
    assert asker.run("pause", row["id"]).returncode == 0
    hoppers = [process for process in node.processes() if "hop.py" in process.command]
    assert len(hoppers) >= 2
    assert {process.state for process in hoppers} == {"T"}
    assert asker.run("resume", row["id"]).returncode == 0
    assert asker.run("kill", row["id"]).returncode == 0
    running.communicate(timeout=60)
    assert node.pids_matching("hop.py") == []


def test_a_stopped_one_and_its_stopped_children_are_killed_at_once(node: Host, asker: Person) -> None:
    stop = "setsid sh -c 'kill -STOP $$' & sh -c 'kill -STOP $$' & sleep 0.2; echo up; kill -STOP $$"
    running = asker.start("exec", "h1", "sh", "--", "-c", stop)
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    row = asker.wait_state("running")
    assert asker.run("kill", row["id"]).returncode == 0
    running.communicate(timeout=60)
    assert running.returncode == 143
    assert node.pids_matching("kill -STOP") == []


# ---------------------------------------------------------------- what cannot be killed


@pytest.fixture
def ice(node: Host) -> Iterator[Callable[[str], None]]:
    """Freeze what has a word on its command line, as the administrator of a node may: no signal gets through."""
    group = node.path("/sys/fs/cgroup/freezer/ice")
    group.mkdir()

    def freeze(word: str) -> None:
        for process in node.processes():
            if word in process.command:
                (group / "cgroup.procs").write_text(str(process.outer_pid))
        (group / "freezer.state").write_text("FROZEN")
        wait_until("ice", lambda: (group / "freezer.state").read_text() == "FROZEN\n")

    yield freeze
    (group / "freezer.state").write_text("THAWED")
    wait_until("the end of what was in it", lambda: (group / "cgroup.procs").read_text() == "")
    group.rmdir()


async def test_what_no_signal_reaches_is_reported_with_its_processes_and_gone_once_it_can_be(
    node: Host, asker: Person, ice: Callable[[str], None]
) -> None:
    assert asker.run("exec", "h1", "true").returncode == 0
    end_agents(node)
    (ends,) = node.home.glob(".cache/orchestra/agent-*/ends.py")
    text = ends.read_text()
    ends.write_text(text.replace("UNKILLABLE_S = 60.0", "UNKILLABLE_S = 0.5"))
    try:
        async with liborch.open_host("h1") as host, asyncio.timeout(60):
            execution = host.submit(["sh", "-c", "sleep 3001 & wait"], grace_s=0.2)
            while execution.state != "running":
                await asyncio.sleep(0.02)
            ice("sleep 3001")
            frozen = node.pids_matching("sleep 3001")
            assert len(frozen) == 2
            execution.cancel()
            result = await execution
            assert (result.state, result.exit_code, result.signal) == ("cancelled", None, None)
            assert result.why.startswith("unkillable for ")
            assert result.why.endswith("processes " + ", ".join(map(str, frozen)))
            # Its slot is somebody else's by now, who gets files of their own.
            assert (await host.submit(["echo", "next"])).stdout == b"next\n"
    finally:
        ends.write_text(text)


@pytest.mark.soak
def test_a_kill_says_that_it_has_no_effect_and_the_node_gives_up_after_a_minute(
    node: Host, asker: Person, ice: Callable[[str], None]
) -> None:
    running = asker.start("exec", "h1", "sh", "--", "-c", "echo up; sleep 3002")
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    row = asker.wait_state("running")
    ice("sleep 3002")
    killed = asker.run("kill", row["id"])
    assert killed.returncode == 1
    assert "has not ended yet (running); it was asked to" in told(killed)
    assert b"it was asked to end" in asker.run("explain", row["id"]).stdout
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130
    assert b"cancelled: unkillable for 60 s: processes " in err
    assert asker.run("exec", "h1", "true").returncode == 0


# ---------------------------------------------------------------- memory


@contextlib.contextmanager
def little_memory(host: Host, size_bytes: int, processes: Iterable[Process]) -> Iterator[Path]:
    """These, and what they start, may use so much memory in all; whoever the kernel chooses is killed."""
    group = host.path("/sys/fs/cgroup/memory/little")
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(str(size_bytes))
    try:
        for process in processes:
            (group / "cgroup.procs").write_text(str(process.outer_pid))
        yield group
    finally:
        for word in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (group.parent / "cgroup.procs").write_text(word)


def kills(group: Path) -> int:
    """How many processes the kernel killed there for lack of memory."""
    fields = dict(line.split() for line in (group / "memory.oom_control").read_text().splitlines())
    return int(fields["oom_kill"])


def test_when_memory_is_short_the_execution_goes_and_not_who_watches_it(node: Host, asker: Person) -> None:
    assert asker.run("exec", "h1", "true").returncode == 0
    before = agents(node)
    asker.write("hog.py", "print('up', flush=True)\nx = bytearray(400 << 20)\nprint(len(x))\n")
    with little_memory(node, 120 << 20, before) as group:
        had = kills(group)
        done = asker.run("exec", "h1", "hog.py")
        assert (done.returncode, done.stdout) == (137, b"up\n"), told(done)
        assert kills(group) > had
        shown = asker.json("show", "last")
        # It asked for no limit, so whose memory was short is not ours to say.
        assert (shown["reason"], shown["signal"], shown["exit_code"]) == ("signal", 9, None)
        assert [process.pid for process in agents(node)] == [process.pid for process in before]
        assert asker.run("exec", "h1", "echo", "--", "room").stdout == b"room\n"


def test_an_agent_that_the_kernel_kills_loses_no_output_and_never_runs_anything_twice(
    node: Host, asker: Person
) -> None:
    running = waiting(asker)
    # As the kernel does it when memory is short: first the one that talks, then the one that waits.
    for process in agents(node, "talker"):
        node.kill(process.pid)
    node.run("touch /tmp/node-go")
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (6, b"last\n"), err.decode()
    running = waiting(asker)
    for process in agents(node, "keeper"):
        node.kill(process.pid)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 255
    assert b"lost: keeper: its keeper process was killed while it ran" in err
    assert node.pids_matching("node-go") == []
    assert {row["attempt"] for row in asker.executions()} == {1}
