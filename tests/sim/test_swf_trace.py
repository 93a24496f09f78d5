"""What is made of a trace in the Standard Workload Format, and of what is none."""

from __future__ import annotations

import gzip
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liborch.errors import TraceError
from liborch.sim.swf_trace import SKIPPED, Trace, read_trace
from tests.sim.swf_traces import line, made


def read(data: bytes | str) -> Trace:
    data = data.encode("latin-1") if isinstance(data, str) else data
    return read_trace(io.BufferedReader(io.BytesIO(data)), "a.swf")


def test_a_line_is_read_field_by_field() -> None:
    jobs = read(line(7, 10, 100, 4, 3600, queue=2)).jobs
    assert (jobs.numbers, jobs.submits, jobs.runs, jobs.requests) == ([7], [10], [100], [3600])
    assert (jobs.processors, jobs.queues) == ([4], [2])


def test_comments_say_what_machine_it_was() -> None:
    trace = read(
        "; Version: 2.2\n;  MaxNodes: 64\n;MaxProcs: 128 (256 from 1999 on)\n\n"
        + line(1, 0, 1, 1)
        + "\n;the end"
    )
    assert trace.header == {"Version": "2.2", "MaxNodes": "64", "MaxProcs": "128 (256 from 1999 on)"}
    assert trace.machine == 128
    assert read("; MaxNodes: 64\n; MaxProcs: -1").machine == 64
    assert read("; Computer: some, é\n; MaxProcs: unknown").machine is None


def test_what_is_not_known_is_taken_from_what_is() -> None:
    # Requested processors: allocated; requested time: run time.
    trace = read(
        "\n".join([line(1, 0, 50, -1, 60, allocated=3), line(2, 0, 50, 4, 0, allocated=3), line(3, 0, 50, 4)])
    )
    assert trace.jobs.processors == [3, 4, 4]
    assert trace.jobs.requests == [60, 50, 50]
    assert trace.settled == {"no_requested_time": 2}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (line(1, 0, 9, 1, status=2), "partial"),
        (line(1, 0, 9, 1, status=3), "partial"),
        (line(1, 0, 9, 1, status=4), "partial"),
        (line(1, 0, 0, 1, status=5), "cancelled"),
        (line(1, 0, -1, -1, status=5), "cancelled"),
        (line(1, -1, 9, 1), "no_submit_time"),
        (line(1, 0, -1, 1), "no_run_time"),
        (line(1, 0, 9, -1), "no_processors"),
        (line(1, 0, 9, 0, allocated=-1), "no_processors"),
    ],
)
def test_what_cannot_be_replayed_is_skipped_and_counted_with_the_reason(text: str, why: str) -> None:
    trace = read(text)
    assert trace.jobs.numbers == []
    assert trace.skipped == {why: 1}
    assert why in SKIPPED


@pytest.mark.parametrize(
    "text",
    [line(1, 0, 9, 1, status=0), line(1, 0, 9, 1, status=5), line(1, 0, 0, 1), line(1, 0, 9, 1, status=-1)],
)
def test_what_ran_is_replayed_however_it_ended(text: str) -> None:
    trace = read(text)
    assert trace.jobs.numbers == [1]
    assert not trace.skipped


def test_what_the_machine_has_no_room_for_is_skipped() -> None:
    trace = read("\n".join([line(1, 0, 9, 8), line(2, 0, 9, 9), line(3, 0, -1, 9)])).on(8)
    assert trace.jobs.numbers == [1]
    assert trace.skipped == {"too_large": 1, "no_run_time": 1}


def test_jobs_are_put_in_order_of_submission_and_those_of_one_second_stay_as_they_stand() -> None:
    trace = read(
        "\n".join(line(number, submit, 1, 1) for number, submit in ((1, 5), (2, 9), (3, 5), (4, 0), (5, 9)))
    )
    assert trace.jobs.numbers == [4, 1, 3, 2, 5]
    assert trace.settled["unsorted"] == 2


def test_parts_of_seconds_are_kept() -> None:
    jobs = read("1 0.5 -1 10.25 2.0 -1 -1 -1 1e2 -1 1 -1 -1 -1 -1 -1 -1 -1").jobs
    assert (jobs.submits, jobs.runs, jobs.requests, jobs.processors) == ([0.5], [10.25], [100], [2])


def test_lines_may_end_as_on_other_systems_and_be_indented() -> None:
    text = f"; MaxProcs: 4\r\n\t {line(1, 0, 1, 1)}\r\n  ; a comment\r\n{line(2, 0, 1, 1)}"
    assert read(text).jobs.numbers == [1, 2]
    assert read(text).machine == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3", "a.swf:2: 3 fields; expected 18 numbers, -1 where one is not known, or a comment after ;"),
        (line(1, 0, 1, 1) + " 9", "a.swf:2: 19 fields; expected 18"),
        (
            line(1, 0, 1, 1).replace("1 0", "x 0", 1),
            "a.swf:2: field 1 (job number): 'x'; expected a whole number",
        ),
        (
            "1 nan -1 1 1 -1 -1 1 1 -1 1 -1 -1 -1 -1 -1 -1 -1",
            "a.swf:2: field 2 (submit time): 'nan'; expected a number of seconds",
        ),
        (
            "1 0 -1 1h 1 -1 -1 1 1 -1 1 -1 -1 -1 -1 -1 -1 -1",
            "a.swf:2: field 4 (run time): '1h'; expected a number of seconds",
        ),
        (
            "1 0 -1 1 1 -1 -1 1.5 1 -1 1 -1 -1 -1 -1 -1 -1 -1",
            "field 8 (requested processors): '1.5'; expected a whole number",
        ),
        (
            line(1, 10**13, 1, 1),
            "a.swf:2: times: a time out of this world; expected at most 1000000000000 seconds",
        ),
        ("\x00\x01\xff", "a.swf:2: 1 fields; expected 18"),
    ],
)
def test_a_line_that_is_none_is_an_error_with_file_line_and_field(text: str, message: str) -> None:
    with pytest.raises(TraceError) as caught:
        read("; MaxProcs: 4\n" + text)
    assert message in str(caught.value)
    assert caught.value.exit_status == 2
    assert caught.value.line == 2


def test_a_gzipped_trace_is_read_as_it_is() -> None:
    text = made(1, 50, 16, 0.5)
    assert read(gzip.compress(text.encode())).jobs == read(text).jobs


def test_a_gzipped_trace_that_was_cut_off_is_an_error_not_a_shorter_trace() -> None:
    data = gzip.compress(made(1, 50, 16, 0.5).encode())
    for damaged in (data[:-20], data[: len(data) // 2], data[:10] + b"damage" + data[16:]):
        with pytest.raises(TraceError, match=r"a.swf: damaged: .*; expected a whole gzip file"):
            read(damaged)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(
            st.sampled_from(["-1", "0", "7", "1.5", "5", "x", "9" * 40, ";", "1e9", "-", "\x85"]),
            min_size=16,
            max_size=19,
        ),
        max_size=4,
    )
)
def test_any_text_is_read_or_refused_with_its_line(lines: list[list[str]]) -> None:
    refused = None
    try:
        trace = read("\n".join(" ".join(fields) for fields in lines))
    except TraceError as error:
        refused = error
    if refused is not None:
        assert 1 <= (refused.line or 0) <= len(lines)
    else:
        jobs = trace.jobs
        assert len(jobs.numbers) + trace.skipped.total() <= len(lines)
        assert all(run >= 0 and request >= 0 for run, request in zip(jobs.runs, jobs.requests, strict=True))
        assert all(count > 0 for count in jobs.processors)
