"""Cancelling any await leaves nothing behind: no room held, no process, no task, wherever it strikes.

The loop counts its turns, and the cancel falls between two of them: every await point of the library, and of what it
stands on, is hit in the order in which a real run comes by them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

import liborch
from tests.drive.conftest import Here, assert_quiet


class TurnLoop(asyncio.SelectorEventLoop):
    """Calls `then` when it has turned `after` times more."""

    turns = 0
    after = 0
    then: Callable[[], object] | None = None

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        self.turns += 1
        if self.then is not None:
            self.after -= 1
            if self.after <= 0:
                then, self.then = self.then, None
                then()


def played(scenario: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a scenario in a loop that counts."""
    with asyncio.Runner(loop_factory=TurnLoop) as runner:
        return runner.run(scenario())


def turn_loop() -> TurnLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TurnLoop)
    return loop


async def cancelled_after(turns: int, work: Coroutine[Any, Any, Any]) -> bool:
    """Run `work`, cancel it after so many turns; returns whether it was over before."""
    task = asyncio.ensure_future(work)
    loop = turn_loop()
    loop.after, loop.then = turns, task.cancel

    def beat() -> None:
        # Where nothing happens any more the loop would not turn.
        if loop.then is not None:
            loop.call_later(0.01, beat)

    beat()
    try:
        await task
    except asyncio.CancelledError:
        return False
    finally:
        loop.then = None
    return True


async def a_slot_and_a_command() -> None:
    async with liborch.open_host("local") as host, host.slot(cpus=1) as slot:
        assert (await slot.run(["echo", "hello"])).stdout == b"hello\n"


async def turns_of(work: Coroutine[Any, Any, Any]) -> int:
    loop = turn_loop()
    before = loop.turns
    await work
    return loop.turns - before


def test_opening_a_host_can_be_cancelled_at_any_point(here: Here) -> None:
    async def scenario() -> None:
        await a_slot_and_a_command()  # The agent is there now.
        turns = await turns_of(a_slot_and_a_command())
        points = sorted({1 + number * turns // 24 for number in range(25)})
        for point in points:
            await cancelled_after(point, a_slot_and_a_command())
            await assert_quiet()

    played(scenario)
    here.assert_bare()


def test_opening_a_host_can_be_cancelled_twice(here: Here) -> None:
    async def impatient(point: int) -> None:
        task = asyncio.ensure_future(a_slot_and_a_command())
        loop = turn_loop()

        def again() -> None:
            task.cancel()
            loop.after, loop.then = 2, task.cancel

        loop.after, loop.then = point, again
        with contextlib.suppress(asyncio.CancelledError):
            await task
        loop.then = None

    async def scenario() -> None:
        await a_slot_and_a_command()
        turns = await turns_of(a_slot_and_a_command())
        for number in range(9):
            await impatient(1 + number * turns // 8)
            await assert_quiet()

    played(scenario)


Use = Callable[[liborch.Host], Awaitable[Any]]


async def hold_a_slot(host: liborch.Host) -> None:
    async with host.slot(cpus=1):
        pass


async def run_in_a_slot(host: liborch.Host) -> None:
    async with host.slot(cpus=1) as slot:
        await slot.run(["true"])


async def run_for_ever_in_a_slot(host: liborch.Host) -> None:
    async with host.slot(cpus=1) as slot:
        await slot.run(["sleep", "1000"])


async def submit_and_wait(host: liborch.Host) -> None:
    execution = host.submit(["true"])
    try:
        await execution
    finally:
        execution.cancel()


async def submit_many_and_wait(host: liborch.Host) -> None:
    executions = [host.submit(["true"]) for _ in range(5)]
    try:
        async for result in liborch.as_completed(executions):
            assert result.ok
    finally:
        for execution in executions:
            execution.cancel()


async def follow_live(host: liborch.Host) -> None:
    pieces: list[bytes] = []
    execution = host.submit(
        ["sh", "-c", "echo one; echo two"], on_output=lambda _name, data: pieces.append(data)
    )
    try:
        await execution
        assert b"".join(pieces) == b"one\ntwo\n"
    finally:
        execution.cancel()


@pytest.mark.parametrize(
    ("use", "points"),
    [
        (hold_a_slot, 40),
        (run_in_a_slot, 60),
        (run_for_ever_in_a_slot, 30),
        (submit_and_wait, 50),
        (submit_many_and_wait, 50),
        (follow_live, 60),
    ],
)
def test_using_a_host_can_be_cancelled_at_any_point(here: Here, use: Use, points: int) -> None:
    async def scenario() -> None:
        async with liborch.open_host("local") as host:
            await submit_and_wait(host)
            await host._driver.wait_idle()
            for point in range(points):
                await cancelled_after(point, use(host))  # type: ignore[arg-type]
                async with asyncio.timeout(20):
                    await host._driver.wait_idle()
                assert (host._driver._grants, host._driver._by_execution) == ({}, {})
            # All of its room is free again.
            everything = host._driver.core.nodes["local"].cpus
            async with asyncio.timeout(20), host.slot(cpus=everything):
                pass
        await assert_quiet()

    played(scenario)
    here.assert_bare()


def test_as_completed_left_early_leaves_the_others_running(here: Here) -> None:
    async def scenario() -> None:
        async with liborch.open_host("local") as host:
            quick = host.submit(["true"])
            slow = host.submit(["sleep", "1000"])
            ends = liborch.as_completed([slow, quick])
            assert (await anext(ends)).id == quick.id
            await ends.aclose()  # type: ignore[attr-defined]
            assert not slow.is_done
            slow.cancel()
            assert (await slow).state == "cancelled"
        await assert_quiet()

    played(scenario)
    here.assert_bare()
