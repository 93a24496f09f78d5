"""A faulty world in virtual time, played from a seed: nodes, links, a client and the persons who use it.

Everything that happens lies in one heap, ordered by time; chance is one seeded generator, so a seed is a whole history.
`World(seed).run()` plays it to its end and keeps a ledger of what was promised:

* each (execution, attempt) starts at most once, on whatever node, over all lives of the client;
* each submitted execution ends exactly once, with the verdict its node gave;
* what was cancelled never starts afterwards;
* no node runs more than it has room for, and at the end nothing is left on any;
* where there is a cluster: never more allocations than allowed, each over at the end, none ended that never was, nothing
  given to a node of one that is known to be over, nothing starts on a machine that is not ours;
* the machine's invariants hold after each event, and replaying its events rebuilds its state.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.policy import Policy
from liborch.errors import InvariantError
from liborch.sim.client import OWNER, Client
from liborch.sim.clustered import GIB, Clustered
from liborch.sim.node import Plan, SimNode
from liborch.sim.weather import Weather

#: One GPU, or a share of one.
_SHARES = (1, 0.5, 1, 0.4)


class World(Clustered):
    """See the module's text.

    Args:
        seed: What the history is made from.
        requests: How many executions and slots are asked for; those inside slots come on top.
        nodes: How many nodes there are.
        weather: How bad it is.
        policy: The core's.
        machines: How many there are of a cluster; 0: there is none. None: by the seed.
    """

    #: Nothing may take longer than this after the weather has calmed, in virtual seconds.
    patience_s = 7200.0

    def __init__(
        self,
        seed: int,
        requests: int = 1000,
        nodes: int = 6,
        weather: Weather | None = None,
        policy: Policy | None = None,
        machines: int | None = None,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.rng = random.Random(seed)
        self.weather = weather or Weather()
        self.now = 0.0
        self.nodes: dict[str, SimNode] = {}
        if machines is None:
            machines = random.Random(seed).choice((0, 4, 8))
        if policy is None and machines:
            policy = Policy(cut_offs_most=self.rng.choice((0, 1, 3)), idle_s=self.rng.choice((5.0, 60.0)))
        self.client = Client(self, policy or Policy(), seed)
        self.requests = requests
        #: Executions and slots submitted and not ended; how many times each (execution, attempt) was started.
        self.pending: set[str] = set()
        self.starts: Counter[tuple[str, int]] = Counter()
        self.finished: dict[str, act.Finish] = {}
        #: What the nodes said of each attempt: [(reason, code)].
        self.verdicts: dict[tuple[str, int], tuple[str, int | None]] = {}
        #: Nodes that are gone, or were declared lost by a person though they live.
        self.gone: set[str] = set()
        self.given_up: set[str] = set()
        self._away: dict[str, float] = {}
        self._happenings: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._calm = False
        if machines:
            self._build_cluster(machines)
        self._build(nodes)

    def __repr__(self) -> str:
        return f"<World seed {self.seed} at {self.now:.3f} s: {len(self.pending)} of {len(self.pending) + len(self.finished)} pending>"

    # ------------------------------------------------------------------ time and chance

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """Call something after so many seconds."""
        heapq.heappush(self._happenings, (self.now + delay_s, next(self._count), what))

    def at(self, moment_s: float, what: Callable[[], None]) -> None:
        """Call something at a time; those of one moment in the order they were asked for."""
        heapq.heappush(self._happenings, (moment_s, next(self._count), what))

    def chance(self, name: str) -> bool:
        """Whether a misfortune of that name strikes."""
        if self._calm and name != "acknowledged":
            return False
        return self.rng.random() < float(getattr(self.weather, name))

    def can_reach(self, node: str) -> bool:
        """Whether a connection would come through."""
        machine, _, id = node.partition("/")
        if id and self.cluster is not None and not self.is_lax and self.cluster.of(machine) is None:
            return False
        return machine not in self.gone and self._away.get(machine, 0.0) <= self.now

    def agent(self, node: str) -> SimNode:
        """What answers on a node: of a cluster, the machine's."""
        return self.nodes.get(node) or self.machines[node.partition("/")[0]]

    def latency_s(self, node: str) -> float:
        """One way, just now: mostly short, at times long."""
        return self.rng.uniform(0.001, 0.05) if self.rng.random() < 0.9 else self.rng.uniform(0.05, 1.5)

    def absence_s(self) -> float:
        """How long nobody is there after the client was killed."""
        return self.rng.uniform(0.0, 5.0)

    # ------------------------------------------------------------------ the story

    def run(self) -> None:
        """Play to the end.

        Raises:
            InvariantError: A promise broke; the text names the seed and the moment.
        """
        try:
            self._play()
        except (AssertionError, InvariantError, KeyError, AttributeError) as error:
            raise InvariantError(f"seed {self.seed} at {self.now:.6f} s: {error!r}") from error

    def _build(self, count: int) -> None:
        rng = self.rng
        self._build_nodes(count)
        at = 0.0
        # From nodes that are often free to queues that grow as long as requests come.
        mean_s = rng.choice((2.5, 4.0, 6.0))
        if self.machines:
            # Long enough for allocations to come and go.
            mean_s *= rng.choice((1.0, 4.0, 16.0))
        cores = sum(node.room.cpus for node in (*self.nodes.values(), *self.machines.values()))
        for number in range(self.requests):
            at += rng.expovariate(cores / mean_s)
            self.later(at, lambda number=number: self._ask(number))  # type: ignore[misc]
        self._brew(at)
        self._last_request = at

    def _build_nodes(self, count: int) -> None:
        rng = self.rng
        for number in range(count):
            name = f"n{number}"
            gpus = rng.choice((0, 0, 2)) if number else 2
            cpus = 8 if not number else rng.choice((1, 2, 4, 8))
            memory_bytes = rng.choice((8, 16, 64)) * GIB if number else 64 * GIB
            self.nodes[name] = self._node(name, cpus, memory_bytes, gpus)
            self.later(rng.choice((0.0, rng.uniform(0.0, 60.0))), lambda name=name: self._add(name))  # type: ignore[misc]

    def _node(self, name: str, cpus: int, memory_bytes: int, gpus: int) -> SimNode:
        return SimNode(
            name,
            cpus,
            memory_bytes,
            gpus,
            clock=lambda: self.now,
            later=self.later,
            plan=self._plan,
            on_events=lambda: self._on_events(name),
            on_start=lambda x, attempt: self._on_start(name, x, attempt),
        )

    def _brew(self, until_s: float) -> None:
        """The misfortunes that are counted, at any time until then."""
        for what, times in (
            (self._tear, self.weather.tears),
            (self._part, self.weather.partitions),
            (self._kill_keeper, self.weather.keeper_kills),
            (self._reboot, self.weather.reboots),
            (self._lose_state, self.weather.state_losses),
            (self._lose_node, self.weather.nodes_lost if len(self.nodes) > 2 else 0),
            (self._give_up, self.weather.nodes_given_up if len(self.nodes) > 2 else 0),
            (self._crash, self.weather.crashes),
            (self._drain, self.weather.drains),
            *self._brewed_for_clusters(),
        ):
            for _ in range(times):
                self.later(self.rng.uniform(0.0, until_s), what)

    def _play(self) -> None:
        # A person waits out the trouble: unreachable nodes come back, a refused host is mended by a new client.
        self.later(self._last_request + 30.0, self._calm_down)
        until = self._last_request + self.patience_s
        moment, at_once = 0.0, 0
        while self._happenings:
            self.now, _number, what = heapq.heappop(self._happenings)
            moment, at_once = self.now, (at_once + 1 if self.now == moment else 0)
            assert at_once < 10_000, f"time stands still: {self.client.record[-1]}"
            if self.now > until:
                stuck = sorted(self.pending)[:5]
                stories = "; ".join(
                    f"{self.client.machine.items.get(x)!r} {self.client.machine.explain(x)}" for x in stuck
                )
                raise InvariantError(f"{len(self.pending)} never end, such as {stories}")
            what()
        self._check_the_end()

    def _calm_down(self) -> None:
        self._calm = True
        self._away.clear()
        self._silent_until = 0.0
        self.client.post(ev.Restarted())

    def _check_the_end(self) -> None:
        assert not self.pending, f"{sorted(self.pending)[:5]} never ended"
        assert self.client.machine.is_idle
        for node in (*self.nodes.values(), *self._machines_at_the_end()):
            if node.name in self.gone or node.name in self.given_up:
                continue
            assert not node.runs, f"left running: {node!r} {list(node.runs)}"
            assert not node.holds, f"left held: {node!r} {list(node.holds)}"
            assert not node.open, f"left waiting: {node!r} {list(node.open)}"
            assert node.room.used_cpus == 0
            assert node.room.used_memory == 0
            assert len(node.room.free_gpus) == len(node.room.gpus)

    def _machines_at_the_end(self) -> list[SimNode]:
        """Somebody comes to each once more, and then nothing of ours is there."""
        if self.cluster is None:
            return []
        live = [entry for entry in self.cluster.entries.values() if entry.is_live]
        assert not live, f"left in the queue: {live}"
        assert not self.client.machine.allocations, f"not over: {self.client.machine.allocations}"
        assert all("/" not in name for name in self.client.machine.nodes), "nodes of allocations are left"
        for node in self.machines.values():
            node.cancel(OWNER, list(node.open))
        while self._happenings:
            self.now, _number, what = heapq.heappop(self._happenings)
            what()
        return list(self.machines.values())

    # ------------------------------------------------------------------ persons

    def _add(self, name: str) -> None:
        if name not in self.gone:
            self.client.post(ev.NodeAdded(name, "lab"))
            if self.rng.random() < 0.5:
                self.client.post(ev.LinksWanted())

    def _ask(self, number: int) -> None:
        rng = self.rng
        is_slot = rng.random() < self.weather.slots
        x = f"{'s' if is_slot else 'e'}{number}"
        walltime_s = rng.choice((None, 1.0, 10.0, 60.0))
        names = tuple(rng.sample(sorted(self.nodes), 2)) if rng.random() < 0.05 and self.nodes else ()
        request = ev.Submitted(
            x,
            batch=rng.choice(("", "b1", "b2")),
            cpus=rng.choice((1, 1, 1, 2, 4, 8)) if rng.random() < 0.99 else 99,
            memory_bytes=rng.choice((0, 0, GIB, 16 * GIB)),
            gpus=rng.choice((0, 0, 0, 0, _SHARES[number % len(_SHARES)], 2)),
            priority=rng.choice((0, 0, 0, 5)),
            walltime_s=walltime_s,
            retries=0 if is_slot else rng.choice((0, 0, 2)),
            retry_on=rng.choice(((), ("lost", "node"), ("lost", "exit:1", "oom"))),
            staged=not is_slot and rng.random() < 0.3,
            collected=not is_slot and rng.random() < 0.3,
            nodes=names,
            is_slot=is_slot,
        )
        self._submit(request)

    def _submit(self, request: ev.Submitted) -> None:
        rng, x = self.rng, request.x
        self.pending.add(x)
        end: ev.AnyEvent = ev.SlotAbandoned(x) if request.is_slot else ev.CancelAsked(x)
        fate = rng.random()
        if fate < self.weather.cancelled / 8:
            self.client.post(request, end)
            return
        self.client.post(request)
        if fate < self.weather.cancelled:
            self.later(
                rng.choice((0.0, rng.uniform(0.0, 0.2), rng.uniform(0.0, 30.0))),
                lambda: self.client.post(end),
            )
        if rng.random() < self.weather.paused:
            self.later(rng.uniform(0.0, 10.0), lambda: self.client.post(ev.PauseAsked(x)))
            self.later(rng.uniform(0.0, 25.0), lambda: self.client.post(ev.ResumeAsked(x)))
            self.later(30.0, lambda: self.client.post(ev.ResumeAsked(x)))

    def on_grant(self, x: str) -> None:
        """The person runs a thing or two in the slot, or has given up in the very tick of the grant."""
        rng = self.rng
        fate = rng.random()
        if fate < 0.2:
            self.later(0.0, lambda: self.client.post(ev.SlotAbandoned(x)))
            return
        for number in range(rng.choice((0, 1, 2))):
            request = ev.Submitted(
                f"{x}.{number}", lease=x, collected=rng.random() < 0.3, staged=rng.random() < 0.2
            )
            self.later(rng.uniform(0.0, 3.0), lambda request=request: self._submit(request))  # type: ignore[misc]
        self.later(rng.expovariate(0.2), lambda: self.client.post(ev.SlotAbandoned(x)))

    def _drain(self) -> None:
        """The first Ctrl-C, or the second; a while later another client goes on."""
        self.client.post(ev.Draining())
        if self.cluster is not None and self.rng.random() < 0.5:
            self.client.post(ev.AllocationsUnwanted())
        self.later(self.rng.uniform(0.0, 20.0), lambda: self.client.post(ev.Restarted()))

    def on_refused(self, node: str) -> None:
        """Somebody mends it: a new client tries again."""
        self.later(20.0, lambda: self.client.post(ev.Restarted()))

    # ------------------------------------------------------------------ misfortune

    def _some_node(self) -> str:
        granted = [name for name, node in self.client.machine.nodes.items() if node.is_granted]
        return self.rng.choice([*sorted(self.nodes), *granted] or sorted(self.machines))

    def _tear(self) -> None:
        self.client.tear(self._some_node())

    def _part(self) -> None:
        node = self._some_node()
        self._away[node.partition("/")[0]] = self.now + self.rng.choice((3.0, 60.0, 600.0))
        self.client.tear(node)

    def _kill_keeper(self) -> None:
        node = self._some_node()
        if self._is_up(node):
            self.agent(node).kill_keeper()

    def _reboot(self) -> None:
        node = self._some_node()
        self.client.tear(node)
        self._away[node.partition("/")[0]] = self.now + 20.0
        if self._is_up(node):
            self.agent(node).kill_keeper("reboot: the node was restarted while it ran")

    def _lose_state(self) -> None:
        node = self._some_node()
        self.client.tear(node)
        if self._is_up(node):
            self.agent(node).lose_state()

    def _lose_node(self) -> None:
        node = f"n{self.rng.randrange(2, len(self.nodes))}"
        self.gone.add(node)
        self.client.tear(node)
        self.nodes[node].lose_state()
        self.later(self.rng.uniform(0.0, 60.0), lambda: self._declare_lost(node))

    def _give_up(self) -> None:
        node = f"n{self.rng.randrange(2, len(self.nodes))}"
        self.given_up.add(node)
        self._declare_lost(node)

    def _declare_lost(self, node: str) -> None:
        self.client.post(ev.NodeAdded(node, "lab"), ev.NodeLost(node, "somebody needed its power supply"))

    def _is_up(self, node: str) -> bool:
        """Whether an agent of ours runs there, or may."""
        return node in self.nodes or ("/" in node and self.can_reach(node))

    def _crash(self) -> None:
        self.client.crash_in = self.rng.choice((0, 1, 2, 5))

    # ------------------------------------------------------------------ the ledger

    def _plan(self, x: str, attempt: int, order: dict[str, object]) -> Plan:
        rng = self.rng
        duration_s = rng.choice((0.0, 0.05, rng.expovariate(1.0), rng.expovariate(0.2)))
        reason, code = rng.choice(
            (("exit", 0), ("exit", 0), ("exit", 0), ("exit", 1), ("signal", None), ("oom", None))
        )
        if rng.random() < 0.02:
            reason, code, duration_s = "node", None, 0.0
        return Plan(duration_s, reason, code, rng.choice((0.0, 0.5, 5.0)), rng.random() < 0.1)

    def _on_start(self, node: str, x: str, attempt: int) -> None:
        self.starts[x, attempt] += 1
        assert self.starts[x, attempt] == 1, f"{x} attempt {attempt} started twice, now on {node}"
        if node in self.machines and self.cluster is not None and not self.is_lax:
            assert self.cluster.of(node) is not None, f"{x} starts on {node}, which is not ours"
        over = self.finished.get(x)
        is_left = node in self.machines and (x, attempt) in self.left_behind
        if over is not None and node not in self.given_up and not is_left:
            raise InvariantError(f"{x} attempt {attempt} starts on {node} after {over}")

    def _on_events(self, name: str) -> None:
        node = self.nodes.get(name) or self.machines[name]
        for event in node.events.values():
            number, _owner, kind, x, attempt, detail = event[-1]
            if kind == "ended" and number == node.number:
                # The first counts; who comes after a killed keeper may know nothing of it.
                self.verdicts.setdefault((x, attempt), (detail["reason"], detail["code"]))
        self.client.told(node)

    def on_action(self, action: act.AnyAction) -> None:
        """Every action decided on."""
        if isinstance(action, act.Forget):
            self.left_behind.update(self.agent(action.node).open)
        elif isinstance(action, act.Hand):
            id = action.node.partition("/")[2].partition(".")[0]
            assert not id or id not in self.known_over, f"{action}, and the allocation is known to be over"
        if not isinstance(action, act.Finish):
            return
        x = action.x
        assert x in self.pending, f"{x} ends though it does not run: {action}, before: {self.finished.get(x)}"
        self.pending.discard(x)
        self.finished[x] = action
        told = self.verdicts.get((x, action.attempts))
        if action.reason in ("exit", "signal", "oom", "walltime", "node") and x[0] == "e":
            assert told == (action.reason, action.code), f"{action}: its node said {told}"
