"""Slot requests, and executions inside the slots that were granted."""

from __future__ import annotations

from liborch.core import actions as act
from liborch.core import events as ev
from tests.core.stories import Story


def granted(cpus: int = 1) -> Story:
    """A story in which slot `s` is held."""
    story = Story()
    story.node(cpus=cpus)
    story.tell(ev.Submitted("s", is_slot=True, cpus=cpus))
    assert story.tell(ev.Started("s", 1)) == [act.Grant("s", "n1")]
    return story


def test_a_slot_is_granted_held_and_given_back() -> None:
    story = granted()
    assert story.tell(ev.SlotAbandoned("s")) == [act.Cancel("s", 1, "n1")]
    story.tell(ev.Ended("s", 1, "exit", 0))
    story.finished()


def test_a_slot_given_up_in_the_queue_is_over_at_once() -> None:
    story = granted()
    story.tell(ev.LinkLost("n1", "torn"), ev.Submitted("t", is_slot=True))
    story.tell(ev.SlotAbandoned("t"))
    assert story.end("t").state == "CANCELLED"


def test_a_slot_comes_back_when_cancelled_after_grant() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("s", is_slot=True))
    # The grant and the cancel land in the same moment.
    assert story.tell(ev.Started("s", 1), ev.SlotAbandoned("s")) == [
        act.Grant("s", "n1"),
        act.Cancel("s", 1, "n1"),
    ]
    story.tell(ev.Ended("s", 1, "exit", 0))
    story.finished()


def test_a_slot_given_up_before_the_grant_is_heard_is_never_granted() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("s", is_slot=True))
    assert story.tell(ev.SlotAbandoned("s"), ev.Started("s", 1)) == [act.Cancel("s", 1, "n1")]
    story.tell(ev.Ended("s", 1, "exit", 0))
    story.finished()


def test_executions_in_a_slot_take_no_room_of_their_own() -> None:
    story = granted(cpus=2)
    assert story.tell(ev.Submitted("a", cpus=2, lease="s"), ev.Submitted("b", cpus=2, lease="s")) == [
        act.Hand("a", 1, "n1"),
        act.Hand("b", 1, "n1"),
    ]
    story.tell(ev.Started("a", 1), ev.Ended("a", 1, "exit", 0), ev.Ended("b", 1, "exit", 1))
    assert (story.state("a"), story.state("b"), story.state("s")) == ("SUCCEEDED", "FAILED", "RUNNING")


def test_giving_a_slot_back_ends_what_runs_in_it() -> None:
    story = granted()
    story.tell(ev.Submitted("a", lease="s"), ev.Started("a", 1), ev.Submitted("b", lease="s", staged=True))
    assert story.tell(ev.SlotAbandoned("s")) == [
        act.Cancel("a", 1, "n1"),
        act.Unstage("b", "n1"),
        act.Finish("b", "CANCELLED", "cancelled", None, 1, "before it started"),
        act.Cancel("s", 1, "n1"),
    ]
    story.tell(ev.Ended("a", 1, "cancelled"), ev.Ended("s", 1, "exit", 0))
    story.finished()


def test_nothing_starts_in_a_slot_that_is_not_held() -> None:
    story = granted()
    story.tell(ev.SlotAbandoned("s"), ev.Submitted("a", lease="s"), ev.Submitted("b", lease="never"))
    assert story.end("a").why == story.end("b").why == "its slot is not held any more"
    story.tell(ev.Submitted("t", is_slot=True), ev.Submitted("c", lease="t"))
    assert story.end("c").reason == "refused"


def test_an_execution_in_a_slot_is_not_tried_again_elsewhere() -> None:
    story = granted()
    story.tell(ev.Submitted("a", lease="s", retries=3, retry_on=("lost",)), ev.Ended("a", 1, "lost"))
    assert story.state("a") == "LOST"


def test_an_order_into_a_slot_out_of_reach_follows_when_it_is_back() -> None:
    story = granted()
    story.tell(ev.LinkLost("n1", "torn"))
    assert story.tell(ev.Submitted("a", lease="s")) == []
    story.tick()
    assert story.opened("n1", holding=(("s", 1, "held"),)) == [act.Hand("a", 1, "n1")]


def test_a_slot_and_what_was_meant_for_it_end_with_the_node() -> None:
    story = granted()
    story.tell(
        ev.Submitted("a", lease="s", staged=True), ev.Submitted("b", lease="s"), ev.NodeAdded("n2", "lab")
    )
    story.opened("n2")
    story.tell(ev.NodeLost("n1", "fire"))
    assert [story.end(x).reason for x in ("s", "a", "b")] == ["lost", "refused", "lost"]
    story.finished()


def test_a_slot_request_waits_beside_a_long_batch_not_after_it() -> None:
    story = Story()
    story.node(cpus=1)
    story.tell(*(ev.Submitted(f"e{number}", batch="b") for number in range(100)))
    story.tell(ev.Submitted("s", is_slot=True))
    for number in range(10):
        story.tell(ev.Ended(f"e{number}", 1, "exit", 0), after=1.0)
        if story.state("s") == "PLACED":
            break
    assert story.state("s") == "PLACED"
    assert story.machine.queue.waiting > 80
