"""Several executions on one GPU, as the core and the agent reckon them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liborch.agent import slots as _slots
from liborch.core import events as ev
from liborch.core.room import Gpus
from liborch.errors import SpecError
from liborch.specs import Resources
from tests.core.stories import Story, run
from tests.core.test_placement import nodes

slots: Any = _slots


def test_two_halves_share_a_gpu_and_a_whole_one_waits_for_it() -> None:
    story = nodes((8, 0, 1))
    story.tell(*(ev.Submitted(x, gpus=0.5) for x in "ab"), *(ev.Started(x, 1) for x in "ab"))
    story.tell(ev.Submitted("c", gpus=1))
    assert [story.state(x) for x in "abc"] == ["RUNNING", "RUNNING", "WAITING"]
    story.tell(ev.Ended("a", 1, "exit", 0))
    assert story.state("c") == "WAITING"
    story.tell(ev.Ended("b", 1, "exit", 0))
    assert story.state("c") == "PLACED"
    story.tell(*run("c"))
    story.finished()


def test_what_is_left_of_two_gpus_is_not_added_up() -> None:
    story = nodes((8, 0, 2))
    story.tell(*(ev.Submitted(x, gpus=0.6) for x in "ab"), ev.Submitted("c", gpus=0.6))
    assert [story.state(x) for x in "abc"] == ["PLACED", "PLACED", "WAITING"]
    assert story.machine.explain("c") == ["n1: 0 of 2 GPUs free, 0.4 of a shared one; asked: 1 core, 0.6 GPU"]
    story.tell(ev.Submitted("d", gpus=0.4), ev.CancelAsked("c"))
    assert story.state("d") == "PLACED"


def test_shares_fill_one_gpu_before_they_begin_another() -> None:
    story = nodes((8, 0, 2))
    story.tell(*(ev.Submitted(x, gpus=0.33) for x in "abc"), ev.Submitted("whole", gpus=1))
    assert [story.state(x) for x in ("a", "b", "c", "whole")] == ["PLACED"] * 4


def test_a_share_is_refused_where_there_is_no_gpu() -> None:
    story = nodes((8, 0, 0))
    story.tell(ev.Submitted("a", gpus=0.5))
    assert story.end("a").why.startswith("asks for 1 core, 0.5 GPU, more than any node has")


def test_what_has_no_room_now_is_never_delayed_by_shares() -> None:
    story = nodes((8, 0, 2))
    for x, walltime_s in (("a", 5.0), ("b", 9.0), ("c", 9.0)):
        story.tell(ev.Submitted(x, gpus=0.6 if x != "c" else 0.3, walltime_s=walltime_s), ev.Started(x, 1))
    story.tell(ev.Submitted("head", gpus=1, walltime_s=5.0), ev.Submitted("long", gpus=0.1, walltime_s=50.0))
    # There is room for it, beside any of them; on the GPU that is free in five seconds it would be in the way.
    assert [story.state(x) for x in ("head", "long")] == ["WAITING", "WAITING"]
    story.tell(ev.Submitted("plain", walltime_s=50.0))
    assert story.state("plain") == "PLACED"


def test_a_node_that_comes_back_with_fewer_gpus_starts_nothing_beyond_them() -> None:
    story = nodes((8, 0, 2))
    story.tell(ev.Submitted("a", gpus=0.5), ev.Submitted("b", gpus=1), ev.Started("a", 1), ev.Started("b", 1))
    story.tell(ev.LinkLost("n1", "the connection broke"))
    story.tick()
    story.opened("n1", 8, 0, 1, holding=(("a", 1, "running"), ("b", 1, "running")))
    story.tell(ev.Submitted("c", gpus=0.5))
    assert story.state("c") == "WAITING"
    story.tell(ev.Ended("b", 1, "exit", 0))
    assert story.state("c") == "PLACED"


@pytest.mark.parametrize(("gpus", "nodes_asked"), [(0.5, 2), (0.6, 4), (1, 4), (0.25, 1)])
def test_as_many_nodes_are_asked_for_as_shares_need(gpus: float, nodes_asked: int) -> None:
    story = Story()
    story.tell(ev.ClusterAdded("big", nodes=8, cpus=64, gpus=2))
    story.tell(*(ev.Submitted(f"e{number}", gpus=gpus) for number in range(8)))
    story.tick()
    (allocation,) = story.machine.allocations.values()
    assert allocation.node_count == nodes_asked


def test_resources_take_whole_gpus_or_a_share_of_one() -> None:
    assert Resources(gpus=1 / 3).describe() == "1 core, 0.333 GPU"
    assert Resources(gpus=2.0) == Resources(gpus=2)
    for wrong in (1.5, -0.5, float("nan"), float("inf"), 1e-9):
        with pytest.raises(SpecError, match=r"GPU|negative"):
            Resources(gpus=wrong)


ASKED = st.sampled_from((0.001, 0.1, 0.25, 0.333, 0.5, 0.6, 0.999, 1, 2))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 4), st.lists(st.one_of(ASKED, st.integers(0, 9)), max_size=40))
def test_the_core_and_the_agent_deal_out_alike(count: int, steps: list[float]) -> None:
    """A number that is asked for takes so much, where it fits; one of 3 and more gives back the n-th that was taken."""
    ours, theirs = Gpus(count), slots.Room(100, 0, [f"GPU-{number}" for number in range(count)])
    taken: list[tuple[str, float, int, list[str]]] = []
    for number, step in enumerate(steps):
        if step >= 3 and taken:
            who, gpus, slot, given = taken.pop(int(step) % len(taken))
            ours.give_back(who, gpus)
            theirs.give_back(slot, 1, 0, gpus, given)
        elif 0 < step < 3:
            assert (step <= ours.free) == theirs.fits(1, 0, step)
            if theirs.fits(1, 0, step):
                ours.take(f"e{number}", step)
                taken.append((f"e{number}", step, *theirs.take(1, 0, step)))
        on: dict[str, int] = {}
        for _who, gpus, _slot, given in taken:
            assert len(given) == max(1, int(gpus))
            for gpu in given:
                on[gpu] = on.get(gpu, 0) + min(1000, round(gpus * 1000))
        assert all(parts <= 1000 for parts in on.values()), on
        assert set(theirs.free_gpus) == set(theirs.gpus) - set(on)
        assert ours.free_parts == 1000 * count - sum(on.values())
