"""What worlds with a cluster showed: each story is the end of one seed's."""

from __future__ import annotations

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.machine import Orchestration
from liborch.core.queue import Queue
from liborch.core.things import Item, Node
from tests.core.test_allocations import active, cluster, submit, until


def test_nobody_is_woken_for_an_allocation_when_there_is_none_and_nothing_waits() -> None:
    story = cluster()
    submit(story, 1)
    story.tell(ev.AllocationRefused("a1", "busy", True))
    assert story.machine.next_deadline() is not None
    story.tell(ev.CancelAsked("x1"), ev.Tick(), after=0.01)
    for _ in range(3):
        deadline = story.machine.next_deadline()
        if deadline is not None:
            story.tell(ev.Tick(), after=max(0.0, deadline - story.now))
    assert story.machine.next_deadline() is None


def test_nothing_more_begins_in_a_slot_whose_allocation_is_over() -> None:
    story = cluster()
    submit(story, 1, is_slot=True)
    active(story, nodes=1)
    story.tell(ev.Started("x1", 1))
    story.tell(ev.Submitted("y", lease="x1", staged=True))
    caused = story.tell(ev.AllocationEnded("a1", "preempted"))
    assert act.Cancel("x1", 1, "n1/71") in caused
    story.tell(ev.Submitted("z", lease="x1"))
    assert story.end("z").why == "its slot is not held any more"
    caused = story.tell(ev.Staged("y", "n1/71", 1))
    assert not [each for each in caused if isinstance(each, act.Hand)]
    assert story.end("y").why == "its slot is not held any more"


def test_a_rank_whose_files_come_when_its_allocation_is_over_is_given_to_no_node() -> None:
    story = cluster()
    submit(story, 1, node_count=2, staged=True)
    active(story)
    story.tell(ev.AllocationEnded("a1", "preempted"))
    caused = story.tell(ev.Staged("x1", "n1/71", 1), ev.Staged("x1-r1", "n2/71", 1))
    assert not [each for each in caused if isinstance(each, act.Hand)]
    assert story.state("x1") == "WAITING"


def test_what_was_asked_back_and_then_ended_is_another_attempt_where_it_goes_next() -> None:
    story = cluster(cpus=1)
    submit(story, 2)
    active(story, nodes=1, cpus=1)
    story.tell(ev.Started("x1", 1))
    assert story.ahead("n1/71") == ["x2"]
    until(story, "DRAINING")
    assert act.Recall("x2", 1, "n1/71") in story.caused
    caused = story.tell(ev.AllocationEnded("a1", "preempted"))
    assert act.Cancel("x2", 1, "n1/71") in caused
    story.node("desk", cpus=2)
    story.tell(ev.Recalled("x2", 1))
    # What the old node says of the cancel is of no meaning for where it is now.
    story.tell(ev.Ended("x2", 1, "cancelled"))
    assert story.where("x2") == "desk"
    story.tell(ev.Started("x2", 2), ev.Ended("x2", 2, "exit", 0))
    assert story.end("x2").state == "SUCCEEDED"


def test_who_comes_back_late_stands_where_its_age_says() -> None:
    queue = Queue()
    items = [Item(ev.Submitted(f"x{number}"), number) for number in range(40)]
    for item in items:
        item.share = queue.share("")
    for number in (*range(20, 40), 3, 0, 17, 5, 39, 1, 4):
        if items[number].group is None:
            queue.add(items[number])
    group = queue.first()
    assert group is not None
    assert [item.order for item in group.items] == [0, 1, 3, 4, 5, 17, *range(20, 40)]


class Counted(Orchestration):
    """How often a node is looked at to hand something ahead."""

    looks = 0

    def _ahead_limit(self, node: Node) -> int:
        self.looks += 1
        return super()._ahead_limit(node)


def test_no_more_nodes_are_looked_at_than_there_is_something_for() -> None:
    machine = Counted()
    machine.handle(ev.Submitted("x"), 0.0)
    for number in range(300):
        machine.handle(ev.NodeAdded(f"n{number}", "lab"), 0.0)
        machine.handle(ev.LinkOpened(f"n{number}", "s", 1, 0, 0), 0.0)
    for number in range(300):
        machine.handle(ev.Submitted(f"y{number}"), 0.0)
    machine.looks = 0
    for number in range(100):
        machine.handle(ev.Submitted(f"z{number}"), 0.0)
    machine.check()
    assert machine.counts["WAITING"] == 0
    assert machine.looks <= 100
