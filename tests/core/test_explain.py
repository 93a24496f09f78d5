"""Why it is not further than it is: one line for each condition, for each state."""

from __future__ import annotations

from liborch.core import events as ev
from tests.core.stories import Story


def test_nothing_is_said_of_what_is_not_live() -> None:
    assert Story().machine.explain("a") == []


def test_before_there_is_a_node() -> None:
    story = Story()
    story.tell(ev.Submitted("a"))
    assert story.machine.explain("a") == ["there is no node yet"]


def test_each_node_says_why_it_does_not_take_it() -> None:
    story = Story()
    story.node("full", cpus=2)
    story.tell(ev.Submitted("first", cpus=1))
    story.tell(*(ev.NodeAdded(name, "lab") for name in ("lost", "torn", "new", "bad", "small", "other")))
    story.tell(ev.NodeLost("lost", "fire"), ev.LinkRefused("bad", "host key changed"))
    story.opened("torn")
    story.opened("small")
    story.tell(ev.LinkLost("torn", "no answer in 20 s"))
    story.tell(ev.Submitted("a", nodes=("full", "lost", "torn", "new", "bad", "small"), cpus=2))
    full, lost, torn, new, bad, small, other = story.machine.explain("a")
    assert full == "full: 1 of 2 cores free; asked: 2 cores"
    assert lost == "lost: lost: fire"
    assert torn.startswith("torn: unreachable for 0s: no answer in 20 s; next try in ")
    assert new == "new: being connected to, for 0s"
    assert bad == "bad: cannot be used: host key changed"
    assert small == "small: has 1 core in all; asked: 2 cores"
    assert other == "other: not among the nodes asked for"


def test_where_it_is_and_what_it_waits_for_there() -> None:
    story = Story()
    story.node("n1")
    story.tell(ev.Submitted("a", staged=True, collected=True))
    assert story.machine.explain("a") == ["its files are being sent to n1"]
    story.tell(ev.Staged("a", "n1"), ev.Submitted("b"), ev.Submitted("c"), ev.Submitted("d"))
    assert story.machine.explain("a") == ["n1 was told to start it"]
    assert story.machine.explain("b") == [
        "it is in the queue of n1, where every slot is taken; 0 of ours are before it"
    ]
    assert story.machine.explain("c") == ["n1: 0 of 1 cores free; asked: 1 core"]
    assert story.machine.explain("d") == ["1 wait before it", "n1: 0 of 1 cores free; asked: 1 core"]
    story.tell(ev.Started("a", 1))
    assert story.machine.explain("a") == ["it runs on n1"]
    story.tell(ev.Paused("a", 1))
    assert story.machine.explain("a") == ["it is paused on n1"]
    story.tell(ev.CancelAsked("a"))
    assert story.machine.explain("a") == ["it is paused on n1", "it was asked to end"]
    story.tell(ev.Ended("a", 1, "exit", 0))
    assert story.machine.explain("a")[0] == "it ended on n1; its results are being fetched"


def test_what_cannot_be_seen_says_since_when_and_when_it_is_tried_again() -> None:
    story = Story()
    story.node("n1")
    story.tell(ev.Submitted("a"), ev.Started("a", 1), ev.LinkLost("n1", "no answer in 20 s"))
    runs, unreachable = story.machine.explain("a")
    assert runs == "it runs on n1"
    assert unreachable.startswith("n1: unreachable for 0s: no answer in 20 s; next try in ")
    story.tick()
    assert story.machine.explain("a")[1].startswith("n1: being connected to, for ")
    story.tell(ev.LinkRefused("n1", "host key changed"))
    assert story.machine.explain("a")[1] == "n1: cannot be used: host key changed"


def test_room_kept_for_somebody_else_is_named() -> None:
    story = Story()
    story.node("n1", cpus=4)
    story.tell(*(ev.Submitted(x) for x in "abc"), ev.Submitted("big", cpus=4), ev.Submitted("d"))
    assert story.machine.explain("big") == ["n1: 1 of 4 cores free; asked: 4 cores"]
    assert story.machine.explain("d") == ["1 wait before it", "n1: kept for big, which is before it"]


def test_what_is_lacking_is_named() -> None:
    story = Story()
    story.node("n1", cpus=4, memory_bytes=8 << 30, gpus=2)
    story.tell(ev.Submitted("a", memory_bytes=6 << 30, gpus=2))
    story.tell(ev.Submitted("b", memory_bytes=4 << 30, gpus=1))
    assert story.state("b") == "WAITING"
    assert story.machine.explain("b") == [
        "n1: 2 GiB of 8 GiB free, 0 of 2 GPUs free; asked: 1 core, 4 GiB, 1 GPU"
    ]
