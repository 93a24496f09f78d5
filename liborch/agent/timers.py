"""Calls to be made later: a heap whose entries can be taken out again. Pure bookkeeping; the keeper's loop asks what is due."""

import heapq


class Timers:
    """Entries are lists `[when, number, action]`; a cancelled one has no action and so holds on to nothing."""

    def __init__(self, clock):
        self._clock = clock
        self._heap = []
        self._count = 0
        self._dead = 0

    def __len__(self):
        return len(self._heap) - self._dead

    def at(self, delay_s, action):
        """Have `action` called after so many seconds; returns the entry, for `cancel`."""
        self._count += 1
        entry = [self._clock() + delay_s, self._count, action]
        heapq.heappush(self._heap, entry)
        return entry

    def cancel(self, entry):
        """Take an entry out. Fine when it was called or cancelled before."""
        if entry[2] is None:
            return
        entry[2] = None
        self._dead += 1
        # Executions that end long before their walltime must not pile up here until then.
        if self._dead > 256 and self._dead > len(self._heap) // 2:
            self._heap = [each for each in self._heap if each[2] is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def next(self):
        """When the next one is due, or None."""
        return self._heap[0][0] if self._heap else None

    def run_due(self, now):
        """Make the calls that are due."""
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            action, entry[2] = entry[2], None
            if action is None:
                self._dead -= 1
            else:
                action()
