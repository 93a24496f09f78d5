"""Links and nodes: opened, torn, refused, given up, taken over by another client; and what the node says it holds."""

from __future__ import annotations

import random

import pytest

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.machine import Orchestration
from liborch.core.policy import Policy
from liborch.sim.describe import describe
from tests.core.stories import Story


def test_links_may_be_wanted_before_there_is_work() -> None:
    story = Story()
    assert story.tell(ev.NodeAdded("n1", "lab"), ev.LinksWanted(), ev.LinksWanted()) == [act.Connect("n1", 1)]
    assert story.tell(ev.LinkRefused("n1", "another key")) == []
    (finished,) = story.tell(ev.Submitted("a"))
    assert isinstance(finished, act.Finish)
    assert (finished.x, finished.reason) == ("a", "refused")


def test_what_is_on_a_node_out_of_reach_is_done_elsewhere_after_a_while() -> None:
    story = Story(Policy(give_up_s=100.0, backoff_cap_s=10.0))
    story.node("n1")
    story.node("n2")
    story.tell(ev.Submitted("a", nodes=("n1",)), ev.Started("a", 1))
    story.tell(ev.Submitted("b", retries=1, retry_on=("lost",)), ev.Started("b", 1))
    assert (story.where("a"), story.where("b")) == ("n1", "n2")
    story.tell(ev.LinkLost("n2", "silence"))
    story.tell(ev.Tick(), ev.LinkLost("n2", "silence"), after=60.0)
    story.tell(ev.Tick(), after=39.0)
    assert story.state("b") == "RUNNING"
    caused = story.tell(ev.Tick(), after=1.0)
    assert act.Retry("b", 1, "lost") in caused
    assert story.where("b") == "n1"
    # It comes back, still at the first attempt: that must not go on, and the node is used again.
    caused = story.opened("n2", holding=(("b", 1, "running"),))
    assert act.Cancel("b", 1, "n2") in caused
    story.tell(ev.Submitted("c"))
    assert story.where("c") == "n2"


def test_the_only_node_is_waited_for_however_long() -> None:
    story = Story(Policy(give_up_s=100.0))
    story.node("n1")
    story.tell(ev.Submitted("a"), ev.Started("a", 1), ev.LinkLost("n1", "silence"))
    for _ in range(5):
        story.tell(ev.Tick(), ev.LinkLost("n1", "silence"), after=90.0)
    assert story.state("a") == "RUNNING"


def test_a_link_is_opened_when_there_is_something_for_it() -> None:
    story = Story()
    assert story.tell(ev.NodeAdded("n1", "lab"), ev.NodeAdded("n1", "lab")) == []
    assert story.link() == "CLOSED"
    assert story.tell(ev.Submitted("a")) == [act.Connect("n1", 1)]
    assert story.tell(ev.NodeAdded("n2", "lab")) == [act.Connect("n2", 1)]


def test_an_answer_nobody_waits_for_is_ignored() -> None:
    story = Story()
    story.tell(ev.NodeAdded("n1", "lab"))
    assert story.opened("n1") == []
    assert story.tell(ev.LinkLost("n1", "late"), ev.LinkRefused("n1", "late")) == []
    assert story.link() == "CLOSED"


def test_a_torn_link_is_tried_again_with_growing_waits_up_to_a_cap() -> None:
    story = Story(Policy(backoff_base_s=1.0, backoff_cap_s=30.0))
    story.node()
    story.tell(ev.Submitted("a"))
    ceilings = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    for number, ceiling in enumerate(ceilings, start=1):
        story.tell(ev.LinkLost("n1", "no answer"))
        deadline = story.machine.next_deadline()
        assert deadline is not None
        assert 0.0 <= deadline - story.now <= ceiling
        assert story.tell(ev.Tick(), after=(deadline - story.now) / 2) == []
        assert story.tick() == [act.Connect("n1", number + 1)]


def test_waits_fill_the_whole_range_and_the_same_seed_draws_the_same() -> None:
    def waits(seed: int) -> list[float]:
        story = Story(Policy(backoff_base_s=8.0, backoff_cap_s=8.0), seed)
        story.node()
        story.tell(ev.Submitted("a"))
        drawn = []
        for _ in range(200):
            story.tell(ev.LinkLost("n1", "no answer"))
            drawn.append((story.machine.next_deadline() or 0.0) - story.now)
            story.tick()
        return drawn

    drawn = waits(7)
    assert drawn == waits(7) != waits(8)
    # Full jitter: evenly between nothing and the ceiling.
    assert min(drawn) < 0.5
    assert max(drawn) > 7.5
    assert 3.0 < sum(drawn) / len(drawn) < 5.0


def test_who_takes_over_with_another_policy_rebuilds_what_was_decided_under_the_first() -> None:
    story = Story()
    told: list[tuple[ev.AnyEvent, float]] = []

    def tell(*events: ev.AnyEvent, after: float = 0.0) -> None:
        story.tell(*events, after=after)
        told.extend((event, story.now) for event in events)

    tell(ev.PolicyChosen(Policy(first_attempts=9, give_up_s=5.0)))
    for name in ("n1", "n2"):
        tell(ev.NodeAdded(name, "lab"), ev.LinksWanted())
    tell(ev.LinkOpened("n1", "s1", 1, 0, 0))
    tell(ev.Submitted("a", retries=1, retry_on=("lost",)))
    tell(ev.LinkLost("n1", "torn"), ev.LinkOpened("n2", "s2", 1, 0, 0))
    tell(ev.Tick(), after=6.0)
    assert story.machine.items["a"].attempt == 2
    rebuilt = Orchestration(Policy(first_attempts=1, give_up_s=None), random.Random(1))
    for event, now in told:
        rebuilt.handle(event, now)
    assert describe(rebuilt) == describe(story.machine)
    assert rebuilt.policy == story.machine.policy


def test_a_link_that_opens_begins_the_waits_anew() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"))
    for _ in range(6):
        story.tell(ev.LinkLost("n1", "no answer"))
        story.tick()
    story.opened("n1", holding=(("a", 1, "queued"),))
    story.tell(ev.LinkLost("n1", "torn"))
    assert (story.machine.next_deadline() or 0.0) - story.now <= 1.0


def test_a_node_never_reached_is_refused_after_some_tries_and_who_waits_is_told_why() -> None:
    story = Story(Policy(first_attempts=3))
    story.tell(ev.NodeAdded("n1", "lab"), ev.Submitted("a"))
    for _ in range(2):
        story.tell(ev.LinkLost("n1", "name does not resolve"))
        story.tick()
    story.tell(ev.LinkLost("n1", "name does not resolve"))
    assert story.link() == "REFUSED"
    assert story.end("a") == act.Finish(
        "a", "FAILED", "refused", None, 1, "no node can be used: n1: name does not resolve"
    )
    assert story.machine.next_deadline() is None


def test_a_node_that_was_reached_once_is_tried_for_ever() -> None:
    story = Story(Policy(first_attempts=2))
    story.node()
    story.tell(ev.Submitted("a"), ev.Started("a", 1))
    for _ in range(50):
        story.tell(ev.LinkLost("n1", "no answer"))
        story.tick()
    assert story.state("a") == "RUNNING"
    assert story.link() == "CONNECTING"


def test_a_new_client_does_not_give_up_a_node_where_something_runs() -> None:
    story = Story(Policy(first_attempts=2))
    story.node()
    story.tell(ev.Submitted("a"), ev.Started("a", 1))
    assert story.tell(ev.Restarted()) == [act.Connect("n1", 1)]
    for _ in range(50):
        story.tell(ev.LinkLost("n1", "no answer"))
        story.tick()
    assert story.opened("n1", holding=(("a", 1, "running"),)) == []
    assert story.state("a") == "RUNNING"


def test_a_refusal_ends_the_tries_at_once() -> None:
    story = Story()
    story.tell(ev.NodeAdded("n1", "lab"), ev.NodeAdded("n2", "lab"), ev.Submitted("a"))
    assert story.tell(ev.LinkRefused("n1", "host key changed")) == []
    assert story.opened("n2") == [act.Hand("a", 1, "n2")]
    assert story.link("n1") == "REFUSED"


@pytest.mark.parametrize("before", ["OPEN", "BROKEN"])
def test_a_link_may_be_refused_later(before: str) -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"), ev.Submitted("b", cpus=1, staged=True))
    if before == "BROKEN":
        story.tell(ev.LinkLost("n1", "torn"))
    assert story.link() == before
    story.tell(ev.LinkRefused("n1", "host key changed"))
    # What may have started is not guessed about; who was never sent there is told that nobody is left.
    assert story.state("a") == "PLACED"
    assert story.end("b").why == "no node can be used: n1: host key changed"
    assert story.machine.next_deadline() is None


def test_another_client_opens_every_link_anew() -> None:
    story = Story()
    story.node("n1")
    story.tell(ev.Submitted("a"), ev.Started("a", 1))
    story.tell(*(ev.NodeAdded(name, "lab") for name in ("n2", "n3", "n4")))
    story.tell(ev.LinkLost("n2", "torn"), ev.LinkRefused("n3", "host key changed"))
    assert [story.link(f"n{number}") for number in range(1, 5)] == ["OPEN", "BROKEN", "REFUSED", "CONNECTING"]
    caused = story.tell(ev.Restarted())
    assert caused == [act.Connect(f"n{number}", 1) for number in range(1, 5)]
    assert story.opened("n1", holding=(("a", 1, "running"),)) == []


def test_a_new_client_with_nothing_to_do_opens_nothing() -> None:
    story = Story()
    story.node()
    assert story.tell(ev.Restarted()) == []
    assert story.link() == "CLOSED"


@pytest.mark.parametrize(
    ("before", "held", "caused", "after"),
    [
        ("PLACED", None, [act.Hand("a", 1, "n1")], "PLACED"),
        ("PLACED", "queued", [], "PLACED"),
        ("PLACED", "running", [], "RUNNING"),
        ("PLACED", "paused", [act.Resume("a", 1, "n1")], "PAUSED"),
        ("RUNNING", "running", [], "RUNNING"),
        (
            "RUNNING",
            None,
            [act.Finish("a", "LOST", "lost", None, 1, "the node lost its records of it")],
            "LOST",
        ),
    ],
)
def test_what_the_node_holds_and_what_we_believe_are_brought_in_line(
    before: str, held: str | None, caused: list[act.AnyAction], after: str
) -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"))
    if before == "RUNNING":
        story.tell(ev.Started("a", 1))
    assert story.again("n1", (("a", 1, held),) if held else ()) == caused
    assert story.state("a") == after


def test_an_order_given_to_a_state_folder_that_is_gone_may_have_run_and_is_lost() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"))
    assert story.again("n1", state_id="s2") == [
        act.Finish("a", "LOST", "lost", None, 1, "the node lost its records of it")
    ]
    story.finished()


def test_what_the_node_holds_and_nobody_wants_is_cancelled() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a", retries=1, retry_on=("lost",)), ev.Started("a", 1), ev.Ended("a", 1, "lost"))
    held = (("gone", 1, "running"), ("a", 1, "queued"), ("a", 2, "queued"))
    assert story.again("n1", held) == [act.Cancel("gone", 1, "n1"), act.Cancel("a", 1, "n1")]


def test_a_slot_whose_grant_was_not_heard_is_granted_when_the_link_is_back() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("s", is_slot=True))
    assert story.again("n1", (("s", 1, "held"),)) == [act.Grant("s", "n1")]


def test_everything_on_a_lost_node_is_lost_but_what_was_being_cancelled() -> None:
    story = Story()
    story.node(cpus=4)
    story.tell(
        *(ev.Submitted(x) for x in "abcd"), ev.Started("a", 1), ev.Started("b", 1), ev.CancelAsked("b")
    )
    story.tell(ev.NodeLost("n1", "fire"))
    assert [story.state(x) for x in "abcd"] == ["LOST", "CANCELLED", "LOST", "LOST"]
    assert story.tell(ev.NodeLost("n1", "fire")) == []
    story.finished()


def test_a_node_may_be_lost_before_it_was_known() -> None:
    story = Story()
    story.tell(ev.NodeAdded("n1", "lab"), ev.Submitted("a"), ev.NodeLost("n1", "fire"))
    assert story.end("a").why == "no node can be used: n1: fire"


def test_a_lost_node_that_answers_after_all_is_told_to_end_what_is_recorded_as_lost() -> None:
    story = Story()
    story.node("n1")
    story.tell(ev.NodeAdded("n2", "lab"), ev.Submitted("a", nodes=("n1",)), ev.Started("a", 1))
    story.tell(ev.LinkLost("n1", "torn"))
    story.tick()
    story.tell(ev.NodeLost("n1", "fire"))
    assert story.opened("n1", holding=(("a", 1, "running"),)) == [act.Cancel("a", 1, "n1")]
    assert story.tell(ev.Ended("a", 1, "cancelled")) == []
    # And nothing is given to it.
    story.opened("n2", cpus=1)
    story.tell(ev.Submitted("b", cpus=1))
    assert story.where("b") == "n2"


def test_nothing_is_kept_for_the_head_of_the_queue_on_a_node_that_is_lost() -> None:
    story = Story()
    story.node("n1", cpus=2)
    story.tell(ev.Submitted("a"), ev.Started("a", 1))
    story.tell(ev.Submitted("big", cpus=2), ev.Submitted("other", cpus=2, batch="b"))
    story.tell(ev.NodeAdded("n2", "lab"))
    story.opened("n2", cpus=1)
    story.tell(ev.NodeLost("n1", "fire"))
    assert "n1" not in {action.node for action in story.caused[-2:] if isinstance(action, act.Hand)}
    assert story.machine._reserved is None


def test_a_node_that_comes_back_smaller_or_larger_is_counted_as_it_is() -> None:
    story = Story()
    story.node(cpus=1)
    story.tell(ev.Submitted("a"), ev.Started("a", 1), ev.Submitted("b"), ev.Submitted("c", cpus=2))
    assert story.state("c") == "FAILED"
    story.tell(ev.LinkLost("n1", "torn"))
    story.tick()
    story.opened("n1", cpus=4, holding=(("a", 1, "running"), ("b", 1, "queued")))
    assert story.machine.nodes["n1"].free_cpus == 3 - (1 if story.machine.items["b"].has_room else 0)


def test_a_node_without_room_gives_back_what_has_not_started_and_gets_nothing_more() -> None:
    """So a node is closed that is no longer chosen."""
    story = Story()
    story.node("n1", cpus=1)
    story.tell(ev.Submitted("a"), ev.Started("a", 1), ev.Submitted("b"))
    assert (story.where("b"), story.state("b")) == ("n1", "PLACED")
    story.tell(ev.Restarted())
    story.node("n2", cpus=1)
    caused = story.opened("n1", cpus=0, holding=(("a", 1, "running"), ("b", 1, "queued")))
    assert act.Recall("b", 1, "n1") in caused
    assert not [each for each in caused if isinstance(each, act.Cancel)]
    story.tell(ev.Recalled("b", 1), ev.Submitted("c"))
    assert (story.where("b"), story.where("c")) == ("n2", "n2")
    story.tell(ev.Ended("a", 1, "exit", 0), ev.Submitted("d"))
    assert (story.state("a"), story.state("d")) == ("SUCCEEDED", "WAITING")


def test_the_same_events_and_seed_give_the_same_actions() -> None:
    def play(seed: int) -> list[act.AnyAction]:
        machine = Orchestration(None, random.Random(seed))
        chance = random.Random(5)
        caused: list[act.AnyAction] = []
        machine.handle(ev.NodeAdded("n1", "lab"), 0.0)
        for number in range(50):
            caused += machine.handle(ev.Submitted(f"e{number}", cpus=chance.choice((1, 2))), float(number))
            caused += machine.handle(ev.LinkOpened("n1", "s1", 4, 0, 0), float(number))
            caused += machine.handle(ev.LinkLost("n1", "torn"), number + 0.5)
            caused += machine.handle(ev.Tick(), machine.next_deadline() or 0.0)
        return caused

    assert play(1) == play(1)


def test_a_keeper_that_was_replaced_gets_the_orders_that_were_on_their_way_to_the_old_one() -> None:
    story = Story()
    story.node(cpus=2)
    story.tell(ev.Submitted("a"), ev.Submitted("b"), ev.Submitted("f", staged=True))
    story.tell(ev.Started("a", 1))
    # Over the same link, the node tells what it holds: a runs, b never arrived.
    told = story.opened("n1", cpus=2, holding=(("a", 1, "running"),))
    assert told == [act.Hand("b", 1, "n1")]
    assert story.link() == "OPEN"
