"""A faulty world in virtual time, played from a seed: nodes, links, a client and the persons who use it.

Everything that happens lies in one heap, ordered by time; chance is one seeded generator, so a seed is a whole history.
`World(seed).run()` plays it to its end and keeps a ledger of what was promised:

* each (execution, attempt) starts at most once, on whatever node, over all lives of the client;
* each submitted execution ends exactly once, with the verdict its node gave;
* what was cancelled never starts afterwards;
* no node runs more than it has room for, and at the end nothing is left on any;
* the machine's invariants hold after each event, and replaying its events rebuilds its state.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.policy import Policy
from liborch.errors import InvariantError
from liborch.sim.client import Client
from liborch.sim.node import Plan, SimNode

GIB = 1 << 30


@dataclass(frozen=True)
class Weather:
    """How bad it is. Probabilities of a misfortune each time it could strike, or how many strike in the whole run."""

    cancelled: float = 0.4
    slots: float = 0.25
    paused: float = 0.06
    transfer_fails: float = 0.05
    said_twice: float = 0.1
    refused: float = 0.01
    acknowledged: float = 0.6
    tears: int = 60
    partitions: int = 10
    keeper_kills: int = 8
    reboots: int = 4
    state_losses: int = 3
    nodes_lost: int = 2
    nodes_given_up: int = 1
    crashes: int = 6
    drains: int = 2


CALM = Weather(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class World:
    """See the module's text.

    Args:
        seed: What the history is made from.
        requests: How many executions and slots are asked for; those inside slots come on top.
        nodes: How many nodes there are.
        weather: How bad it is.
        policy: The core's.
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
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.weather = weather or Weather()
        self.now = 0.0
        self.nodes: dict[str, SimNode] = {}
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
        self._build(nodes)

    def __repr__(self) -> str:
        return f"<World seed {self.seed} at {self.now:.3f} s: {len(self.pending)} of {len(self.pending) + len(self.finished)} pending>"

    # ------------------------------------------------------------------ time and chance

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """Call something after so many seconds."""
        heapq.heappush(self._happenings, (self.now + delay_s, next(self._count), what))

    def chance(self, name: str) -> bool:
        """Whether a misfortune of that name strikes."""
        if self._calm and name != "acknowledged":
            return False
        return self.rng.random() < float(getattr(self.weather, name))

    def can_reach(self, node: str) -> bool:
        """Whether a connection would come through."""
        return node not in self.gone and self._away.get(node, 0.0) <= self.now

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
        cores = sum(node.room.cpus for node in self.nodes.values())
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
            self.nodes[name] = SimNode(
                name,
                8 if not number else rng.choice((1, 2, 4, 8)),
                rng.choice((8, 16, 64)) * GIB if number else 64 * GIB,
                gpus,
                clock=lambda: self.now,
                later=self.later,
                plan=self._plan,
                on_events=lambda name=name: self._on_events(name),  # type: ignore[misc]
                on_start=lambda x, attempt, name=name: self._on_start(name, x, attempt),  # type: ignore[misc]
            )
            self.later(rng.choice((0.0, rng.uniform(0.0, 60.0))), lambda name=name: self._add(name))  # type: ignore[misc]

    def _brew(self, until_s: float) -> None:
        """The misfortunes that are counted, at any time until then."""
        for what, times in (
            (self._tear, self.weather.tears),
            (self._part, self.weather.partitions),
            (self._kill_keeper, self.weather.keeper_kills),
            (self._reboot, self.weather.reboots),
            (self._lose_state, self.weather.state_losses),
            (self._lose_node, self.weather.nodes_lost),
            (self._give_up, self.weather.nodes_given_up),
            (self._crash, self.weather.crashes),
            (self._drain, self.weather.drains),
        ):
            for _ in range(times):
                self.later(self.rng.uniform(0.0, until_s), what)

    def _play(self) -> None:
        # A person waits out the trouble: unreachable nodes come back, a refused host is mended by a new client.
        self.later(self._last_request + 30.0, self._calm_down)
        until = self._last_request + self.patience_s
        while self._happenings:
            self.now, _number, what = heapq.heappop(self._happenings)
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
        self.client.post(ev.Restarted())

    def _check_the_end(self) -> None:
        assert not self.pending, f"{sorted(self.pending)[:5]} never ended"
        assert self.client.machine.is_idle
        for node in self.nodes.values():
            if node.name in self.gone or node.name in self.given_up:
                continue
            assert not node.runs, f"left running: {node!r} {list(node.runs)}"
            assert not node.holds, f"left held: {node!r} {list(node.holds)}"
            assert not node.open, f"left waiting: {node!r} {list(node.open)}"
            assert node.room.used_cpus == 0
            assert node.room.used_memory == 0
            assert len(node.room.free_gpus) == len(node.room.gpus)

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
        names = tuple(rng.sample(sorted(self.nodes), 2)) if rng.random() < 0.05 else ()
        request = ev.Submitted(
            x,
            batch=rng.choice(("", "b1", "b2")),
            cpus=rng.choice((1, 1, 1, 2, 4, 8)) if rng.random() < 0.99 else 99,
            memory_bytes=rng.choice((0, 0, GIB, 16 * GIB)),
            gpus=rng.choice((0, 0, 0, 0, 1, 2)),
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
        """The first Ctrl-C; a while later another client goes on."""
        self.client.post(ev.Draining())
        self.later(self.rng.uniform(0.0, 20.0), lambda: self.client.post(ev.Restarted()))

    def on_refused(self, node: str) -> None:
        """Somebody mends it: a new client tries again."""
        self.later(20.0, lambda: self.client.post(ev.Restarted()))

    # ------------------------------------------------------------------ misfortune

    def _some_node(self) -> str:
        return self.rng.choice(sorted(self.nodes))

    def _tear(self) -> None:
        self.client.tear(self._some_node())

    def _part(self) -> None:
        node = self._some_node()
        self._away[node] = self.now + self.rng.choice((3.0, 60.0, 600.0))
        self.client.tear(node)

    def _kill_keeper(self) -> None:
        self.nodes[self._some_node()].kill_keeper()

    def _reboot(self) -> None:
        node = self._some_node()
        self.client.tear(node)
        self._away[node] = self.now + 20.0
        self.nodes[node].kill_keeper("reboot: the node was restarted while it ran")

    def _lose_state(self) -> None:
        node = self._some_node()
        self.client.tear(node)
        self.nodes[node].lose_state()

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
        over = self.finished.get(x)
        if over is not None and node not in self.given_up:
            raise InvariantError(f"{x} attempt {attempt} starts on {node} after {over}")

    def _on_events(self, name: str) -> None:
        node = self.nodes[name]
        for event in node.events.values():
            number, _owner, kind, x, attempt, detail = event[-1]
            if kind == "ended" and number == node.number:
                # The first counts; who comes after a killed keeper may know nothing of it.
                self.verdicts.setdefault((x, attempt), (detail["reason"], detail["code"]))
        self.client.told(name)

    def on_action(self, action: act.AnyAction) -> None:
        """Every action decided on."""
        if not isinstance(action, act.Finish):
            return
        x = action.x
        assert x in self.pending, f"{x} ends though it does not run: {action}, before: {self.finished.get(x)}"
        self.pending.discard(x)
        self.finished[x] = action
        told = self.verdicts.get((x, action.attempts))
        if action.reason in ("exit", "signal", "oom", "walltime", "node") and x[0] == "e":
            assert told == (action.reason, action.code), f"{action}: its node said {told}"
