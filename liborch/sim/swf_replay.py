"""Replays a trace under a policy, and what came of it in figures.

=============  =======================================================================================================
fcfs           in order of submission; nobody passes anybody
easy           the first that does not fit gets a reservation; others may pass it where it starts no later for that
priority       the same, but the queue is in the order of a rule (`ORDERS`), then of submission; who comes may become
               the first, and gets the reservation then
conservative   everybody gets a reservation when submitted
=============  =======================================================================================================

Jobs run for as long as they did in the trace. What they asked for is all that is known of that before, and is the expected end.
How the queues are played is in `swf_queue.py` and `swf_plan.py`; reading traces and printing figures is left to `swf.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from liborch.errors import SpecError, TraceError
from liborch.sim.swf_plan import PlanReplay
from liborch.sim.swf_queue import QueueReplay
from liborch.sim.swf_trace import SKIPPED, Columns, Trace

POLICIES: Final = ("fcfs", "easy", "conservative", "priority")
#: Waits are told beside run times of this many seconds at least: else the shortest jobs would make the mean.
THRESHOLD_S: Final = 10.0

#: {rule: what comes first has the least}
ORDERS: Final[dict[str, Callable[[Columns, int], float]]] = {
    "shortest": lambda jobs, row: jobs.requests[row],
    "longest": lambda jobs, row: -jobs.requests[row],
    "smallest": lambda jobs, row: jobs.processors[row],
    "largest": lambda jobs, row: -jobs.processors[row],
    # Unknown ones are last.
    "queue": lambda jobs, row: jobs.queues[row] if jobs.queues[row] >= 0 else math.inf,
}


@dataclass(frozen=True, slots=True)
class Replay:
    """What a policy made of a trace."""

    trace: Trace
    machine: int
    policy: str
    #: The rule of `priority`; "" for other policies.
    order: str
    #: When each job of `trace.jobs` started, in seconds of the trace.
    starts: list[float]


@dataclass(frozen=True, slots=True)
class Figures:
    """A replay, summed up. Times in seconds."""

    jobs: int
    mean_wait_s: float
    max_wait_s: float
    #: Mean of (wait + run time) / (run time, or the threshold where that is more), but at least 1.
    mean_bounded_slowdown: float
    #: Processors x run time of all jobs, of what there was until the makespan.
    utilisation: float
    #: From the first submission to the last end.
    makespan_s: float


def replay(trace: Trace, machine: int | None, policy: str, order: str = "shortest") -> Replay:
    """Play a trace.

    Args:
        trace: As read; jobs that are larger than the machine are skipped, and counted.
        machine: How many processors there are; None: as many as the trace's header says.
        policy: One of `POLICIES`.
        order: The rule of `priority`, one of `ORDERS`.

    Raises:
        SpecError: A machine, policy or rule that cannot be.
        TraceError: Nobody knows how many processors there were, or there is no job to replay.
    """
    if policy not in POLICIES:
        raise SpecError(f"no policy {policy!r}; there are: {', '.join(POLICIES)}")
    if order not in ORDERS:
        raise SpecError(f"no order {order!r}; there are: {', '.join(ORDERS)}")
    if machine is None:
        machine = trace.machine
        if machine is None:
            raise TraceError(
                trace.name, None, "", "its header says nothing of MaxProcs or MaxNodes", "--processors N"
            )
    if machine < 1:
        raise SpecError(f"a machine of {machine} processors; expected 1 or more")
    trace = trace.on(machine)
    jobs = trace.jobs
    if not jobs.numbers:
        skipped = "; ".join(f"{count} skipped: {SKIPPED[why]}" for why, count in trace.skipped.items())
        raise TraceError(trace.name, None, "", f"no job to replay{f' ({skipped})' if skipped else ''}", "one")
    if policy == "conservative":
        return Replay(trace, machine, policy, "", PlanReplay(jobs, machine).run())
    rows = range(len(jobs.numbers))
    if policy != "priority":
        starts = QueueReplay(jobs, machine, backfill=policy == "easy").run(rows)
        return Replay(trace, machine, policy, "", starts)
    rule = ORDERS[order]
    by_rule = sorted(rows, key=lambda row: rule(jobs, row))
    position = [0] * len(by_rule)
    for at, row in enumerate(by_rule):
        position[row] = at
    by_position = QueueReplay(jobs.rows(by_rule), machine, backfill=True).run(position)
    return Replay(trace, machine, policy, order, [by_position[at] for at in position])


def sum_up(done: Replay) -> Figures:
    """Return the figures of a replay."""
    jobs, starts = done.trace.jobs, done.starts
    waits = [start - submit for start, submit in zip(starts, jobs.submits, strict=True)]
    slowdowns = math.fsum(
        max(1.0, (wait + run) / max(run, THRESHOLD_S)) for wait, run in zip(waits, jobs.runs, strict=True)
    )
    makespan = max(start + run for start, run in zip(starts, jobs.runs, strict=True)) - jobs.submits[0]
    work = math.fsum(run * count for run, count in zip(jobs.runs, jobs.processors, strict=True))
    return Figures(
        jobs=len(starts),
        mean_wait_s=math.fsum(waits) / len(waits),
        max_wait_s=max(waits),
        mean_bounded_slowdown=slowdowns / len(starts),
        utilisation=work / (done.machine * makespan) if makespan else 0.0,
        makespan_s=makespan,
    )
