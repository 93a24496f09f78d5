"""What every batch system looks like from here: commands to run on a frontend, and what their output says.

A `BatchSystem` is pure: it renders command lines and scripts and reads back what they printed. Nothing is run here;
who runs the commands (over SSH, or on this machine), how often, and what follows from the answers, is the driver's and the
core's. Each system is a module beside this one; `batch_systems.named` finds it.

Three rules that all of them keep:

* An answer that is not understood is no answer. Output is matched strictly; anything else (a banner instead of an id, HTML,
  an error with exit code 0, a cut or a timeout) is `Unclear`, never a guess. What became of a submission that was
  `Unclear` is found out by its token, which is part of the allocation's name: one query shows every allocation of ours.
* A question that failed says nothing about allocations. They are over only when the batch system says so, or when it
  answered and does not know them any more: that is for who asks to conclude, not for a parser.
* Ids that came from a program are checked (`is_id`) before they are part of a command again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

#: Seconds after which a command of a batch system is given up.
TIMEOUT_S: Final = 30.0
#: Seconds after which a submission is ended on the frontend itself. Whatever becomes of the connection, it is over before the
#: command is given up: one that arrives after its token was looked up and not found would be nobody's.
PATIENCE_S: Final = 25.0
#: Bytes of output that are read of one; more is `is_cut`.
MOST_OUTPUT: Final = 1 << 20
#: Names of allocations begin so; the token follows.
NAME_PREFIX: Final = "orch-"

_ID = re.compile(r"[0-9]+(?:[_.;\[][A-Za-z0-9_\]-]+)*\Z")
_TOKEN = re.compile(r"[a-z0-9]{6,32}\Z")

#: Where an allocation is, in words that all systems share.
#:
#: * queued   waits for nodes; `why` is the system's own reason
#: * held     waits for a person (or an administrator): no time will help
#: * active   has its nodes
#: * ending   is being taken down; nothing new may start. Where it is requeued it is queued again afterwards
#: * ended    is over; `end` says how
State = Literal["queued", "held", "active", "ending", "ended"]
#: How an allocation ended.
#:
#: * done        its script ended by itself
#: * failed      its script failed, or could not be started
#: * timeout     its walltime is over
#: * preempted   taken away for something more important
#: * node        a node of it failed
#: * memory      it used more memory than it had
#: * cancelled   somebody cancelled it: we, or another
End = Literal["", "done", "failed", "timeout", "preempted", "node", "memory", "cancelled"]


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    #: Unique for all time, lower-case letters and digits: how an allocation is found again whose id nobody was told.
    token: str
    nodes: int = 1
    #: None: what the partition or queue gives.
    walltime_s: float | None = None
    #: Words of the person's own for the submit command, as they are.
    options: tuple[str, ...] = ()
    #: Command that holds the nodes: it runs on the first of them for as long as the allocation lives.
    holder: tuple[str, ...] = ("sleep", "infinity")
    #: Lines of sh that hold them instead, where the system takes a script; "": the holder does.
    script: str = ""
    #: Names of nodes that turned out to be of no use; a system that cannot be told so ignores them.
    avoided: tuple[str, ...] = ()
    #: Absolute path on the frontend of the folder where the system may write the script's output; "": nowhere.
    log_folder: str = ""
    #: Seconds after which the submission is ended on the frontend.
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        if not _TOKEN.match(self.token):
            raise ValueError(f"{self.token!r} is no token: 6 to 32 of a-z and 0-9")

    @property
    def name(self) -> str:
        """What the allocation is called in the queue."""
        return NAME_PREFIX + self.token


@dataclass(frozen=True)
class Command:
    """What is to be run on the frontend."""

    argv: tuple[str, ...]
    stdin: bytes = b""
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True)
class Output:
    """What a command printed. `code` None: it did not end (a timeout, a broken connection): nobody knows what it did."""

    code: int | None
    stdout: bytes = b""
    stderr: bytes = b""
    #: There was more than `MOST_OUTPUT`.
    is_cut: bool = False


@dataclass(frozen=True)
class Accepted:
    """It is in the queue."""

    id: str


@dataclass(frozen=True)
class Rejected:
    """The system said no, and why; nothing is in the queue."""

    why: str
    #: Asking again later may help (a limit on submissions is reached, the controller is busy); else a person is needed.
    is_retriable: bool = False


@dataclass(frozen=True)
class Unclear:
    """Nobody can tell from this what happened. For a submission: look its token up before anything else."""

    why: str


@dataclass(frozen=True)
class Sight:
    """What the system says of one allocation."""

    id: str
    #: "": it has no name of ours.
    token: str
    state: State
    end: End = ""
    #: The system's own words for the state or the reason, as a person would look them up.
    why: str = ""
    #: Names of its nodes; only while it is active or ending. They become fewer when one fails and the others stay.
    nodes: tuple[str, ...] = ()
    #: Seconds until its walltime is over, as the system counts; None: not said, or none.
    left_s: float | None = None
    #: How often the system has started it before (requeued, preempted).
    restarts: int = 0
    #: Room on each of its nodes as far as it is told: cores, bytes of memory, GPUs; None: ask the node.
    cpus: int | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    #: Seconds until it is expected to start, as the system estimates; None: not said.
    starts_in_s: float | None = None
    #: It is held for what was asked: nobody but who asked can help, by asking for something else.
    is_hopeless: bool = False


@dataclass(frozen=True)
class Limits:
    """What may be asked of the system, as far as it tells. None: no limit known."""

    #: Allocations in the queue at a time, queued and active, for this person.
    most_submitted: int | None = None
    #: Allocations active at a time.
    most_active: int | None = None
    #: Longest walltime, in seconds, and nodes of one allocation.
    most_walltime_s: float | None = None
    most_nodes: int | None = None
    #: What each comes from, for messages: {field: "QOS normal: MaxSubmitJobsPerUser"}.
    sources: dict[str, str] = field(default_factory=dict)


class BatchSystem(Protocol):
    """One kind of batch system. Every method is pure."""

    #: As in profiles.
    name: str
    #: Whether nodes can be entered without SSH, see `enter`.
    can_enter: bool

    def submit(self, request: Request) -> Command:
        """Render the submission. Raises SpecError for options that cannot be (a name, a node count: those are ours)."""

    def parse_submit(self, output: Output) -> Accepted | Rejected | Unclear:
        """Read what the submit command said."""

    def query(self, ids: Sequence[str]) -> Command:
        """Render one question about all allocations with a name of ours.

        `ids` are those that are known already: some systems have to be asked for each, and what one has forgotten its
        accounting may tell. An id alone says little: systems that count to a limit, or lost their memory, give it again.
        Who knows the token of an allocation compares it with what is told under its id.
        """

    def parse_query(self, output: Output) -> dict[str, Sight] | Unclear:
        """Return {id: sight} of all that were told of. Others are not in it: they are unknown to the system (by now)."""

    def cancel(self, ids: Sequence[str]) -> Command:
        """Render the end of allocations, queued or active. Ending one that is over already is fine."""

    def parse_cancel(self, output: Output) -> Rejected | Unclear | None:
        """None: done, or there was nothing to do."""

    def limits(self, options: Sequence[str]) -> Command:
        """Render the question for limits that apply to a request with these options."""

    def parse_limits(self, output: Output) -> Limits:
        """Read the limits; what is not understood is no limit."""

    def enter(self, id: str, node: str, argv: Sequence[str]) -> tuple[str, ...]:
        """Return the command, for the frontend, that runs `argv` on a node of an allocation. Needs `can_enter`."""


def is_id(text: str) -> bool:
    """Whether a program's word for an allocation may be part of a command."""
    return len(text) <= 128 and _ID.match(text) is not None


def token_of(name: str) -> str:
    """The token in an allocation's name; "": it is no name of ours."""
    token = name.removeprefix(NAME_PREFIX)
    return token if token != name and _TOKEN.match(token) else ""
