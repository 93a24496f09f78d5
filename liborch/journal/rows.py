"""What goes into the journal and what comes out: plain, frozen structs.

Times are wall-clock seconds since the epoch. JSON (`spec`, `record`, `details`) is text handed over ready-made: the
journal never looks inside. `liborch.journal.store` writes and reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Kind = Literal["exec", "batch", "api", "alloc"]
#: `driving`: a client drives it, or died while it did (the driver's lock tells which); `left`: detached on purpose, to
#: be taken over later; `ended`: nothing is left to do.
OrchestrationState = Literal["driving", "left", "ended"]


class NewExecution(msgspec.Struct, frozen=True, gc=False):
    """An execution that enters the journal with its group."""

    #: Unique over the whole journal (a UUID in lower case).
    id: str
    #: Unique in its orchestration, 0 <= number < 2**32; the order of submission.
    number: int
    label: str
    host: str
    #: JSON text.
    spec: str
    state: str = "waiting"
    #: Id of one that ended and that this one is instead of; from then on that one does not count.
    replaces: str | None = None


class Change(msgspec.Struct, frozen=True, gc=False):
    """What became of an execution. None leaves a column as it was.

    With `ended_at` the change is final: `reason`, `exit_code` and `signal` are then written as given, None too, so that
    nothing of an earlier attempt shines through.
    """

    id: str
    state: str
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    node: str | None = None
    attempt: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    #: JSON text.
    record: str | None = None


class Group(msgspec.Struct, frozen=True):
    """Events that belong together, and what they mean for executions. Written whole or not at all."""

    orchestration: str
    at: float
    #: How many events `payload` holds.
    count: int
    #: The events, opaque to the journal.
    payload: bytes
    new: Sequence[NewExecution] = ()
    changed: Sequence[Change] = ()

    def size_bytes(self) -> int:
        """Roughly what the group keeps in memory."""
        size = 200 + len(self.payload) + 400 * (len(self.new) + len(self.changed))
        for execution in self.new:
            size += len(execution.spec)
        for change in self.changed:
            if change.record is not None:
                size += len(change.record)
        return size


class ExecutionRow(msgspec.Struct, frozen=True, gc=False):
    """An execution as the journal knows it; None where not known yet."""

    id: str
    #: Id of the orchestration it belongs to.
    orchestration: str
    number: int
    state: str
    reason: str | None
    exit_code: int | None
    signal: int | None
    host: str
    node: str | None
    attempt: int | None
    label: str
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    #: JSON text.
    spec: str
    #: JSON text.
    record: str | None


class OrchestrationRow(msgspec.Struct, frozen=True, gc=False):
    """One exec, one batch, or one session of the API."""

    id: str
    kind: str
    title: str
    #: JSON text.
    details: str
    #: Where the client that drives it (or drove it last) runs.
    client_host: str
    client_pid: int
    created_at: float
    state: str
