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


class Index:
    """The nodes with anything free."""

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}
        self._levels: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._where: dict[int, tuple[int, int, int]] = {}

    def put(self, node: int, cpus: int, memory_bytes: int, gpus: int) -> None:
        """State what is free on a node; nothing free takes it out."""
        old = self._where.get(node)
        if old is not None:
            if old == (gpus, cpus, memory_bytes):
                return
            self._take_out(node, old)
        if cpus <= 0:
            self._where.pop(node, None)
            return
        self._where[node] = (gpus, cpus, memory_bytes)
        key = (gpus, cpus)
        level = self._levels.get(key)
        if level is None:
            level = self._levels[key] = []
        if not level:
            self._masks[gpus] = self._masks.get(gpus, 0) | (1 << cpus)
        insort(level, (memory_bytes, node))

    def remove(self, node: int) -> None:
        """The node is out of use."""
        old = self._where.pop(node, None)
        if old is not None:
            self._take_out(node, old)

    def _take_out(self, node: int, old: tuple[int, int, int]) -> None:
        gpus, cpus, memory_bytes = old
        level = self._levels[gpus, cpus]
        del level[bisect_left(level, (memory_bytes, node))]
        if not level:
            self._masks[gpus] &= ~(1 << cpus)

    def free_cpus(self) -> int:
        """Free cores on all nodes; counts them, so not for the hot path."""
        return sum(cpus for _gpus, cpus, _memory in self._where.values())

    def __bool__(self) -> bool:
        return bool(self._where)

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
        self._forever = Index()
        #: {when the time of its nodes is over: them}
        self._by_end: dict[float, Index] = {math.inf: self._forever}
        #: Those times, the soonest first.
        self._ends = [math.inf]
        #: {node: when its time is over}; only those whose time is.
        self._end_of: dict[int, float] = {}

    def put(self, node: int, cpus: int, memory_bytes: int, gpus: int, until: float = math.inf) -> None:
        """State what is free on a node; nothing free takes it out. `until`: when its time is over, seconds."""
        old = self._end_of.get(node, math.inf)
        if old != until:
            self.remove(node)
            if until != math.inf:
                self._end_of[node] = until
        index = self._by_end.get(until)
        if index is None:
            index = self._by_end[until] = Index()
            insort(self._ends, until)
        index.put(node, cpus, memory_bytes, gpus)
        if until != math.inf and cpus <= 0:
            self._drop_empty(until)

    def remove(self, node: int) -> None:
        """The node is out of use."""
        until = self._end_of.pop(node, math.inf)
        index = self._by_end.get(until)
        if index is not None:
            index.remove(node)
            if until != math.inf:
                self._drop_empty(until)

    def _drop_empty(self, until: float) -> None:
        if not self._by_end[until]:
            del self._by_end[until]
            del self._ends[bisect_left(self._ends, until)]

    def free_cpus(self) -> int:
        """Free cores on all nodes; counts them, so not for the hot path."""
        return sum(index.free_cpus() for index in self._by_end.values())

    def where(self, node: int) -> tuple[int, int, int] | None:
        """What is on record of a node: free GPUs, cores, memory; None: it is not here."""
        index = self._by_end.get(self._end_of.get(node, math.inf))
        return index._where.get(node) if index is not None else None

    def __bool__(self) -> bool:
        return len(self._ends) > 1 or bool(self._forever)

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
