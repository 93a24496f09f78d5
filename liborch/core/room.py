"""Which node fits a request best, in O(log n), for any number of nodes.

Nodes lie in levels by free GPUs and free cores; a bit mask per GPU level tells which core levels are not empty, and
within a level nodes are sorted by free memory. Best fit: the fewest spare GPUs, then cores, then memory. Levels are
bounded by the size of a node, not by the number of nodes. Nodes that are there for a time only (an allocation's) are kept
apart by when that is over (`Rooms`): there are few allocations, however many nodes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Container

from liborch.quantities import format_size


class _Index:
    """The nodes with anything free whose time is over at the same instant."""

    __slots__ = ("_levels", "_masks", "count")

    def __init__(self) -> None:
        #: How many nodes.
        self.count = 0
        self._masks: dict[int, int] = {}
        self._levels: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def put(self, node: int, gpus: int, cpus: int, memory_bytes: int) -> None:
        """Take in a node that is not here."""
        self.count += 1
        key = (gpus, cpus)
        level = self._levels.get(key)
        if level is None:
            level = self._levels[key] = []
        if not level:
            self._masks[gpus] = self._masks.get(gpus, 0) | (1 << cpus)
        insort(level, (memory_bytes, node))

    def remove(self, node: int, gpus: int, cpus: int, memory_bytes: int) -> None:
        """Take out a node that was put in with these."""
        self.count -= 1
        level = self._levels[gpus, cpus]
        del level[bisect_left(level, (memory_bytes, node))]
        if not level:
            self._masks[gpus] &= ~(1 << cpus)

    def best(self, cpus: int, memory_bytes: int, gpus: int, skip: Container[int] = ()) -> int:
        """Return the node that fits best, or -1. `skip`: nodes kept for somebody else."""
        levels = self._masks
        for spare_gpus in sorted(levels) if len(levels) > 1 else levels:
            if spare_gpus < gpus:
                continue
            mask = levels[spare_gpus] >> cpus
            spare = cpus
            while mask:
                step = (mask & -mask).bit_length() - 1
                spare += step
                level = self._levels[spare_gpus, spare]
                # Also for no memory at all: a node that has come back smaller may have less than none.
                at = bisect_left(level, (memory_bytes, -1))
                while at < len(level):
                    if level[at][1] not in skip:
                        return level[at][1]
                    at += 1
                mask >>= step + 1
                spare += 1
        return -1


class Rooms:
    """The nodes with anything free, each until its time is over."""

    def __init__(self) -> None:
        #: {node: (when its time is over, free GPUs, cores, memory)}: to be read.
        self.nodes: dict[int, tuple[float, int, int, int]] = {}
        self._forever = _Index()
        #: {when the time of its nodes is over: them}
        self._by_end: dict[float, _Index] = {math.inf: self._forever}
        #: Those times, the soonest first.
        self._ends = [math.inf]

    def put(self, node: int, cpus: int, memory_bytes: int, gpus: int, until: float = math.inf) -> None:
        """State what is free on a node; nothing free takes it out. `until`: when its time is over, seconds."""
        if cpus <= 0:
            self.remove(node)
            return
        new = (until, gpus, cpus, memory_bytes)
        if self.nodes.get(node) == new:
            return
        self.remove(node)
        self.nodes[node] = new
        index = self._by_end.get(until)
        if index is None:
            index = self._by_end[until] = _Index()
            insort(self._ends, until)
        index.put(node, gpus, cpus, memory_bytes)

    def remove(self, node: int) -> None:
        """The node is out of use."""
        old = self.nodes.pop(node, None)
        if old is None:
            return
        until, gpus, cpus, memory_bytes = old
        index = self._by_end[until]
        index.remove(node, gpus, cpus, memory_bytes)
        if not index.count and index is not self._forever:
            del self._by_end[until]
            del self._ends[bisect_left(self._ends, until)]

    def free_cpus(self) -> int:
        """Free cores on all nodes; counts them, so not for the hot path."""
        return sum(cpus for _until, _gpus, cpus, _memory in self.nodes.values())

    def best(
        self,
        cpus: int,
        memory_bytes: int,
        gpus: int,
        skip: Container[int] = (),
        gone_by: float | None = None,
    ) -> int:
        """Return the node that fits best, or -1.

        Args:
            skip: Nodes kept for somebody else.
            gone_by: When the request ends; of the nodes that are there until then, those are looked at first whose time
                is over soonest. None: nobody knows, and nodes with the most time left come first.
        """
        if len(self._ends) == 1:
            return self._forever.best(cpus, memory_bytes, gpus, skip)
        if gone_by is None:
            suited = self._ends[::-1]
        else:
            suited = self._ends[bisect_left(self._ends, gone_by) :]
        for until in suited:
            node = self._by_end[until].best(cpus, memory_bytes, gpus, skip)
            if node >= 0:
                return node
        return -1


def describe_room(cpus: int, memory_bytes: int, gpus: int) -> str:
    """`2 cores, 4 GiB, 1 GPU`: for people."""
    text = f"{cpus} core{'s' if cpus != 1 else ''}"
    if memory_bytes:
        text += f", {format_size(memory_bytes)}"
    if gpus:
        text += f", {gpus} GPU{'s' if gpus != 1 else ''}"
    return text
