"""Opening a journal: made when missing, checked when there is reason to, migrated when old, refused when not ours.

A journal appears at its path whole or not at all: it is made under another name and renamed. So an empty file at the
path is never "a new one", but something that went wrong, and an error.

The content is checked (`quick_check`) when the last writer did not close it (its -wal is not empty and nobody has it
open) and when that is cheap. A closed journal of any size opens in a few milliseconds.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from pathlib import Path

from liborch.errors import JournalError, StorageError
from liborch.journal import schema
from liborch.journal.locks import OpenLock
from liborch.journal.storage import REBUILD, make_private_folder, network_type, translate

#: Up to this size a journal is checked at every opening for writing; that takes about 2 ms.
CHEAP_CHECK_BYTES = 1 << 20
#: How long SQLite waits for another process's transaction, in seconds.
BUSY_S = 10.0


class Opened:
    """A connection, the lock that goes with it, and what there is to tell about it."""

    def __init__(self, db: sqlite3.Connection, lock: OpenLock | None, notes: list[str]) -> None:
        self.db = db
        self.lock = lock
        self.notes = notes
        self.is_wal = False


def open_for_writing(path: Path, network: bool | None = None) -> Opened:
    """Open a journal, made when missing. Raises JournalError, StorageError, Conflict.

    Args:
        network: Whether the file lies on a network file system; None: look.
    """
    make_private_folder(path.parent)
    kind = network_type(path.parent) if network is None else ("a network" if network else None)
    notes: list[str] = []
    lock = OpenLock(path)
    db: sqlite3.Connection | None = None
    try:
        lock.share()
        if not os.path.lexists(path):
            lock.exclude(wait=True)
            if not os.path.lexists(path):
                _create(path, wal=kind is None)
            lock.share()
        elif _left_open(path):
            if lock.exclude(wait=False):
                _recover(path, notes)
            lock.share()
        db = connect(path, readonly=False)
        version = identify(db, path)
        if version < schema.VERSION:
            db.close()
            # Alone: a program of the older version must not go on writing into newer tables.
            lock.exclude(wait=True)
            _migrate(path, notes)
            lock.share()
            db = connect(path, readonly=False)
            identify(db, path)
        opened = Opened(db, lock, notes)
        opened.is_wal = _set_mode(db, path, kind, notes)
        if path.stat().st_size <= CHEAP_CHECK_BYTES:
            check(db, path)
        return opened
    except BaseException:
        if db is not None:
            db.close()
        lock.close()
        raise


def open_for_reading(path: Path) -> Opened | None:
    """Open a journal that is there; None when it is not. Never makes one.

    An older schema is brought up to date first, through a short opening for writing.
    """
    if not os.path.lexists(path):
        return None
    notes: list[str] = []
    db, version = _connect_for_reading(path, notes)
    if version < schema.VERSION:
        db.close()
        opened = open_for_writing(path)
        opened.db.close()
        if opened.lock is not None:
            opened.lock.close()
        db, version = _connect_for_reading(path, notes)
    return Opened(db, None, notes)


def _connect_for_reading(path: Path, notes: list[str]) -> tuple[sqlite3.Connection, int]:
    """A connection and the schema's version."""
    try:
        return _connect_andidentify(path)
    except StorageError:
        # WAL wants to write its index beside the journal. Where the folder does not let it, and nothing waits in a
        # log, the file alone is the whole truth.
        if _wal_size(path):
            raise
    found = _connect_andidentify(path, immutable=True)
    notes.append(f"{path.parent} cannot be written: read as a still picture")
    return found


def _connect_andidentify(path: Path, *, immutable: bool = False) -> tuple[sqlite3.Connection, int]:
    db = connect(path, readonly=True, immutable=immutable)
    try:
        return db, identify(db, path)
    except BaseException:
        db.close()
        raise


def connect(path: Path, *, readonly: bool, immutable: bool = False) -> sqlite3.Connection:
    """A bare connection with our settings. Raises StorageError, JournalError."""
    name = "".join(c if c not in "%?#" else f"%{ord(c):02x}" for c in str(path.absolute()))
    options = "mode=ro" if readonly else "mode=rw"
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(
            f"file:{name}?{options}{'&immutable=1' if immutable else ''}",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            cached_statements=256,
            # Used from one thread at a time; which one may change once, when a Writer takes it over.
            check_same_thread=False,
        )
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA cache_size = -8000")
    except sqlite3.Error as error:
        if db is not None:
            db.close()
        raise translate(error, path, "opening the journal") from error
    return db


def check(db: sqlite3.Connection, path: Path) -> None:
    """Read the whole file for damage. Raises JournalError that names the first."""
    try:
        answer = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise translate(error, path, "checking the journal") from error
    if answer != "ok":
        raise JournalError(str(path), f"is damaged ({' '.join(str(answer).split())})", REBUILD)


def wal_path(path: Path) -> Path:
    """SQLite's write-ahead log of a journal."""
    return path.with_name(path.name + "-wal")


def _wal_size(path: Path) -> int:
    try:
        return wal_path(path).stat().st_size
    except FileNotFoundError:
        return 0


def _left_open(path: Path) -> bool:
    """Whether somebody uses the journal or died while doing so. A clean end leaves no log, or an empty one."""
    return _wal_size(path) > 0 or (
        path.with_name(path.name + "-shm").exists() and not wal_path(path).exists()
    )


def _create(path: Path, *, wal: bool) -> None:
    """Make an empty journal under another name and rename it. The caller holds the lock alone."""
    draft = path.with_name(path.name + ".new")
    try:
        for leftover in (draft, wal_path(draft), draft.with_name(draft.name + "-journal")):
            leftover.unlink(missing_ok=True)
        # SQLite gives its side files the mode of the main one; ours decides it before a byte is in it.
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        write_empty(draft, wal=wal)
        os.rename(draft, path)
    except sqlite3.Error as error:
        raise translate(error, path, "making the journal") from error
    except OSError as error:
        raise StorageError("this machine", str(path), error.errno or 5, "making the journal") from error


def write_empty(path: Path, *, wal: bool) -> None:
    """Turn an empty file into an empty journal. Raises sqlite3.Error."""
    db = connect(path, readonly=False)
    try:
        schema.create(db)
        if wal:
            db.execute("PRAGMA journal_mode = WAL").fetchone()
    finally:
        db.close()


def identify(db: sqlite3.Connection, path: Path) -> int:
    """The schema's version of a journal of ours. Raises JournalError for anything else."""
    try:
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise translate(error, path, "opening the journal") from error
    if not pages:
        raise JournalError(
            str(path),
            "is empty: a journal was cut off here, or the file was made by something else",
            "put back a copy, or remove the file to begin a new journal",
        )
    if application != schema.APPLICATION_ID:
        raise JournalError(
            str(path),
            f"is an SQLite database of another program (application id {application:#x})",
            "name another journal, or move that file away",
        )
    if version > schema.VERSION:
        raise JournalError(
            str(path),
            f"was written by a newer version (schema {version}, this program knows up to {schema.VERSION})",
            "update this program, or name another journal",
        )
    missing = {"orchestrations", "events", "executions", "specs"} - tables
    if missing or version < 0:
        raise JournalError(str(path), f"is damaged (no table {', '.join(sorted(missing))})", REBUILD)
    return version


def _migrate(path: Path, notes: list[str]) -> None:
    db = connect(path, readonly=False)
    try:
        # Somebody else may have done it while we waited for the lock.
        found = schema.migrate(db)
        if found < schema.VERSION:
            notes.append(f"brought from schema {found} to {schema.VERSION}")
    except sqlite3.Error as error:
        raise translate(error, path, "migrating the journal") from error
    finally:
        db.close()


def _recover(path: Path, notes: list[str]) -> None:
    """Take in what a killed writer left in the log, check the file, tell. The caller holds the lock alone."""
    written = _frames(wal_path(path))
    db = connect(path, readonly=False)
    try:
        identify(db, path)
        if db.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            _busy, valid, _moved = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if written is None:
                notes.append(
                    "its write-ahead log is gone or has lost its head: what was written after the last checkpoint is missing"
                )
            elif valid < written:
                notes.append(
                    f"the last writer was stopped: {valid} pages taken in, {written - valid} unfinished ones dropped"
                )
            elif valid:
                notes.append(f"the last writer was stopped: {valid} pages taken in, none lost")
        check(db, path)
    except sqlite3.Error as error:
        raise translate(error, path, "recovering the journal") from error
    finally:
        db.close()


def _frames(wal: Path) -> int | None:
    """Pages in the log that belong to its present generation; None when there is no log or no head to tell by."""
    try:
        with wal.open("rb") as file:
            head = file.read(32)
            if len(head) < 32 or head[:4] not in (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83"):
                return None
            (page_size,) = struct.unpack(">I", head[8:12])
            if page_size < 512 or page_size > 65536:
                return None
            salt, count = head[16:24], 0
            while True:
                file.seek(32 + count * (24 + page_size))
                frame = file.read(24)
                if len(frame) < 24 or frame[8:16] != salt:
                    return count
                count += 1
    except OSError:
        return None


def _set_mode(db: sqlite3.Connection, path: Path, network: str | None, notes: list[str]) -> bool:
    """Choose how the file is written; returns whether it is WAL."""
    try:
        if network is not None:
            # Shared memory ends at the machine's border, so no WAL there. Exclusive mode lets a WAL that came along
            # with a copied file be taken in without shared memory.
            db.execute("PRAGMA locking_mode = EXCLUSIVE").fetchone()
            mode = db.execute("PRAGMA journal_mode = TRUNCATE").fetchone()[0]
            db.execute("PRAGMA locking_mode = NORMAL").fetchone()
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            db.execute("PRAGMA synchronous = FULL")
            notes.append(
                f"on {network} file system: written without WAL, slower, and readers wait for writers"
            )
            return bool(mode == "wal")
        mode = db.execute("PRAGMA journal_mode").fetchone()[0]
        if mode != "wal":
            try:
                mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            except sqlite3.OperationalError as error:
                # Others have it open in the slow mode; both work side by side.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
        # A kill of this process loses nothing; a power cut may lose the last commits, never the file.
        db.execute(f"PRAGMA synchronous = {'NORMAL' if mode == 'wal' else 'FULL'}")
        # Checkpoints are ours to time, and an empty log tells a clean end from a kill.
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA journal_size_limit = 0")
        return bool(mode == "wal")
    except sqlite3.Error as error:
        raise translate(error, path, "opening the journal") from error
