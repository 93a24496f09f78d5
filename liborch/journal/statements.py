"""The statements a commit runs, and the rows it runs them on.

One statement per kind of row, run over all rows of a commit. Many rows in one statement were tried and gave nothing,
neither in CPU nor in the time a commit takes beside a busy event loop.
"""

from __future__ import annotations

from collections.abc import Iterable

from liborch.errors import InvariantError
from liborch.journal.rows import Change, NewExecution

Row = tuple[str | bytes | int | float | None, ...]

INSERT_EVENTS = "INSERT INTO events (place, at, count, crc, payload) VALUES (?, ?, ?, ?, ?)"
INSERT_EXECUTIONS = (
    "INSERT INTO executions (place, id, state, host, label, submitted_at) VALUES (?, ?, ?, ?, ?, ?)"
)
REPLACE = "UPDATE executions SET replaced = 1 WHERE id = ?"
INSERT_SPECS = "INSERT INTO specs (place, spec) VALUES (?, ?)"
# Two updates: the one that comes in the middle of a life leaves `ended_at` and with it the index of live ones alone.
UPDATE_LIVE = """UPDATE executions SET state = ?, reason = coalesce(?, reason), exit_code = coalesce(?, exit_code),
    signal = coalesce(?, signal), node = coalesce(?, node), attempt = coalesce(?, attempt),
    started_at = coalesce(?, started_at), record = coalesce(?, record) WHERE id = ?"""
UPDATE_FINAL = """UPDATE executions SET state = ?, reason = ?, exit_code = ?, signal = ?, node = coalesce(?, node),
    attempt = coalesce(?, attempt), started_at = coalesce(?, started_at), record = coalesce(?, record), ended_at = ?
    WHERE id = ?"""


def execution_rows(new: Iterable[NewExecution], base: int, at: float) -> tuple[list[Row], list[Row]]:
    """Rows for INSERT_EXECUTIONS and INSERT_SPECS. Raises InvariantError for a number that has no place."""
    executions: list[Row] = []
    specs: list[Row] = []
    for e in new:
        if not 0 <= e.number < 1 << 32:
            raise InvariantError(f"execution {e.id}: number {e.number} is not in 0 .. 2**32 - 1")
        place = base + e.number
        executions.append((place, e.id, e.state, e.host, e.label, at))
        specs.append((place, e.spec))
    return executions, specs


def change_rows(changes: Iterable[Change]) -> tuple[list[Row], list[Row]]:
    """Rows for UPDATE_LIVE and UPDATE_FINAL. What comes before an execution's final change is merged into it."""
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
    return (
        [
            (c.state, c.reason, c.exit_code, c.signal, c.node, c.attempt, c.started_at, c.record, c.id)
            for c in live.values()
        ],
        [
            (
                c.state,
                c.reason,
                c.exit_code,
                c.signal,
                c.node,
                c.attempt,
                c.started_at,
                c.record,
                c.ended_at,
                c.id,
            )
            for c in final.values()
        ],
    )


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
