"""What happened: the core's input. Frozen, small, and written to the journal as they are.

`x` is the id of an execution or of a slot request, `node` the name of a node. Times come beside the event, as `now`.
"""

from __future__ import annotations

import msgspec

from liborch.core.policy import Policy


class Event(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """Base of all events."""


class PolicyChosen(Event, frozen=True):
    """This is how to behave from here on: the first that a client says, so that a later one decides what it decided."""

    policy: Policy


class NodeAdded(Event, frozen=True):
    """A node may be used. Its link is opened when there is something for it."""

    node: str
    host: str


class ClusterAdded(Event, frozen=True):
    """A host may be used whose nodes come in allocations. They are asked for when there is something for them."""

    cluster: str
    #: Nodes of one allocation, and allocations at a time (queued or active), at most. 0: none is asked for, see `AllocationHeld`.
    nodes: int = 1
    most: int = 1
    #: Nodes of one allocation, at least.
    least: int = 1
    #: How long an allocation lasts; None: as long as the batch system gives.
    walltime_s: float | None = None
    #: Room on each node, as far as a person told; 0: not known.
    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0


class AllocationHeld(Event, frozen=True):
    """A person holds an allocation: it is there whatever waits, and is not given back for being idle."""

    a: str
    cluster: str
    nodes: int = 1
    #: The batch system's word for one that was asked for before. It is only used here: others hold it. "": it is to be asked for.
    id: str = ""


class AllocationQueued(Event, frozen=True):
    """The batch system has it in its queue; also when it was started already and has been put back there."""

    a: str
    id: str
    #: Why it waits, in the batch system's words.
    why: str = ""


class AllocationRefused(Event, frozen=True):
    """The batch system did not take it."""

    a: str
    why: str
    #: Asking again later may help.
    is_retriable: bool = False


class AllocationActive(Event, frozen=True):
    """Its nodes are ours. Told again when their time changed, or one of them failed and the others stay."""

    a: str
    id: str
    #: As the batch system calls them.
    nodes: tuple[str, ...]
    #: Seconds until its time is over; None: not known.
    left_s: float | None = None
    #: Room on each of its nodes, as the batch system gave it; 0: not told.
    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    #: Nobody takes it away when its time is over: nothing more is placed on it then, and what runs comes to its own end.
    is_soft: bool = False


class AllocationEnded(Event, frozen=True):
    """It is over, or is nowhere to be found any more."""

    a: str
    #: See `liborch.batch_systems.base.End`.
    end: str
    why: str = ""


class AllocationsUnwanted(Event, frozen=True):
    """Nobody needs nodes any more: every allocation is given back. Lasts until `Restarted`."""


class LinksWanted(Event, frozen=True):
    """Work is about to come: links are opened ahead of it, while it is still being prepared."""


class LinkOpened(Event, frozen=True):
    """The node's agent answered, and told what it holds for us."""

    node: str
    #: Names the contents of the agent's state folder: a new one means that what was there is gone.
    state_id: str
    cpus: int
    memory_bytes: int
    gpus: int
    #: (id, attempt, state) of every order of ours the agent has not ended.
    holding: tuple[tuple[str, int, str], ...] = ()


class LinkLost(Event, frozen=True):
    """The link could not be opened or is torn; trying again is sensible."""

    node: str
    why: str


class LinkRefused(Event, frozen=True):
    """The link cannot be opened until a person does something."""

    node: str
    why: str


class Draining(Event, frozen=True):
    """Nothing new is to start from here on; what runs goes on. Lasts until `Restarted`."""


class NodeLost(Event, frozen=True):
    """The node is given up."""

    node: str
    why: str


class Restarted(Event, frozen=True):
    """A new client took over: no link is open."""


class Submitted(Event, frozen=True):
    """Somebody wants an execution."""

    x: str
    batch: str = ""
    cpus: int = 1
    memory_bytes: int = 0
    #: Whole ones, or a share of one below 1.
    gpus: int | float = 0
    priority: int = 0
    walltime_s: float | None = None
    retries: int = 0
    #: Reasons for another attempt, or "exit:N".
    retry_on: tuple[str, ...] = ()
    #: Files go to the node first / come back afterwards.
    staged: bool = False
    collected: bool = False
    #: Only on these nodes; empty: on any.
    nodes: tuple[str, ...] = ()
    #: Runs inside the room of this slot request.
    lease: str = ""
    #: Is a slot request: nothing to run, room to hold.
    is_slot: bool = False
    #: Runs on so many nodes at once, with this room on each.
    node_count: int = 1


class SlotAbandoned(Event, frozen=True):
    """A slot request is over: done with, cancelled in the queue, or cancelled just after the grant."""

    x: str


class CancelAsked(Event, frozen=True):
    """Somebody wants an execution to end."""

    x: str


class PauseAsked(Event, frozen=True):
    """Stop its processes."""

    x: str


class ResumeAsked(Event, frozen=True):
    """Let them go on."""

    x: str


class Staged(Event, frozen=True):
    """Its files are on the node."""

    x: str
    node: str
    #: For which attempt they were brought: what was on its way for an earlier one may be gone again. 0: not told.
    attempt: int = 0


class StageFailed(Event, frozen=True):
    """They cannot be brought there."""

    x: str
    why: str
    #: Where they were being brought; "": where they are now meant to go.
    node: str = ""
    #: As for Staged.
    attempt: int = 0


class Started(Event, frozen=True):
    """The agent started it; for a slot request: the room is held."""

    x: str
    attempt: int


class Paused(Event, frozen=True):
    """Its processes are stopped."""

    x: str
    attempt: int


class Continued(Event, frozen=True):
    """Its processes go on."""

    x: str
    attempt: int


class Ended(Event, frozen=True):
    """The agent's verdict; for a slot request: the room is free again."""

    x: str
    attempt: int
    #: See `verdict.py`.
    reason: str
    code: int | None = None
    #: Output is left on the node that has to be brought home first.
    left: bool = False


class Recalled(Event, frozen=True):
    """The agent gave an order back that had not started."""

    x: str
    attempt: int


class Refused(Event, frozen=True):
    """The agent will not run this order."""

    x: str
    attempt: int
    why: str


class Collected(Event, frozen=True):
    """Its results are here (or its person does without them: `why`)."""

    x: str
    why: str = ""


class Tick(Event, frozen=True):
    """Time passed: `next_deadline` was reached."""


AnyEvent = (
    PolicyChosen
    | NodeAdded
    | ClusterAdded
    | AllocationHeld
    | AllocationQueued
    | AllocationRefused
    | AllocationActive
    | AllocationEnded
    | AllocationsUnwanted
    | LinksWanted
    | LinkOpened
    | LinkLost
    | LinkRefused
    | Draining
    | NodeLost
    | Restarted
    | Submitted
    | SlotAbandoned
    | CancelAsked
    | PauseAsked
    | ResumeAsked
    | Staged
    | StageFailed
    | Started
    | Paused
    | Continued
    | Ended
    | Recalled
    | Refused
    | Collected
    | Tick
)
