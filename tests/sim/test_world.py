"""Worlds played to their end. A seed that fails is named here, with what it showed."""

from __future__ import annotations

import os

import pytest

from liborch.sim.world import World

SEEDS = range(1, 21)
SOAK_SEEDS = range(1000, 1000 + int(os.environ.get("ORCHESTRA_SEEDS", "300")))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_thousand_requests_in_bad_weather_leave_nothing_behind(seed: int) -> None:
    world = World(seed)
    world.run()
    assert len(world.finished) >= 1000
