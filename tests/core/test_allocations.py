"""Allocations: asked for, used, left before their time is over, given back."""

from __future__ import annotations

import pytest

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.policy import Policy
from tests.core.stories import Story, run


def cluster(*, policy: Policy | None = None, **more: object) -> Story:
    """A host with a batch system: two nodes at a time, two cores each as far as is known, for a minute."""
    told: dict[str, object] = {"nodes": 2, "most": 1, "walltime_s": 60.0, "cpus": 2, **more}
    story = Story(policy)
    story.tell(ev.ClusterAdded("big", **told))  # type: ignore[arg-type]
    return story


def submit(story: Story, count: int, **more: object) -> list[act.AnyAction]:
    """Executions x1, x2, ..., and a moment in which what they need is thought over."""
    caused = story.tell(*(ev.Submitted(f"x{n}", **more) for n in range(1, count + 1)))  # type: ignore[arg-type]
    return caused + story.tell(ev.Tick(), after=1.0)


def active(
    story: Story, a: str = "a1", *, nodes: int = 2, left_s: float | None = 60.0, cpus: int = 2
) -> None:
    """An allocation begins, and its nodes answer."""
    story.tell(ev.AllocationQueued(a, f"7{a[1:]}", "Priority"))
    story.tell(ev.AllocationActive(a, f"7{a[1:]}", tuple(f"n{n + 1}" for n in range(nodes)), left_s))
    for n in range(nodes):
        story.opened(f"n{n + 1}/7{a[1:]}", cpus)


def asked(actions: list[act.AnyAction]) -> list[tuple[str, int]]:
    """What was asked of batch systems: (allocation, nodes)."""
    return [(each.a, each.nodes) for each in actions if isinstance(each, act.Allocate)]


def released(actions: list[act.AnyAction]) -> list[str]:
    """What was given back."""
    return [each.a for each in actions if isinstance(each, act.Release)]


def until(story: Story, state: str, a: str = "a1") -> None:
    """Time passes until an allocation is in a state."""
    for _ in range(50):
        if story.machine.allocations[a].state == state:
            return
        story.tick()
    raise AssertionError(f"{story.machine.allocations[a]!r} does not become {state}")


def test_nothing_is_asked_for_while_nobody_waits() -> None:
    story = cluster()
    assert story.caused == []
    assert story.machine.next_deadline() is None


def test_it_is_as_large_as_what_waits_needs() -> None:
    assert asked(submit(cluster(nodes=8), 1)) == [("a1", 1)]
    assert asked(submit(cluster(nodes=8), 7)) == [("a1", 4)]
    story = cluster(nodes=8)
    submit(story, 1)
    story.tell(*(ev.Submitted(f"y{n}") for n in range(8)))
    story.tick()
    assert asked(story.caused) == [("a1", 1)], "as many at a time as the profile allows"
    story = cluster(nodes=8, most=2)
    submit(story, 1)
    story.tell(*(ev.Submitted(f"y{n}") for n in range(8)))
    story.tick()
    assert asked(story.caused) == [("a1", 1), ("a2", 4)]


def test_it_is_never_smaller_or_larger_than_allowed() -> None:
    assert asked(submit(cluster(nodes=8, least=3), 1)) == [("a1", 3)]
    assert asked(submit(cluster(nodes=8), 1, node_count=5)) == [("a1", 5)]
    assert asked(submit(cluster(nodes=3, most=5), 40)) == [
        ("a1", 3),
        ("a2", 3),
        ("a3", 3),
        ("a4", 3),
        ("a5", 3),
    ]


def test_executions_run_on_its_nodes_and_it_is_given_back_when_idle() -> None:
    story = cluster()
    submit(story, 4, walltime_s=30)
    active(story)
    assert sorted(story.where(f"x{n}") for n in range(1, 5)) == ["n1/71", "n1/71", "n2/71", "n2/71"]
    story.tell(*(each for n in range(1, 5) for each in run(f"x{n}")), after=2.0)
    story.tick()
    assert released(story.caused) == []
    until(story, "DRAINING")
    assert released(story.caused) == ["a1"]
    assert story.now > Policy().idle_s - 20
    story.tell(ev.AllocationEnded("a1", "cancelled"))
    assert not story.machine.allocations
    assert not story.machine.nodes
    story.finished()


def test_nodes_with_little_time_left_are_not_used_for_what_takes_longer() -> None:
    story = cluster(policy=Policy(idle_s=1000))
    story.tell(ev.Submitted("short", walltime_s=10), ev.Submitted("long", walltime_s=50))
    story.tick()
    active(story, nodes=1, left_s=40.0)
    assert story.where("short") == "n1/71"
    assert story.state("long") == "WAITING"
    story.tell(*run("short"), after=1.0)
    assert story.state("long") == "WAITING"
    until(story, "DRAINING")
    story.tell(ev.AllocationEnded("a1", "cancelled"))
    story.tick()
    assert asked(story.caused)[1:] == [("a2", 1)]
    active(story, "a2", nodes=1)
    assert story.where("long") == "n1/72"


def test_what_is_longer_than_any_allocation_is_refused_at_once() -> None:
    story = cluster()
    story.tell(ev.Submitted("x", walltime_s=120))
    assert story.end("x").state == "FAILED"
    assert "allocations of big last 1m" in story.end("x").why
    assert asked(story.caused) == []


def test_more_than_a_node_has_is_refused_when_that_is_known() -> None:
    story = cluster()
    story.tell(ev.Submitted("x", cpus=3))
    assert "a node of big has 2 cores" in story.end("x").why
    story = cluster(cpus=0)
    story.tell(ev.Submitted("x", cpus=3))
    story.tick()
    assert story.state("x") == "WAITING"
    active(story, cpus=2)
    assert "a node of big has 2 cores" in story.end("x").why


def test_what_is_cut_off_is_tried_again_under_the_same_id_and_costs_no_retry() -> None:
    story = cluster()
    submit(story, 1)
    active(story, nodes=1)
    story.tell(ev.Started("x1", 1))
    until(story, "DRAINING")
    assert act.Cancel("x1", 1, "n1/71") in story.caused
    caused = story.tell(ev.Ended("x1", 1, "cancelled"), after=1.0)
    assert act.Retry("x1", 1, "allocation") in caused
    assert story.state("x1") == "WAITING"
    story.tick()
    assert released(story.caused) == ["a1"]
    story.tell(ev.AllocationEnded("a1", "cancelled"), ev.Tick(), after=1.0)
    story.tick()
    active(story, "a2", nodes=1)
    story.tell(ev.Started("x1", 2), ev.Ended("x1", 2, "exit", 0))
    assert (story.end("x1").state, story.end("x1").attempts) == ("SUCCEEDED", 2)


def test_what_no_allocation_is_long_enough_for_is_over_in_the_end() -> None:
    story = cluster(policy=Policy(cut_offs_most=2))
    submit(story, 1)
    for attempt in range(1, 4):
        active(story, f"a{attempt}", nodes=1)
        story.tell(ev.Started("x1", attempt))
        until(story, "DRAINING", f"a{attempt}")
        story.tell(ev.Ended("x1", attempt, "cancelled"), after=1.0)
        story.tell(ev.AllocationEnded(f"a{attempt}", "cancelled"), after=1.0)
        story.tell(ev.Tick(), after=1.0)
    assert (story.end("x1").state, story.end("x1").reason) == ("LOST", "allocation")


def test_an_allocation_that_is_taken_away_loses_nothing() -> None:
    story = cluster()
    submit(story, 3, walltime_s=30)
    active(story)
    story.tell(ev.Started("x1", 1), ev.Started("x2", 1), ev.Started("x3", 1))
    caused = story.tell(ev.AllocationEnded("a1", "preempted"), after=5.0)
    assert {each.x for each in caused if isinstance(each, act.Cancel)} == {"x1", "x2", "x3"}
    # One was just done, one is ended, and of the third's node nothing more is heard.
    where = {x: story.where(x) for x in ("x1", "x2", "x3")}
    gone = next(node for node in set(where.values()) if sum(each == node for each in where.values()) == 1)
    there = [x for x in where if where[x] != gone]
    story.tell(
        ev.Ended(there[0], 1, "exit", 0), ev.Ended(there[1], 1, "cancelled"), ev.LinkLost(gone, "torn")
    )
    assert story.end(there[0]).state == "SUCCEEDED"
    assert story.state(there[1]) == "WAITING"
    lost = next(x for x in where if where[x] == gone)
    assert story.state(lost) == "RUNNING"
    for _ in range(20):
        if story.state(lost) == "WAITING":
            break
        story.tick()
    assert act.Retry(lost, 1, "allocation") in story.caused
    assert act.Forget(gone) in story.caused
    assert not story.machine.nodes


def test_one_that_is_put_back_into_the_queue_is_found_again_with_other_nodes() -> None:
    story = cluster()
    submit(story, 1)
    active(story)
    story.tell(ev.Started("x1", 1))
    where = story.where("x1")
    story.tell(ev.AllocationQueued("a1", "71", "BeginTime"), after=5.0)
    assert story.machine.allocations["a1"].state == "QUEUED"
    story.tell(ev.Ended("x1", 1, "cancelled"))
    story.tick()
    assert where not in story.machine.nodes
    story.tell(ev.AllocationActive("a1", "71", ("n1", "n2"), 60.0))
    assert sorted(story.machine.nodes) == ["n1/71.2", "n2/71.2"]
    story.opened("n1/71.2", 2)
    assert story.where("x1") == "n1/71.2"


def test_a_refusal_for_now_is_asked_again_and_a_refusal_ends_what_waits() -> None:
    story = cluster()
    submit(story, 2)
    story.tell(ev.AllocationRefused("a1", "QOSMaxSubmitJobPerUserLimit", True))
    for _ in range(10):
        if len(asked(story.caused)) > 1:
            break
        story.tick()
    assert asked(story.caused) == [("a1", 1), ("a2", 1)]
    story.tell(ev.AllocationRefused("a2", "invalid partition specified: nope"))
    assert story.end("x1").why == "big: invalid partition specified: nope"
    assert story.end("x2").state == "FAILED"
    story.finished()


def test_one_that_ends_before_it_began_is_not_asked_for_at_once_again() -> None:
    story = cluster()
    submit(story, 1)
    story.tell(ev.AllocationQueued("a1", "71"), ev.AllocationEnded("a1", "cancelled", "by root"), after=1.0)
    story.tell(ev.Tick(), after=0.5)
    assert asked(story.caused) == [("a1", 1)]
    assert any("by root" in line for line in story.machine.explain("x1"))
    story.tell(ev.Tick(), after=10.0)
    assert asked(story.caused) == [("a1", 1), ("a2", 1)]


def test_nodes_of_no_use_are_avoided_and_in_the_end_nothing_is_asked_for() -> None:
    story = cluster(policy=Policy(useless_most=2))
    submit(story, 1)
    for a in ("a1", "a2"):
        story.tell(
            ev.AllocationQueued(a, f"7{a[1:]}"), ev.AllocationActive(a, f"7{a[1:]}", ("bad" + a,), 60.0)
        )
        story.tell(ev.LinkRefused(f"bad{a}/7{a[1:]}", "port 22: refused"), after=1.0)
        while a not in released(story.caused):
            story.tick()
        story.tell(ev.AllocationEnded(a, "cancelled"), after=1.0)
        while story.machine.next_deadline() is not None and len(asked(story.caused)) < 2:
            story.tick()
    assert [each.avoided for each in story.caused if isinstance(each, act.Allocate)] == [(), ("bada1",)]
    assert "port 22: refused" in story.end("x1").why


def test_nothing_new_may_start_gives_back_what_is_queued_or_idle() -> None:
    story = cluster()
    submit(story, 1)
    story.tell(ev.AllocationQueued("a1", "71"))
    caused = story.tell(ev.Draining(), after=1.0)
    assert released(caused) == ["a1"]
    story = cluster()
    submit(story, 1)
    active(story, nodes=1)
    story.tell(ev.Started("x1", 1), after=1.0)
    assert released(story.tell(ev.Draining(), after=1.0)) == []
    assert released(story.tell(ev.Ended("x1", 1, "exit", 0), after=1.0)) == ["a1"]


@pytest.mark.parametrize("state", ["REQUESTED", "QUEUED", "ACTIVE"])
def test_all_are_given_back_when_nobody_needs_them(state: str) -> None:
    story = cluster()
    submit(story, 1)
    if state == "QUEUED":
        story.tell(ev.AllocationQueued("a1", "71"))
    elif state == "ACTIVE":
        active(story)
    assert story.machine.allocations["a1"].state == state
    assert released(story.tell(ev.AllocationsUnwanted())) == ["a1"]
    assert released(story.tell(ev.AllocationsUnwanted(), after=1.0)) == []
    story.tell(ev.AllocationEnded("a1", "cancelled"))
    assert not story.machine.allocations


def test_a_client_that_takes_over_goes_on_where_the_other_was() -> None:
    story = cluster(most=3)
    submit(story, 40)
    story.tell(ev.Tick(), after=1.0)
    story.tell(ev.AllocationQueued("a2", "72"))
    active(story, "a3")
    story.tell(ev.AllocationsUnwanted())
    caused = story.tell(ev.Restarted())
    assert released(caused) == ["a1", "a2", "a3"]
    story = cluster(most=3)
    submit(story, 40)
    story.tell(ev.Tick(), after=1.0)
    caused = story.tell(ev.Restarted())
    assert [a for a, _nodes in asked(caused)] == sorted(story.machine.allocations)


def test_its_time_may_be_told_anew() -> None:
    story = cluster()
    submit(story, 1)
    active(story, left_s=100.0)
    story.tell(ev.Started("x1", 1))
    story.tell(ev.AllocationActive("a1", "71", ("n1", "n2"), 20.0), after=10.0)
    until(story, "DRAINING")
    assert story.now < 31


def test_no_other_is_asked_for_when_those_that_are_there_will_be_done_first() -> None:
    story = cluster(most=2)
    submit(story, 1)
    story.tell(ev.AllocationQueued("a1", "71"), after=30.0)
    active(story, left_s=600.0)
    story.tell(ev.Started("x1", 1), ev.Ended("x1", 1, "exit", 0), after=1.0)
    story.tell(*(ev.Submitted(f"y{n}") for n in range(20)), after=1.0)
    story.tick()
    assert asked(story.caused) == [("a1", 1)], (
        "20 of about a second on 4 slots, and the queue takes half a minute"
    )


def test_explain_says_what_the_batch_system_says() -> None:
    story = cluster()
    submit(story, 1)
    assert any("is being asked for" in line for line in story.machine.explain("x1"))
    story.tell(ev.AllocationQueued("a1", "71", "Resources"), after=120.0)
    story.tell(ev.Tick(), after=60.0)
    assert "big: allocation 71 of 1 node has been queued for 1m: Resources" in story.machine.explain("x1")


def test_how_long_one_is_queued_counts_also_while_nothing_happens() -> None:
    story = cluster()
    submit(story, 1)
    story.tell(ev.AllocationQueued("a1", "71", "Resources"))
    (line,) = story.machine.explain("x1", story.now + 600.0)
    assert line == "big: allocation 71 of 1 node has been queued for 10m: Resources"


def test_since_when_another_clients_allocation_is_queued_is_not_pretended() -> None:
    story = Story()
    story.tell(
        ev.ClusterAdded("big", nodes=2, most=0, cpus=2),
        ev.AllocationHeld("h1", "big", 2, "71"),
        ev.AllocationQueued("h1", "71", "Priority"),
    )
    submit(story, 1)
    assert "big: allocation 71 of 2 nodes is queued: Priority" in story.machine.explain("x1")


def test_one_that_begins_at_once_was_never_seen_in_the_queue() -> None:
    story = cluster()
    submit(story, 1)
    story.tell(ev.AllocationActive("a1", "71", ("n1",), 60.0))
    story.opened("n1/71", 2)
    assert story.where("x1") == "n1/71"


def test_one_that_is_put_back_while_it_is_being_left() -> None:
    story = cluster()
    submit(story, 1)
    active(story, nodes=1)
    story.tell(ev.Started("x1", 1))
    until(story, "DRAINING")
    story.tell(ev.AllocationQueued("a1", "71", "preempted"))
    assert story.machine.allocations["a1"].state == "QUEUED"
    story.tell(ev.Ended("x1", 1, "cancelled"))
    assert story.state("x1") == "WAITING"
    story.tell(ev.AllocationActive("a1", "71", ("n1",), 60.0), after=1.0)
    story.opened("n1/71.2", 2)
    assert story.where("x1") == "n1/71.2"


def test_what_has_not_started_when_others_are_cut_off_goes_on_or_comes_back_and_is_not_counted() -> None:
    story = cluster(cpus=1)
    submit(story, 3)
    active(story, nodes=1, cpus=1)
    story.tell(ev.Started("x1", 1))
    assert story.ahead("n1/71") != []
    until(story, "DRAINING")
    asked_back = {each.x for each in story.caused if isinstance(each, act.Recall)}
    cut_off = {each.x for each in story.caused if isinstance(each, act.Cancel)}
    assert cut_off == {"x1"}
    assert asked_back == {"x2"} | ({"x3"} if story.state("x3") == "PLACED" else set())
    for x in asked_back:
        story.tell(ev.Recalled(x, 1))
        assert (story.state(x), story.machine.items[x].cut_offs) == ("WAITING", 0)


def lent(*, left_s: float = 60.0) -> Story:
    """Two nodes that another client asked for; nothing else may be asked for."""
    story = Story()
    story.tell(
        ev.ClusterAdded("big", nodes=2, most=0, cpus=2),
        ev.AllocationHeld("h1", "big", 2, "71"),
        ev.AllocationActive("h1", "71", ("n1", "n2"), left_s),
    )
    for node in ("n1/71", "n2/71"):
        if story.machine.nodes[node].link == "CLOSED":
            story.tell(ev.LinksWanted())
        story.opened(node, 2)
    return story


def test_what_a_person_holds_is_asked_for_at_once_and_kept_when_idle() -> None:
    story = cluster()
    assert asked(story.tell(ev.AllocationHeld("held", "big", 2))) == [("held", 2)]
    story.tell(ev.AllocationActive("held", "7", ("n1", "n2"), 3600.0))
    assert released(story.tell(ev.Tick(), after=600.0)) == []
    assert story.machine.allocations["held"].state == "ACTIVE"
    assert released(story.tell(ev.AllocationsUnwanted())) == ["held"]


def test_what_a_person_wants_to_hold_is_asked_for_again_when_it_is_refused_for_now() -> None:
    story = cluster()
    story.tell(ev.AllocationHeld("held", "big", 2))
    story.tell(ev.AllocationRefused("held", "QOSMaxSubmitJobPerUserLimit", True))
    assert asked(story.caused) == [("held", 2)], "not at once"
    while not story.machine.allocations:
        story.tick()
    assert asked(story.caused) == [("held", 2), ("held", 2)]
    story.tell(ev.AllocationRefused("held", "invalid partition specified: nope"))
    story.tell(ev.Tick(), after=3600.0)
    assert asked(story.caused) == [("held", 2), ("held", 2)], "that is for good"


def test_nobody_asks_again_for_what_a_person_does_not_want_any_more() -> None:
    story = cluster()
    story.tell(ev.AllocationHeld("held", "big", 2))
    story.tell(ev.AllocationRefused("held", "QOSMaxSubmitJobPerUserLimit", True))
    story.tell(ev.AllocationsUnwanted())
    story.tell(ev.Tick(), after=3600.0)
    assert asked(story.caused) == [("held", 2)]


def test_what_is_lent_is_used_and_never_given_back() -> None:
    story = lent()
    assert asked(submit(story, 8)) == []
    assert {item.node.name for item in story.machine.items.values() if item.node} == {"n1/71", "n2/71"}
    for n in range(1, 9):
        story.tell(ev.CancelAsked(f"x{n}"))
    assert released(story.tell(ev.AllocationsUnwanted())) == []


def test_when_what_is_lent_is_over_whatever_waits_for_it_is_over() -> None:
    story = lent()
    submit(story, 8)
    story.tell(ev.Started("x1", 1), ev.AllocationEnded("h1", "cancelled"))
    for n in range(1, 9):
        story.tell(ev.Ended(f"x{n}", 1, "cancelled") if n == 1 else ev.Recalled(f"x{n}", 1))
    story.tell(ev.Tick(), after=1.0)
    assert story.machine.is_idle
    assert {story.end(f"x{n}").why for n in range(1, 9)} == {"big: allocation 71 is over (cancelled)"}


def test_what_takes_longer_than_what_is_lent_lasts_is_refused_at_once() -> None:
    story = lent(left_s=60.0)
    submit(story, 1, walltime_s=3600.0)
    (over,) = [each for each in story.caused if isinstance(each, act.Finish)]
    assert "allocations of big last 1m" in over.why


def test_whoever_goes_on_without_what_was_lent_asks_for_nodes_again() -> None:
    story = lent()
    story.tell(ev.AllocationEnded("h1", "timeout"))
    story.tell(ev.ClusterAdded("big", nodes=1, most=1, walltime_s=60.0, cpus=2))
    assert asked(submit(story, 1)) == [("a1", 1)]


def test_what_nobody_takes_away_is_left_by_placing_nothing_more_and_cuts_off_nothing() -> None:
    story = cluster(walltime_s=None)
    submit(story, 3, walltime_s=1000)
    story.tell(ev.AllocationActive("a1", "71", ("n1",), 30.0, is_soft=True))
    story.opened("n1/71", 2)
    assert story.ahead("n1/71") == ["x3"]
    story.tell(ev.Started("x1", 1), ev.Started("x2", 1))
    until(story, "DRAINING")
    assert story.now >= 30
    assert act.Recall("x3", 1, "n1/71") in story.caused
    story.tell(ev.Recalled("x3", 1))
    story.tell(ev.Ended("x1", 1, "exit", 0), after=60.0)
    assert story.state("x3") == "WAITING"
    assert not [each for each in story.caused if isinstance(each, act.Cancel)]
    story.tell(ev.Ended("x2", 1, "exit", 0), ev.Tick(), after=1.0)
    story.tick()
    assert released(story.caused) == ["a1"]


def test_one_that_is_refused_when_it_was_in_the_queue_already() -> None:
    story = cluster()
    submit(story, 1)
    story.tell(ev.AllocationQueued("a1", "71"), ev.AllocationRefused("a1", "start_allocation: ended with 3"))
    assert "start_allocation: ended with 3" in story.end("x1").why
    assert not story.machine.allocations


def test_one_that_loses_a_node_goes_on_with_the_others() -> None:
    story = cluster()
    submit(story, 4, walltime_s=30)
    active(story)
    on_second = [f"x{n}" for n in range(1, 5) if story.where(f"x{n}") == "n2/71"]
    story.tell(ev.AllocationActive("a1", "71", ("n1",), 55.0), ev.LinkLost("n2/71", "torn"), after=5.0)
    for _ in range(20):
        if "n2/71" not in story.machine.nodes:
            break
        story.tick()
    assert sorted(story.machine.nodes) == ["n1/71"]
    assert [story.state(x) for x in on_second] == ["WAITING", "WAITING"]
    assert story.machine.allocations["a1"].state == "ACTIVE"


def test_an_id_that_is_given_again_is_not_taken_for_the_same_allocation() -> None:
    story = cluster()
    submit(story, 1)
    active(story, nodes=1)
    story.tell(ev.Started("x1", 1))
    story.tell(ev.AllocationEnded("a1", "done"), after=1.0)
    assert list(story.machine.nodes) == ["n1/71"], "what is there is being ended"
    story.tell(*(ev.Submitted(f"y{n}") for n in range(2)), after=1.0)
    story.tell(ev.Tick(), after=1.0)
    story.tell(ev.AllocationActive("a2", "71", ("n1",), 60.0), after=1.0)
    assert sorted(story.machine.nodes) == ["n1/71", "n1/71.2"]
