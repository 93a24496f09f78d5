"""Rebuilding a damaged journal, on request only: what can still be read goes into a new file.

A copy of the damaged one is kept beside it first. A page that cannot be read takes its rows with it; everything on both
sides of it is found again by asking for ranges of places from either end. A first page that is gone is replaced by that
of an empty journal: the tables begin at the same pages in every journal. What is lost after that may still be known
to the nodes; asking them is the caller's.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import msgspec

from liborch.errors import Conflict, JournalError, StorageError
from liborch.journal.locks import OpenLock
from liborch.journal.opening import check, connect, identify, wal_path, write_empty
from liborch.journal.schema import APPLICATION_ID, PLACE_BITS, VERSION
from liborch.journal.storage import translate

#: Ranges asked for per table before the rest of a hole counts as lost.
MOST_PROBES = 20_000
_KEYS = {"orchestrations": "number", "events": "place", "executions": "place", "specs": "place"}
_TYPES: dict[str, tuple[type, ...]] = {
    "INTEGER": (int,),
    "REAL": (float, int),
    "TEXT": (str, bytes),
    "BLOB": (bytes,),
}

Row = tuple[Any, ...]


class Rebuilt(msgspec.Struct, frozen=True):
    """What a rebuild found."""

    #: The damaged journal as it was; its write-ahead log, if any, lies beside it.
    copy: str
    #: {table: rows taken over}.
    rows: dict[str, int]
    #: {table: holes that could not be read}.
    holes: dict[str, int]


def rebuild(path: str | os.PathLike[str]) -> Rebuilt:
    """Put a journal of everything that can still be read in the place of a damaged one; keep a copy.

    Raises:
        Conflict: Another process has the journal open.
        JournalError: It is not there, belongs to another program, or is newer than this one.
        StorageError: No room for the copy or the new file. The journal is as it was.
    """
    journal = Path(os.path.abspath(path))
    if not journal.is_file():
        raise JournalError(str(journal), "is not there", "name the journal to rebuild")
    lock = OpenLock(journal)
    draft = journal.with_name(journal.name + ".new")
    scratch = journal.with_name(journal.name + ".salvage")
    try:
        if not lock.exclude(wait=False):
            raise Conflict(
                f"{journal}: another process has the journal open; end it first (see `runaway ps`)"
            )
        _remove(draft, scratch)
        kept = journal.with_name(f"{journal.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        _copy(journal, kept)
        _copy(journal, scratch)
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        write_empty(draft, wal=False)
        damaged = _open_somehow(scratch, draft)
        try:
            rows, holes = _take_over(damaged, draft, journal)
        finally:
            damaged.close()
        # The old log first: replayed into the new file it would damage it. The copy has its own.
        _remove_sides(journal)
        os.replace(draft, journal)
        return Rebuilt(str(kept), rows, holes)
    except sqlite3.Error as error:
        raise translate(error, journal, "rebuilding the journal") from error
    except OSError as error:
        raise StorageError(
            "this machine", str(journal), error.errno or 5, "rebuilding the journal"
        ) from error
    finally:
        try:
            _remove(draft, scratch)
        finally:
            lock.close()


def _copy(source: Path, target: Path) -> None:
    """Copy a journal with its log, private from the first instant."""
    for a, b in ((source, target), (wal_path(source), wal_path(target))):
        if a.exists():
            with (
                a.open("rb") as from_,
                os.fdopen(os.open(b, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as to,
            ):
                shutil.copyfileobj(from_, to, 1 << 20)
                to.flush()
                os.fsync(to.fileno())


def _remove(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)
        _remove_sides(file)


def _remove_sides(file: Path) -> None:
    for side in ("-wal", "-shm", "-journal"):
        file.with_name(file.name + side).unlink(missing_ok=True)


def _open_somehow(scratch: Path, empty: Path) -> sqlite3.Connection:
    """The damaged file, with the first page of an empty journal when its own is no use."""
    db: sqlite3.Connection | None = None
    try:
        db = connect(scratch, readonly=False)
        identify(db, scratch)
        return db
    except JournalError:
        foreign = db is not None and _is_foreign(db)
        if db is not None:
            db.close()
        if foreign:
            raise
    with scratch.open("r+b") as file, empty.open("rb") as sound:
        page = bytearray(sound.read(4096))
        # Short of a page where a table begins, SQLite would not read the others either.
        pages = max(os.fstat(file.fileno()).st_size, os.fstat(sound.fileno()).st_size) // 4096
        file.truncate(pages * 4096)
        # The size counts only where two counters agree.
        page[28:32] = pages.to_bytes(4, "big")
        page[92:96] = page[24:28]
        file.write(page)
    return connect(scratch, readonly=False)


def _is_foreign(db: sqlite3.Connection) -> bool:
    """Whether it is a sound head of another program's file, or of a newer version's: not ours to rebuild."""
    try:
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.DatabaseError:
        return False
    return bool(application != APPLICATION_ID or version > VERSION)


def _take_over(
    damaged: sqlite3.Connection, draft: Path, journal: Path
) -> tuple[dict[str, int], dict[str, int]]:
    """Copy what can be read; fill in what the rest refers to. Returns rows and holes per table."""
    rows: dict[str, int] = {}
    holes: dict[str, int] = {}
    db = connect(draft, readonly=False)
    try:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        for table, key in _KEYS.items():
            columns = db.execute(f"PRAGMA table_info({table})").fetchall()
            names = ", ".join(column[1] for column in columns)
            insert = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({','.join('?' * len(columns))})"
            rows[table], holes[table] = 0, 0
            for row in _readable(damaged, f"SELECT {names} FROM {table} NOT INDEXED", key, holes, table):
                if _is_sane(row, columns, table):
                    rows[table] += db.execute(insert, row).rowcount
        _complete(db)
        db.execute("COMMIT")
        check(db, journal)
    finally:
        db.close()
    return rows, holes


def _readable(
    db: sqlite3.Connection, query: str, key: str, holes: dict[str, int], table: str
) -> Iterator[Row]:
    """Rows of a table, from both ends of every hole. Keys are the first column."""
    ranges = deque([(-1, (1 << 63) - 1)])
    probes = 0
    while ranges:
        low, high = ranges.popleft()
        probes += 1
        low, broken = yield from _walk(
            db, query + f" WHERE {key} > ? AND {key} < ? ORDER BY {key}", low, high, 0
        )
        if not broken:
            continue
        high, broken = yield from _walk(
            db, query + f" WHERE {key} > ? AND {key} < ? ORDER BY {key} DESC", low, high, 1
        )
        if not broken:
            continue
        middle = (low + high) // 2
        if high - low > 2 and probes < MOST_PROBES:
            ranges.extend(((low, middle + 1), (middle, high)))
        else:
            holes[table] += 1


def _walk(
    db: sqlite3.Connection, query: str, low: int, high: int, side: int
) -> Generator[Row, None, tuple[int, bool]]:
    """Yield rows until the end or an error; returns how far it came, and whether it was an error."""
    at = [low, high]
    cursor = db.cursor()
    try:
        cursor.execute(query, at)
        while (row := cursor.fetchone()) is not None:
            if not isinstance(row[0], int):
                return at[side], True
            at[side] = row[0]
            yield row
    except sqlite3.DatabaseError:
        return at[side], True
    finally:
        cursor.close()
    return at[side], False


def _is_sane(row: Row, columns: list[Row], table: str) -> bool:
    """Whether each value is of its column's type: a flipped bit can change that. Payloads have a checksum."""
    for value, (_, _, type_, required, _, is_key) in zip(row, columns, strict=True):
        if value is None:
            if required or is_key:
                return False
        elif not isinstance(value, _TYPES[type_]):
            return False
    return table != "events" or zlib.crc32(row[4]) == row[3]


def _complete(db: sqlite3.Connection) -> None:
    """Orchestrations and specs that were lost, though something belongs to them, get an empty stand-in."""
    db.execute(
        "INSERT INTO specs (place, spec) SELECT place, '{}' FROM executions WHERE place NOT IN (SELECT place FROM specs)"
    )
    db.execute(
        f"""INSERT INTO orchestrations (number, id, kind, title, details, client_host, client_pid, created_at, state)
        SELECT number, 'recovered-' || number, 'batch', 'recovered', '{{}}', '', 0, 0.0, 'left' FROM
        (SELECT place >> {PLACE_BITS} AS number FROM executions UNION SELECT place >> {PLACE_BITS} FROM events)
        WHERE number NOT IN (SELECT number FROM orchestrations)"""
    )
