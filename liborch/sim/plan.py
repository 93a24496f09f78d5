"""How a batch would run: the real core on virtual time, against a model of a cluster or of some nodes.

`simulate(Model, Work)` plays a batch from its submission until its last allocation is given back and returns an `Outcome`. Who is
placed where, what is asked of the batch system and when, and what is tried again, is decided by `liborch.core` and asked by the
driver's own frontend; only the batch system (`cluster.py`), the nodes (`modelled.py`) and time are models. What real life costs besides is
`Costs`, measured in this project's laboratory. The same seed gives the same outcome.

Not modelled: files that are sent and fetched, nodes shared with other people, an agent that is slower than its node.
"""

from __future__ import annotations

import math
import random
import re
from array import array
from dataclasses import dataclass, field

from liborch.errors import QuantityError, SpecError
from liborch.quantities import parse_duration
from liborch.specs import AllocationSpec

_SPREAD = re.compile(r"(.+?)\s*(?:±|\+-|\+/-)\s*(.+)")


@dataclass(frozen=True)
class Times:
    """Durations, in seconds: constant, around a mean, or drawn from what was seen."""

    mean_s: float = 0.0
    #: Standard deviation; they are drawn log-normally, so none is negative and some are long.
    sd_s: float = 0.0
    #: One of these instead, each as likely.
    seen: tuple[float, ...] = ()

    def draw(self, rng: random.Random) -> float:
        """One of them."""
        if self.seen:
            return rng.choice(self.seen)
        if not self.sd_s or not self.mean_s:
            return self.mean_s
        spread = math.log(1.0 + (self.sd_s / self.mean_s) ** 2)
        return rng.lognormvariate(math.log(self.mean_s) - spread / 2, math.sqrt(spread))

    @property
    def expected_s(self) -> float:
        """The mean."""
        return sum(self.seen) / len(self.seen) if self.seen else self.mean_s


def parse_times(text: str) -> Times:
    """Read `10m` or `10m±2m` (also `10m+-2m`). Raises QuantityError."""
    found = _SPREAD.fullmatch(text.strip())
    if found is None:
        return Times(parse_duration(text))
    mean_s, sd_s = parse_duration(found.group(1)), parse_duration(found.group(2))
    if not mean_s:
        raise QuantityError(f"{text!r} varies around nothing; expected a mean such as 10m±2m")
    return Times(mean_s, sd_s)


@dataclass(frozen=True)
class Room:
    """A node: what is on it for executions."""

    cpus: int
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True)
class Model:
    """A host as it is simulated."""

    name: str
    #: Its nodes, or the machines that its batch system gives out: {name: room}.
    nodes: dict[str, Room]
    #: What may be asked of its batch system; None: it has none.
    allocation: AllocationSpec | None = None
    #: How long a request waits in its queue, when nodes are free.
    queue_wait: Times = Times()
    #: Failures of a node per hour, and how long it is gone then, in seconds.
    failures_per_hour: float = 0.0
    repair_s: float = 3600.0


@dataclass(frozen=True)
class Work:
    """A batch, as far as it matters here."""

    count: int
    takes: Times
    cpus: int = 1
    memory_bytes: int = 0
    gpus: float = 0
    walltime_s: float | None = None
    retries: int = 2
    #: On how many nodes at once.
    node_count: int = 1


@dataclass(frozen=True)
class Costs:
    """What real life costs besides, in seconds. Defaults are of the laboratory: two cores, sshd and Slurm on one machine."""

    #: A command of the batch system, there and back.
    command_s: float = 0.1
    #: From a granted node, or one that is there, to an agent that takes orders.
    link_s: float = 1.2
    #: Process start and end, and what the node does around them: on top of each execution.
    start_s: float = 0.006
    #: Until the client knows of an end.
    tell_s: float = 0.03
    #: Until it notices that a connection is torn.
    notice_s: float = 0.5
    #: Before the first is submitted, and after everything is over: reading, planning, writing.
    prepare_s: float = 0.35
    close_s: float = 0.2


@dataclass
class Bars:
    """What ran where, one entry per attempt: for pictures."""

    machine: array[int] = field(default_factory=lambda: array("l"))
    begin_s: array[float] = field(default_factory=lambda: array("d"))
    end_s: array[float] = field(default_factory=lambda: array("d"))
    cpus: array[int] = field(default_factory=lambda: array("l"))
    #: 0: it ended, 1: it was cut off or lost.
    cut: array[int] = field(default_factory=lambda: array("b"))


@dataclass(frozen=True)
class Granted:
    """One allocation that had its nodes."""

    id: str
    machines: tuple[str, ...]
    asked_s: float
    begin_s: float
    end_s: float
    how: str


@dataclass
class Outcome:
    """What was simulated. Times in seconds since the submission."""

    count: int
    succeeded: int = 0
    #: Those that ended otherwise, and why the first did.
    failed: int = 0
    why: str = ""
    #: Until the command returns: the last result is here, and allocations are given back.
    makespan_s: float = 0.0
    #: Core-seconds of executions that ended, of core-seconds that were ours (of a cluster: granted; else from beginning to end).
    utilisation: float = 0.0
    #: From the submission of the batch to the first start of each.
    mean_wait_s: float = 0.0
    median_wait_s: float = 0.0
    longest_wait_s: float = 0.0
    attempts: int = 0
    #: Attempts that the end of an allocation cut off, and those that were lost with a node.
    cut_off: int = 0
    lost: int = 0
    allocations: list[Granted] = field(default_factory=list)
    node_hours: float = 0.0
    #: Nodes that failed meanwhile.
    node_failures: int = 0
    machines: tuple[str, ...] = ()
    bars: Bars = field(default_factory=Bars)
    #: Events decided on.
    events: int = 0

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "executions": self.count,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "why": self.why,
            "makespan_s": round(self.makespan_s, 3),
            "utilisation": round(self.utilisation, 4),
            "wait_s": {
                "mean": round(self.mean_wait_s, 3),
                "median": round(self.median_wait_s, 3),
                "longest": round(self.longest_wait_s, 3),
            },
            "attempts": self.attempts,
            "cut_off": self.cut_off,
            "lost": self.lost,
            "node_failures": self.node_failures,
            "node_hours": round(self.node_hours, 4),
            "allocations": [
                {
                    "id": each.id,
                    "nodes": len(each.machines),
                    "asked_s": round(each.asked_s, 3),
                    "begin_s": round(each.begin_s, 3),
                    "end_s": round(each.end_s, 3),
                    "end": each.how,
                }
                for each in self.allocations
            ],
        }


def simulate(model: Model, work: Work, *, seed: int = 0, costs: Costs | None = None) -> Outcome:
    """Play a batch to its end.

    Raises:
        SpecError: It would never end: an execution waits for what never comes.
    """
    from liborch.sim.modelled import Play

    if not model.nodes:
        raise SpecError(f"{model.name}: a model without nodes")
    return Play(model, work, seed, costs or Costs()).run()
