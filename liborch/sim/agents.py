"""A node's agent behind a link, in memory, on any event loop: what the driver talks to in tests that never sleep.

`SimAgent` is the node and its state; `SimLink` one conversation with it (`liborch.drive.link.AgentLink`); `SimTarget` a
target whose `open` gives such a link, or fails the way a test wants it to. Transfers and output streams are not played.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from liborch.drive.link import AgentEvent, AgentLink
from liborch.drive.targets import Target
from liborch.errors import AgentError, HostUnreachable, OrchestraError
from liborch.sim.node import Plan, SimNode
from liborch.ssh import Pool
from liborch.transfer.stream import Stream


def at_once(_x: str, _attempt: int, _order: dict[str, Any]) -> Plan:
    """Every execution ends at once, with 0."""
    return Plan(0.0)


class SimAgent:
    """An agent that outlives its links.

    Args:
        name: The node's.
        cpus, memory_bytes, gpus: Its room.
        plan: What an execution will do.
        latency_s: One way, in seconds.
    """

    def __init__(
        self,
        name: str = "n1",
        cpus: int = 1,
        memory_bytes: int = 0,
        gpus: int = 0,
        *,
        plan: Callable[[str, int, dict[str, Any]], Plan] = at_once,
        latency_s: float = 0.01,
    ) -> None:
        self.latency_s = latency_s
        #: Every start: (execution, attempt).
        self.starts: list[tuple[str, int]] = []
        #: Raised by the next openings, first to last; None lets one through.
        self.refusals: list[OrchestraError | None] = []
        self.links: list[SimLink] = []
        self.node = SimNode(
            name,
            cpus,
            memory_bytes,
            gpus,
            clock=lambda: asyncio.get_running_loop().time(),
            later=_later,
            plan=plan,
            on_events=self._on_events,
            on_start=lambda x, attempt: self.starts.append((x, attempt)),
        )

    def __repr__(self) -> str:
        return f"<SimAgent {self.node!r}, {len(self.links)} links>"

    async def open(self) -> SimLink:
        """Open a link. Cancelled: nothing stays open. Raises what `refusals` says, after the time it takes."""
        await asyncio.sleep(2 * self.latency_s)
        refusal = self.refusals.pop(0) if self.refusals else None
        if refusal is not None:
            raise refusal
        link = SimLink(self)
        self.links.append(link)
        return link

    def tear(self, why: str = "the connection broke") -> None:
        """Every link breaks; what is under way on them is lost."""
        for link in list(self.links):
            link.lose(why)

    def unreachable(self, times: int) -> None:
        """The next openings fail, in a way that is worth trying again."""
        name = self.node.name
        self.refusals += [HostUnreachable(name, name, "gave no answer in 20 s") for _ in range(times)]

    def _on_events(self) -> None:
        for link in self.links:
            link.flush()


class SimLink(AgentLink):
    """One conversation. Messages keep their order and take the agent's latency."""

    def __init__(self, agent: SimAgent) -> None:
        self.agent = agent
        self.hello: dict[str, Any] = {"protocol": 1, "state_id": agent.node.state_id}
        self.clock_skew_s = 0.0
        self._owner: str | None = None
        self._sent = 0
        self._lost: str | None = None
        self._on_events: Callable[[list[AgentEvent]], None] = lambda _events: None
        self._on_lost: Callable[[str], None] | None = None

    def __repr__(self) -> str:
        return f"<SimLink {self.agent.node.name}: {self._lost or 'open'}>"

    def _after(self, what: Callable[[], None]) -> None:
        """Do something one way later, unless the link broke."""

        def arrive() -> None:
            if self._lost is None:
                what()

        _later(self.agent.latency_s, arrive)

    async def attach(
        self,
        owner: str,
        ack: int,
        capacity: dict[str, int],
        on_events: Callable[[list[AgentEvent]], None],
        on_attached: Callable[[dict[str, Any]], None],
        on_lost: Callable[[str], None],
        expand: Sequence[str] = (),
    ) -> None:
        """See AgentLink."""
        if self._lost is not None:
            on_lost(self._lost)
            return
        self._on_events, self._on_lost = on_events, on_lost
        node = self.agent.node

        def attached() -> None:
            # One conversation at a time: what an earlier one still has under way must not be heard after this.
            for other in self.agent.links:
                if other is not self and other._owner == owner:
                    other._owner = None
            node.room.resize(capacity.get("cpus"), capacity.get("memory_bytes"))
            missed, holding = node.attach(owner, ack)
            self._owner, self._sent = owner, node.number
            room = {"cpus": node.room.cpus, "memory_bytes": node.room.memory_bytes, "gpus": node.room.gpus}
            head = {"t": "attached", "holding": holding, "room": room, "expanded": list(map(_expand, expand))}
            if missed:
                self._after(lambda: on_events(missed))
            self._after(lambda: on_attached(head))

        self._after(attached)

    def flush(self) -> None:
        """Send what is new."""
        owner = self._owner
        if owner is None:
            return
        news = [event for event in self.agent.node.events.get(owner, ()) if event[0] > self._sent]
        self._sent = self.agent.node.number
        if news:
            self._after(lambda: self._on_events(news))

    def order(self, common: dict[str, Any], orders: Sequence[tuple[str, int, dict[str, Any]]]) -> None:
        """See AgentLink."""
        whole = [(x, attempt, {**common, **own}) for x, attempt, own in orders]
        self._say(lambda node, owner: node.order(owner, whole))

    def tell(self, kind: str, **fields: Any) -> None:
        """See AgentLink."""
        ids = [(str(x), int(attempt)) for x, attempt in fields.get("ids", ())]
        say: dict[str, Callable[[SimNode, str], None]] = {
            "recall": lambda node, _owner: node.recall(ids),
            "cancel": lambda node, owner: node.cancel(owner, ids),
            "pause": lambda node, _owner: node.pause(ids),
            "resume": lambda node, _owner: node.resume(ids),
            "ack": lambda node, owner: node.ack(owner, int(fields["n"])),
            "unhold": lambda node, owner: node.unhold(owner, str(fields["lease"])),
            "drop": lambda _node, _owner: None,
            # Here the batch system ends what is left, and the client learns it from there.
            "depart": lambda _node, _owner: None,
        }
        self._say(say[kind])

    def _say(self, what: Callable[[SimNode, str], None]) -> None:
        def arrive() -> None:
            if self._owner is not None:
                what(self.agent.node, self._owner)

        if self._lost is None:
            self._after(arrive)

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """See AgentLink."""
        await asyncio.sleep(2 * self.agent.latency_s)
        if self._lost is not None:
            raise AgentError(self.agent.node.name, self._lost, retriable=True)
        if kind == "expand":
            return {"t": "expanded", "texts": list(map(_expand, fields["texts"]))}
        return {"t": kind, "yes": False}

    def open_stream(self, kind: str, **fields: Any) -> Stream:
        """Not played."""
        raise AgentError(self.agent.node.name, f"a simulated agent has no {kind} streams")

    async def close(self) -> None:
        """Hang up; executions go on."""
        self._on_lost = None
        self.lose("it was closed")

    def lose(self, why: str) -> None:
        """Break."""
        if self._lost is not None:
            return
        self._lost = why
        if self in self.agent.links:
            self.agent.links.remove(self)
        if self._on_lost is not None:
            on_lost, self._on_lost = self._on_lost, None
            on_lost(why)


@dataclass
class SimTarget(Target):
    """A target that leads to a simulated agent."""

    agent: SimAgent = field(default_factory=SimAgent)

    async def open(self, pool: Pool) -> AgentLink:
        """See Target."""
        return await self.agent.open()


def _later(delay_s: float, what: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(delay_s, what)


def _expand(text: str) -> str:
    return text.replace("$HOME", "/home/me").replace("$USER", "me")
