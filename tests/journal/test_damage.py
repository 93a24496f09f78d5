"""Damaged, foreign, older and newer files: an error that says what to do, or the whole content. Never a traceback."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from liborch.errors import JournalError, StorageError
from liborch.journal import Journal, schema
from tests.journal.stories import begun, ending, entering, name

COUNT = 300


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed journal of a few dozen pages."""
    path = tmp_path_factory.mktemp("sound") / "journal.db"
    with begun(path) as journal:
        for n in range(COUNT):
            journal.commit([entering(n, payload=bytes([n & 255]) * 300)])
            if n % 2:
                journal.commit([ending(n)])
    return path


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal whose writer was killed with 100 commits in its log, 3 executions in the file."""
    path = tmp_path_factory.mktemp("killed") / "journal.db"
    program = """if True:
        import os, signal, sys
        from pathlib import Path
        from tests.journal.stories import begun, entering
        journal = begun(Path(sys.argv[1]))
        for n in range(100):
            if n == 3:
                journal.checkpoint()
            journal.commit([entering(n)])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def read_all(path: Path, readonly: bool = False) -> list[int]:
    """Everything a journal can be asked, as whoever uses it would."""
    with Journal.open(path, readonly=readonly) as journal:
        for orchestration in journal.orchestrations():
            list(journal.groups(orchestration.id))
        journal.executions(live=True)
        return [row.number for row in journal.executions(newest_first=False)]


def refused(path: Path) -> None:
    """Both ways of opening refuse, say what to do, and leave the file as it is."""
    before = path.read_bytes()
    for readonly in (False, True):
        with pytest.raises(JournalError) as caught:
            read_all(path, readonly)
        assert str(path) in str(caught.value)
        assert "; " in str(caught.value)
    assert path.read_bytes() == before


def test_a_sound_one_reads_whole(sound: Path, path: Path) -> None:
    shutil.copy(sound, path)
    assert read_all(path) == list(range(COUNT))


def test_cut_off_anywhere_it_is_refused(sound: Path, path: Path) -> None:
    whole = sound.read_bytes()
    for step in range(50):
        path.write_bytes(whole[: len(whole) * step // 50])
        refused(path)


def test_a_zeroed_page_is_refused(sound: Path, path: Path) -> None:
    whole = sound.read_bytes()
    for page in range(0, len(whole) // 4096, 3):
        path.write_bytes(whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :])
        with pytest.raises(JournalError):
            Journal.open(path)


def test_flipped_bytes_are_refused_or_change_no_event(sound: Path, path: Path) -> None:
    whole = sound.read_bytes()
    with Journal.open(sound, readonly=True) as journal:
        truth = list(journal.groups("o1"))
    outcomes = {"refused": 0, "read": 0}
    for step in range(100):
        at = (len(whole) * step + 7919 * step) // 100 % len(whole)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        for side in ("-wal", "-shm"):
            path.with_name(path.name + side).unlink(missing_ok=True)
        try:
            with Journal.open(path) as journal:
                assert [(seq, payload) for seq, _, payload in journal.groups("o1")] == [
                    (seq, p) for seq, _, p in truth
                ]
                journal.executions()
            outcomes["read"] += 1
        except JournalError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 20


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"SQLite format 3\0", b"#!/bin/sh\n" * 900, bytes(8192)],
    ids=["empty", "x", "head", "text", "zeros"],
)
def test_what_is_no_journal_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path)


def test_a_header_of_something_else_is_refused(sound: Path, path: Path) -> None:
    path.write_bytes(b"GIF89a" + sound.read_bytes()[6:])
    refused(path)


def edit(path: Path, change: Callable[[sqlite3.Connection], object]) -> None:
    db = sqlite3.connect(path)
    change(db)
    db.commit()
    db.execute("PRAGMA journal_mode = DELETE")
    db.close()


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    edit(path, lambda db: db.execute("CREATE TABLE bookmarks (url TEXT)"))
    refused(path)


def test_a_newer_schema_is_refused(sound: Path, path: Path) -> None:
    shutil.copy(sound, path)
    edit(path, lambda db: db.execute(f"PRAGMA user_version = {schema.VERSION + 1}"))
    with pytest.raises(JournalError, match="newer"):
        Journal.open(path)
    refused(path)


OLD = f"""
PRAGMA application_id = {0x6F726368};
CREATE TABLE orchestrations (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
    title TEXT NOT NULL, details TEXT NOT NULL, client_host TEXT NOT NULL, client_pid INTEGER NOT NULL,
    created_at REAL NOT NULL, state TEXT NOT NULL);
CREATE TABLE events (place INTEGER PRIMARY KEY, at REAL NOT NULL, count INTEGER NOT NULL, crc INTEGER NOT NULL,
    payload BLOB NOT NULL);
CREATE TABLE executions (place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, reason TEXT,
    exit_code INTEGER, signal INTEGER, host TEXT NOT NULL, node TEXT, attempt INTEGER, label TEXT NOT NULL,
    submitted_at REAL NOT NULL, started_at REAL, ended_at REAL, record TEXT);
CREATE TABLE specs (place INTEGER PRIMARY KEY, spec TEXT NOT NULL);
INSERT INTO orchestrations VALUES (1, 'o1', 'exec', 'old', '{{}}', 'laptop', 17, 1.0, 'ended');
INSERT INTO executions (place, id, state, host, label, submitted_at) VALUES ((1 << 32) + 4, 'abc', 'WAITING', 'h', '', 1.0);
INSERT INTO specs VALUES ((1 << 32) + 4, '{{}}');
"""


@pytest.mark.parametrize("readonly", [False, True])
def test_an_old_schema_is_brought_up_to_date_with_what_it_holds(path: Path, readonly: bool) -> None:
    edit(path, lambda db: db.executescript(OLD))
    with Journal.open(path, readonly=readonly) as journal:
        assert [row.id for row in journal.executions(live=True)] == ["abc"]
        assert readonly or journal.notes == [f"brought from schema 0 to {schema.VERSION}"]
    with Journal.open(path) as journal:
        assert journal.notes == []
        journal.commit([entering(5)])
        assert [row.id for row in journal.executions(live=True)] == [name(5), "abc"]


def test_a_killed_writers_log_is_taken_in_and_told(killed: Path, path: Path) -> None:
    for side in ("", "-wal", "-shm"):
        shutil.copy(f"{killed}{side}", f"{path}{side}")
    assert read_all(path, readonly=True) == list(range(100))
    with Journal.open(path) as journal:
        assert "none lost" in journal.notes[0]
        assert len(journal.executions()) == 100
    with Journal.open(path) as journal:
        assert journal.notes == []


def test_without_its_shared_memory_file_nothing_is_missing(killed: Path, path: Path) -> None:
    for readonly in (True, False):
        for side in ("", "-wal"):
            shutil.copy(f"{killed}{side}", f"{path}{side}")
        path.with_name(path.name + "-shm").unlink(missing_ok=True)
        assert read_all(path, readonly=readonly) == list(range(100))


def test_without_its_log_it_is_what_it_was_at_the_checkpoint_and_says_so(killed: Path, path: Path) -> None:
    for side in ("", "-shm"):
        shutil.copy(f"{killed}{side}", f"{path}{side}")
    with Journal.open(path) as journal:
        assert [row.number for row in journal.executions(newest_first=False)] == [0, 1, 2]
        assert "gone" in journal.notes[0]


def test_a_torn_log_loses_its_tail_only_and_is_counted(killed: Path, path: Path) -> None:
    log = Path(f"{killed}-wal").read_bytes()
    seen = set()
    for step in range(50):
        cut = len(log) * step // 50
        shutil.copy(killed, path)
        Path(f"{path}-wal").write_bytes(log[:cut])
        Path(f"{path}-shm").unlink(missing_ok=True)
        with Journal.open(path) as journal:
            numbers = [row.number for row in journal.executions(newest_first=False)]
            assert numbers == list(range(len(numbers)))
            assert len(list(journal.groups("o1"))) == len(numbers)
            seen.add(len(numbers))
    assert min(seen) == 3
    assert len(seen) > 25


def test_a_torn_frame_in_the_log_is_dropped_with_what_follows(killed: Path, path: Path) -> None:
    log = bytearray(Path(f"{killed}-wal").read_bytes())
    log[len(log) // 2] ^= 0x55
    shutil.copy(killed, path)
    Path(f"{path}-wal").write_bytes(log)
    with Journal.open(path) as journal:
        numbers = [row.number for row in journal.executions(newest_first=False)]
        assert numbers == list(range(len(numbers)))
        assert 3 <= len(numbers) < 100
        assert "unfinished ones dropped" in journal.notes[0]


def test_folders_in_the_way_and_names_with_odd_characters(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises((StorageError, JournalError)):
        Journal.open(tmp_path / "folder.db")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Journal.open(tmp_path / "file" / "journal.db")
    odd = tmp_path / "a%20b?c#d é" / "journal.db"
    begun(odd).close()
    assert odd.exists()
    assert read_all(odd, readonly=True) == []


def test_a_big_closed_journal_is_not_read_through_at_opening(
    sound: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liborch.journal.opening.CHEAP_CHECK_BYTES", 0)
    checked: list[Path] = []
    monkeypatch.setattr("liborch.journal.opening.check", lambda db, path: checked.append(path))
    shutil.copy(sound, path)
    Journal.open(path).close()
    assert checked == []
    Path(f"{path}-wal").write_bytes(os.urandom(100))
    Journal.open(path).close()
    assert checked == [path]
