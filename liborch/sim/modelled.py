"""The nodes of a `Model`, and time: where `plan.py` plays the real core.

Everything that is to happen lies in one heap. Ends of executions are plain tuples in it, since there may be ten million of them;
all else are calls. A batch is fed in a window, as the real driver does (`liborch.drive.feeding`), so memory goes with the size of
the model and not with that of the batch.
"""

from __future__ import annotations

import heapq
import math
import random
from array import array
from collections import deque
from collections.abc import Callable

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.machine import Orchestration
from liborch.core.policy import Policy
from liborch.core.room import Gpus
from liborch.core.things import lead_of
from liborch.drive.feeding import PAGE, WINDOW
from liborch.errors import SpecError
from liborch.sim.cluster import Entry, SimCluster
from liborch.sim.frontend import SimFrontend
from liborch.sim.plan import Bars, Costs, Granted, Model, Outcome, Room, Work

#: What runs for longer says that it started.
_ANNOUNCED_S = 0.25
#: A batch that is not over by then never will be.
_HORIZON_S = 10 * 365 * 86_400.0


class Machine:
    """A node as the core knows it, and what is on it."""

    __slots__ = (
        "cpus",
        "gpus",
        "is_gone",
        "memory_bytes",
        "name",
        "number",
        "queue",
        "room",
        "runs",
        "state_id",
    )

    def __init__(self, name: str, number: int, room: Room) -> None:
        self.name = name
        self.number = number
        self.room = room
        self.is_gone = False
        self.state_id = 0
        self.empty()

    def empty(self) -> None:
        """Nothing is on it."""
        self.state_id += 1
        self.cpus, self.memory_bytes = self.room.cpus, self.room.memory_bytes
        self.gpus = Gpus(self.room.gpus)
        self.queue: deque[tuple[str, int]] = deque()
        #: {(execution, attempt): when it began}
        self.runs: dict[tuple[str, int], float] = {}


class Play:
    """See `liborch.sim.plan.simulate`."""

    def __init__(self, model: Model, work: Work, seed: int, costs: Costs, window: int = 0) -> None:
        self.model = model
        self.work = work
        self.costs = costs
        self.rng = random.Random(seed)
        self.now = 0.0
        self.machine = Orchestration(Policy(give_up_s=1800.0), random.Random(seed))
        self.outcome = Outcome(work.count, machines=tuple(model.nodes))
        slots = sum(max(1, room.cpus // work.cpus) for room in model.nodes.values())
        self.window = window or max(WINDOW, 2 * slots)
        self.submitted = 0
        self.finished = 0
        self._heap: list[tuple[float, int, Callable[[], None] | None, Machine | None, str, int]] = []
        #: What nodes said and the client has not heard: (when it will, node, event). All take the same time, so they are in order.
        self._said: deque[tuple[float, Machine, ev.AnyEvent]] = deque()
        self._count = 0
        self._tick_at = math.inf
        self._numbers = {name: number for number, name in enumerate(model.nodes)}
        #: What the core calls them.
        self._machines: dict[str, Machine] = {}
        #: How long each takes that does not always take the same, until it is over.
        self._takes: dict[str, float] = {}
        #: When each first began: only to tell how long they waited.
        self._waits: array[float] = array("d")
        self._useful_s = 0.0
        self._is_constant = not work.takes.sd_s and not work.takes.seen
        self.cluster: SimCluster | None = None
        self.frontend: SimFrontend | None = None
        self._begun: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._is_over = False

    def __repr__(self) -> str:
        return f"<Play of {self.model.name} at {self.now:.1f} s: {self.finished} of {self.work.count} over>"

    # ------------------------------------------------------------------ time

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """Call something after so many seconds."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, what, None, "", 0))

    def command_takes_s(self) -> tuple[float, float]:
        """How long a command of the batch system is on its way there, and its answer back."""
        return self.costs.command_s / 2, self.costs.command_s / 2

    def run(self) -> Outcome:
        """Play to the end."""
        self._set_up()
        self.later(self.costs.prepare_s, self._begin)
        heap, heappop, said = self._heap, heapq.heappop, self._said
        while not (self._is_over and not self.machine.allocations):
            if said and (not heap or said[0][0] <= heap[0][0]):
                self.now, machine, event = said.popleft()
                # What is told of a node that is gone by then was never heard.
                if not machine.is_gone:
                    self.tell(event)
                continue
            if not heap or self.now > _HORIZON_S:
                self._complain()
            self.now, _count, what, machine_or_none, x, attempt = heappop(heap)
            if machine_or_none is not None:
                self._ends(machine_or_none, x, attempt)
            elif what is not None:
                what()
        return self._sum_up()

    def _complain(self) -> None:
        waiting = next((x for x, item in self.machine.items.items() if item.state == "WAITING"), "")
        why = "; ".join(self.machine.explain(waiting)) if waiting else "nothing happens any more"
        raise SpecError(
            f"this batch would never end on {self.model.name}: {self.finished} of {self.work.count} are over, and {why}"
        )

    def _set_up(self) -> None:
        model, spec = self.model, self.model.allocation
        self.tell(ev.PolicyChosen(self.machine.policy))
        if spec is None:
            for name, room in model.nodes.items():
                self._machines[name] = Machine(name, self._numbers[name], room)
                self.tell(ev.NodeAdded(name, model.name))
        else:
            room = next(iter(model.nodes.values()))
            self.cluster = SimCluster(
                list(model.nodes), room.cpus, room.memory_bytes, room.gpus,
                clock=lambda: self.now, later=self.later,
                wait_s=lambda: model.queue_wait.draw(self.rng),
                longest_s=math.inf if spec.walltime_s is None else spec.walltime_s,
                on_begin=self._granted, on_end=self._taken_away,
            )  # fmt: skip
            self.frontend = SimFrontend(self, self.cluster, model.name, self.tell)
            self.tell(
                ev.ClusterAdded(
                    model.name, min(spec.nodes, len(model.nodes)), spec.most, spec.least, spec.walltime_s,
                    room.cpus, room.memory_bytes, room.gpus,
                )
            )  # fmt: skip
        if model.failures_per_hour:
            self._plan_failure()

    def _begin(self) -> None:
        self.tell(ev.LinksWanted())
        self._feed()

    def _feed(self) -> None:
        """Submit a page whenever there is room for one in the window."""
        work = self.work
        while self.submitted < work.count and len(self.machine.items) <= self.window - PAGE:
            for number in range(self.submitted, min(self.submitted + PAGE, work.count)):
                self.tell(
                    ev.Submitted(
                        f"e{number}", "", work.cpus, work.memory_bytes, work.gpus, 0, work.walltime_s, work.retries,
                        ("lost",), node_count=work.node_count,
                    )
                )  # fmt: skip
            self.submitted = min(self.submitted + PAGE, work.count)

    # ------------------------------------------------------------------ the core

    def tell(self, event: ev.AnyEvent) -> None:
        """Have the core decide, and do what it says."""
        machine = self.machine
        self.outcome.events += 1
        for action in machine.handle(event, self.now):
            kind = type(action)
            if kind is act.Hand:
                self._hand(action)  # type: ignore[arg-type]
            elif kind is act.Finish:
                self._finish(action)  # type: ignore[arg-type]
            else:
                self._do(action)
        at = machine.next_deadline()
        if at is not None and at < self._tick_at:
            self._tick_at = at
            self.later(max(0.0, at - self.now), lambda: self._tick(at))

    def _tick(self, at: float) -> None:
        if at == self._tick_at:
            self._tick_at = math.inf
            self.tell(ev.Tick())

    def _hand(self, action: act.Hand) -> None:
        machine = self._machines.get(action.node)
        if machine is not None and not machine.is_gone:
            machine.queue.append((action.x, action.attempt))
            self._fill(machine)

    def _finish(self, action: act.Finish) -> None:
        outcome = self.outcome
        self.finished += 1
        outcome.attempts += action.attempts
        self._takes.pop(action.x, None)
        if action.state == "SUCCEEDED":
            outcome.succeeded += 1
        else:
            outcome.failed += 1
            outcome.lost += action.reason == "lost"
            outcome.cut_off += action.reason == "allocation"
            outcome.why = outcome.why or f"{action.reason}: {action.why}"
        if self.finished == self.work.count:
            self.later(0.0, self._close)
        elif self.submitted < self.work.count and len(self.machine.items) <= self.window - PAGE:
            self.later(0.0, self._feed)

    def _close(self) -> None:
        self._is_over = True
        self.tell(ev.AllocationsUnwanted())

    def _do(self, action: act.AnyAction) -> None:
        match action:
            case act.Connect(node=node):
                self.later(self.costs.link_s, lambda: self._connected(node))
            case act.Recall(x=x, attempt=attempt, node=node):
                machine = self._machines.get(node)
                if machine is not None and (x, attempt) in machine.queue:
                    machine.queue.remove((x, attempt))
                    self._say(machine, ev.Recalled(x, attempt))
            case act.Cancel(x=x, attempt=attempt, node=node):
                self._cancel(node, x, attempt)
            case act.Retry(reason=reason):
                self.outcome.cut_off += reason == "allocation"
                self.outcome.lost += reason == "lost"
            case act.Allocate() if self.frontend is not None:
                self._asked[action.a] = self.now
                self.frontend.allocate(action)
            case act.Release() if self.frontend is not None:
                self.frontend.release(action.a)
            case act.Forget(node=node):
                self._machines.pop(node, None)

    # ------------------------------------------------------------------ nodes

    def _connected(self, name: str) -> None:
        machine = self._machines.get(name)
        if machine is None and self.cluster is not None:
            known = self.machine.nodes.get(name)
            entry = self.cluster.of(known.machine) if known is not None else None
            theirs = known.allocation if known is not None else None
            if known is not None and entry is not None and theirs is not None and theirs.id == entry.id:
                number = self._numbers[known.machine]
                machine = self._machines[name] = Machine(name, number, self.model.nodes[known.machine])
        if machine is None or machine.is_gone:
            self.tell(ev.LinkLost(name, "no answer"))
            return
        holding = [(*key, "running") for key in machine.runs] + [(*key, "queued") for key in machine.queue]
        room = machine.room
        self.tell(
            ev.LinkOpened(
                name, f"s{machine.state_id}", room.cpus, room.memory_bytes, room.gpus, tuple(holding)
            )
        )

    def _fill(self, machine: Machine) -> None:
        work, queue = self.work, machine.queue
        while queue and machine.cpus >= work.cpus:
            if machine.memory_bytes < work.memory_bytes or (work.gpus and machine.gpus.free < work.gpus):
                return
            x, attempt = queue.popleft()
            machine.cpus -= work.cpus
            machine.memory_bytes -= work.memory_bytes
            if work.gpus:
                machine.gpus.take(x, work.gpus)
            machine.runs[x, attempt] = self.now
            if attempt == 1 and (work.node_count == 1 or lead_of(x)[1] == 0):
                self._waits.append(self.now)
            takes_s = work.takes.mean_s if self._is_constant else self._takes_of(x)
            takes_s += self.costs.start_s
            if work.walltime_s is not None and takes_s > work.walltime_s:
                takes_s = work.walltime_s
            self._count += 1
            heapq.heappush(self._heap, (self.now + takes_s, self._count, None, machine, x, attempt))
            if takes_s > _ANNOUNCED_S:
                self._say(machine, ev.Started(x, attempt))

    def _takes_of(self, x: str) -> float:
        """All ranks of one take the same, and so do its attempts."""
        lead = lead_of(x)[0] if self.work.node_count > 1 else x
        found = self._takes.get(lead)
        if found is None:
            found = self._takes[lead] = self.work.takes.draw(self.rng)
        return found

    def _ends(self, machine: Machine, x: str, attempt: int) -> None:
        """An execution ends."""
        work = self.work
        begun = machine.runs.pop((x, attempt), None)
        if begun is None:
            return
        took = self.now - begun
        self._give_back(machine, x)
        self._note(machine, begun, 0)
        self._useful_s += took * work.cpus
        self._fill(machine)
        over = work.walltime_s is not None and took >= work.walltime_s
        self._say(machine, ev.Ended(x, attempt, "walltime" if over else "exit", None if over else 0))

    def _say(self, machine: Machine, event: ev.AnyEvent) -> None:
        self._said.append((self.now + self.costs.tell_s, machine, event))

    def _give_back(self, machine: Machine, x: str) -> None:
        work = self.work
        machine.cpus += work.cpus
        machine.memory_bytes += work.memory_bytes
        if work.gpus:
            machine.gpus.give_back(x, work.gpus)

    def _note(self, machine: Machine, begun: float, cut: int) -> None:
        bars: Bars = self.outcome.bars
        bars.machine.append(machine.number)
        bars.begin_s.append(begun)
        bars.end_s.append(self.now)
        bars.cpus.append(self.work.cpus)
        bars.cut.append(cut)

    def _cancel(self, node: str, x: str, attempt: int) -> None:
        machine = self._machines.get(node)
        if machine is None or machine.is_gone:
            return
        if (x, attempt) in machine.queue:
            machine.queue.remove((x, attempt))
        begun = machine.runs.pop((x, attempt), None)
        if begun is not None:
            self._give_back(machine, x)
            self._note(machine, begun, 1)
            self._fill(machine)
        self._say(machine, ev.Ended(x, attempt, "cancelled"))

    def _lose(self, machine: Machine) -> None:
        """All that is on it is gone; who is connected to it notices soon."""
        for begun in machine.runs.values():
            self._note(machine, begun, 1)
        machine.empty()
        machine.is_gone = True
        name = machine.name
        self.later(self.costs.notice_s, lambda: self.tell(ev.LinkLost(name, "the node is gone")))

    # ------------------------------------------------------------------ allocations, and failures

    def _granted(self, entry: Entry) -> None:
        self._begun[entry.id] = self.now

    def _taken_away(self, entry: Entry) -> None:
        asked = next((each for each in self.machine.allocations.values() if each.id == entry.id), None)
        begun = self._begun.pop(entry.id)
        asked_s = asked.requested_at if asked is not None else begun
        how = "timeout" if self.now >= entry.ends_at else "given back"
        if any(machine in self.cluster.drained for machine in entry.machines if self.cluster is not None):
            how = "node failed"
        self.outcome.allocations.append(Granted(entry.id, entry.machines, asked_s, begun, self.now, how))
        for node in asked.nodes if asked is not None else ():
            machine = self._machines.get(node.name)
            if machine is not None and not machine.is_gone:
                self._lose(machine)

    def _plan_failure(self) -> None:
        rate = self.model.failures_per_hour * len(self.model.nodes) / 3600.0
        self.later(self.rng.expovariate(rate), self._fail)

    def _fail(self) -> None:
        if self._is_over:
            return
        self._plan_failure()
        name = self.rng.choice(self.outcome.machines)
        repair_s = self.model.repair_s
        self.outcome.node_failures += 1
        cluster = self.cluster
        if cluster is not None:
            cluster.fail(name, requeue=False)
            self.later(repair_s, lambda: cluster.mend(name))
            return
        machine = self._machines[name]
        if machine.is_gone:
            return
        self._lose(machine)

        def back() -> None:
            machine.is_gone = False

        self.later(repair_s, back)

    # ------------------------------------------------------------------ the sum

    def _sum_up(self) -> Outcome:
        outcome = self.outcome
        outcome.makespan_s = self.now + self.costs.close_s
        waits = sorted(self._waits)
        if waits:
            outcome.mean_wait_s = math.fsum(waits) / len(waits)
            outcome.median_wait_s = waits[len(waits) // 2]
            outcome.longest_wait_s = waits[-1]
        cores = {number: room.cpus for number, room in enumerate(self.model.nodes.values())}
        if self.cluster is not None:
            room = next(iter(self.model.nodes.values()))
            node_s = math.fsum(
                (each.end_s - each.begin_s) * len(each.machines) for each in outcome.allocations
            )
            core_s = node_s * room.cpus
        else:
            node_s = outcome.makespan_s * len(cores)
            core_s = outcome.makespan_s * sum(cores.values())
        outcome.node_hours = node_s / 3600.0
        outcome.utilisation = self._useful_s / core_s if core_s else 0.0
        return outcome
