"""The client's hands in a simulated world: carries out the core's actions over torn links, and dies when told to.

Keeps the order of things that the real driver keeps: events are recorded and decided on, then the actions are carried
out, then agents get their acknowledgement. A client killed in between is continued by the next one from the record.

Weather, persons and the ledger are the world's (`world.py`); this file knows nothing of chance but what it asks of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.machine import Orchestration
from liborch.core.policy import Policy
from liborch.sim.describe import describe
from liborch.sim.node import NodeEvent, SimNode

OWNER = "me"


class Surroundings(Protocol):
    """What a client needs of its world."""

    now: float
    rng: random.Random

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """Call something after so many seconds."""

    def at(self, moment_s: float, what: Callable[[], None]) -> None:
        """Call something at a time; those of one moment in the order they were asked for."""

    def can_reach(self, node: str) -> bool:
        """Whether a connection would come through."""

    def agent(self, node: str) -> SimNode:
        """What answers on a node that can be reached. One of a cluster has many names, one after the other."""

    def allocate(self, action: act.Allocate) -> None:
        """Have a batch system asked for nodes."""

    def release(self, action: act.Release) -> None:
        """Have an allocation given back."""

    def latency_s(self, node: str) -> float:
        """One way, just now."""

    def absence_s(self) -> float:
        """How long nobody is there after the client was killed."""

    def chance(self, name: str) -> bool:
        """Whether a misfortune of that name strikes."""

    def on_action(self, action: act.AnyAction) -> None:
        """The ledger's: called for every action decided on, carried out or not."""

    def on_rise(self) -> None:
        """Another client has rebuilt the state, and is about to go on."""

    def on_grant(self, x: str) -> None:
        """A slot is there for the person who asked."""

    def on_refused(self, node: str) -> None:
        """A link cannot be opened until a person does something."""


class Crash(Exception):
    """The client is killed at this very point."""


class Line(NamedTuple):
    """One connection; messages of an earlier one are lost."""

    life: int
    number: int


class Reach:
    """A node as the client reaches it."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self.numbers = 0
        #: What the line leads to, or led to.
        self.talks_to: SimNode | None = None
        #: When the last message under way arrives: a connection keeps the order.
        self.arrives = {"there": 0.0, "here": 0.0}
        self.received = 0
        self.acked = 0
        self.state_id = ""
        #: The last event sent over the present connection, as the node knows it.
        self.sent = 0


class Client:
    """One orchestration's client, over all its lives."""

    def __init__(self, world: Surroundings, policy: Policy, seed: int) -> None:
        self.world = world
        self.policy = policy
        self.seed = seed
        self.machine = self._fresh()
        self.record: list[tuple[ev.AnyEvent, float]] = []
        self.life = 0
        self.is_down = False
        self.reaches: dict[str, Reach] = {}
        #: {execution: what it is that brings its files just now}
        self._bringing: dict[str, object] = {}
        self._missed: list[ev.AnyEvent] = []
        self._tick_at: float | None = None
        #: Number of events handled until the next crash, or None.
        self.crash_in: int | None = None
        #: Called when the client was killed.
        self.on_crash: Callable[[], None] = lambda: None
        self.post(ev.PolicyChosen(policy))

    def _fresh(self) -> Orchestration:
        # The policy comes with the events, as it does for a real client.
        return Orchestration(None, random.Random(self.seed))

    # ------------------------------------------------------------------ events

    def post(self, *events: ev.AnyEvent) -> None:
        """Have the core decide on events of the same moment; carry out what follows. While the client is down they wait."""
        if self.is_down:
            self._missed += events
            return
        to_come = iter(events)
        try:
            for event in to_come:
                self.record.append((event, self.world.now))
                actions = self.machine.handle(event, self.world.now)
                self.machine.check()
                for action in actions:
                    self.world.on_action(action)
                self._maybe_crash()
                for action in actions:
                    self._carry_out(action)
        except Crash:
            # What a person said in the same breath, they say to the next client.
            self._missed += to_come
            self._die()
            return
        self._plan_tick()

    def _maybe_crash(self) -> None:
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash_in = None
                raise Crash

    def _plan_tick(self) -> None:
        deadline = self.machine.next_deadline()
        if deadline is None or (self._tick_at is not None and self.world.now <= self._tick_at <= deadline):
            return
        self._tick_at = at = max(deadline, self.world.now)
        life = self.life

        def tick() -> None:
            if self.life == life and self._tick_at == at:
                self._tick_at = None
                self.post(ev.Tick())

        self.world.later(at - self.world.now, tick)

    # ------------------------------------------------------------------ lives

    def _die(self) -> None:
        self.life += 1
        self.is_down = True
        self._bringing.clear()
        self._tick_at = None
        for reach in self.reaches.values():
            reach.line = None
        self.on_crash()
        self.world.later(self.world.absence_s(), self._rise)

    def _rise(self) -> None:
        """The next client: rebuilds the state from the record, and takes over."""
        rebuilt = self._fresh()
        for event, now in self.record:
            rebuilt.handle(event, now)
        before, after = describe(self.machine), describe(rebuilt)
        for name in before:
            assert before[name] == after[name], f"{name} is {after[name]} after replay, was {before[name]}"
        self.machine = rebuilt
        self.is_down = False
        self.world.on_rise()
        missed, self._missed = self._missed, []
        self.post(ev.PolicyChosen(self.policy))
        self.post(ev.Restarted())
        # Nobody awaits the slots of a client that is gone.
        slots = [item.x for item in list(self.machine.items.values()) if item.is_slot]
        for event in [*map(ev.SlotAbandoned, slots), *missed]:
            self.post(event)

    # ------------------------------------------------------------------ actions

    def _carry_out(self, action: act.AnyAction) -> None:
        match action:
            case act.Connect(node=node):
                self._connect(node)
            case act.Hand(x=x, attempt=attempt, node=node):
                order = self._order(x)
                self._send(node, lambda agent: agent.order(OWNER, [(x, attempt, order)]))
            case act.Recall(x=x, attempt=attempt, node=node):
                self._send(node, lambda agent: agent.recall([(x, attempt)]))
            case act.Cancel(x=x, attempt=attempt, node=node):
                item = self.machine.items.get(x)
                if item is not None and item.is_slot:
                    self._send(node, lambda agent: agent.unhold(OWNER, x))
                else:
                    self._send(node, lambda agent: agent.cancel(OWNER, [(x, attempt)]))
            case act.Pause(x=x, attempt=attempt, node=node):
                self._send(node, lambda agent: agent.pause([(x, attempt)]))
            case act.Resume(x=x, attempt=attempt, node=node):
                self._send(node, lambda agent: agent.resume([(x, attempt)]))
            case act.Stage(x=x, node=node):
                number = self.machine.items[x].attempt if x in self.machine.items else 0
                failed = ev.StageFailed(x, "it will not fit", node, number)
                self._bring(x, node, ev.Staged(x, node, number), failed)
            case act.Collect(x=x, node=node):
                self._bring(x, node, ev.Collected(x), ev.Collected(x, "the folder is gone"))
            case act.Unstage(x=x):
                self._bringing.pop(x, None)
            case act.Grant(x=x):
                self.world.on_grant(x)
            case act.Allocate():
                self.world.allocate(action)
            case act.Release():
                self.world.release(action)
            case act.Forget(node=node):
                self._forget(node)

    def _order(self, x: str) -> dict[str, Any]:
        item = self.machine.items[x]
        order: dict[str, Any] = {"cpus": item.cpus, "mem": item.memory_bytes, "gpus": item.gpus}
        if item.walltime_s is not None:
            order["wall"] = item.walltime_s
        if item.lease:
            order["lease"] = item.lease
        if item.is_slot:
            order["hold"] = True
        return order

    def _bring(self, x: str, node: str, done: ev.AnyEvent, failed: ev.AnyEvent) -> None:
        """Send or fetch files: ends silently when the link is torn meanwhile; asking again replaces it."""
        token = self._bringing[x] = object()
        world, line = self.world, self._reach(node).line

        def arrived() -> None:
            reach = self._reach(node)
            if self._bringing.get(x) is not token or line is None or reach.line is not line:
                return
            del self._bringing[x]
            answer = failed if world.chance("transfer_fails") else done
            self.post(answer)
            if world.chance("said_twice"):
                world.later(world.rng.expovariate(1.0), lambda: self.post(answer))

        world.later(world.rng.expovariate(2.0), arrived)

    # ------------------------------------------------------------------ links

    def _reach(self, node: str) -> Reach:
        return self.reaches.setdefault(node, Reach())

    def _connect(self, node: str) -> None:
        world, reach = self.world, self._reach(node)
        reach.numbers += 1
        line = Line(self.life, reach.numbers)
        reach.line = None

        def there() -> None:
            if line != Line(self.life, reach.numbers):
                return
            if world.chance("refused"):
                self.post(ev.LinkRefused(node, "host key changed"))
                world.on_refused(node)
            elif not world.can_reach(node):
                self.post(ev.LinkLost(node, "no answer in 20 s"))
            else:
                self._attach(node, reach, line)

        world.later(2 * world.latency_s(node), there)

    def _attach(self, node: str, reach: Reach, line: Line) -> None:
        agent = self.world.agent(node)
        for other in self.reaches:
            # Who speaks for this owner is one: under whatever name the machine was known before, that conversation ends.
            if other != node and self.reaches[other].talks_to is agent:
                self.tear(other)
        agent.wake()
        reach.line = line
        reach.talks_to = agent
        reach.arrives = {"there": 0.0, "here": 0.0}
        self._greet(node, reach, line)

    def greeted_again(self, node: str) -> None:
        """The node's keeper was replaced: whoever is connected is attached again, over the same connection."""
        reach = self._reach(node)
        if reach.line is not None:
            self._greet(node, reach, reach.line)

    def _greet(self, node: str, reach: Reach, line: Line) -> None:
        agent = self.world.agent(node)
        if agent.state_id != reach.state_id:
            reach.state_id = agent.state_id
            reach.received = reach.acked = 0
        missed, holding = agent.attach(OWNER, reach.acked)
        reach.sent = agent.number
        opened = ev.LinkOpened(
            node,
            agent.state_id,
            agent.room.cpus,
            agent.room.memory_bytes,
            len(agent.room.gpus),
            tuple(holding),
        )
        self._under_way(node, line, "here", lambda: self._receive(node, missed))
        self._under_way(node, line, "here", lambda: self.post(opened))

    def _forget(self, node: str) -> None:
        reach = self.reaches.pop(node, None)
        if reach is not None:
            reach.line = None
            reach.numbers += 1

    def tear(self, node: str) -> None:
        """The connection breaks: what is under way is lost. The client notices after a while."""
        reach = self._reach(node)
        line, reach.line = reach.line, None
        if line is None:
            return

        def noticed() -> None:
            if line == Line(self.life, reach.numbers):
                self.post(ev.LinkLost(node, "the connection broke"))
                if self.world.chance("said_twice"):
                    self.post(ev.LinkLost(node, "the connection broke"))

        self.world.later(self.world.rng.uniform(0.0, 3.0), noticed)

    def _under_way(self, node: str, line: Line, way: str, then: Callable[[], None]) -> None:
        world, reach = self.world, self._reach(node)
        reach.arrives[way] = at = max(reach.arrives[way], world.now + world.latency_s(node))

        def arrive() -> None:
            if reach.line is line and (way == "there" or line.life == self.life):
                then()

        # Not `later`: what is added to a difference may be less than what it was taken from, and pass what is before it.
        world.at(at, arrive)

    def _send(self, node: str, message: Callable[[SimNode], None]) -> None:
        line = self._reach(node).line
        if line is not None:
            self._under_way(node, line, "there", lambda: message(self.world.agent(node)))

    def told(self, agent: SimNode) -> None:
        """A node's agent has events: they go out together, a moment later."""
        for node, reach in self.reaches.items():
            if reach.talks_to is agent and reach.line is not None:
                self._tell(node, reach, reach.line)
                return

    def _tell(self, node: str, reach: Reach, line: Line) -> None:
        agent = self.world.agent(node)
        if agent.state_id != reach.state_id:
            self.tear(node)  # An agent that begins anew has no sessions.
            return
        news = [event for event in agent.events.get(OWNER, ()) if event[0] > reach.sent]
        reach.sent = agent.number
        if news:
            self._under_way(node, line, "here", lambda: self._receive(node, news))

    def _receive(self, node: str, events: list[NodeEvent]) -> None:
        reach = self._reach(node)
        life = self.life
        for number, _owner, kind, x, attempt, detail in events:
            if number > reach.received:
                reach.received = number
                self.post(_translate(kind, x, attempt, detail))
            if self.life != life:
                # Killed between the record of one event and the next: the others come again.
                return
        if self.world.chance("acknowledged") and reach.received > reach.acked:
            reach.acked = seen = reach.received
            self._send(node, lambda agent: agent.ack(OWNER, seen))


def _translate(kind: str, x: str, attempt: int, detail: dict[str, Any]) -> ev.AnyEvent:
    if kind == "ended":
        return ev.Ended(x, attempt, detail["reason"], detail["code"], bool(detail.get("files")))
    if kind == "unheld":
        return ev.Ended(x, attempt, "exit", 0)
    if kind == "refused":
        return ev.Refused(x, attempt, detail["why"])
    if kind == "recalled":
        return ev.Recalled(x, attempt)
    if kind == "paused":
        return ev.Paused(x, attempt)
    if kind == "resumed":
        return ev.Continued(x, attempt)
    return ev.Started(x, attempt)
