"""A batch as the journal knows it: how many of its executions are how far, where, and whose turn it is. For commands that read.

Neither asyncio nor anything that connects is imported. Nothing here takes longer for a larger batch, but counting (a tenth of
a second for a million).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from liborch.drive.ask import ask, is_driven
from liborch.errors import Conflict, JournalError
from liborch.journal import ExecutionRow, OrchestrationRow
from runaway.records import FINAL, SCHEMA_VERSION, STATUS_S, Records, detail_of, how

#: In the order in which an execution goes through them.
STATES = ("waiting", "staging", "running", "paused", "collecting", *sorted(FINAL))
#: Of a failed execution's stderr, so many lines are shown.
LAST_LINES = 3


@dataclass(frozen=True)
class Summary:
    """One batch, at one time."""

    row: OrchestrationRow
    #: {state: executions in it}; none that is 0; `planned` and `placed` counted as waiting.
    counts: dict[str, int]
    #: A client drives it at this moment.
    is_driven: bool
    #: What was noted when it began: hosts, folder, snapshots.
    details: dict[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        """Its id."""
        return self.row.id

    @property
    def total(self) -> int:
        """Executions in all."""
        return sum(self.counts.values())

    @property
    def ended(self) -> int:
        """Executions that are over."""
        return sum(count for state, count in self.counts.items() if state in FINAL)

    @property
    def has_ended(self) -> bool:
        """Nothing of it is left to do."""
        return self.ended == self.total

    @property
    def failed(self) -> int:
        """Executions that ended otherwise than well, of themselves."""
        return self.counts.get("failed", 0) + self.counts.get("lost", 0)

    @property
    def exit_status(self) -> int:
        """0: all of it succeeded."""
        return 0 if self.counts.get("succeeded", 0) == self.total else 1

    @property
    def state(self) -> str:
        """`running`: somebody drives it. `left`: nobody does, and there is something to do. Else how it ended."""
        if self.is_driven and not self.has_ended:
            return "running"
        if not self.has_ended:
            return "left"
        if self.exit_status == 0:
            return "succeeded"
        return "failed" if self.failed else "cancelled"

    @property
    def hosts(self) -> list[str]:
        """Names of its hosts."""
        return [str(profile.get("name", "")) for profile in self.details.get("profiles", ())]

    def describe_counts(self) -> str:
        """`120 succeeded, 3 failed, 8 running, 400 waiting`."""
        order = ("succeeded", "failed", "lost", "cancelled", "running")
        names = [*order, *(state for state in STATES if state not in order)]
        return ", ".join(f"{self.counts[name]} {name}" for name in names if self.counts.get(name))


def summarise(records: Records, row: OrchestrationRow) -> Summary:
    """Count a batch. Raises JournalError, StorageError."""
    counts = records.journal.counts(row.id)
    # Submitted or not, and in whose queue, ours or a node's: none of it has been started.
    waiting = sum(counts.pop(state, 0) for state in ("planned", "placed", "waiting"))
    if waiting:
        counts["waiting"] = waiting
    left = any(state not in FINAL for state in counts)
    driven = (left or row.state == "driving") and is_driven(records.folders.state, row.id)
    return Summary(row, counts, driven, details_of_row(records, row))


def details_of_row(records: Records, row: OrchestrationRow) -> dict[str, Any]:
    """What was noted of a batch when it began. Raises JournalError."""
    try:
        details: dict[str, Any] = json.loads(row.details)
    except ValueError as error:
        raise JournalError(str(records.folders.journal), f"details that are no JSON ({error})") from error
    return details


def status_of(records: Records, summary: Summary) -> dict[str, Any]:
    """What the client that drives it says of its nodes; nothing when none does or it is too busy to say."""
    if not summary.is_driven:
        return {"nodes": []}
    try:
        return ask(records.folders.state, summary.id, {"do": "nodes"}, STATUS_S) or {"nodes": []}
    except Conflict:
        return {"nodes": []}


@dataclass(frozen=True)
class Failure:
    """One execution that failed."""

    id: str
    how: str
    #: The last lines of its stderr.
    lines: tuple[str, ...]


def failure_of(row: ExecutionRow) -> Failure:
    """What there is to show of a failure on record."""
    detail = detail_of(row)
    why = str(detail.get("why") or "")
    text = str(detail.get("err", "")).encode("latin-1").decode("utf-8", "replace")
    words = row.state if row.state == how(row) else how(row)
    return Failure(row.id, f"{words}: {why}" if why else words, last_lines(text))


def last_lines(text: str, most: int = LAST_LINES) -> tuple[str, ...]:
    """The last lines that say something."""
    return tuple(line for line in text.rsplit("\n", most + 8) if line.strip())[-most:]


def as_dict(summary: Summary, failures: list[Failure]) -> dict[str, Any]:
    """The JSON form of a line of `ps --batches`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "batch",
        "id": summary.id,
        "state": summary.state,
        "driven": summary.is_driven,
        "executions": summary.total,
        "counts": summary.counts,
        "hosts": summary.hosts,
        "label": summary.row.title,
        "submitted_at": summary.row.created_at,
        "last_failures": [
            {"id": failure.id, "how": failure.how, "stderr": list(failure.lines)} for failure in failures
        ],
    }
