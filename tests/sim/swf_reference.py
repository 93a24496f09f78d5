"""Schedulers written from the textbooks, slowly: what the replay of traces is compared with.

After Mu'alem and Feitelson, "Utilization, Predictability, Workloads, and User Runtime Estimates in Scheduling the IBM SP2
with Backfilling" (2001). Nothing is kept from one decision to the next: processors are looked at one by one, plans are searched
from the start. Of the code under test nothing is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count


@dataclass
class Job:
    """A job; `request` is the time it asked for. All times are whole seconds."""

    submit: int
    run: int
    request: int
    processors: int
    start: int | None = None
    reservation: int | None = None

    @property
    def end(self) -> int:
        assert self.start is not None
        return self.start + self.run


#: What a policy is asked in each moment: now, what runs, who waits, whether anything ended. It moves those it starts from the
#: one to the other.
Policy = Callable[[int, list[Job], list[Job], bool], None]


def simulate(jobs: list[Job], decide: Policy) -> list[int]:
    """In one moment all ends, then all arrivals, then one decision. Returns when each started."""
    to_come = sorted(jobs, key=lambda job: job.submit)
    running: list[Job] = []
    queue: list[Job] = []
    while to_come or running:
        planned = [job.reservation for job in queue if job.reservation is not None]
        now = min([job.end for job in running] + [job.submit for job in to_come[:1]] + planned)
        ended = any(job.end <= now for job in running)
        running[:] = [job for job in running if job.end > now]
        while to_come and to_come[0].submit == now:
            queue.append(to_come.pop(0))
        decide(now, running, queue, ended)
    assert not queue
    return [job.start for job in jobs if job.start is not None]


def begin(job: Job, now: int, running: list[Job], queue: list[Job]) -> None:
    """Start one."""
    job.start = now
    queue.remove(job)
    running.append(job)


def fcfs(jobs: list[Job], machine: int) -> list[int]:
    """First come, first served: whoever does not fit holds up everybody behind."""

    def decide(now: int, running: list[Job], queue: list[Job], ended: bool) -> None:
        while queue and queue[0].processors + sum(job.processors for job in running) <= machine:
            begin(queue[0], now, running, queue)

    return simulate(jobs, decide)


def easy(jobs: list[Job], machine: int, order: Callable[[Job], int] | None = None) -> list[int]:
    """Aggressive backfilling: only the first that does not fit has a reservation. `order`: who is first in the queue."""

    def next_start(now: int, running: list[Job], queue: list[Job]) -> Job | None:
        # When each processor is expected to be free; what should have ended is expected to end now.
        busy_until: list[int] = []
        for job in running:
            assert job.start is not None
            busy_until += [max(now, job.start + job.request)] * job.processors
        free = machine - len(busy_until)
        need = queue[0].processors
        if need <= free:
            return queue[0]
        shadow = sorted(busy_until)[need - free - 1]
        extra = free + sum(1 for time in busy_until if time <= shadow) - need
        for job in queue[1:]:
            if job.processors <= free and (now + job.request <= shadow or job.processors <= extra):
                return job
        return None

    def decide(now: int, running: list[Job], queue: list[Job], ended: bool) -> None:
        if order is not None:
            queue.sort(key=order)
        while queue and (job := next_start(now, running, queue)) is not None:
            begin(job, now, running, queue)

    return simulate(jobs, decide)


def conservative(jobs: list[Job], machine: int) -> list[int]:
    """Everybody has a reservation, given in order of submission; what ends early moves others forward, in that order.

    For traces in which nobody runs for longer than asked.
    """

    def decide(now: int, running: list[Job], queue: list[Job], ended: bool) -> None:
        for job in [job for job in queue if ended or job.reservation is None]:
            others = [other for other in running + queue if other is not job]
            job.reservation = soonest(job, others, machine, now)
        for job in [job for job in queue if job.reservation == now]:
            begin(job, now, running, queue)

    return simulate(jobs, decide)


def soonest(job: Job, others: list[Job], machine: int, now: int) -> int:
    """The first second from which on it fits, for as long as it asked, beside all that runs or has a reservation."""
    taken: list[tuple[int, int, int]] = []
    for other in others:
        start = other.start if other.start is not None else other.reservation
        if start is not None:
            taken.append((start, start + other.request, other.processors))

    def fits(at: int) -> bool:
        return job.processors + sum(n for start, end, n in taken if start <= at < end) <= machine

    for first in count(now):
        if all(fits(at) for at in range(first, first + job.request)):
            return first
    raise AssertionError("unreachable")
