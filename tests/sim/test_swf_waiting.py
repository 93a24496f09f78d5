"""Who waits is found without being asked one after the other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liborch.core.backfill import Reservation
from liborch.sim.swf_waiting import Waiting


def asked_in_turn(
    here: set[int], sizes: list[int], requests: list[float], free: int, kept: Reservation[int], now: float
) -> int:
    """What the index is for, without one."""
    for position in sorted(here):
        if sizes[position] <= free and kept.lets_pass(sizes[position], now + requests[position]):
            return position
    return -1


@pytest.mark.parametrize("seed", range(6))
def test_the_first_who_may_pass_is_found_among_hundreds_that_come_and_go_in_any_order(seed: int) -> None:
    chance = random.Random(seed)
    count = 1_000
    sizes = [chance.choice((1, 1, 1, 2, 4, 7, 8)) for _ in range(count)]
    requests = [float(chance.choice((0, 1, 60, 3600, chance.uniform(0, 100)))) for _ in range(count)]
    waiting = Waiting(sizes, requests)
    here: set[int] = set()
    away = list(range(count))
    if seed % 2:
        chance.shuffle(away)
    for step in range(3_000):
        if away and (not here or chance.random() < (0.9 if step < 1_500 else 0.3)):
            position = away.pop(0)
            here.add(position)
            waiting.add(position)
        elif here:
            position = chance.choice(sorted(here))
            here.remove(position)
            waiting.remove(position)
        kept = Reservation(100 + chance.uniform(-1, 120), chance.randrange(4))
        free = chance.randrange(9)
        assert waiting.first(free, kept, 100) == asked_in_turn(here, sizes, requests, free, kept, 100)
        assert waiting.least == min((sizes[position] for position in here), default=0)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.floats(0, 1e9)), min_size=1, max_size=8),
    st.floats(0, 1e9),
    st.floats(0, 1e9),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_parts_of_seconds_are_added_up_as_the_rule_does_it(
    jobs: list[tuple[int, float]], now: float, length: float, free: int, spare: int
) -> None:
    sizes, requests = [size for size, _ in jobs], [request for _, request in jobs]
    waiting = Waiting(sizes, requests)
    for position in range(len(jobs)):
        waiting.add(position)
    # One of them ends in that very moment, as far as rounding lets it.
    for begin in (now + length, now + requests[0]):
        kept = Reservation(begin, spare)
        expected = asked_in_turn(set(range(len(jobs))), sizes, requests, free, kept, now)
        assert waiting.first(free, kept, now) == expected
