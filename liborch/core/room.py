"""Which node fits a request best, in O(log n), for any number of nodes.

Nodes lie in levels by free GPUs (whole and shared, see `Gpus.free`) and free cores; a bit mask per GPU level tells which core levels are not empty, and
within a level nodes are sorted by free memory. Best fit: the fewest spare GPUs, then cores, then memory. Levels are
bounded by the size of a node, not by the number of nodes. Nodes that are there for a time only (an allocation's) are kept
apart by when that is over (`Rooms`): there are few allocations, however many nodes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Container

from liborch.quantities import GPU_PARTS, format_gpus, format_size


class _Index:
    """The nodes with anything free whose time is over at the same instant."""

    __slots__ = ("_levels", "_masks", "count")

    def __init__(self) -> None:
        #: How many nodes.
        self.count = 0
        self._masks: dict[float, int] = {}
        self._levels: dict[tuple[float, int], list[tuple[int, int]]] = {}

    def put(self, node: int, gpus: float, cpus: int, memory_bytes: int) -> None:
        """Take in a node that is not here."""
        self.count += 1
        key = (gpus, cpus)
        level = self._levels.get(key)
        if level is None:
            level = self._levels[key] = []
        if not level:
            self._masks[gpus] = self._masks.get(gpus, 0) | (1 << cpus)
        insort(level, (memory_bytes, node))

    def remove(self, node: int, gpus: float, cpus: int, memory_bytes: int) -> None:
        """Take out a node that was put in with these."""
        self.count -= 1
        level = self._levels[gpus, cpus]
        del level[bisect_left(level, (memory_bytes, node))]
        if not level:
            self._masks[gpus] &= ~(1 << cpus)
            if gpus % 1 and not self._masks[gpus]:
                # There are few whole numbers, and as many shares as people think of.
                del self._masks[gpus], self._levels[gpus, cpus]

    def best(self, cpus: int, memory_bytes: int, gpus: float, skip: Container[int] = ()) -> int:
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
        self.nodes: dict[int, tuple[float, float, int, int]] = {}
        self._forever = _Index()
        #: {when the time of its nodes is over: them}
        self._by_end: dict[float, _Index] = {math.inf: self._forever}
        #: Those times, the soonest first.
        self._ends = [math.inf]

    def put(self, node: int, cpus: int, memory_bytes: int, gpus: float, until: float = math.inf) -> None:
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
        gpus: float,
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


def describe_room(cpus: int, memory_bytes: int, gpus: float) -> str:
    """`2 cores, 4 GiB, 1 GPU`: for people."""
    text = f"{cpus} core{'s' if cpus != 1 else ''}"
    if memory_bytes:
        text += f", {format_size(memory_bytes)}"
    if gpus:
        text += f", {format_gpus(gpus)}"
    return text


def parts_of(gpus: float) -> int:
    """GPUs in the parts that shares are dealt out in: sums of them are exact."""
    return round(gpus * GPU_PARTS)


class Gpus:
    """The GPUs of a node: those that nobody uses, and those that are shared. As its agent deals them out, as far as we can tell."""

    __slots__ = ("_shared", "unused")

    def __init__(self, count: int = 0) -> None:
        #: Less than none, where a node has come back with fewer.
        self.unused = count
        #: Of each that is shared: {who: parts}.
        self._shared: list[dict[str, int]] = []

    @property
    def free(self) -> float:
        """What a request may ask for: all that are unused and, beyond these, the largest share left of another one.

        Whole GPUs and shares alike fit when they are not more than this.
        """
        if not self._shared:
            return self.unused
        return self.unused + max(map(_left_of, self._shared)) / GPU_PARTS

    @property
    def is_shared(self) -> bool:
        """Whether any is in use by shares."""
        return bool(self._shared)

    @property
    def free_parts(self) -> int:
        """All that is left, however it is spread."""
        return self.unused * GPU_PARTS + sum(map(_left_of, self._shared))

    def take(self, who: str, gpus: float) -> None:
        """Somebody starts there: a share goes to the GPU on which it leaves least, and else makes one shared."""
        if gpus >= 1:
            self.unused -= int(gpus)
            return
        parts = parts_of(gpus)
        card = min((each for each in self._shared if _left_of(each) >= parts), key=_left_of, default=None)
        if card is None:
            self.unused -= 1
            card = {}
            self._shared.append(card)
        card[who] = parts

    def give_back(self, who: str, gpus: float) -> None:
        """What somebody took is free again."""
        if gpus >= 1:
            self.unused += int(gpus)
            return
        for number, card in enumerate(self._shared):
            if card.pop(who, None) is not None:
                if not card:
                    del self._shared[number]
                    self.unused += 1
                return


def _left_of(card: dict[str, int]) -> int:
    return GPU_PARTS - sum(card.values())
