"""How many allocations may be in a batch system's queue."""

from __future__ import annotations

from liborch.batch_systems.base import Limits, Request
from liborch.drive.quota import Quota

TWO = Limits(most_submitted=2, sources={"most_submitted": "QOS busy: MaxSubmitJobsPerUser"})


def test_a_full_queue_is_told_once_each_time_it_is_full() -> None:
    quota = Quota("slurm")
    quota.limits = TWO
    assert quota.has_room_beside(1)
    assert not quota.has_room_beside(2)
    news = quota.news()
    assert news.startswith("QOS busy: MaxSubmitJobsPerUser lets 2 be in the queue")
    assert not quota.has_room_beside(3)
    assert quota.news() == ""
    assert quota.has_room_beside(1)
    assert not quota.has_room_beside(2)
    assert quota.news() == news


def test_what_nobody_limits_or_asked_for_has_room_and_the_first_is_always_tried() -> None:
    quota = Quota("oar")
    assert quota.has_room_beside(100)
    quota.limits = Limits()
    assert quota.has_room_beside(100)
    quota.limits = Limits(most_submitted=0)
    assert quota.has_room_beside(0)
    assert not quota.has_room_beside(1)


def test_every_limit_that_a_request_is_over_is_named_with_what_to_change() -> None:
    quota = Quota("pbs")
    large = Request("a" * 12, nodes=9, walltime_s=7200.0)
    assert quota.exceeded_by(large) == ""
    quota.limits = Limits(most_walltime_s=3600.0, most_nodes=4, sources={"most_nodes": "queue short: nodect"})
    walltime, nodes = quota.exceeded_by(large).removeprefix("; ").split("; ")
    assert walltime == (
        "pbs is 1h, asked for are 2h: say less in the profile's `allocation: {walltime: ...}`"
    )
    assert nodes.startswith("queue short: nodect is 4, asked for are 9: ")
    assert quota.exceeded_by(Request("a" * 12, nodes=4, walltime_s=3600.0)) == ""
