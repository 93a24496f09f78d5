"""The loop in virtual time."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from liborch.errors import InvariantError
from liborch.sim.loop import run


def test_a_week_passes_at_once() -> None:
    async def week() -> float:
        await asyncio.sleep(7 * 86400)
        return asyncio.get_running_loop().time()

    began = time.process_time()
    assert run(week()) == 7 * 86400
    assert time.process_time() - began < 5.0


def test_timers_go_off_in_order_and_the_same_every_time() -> None:
    async def story() -> list[tuple[float, str]]:
        told: list[tuple[float, str]] = []
        loop = asyncio.get_running_loop()

        async def speak(after_s: float, name: str) -> None:
            await asyncio.sleep(after_s)
            told.append((loop.time(), name))

        async with asyncio.TaskGroup() as group:
            for name, after_s in (("c", 0.3), ("a", 0.1), ("b", 0.1), ("d", 1e6)):
                group.create_task(speak(after_s, name))
        return told

    told = run(story())
    assert told == [(0.1, "a"), (0.1, "b"), (0.3, "c"), (1e6, "d")]
    assert told == run(story())


def test_a_timeout_strikes_at_its_time() -> None:
    async def story() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20.0):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(story()) == 20.0


def test_waiting_for_what_can_never_happen_is_an_error_that_names_who_waits() -> None:
    async def story() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("the patient one")
        await asyncio.Event().wait()

    with pytest.raises(
        InvariantError, match=r"nothing can ever happen again at 0\.0 s; waiting: the patient one"
    ):
        run(story())


def test_a_task_left_behind_is_an_error_and_is_cleaned_up() -> None:
    ended: list[str] = []

    async def linger() -> None:
        try:
            await asyncio.sleep(5.0)
        finally:
            ended.append("yes")

    async def story() -> None:
        asyncio.current_task()
        story.task = asyncio.ensure_future(linger())  # type: ignore[attr-defined]
        await asyncio.sleep(1.0)

    with pytest.raises(InvariantError, match="tasks nobody waited for"):
        run(story())
    assert ended == ["yes"]


def test_the_real_world_is_refused() -> None:
    async def connect() -> None:
        await asyncio.open_connection("localhost", 1)

    async def process() -> None:
        await asyncio.create_subprocess_exec("true")

    async def thread() -> None:
        await asyncio.to_thread(print)

    async def listen() -> None:
        one, other = socket.socketpair()
        with one, other:
            asyncio.get_running_loop().add_reader(one, print)

    for story in (connect, process, thread, listen):
        with pytest.raises(InvariantError, match="a virtual loop has none"):
            run(story())


def test_what_it_raises_comes_out() -> None:
    async def story() -> None:
        await asyncio.sleep(1.0)
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(story())
