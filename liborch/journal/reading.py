"""What can be asked of a journal. `liborch.journal.store.Journal` adds the connection and the writing.

Every question raises JournalError when the file is damaged and StorageError when the disk fails; nothing is found in
a journal that does not exist yet.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from liborch.errors import JournalError
from liborch.journal.rows import ExecutionRow, OrchestrationRow
from liborch.journal.schema import PLACE_BITS
from liborch.journal.storage import REBUILD, translate

_EXECUTIONS = """SELECT e.id, o.id, e.place & 4294967295, e.state, e.reason, e.exit_code, e.signal, e.host, e.node,
    e.attempt, e.label, e.submitted_at, e.started_at, e.ended_at,
    CASE WHEN o.common IS NULL THEN s.spec ELSE json_patch(o.common, s.spec) END, e.record
    FROM executions AS e {index} JOIN orchestrations AS o ON o.number = e.place >> 32 JOIN specs AS s ON s.place = e.place"""
_ORCHESTRATIONS = (
    "SELECT id, kind, title, details, client_host, client_pid, created_at, state FROM orchestrations"
)

Row = TypeVar("Row", ExecutionRow, OrchestrationRow)

#: Groups of events read at a time.
_GROUPS_AT_ONCE = 200


class Reader:
    """The questions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def execution(self, id: str) -> ExecutionRow | None:
        """One execution by its whole id."""
        rows = self._ask(_EXECUTIONS.format(index="") + " WHERE e.id = ?", (id,))
        return self._row(rows[0], ExecutionRow) if rows else None

    def executions(
        self,
        orchestration: str | None = None,
        states: Iterable[str] | None = None,
        limit: int | None = None,
        newest_first: bool = True,
        *,
        live: bool = False,
        after: int = -1,
    ) -> list[ExecutionRow]:
        """Executions by orchestration and order of submission.

        Args:
            live: Only those that have not ended; quick in a journal of any size, which `states` alone is not.
            after: Only those of the orchestration with a higher number.
        """
        where: list[str] = []
        values: list[str | int] = []
        if orchestration is not None:
            number = self._number(orchestration)
            if number is None:
                return []
            where.append("e.place >= ? AND e.place < ?")
            values += ((number << PLACE_BITS) + after + 1, (number + 1) << PLACE_BITS)
        if states is not None:
            wanted = list(states)
            where.append(f"e.state IN ({','.join('?' * len(wanted))})")
            values += wanted
        if live:
            where.append("e.ended_at IS NULL")
        # The order of places is asked for in every case, so it is said which way to walk them.
        query = _EXECUTIONS.format(index="INDEXED BY live" if live else "NOT INDEXED")
        if where:
            query += f" WHERE {' AND '.join(where)}"
        query += f" ORDER BY e.place {'DESC' if newest_first else 'ASC'} LIMIT ?"
        values.append(-1 if limit is None else limit)
        return [self._row(row, ExecutionRow) for row in self._ask(query, values)]

    def repeated(self, orchestration: str) -> list[tuple[str, int]]:
        """(id, attempts) of executions of which an attempt was done again."""
        number = self._number(orchestration)
        if number is None:
            return []
        query = (
            "SELECT id, attempt FROM executions WHERE place >= ? AND place < ? AND attempt > 1 ORDER BY place"
        )
        return [
            (str(x), int(n)) for x, n in self._ask(query, (number << PLACE_BITS, (number + 1) << PLACE_BITS))
        ]

    def find(self, prefix: str, limit: int = 10) -> list[str]:
        """Ids of executions that begin with a prefix, sorted; `last`: the one submitted last."""
        return self._find("executions", "place", prefix, limit)

    def find_orchestrations(self, prefix: str, limit: int = 10) -> list[str]:
        """Ids of orchestrations that begin with a prefix, sorted; `last`: the one begun last."""
        return self._find("orchestrations", "number", prefix, limit)

    def orchestration(self, id: str) -> OrchestrationRow | None:
        """One orchestration by its whole id."""
        rows = self._ask(_ORCHESTRATIONS + " WHERE id = ?", (id,))
        return self._row(rows[0], OrchestrationRow) if rows else None

    def common(self, orchestration: str) -> str | None:
        """What the specs of an orchestration's executions are merge patches of; None: they are whole."""
        rows = self._ask("SELECT common FROM orchestrations WHERE id = ?", (orchestration,))
        return rows[0][0] if rows else None

    def identities(self, orchestration: str) -> list[tuple[str, str, str | None, str]]:
        """(identity, state, reason, id) of every execution of an orchestration that counts (none that is replaced), in order of
        submission."""
        number = self._number(orchestration)
        if number is None:
            return []
        query = (
            "SELECT json_extract(s.spec, '$.identity'), e.state, e.reason, e.id FROM executions AS e JOIN specs AS s"
            " ON s.place = e.place WHERE e.place >= ? AND e.place < ? AND e.replaced IS NULL ORDER BY e.place"
        )
        return self._ask(query, (number << PLACE_BITS, (number + 1) << PLACE_BITS))

    def orchestrations(self, limit: int | None = None, *, kind: str | None = None) -> list[OrchestrationRow]:
        """Orchestrations, newest first; `kind`: only those."""
        rows = self._ask(
            _ORCHESTRATIONS + " WHERE coalesce(?1, kind) = kind ORDER BY number DESC LIMIT ?2",
            (kind, -1 if limit is None else limit),
        )
        return [self._row(row, OrchestrationRow) for row in rows]

    def groups(self, orchestration: str, after: int = 0) -> Iterator[tuple[int, float, bytes]]:
        """The events of an orchestration: (sequence number from 1, time of writing, payload), in order.

        Read piece by piece, so groups written meanwhile may be among them.

        Args:
            after: Begin behind this sequence number.

        Raises:
            JournalError: A payload is not what was written.
        """
        number = self._number(orchestration)
        if number is None:
            return
        base, end = number << PLACE_BITS, (number + 1) << PLACE_BITS
        query = (
            "SELECT place, at, crc, payload FROM events WHERE place > ? AND place < ? ORDER BY place LIMIT ?"
        )
        last = base + after
        while rows := self._ask(query, (last, end, _GROUPS_AT_ONCE)):
            for last, at, crc, payload in rows:  # `last` is where the next piece begins
                if type(payload) is not bytes or zlib.crc32(payload) != crc:
                    what = f"group {last - base} of {orchestration} is not as it was written"
                    raise JournalError(str(self.path), f"is damaged ({what})", REBUILD)
                yield last - base, at, payload

    def _connection(self) -> sqlite3.Connection | None:
        raise NotImplementedError

    def _ask(self, query: str, values: Sequence[str | float | None]) -> list[Any]:
        db = self._connection()
        if db is None:
            return []
        try:
            return db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise translate(error, self.path, "reading the journal") from error

    def _find(self, table: str, order: str, prefix: str, limit: int) -> list[str]:
        if prefix == "last":
            rows = self._ask(f"SELECT id FROM {table} ORDER BY {order} DESC LIMIT 1", ())
        else:
            low = prefix.lower()
            query = f"SELECT id FROM {table} WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"
            rows = self._ask(query, (low, low + "\U0010ffff", limit))
        return [row[0] for row in rows]

    def _number(self, orchestration: str) -> int | None:
        """The number that an orchestration's places begin with."""
        rows = self._ask("SELECT number FROM orchestrations WHERE id = ?", (orchestration,))
        return rows[0][0] if rows else None

    def _row(self, row: Sequence[Any], kind: type[Row]) -> Row:
        """A struct from columns in the order of its fields. A flipped bit can change a column's type: checked."""
        try:
            return msgspec.convert(dict(zip(kind.__struct_fields__, map(text_out, row), strict=True)), kind)
        except msgspec.ValidationError as error:
            raise JournalError(str(self.path), f"is damaged ({kind.__name__}: {error})", REBUILD) from error


def text_in(value: str) -> str | bytes:
    """Text as SQLite takes it: one that holds bytes which are no UTF-8 goes in as those bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode(errors="surrogateescape")
    return value


def text_out(value: Any) -> Any:
    """The other way round."""
    return value.decode(errors="surrogateescape") if type(value) is bytes else value
