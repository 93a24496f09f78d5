"""The life of an execution: each edge of its table, in words."""

from __future__ import annotations

import pytest

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.errors import IllegalTransition
from tests.core.stories import Story, run


def test_an_execution_is_handed_over_runs_and_succeeds() -> None:
    story = Story()
    assert story.tell(ev.NodeAdded("n1", "lab")) == []
    assert story.tell(ev.Submitted("a")) == [act.Connect("n1", 1)]
    assert story.opened("n1") == [act.Hand("a", 1, "n1")]
    assert story.tell(ev.Started("a", 1), after=1.0) == []
    assert story.state("a") == "RUNNING"
    assert story.tell(ev.Ended("a", 1, "exit", 0), after=1.0) == [act.Finish("a", "SUCCEEDED", "exit", 0, 1)]
    story.finished()


@pytest.mark.parametrize(
    ("reason", "code", "state"),
    [
        ("exit", 0, "SUCCEEDED"),
        ("exit", 3, "FAILED"),
        ("signal", None, "FAILED"),
        ("oom", None, "FAILED"),
        ("walltime", None, "FAILED"),
        ("node", None, "FAILED"),
        ("cancelled", None, "CANCELLED"),
        ("lost", None, "LOST"),
    ],
)
@pytest.mark.parametrize("before", ["PLACED", "RUNNING", "PAUSED"])
def test_the_agents_last_word_is_the_verdict_whatever_was_heard_before(
    before: str, reason: str, code: int | None, state: str
) -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"))
    if before != "PLACED":
        story.tell(ev.Started("a", 1))
    if before == "PAUSED":
        story.tell(ev.Paused("a", 1))
    assert story.state("a") == before
    assert story.tell(ev.Ended("a", 1, reason, code)) == [act.Finish("a", state, reason, code, 1)]
    story.finished()


@pytest.mark.parametrize("before", ["PLACED", "RUNNING", "PAUSED"])
@pytest.mark.parametrize(
    ("reason", "code", "state"),
    [("exit", 0, "SUCCEEDED"), ("oom", None, "FAILED"), ("cancelled", None, "CANCELLED")],
)
def test_results_are_collected_after_the_end_and_the_room_is_free_meanwhile(
    before: str, reason: str, code: int | None, state: str
) -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a", collected=True), ev.Submitted("b"))
    if before != "PLACED":
        story.tell(ev.Started("a", 1))
    if before == "PAUSED":
        story.tell(ev.Paused("a", 1))
    assert story.tell(ev.Ended("a", 1, reason, code)) == [act.Collect("a", "n1")]
    assert story.state("a") == "COLLECTING"
    assert story.tell(*run("b")) == [act.Finish("b", "SUCCEEDED", "exit", 0, 1)]
    assert story.tell(ev.Collected("a")) == [act.Finish("a", state, reason, code, 1)]
    story.finished()


def test_output_left_on_the_node_is_collected_though_nobody_asked_for_results() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"))
    assert story.tell(ev.Ended("a", 1, "exit", 0, left=True)) == [act.Collect("a", "n1")]
    assert story.tell(ev.Collected("a", "the file is gone")) == [
        act.Finish("a", "SUCCEEDED", "exit", 0, 1, "the file is gone")
    ]
    story.finished()


def test_collecting_is_asked_for_again_when_the_link_was_torn() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a", collected=True), ev.Started("a", 1), ev.Ended("a", 1, "exit", 0))
    assert story.again("n1") == [act.Collect("a", "n1")]


def test_a_verdict_stands_when_its_node_is_lost_before_the_results_are_here() -> None:
    story = Story()
    story.node()
    story.tell(
        ev.Submitted("a", collected=True, retries=1, retry_on=("lost", "exit")), ev.Ended("a", 1, "exit", 0)
    )
    story.tell(ev.NodeLost("n1", "fire"))
    assert story.end("a") == act.Finish(
        "a", "SUCCEEDED", "exit", 0, 1, "its results are lost with the node: fire"
    )


def test_files_go_to_the_node_before_the_order() -> None:
    story = Story()
    story.node()
    assert story.tell(ev.Submitted("a", staged=True)) == [act.Stage("a", "n1")]
    assert story.tell(ev.Staged("a", "n2")) == []
    assert story.tell(ev.Staged("a", "n1")) == [act.Hand("a", 1, "n1")]
    assert story.tell(ev.Staged("a", "n1")) == []


def test_files_that_cannot_be_brought_end_it() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a", staged=True))
    assert story.tell(ev.StageFailed("a", "disk full", "n1")) == [
        act.Finish("a", "FAILED", "staging", None, 1, "disk full")
    ]
    assert story.tell(ev.StageFailed("a", "disk full", "n1")) == []
    story.finished()


def test_a_late_failure_to_stage_on_a_lost_node_does_not_end_it_elsewhere() -> None:
    story = Story()
    story.node("n1")
    story.tell(ev.Submitted("a", staged=True))
    story.tell(ev.NodeAdded("n2", "lab"))
    story.opened("n2")
    assert story.tell(ev.NodeLost("n1", "fire")) == [act.Stage("a", "n2")]
    assert story.tell(ev.StageFailed("a", "no answer", "n1")) == []
    assert story.tell(ev.Staged("a", "n1")) == []
    assert story.tell(ev.Staged("a", "n2")) == [act.Hand("a", 1, "n2")]


def test_staging_goes_on_after_a_torn_link_and_the_order_follows_when_it_can() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a", staged=True))
    assert story.again() == [act.Stage("a", "n1")]
    story.tell(ev.LinkLost("n1", "torn"))
    assert story.tell(ev.Staged("a", "n1")) == []
    story.tick()
    # The state folder is new, but it never had this order: it is handed over, not lost.
    assert story.opened("n1", state_id="s2") == [act.Hand("a", 1, "n1")]


def test_an_order_that_was_never_given_moves_on_when_its_node_is_lost() -> None:
    story = Story()
    story.node("n1")
    story.tell(ev.Submitted("a", staged=True), ev.LinkLost("n1", "torn"), ev.Staged("a", "n1"))
    assert story.state("a") == "PLACED"
    story.tell(ev.NodeAdded("n2", "lab"))
    story.opened("n2")
    assert story.tell(ev.NodeLost("n1", "fire")) == [act.Stage("a", "n2")]


def test_asked_back_its_files_are_taken_away_from_the_node_it_leaves() -> None:
    story = Story()
    story.node("n1")
    story.tell(ev.Submitted("a"), ev.Started("a", 1))
    story.tell(ev.Submitted("b", staged=True), ev.Staged("b", "n1"))
    assert story.tell(ev.Draining()) == [act.Recall("b", 1, "n1")]
    assert story.tell(ev.Recalled("b", 1)) == [act.Unstage("b", "n1")]
    assert story.state("b") == "WAITING"


def test_cancelled_while_waiting_it_is_over_at_once() -> None:
    story = Story()
    story.tell(ev.Submitted("a"))
    assert story.tell(ev.CancelAsked("a")) == [
        act.Finish("a", "CANCELLED", "cancelled", None, 1, "before it was placed")
    ]
    assert story.tell(ev.CancelAsked("a")) == []
    story.finished()


def test_cancelled_while_staging_its_files_are_taken_away() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a", staged=True))
    assert story.tell(ev.CancelAsked("a")) == [
        act.Unstage("a", "n1"),
        act.Finish("a", "CANCELLED", "cancelled", None, 1, "before it started"),
    ]
    assert story.tell(ev.Staged("a", "n1")) == []
    story.finished()


@pytest.mark.parametrize("started", [False, True])
def test_cancelled_at_its_node_it_ends_when_the_node_says_so(started: bool) -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"))
    if started:
        story.tell(ev.Started("a", 1))
    assert story.tell(ev.CancelAsked("a")) == [act.Cancel("a", 1, "n1")]
    assert story.tell(ev.CancelAsked("a")) == []
    assert not story.machine.is_idle
    story.tell(ev.Ended("a", 1, "cancelled"))
    assert story.state("a") == "CANCELLED"
    story.finished()


def test_it_may_succeed_before_the_cancel_reaches_it() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"), ev.Started("a", 1), ev.CancelAsked("a"), ev.Ended("a", 1, "exit", 0))
    assert story.state("a") == "SUCCEEDED"


def test_cancelled_out_of_reach_it_is_cancelled_when_reached() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"), ev.Started("a", 1), ev.LinkLost("n1", "torn"))
    assert story.tell(ev.CancelAsked("a")) == []
    assert story.state("a") == "RUNNING"
    story.tick()
    assert story.opened("n1", holding=(("a", 1, "running"),)) == [act.Cancel("a", 1, "n1")]


def test_cancelled_after_an_order_that_did_not_arrive_it_is_not_handed_over_again() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"), ev.CancelAsked("a"))
    # The agent never heard of it: a cancel makes sure that it never starts, an order might start it.
    assert story.again("n1") == [act.Cancel("a", 1, "n1")]


def test_paused_and_resumed_by_the_node() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"), ev.Started("a", 1))
    assert story.tell(ev.PauseAsked("a")) == [act.Pause("a", 1, "n1")]
    story.tell(ev.Paused("a", 1))
    assert story.state("a") == "PAUSED"
    assert story.tell(ev.ResumeAsked("a")) == [act.Resume("a", 1, "n1")]
    story.tell(ev.Continued("a", 1))
    assert story.state("a") == "RUNNING"


def test_a_wish_to_pause_is_kept_until_it_starts_and_over_a_torn_link() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"))
    assert story.tell(ev.PauseAsked("a")) == []
    assert story.tell(ev.Started("a", 1)) == [act.Pause("a", 1, "n1")]
    assert story.again("n1", (("a", 1, "running"),)) == [act.Pause("a", 1, "n1")]
    assert story.again("n1", (("a", 1, "paused"),)) == []
    assert story.state("a") == "PAUSED"
    story.tell(ev.LinkLost("n1", "torn"), ev.ResumeAsked("a"))
    story.tick()
    assert story.opened("n1", holding=(("a", 1, "paused"),)) == [act.Resume("a", 1, "n1")]
    assert story.again("n1", (("a", 1, "running"),)) == []
    assert story.state("a") == "RUNNING"


def test_a_slot_cannot_be_paused() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("s", is_slot=True), ev.Started("s", 1))
    assert story.tell(ev.PauseAsked("s")) == []


def test_the_agent_may_say_that_it_is_paused_before_it_says_that_it_started() -> None:
    story = Story()
    story.node(cpus=1)
    story.tell(ev.Submitted("a"), ev.Paused("a", 1))
    assert story.state("a") == "PAUSED"
    story.tell(ev.Ended("a", 1, "exit", 0))
    story.finished()


def test_another_attempt_follows_as_often_as_the_policy_says() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a", retries=2, retry_on=("exit:3", "lost")), ev.Started("a", 1))
    assert story.tell(ev.Ended("a", 1, "exit", 3)) == [act.Retry("a", 1, "exit"), act.Hand("a", 2, "n1")]
    assert story.tell(ev.Ended("a", 1, "exit", 3)) == []
    story.tell(ev.Started("a", 2), ev.Paused("a", 2))
    assert story.tell(ev.Ended("a", 2, "lost")) == [act.Retry("a", 2, "lost"), act.Hand("a", 3, "n1")]
    assert story.tell(ev.Ended("a", 3, "exit", 3)) == [act.Finish("a", "FAILED", "exit", 3, 3)]
    story.finished()


@pytest.mark.parametrize(
    ("retry_on", "reason", "code", "again"),
    [
        (("exit:3",), "exit", 3, True),
        (("exit:3",), "exit", 4, False),
        (("exit",), "exit", 4, True),
        (("exit", "exit:0"), "exit", 0, False),
        (("oom",), "oom", None, True),
        (("oom",), "signal", None, False),
        ((), "lost", None, False),
        (("node",), "node", None, True),
        (("cancelled", "exit"), "cancelled", None, True),
    ],
)
def test_only_the_reasons_asked_for_bring_another_attempt(
    retry_on: tuple[str, ...], reason: str, code: int | None, again: bool
) -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a", retries=1, retry_on=retry_on), ev.Ended("a", 1, reason, code))
    assert ("a" in story.machine.items) is again


def test_what_was_cancelled_is_not_tried_again() -> None:
    story = Story()
    story.node()
    story.tell(
        ev.Submitted("a", retries=5, retry_on=("cancelled", "lost")), ev.Started("a", 1), ev.CancelAsked("a")
    )
    story.tell(ev.Ended("a", 1, "lost"))
    assert story.state("a") == "LOST"


def test_results_of_an_attempt_that_is_followed_by_another_are_not_collected() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a", collected=True, retries=1, retry_on=("exit:1",)))
    assert story.tell(ev.Ended("a", 1, "exit", 1)) == [act.Retry("a", 1, "exit"), act.Hand("a", 2, "n1")]
    assert story.tell(ev.Ended("a", 2, "exit", 1)) == [act.Collect("a", "n1")]


def test_the_next_attempt_goes_to_another_node_when_the_first_is_lost() -> None:
    story = Story()
    story.node("n1")
    story.tell(
        ev.Submitted("a", retries=1, retry_on=("lost",)), ev.Started("a", 1), ev.NodeAdded("n2", "lab")
    )
    story.opened("n2")
    assert story.tell(ev.NodeLost("n1", "fire")) == [act.Retry("a", 1, "lost"), act.Hand("a", 2, "n2")]


def test_a_node_that_refuses_an_order_ends_it() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"))
    assert story.tell(ev.Refused("a", 1, "asks for too much")) == [
        act.Finish("a", "FAILED", "refused", None, 1, "asks for too much")
    ]
    story.finished()


def test_what_nodes_say_late_or_twice_changes_nothing() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"), *run("a"))
    before = list(story.caused)
    for event in (
        *run("a"),
        ev.Paused("a", 1),
        ev.Continued("a", 1),
        ev.Recalled("a", 1),
        ev.Refused("a", 1, "x"),
        ev.Collected("a"),
        ev.Staged("a", "n1"),
        ev.SlotAbandoned("a"),
        ev.PauseAsked("a"),
        ev.ResumeAsked("a"),
    ):
        assert story.tell(event) == []
    assert story.caused == before
    story.tell(ev.Submitted("b"), ev.Started("b", 1))
    assert story.tell(ev.Started("b", 1), ev.Submitted("b"), ev.Recalled("b", 1), ev.Continued("b", 1)) == []


def test_an_edge_that_is_not_there_tells_the_whole_story() -> None:
    story = Story()
    story.node()
    story.tell(ev.Submitted("a"), ev.Started("a", 1), after=2.0)
    with pytest.raises(IllegalTransition, match="no edge from RUNNING on staged") as caught:
        story.machine._move(story.machine.items["a"], "staged")
    assert caught.value.story == ("2.000 s: place -> PLACED", "2.000 s: started -> RUNNING")


def test_draining_asks_back_what_has_not_started_and_starts_nothing_until_another_client_goes_on() -> None:
    story = Story()
    story.node("n1", cpus=1)
    story.tell(ev.Submitted("a"), ev.Submitted("b"), ev.Submitted("s", staged=True, nodes=("n1",)))
    story.tell(ev.Started("a", 1))
    assert story.tell(ev.Draining()) == [act.Recall("b", 1, "n1")]
    assert story.tell(ev.Recalled("b", 1), ev.Submitted("c")) == []
    assert not story.machine.is_drained
    story.tell(ev.Staged("s", "n1"), ev.Ended("a", 1, "exit", 0))
    assert story.machine.is_drained
    assert {story.state(x) for x in "bcs"} == {"WAITING"}
    story.tell(ev.Restarted())
    assert story.opened("n1") == [act.Hand("b", 1, "n1"), act.Stage("s", "n1")]
