"""What to do: the core's output, carried out by the driver in order."""

from __future__ import annotations

import msgspec


class Action(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """Base of all actions."""


class Connect(Action, frozen=True):
    """Open the link to a node's agent; answer LinkOpened, LinkLost or LinkRefused."""

    node: str
    attempt: int


class Allocate(Action, frozen=True):
    """Ask a cluster's batch system for nodes; answer AllocationQueued, AllocationActive or AllocationRefused.

    Repeated by a client that took over: it may be in the queue already, and must be looked for before.
    """

    a: str
    cluster: str
    nodes: int
    walltime_s: float | None
    #: Names of nodes that are of no use.
    avoided: tuple[str, ...] = ()
    #: It may have been asked for already.
    is_repeated: bool = False


class Forget(Action, frozen=True):
    """A node is gone for good: whatever is kept for it is not needed any more."""

    node: str


class Release(Action, frozen=True):
    """Give an allocation back, whether it is queued or active; answer AllocationEnded when it is gone."""

    a: str
    cluster: str


class Stage(Action, frozen=True):
    """Bring an execution's files to a node; answer Staged or StageFailed. Asked again when the link was torn meanwhile."""

    x: str
    node: str


class Unstage(Action, frozen=True):
    """Its files are not needed there after all."""

    x: str
    node: str


class Hand(Action, frozen=True):
    """Give the agent the order for an attempt. Handing over twice is harmless."""

    x: str
    attempt: int
    node: str


class Recall(Action, frozen=True):
    """Ask for an order back, if it has not started."""

    x: str
    attempt: int
    node: str


class Cancel(Action, frozen=True):
    """Have the agent end it (for a slot: give the room back)."""

    x: str
    attempt: int
    node: str


class Pause(Action, frozen=True):
    """Have the agent stop its processes."""

    x: str
    attempt: int
    node: str


class Resume(Action, frozen=True):
    """Have the agent let them go on."""

    x: str
    attempt: int
    node: str


class Grant(Action, frozen=True):
    """A slot request has its room."""

    x: str
    node: str


class Collect(Action, frozen=True):
    """Bring the results; answer Collected. Asked again when the link was torn meanwhile."""

    x: str
    node: str


class Finish(Action, frozen=True):
    """It is over: final state, reason, attempts made, why."""

    x: str
    state: str
    reason: str
    code: int | None
    attempts: int
    why: str = ""


class Retry(Action, frozen=True):
    """An attempt ended and another follows."""

    x: str
    attempt: int
    reason: str


AnyAction = (
    Connect
    | Allocate
    | Release
    | Forget
    | Stage
    | Unstage
    | Hand
    | Recall
    | Cancel
    | Pause
    | Resume
    | Grant
    | Collect
    | Finish
    | Retry
)
