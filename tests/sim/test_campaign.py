"""A thousand hours of batches that everything goes wrong for, in virtual time."""

from __future__ import annotations

import os

import pytest

from liborch.core import events as ev
from liborch.errors import InvariantError
from liborch.sim.campaign import HOUR_S, Campaign
from liborch.sim.node import SimNode

SOAK_SEEDS = int(os.environ.get("ORCHESTRA_SEEDS", "400"))
#: Twenty batches, each of more than fifty hours.
SEEDS = range(1, 21)


@pytest.mark.parametrize("seed", SEEDS)
def test_days_of_bad_luck_lose_no_execution_and_leave_nothing(seed: int) -> None:
    campaign = Campaign(seed)
    campaign.run()
    assert len(campaign.finished) == 500
    assert campaign.done_s >= 1000 / len(SEEDS) * HOUR_S
    # It was bad luck: clients died, and attempts were lost.
    assert campaign.client.life >= 5
    assert campaign.losses


@pytest.mark.soak
@pytest.mark.parametrize("hundred", range(SOAK_SEEDS // 100))
def test_days_without_number(hundred: int) -> None:
    for seed in range(1000 + 100 * hundred, 1100 + 100 * hundred):
        # The error names the seed.
        Campaign(seed).run()


def quiet_campaign(seed: int = 3) -> Campaign:
    """A short one, long enough for something to run when it is tampered with."""
    return Campaign(seed, executions=60, hours=6.0, nodes=3)


def running(campaign: Campaign) -> tuple[str, int]:
    """The first that runs just now, and its attempt."""
    return next(key for name in sorted(campaign.nodes) for key in campaign.nodes[name].runs)


def test_an_attempt_that_is_lost_for_no_reason_is_noticed() -> None:
    campaign = quiet_campaign()

    def tamper() -> None:
        x, attempt = running(campaign)
        campaign.verdicts.pop((x, attempt), None)
        campaign.client.post(ev.Ended(x, attempt, "lost"))

    campaign.later(HOUR_S, tamper)
    with pytest.raises(InvariantError, match="is taken for lost"):
        campaign.run()


def test_an_execution_that_is_done_again_after_it_ended_is_noticed() -> None:
    campaign = quiet_campaign()

    def tamper() -> None:
        x, over = next((x, over) for x, over in campaign.finished.items() if over.reason == "exit")
        # An order that came by night; a node asks nobody before it starts one.
        campaign.nodes["n0"]._on_start(x, over.attempts + 1)

    campaign.later(3 * HOUR_S, tamper)
    with pytest.raises(InvariantError, match="starts on n0 after"):
        campaign.run()


def test_room_that_is_not_given_back_is_noticed() -> None:
    campaign = quiet_campaign()
    campaign.later(HOUR_S, lambda: campaign.nodes["n0"].room.take(1, 0, 0))
    with pytest.raises(InvariantError):
        campaign.run()


@pytest.mark.parametrize("seed", [6, 11])
def test_an_agent_that_gives_orders_back_before_that_is_on_record_is_noticed(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimNode, "_must_wait", lambda _self, _key: False)
    with pytest.raises(InvariantError, match="started twice"):
        Campaign(seed).run()
