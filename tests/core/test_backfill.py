"""Who may start before the head of the queue."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liborch.core import events as ev
from liborch.core.backfill import FOREVER, Room, reserve
from liborch.quantities import GPU_PARTS
from tests.core.test_placement import GIB, nodes


def test_the_reservation_is_when_enough_has_ended_and_tells_what_is_spare_then() -> None:
    kept = reserve(6, 1, [(10, 2), (20, 4), (30, 8)], now=5)
    assert kept is not None
    assert (kept.begin, kept.spare) == (20, 1)


def test_all_that_ends_in_one_moment_is_gone_in_it() -> None:
    kept = reserve(3, 0, [(10, 4), (10, 4), (11, 4)], now=5)
    assert kept is not None
    assert (kept.begin, kept.spare) == (10, 5)


def test_what_should_have_ended_is_expected_to_end_now() -> None:
    kept = reserve(3, 0, [(10, 4), (20, 4), (31, 4)], now=30)
    assert kept is not None
    assert (kept.begin, kept.spare) == (30, 5)


def test_what_fits_begins_now_and_what_never_will_does_not() -> None:
    kept = reserve(3, 4, [(10, 4)], now=5)
    assert kept is not None
    assert (kept.begin, kept.spare) == (5, 1)
    assert reserve(9, 4, [(10, 4)], now=5) is None


def test_somebody_passes_who_is_gone_by_then_or_fits_beside() -> None:
    kept = reserve(6, 1, [(20, 7)], now=5)
    assert kept is not None
    assert kept.lets_pass(99, until=20)
    assert not kept.lets_pass(3, until=21)
    assert kept.lets_pass(2, until=FOREVER)
    kept.passed(1, until=20)
    assert kept.spare == 2
    kept.passed(1, until=21)
    assert not kept.lets_pass(2, until=21)


def test_beside_whose_end_nobody_knows_only_those_pass_who_end() -> None:
    kept = reserve(4, 1, [(20, 2), (FOREVER, 7)], now=5)
    assert kept is not None
    assert kept.begin == FOREVER
    assert kept.lets_pass(3, until=1e9)
    assert not kept.lets_pass(1, until=FOREVER)


def test_room_fits_when_all_of_it_does() -> None:
    room = Room(4, 8 * GIB, GPU_PARTS)
    assert Room(4, 8 * GIB, GPU_PARTS) <= room
    for more in (Room(5, 0, 0), Room(1, 9 * GIB, 0), Room(1, 0, GPU_PARTS + 1)):
        assert not more <= room
    assert repr(room + Room(1, 0, GPU_PARTS) - Room(2, 8 * GIB, 0)) == "<room: 3 cores, 0 bytes, 2 GPUs>"


ENDS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4)), max_size=8).map(sorted)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.integers(0, 4), ENDS, st.integers(0, 20), st.integers(1, 4), st.integers(1, 20))
def test_who_passes_never_delays_the_head(
    asked: int, free: int, ends: list[tuple[int, int]], now: int, passing: int, length: int
) -> None:
    kept = reserve(asked, free, ends, now)
    if kept is None or passing > free or asked <= free or not kept.lets_pass(passing, now + length):
        return
    kept.passed(passing, now + length)
    after = reserve(asked, free - passing, sorted([*ends, (now + length, passing)]), now)
    assert after is not None
    assert (after.begin, after.spare) == (kept.begin, kept.spare)


def test_an_execution_without_end_passes_the_head_where_it_fits_beside_it() -> None:
    story = nodes((8, 0, 0))
    story.tell(ev.Submitted("a", cpus=6, walltime_s=100.0), ev.Started("a", 1))
    # Five for the head: of eight three are spare, of which two are free.
    story.tell(ev.Submitted("head", cpus=5, walltime_s=10.0))
    story.tell(ev.Submitted("small"), ev.Submitted("long", walltime_s=1e6), ev.Submitted("late"))
    assert [story.where(x) for x in ("head", "small", "long", "late")] == ["", "n1", "n1", ""]
    story.tell(ev.Ended("a", 1, "exit", 0), after=100.0)
    assert [story.where(x) for x in ("head", "late")] == ["n1", "n1"]


def test_memory_and_gpus_beside_the_head_count_as_cores_do() -> None:
    story = nodes((8, 16, 2))
    story.tell(ev.Submitted("a", cpus=4, memory_bytes=8 * GIB, gpus=1, walltime_s=100.0), ev.Started("a", 1))
    story.tell(ev.Submitted("head", cpus=2, memory_bytes=12 * GIB, gpus=1, walltime_s=10.0))
    story.tell(
        ev.Submitted("large", memory_bytes=5 * GIB), ev.Submitted("small", memory_bytes=4 * GIB, gpus=1)
    )
    assert [story.where(x) for x in ("head", "large", "small")] == ["", "", "n1"]


@pytest.mark.parametrize(("walltime_s", "where"), [(100.0, "n1"), (101.0, "")])
def test_nobody_fits_beside_a_head_that_takes_all(walltime_s: float, where: str) -> None:
    story = nodes((4, 0, 0))
    story.tell(ev.Submitted("a", cpus=3, walltime_s=100.0), ev.Started("a", 1))
    story.tell(ev.Submitted("head", cpus=4), ev.Submitted("b", walltime_s=walltime_s))
    assert story.where("b") == where


def test_a_gang_that_is_next_keeps_only_what_it_takes_of_each_node() -> None:
    story = nodes((4, 0, 0), (4, 0, 0))
    story.tell(
        *(ev.Submitted(x, cpus=2, nodes=(on,), walltime_s=100.0) for x, on in (("a", "n1"), ("b", "n2")))
    )
    story.tell(ev.Submitted("gang", cpus=3, node_count=2))
    # One core of each node is not the gang's.
    story.tell(*(ev.Submitted(x) for x in "cde"))
    assert sorted(story.where(x) for x in "cde") == ["", "n1", "n2"]
