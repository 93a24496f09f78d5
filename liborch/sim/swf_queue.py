"""Replays a trace against one queue: FCFS, and EASY backfilling in whatever order the queue has.

In one moment happen all ends, then all arrivals, then one pass over the queue. The pass starts the head as long as it fits.
With backfilling, the first that does not gets a reservation, and those behind it are asked in turn whether they may pass it,
by the rules of `liborch.core.backfill`, by which executions come to nodes as well. The core's machine itself cannot be used:
it places after each event rather than after each moment, and hands orders ahead.

Jobs go by their position in the queue: their place in the columns. Other halves: who waits behind the head is kept by
`swf_waiting.py`; `swf_plan.py` has conservative backfilling, in which everybody has a reservation.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence

from liborch.core.backfill import Reservation, reserve
from liborch.sim.swf_trace import Columns
from liborch.sim.swf_waiting import Waiting


class QueueReplay:
    """One replay; `run` it once.

    Args:
        columns: The jobs in the order of the queue.
        machine: How many processors there are; nobody asks for more.
        backfill: Whether others may pass the first in the queue that does not fit.
    """

    def __init__(self, columns: Columns, machine: int, *, backfill: bool) -> None:
        self._runs = columns.runs
        self._requests = columns.requests
        self._processors = columns.processors
        self._submits = columns.submits
        self._backfills = backfill
        self._free = machine
        #: When each started, by position; negative: it has not.
        self._starts: list[float] = [-1.0] * len(columns.submits)
        #: (when, position): a heap of what runs.
        self._ends: list[tuple[float, int]] = []
        #: A heap of positions. Who was let pass is left in it, and skipped.
        self._queue: list[int] = []
        #: Those of the queue that could not start when they came, and whether somebody is one of them.
        self._waiting = Waiting(columns.processors, columns.requests)
        self._is_held = bytearray(len(columns.submits))
        #: (expected end, processors) of what runs, soonest first; {position: the same} of what is yet to be listed there.
        self._expected: list[tuple[float, int]] = []
        self._unlisted: dict[int, tuple[float, int]] = {}
        #: What is kept, and for whom. Good until something ends, or should have: what is let pass does not change it.
        self._kept: Reservation[int] | None = None
        self._kept_for = -1

    def run(self, arrivals: Sequence[int]) -> list[float]:
        """Return when each starts, in seconds of the trace, by position. `arrivals`: positions in order of submission."""
        submits, ends, queue = self._submits, self._ends, self._queue
        count = len(arrivals)
        arrived = 0
        while arrived < count or ends:
            now = submits[arrivals[arrived]] if arrived < count else ends[0][0]
            if ends and ends[0][0] <= now:
                now = ends[0][0]
                while ends and ends[0][0] == now:
                    self._end(heapq.heappop(ends)[1])
                self._kept = None
            came = arrived
            while arrived < count and submits[arrivals[arrived]] == now:
                heapq.heappush(queue, arrivals[arrived])
                arrived += 1
            if self._start_heads(now) and self._backfills:
                self._let_pass(arrivals[came:arrived], now)
        return self._starts

    def _start(self, position: int, now: float) -> None:
        processors = self._processors[position]
        self._starts[position] = now
        self._free -= processors
        heapq.heappush(self._ends, (now + self._runs[position], position))
        self._unlisted[position] = (now + self._requests[position], processors)

    def _end(self, position: int) -> None:
        processors = self._processors[position]
        self._free += processors
        if self._unlisted.pop(position, None) is None:
            entry = (self._starts[position] + self._requests[position], processors)
            del self._expected[bisect_left(self._expected, entry)]

    def _start_heads(self, now: float) -> bool:
        """Start the first of the queue as long as it fits; whether somebody is left."""
        queue, processors, starts = self._queue, self._processors, self._starts
        while queue:
            head = queue[0]
            if starts[head] < 0:
                if processors[head] > self._free:
                    return True
                if self._is_held[head]:
                    self._waiting.remove(head)
                self._start(head, now)
            heapq.heappop(queue)
        return False

    def _let_pass(self, came: Sequence[int], now: float) -> None:
        """Start who may pass the head. `came`: who was submitted just now."""
        new = [position for position in came if self._starts[position] < 0]
        kept = self._kept
        if kept is not None and self._kept_for == self._queue[0] and now <= kept.begin:
            # Who was not let pass then is not now: there is less room, and it would be gone later.
            for position in sorted(new):
                if not self._passes(position, kept, now):
                    self._hold(position)
            return
        for position in new:
            self._hold(position)
        if self._waiting.least > self._free:
            self._kept = None
            return
        kept = self._reserve(now)
        while (position := self._waiting.first(self._free, kept, now)) >= 0:
            self._waiting.remove(position)
            passed = self._passes(position, kept, now)
            assert passed

    def _passes(self, position: int, kept: Reservation[int], now: float) -> bool:
        """Start it if it fits and may pass the head."""
        processors, until = self._processors[position], now + self._requests[position]
        if processors > self._free or not kept.lets_pass(processors, until):
            return False
        kept.passed(processors, until)
        self._start(position, now)
        return True

    def _hold(self, position: int) -> None:
        self._is_held[position] = True
        self._waiting.add(position)

    def _reserve(self, now: float) -> Reservation[int]:
        """What is kept for the head. It is among those who wait, but never fits."""
        for entry in self._unlisted.values():
            insort(self._expected, entry)
        self._unlisted.clear()
        head = self._queue[0]
        kept = reserve(self._processors[head], self._free, self._expected, now)
        assert kept is not None, "nobody asks for more than the machine has"
        self._kept, self._kept_for = kept, head
        return kept
