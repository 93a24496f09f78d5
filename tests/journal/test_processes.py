"""Several processes, real kills, real full and read-only disks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from liborch.errors import Conflict, InvariantError, StorageError
from liborch.journal import DriverLock, Journal, Writer
from tests.journal.stories import begun, entering

WRITE = """if True:
    import sys
    from pathlib import Path
    from liborch.journal import Journal
    from tests.journal.stories import entering, ending
    path, orchestration, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    journal = Journal.open(path)
    journal.begin(orchestration, "batch", "")
    print("begun", flush=True)
    for n in range(count):
        journal.commit([entering(n, orchestration)])
        journal.commit([ending(n, orchestration)])
        print(n, flush=True)
        if n % 5 == 4:
            journal.checkpoint()
    journal.close()
"""


def start(program: str, *words: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, "-c", program, *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def check_integrity(path: Path) -> None:
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


def can_trace() -> str:
    """Why strace cannot be used here; empty when it can."""
    if shutil.which("strace") is None:
        return "strace is missing"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace may not trace: {tried.stderr.strip()}"


@pytest.fixture(scope="module")
def tracing() -> None:
    if why := can_trace():
        pytest.skip(why)


@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize(
    ("call", "when"),
    [("pwrite64", n) for n in (1, 9, 30, 47, 70, 101, 128, 150)] + [("fdatasync", n) for n in (1, 2, 4, 6)],
)
def test_killed_at_any_write_no_acknowledged_commit_is_lost_and_none_is_half(
    tmp_path: Path, call: str, when: int
) -> None:
    path = tmp_path / "journal.db"
    begun(path).close()
    inject = (
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:signal=SIGKILL:when={when}",
    )
    process = start(WRITE, path, "o2", 20, prefix=inject)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0, "the kill never came"
    acknowledged = [int(line) for line in printed.split() if line.isdigit()]
    with Journal.open(path) as journal:
        rows = journal.executions("o2", newest_first=False)
        groups = list(journal.groups("o2"))
    numbers = [row.number for row in rows]
    assert numbers[: len(acknowledged)] == acknowledged
    assert len(numbers) <= len(acknowledged) + 1
    assert all(row.state == "succeeded" for row in rows[: len(acknowledged)])
    # What is derived says exactly what the events say.
    assert len(groups) == len(rows) + sum(row.state == "succeeded" for row in rows)
    check_integrity(path)


@pytest.mark.usefixtures("tracing")
def test_an_input_output_error_is_a_storage_error_and_leaves_no_half(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    begun(path).close()
    program = WRITE.replace('print("begun", flush=True)', "").replace(
        "import sys", "import sys\n    from liborch.errors import StorageError", 1
    )
    program = program.replace(
        "    for n in range(count):\n",
        "    n = 0\n    for n in range(count):\n        try:\n            journal.commit([entering(n, orchestration)])\n        except StorageError as error:\n            print('refused', error.code, error)\n            break\n        continue\n",
    )
    inject = (
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=pwrite64",
        "-e",
        "inject=pwrite64:error=EIO:when=20+",
    )
    process = start(program, path, "o2", 40, prefix=inject)
    printed, complaint = process.communicate(timeout=60)
    assert re.search(rf"refused {errno.EIO} .*{re.escape(str(path))}", printed), complaint
    with Journal.open(path) as journal:
        numbers = [row.number for row in journal.executions("o2", newest_first=False)]
        assert numbers == list(range(len(numbers)))
        assert len(list(journal.groups("o2"))) == len(numbers)
    check_integrity(path)


def test_two_processes_write_at_once_and_a_third_reads(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    # Not even made yet: both find it missing at the same time.
    writers = [start(WRITE, path, name, 200) for name in ("o1", "o2")]
    assert writers[0].stdout is not None
    assert writers[0].stdout.readline() == "begun\n"
    with Journal.open(path, readonly=True) as reader:
        while any(writer.poll() is None for writer in writers):
            for row in reader.executions(limit=5):
                assert row.state in ("waiting", "succeeded")
            for writer in writers:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    writer.communicate(timeout=0.05)
    assert [writer.returncode for writer in writers] == [0, 0]
    with Journal.open(path) as journal:
        for name in ("o1", "o2"):
            assert [row.number for row in journal.executions(name, newest_first=False)] == list(range(200))
            assert [seq for seq, _, _ in journal.groups(name)] == list(range(1, 401))
        assert not any(row.ended_at is None for row in journal.executions())
    check_integrity(path)


RACE = """if True:
    import sys
    from liborch.errors import Conflict
    from liborch.journal import DriverLock
    for line in sys.stdin:
        word, name = line.split()
        if word == "take":
            lock = DriverLock(sys.argv[1], name)
            try:
                lock.acquire_nowait()
                print("got", flush=True)
            except Conflict as error:
                print("refused", error, flush=True)
        else:
            lock.release()
            print("released", flush=True)
"""


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def racers(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    processes = [start(RACE, tmp_path) for _ in range(2)]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_of_two_who_race_for_a_lock_one_gets_it_and_the_other_learns_whose_it_is(
    tmp_path: Path, racers: list[subprocess.Popen[str]]
) -> None:
    for _ in range(50):
        for racer in racers:
            tell(racer, "take batch1")
        answers = [hear(racer) for racer in racers]
        assert sorted(answer.split()[0] for answer in answers) == ["got", "refused"]
        winner = racers[[answer.split()[0] for answer in answers].index("got")]
        refusal = next(answer for answer in answers if answer.startswith("refused"))
        # The loser may be so quick that the winner has not signed yet.
        assert f"process {winner.pid} on {os.uname().nodename}" in refusal or "another process" in refusal
        tell(winner, "release batch1")
        assert hear(winner) == "released"
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_lock_given_back_while_others_take_it_is_never_held_twice(
    tmp_path: Path, racers: list[subprocess.Popen[str]]
) -> None:
    tell(racers[0], "take b")
    assert hear(racers[0]) == "got"
    for _ in range(50):
        tell(racers[0], "release b")
        tell(racers[1], "take b")
        assert hear(racers[0]) == "released"
        if hear(racers[1]) != "got":
            tell(racers[1], "take b")
            assert hear(racers[1]) == "got"
        with pytest.raises(Conflict, match=f"process {racers[1].pid} on "):
            DriverLock(tmp_path, "b").acquire_nowait()
        racers.reverse()


def test_a_lock_dies_with_its_process(tmp_path: Path, racers: list[subprocess.Popen[str]]) -> None:
    tell(racers[0], "take b")
    assert hear(racers[0]) == "got"
    os.kill(racers[0].pid, signal.SIGKILL)
    racers[0].wait()
    with DriverLock(tmp_path, "b") as lock:
        assert lock.is_held
    assert not lock.is_held


def test_a_name_that_leads_elsewhere_is_no_lock(tmp_path: Path) -> None:
    for wrong in ("../x", "", ".", "a/b"):
        with pytest.raises(InvariantError):
            DriverLock(tmp_path, wrong)


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A tmpfs with the options given as parameter."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"may not mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("small_disk", ["size=600k"], indirect=True)
async def test_a_disk_that_fills_up_and_is_freed_loses_nothing(small_disk: Path) -> None:
    path = small_disk / "journal.db"
    journal = begun(path)
    stalled, recovered = asyncio.Event(), asyncio.Event()
    writer = Writer(journal, on_stall=lambda _: stalled.set(), on_recover=recovered.set)
    filler = small_disk / "filler"
    disk = os.statvfs(small_disk)
    filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize))
    tasks = [asyncio.create_task(writer.commit(entering(n, payload=os.urandom(2000)))) for n in range(100)]
    await asyncio.wait_for(stalled.wait(), 10)
    assert writer.stalled is not None
    assert writer.stalled.code == errno.ENOSPC
    assert str(path) in str(writer.stalled)
    filler.unlink()
    await asyncio.wait_for(asyncio.gather(*tasks), 20)
    await recovered.wait()
    assert writer.stalled is None
    await writer.close()
    with Journal.open(path) as journal:
        assert [row.number for row in journal.executions(newest_first=False)] == list(range(100))
    check_integrity(path)


@pytest.mark.parametrize("small_disk", ["nr_inodes=8"], indirect=True)
def test_without_inodes_it_says_so_and_works_when_there_are(small_disk: Path) -> None:
    path = small_disk / "journal.db"
    crumbs = [small_disk / f"crumb{n}" for n in range(6)]
    for crumb in crumbs:
        crumb.touch()
    with pytest.raises(StorageError) as caught:
        Journal.open(path)
    assert caught.value.code == errno.ENOSPC
    for crumb in crumbs:
        crumb.unlink()
    with begun(path) as journal:
        journal.commit([entering(1)])


@pytest.mark.parametrize("small_disk", ["size=2m"], indirect=True)
def test_on_a_readonly_disk_it_can_be_read_and_says_why_not_written(small_disk: Path) -> None:
    path = small_disk / "journal.db"
    with begun(path) as journal:
        journal.commit([entering(1)])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError) as caught:
        Journal.open(path)
    assert caught.value.code == errno.EROFS
    with Journal.open(path, readonly=True) as journal:
        assert [row.number for row in journal.executions()] == [1]
        assert "cannot be written" in journal.notes[0]


def test_in_a_folder_of_somebody_else_it_can_be_read_and_says_why_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    path = folder / "journal.db"
    begun(path).close()
    path.chmod(0o444)
    folder.chmod(0o555)
    program = """if True:
        import os, sys
        from liborch.errors import StorageError
        from liborch.journal import Journal
        os.chdir(sys.argv[1])
        if os.geteuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
        with Journal.open("journal.db", readonly=True) as journal:
            print([o.id for o in journal.orchestrations()], journal.notes)
        try:
            Journal.open("journal.db")
        except StorageError as error:
            print(error.code, error)
    """
    for parent in (tmp_path, *tmp_path.parents):
        if os.geteuid() == 0 and "pytest" in str(parent):
            parent.chmod(parent.stat().st_mode | 0o011)
    process = start(program, folder)
    printed, complaint = process.communicate(timeout=30)
    assert "['o1']" in printed, complaint
    assert f"{errno.EACCES} " in printed
    folder.chmod(0o755)
