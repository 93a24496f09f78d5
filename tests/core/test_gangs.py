"""Executions on several nodes at once."""

from __future__ import annotations

from liborch.core import actions as act
from liborch.core import events as ev
from tests.core.test_placement import nodes


def gang(x: str = "g", count: int = 2, **more: object) -> ev.Submitted:
    """A request for several nodes."""
    return ev.Submitted(x, node_count=count, **more)  # type: ignore[arg-type]


def test_it_takes_room_on_all_its_nodes_or_none() -> None:
    story = nodes((2, 0, 0), (2, 0, 0))
    story.tell(ev.Submitted("a", cpus=2))
    story.tell(gang(cpus=2))
    assert story.state("g") == "WAITING"
    assert [node.free_cpus for node in story.machine.nodes.values()] == [0, 2]
    caused = story.tell(ev.Ended("a", 1, "exit", 0))
    assert [(each.x, each.node) for each in caused if isinstance(each, act.Hand)] == [
        ("g", "n1"),
        ("g-r1", "n2"),
    ]


def test_it_is_over_when_all_its_ranks_are() -> None:
    story = nodes((1, 0, 0), (1, 0, 0), (1, 0, 0))
    story.tell(gang(count=3))
    story.tell(ev.Started("g", 1), ev.Started("g-r1", 1), ev.Ended("g", 1, "exit", 0))
    assert story.state("g") == "COLLECTING"
    # What one gave back, others may have.
    story.tell(ev.Submitted("a"))
    assert story.where("a") == "n1"
    story.tell(ev.Ended("g-r1", 1, "exit", 0), ev.Ended("g-r2", 1, "exit", 0))
    assert story.end("g").state == "SUCCEEDED"
    story.tell(ev.Ended("a", 1, "exit", 0))
    story.finished()


def test_the_first_rank_that_fails_ends_the_others_and_is_the_verdict() -> None:
    story = nodes((1, 0, 0), (1, 0, 0), (1, 0, 0))
    story.tell(gang(count=3))
    story.tell(ev.Started("g", 1), ev.Started("g-r1", 1), ev.Started("g-r2", 1))
    story.tell(ev.Ended("g-r1", 1, "exit", 0))
    caused = story.tell(ev.Ended("g-r2", 1, "exit", 3))
    assert caused == [act.Cancel("g", 1, "n1")]
    story.tell(ev.Ended("g", 1, "cancelled", None))
    end = story.end("g")
    assert (end.state, end.reason, end.code, end.why) == ("FAILED", "exit", 3, "rank 2 on n3 ended first")
    story.finished()


def test_results_are_brought_from_all_nodes_when_all_have_ended() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(gang(staged=True, collected=True))
    assert story.state("g") == "STAGING"
    story.tell(ev.Staged("g", "n1"), ev.Staged("g-r1", "n2"))
    assert story.tell(ev.Ended("g", 1, "exit", 0)) == []
    caused = story.tell(ev.Ended("g-r1", 1, "exit", 0))
    assert caused == [act.Collect("g", "n1"), act.Collect("g-r1", "n2")]
    story.tell(ev.Collected("g"))
    assert act.Collect("g-r1", "n2") in story.again("n2")
    assert act.Collect("g", "n1") not in story.again("n1")
    story.tell(ev.Collected("g-r1"))
    assert story.end("g").state == "SUCCEEDED"
    story.finished()


def test_a_link_that_comes_back_brings_no_results_before_all_have_ended() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(gang(collected=True), ev.Started("g-r1", 1), ev.Ended("g", 1, "exit", 0))
    assert act.Collect("g", "n1") not in story.again("n1")
    caused = story.tell(ev.Ended("g-r1", 1, "exit", 0))
    assert caused == [act.Collect("g", "n1"), act.Collect("g-r1", "n2")]


def test_all_of_it_is_tried_again() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(gang(retries=1, retry_on=("exit:75",), collected=True))
    story.tell(ev.Ended("g", 1, "exit", 0), ev.Started("g-r1", 1))
    caused = story.tell(ev.Ended("g-r1", 1, "exit", 75))
    assert caused == [act.Retry("g", 1, "exit"), act.Hand("g", 2, "n1"), act.Hand("g-r1", 2, "n2")]
    story.tell(ev.Ended("g-r1", 2, "exit", 75), ev.Ended("g", 2, "cancelled", None))
    story.tell(ev.Collected("g"), ev.Collected("g-r1"))
    assert (story.end("g").state, story.end("g").attempts) == ("FAILED", 2)
    story.finished()


def test_files_brought_for_an_earlier_attempt_are_none_for_the_next() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(gang(staged=True, retries=1, retry_on=("exit:1",)), ev.Staged("g-r1", "n2", 1))
    story.tell(ev.Ended("g-r1", 1, "exit", 1))
    # On its way when the first attempt was given up; what it speaks of is being removed.
    assert story.tell(ev.Staged("g", "n1", 1), ev.StageFailed("g", "broken off", "n1", 1)) == []
    assert story.tell(ev.Staged("g", "n1", 2)) == [act.Hand("g", 2, "n1")]


def test_a_person_ends_it_on_all_nodes() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(gang(retries=5, retry_on=("cancelled", "exit:1")))
    caused = story.tell(ev.CancelAsked("g"))
    assert caused == [act.Cancel("g", 1, "n1"), act.Cancel("g-r1", 1, "n2")]
    assert story.tell(ev.CancelAsked("g")) == []
    story.tell(ev.Ended("g", 1, "exit", 1), ev.Ended("g-r1", 1, "cancelled", None))
    assert (story.end("g").state, story.end("g").code) == ("FAILED", 1)
    story.finished()


def test_it_is_ended_while_its_files_are_sent() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(gang(staged=True))
    caused = story.tell(ev.CancelAsked("g"))
    assert act.Unstage("g", "n1") in caused
    assert act.Unstage("g-r1", "n2") in caused
    assert story.end("g").state == "CANCELLED"
    story.finished()


def test_files_that_cannot_be_brought_to_one_node_end_it() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(gang(staged=True))
    story.tell(ev.StageFailed("g-r1", "no room", "n2"))
    end = story.end("g")
    assert (end.state, end.reason, end.why) == ("FAILED", "staging", "rank 1 on n2 ended first: no room")
    story.finished()


def test_it_is_lost_with_a_node_and_tried_on_others() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(gang(retries=1, retry_on=("lost",)), ev.Started("g", 1), ev.Started("g-r1", 1))
    caused = story.tell(ev.NodeLost("n2", "it burned"))
    assert caused == [act.Cancel("g", 1, "n1")]
    story.node("n3", 1)
    story.tell(ev.Ended("g", 1, "cancelled", None))
    assert story.machine.items["g"].attempt == 2
    story.tell(ev.NodeLost("n3", "it burned as well"))
    story.tell(ev.Ended("g", 2, "cancelled", None))
    assert story.end("g").state == "LOST"
    story.finished()


def test_what_no_nodes_are_left_for_is_refused() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(gang(retries=1, retry_on=("lost",)), ev.Started("g", 1))
    story.tell(ev.NodeLost("n2", "it burned"), ev.Ended("g", 1, "cancelled", None))
    assert story.end("g").why == "asks for 2 nodes at once with 1 core each; there is 1: n1"
    story.finished()


def test_what_could_not_be_told_to_a_node_costs_no_attempt() -> None:
    story = nodes((1, 0, 0), (1, 0, 0), (1, 0, 0))
    story.tell(gang(staged=True))
    story.tell(ev.Staged("g", "n1"), ev.Started("g", 1))
    story.tell(ev.LinkRefused("n2", "host key changed"))
    assert story.state("g") == "RUNNING"
    caused = story.tell(ev.Ended("g", 1, "cancelled", None))
    assert act.Stage("g-r1", "n3") in caused
    story.tell(ev.Staged("g", "n1"), ev.Staged("g-r1", "n3"))
    story.tell(ev.Ended("g", 2, "exit", 0), ev.Ended("g-r1", 2, "exit", 0))
    assert story.end("g").state == "SUCCEEDED"
    story.finished()


def test_more_nodes_than_there_are_is_refused_and_says_which_would_do() -> None:
    story = nodes((2, 0, 0), (1, 0, 0), (2, 0, 0))
    story.tell(gang(count=3, cpus=2))
    end = story.end("g")
    assert end.reason == "refused"
    assert end.why == "asks for 3 nodes at once with 2 cores each; there are 2: n1, n3"


def test_nodes_are_kept_for_it_and_nobody_delays_it() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(ev.Submitted("a", walltime_s=10.0), ev.Started("a", 1))
    story.tell(gang())
    story.tell(ev.Submitted("long"), ev.Submitted("short", walltime_s=5.0))
    assert story.state("long") == "WAITING"
    assert story.where("short") == "n2"
    assert "it takes 2 nodes at once" in story.machine.explain("g")
    story.tell(ev.Ended("short", 1, "exit", 0), ev.Ended("a", 1, "exit", 0))
    assert story.where("g") == "n1"
    assert story.machine.explain("g") == [
        "rank 0: n1 was told to start it",
        "rank 1: n2 was told to start it",
    ]


def test_only_the_nodes_asked_for_are_taken() -> None:
    story = nodes((1, 0, 0), (1, 0, 0), (1, 0, 0))
    story.tell(gang(nodes=("n3", "n2")))
    assert story.machine.items["g"].gang is not None
    assert story.machine.items["g"].gang.names == ("n2", "n3")


def test_a_restarted_client_hands_every_rank_over_again() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(gang())
    story.tell(ev.Restarted())
    caused = story.opened("n1", 1) + story.opened("n2", 1)
    assert [each.x for each in caused if isinstance(each, act.Hand)] == ["g", "g-r1"]
    # Counted once.
    assert story.machine.counts["PLACED"] == 1


def test_draining_leaves_it_where_it_has_begun_and_takes_it_back_where_it_has_not() -> None:
    story = nodes((1, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0))
    story.tell(gang("a", staged=True), gang("b"))
    story.tell(ev.Draining())
    story.tell(ev.Staged("a", "n1"))
    assert story.state("a") == "WAITING"
    story.tell(ev.Ended("b", 1, "exit", 0), ev.Ended("b-r1", 1, "exit", 0))
    assert story.end("b").state == "SUCCEEDED"
    assert story.machine.is_drained


def test_pausing_stops_every_rank() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(gang(), ev.Started("g", 1))
    assert story.tell(ev.PauseAsked("g")) == [act.Pause("g", 1, "n1")]
    assert story.tell(ev.Started("g-r1", 1)) == [act.Pause("g-r1", 1, "n2")]
    story.tell(ev.Paused("g", 1), ev.Paused("g-r1", 1))
    assert story.tell(ev.ResumeAsked("g")) == [act.Resume("g", 1, "n1"), act.Resume("g-r1", 1, "n2")]


def test_a_rank_that_is_killed_while_it_is_stopped_ends_it() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(gang(), ev.Started("g", 1), ev.Started("g-r1", 1), ev.PauseAsked("g"))
    story.tell(ev.Paused("g-r1", 1), ev.Ended("g-r1", 1, "signal", None), ev.Ended("g", 1, "cancelled"))
    assert story.end("g").reason == "signal"
    story.finished()
