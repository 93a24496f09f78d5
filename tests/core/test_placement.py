"""Who goes where, and who goes first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.queue import Queue
from liborch.core.room import Rooms
from tests.core.stories import Story

GIB = 1 << 30


def nodes(*rooms: tuple[int, int, int]) -> Story:
    """A story with open nodes n1, n2... of so many cores, GiB and GPUs."""
    story = Story()
    story.tell(*(ev.NodeAdded(f"n{number}", "lab") for number, _room in enumerate(rooms, start=1)))
    story.tell(ev.Submitted("wake"))
    for number, (cpus, gib, gpus) in enumerate(rooms, start=1):
        story.opened(f"n{number}", cpus, gib * GIB, gpus)
    story.tell(ev.CancelAsked("wake"), ev.Ended("wake", 1, "cancelled"))
    story.caused.clear()
    return story


def test_it_goes_where_the_fewest_cores_are_left_over() -> None:
    story = nodes((8, 0, 0), (2, 0, 0), (4, 0, 0))
    story.tell(ev.Submitted("a", cpus=2), ev.Submitted("b", cpus=3), ev.Submitted("c", cpus=1))
    assert [story.where(x) for x in "abc"] == ["n2", "n3", "n3"]


def test_it_goes_where_the_least_memory_is_left_over() -> None:
    story = nodes((2, 64, 0), (2, 8, 0), (2, 16, 0))
    story.tell(ev.Submitted("a", memory_bytes=10 * GIB), ev.Submitted("b", memory_bytes=8 * GIB))
    assert [story.where(x) for x in "ab"] == ["n3", "n2"]


def test_nodes_with_gpus_are_left_to_those_who_ask_for_them() -> None:
    story = nodes((4, 0, 2), (4, 0, 0))
    story.tell(*(ev.Submitted(x) for x in "abcd"), ev.Submitted("g", gpus=2))
    assert {story.where(x) for x in "abcd"} == {"n2"}
    assert story.where("g") == "n1"


def test_it_goes_only_to_the_nodes_it_names() -> None:
    story = nodes((1, 0, 0), (4, 0, 0))
    story.tell(ev.Submitted("a", nodes=("n2",)), ev.Submitted("b", nodes=("n2", "n1")))
    assert story.where("a") == story.where("b") == "n2"


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (
            ev.Submitted("a", cpus=9),
            "asks for 9 cores, more than any node has; the largest, n1, has 8 cores, 16 GiB",
        ),
        (
            ev.Submitted("a", cpus=1, memory_bytes=32 * GIB),
            "asks for 1 core, 32 GiB, more than any node has; the largest, n1, has 8 cores, 16 GiB",
        ),
        (
            ev.Submitted("a", gpus=1, nodes=("n1",)),
            "asks for 1 core, 1 GPU, more than any node has; the largest, n1, has 8 cores, 16 GiB",
        ),
    ],
)
def test_what_no_node_can_ever_run_is_refused_and_the_largest_named(asked: ev.Submitted, text: str) -> None:
    story = nodes((8, 16, 0), (4, 16, 1))
    story.tell(asked)
    assert story.end("a").why == text
    assert story.end("a").reason == "refused"
    story.finished()


def test_a_large_request_waits_while_a_node_is_not_known_yet_and_is_refused_when_it_is() -> None:
    story = nodes((1, 0, 0))
    story.tell(
        ev.Submitted("small"), ev.NodeAdded("n2", "lab"), ev.Submitted("a", cpus=4), ev.Submitted("b", cpus=4)
    )
    assert story.state("a") == "WAITING"
    story.opened("n2", cpus=2)
    assert story.end("a").why == story.end("b").why
    assert "the largest, n2, has 2 cores" in story.end("a").why


def test_higher_priority_goes_first_then_who_came_first() -> None:
    story = nodes((1, 0, 0))
    story.tell(ev.LinkLost("n1", "torn"))
    story.tell(
        ev.Submitted("a"), ev.Submitted("b", priority=1), ev.Submitted("c"), ev.Submitted("d", priority=1)
    )
    story.tick()
    story.opened("n1", cpus=4)
    assert [action.x for action in story.caused if isinstance(action, act.Hand)] == ["b", "d", "a", "c"]


def test_two_batches_share_the_nodes_evenly_however_many_each_has_waiting() -> None:
    story = nodes((4, 0, 0))
    story.tell(*(ev.Submitted(f"a{number}", batch="a") for number in range(40)))
    story.tell(*(ev.Submitted(f"b{number}", batch="b") for number in range(8)))
    running: list[str] = []
    ends: list[str] = []
    for _ in range(30):
        running += [x for x, item in story.machine.items.items() if item.has_room and x not in running]
        ends.append(running.pop(0))
        story.tell(ev.Ended(ends[-1], 1, "exit", 0), after=1.0)
    # All eight of the small batch, though forty were there before it; what was on the nodes already went first.
    assert sum(1 for x in ends if x[0] == "b") == 8
    assert [x[0] for x in ends[8:24]].count("b") == 8


def test_a_batch_moves_up_as_its_executions_end() -> None:
    queue = Queue()
    story = nodes((9, 0, 0))
    story.tell(ev.Submitted("a", batch="a"), ev.Submitted("b", batch="b"))
    a, b = (story.machine.items[x] for x in "ab")
    queue.share("a").used_cpus = 5
    queue.share("b").used_cpus = 4
    for item in (a, b):
        item.group = None
        queue.add(item)

    def first() -> str:
        group = queue.first()
        assert group is not None
        return group.key[1]

    assert first() == "b"
    queue.share("a").used_cpus = 3
    queue.renew(queue.share("a"))
    assert first() == "a"
    queue.share("a").used_cpus = 6
    assert first() == "b"
    queue.remove(b)
    assert first() == "a"
    queue.remove(a)
    assert queue.first() is None
    assert len(queue) == 0


def test_nobody_passes_the_head_of_the_queue_on_the_node_kept_for_it() -> None:
    story = nodes((4, 0, 0))
    story.tell(*(ev.Submitted(x, walltime_s=100.0) for x in "abc"), *(ev.Started(x, 1) for x in "abc"))
    story.tell(ev.Submitted("big", cpus=4), ev.Submitted("long", walltime_s=101.0), ev.Submitted("forever"))
    assert story.state("long") == story.state("forever") == "WAITING"
    # It ends before the others do: the head is not delayed.
    story.tell(ev.Submitted("short", walltime_s=99.0))
    assert story.where("short") == "n1"
    story.tell(*(ev.Ended(x, 1, "exit", 0) for x in ("a", "b", "short")), after=50.0)
    assert story.where("big") == ""
    story.tell(ev.Ended("c", 1, "exit", 0), after=50.0)
    assert story.where("big") == "n1"


def test_others_pass_on_nodes_that_are_not_kept() -> None:
    story = nodes((4, 0, 0), (2, 0, 0))
    story.tell(*(ev.Submitted(x, nodes=("n1",), walltime_s=10.0) for x in "abc"))
    story.tell(ev.Submitted("d"))
    story.tell(ev.Submitted("big", cpus=4), ev.Submitted("small", batch="x"))
    assert story.where("big") == ""
    assert story.where("small") == "n2"


def test_the_node_kept_is_the_one_that_is_free_soonest() -> None:
    story = nodes((2, 0, 0), (2, 0, 0))
    story.tell(
        ev.Submitted("a", nodes=("n1",), walltime_s=100.0), ev.Submitted("b", nodes=("n2",), walltime_s=10.0)
    )
    story.tell(ev.Started("a", 1), ev.Started("b", 1))
    story.tell(ev.Submitted("big", cpus=2), ev.Submitted("small", batch="x"))
    assert story.where("small") == "n1"
    story.tell(ev.Ended("b", 1, "exit", 0), after=10.0)
    assert story.where("big") == "n2"


def test_a_cancelled_head_of_the_queue_lets_the_others_go() -> None:
    story = nodes((2, 0, 0))
    story.tell(ev.Submitted("a"), ev.Submitted("big", cpus=2), ev.Submitted("b", batch="x"))
    assert story.where("b") == ""
    story.tell(ev.CancelAsked("big"))
    assert story.where("b") == "n1"


def test_a_node_is_kept_for_the_oldest_of_those_who_want_the_same() -> None:
    story = nodes((2, 0, 0), (2, 0, 0))
    story.tell(ev.Submitted("a", nodes=("n1",)), ev.Started("a", 1))
    story.tell(ev.Submitted("old", cpus=2, retries=1, retry_on=("lost",)), ev.Started("old", 1))
    story.tell(ev.Submitted("young", cpus=2, retries=1, retry_on=("lost",)))
    assert (story.where("old"), story.where("young")) == ("n2", "")
    # The node kept for the young one is now the only one, and the old one is back and before it.
    story.tell(ev.NodeLost("n2", "fire"))
    caused = story.tell(ev.Ended("a", 1, "exit", 0))
    assert [action.x for action in caused if isinstance(action, act.Hand)] == ["old", "young"]


def test_orders_are_handed_ahead_of_free_slots_and_start_in_order() -> None:
    story = nodes((2, 0, 0))
    story.tell(*(ev.Submitted(x) for x in "abcdefgh"))
    assert story.ahead() == ["c", "d"]
    assert story.tell(ev.Ended("a", 1, "exit", 0))[-1] == act.Hand("e", 1, "n1")
    assert story.ahead() == ["d", "e"]
    assert story.machine.items["c"].has_room


def test_more_is_handed_ahead_to_a_node_that_is_fast() -> None:
    story = nodes((1, 0, 0))
    story.tell(*(ev.Submitted(f"e{number}") for number in range(4000)))
    for number in range(3000):
        story.now += 0.001
        story.machine.handle(ev.Ended(f"e{number}", 1, "exit", 0), story.now)
    # A thousand a second: a quarter of a second of them.
    assert 150 < len(story.ahead()) <= 260


def test_few_orders_are_handed_ahead_evenly() -> None:
    story = nodes((4, 0, 0), (4, 0, 0))
    story.tell(*(ev.Submitted(f"e{number}") for number in range(8)))
    story.tell(*(ev.Submitted(f"f{number}") for number in range(4)))
    assert (len(story.ahead("n1")), len(story.ahead("n2"))) == (2, 2)


def test_a_node_that_runs_dry_gets_orders_that_wait_elsewhere() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(*(ev.Submitted(x) for x in "abcd"))
    assert (story.ahead("n1"), story.ahead("n2")) == (["c"], ["d"])
    story.tell(ev.Ended("b", 1, "exit", 0), ev.Ended("d", 1, "exit", 0), after=1.0)
    if not any(isinstance(action, act.Recall) for action in story.caused):
        story.tick()
    assert act.Recall("c", 1, "n1") in story.caused
    assert story.tell(ev.Recalled("c", 1)) == [act.Hand("c", 1, "n2")]


def test_an_order_that_started_before_the_recall_came_stays() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(*(ev.Submitted(x) for x in "abcd"))
    story.tell(ev.Ended("b", 1, "exit", 0), ev.Ended("d", 1, "exit", 0), after=1.0)
    story.tick()
    story.tell(ev.Ended("a", 1, "exit", 0), ev.Started("c", 1))
    assert (story.where("c"), story.state("c")) == ("n1", "RUNNING")


def test_an_order_recalled_and_cancelled_meanwhile_is_over() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(*(ev.Submitted(x) for x in "abcd"))
    story.tell(ev.Ended("b", 1, "exit", 0), ev.Ended("d", 1, "exit", 0), after=1.0)
    story.tick()
    story.tell(ev.CancelAsked("c"), ev.Recalled("c", 1))
    assert story.state("c") == "CANCELLED"


def test_a_recall_that_was_lost_with_the_link_is_asked_again() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(*(ev.Submitted(x) for x in "abcd"))
    story.tell(ev.Ended("b", 1, "exit", 0), ev.Ended("d", 1, "exit", 0), after=1.0)
    story.tick()
    held = (("a", 1, "running"), ("c", 1, "queued"))
    assert act.Recall("c", 1, "n1") in story.again("n1", held)


def test_a_donor_out_of_reach_does_not_keep_others_from_giving() -> None:
    story = nodes((1, 0, 0), (1, 0, 0))
    story.tell(ev.Submitted("a", nodes=("n1",)), ev.Submitted("b", nodes=("n2",)))
    story.tell(ev.Submitted("c", nodes=("n1", "n3")), ev.Submitted("d", nodes=("n1", "n3")))
    story.tell(ev.Submitted("e", nodes=("n2", "n3")))
    # The first has the longest queue, and cannot be asked.
    assert (story.ahead("n1"), story.ahead("n2")) == (["c"], ["e"])
    story.tell(ev.LinkLost("n1", "torn"), ev.CancelAsked("d"), ev.NodeAdded("n3", "lab"))
    assert act.Recall("e", 1, "n2") in story.opened("n3", cpus=1)
    assert story.tell(ev.Recalled("e", 1)) == [act.Hand("e", 1, "n3")]


Room = tuple[int, int, int]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 4), st.integers(0, 3)), max_size=30),
    st.lists(
        st.tuples(st.integers(0, 29), st.integers(0, 5), st.integers(0, 4), st.integers(0, 3)), max_size=30
    ),
    st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(0, 3)),
    st.integers(-1, 29),
)
def test_the_index_finds_what_looking_at_every_node_finds(
    rooms: list[Room], changes: list[tuple[int, int, int, int]], asked: Room, skip: int
) -> None:
    index = Rooms()
    free: dict[int, Room] = {}
    for number, room in [*enumerate(rooms), *((number, (c, m, g)) for number, c, m, g in changes)]:
        free[number] = room
        index.put(number, *room)
    for number in list(free)[::7]:
        index.remove(number)
        del free[number]
    cpus, memory, gpus = asked
    fitting = [
        (room[2], room[0], room[1], number)
        for number, room in free.items()
        if room[0] >= cpus and room[1] >= memory and room[2] >= gpus and number != skip
    ]
    assert index.best(cpus, memory, gpus, {skip}) == (min(fitting)[3] if fitting else -1)
    assert index.free_cpus() == sum(max(0, room[0]) for room in free.values())
    assert bool(index.nodes) == any(room[0] > 0 for room in free.values())
