"""A machine that tells stories: events in, actions out, invariants checked after every step."""

from __future__ import annotations

import random

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.machine import Orchestration
from liborch.core.policy import Policy


class Story:
    """An orchestration with a clock; what each step caused is returned, and what was caused in all is kept."""

    def __init__(self, policy: Policy | None = None, seed: int = 1) -> None:
        self.machine = Orchestration(policy, random.Random(seed))
        self.now = 0.0
        self.caused: list[act.AnyAction] = []

    def tell(self, *events: ev.AnyEvent, after: float = 0.0) -> list[act.AnyAction]:
        """Some time later, these happen in one moment."""
        self.now += after
        caused: list[act.AnyAction] = []
        for event in events:
            caused += self.machine.handle(event, self.now)
            self.machine.check()
        self.caused += caused
        return caused

    def node(
        self, name: str = "n1", cpus: int = 1, memory_bytes: int = 0, gpus: int = 0, host: str = "lab"
    ) -> None:
        """A node that is added and, once something is there for it, opened."""
        self.tell(ev.NodeAdded(name, host))
        if self.link(name) == "CLOSED":
            self.tell(ev.LinksWanted())
        if self.link(name) == "CONNECTING":
            self.opened(name, cpus, memory_bytes, gpus)

    def opened(
        self,
        name: str = "n1",
        cpus: int = 1,
        memory_bytes: int = 0,
        gpus: int = 0,
        holding: tuple[tuple[str, int, str], ...] = (),
        state_id: str = "s1",
    ) -> list[act.AnyAction]:
        """The node's agent answers."""
        return self.tell(ev.LinkOpened(name, state_id, cpus, memory_bytes, gpus, holding))

    def again(
        self,
        name: str = "n1",
        holding: tuple[tuple[str, int, str], ...] = (),
        state_id: str = "s1",
    ) -> list[act.AnyAction]:
        """The link breaks and is opened again, with the node's room as it was."""
        self.tell(ev.LinkLost(name, "the connection broke"))
        self.tick()
        node = self.machine.nodes[name]
        return self.opened(name, node.cpus, node.memory_bytes, node.gpus, holding, state_id)

    def tick(self) -> list[act.AnyAction]:
        """Time passes until the machine wants to be asked."""
        deadline = self.machine.next_deadline()
        assert deadline is not None, "nothing is planned"
        self.now = max(self.now, deadline)
        return self.tell(ev.Tick())

    def state(self, x: str) -> str:
        """The state of something live, or the one it ended in."""
        item = self.machine.items.get(x)
        if item is not None:
            return item.state
        ends = [action for action in self.caused if isinstance(action, act.Finish) and action.x == x]
        assert len(ends) == 1, f"{x} ended {len(ends)} times"
        return ends[0].state

    def end(self, x: str) -> act.Finish:
        """How something ended."""
        ends = [action for action in self.caused if isinstance(action, act.Finish) and action.x == x]
        assert len(ends) == 1, f"{x} ended {len(ends)} times"
        return ends[0]

    def where(self, x: str) -> str:
        """The node something is on; "" when it waits."""
        node = self.machine.items[x].node
        return node.name if node is not None else ""

    def ahead(self, name: str = "n1") -> list[str]:
        """What the node was given before there is room, oldest first."""
        return list(self.machine.nodes[name].ahead)

    def link(self, name: str = "n1") -> str:
        """The state of a link."""
        return self.machine.nodes[name].link

    def finished(self) -> None:
        """Nothing is left over: no execution, no room taken, nobody waiting."""
        assert self.machine.is_idle
        assert self.machine.queue.waiting == 0
        for node in self.machine.nodes.values():
            assert node.free_cpus == node.cpus
            assert node.free_memory == node.memory_bytes
            assert node.free_gpus == node.gpus
            assert not node.ahead


def run(x: str, attempt: int = 1) -> tuple[ev.AnyEvent, ...]:
    """It starts and succeeds."""
    return ev.Started(x, attempt), ev.Ended(x, attempt, "exit", 0)
