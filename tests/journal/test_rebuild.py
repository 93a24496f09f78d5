"""Rebuilding on request: a copy is kept, what can be read is there, and the result is a sound journal."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from liborch.errors import Conflict, JournalError
from liborch.journal import Journal
from liborch.journal.rebuild import rebuild
from tests.journal.stories import begun, ending, entering

COUNT = 400


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "journal.db"
    with begun(path) as journal:
        for n in range(COUNT):
            journal.commit([entering(n, payload=bytes([n & 255]) * 300), ending(n)])
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_any_one_page_lost_costs_its_own_rows_only(sound: Path, path: Path) -> None:
    whole = sound.read_bytes()
    leaf_losses = []
    for page in range(0, len(whole) // 4096, 4):
        damaged = whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :]
        path.write_bytes(damaged)
        with pytest.raises(JournalError):
            Journal.open(path)
        found = rebuild(path)
        assert Path(found.copy).read_bytes() == damaged
        with Journal.open(path) as journal:
            rows = journal.executions(newest_first=False)
            groups = list(journal.groups(journal.orchestrations()[0].id))
            assert len(rows) == found.rows["executions"]
            assert len(groups) == found.rows["events"]
            for row in rows:
                assert (row.state, row.label) == ("succeeded", f"label {row.number}")
        leaf_losses.append(3 * COUNT - len(rows) - len(groups))
        Path(found.copy).unlink()
    # Inner pages and whole tables may go; nearly every page is a leaf, or an index that loses nothing.
    assert sorted(leaf_losses)[len(leaf_losses) * 3 // 4] <= 100


def test_a_first_page_that_is_gone_costs_nothing(sound: Path, path: Path) -> None:
    path.write_bytes(b"\xff" * 4096 + sound.read_bytes()[4096:])
    assert rebuild(path).rows == {
        "orchestrations": 1,
        "events": 2 * COUNT,
        "executions": COUNT,
        "specs": COUNT,
    }
    with Journal.open(path) as journal:
        assert [row.number for row in journal.executions(newest_first=False)] == list(range(COUNT))
        journal.commit([entering(COUNT)])


def test_one_that_holds_nothing_readable_becomes_an_empty_journal_and_is_kept(path: Path) -> None:
    path.write_bytes(b"nothing at all " * 1000)
    found = rebuild(path)
    assert sum(found.rows.values()) == 0
    assert Path(found.copy).read_bytes() == b"nothing at all " * 1000
    with Journal.open(path) as journal:
        assert journal.executions() == []


def test_what_waits_in_the_log_of_a_killed_writer_is_taken_over(path: Path) -> None:
    program = """if True:
        import os, signal, sys
        from pathlib import Path
        from tests.journal.stories import begun, entering
        journal = begun(Path(sys.argv[1]))
        for n in range(50):
            journal.commit([entering(n)])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    found = rebuild(path)
    assert found.rows["executions"] == 50
    assert Path(found.copy + "-wal").exists()
    with Journal.open(path) as journal:
        assert len(list(journal.groups("o1"))) == 50
        assert journal.notes == []


def test_what_belongs_to_others_or_is_in_use_is_left_alone(sound: Path, path: Path) -> None:
    shutil.copy(sound, path)
    with Journal.open(path), pytest.raises(Conflict):
        rebuild(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(JournalError, match="newer"):
        rebuild(path)
    with pytest.raises(JournalError, match="newer"):
        Journal.open(path)
    with pytest.raises(JournalError, match="not there"):
        rebuild(path.with_name("other.db"))
    assert not list(path.parent.glob("*.new*"))
    assert not list(path.parent.glob("*.salvage*"))
