"""Replays of traces start every job in the second in which the textbook does."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liborch.errors import SpecError, TraceError
from liborch.sim.swf_replay import replay, sum_up
from liborch.sim.swf_trace import Trace, read_trace
from tests.sim import swf_reference as reference
from tests.sim.swf_traces import line, made

#: submit, run, request, processors
Row = tuple[int, int, int, int]
MACHINE = 8


def trace_of(text: str) -> Trace:
    return read_trace(io.BufferedReader(io.BytesIO(text.encode())), "trace")


def starts(rows: Sequence[Row], policy: str, machine: int = MACHINE, order: str = "shortest") -> list[float]:
    """When each row starts."""
    lines = [line(at, submit, run, size, request) for at, (submit, run, request, size) in enumerate(rows)]
    done = replay(trace_of("\n".join(lines)), machine, policy, order)
    by_number = dict(zip(done.trace.jobs.numbers, done.starts, strict=True))
    return [by_number[at] for at in range(len(rows))]


def by_the_book(
    rows: Sequence[Row], policy: Callable[[list[reference.Job], int], list[int]], machine: int = MACHINE
) -> list[int]:
    return policy(
        [reference.Job(submit, run, request or run, size) for submit, run, request, size in rows], machine
    )


def rows_of(longest: int, *, may_overrun: bool) -> st.SearchStrategy[list[Row]]:
    """Some jobs on a small machine, close enough to get in one another's way."""

    def row(submit: int, run: int, more: int, size: int) -> Row:
        return submit, run, max(0 if may_overrun else run, run + more), size

    one = st.builds(
        row,
        st.integers(0, 30),
        st.integers(0, longest),
        st.integers(-6 if may_overrun else 0, longest),
        st.integers(1, MACHINE),
    )
    return st.lists(one, min_size=1, max_size=25)


@settings(max_examples=300, deadline=None)
@given(rows_of(20, may_overrun=True))
def test_first_come_first_served_is_the_textbooks(rows: list[Row]) -> None:
    assert starts(rows, "fcfs") == by_the_book(rows, reference.fcfs)


@settings(max_examples=600, deadline=None)
@given(rows_of(20, may_overrun=True))
def test_easy_backfilling_is_the_textbooks(rows: list[Row]) -> None:
    assert starts(rows, "easy") == by_the_book(rows, reference.easy)


@settings(max_examples=300, deadline=None)
@given(rows_of(9, may_overrun=False))
def test_conservative_backfilling_is_the_textbooks(rows: list[Row]) -> None:
    # In a plan everything takes a second at least.
    planned = [(submit, run, request or 1, size) for submit, run, request, size in rows]
    assert starts(rows, "conservative") == by_the_book(planned, reference.conservative)


@settings(max_examples=300, deadline=None)
@given(
    rows_of(20, may_overrun=True),
    st.sampled_from(["fcfs", "easy", "conservative", "priority"]),
    st.sampled_from(["shortest", "longest", "smallest", "largest", "queue"]),
)
def test_no_processor_is_used_twice_and_nobody_is_early_or_forgotten(
    rows: list[Row], policy: str, order: str
) -> None:
    began = starts(rows, policy, order=order)
    assert all(start >= row[0] for start, row in zip(began, rows, strict=True))
    for now in began:
        used = sum(row[3] for start, row in zip(began, rows, strict=True) if start <= now < start + row[1])
        assert used <= MACHINE


ORDERS: dict[str, Callable[[reference.Job], int]] = {
    "shortest": lambda job: job.request,
    "longest": lambda job: -job.request,
    "smallest": lambda job: job.processors,
    "largest": lambda job: -job.processors,
}


@settings(max_examples=300, deadline=None)
@given(rows_of(20, may_overrun=True), st.sampled_from(sorted(ORDERS)))
def test_a_priority_is_easy_backfilling_with_the_queue_in_that_order(rows: list[Row], order: str) -> None:
    expected = by_the_book(rows, lambda jobs, machine: reference.easy(jobs, machine, ORDERS[order]))
    assert starts(rows, "priority", order=order) == expected


@settings(max_examples=100, deadline=None)
@given(rows_of(20, may_overrun=True))
def test_equal_priorities_are_easy_backfilling(rows: list[Row]) -> None:
    # No line has a queue number.
    assert starts(rows, "priority", order="queue") == starts(rows, "easy")


@pytest.mark.parametrize(("seed", "load"), [(1, 0.95), (2, 0.7)])
def test_ten_thousand_jobs_like_those_of_a_real_machine_start_as_by_the_book(seed: int, load: float) -> None:
    trace = trace_of(made(seed, 10_000, 128, load))
    jobs = trace.jobs
    assert len(jobs.numbers) == 10_000
    rows = list(zip(jobs.submits, jobs.runs, jobs.requests, jobs.processors, strict=True))
    done = replay(trace, None, "easy")
    assert done.starts == by_the_book(rows, reference.easy, 128)  # type: ignore[arg-type]
    assert replay(trace, None, "fcfs").starts == by_the_book(rows, reference.fcfs, 128)  # type: ignore[arg-type]
    # They did get in one another's way.
    assert sum_up(done).mean_wait_s > 60


def test_a_queue_of_thousands_in_any_order_is_by_the_book() -> None:
    trace = trace_of(made(3, 3_000, 64, 20.0))
    jobs = trace.jobs
    rows = list(zip(jobs.submits, jobs.runs, jobs.requests, jobs.processors, strict=True))
    for order in ("shortest", "largest"):
        expected = by_the_book(
            rows,  # type: ignore[arg-type]
            lambda jobs, machine, order=order: reference.easy(jobs, machine, ORDERS[order]),  # type: ignore[misc]
            64,
        )
        assert replay(trace, None, "priority", order).starts == expected


# The machine has eight processors; of the first row, two are left over.
FIRST: Row = (0, 100, 100, 6)


def test_the_first_that_does_not_fit_holds_up_everybody_when_first_come_is_first_served() -> None:
    assert starts([FIRST, (1, 10, 10, 4), (2, 1, 1, 1)], "fcfs") == [0, 100, 100]


def test_who_is_gone_in_time_passes_the_head_and_who_is_not_waits() -> None:
    rows = [FIRST, (1, 10, 10, 8), (2, 98, 98, 1), (2, 99, 99, 1)]
    assert starts(rows, "easy") == [0, 100, 2, 110]


def test_who_fits_beside_the_head_passes_it_for_however_long() -> None:
    # Beside the head, which needs five, three are left.
    rows = [FIRST, (1, 10, 10, 5), (2, 900, 900, 2), (3, 900, 900, 1)]
    assert starts(rows, "easy") == [0, 100, 2, 100]


def test_what_passed_beside_the_head_takes_what_is_left_there_for_the_next() -> None:
    rows = [(0, 100, 100, 4), (1, 10, 10, 6), (2, 900, 900, 2), (3, 900, 900, 1)]
    assert starts(rows, "easy") == [0, 100, 2, 110]


def test_all_that_is_expected_to_end_in_one_second_makes_room_beside_the_head() -> None:
    # Two end at 100; the head needs only one of them, so two more may go on beyond it.
    rows = [(0, 100, 100, 3), (0, 100, 100, 3), (1, 10, 10, 4), (2, 900, 900, 2)]
    assert starts(rows, "easy") == [0, 0, 100, 2]


def test_backfilling_goes_by_what_was_asked_for_not_by_what_it_took() -> None:
    rows = [FIRST, (1, 10, 10, 8), (2, 5, 500, 1)]
    assert starts(rows, "easy") == [0, 100, 110]


def test_ends_come_before_arrivals_and_both_before_anybody_starts() -> None:
    # At 100 the first ends and the last is submitted: it does not pass who waits.
    rows = [(0, 100, 100, 8), (50, 10, 10, 8), (100, 1, 1, 8)]
    assert starts(rows, "easy") == [0, 100, 110]


def test_what_takes_no_time_leaves_its_room_in_the_same_second() -> None:
    rows = [(5, 0, 10, 8), (5, 0, 0, 8), (5, 3, 3, 8)]
    for policy in ("fcfs", "easy", "conservative"):
        assert starts(rows, policy) == [5, 5, 5], policy


def test_nobody_passes_by_time_while_something_should_have_ended() -> None:
    rows = [(0, 100, 50, 6), (1, 10, 10, 8), (60, 1, 1, 2)]
    assert starts(rows, "easy") == [0, 100, 110]


def test_who_is_promised_a_start_keeps_it_when_everybody_has_a_reservation() -> None:
    # The third fits beside the second, but would delay the fourth's reservation at 100 under EASY's eyes only.
    rows = [FIRST, (1, 100, 100, 6), (2, 150, 150, 2), (3, 10, 10, 2)]
    assert starts(rows, "conservative") == [0, 100, 2, 152]
    assert starts(rows, "easy") == [0, 100, 2, 152]
    second_is_delayed = [(0, 10, 10, 6), (1, 10, 10, 8), (2, 10, 10, 6), (3, 25, 25, 2)]
    assert starts(second_is_delayed, "conservative") == [0, 10, 20, 20]


def test_an_early_end_moves_reservations_forward_in_the_order_of_the_queue() -> None:
    rows = [(0, 10, 100, 8), (1, 10, 10, 8), (2, 10, 10, 8)]
    assert starts(rows, "conservative") == [0, 10, 20]


def test_what_runs_for_longer_than_it_asked_puts_reservations_off() -> None:
    rows = [(0, 50, 10, 6), (1, 10, 10, 8), (2, 10, 10, 1), (60, 5, 5, 8)]
    assert starts(rows, "conservative") == [0, 50, 60, 70]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("shortest", [0, 20, 10, 15]),
        ("longest", [0, 10, 25, 20]),
        ("smallest", [0, 20, 15, 10]),
        ("largest", [0, 10, 20, 25]),
    ],
)
def test_the_queue_may_be_in_another_order(order: str, expected: list[int]) -> None:
    rows = [(0, 10, 10, 8), (1, 10, 10, 8), (2, 5, 5, 7), (3, 5, 8, 6)]
    assert starts(rows, "priority", order=order) == expected


def test_who_comes_later_with_a_higher_priority_gets_the_reservation() -> None:
    rows = [FIRST, (1, 50, 50, 8), (2, 20, 20, 8), (3, 97, 97, 2)]
    assert starts(rows, "priority") == [0, 120, 100, 3]


def test_figures_are_those_of_a_calculation_by_hand() -> None:
    done = replay(trace_of("\n".join([line(1, 10, 100, 4), line(2, 20, 5, 8), line(3, 20, 1, 4)])), 8, "fcfs")
    assert done.starts == [10, 110, 115]
    figures = sum_up(done)
    assert figures.mean_wait_s == (0 + 90 + 95) / 3
    assert figures.max_wait_s == 95
    # Run times of 5 s and 1 s count as 10 s.
    assert figures.mean_bounded_slowdown == pytest.approx((1 + 95 / 10 + 96 / 10) / 3)
    assert figures.makespan_s == 106
    assert figures.utilisation == pytest.approx((400 + 40 + 4) / (8 * 106))


def test_a_machine_a_policy_and_an_order_that_cannot_be_are_refused() -> None:
    trace = trace_of(line(1, 0, 1, 1))
    with pytest.raises(TraceError, match="says nothing of MaxProcs or MaxNodes; expected --processors N"):
        replay(trace, None, "easy")
    with pytest.raises(SpecError, match="a machine of 0 processors"):
        replay(trace, 0, "easy")
    with pytest.raises(SpecError, match="no policy 'lifo'; there are: fcfs, easy, conservative, priority"):
        replay(trace, 1, "lifo")
    with pytest.raises(SpecError, match="no order 'youngest'"):
        replay(trace, 1, "priority", "youngest")
    with pytest.raises(TraceError, match=r"no job to replay \(1 skipped: more processors than"):
        replay(trace_of(line(1, 0, 1, 2)), 1, "easy")
