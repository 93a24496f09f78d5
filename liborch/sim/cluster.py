"""A batch system in memory: it queues allocations, grants machines after a wait, and takes them away again, as real ones do.

What it does by itself: a request waits for its turn and for free machines, is active until its walltime is over, is known for a
while afterwards, and then forgotten. What is done to it (`preempt`, `fail`, `end`) is for whoever plays with it. It is
asked as any other batch system, through commands and what they print: `SimDialect` renders and reads them, `run` is the
frontend on which they are run. Time and chance are the owner's; carrying commands there and answers back is `frontend.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from liborch.batch_systems.base import (
    Accepted,
    Command,
    End,
    Limits,
    Output,
    Rejected,
    Request,
    Sight,
    State,
    Unclear,
)
from liborch.errors import InvariantError
from liborch.sim.node import Later


@dataclass
class Entry:
    """One allocation, as the batch system has it."""

    id: str
    token: str
    count: int
    walltime_s: float
    state: State = "queued"
    end: End = ""
    why: str = "Priority"
    machines: tuple[str, ...] = ()
    #: When its turn comes, and when its walltime is over; seconds on the owner's clock.
    turn_at: float = 0.0
    ends_at: float = 0.0
    restarts: int = 0

    @property
    def is_live(self) -> bool:
        """Whether it is in the queue or has machines."""
        return self.state in ("queued", "active")


class SimCluster:
    """See the module's text.

    Args:
        machines: Its nodes, all alike; an allocation has whole ones.
        cpus, memory_bytes, gpus: Room on each.
        clock: Tells the time, in seconds.
        later: Calls something after so many seconds.
        wait_s: How long a request waits for its turn, drawn anew for each, in seconds.
        longest_s: The walltime of what asks for none; a longer one is refused.
        known_s: How long it tells of allocations that are over, in seconds.
        on_begin: Called when an allocation has its machines.
        on_end: Called when it has them no more, before anybody else can.
    """

    def __init__(
        self,
        machines: Sequence[str],
        cpus: int,
        memory_bytes: int = 0,
        gpus: int = 0,
        *,
        clock: Callable[[], float],
        later: Later,
        wait_s: Callable[[], float],
        longest_s: float = 86_400.0,
        known_s: Callable[[], float] = lambda: 300.0,
        on_begin: Callable[[Entry], None] = lambda _job: None,
        on_end: Callable[[Entry], None] = lambda _job: None,
    ) -> None:
        self.machines = tuple(machines)
        self.room = (cpus, memory_bytes, gpus)
        self.entries: dict[str, Entry] = {}
        #: Machines that are not granted.
        self.drained: set[str] = set()
        #: Nothing is taken in the meantime, and why; and whether asking again helps.
        self.refusal: tuple[str, bool] | None = None
        self._clock = clock
        self._later = later
        self._wait_s = wait_s
        self._longest_s = longest_s
        self._known_s = known_s
        self._on_begin = on_begin
        self._on_end = on_end
        self._count = 70
        #: {machine: the allocation that has it}
        self._taken: dict[str, Entry] = {}

    def __repr__(self) -> str:
        live = sum(1 for entry in self.entries.values() if entry.is_live)
        return f"<SimCluster of {len(self.machines)} machines: {live} allocations, {len(self._taken)} machines taken>"

    # ------------------------------------------------------------------ what people ask

    def submit(
        self, token: str, nodes: int, walltime_s: float | None, avoided: Collection[str] = ()
    ) -> str | Rejected:
        """Take a request in; return its id."""
        if self.refusal is not None:
            return Rejected(*self.refusal)
        if nodes > len(self.machines) or (walltime_s or 0.0) > self._longest_s:
            return Rejected("Requested node configuration is not available")
        self._count += 1
        entry = Entry(str(self._count), token, nodes, walltime_s or self._longest_s)
        self.entries[entry.id] = entry
        self._queue(entry)
        return entry.id

    def sights(self) -> list[Sight]:
        """What it tells of every allocation it knows of."""
        cpus, memory_bytes, gpus = self.room
        found = []
        for entry in self.entries.values():
            sight = Sight(entry.id, entry.token, entry.state, entry.end, entry.why, restarts=entry.restarts)
            if entry.state == "active":
                sight = Sight(
                    entry.id, entry.token, "active", nodes=entry.machines, left_s=entry.ends_at - self._clock(),
                    restarts=entry.restarts, cpus=cpus, memory_bytes=memory_bytes, gpus=gpus,
                )  # fmt: skip
            found.append(sight)
        return found

    def cancel(self, id: str) -> None:
        """End an allocation, queued or active. Raises InvariantError when there never was one of that id."""
        if int(id) > self._count:
            raise InvariantError(f"allocation {id} is cancelled, and was never submitted")
        self.end(id, "cancelled", "CANCELLED by its owner")

    # ------------------------------------------------------------------ what happens to them

    def of(self, machine: str) -> Entry | None:
        """The allocation that has a machine."""
        return self._taken.get(machine)

    def end(self, id: str, end: End, why: str) -> None:
        """An allocation is over."""
        entry = self.entries.get(id)
        if entry is None or not entry.is_live:
            return
        self._take_back(entry)
        entry.state, entry.end, entry.why = "ended", end, why
        self._later(self._known_s(), lambda: self._forget(id))
        self._fill()

    def preempt(self, id: str, *, requeue: bool, end: End = "preempted", why: str = "PREEMPTED") -> None:
        """Take an active allocation away; `requeue`: it begins again when its turn comes."""
        entry = self.entries.get(id)
        if entry is None or entry.state != "active":
            return
        if not requeue:
            self.end(id, end, why)
            return
        self._take_back(entry)
        entry.restarts += 1
        entry.state, entry.why = "queued", "BeginTime"
        self._queue(entry)

    def fail(self, machine: str, *, requeue: bool) -> None:
        """A machine fails; the allocation it was in is over, or is put back."""
        self.drained.add(machine)
        entry = self._taken.get(machine)
        if entry is not None:
            self.preempt(entry.id, requeue=requeue, end="node", why="NODE_FAIL")

    def mend(self, machine: str) -> None:
        """It may be granted again."""
        self.drained.discard(machine)
        self._fill()

    # ------------------------------------------------------------------ inside

    def _queue(self, entry: Entry) -> None:
        wait_s = self._wait_s()
        entry.turn_at = self._clock() + wait_s
        self._later(wait_s, self._fill)

    def _fill(self) -> None:
        """Grant machines to those whose turn it is, in the order they came."""
        free = [each for each in self.machines if each not in self._taken and each not in self.drained]
        for entry in self.entries.values():
            if entry.state != "queued" or entry.turn_at > self._clock():
                continue
            if entry.count > len(free):
                entry.why = "Resources"
                return
            entry.machines, free = tuple(free[: entry.count]), free[entry.count :]
            self._begin(entry)

    def _begin(self, entry: Entry) -> None:
        entry.state, entry.why = "active", ""
        entry.ends_at = until = self._clock() + entry.walltime_s
        for machine in entry.machines:
            self._taken[machine] = entry
        self._on_begin(entry)

        def over() -> None:
            if entry.state == "active" and entry.ends_at == until:
                self.end(entry.id, "timeout", "TIMEOUT")

        self._later(entry.walltime_s, over)

    def _take_back(self, entry: Entry) -> None:
        if entry.state == "active":
            self._on_end(entry)
            for machine in entry.machines:
                del self._taken[machine]
            entry.machines = ()

    def _forget(self, id: str) -> None:
        del self.entries[id]

    # ------------------------------------------------------------------ its frontend

    def run(self, command: Command) -> Output:
        """Run a command of `SimDialect` to its end."""
        asked = json.loads(command.stdin)
        match command.argv[0]:
            case "submit":
                answer: Any = self.submit(asked["token"], asked["nodes"], asked["walltime_s"])
                if isinstance(answer, Rejected):
                    answer = {"why": answer.why, "is_retriable": answer.is_retriable}
            case "query":
                answer = self.sights()
            case _:
                answer = None
                for id in asked:
                    self.cancel(id)
        return Output(0, msgspec.json.encode(answer))


class SimDialect:
    """The words of a `SimCluster`: a `BatchSystem`."""

    name = "simulated"
    can_enter = False

    def submit(self, request: Request) -> Command:
        """See BatchSystem."""
        asked = {"token": request.token, "nodes": request.nodes, "walltime_s": request.walltime_s}
        return Command(("submit",), json.dumps(asked).encode())

    def parse_submit(self, output: Output) -> Accepted | Rejected | Unclear:
        """See BatchSystem."""
        if output.code is None:
            return Unclear("no answer to a submission")
        answer = json.loads(output.stdout)
        return Accepted(answer) if isinstance(answer, str) else Rejected(**answer)

    def query(self, ids: Sequence[str]) -> Command:
        """See BatchSystem."""
        return Command(("query",), json.dumps(list(ids)).encode())

    def parse_query(self, output: Output) -> dict[str, Sight] | Unclear:
        """See BatchSystem."""
        if output.code is None:
            return Unclear("no answer to a question")
        return {sight.id: sight for sight in msgspec.json.decode(output.stdout, type=list[Sight])}

    def cancel(self, ids: Sequence[str]) -> Command:
        """See BatchSystem."""
        return Command(("cancel",), json.dumps(list(ids)).encode())

    def parse_cancel(self, output: Output) -> Rejected | Unclear | None:
        """See BatchSystem."""
        return Unclear("no answer to a cancel") if output.code is None else None

    def limits(self, options: Sequence[str]) -> Command:
        """See BatchSystem."""
        return Command(("limits",), json.dumps(list(options)).encode())

    def parse_limits(self, output: Output) -> Limits:
        """See BatchSystem."""
        return Limits()

    def enter(self, id: str, node: str, argv: Sequence[str]) -> tuple[str, ...]:
        """See BatchSystem."""
        raise NotImplementedError("machines of a simulated cluster are entered by nobody")
