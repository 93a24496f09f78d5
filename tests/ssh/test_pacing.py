"""Back-off, circuit breaker and gate: pure, or with nothing but futures."""

from __future__ import annotations

import asyncio
from random import Random

from liborch.errors import AuthenticationRefused, HostUnreachable
from liborch.ssh.handshake import keepalive
from liborch.ssh.limits import Limits
from liborch.ssh.pacing import Breaker, Gate, full_jitter
from liborch.ssh.resolve import Endpoint

UNREACHABLE = HostUnreachable("h", "h:22", "refused")
REFUSED = AuthenticationRefused("h", "h:22", "me", "no key")


def test_back_off_grows_spreads_and_is_capped() -> None:
    rng = Random(1)
    first = [full_jitter(rng, 0.5, 30, 1) for _ in range(1000)]
    late = [full_jitter(rng, 0.5, 30, 1000) for _ in range(1000)]
    assert 0 <= min(first) < 0.1
    assert 0.9 < max(first) <= 1
    assert 25 < max(late) <= 30
    assert min(late) < 5


def test_a_failure_delays_the_next_attempt_and_a_success_forgets_it() -> None:
    breaker = Breaker(Limits(), Random(2))
    breaker.failed(UNREACHABLE, 100.0)
    assert 0 < breaker.wait_s(100.0) <= 1
    assert breaker.refusal(100.0) is None
    breaker.succeeded()
    assert breaker.wait_s(100.0) == 0


def test_a_refused_login_forbids_attempts_for_its_time() -> None:
    breaker = Breaker(Limits(auth_retry_s=15), Random(3))
    breaker.failed(REFUSED, 100.0)
    assert breaker.refusal(114.9) is REFUSED
    assert breaker.refusal(115.0) is None
    assert breaker.wait_s(115.0) == 0


async def hold(gate: Gate, entered: list[int], number: int, leave: asyncio.Event) -> None:
    async with gate.enter():
        entered.append(number)
        await leave.wait()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_gate_lets_in_so_many_in_order_of_arrival() -> None:
    gate, entered, leave = Gate(2), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(hold(gate, entered, i, leave)) for i in range(5)]
    await turns()
    assert entered == [0, 1]
    leave.set()
    await asyncio.gather(*tasks)
    assert entered == [0, 1, 2, 3, 4]
    assert (gate.inside, gate.peak, gate.total) == (0, 2, 5)


async def test_a_crowded_gate_narrows_and_widens_again_slowly() -> None:
    gate = Gate(8)
    for _ in range(5):
        gate.crowded()
    entered, leave = list[int](), asyncio.Event()
    tasks = [asyncio.create_task(hold(gate, entered, i, leave)) for i in range(8)]
    await turns()
    assert entered == [0]
    leave.set()
    await asyncio.gather(*tasks)
    for _ in range(100):
        gate.eased()
    leave.clear()
    tasks = [asyncio.create_task(hold(gate, entered, i, leave)) for i in range(12)]
    await turns()
    assert gate.inside == 8
    leave.set()
    await asyncio.gather(*tasks)


async def test_no_place_leaks_when_waiters_are_cancelled_at_any_moment() -> None:
    rng = Random(4)
    gate = Gate(3)
    for _ in range(300):
        leave = asyncio.Event()
        entered: list[int] = []
        tasks = [asyncio.create_task(hold(gate, entered, i, leave)) for i in range(rng.randrange(1, 9))]
        await turns(rng.randrange(3))
        victims = rng.sample(tasks, rng.randrange(len(tasks) + 1))
        if rng.random() < 0.5:
            # Grants and cancels land in the same tick.
            leave.set()
            await turns(rng.randrange(2))
        for victim in victims:
            victim.cancel()
        await turns(rng.randrange(3))
        leave.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert gate.inside == 0
        assert not gate._waiters
    assert gate.peak <= 3


def test_a_dead_link_is_noticed_as_soon_as_we_or_the_configuration_would() -> None:
    def chosen(interval_s: float | None, count: int | None = 3) -> tuple[float, int]:
        endpoint = Endpoint("h", "h", 22, "me", keepalive_interval_s=interval_s, keepalive_count=count)
        return keepalive(endpoint, Limits(keepalive_interval_s=5, keepalive_count=3))

    assert chosen(None) == (5, 3)
    assert chosen(300) == (5, 3)
    assert chosen(2, 1) == (2, 1)
    assert chosen(5, 1) == (5, 1)
