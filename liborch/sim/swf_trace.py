"""Reads traces in the Standard Workload Format, version 2.2: one job a line, 18 numbers, -1 where one is not known.

https://www.cs.huji.ac.il/labs/parallel/workload/swf.html says what the fields mean. Comments begin with `;`; those at the
top say what machine it was. What cannot be replayed is skipped and counted, by reason (`SKIPPED`); what had to be settled
somehow is counted as well (`SETTLED`). Opening files is left to `swf.py`.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import accumulate
from typing import IO, Final, cast

from liborch.errors import TraceError

#: Why a job is skipped, and what that means.
SKIPPED: Final = {
    "partial": "parts of jobs that have a line of their own (status 2, 3 or 4)",
    "cancelled": "cancelled before they started (status 5, no run time)",
    "no_submit_time": "no submit time",
    "no_run_time": "no run time",
    "no_processors": "neither requested nor allocated processors",
    "too_large": "more processors than the machine has",
}
#: What was settled for jobs that can be replayed, on a machine that is large enough.
SETTLED: Final = {
    "no_requested_time": "no requested time: the run time was taken",
    "overran": "ran for longer than requested",
    "unsorted": "stood behind a job submitted later: put in order of submission",
}

#: Names of the fields read, by their number.
_NAMES: Final = {
    1: "job number",
    2: "submit time",
    4: "run time",
    5: "allocated processors",
    8: "requested processors",
    9: "requested time",
    11: "status",
    15: "queue number",
}
_FIELDS: Final = 18
_HEADER: Final = re.compile(r";+\s*([A-Za-z]\w*)\s*:\s*(.*)")
_COUNT: Final = re.compile(r"[0-9]{1,9}(?![0-9.])")
_NUMBER: Final = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
_GZIP: Final = b"\x1f\x8b"
#: No trace is as long, in seconds: some thirty thousand years.
_FAR: Final = 10**12


@dataclass(slots=True)
class Columns:
    """Jobs, one in each row; times in seconds of the trace."""

    numbers: list[int] = field(default_factory=list)
    submits: list[float] = field(default_factory=list)
    #: How long they ran.
    runs: list[float] = field(default_factory=list)
    #: How long they said that they would; the run time where they did not.
    requests: list[float] = field(default_factory=list)
    processors: list[int] = field(default_factory=list)
    #: What SWF calls the queue number; -1: not known.
    queues: list[int] = field(default_factory=list)

    def rows(self, chosen: Sequence[int]) -> Columns:
        """Return these rows, in this order."""
        return Columns(
            [self.numbers[row] for row in chosen],
            [self.submits[row] for row in chosen],
            [self.runs[row] for row in chosen],
            [self.requests[row] for row in chosen],
            [self.processors[row] for row in chosen],
            [self.queues[row] for row in chosen],
        )


@dataclass(slots=True)
class Trace:
    """What can be replayed of a trace, in order of submission; who is submitted in one moment, in order of the file."""

    name: str
    jobs: Columns
    #: {name: what it says} of the comments at the top.
    header: dict[str, str]
    #: {reason of `SKIPPED`: how many jobs}
    skipped: Counter[str]
    #: {what of `SETTLED`: how many jobs}
    settled: Counter[str]

    @property
    def machine(self) -> int | None:
        """How many processors the machine had, by the header: MaxProcs, else MaxNodes."""
        for name in ("MaxProcs", "MaxNodes"):
            found = _COUNT.match(self.header.get(name, ""))
            if found is not None and int(found.group()) > 0:
                return int(found.group())
        return None

    def on(self, machine: int) -> Trace:
        """Return what of it such a machine can run; the rest counts as skipped."""
        fitting = [row for row, count in enumerate(self.jobs.processors) if count <= machine]
        lost = len(self.jobs.processors) - len(fitting)
        if not lost:
            return self
        skipped = self.skipped + Counter(too_large=lost)
        return Trace(self.name, self.jobs.rows(fitting), self.header, skipped, self.settled)


def read_trace(stream: BufferedReader, name: str) -> Trace:
    """Read a trace, as text or gzip.

    Args:
        stream: Open, and left open.
        name: Of the file, for messages.

    Raises:
        TraceError: A line that is none of SWF, or a damaged gzip file.
    """
    lines: IO[bytes] = stream
    if stream.peek(2)[:2] == _GZIP:
        lines = cast(IO[bytes], gzip.GzipFile(fileobj=stream, mode="rb"))
    trace = Trace(name, Columns(), {}, Counter(), Counter())
    try:
        _read_lines(lines, trace)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(name, None, "", f"damaged: {error}", "a whole gzip file") from error
    submits = trace.jobs.submits
    behind = sum(submit < latest for submit, latest in zip(submits, accumulate(submits, max), strict=True))
    if behind:
        trace.settled["unsorted"] = behind
        trace.jobs = trace.jobs.rows(sorted(range(len(submits)), key=submits.__getitem__))
    return trace


def _read_lines(lines: Iterable[bytes], trace: Trace) -> None:
    for at, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        if fields[0][:1] == b";":
            _read_comment(line, trace.header)
            continue
        try:
            (number, submit, _, run, allocated, _, _, asked, request, _, status, _, _, _, queue, _, _, _) = (
                map(int, fields)
            )
        except ValueError:
            _take(trace, at, *_numbers(fields, trace.name, at))
        else:
            _take(trace, at, number, submit, run, allocated, asked, request, status, queue)


def _take(
    trace: Trace,
    at: int,
    number: float,
    submit: float,
    run: float,
    allocated: float,
    asked: float,
    request: float,
    status: float,
    queue: float,
) -> None:
    """Take in the job of a line, or count why not."""
    if not -_FAR <= min(submit, run, request) <= max(submit, run, request) <= _FAR:
        raise TraceError(trace.name, at, "times", "a time out of this world", f"at most {_FAR} seconds")
    processors = asked if asked > 0 else allocated
    if 2 <= status <= 4:
        trace.skipped["partial"] += 1
    elif status == 5 and run <= 0:
        trace.skipped["cancelled"] += 1
    elif submit < 0:
        trace.skipped["no_submit_time"] += 1
    elif run < 0:
        trace.skipped["no_run_time"] += 1
    elif processors <= 0:
        trace.skipped["no_processors"] += 1
    else:
        if request <= 0:
            trace.settled["no_requested_time"] += 1
            request = run
        elif run > request:
            trace.settled["overran"] += 1
        jobs = trace.jobs
        jobs.numbers.append(int(number))
        jobs.submits.append(submit)
        jobs.runs.append(run)
        jobs.requests.append(request)
        jobs.processors.append(int(processors))
        jobs.queues.append(int(queue))


def _read_comment(line: bytes, header: dict[str, str]) -> None:
    found = _HEADER.match(line.decode("latin-1").strip())
    if found is not None:
        header.setdefault(found.group(1), found.group(2).strip())


def _numbers(fields: list[bytes], name: str, at: int) -> list[float]:
    """The fields that matter, of a line that does not consist of 18 whole numbers. Raises TraceError where it is wrong."""
    if len(fields) != _FIELDS:
        raise TraceError(
            name,
            at,
            "",
            f"{len(fields)} fields",
            f"{_FIELDS} numbers, -1 where one is not known, or a comment after ;",
        )
    found: list[float] = []
    for field_number, meaning in _NAMES.items():
        text = fields[field_number - 1].decode("latin-1")
        is_time = meaning.endswith("time")
        value = float(text) if _NUMBER.fullmatch(text) else None
        if value is None or not (is_time or value.is_integer()):
            expected = "a number of seconds" if is_time else "a whole number"
            raise TraceError(
                name,
                at,
                f"field {field_number} ({meaning})",
                f"{text[:40]!r}",
                f"{expected}, -1 where it is not known",
            )
        found.append(int(value) if value.is_integer() else value)
    return found
