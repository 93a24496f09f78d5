"""The journal itself: one SQLite connection, used from one thread.

Writing is `begin`, `commit` and `end`, each one transaction. Several processes may use one journal; each drives its
own orchestrations (`liborch.journal.locks` sees to that). Questions are in `liborch.journal.reading` and `counting`, opening and checking is in `liborch.journal.opening`, the
asyncio side in `liborch.journal.writer`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from liborch.errors import InvariantError, JournalError
from liborch.journal import statements
from liborch.journal.counting import Counter
from liborch.journal.opening import Opened, open_for_reading, open_for_writing, wal_path
from liborch.journal.reading import text_in
from liborch.journal.rows import Group, Kind, OrchestrationState
from liborch.journal.schema import PLACE_BITS
from liborch.journal.storage import translate

T = TypeVar("T")

#: Rows removed by one transaction of `forget`, so that nobody who drives an orchestration waits for long.
_FORGET_AT_ONCE = 20_000


class Journal(Counter):
    """One connection to a journal. Not for two threads at a time."""

    def __init__(self, path: Path, opened: Opened | None, readonly: bool) -> None:
        super().__init__(path)
        self.is_readonly = readonly
        #: What there is to tell a person about this journal: recovered, migrated, on a network, not there.
        self.notes: list[str] = []
        #: Growth of the log, in bytes, after which `wants_checkpoint` says so.
        self.checkpoint_bytes = 16 << 20
        self._opened = opened
        self._closed = False
        self._wal = wal_path(path)
        self._identity = (0, 0)
        self._logged_bytes = 0
        if opened is not None:
            self._adopt(opened)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not there" if self._opened is None else "open"
        return f"<Journal {self.path}: {state}{', read-only' if self.is_readonly else ''}>"

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, readonly: bool = False, network: bool | None = None
    ) -> Journal:
        """Open a journal; made when missing, folders included, unless `readonly`.

        A read-only one that does not exist yet answers everything with nothing, and looks again at each question.

        Args:
            network: Whether the path is on a network file system; None: look.

        Raises:
            JournalError: Damaged, empty, of another program, or newer than this one.
            StorageError: The disk is full or read-only, or permission is denied.
            Conflict: Another process rebuilds or migrates it for longer than a minute.
        """
        where = Path(os.path.abspath(path))
        opened = open_for_reading(where) if readonly else open_for_writing(where, network)
        return cls(where, opened, readonly)

    @property
    def is_wal(self) -> bool:
        """Whether it is written through a write-ahead log: not so on network file systems."""
        return self._opened is not None and self._opened.is_wal

    def close(self) -> None:
        """Close it. The last writer to close leaves no side files behind. Fine when closed already."""
        opened, self._opened, self._closed = self._opened, None, True
        if opened is None:
            return
        try:
            if opened.is_wal and not self.is_readonly:
                # An empty log is how the next one sees that nobody was killed. Busy readers: then it stays.
                opened.db.execute("PRAGMA busy_timeout = 0")
                opened.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:
            pass  # Everything is in the log already; a checkpoint only moves it.
        finally:
            try:
                opened.db.close()
            finally:
                if opened.lock is not None:
                    opened.lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- writing

    def begin(
        self, orchestration: str, kind: Kind, title: str, details: str = "{}", common: str | None = None
    ) -> None:
        """Enter a new orchestration, driven by this process.

        Args:
            details: JSON text.
            common: JSON text that the `spec` of every execution in it is a merge patch of; None: those are whole.

        Raises:
            InvariantError: That id exists.
            StorageError, JournalError: As `commit`.
        """
        row = (
            orchestration,
            kind,
            text_in(title),
            text_in(details),
            os.uname().nodename,
            os.getpid(),
            time.time(),
            common,
        )
        self._write(
            "beginning an orchestration",
            lambda db: db.execute(
                "INSERT INTO orchestrations"
                " (id, kind, title, details, client_host, client_pid, created_at, common, state)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'driving')",
                row,
            ),
        )

    def take_over(self, orchestration: str) -> None:
        """Note that this process drives an orchestration that another left or died on. Hold its DriverLock."""

        def write(db: sqlite3.Connection) -> None:
            row = (os.uname().nodename, os.getpid(), orchestration)
            self._one(
                db.execute(
                    "UPDATE orchestrations SET state = 'driving', client_host = ?, client_pid = ? WHERE id = ?",
                    row,
                ),
                orchestration,
            )

        self._write("taking over an orchestration", write)

    def describe(self, orchestration: str, details: str) -> None:
        """Replace the details of an orchestration. Hold its DriverLock. Raises InvariantError for an unknown one."""
        self._write(
            "describing an orchestration",
            lambda db: self._one(
                db.execute(
                    "UPDATE orchestrations SET details = ? WHERE id = ?", (text_in(details), orchestration)
                ),
                orchestration,
            ),
        )

    def end(self, orchestration: str, state: OrchestrationState) -> None:
        """Note that nobody drives an orchestration any more. Raises InvariantError for an unknown one."""
        self._write(
            "ending an orchestration",
            lambda db: self._one(
                db.execute("UPDATE orchestrations SET state = ? WHERE id = ?", (state, orchestration)),
                orchestration,
            ),
        )

    def commit(self, groups: Sequence[Group]) -> None:
        """Write groups in one transaction, all or nothing. On return a kill of this process loses none of it.

        In what a commit brings, no change of an execution may come after its final one.

        Raises:
            InvariantError: An unknown orchestration or execution, or one entered twice. Nothing was written.
            StorageError: Disk full, read-only, input/output error, another writer that does not end. Nothing was
                written; the same groups may be tried again.
            JournalError: The file is damaged, or was removed or replaced while in use.
        """
        if not groups:
            return
        self._still_there()
        try:
            self._write("writing events", partial(self._insert, groups=groups, run=_run))
        except UnicodeEncodeError:
            # Rare, so found out by trying: rolled back, and once more.
            self._write("writing events", partial(self._insert, groups=groups, run=_run_odd))

    def _insert(
        self,
        db: sqlite3.Connection,
        groups: Sequence[Group],
        run: Callable[[sqlite3.Connection, str, list[statements.Row]], int],
    ) -> None:
        events: list[statements.Row] = []
        executions: list[statements.Row] = []
        specs: list[statements.Row] = []
        replaced: list[statements.Row] = []
        nexts: dict[str, int] = {}
        for group in groups:
            place = nexts.get(group.orchestration)
            if place is None:
                place = self._next_place(db, group.orchestration)
            nexts[group.orchestration] = place + 1
            events.append((place, group.at, group.count, zlib.crc32(group.payload), group.payload))
            if group.new:
                base = place >> PLACE_BITS << PLACE_BITS
                rows, texts = statements.execution_rows(group.new, base, group.at)
                executions += rows
                specs += texts
                replaced += ((each.replaces,) for each in group.new if each.replaces is not None)
        live, final = statements.change_rows(change for group in groups for change in group.changed)
        run(db, statements.INSERT_EVENTS, events)
        run(db, statements.INSERT_EXECUTIONS, executions)
        run(db, statements.INSERT_SPECS, specs)
        run(db, statements.REPLACE, replaced)
        for statement, rows in ((statements.UPDATE_LIVE, live), (statements.UPDATE_FINAL, final)):
            touched = run(db, statement, rows)
            if touched != len(rows):
                raise InvariantError(
                    f"{self.path}: a change of {len(rows) - touched} execution(s) that never entered"
                )

    def _next_place(self, db: sqlite3.Connection, orchestration: str) -> int:
        """Where the next events of an orchestration go. Read anew each time: another process may have driven it."""
        row = db.execute("SELECT number FROM orchestrations WHERE id = ?", (orchestration,)).fetchone()
        if row is None:
            raise InvariantError(
                f"{self.path}: orchestration {orchestration} was never begun, or was forgotten"
            )
        base = row[0] << PLACE_BITS
        end = base + (1 << PLACE_BITS)
        last = db.execute(
            "SELECT max(place) FROM events WHERE place >= ? AND place < ?", (base, end)
        ).fetchone()[0]
        return base + 1 if last is None else int(last) + 1

    def withdraw(self, orchestration: str, at: float, most: int = _FORGET_AT_ONCE) -> int:
        """End executions that are only planned, as cancelled; returns how many, 0 when none is left. Hold its DriverLock."""

        def write(db: sqlite3.Connection) -> int:
            number = self._number(orchestration)
            if number is None:
                return 0
            places = db.execute(
                "SELECT place FROM executions INDEXED BY live WHERE ended_at IS NULL AND place >= ? AND place < ?"
                " AND state = 'planned' LIMIT ?",
                (number << PLACE_BITS, (number + 1) << PLACE_BITS, most),
            ).fetchall()
            db.executemany(
                "UPDATE executions SET state = 'cancelled', reason = 'cancelled', ended_at = ?, record = ? WHERE place = ?",
                [(at, '{"why": "withdrawn before it was started"}', place) for (place,) in places],
            )
            return len(places)

        return self._write("withdrawing what was planned", write)

    def discount(self, executions: Iterable[str]) -> None:
        """Have executions count no more, however they end: nobody wants them any longer. Hold the DriverLock."""
        rows: list[statements.Row] = [(x,) for x in executions]
        self._write("setting executions aside", lambda db: _run(db, statements.REPLACE, rows))

    def forget(self, orchestrations: Iterable[str]) -> int:
        """Remove orchestrations with all they hold; unknown ones are passed over. Returns executions removed.

        The caller holds their DriverLocks. Stopped half-way it can be done again: the orchestration goes last.
        """
        removed = 0
        for orchestration in orchestrations:
            number = self._number(orchestration)
            if number is None:
                continue
            values = (number << PLACE_BITS, (number + 1) << PLACE_BITS, _FORGET_AT_ONCE)
            for table in ("specs", "events", "executions"):
                count = _FORGET_AT_ONCE
                while count == _FORGET_AT_ONCE:
                    count = self._write("forgetting", partial(_delete_some, table=table, values=values))
                    removed += count if table == "executions" else 0
            self._write("forgetting", partial(_delete_orchestration, number=number))
        return removed

    def wants_checkpoint(self) -> bool:
        """Whether the log has grown by `checkpoint_bytes` since the last checkpoint."""
        size = self._wal_bytes()
        if size < self._logged_bytes:
            # Wholly checkpointed, it was started over and cut by the commit after.
            self._logged_bytes = 0
        return size >= self._logged_bytes + self.checkpoint_bytes

    def checkpoint(self) -> None:
        """Move what is in the log into the file, as far as readers let it. Waits for the disk. Raises StorageError."""
        opened = self._opened
        if opened is None or not opened.is_wal:
            return
        try:
            opened.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            raise translate(error, self.path, "moving events into the journal") from error
        self._logged_bytes = self._wal_bytes()

    def _wal_bytes(self) -> int:
        try:
            return os.stat(self._wal).st_size
        except OSError:
            return 0

    # -- the border to SQLite

    def _adopt(self, opened: Opened) -> None:
        self._opened = opened
        self.notes += opened.notes
        there = os.stat(self.path)
        self._identity = (there.st_dev, there.st_ino)

    def _connection(self) -> sqlite3.Connection | None:
        if self._closed:
            raise InvariantError(f"{self.path}: used after it was closed")
        if self._opened is None:
            opened = open_for_reading(self.path)
            if opened is None:
                return None
            self._adopt(opened)
        assert self._opened is not None
        return self._opened.db

    def _still_there(self) -> None:
        """A file removed under us swallows every write without an error. Raises JournalError instead."""
        try:
            there = os.stat(self.path)
            same = (there.st_dev, there.st_ino) == self._identity
        except OSError:
            same = False
        if not same:
            raise JournalError(
                str(self.path),
                "was removed or replaced while in use",
                "put it back, or start this command anew",
            )

    def _write(self, doing: str, write: Callable[[sqlite3.Connection], T]) -> T:
        """Run `write` in one transaction."""
        if self.is_readonly:
            raise InvariantError(f"{self.path}: opened read-only, {doing} is not possible")
        db = self._connection()
        assert db is not None
        try:
            db.execute("BEGIN IMMEDIATE")
            done = write(db)
            db.execute("COMMIT")
            return done
        except sqlite3.IntegrityError as error:
            raise InvariantError(f"{self.path}: {error} while {doing}: entered twice") from error
        except sqlite3.Error as error:
            raise translate(error, self.path, doing) from error
        finally:
            if db.in_transaction:
                _roll_back(db)

    @staticmethod
    def _one(cursor: sqlite3.Cursor, orchestration: str) -> None:
        if cursor.rowcount != 1:
            raise InvariantError(f"orchestration {orchestration} was never begun, or was forgotten")


def _run(db: sqlite3.Connection, statement: str, rows: list[statements.Row]) -> int:
    """Run a statement over rows; returns how many rows of the database it touched."""
    return db.executemany(statement, rows).rowcount if rows else 0


def _run_odd(db: sqlite3.Connection, statement: str, rows: list[statements.Row]) -> int:
    """The same for rows with names that are no UTF-8: those go in as bytes."""
    return _run(db, statement, [tuple(text_in(v) if isinstance(v, str) else v for v in row) for row in rows])


def _delete_some(db: sqlite3.Connection, table: str, values: tuple[int, int, int]) -> int:
    some = f"SELECT place FROM {table} WHERE place >= ? AND place < ? LIMIT ?"
    return db.execute(f"DELETE FROM {table} WHERE place IN ({some})", values).rowcount


def _delete_orchestration(db: sqlite3.Connection, number: int) -> None:
    db.execute("DELETE FROM orchestrations WHERE number = ?", (number,))


def _roll_back(db: sqlite3.Connection) -> None:
    # SQLite may have rolled back by itself already, as it does on a full disk.
    with contextlib.suppress(sqlite3.Error):
        db.execute("ROLLBACK")
