"""Replays a trace with conservative backfilling: everybody in the queue has a reservation, and nobody delays one.

Who is submitted gets the soonest time at which it fits for as long as it asked, beside everything that has a reservation
already. When something ends, the plan is compressed: in the order of the queue, each is taken out of it and put back at the
soonest time, which is never a later one. That is done once, though who moves may leave room for one before it: it moves with the
next end, or starts as planned.

What runs for longer than it asked breaks promises whatever is done. While something does, it is expected to end at any moment,
and at each moment at which something happens the plan is made anew, in the order of the queue.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right

from liborch.sim.swf_trace import Columns


class Plan:
    """How many processors are free from now on, in steps.

    Args:
        machine: How many there are.
        now: Seconds; nothing is known of what was before.
    """

    def __init__(self, machine: int, now: float) -> None:
        #: When a step begins, and what is free in it; the last has no end. Two neighbours differ in what is free.
        self.times: list[float] = [now]
        self.free: list[int] = [machine]

    def advance(self, now: float) -> None:
        """Forget what was."""
        at = bisect_right(self.times, now) - 1
        if at > 0:
            del self.times[:at]
            del self.free[:at]
        self.times[0] = now

    def take(self, processors: int, begin: float, end: float) -> None:
        """Take room in the plan from `begin`, which is not before now, until `end`; a negative number gives it back."""
        if begin >= end:
            return
        first, last = self._step(begin), self._step(end)
        free = self.free
        for at in range(first, last):
            free[at] -= processors
        self._join(last)
        self._join(first)

    def soonest(
        self, processors: int, length_s: float, has_room_at: float = math.inf, before: float = math.inf
    ) -> float:
        """Return the first time at which there is room for so long.

        Args:
            processors: How many are asked for.
            length_s: For how long, in seconds.
            has_room_at: When it has a place in the plan already; found where no sooner time is.
            before: Of other times only those before this one are looked at.
        """
        begin: float | None = None
        for time, free in zip(self.times, self.free, strict=True):
            if begin is not None and time >= begin + length_s:
                return begin
            if time >= has_room_at:
                break
            if free < processors:
                begin = None
                if time >= before:
                    break
            elif begin is None:
                if time >= before:
                    break
                begin = time
        return has_room_at if begin is None else begin

    def _step(self, time: float) -> int:
        """The number of the step that begins then; it is made where there is none."""
        at = bisect_right(self.times, time) - 1
        if self.times[at] == time:
            return at
        self.times.insert(at + 1, time)
        self.free.insert(at + 1, self.free[at])
        return at + 1

    def _join(self, at: int) -> None:
        if 0 < at < len(self.times) and self.free[at] == self.free[at - 1]:
            del self.times[at]
            del self.free[at]


class PlanReplay:
    """One replay; `run` it once.

    Args:
        columns: The jobs in order of submission, which is that of the queue.
        machine: How many processors there are; nobody asks for more.
    """

    def __init__(self, columns: Columns, machine: int) -> None:
        self._runs = columns.runs
        #: What takes no time is given the shortest there is in a trace: else two of them could have the same room.
        self._requests = [request or 1 for request in columns.requests]
        self._processors = columns.processors
        self._submits = columns.submits
        self._machine = machine
        self._plan = Plan(machine, 0)
        #: When each started, and when it is expected to: its reservation.
        self._starts: list[float] = [-1.0] * len(columns.submits)
        self._planned: list[float] = [-1.0] * len(columns.submits)
        #: Rows that wait, in order of the queue.
        self._queue: dict[int, None] = {}
        #: A heap of (reservation, row); outdated ones are skipped.
        self._due: list[tuple[float, int]] = []
        #: Heaps of (when, row) of what runs: its end, and the end it said.
        self._ends: list[tuple[float, int]] = []
        self._expected: list[tuple[float, int]] = []
        self._running: set[int] = set()
        #: What runs for longer than it said.
        self._overdue: set[int] = set()
        #: Room was left in the plan, before this time, that somebody in it may use. No time: everybody starts as soon as can be.
        self._loose_until = -math.inf

    def run(self) -> list[float]:
        """Return when each starts, in seconds of the trace, by row."""
        submits, ends = self._submits, self._ends
        count = len(submits)
        arrived = 0
        while arrived < count or self._queue or ends:
            now = min(
                submits[arrived] if arrived < count else math.inf,
                ends[0][0] if ends else math.inf,
                self._next_reservation(),
            )
            ended = is_late = False
            self._plan.advance(now)
            while ends and ends[0][0] == now:
                expected = self._end(heapq.heappop(ends)[1], now)
                self._loose_until = max(self._loose_until, expected)
                is_late |= expected < now
                ended = True
            self._look_for_overdue(now)
            if is_late or self._overdue:
                self._make_anew(now)
            elif ended and self._loose_until > now:
                self._compress()
            while arrived < count and submits[arrived] == now:
                self._queue[arrived] = None
                self._insert(arrived)
                arrived += 1
            self._start_due(now)
        return self._starts

    def _end(self, row: int, now: float) -> float:
        """Something ended; return when it said that it would."""
        self._running.discard(row)
        self._overdue.discard(row)
        expected = self._starts[row] + self._requests[row]
        self._plan.take(-self._processors[row], now, expected)
        return expected

    def _look_for_overdue(self, now: float) -> None:
        expected = self._expected
        while expected and expected[0][0] <= now:
            row = heapq.heappop(expected)[1]
            if row in self._running:
                self._overdue.add(row)

    def _next_reservation(self) -> float:
        """When the next is planned to start; what is planned around something overdue is looked at when that ends."""
        due = self._due
        while due and not self._is_planned(*due[0]):
            heapq.heappop(due)
        return due[0][0] if due and not self._overdue else math.inf

    def _is_planned(self, begin: float, row: int) -> bool:
        return row in self._queue and self._planned[row] == begin

    def _insert(self, row: int) -> None:
        processors, request = self._processors[row], self._requests[row]
        begin = self._plan.soonest(processors, request)
        self._plan.take(processors, begin, begin + request)
        self._planned[row] = begin
        heapq.heappush(self._due, (begin, row))

    def _compress(self) -> None:
        plan, planned = self._plan, self._planned
        before = self._loose_until
        self._loose_until = -math.inf
        for row in self._queue:
            processors, request, begin = self._processors[row], self._requests[row], planned[row]
            sooner = plan.soonest(processors, request, begin, before)
            if sooner < begin:
                plan.take(-processors, begin, begin + request)
                plan.take(processors, sooner, sooner + request)
                planned[row] = sooner
                heapq.heappush(self._due, (sooner, row))
                before = max(before, begin + request)
                # For those before it in the queue, the next time.
                self._loose_until = max(self._loose_until, begin + request)

    def _make_anew(self, now: float) -> None:
        self._plan = Plan(self._machine, now)
        self._due.clear()
        self._loose_until = -math.inf
        at_any_moment = math.nextafter(now, math.inf)
        for row in self._running:
            end = self._starts[row] + self._requests[row]
            self._plan.take(self._processors[row], now, end if end > now else at_any_moment)
        for row in self._queue:
            self._insert(row)

    def _start_due(self, now: float) -> None:
        due = self._due
        while due and due[0][0] <= now:
            begin, row = heapq.heappop(due)
            if self._is_planned(begin, row):
                del self._queue[row]
                self._starts[row] = now
                self._running.add(row)
                heapq.heappush(self._ends, (now + self._runs[row], row))
                heapq.heappush(self._expected, (now + self._requests[row], row))
