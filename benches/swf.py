"""How fast workload traces are replayed with EASY backfilling: where jobs rarely wait, and where thousands do.

Every start is first compared, to the second, with that of a scheduler written from the textbook
(`tests/sim/swf_reference.py`). Reading the trace is measured apart.
"""

from __future__ import annotations

import gc
import io
import time

import _lab

from liborch.sim.swf_replay import replay
from liborch.sim.swf_trace import Trace, read_trace
from tests.sim import swf_reference as reference
from tests.sim.swf_traces import made

JOBS, PROCESSORS = 10_000, 128
#: What part of the machine's time the jobs take, at the rate at which they are submitted.
LOW, OVERLOAD = 0.3, 10.0
ROUNDS = 5


def main() -> None:
    measure("swf_easy", LOW, target=50_000)
    measure("swf_easy_overload", OVERLOAD)


def measure(bench: str, load: float, target: int | None = None) -> None:
    """Check and time one trace; the best of some rounds."""
    text = made(1, JOBS, PROCESSORS, load).encode()
    began = time.perf_counter()
    trace = read_trace(io.BufferedReader(io.BytesIO(text)), f"a trace at load {load}")
    read_s = time.perf_counter() - began
    starts = replay(trace, PROCESSORS, "easy").starts
    check(trace, starts)
    took: list[float] = []
    for _ in range(ROUNDS):
        gc.collect()
        began = time.perf_counter()
        replay(trace, PROCESSORS, "easy")
        took.append(time.perf_counter() - began)
    _lab.report(
        bench,
        round(JOBS / min(took)),
        "jobs/s",
        better="higher",
        command=f"EASY, {JOBS} jobs on {PROCESSORS} processors at load {load}; best of {ROUNDS}",
        target=target,
        longest_queue=longest_queue(trace, starts),
        read_jobs_per_s=round(JOBS / read_s),
    )


def check(trace: Trace, starts: list[float]) -> None:
    """End the bench when a job does not start in the second in which it should."""
    jobs = trace.jobs
    rows = zip(jobs.submits, jobs.runs, jobs.requests, jobs.processors, strict=True)
    expected = reference.easy([reference.Job(*map(int, row)) for row in rows], PROCESSORS)
    if len(starts) != JOBS or starts != expected:
        raise SystemExit(f"{trace.name}: jobs do not start as by the book")


def longest_queue(trace: Trace, starts: list[float]) -> int:
    """How many waited at once, at most."""
    waiting = most = 0
    changes = [(time, 1) for time in trace.jobs.submits] + [(time, -1) for time in starts]
    for _time, change in sorted(changes):
        waiting += change
        most = max(most, waiting)
    return most


if __name__ == "__main__":
    main()
