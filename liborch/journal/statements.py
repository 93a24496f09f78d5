"""The statements a commit runs, and the rows it runs them on.

Each step of SQLite hands Python's global lock away and takes it back, and beside a busy event loop taking it back can
wait for milliseconds. So rows go in by the dozen, many in one statement: a commit of fifty executions takes about as
many steps as a commit of one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from liborch.errors import InvariantError
from liborch.journal.rows import Change, NewExecution

Value = str | bytes | int | float | None

#: Rows per statement, largest first. UPDATE ... FROM came with SQLite 3.33; an older one takes rows one by one.
SIZES: tuple[int, ...] = (128, 64, 32, 16, 8, 4, 2, 1) if sqlite3.sqlite_version_info >= (3, 33) else (1,)


class Statement:
    """One statement for any number of rows."""

    def __init__(self, width: int, texts: dict[int, str]) -> None:
        self.width = width
        self._texts = texts

    def run(self, db: sqlite3.Connection, values: list[Value]) -> int:
        """Run it over rows laid end to end; returns how many rows of the database it touched."""
        width, at, end, touched = self.width, 0, len(values), 0
        for size in SIZES:
            step = size * width
            while end - at >= step:
                piece = values if step == end else values[at : at + step]
                touched += db.execute(self._texts[size], piece).rowcount
                at += step
        return touched


def _insert(table: str, columns: str) -> Statement:
    width = columns.count(",") + 1
    row = f"({','.join('?' * width)})"
    return Statement(
        width, {n: f"INSERT INTO {table} ({columns}) VALUES {','.join([row] * n)}" for n in SIZES}
    )


def _update(assignments: Sequence[str]) -> Statement:
    """An update of executions by id; `{N}` in an assignment is the N-th value of the row, the id being the first."""
    width = len(assignments) + 1
    texts = {}
    for n in SIZES:
        if n == 1:
            sets = ", ".join(a.format(*(f"?{i}" for i in range(width + 1))) for a in assignments)
            texts[n] = f"UPDATE executions SET {sets} WHERE id = ?1"
        else:
            sets = ", ".join(a.format(*(f"v.column{i}" for i in range(width + 1))) for a in assignments)
            row = f"({','.join('?' * width)})"
            texts[n] = (
                f"UPDATE executions SET {sets} FROM (VALUES {','.join([row] * n)}) AS v WHERE executions.id = v.column1"
            )
    return Statement(width, texts)


INSERT_EVENTS = _insert("events", "place, at, count, crc, payload")
INSERT_EXECUTIONS = _insert("executions", "place, id, state, host, label, submitted_at")
INSERT_SPECS = _insert("specs", "place, spec")
# Two updates: the one that comes in the middle of a life leaves `ended_at` and with it the index of live ones alone.
UPDATE_LIVE = _update(
    (
        "state = {2}",
        "reason = coalesce({3}, reason)",
        "exit_code = coalesce({4}, exit_code)",
        "signal = coalesce({5}, signal)",
        "node = coalesce({6}, node)",
        "attempt = coalesce({7}, attempt)",
        "started_at = coalesce({8}, started_at)",
        "record = coalesce({9}, record)",
    )
)
UPDATE_FINAL = _update(
    (
        "state = {2}",
        "reason = {3}",
        "exit_code = {4}",
        "signal = {5}",
        "node = coalesce({6}, node)",
        "attempt = coalesce({7}, attempt)",
        "started_at = coalesce({8}, started_at)",
        "record = coalesce({9}, record)",
        "ended_at = {10}",
    )
)


def execution_values(new: Iterable[NewExecution], base: int, at: float) -> tuple[list[Value], list[Value]]:
    """Rows for INSERT_EXECUTIONS and INSERT_SPECS. Raises InvariantError for a number that has no place."""
    executions: list[Value] = []
    specs: list[Value] = []
    for e in new:
        if not 0 <= e.number < 1 << 32:
            raise InvariantError(f"execution {e.id}: number {e.number} is not in 0 .. 2**32 - 1")
        place = base + e.number
        executions += (place, e.id, e.state, e.host, e.label, at)
        specs += (place, e.spec)
    return executions, specs


def change_values(changes: Iterable[Change]) -> tuple[list[Value], list[Value]]:
    """Rows for UPDATE_LIVE and UPDATE_FINAL. Several changes of one execution become one, the later on top."""
    live: dict[str, Change] = {}
    final: dict[str, Change] = {}
    for change in changes:
        before = live.pop(change.id, None)
        if before is not None:
            change = _on_top(before, change)
        if change.ended_at is None:
            live[change.id] = change
        else:
            final[change.id] = change
    live_values: list[Value] = []
    for c in live.values():
        live_values += (
            c.id,
            c.state,
            c.reason,
            c.exit_code,
            c.signal,
            c.node,
            c.attempt,
            c.started_at,
            c.record,
        )
    final_values: list[Value] = []
    for c in final.values():
        final_values += (
            c.id,
            c.state,
            c.reason,
            c.exit_code,
            c.signal,
            c.node,
            c.attempt,
            c.started_at,
            c.record,
        )
        final_values.append(c.ended_at)
    return live_values, final_values


def _on_top(old: Change, new: Change) -> Change:
    """Both changes as one, by the rule of `Change`: None leaves a column alone, except for a verdict."""
    final = new.ended_at is not None
    return Change(
        id=new.id,
        state=new.state,
        reason=new.reason if final or new.reason is not None else old.reason,
        exit_code=new.exit_code if final or new.exit_code is not None else old.exit_code,
        signal=new.signal if final or new.signal is not None else old.signal,
        node=old.node if new.node is None else new.node,
        attempt=old.attempt if new.attempt is None else new.attempt,
        started_at=old.started_at if new.started_at is None else new.started_at,
        ended_at=new.ended_at,
        record=old.record if new.record is None else new.record,
    )
