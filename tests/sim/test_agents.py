"""The agent's double behind a link, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from liborch.errors import AgentError, HostUnreachable
from liborch.sim.agents import SimAgent, SimLink
from liborch.sim.loop import run
from liborch.sim.node import Plan


class Ear:
    """A client that only listens."""

    def __init__(self) -> None:
        self.events: list[list[Any]] = []
        self.heads: list[dict[str, Any]] = []
        self.lost: list[str] = []

    async def attach(self, link: SimLink, ack: int = 0) -> None:
        """Take part, and wait for the answer."""
        await link.attach("me", ack, {}, self.events.extend, self.heads.append, self.lost.append, ["$HOME/x"])
        await asyncio.sleep(1.0)

    def kinds(self) -> list[tuple[int, str, str]]:
        """What was heard: (number, kind, execution)."""
        return [(event[0], event[2], event[3]) for event in self.events]


def lasting(_x: str, _attempt: int, _order: dict[str, Any]) -> Plan:
    """Executions of an hour."""
    return Plan(3600.0)


def test_orders_given_over_a_link_run_and_their_ends_come_back() -> None:
    async def story() -> None:
        agent, ear = SimAgent(cpus=2), Ear()
        link = await agent.open()
        await ear.attach(link)
        assert ear.heads[0]["room"]["cpus"] == 2
        assert ear.heads[0]["expanded"] == ["/home/me/x"]
        link.order({}, [("a", 1, {}), ("b", 1, {})])
        await asyncio.sleep(1.0)
        assert ear.kinds() == [(1, "ended", "a"), (2, "ended", "b")]
        assert agent.starts == [("a", 1), ("b", 1)]
        link.tell("ack", n=2)
        await asyncio.sleep(1.0)
        assert agent.node.events == {"me": []}
        await link.close()
        assert ear.lost == []

    run(story())


def test_executions_go_on_when_the_link_is_torn_and_the_next_one_tells_what_was_missed() -> None:
    async def story() -> None:
        agent, ear = SimAgent(plan=lasting), Ear()
        link = await agent.open()
        await ear.attach(link)
        link.order({}, [("a", 1, {}), ("b", 1, {})])
        await asyncio.sleep(1.0)
        agent.tear()
        assert ear.lost == ["the connection broke"]
        link.tell("cancel", ids=[("a", 1)])
        await asyncio.sleep(3600.0)
        link = await agent.open()
        await ear.attach(link, ack=1)
        assert ear.kinds() == [(1, "started", "a"), (2, "ended", "a"), (3, "started", "b")]
        assert ear.heads[-1]["holding"] == [("b", 1, "running")]

    run(story())


def test_what_is_under_way_on_an_earlier_link_is_not_heard_after_the_next_one_attached() -> None:
    async def story() -> None:
        agent, ear = SimAgent(), Ear()
        first = await agent.open()
        await ear.attach(first)
        second = await agent.open()
        await ear.attach(second)
        first.order({}, [("a", 1, {})])
        await asyncio.sleep(1.0)
        assert agent.starts == []

    run(story())


def test_openings_fail_as_often_as_asked() -> None:
    async def story() -> None:
        agent = SimAgent()
        agent.unreachable(2)
        for _ in range(2):
            with pytest.raises(HostUnreachable):
                await agent.open()
        link = await agent.open()
        assert await link.ask("expand", texts=["$HOME"]) == {"t": "expanded", "texts": ["/home/me"]}
        agent.tear()
        with pytest.raises(AgentError, match="the connection broke"):
            await link.ask("status")

    run(story())
