"""Who is next: priority, then fair share between batches, then order of submission.

Waiting items with the same priority, batch and shape form a group, whose items only differ in age: so a group
that does not fit now is passed over as a whole, and a decision costs O(log groups), however many wait.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from liborch.core.things import Item


class Share:
    """What a batch has of the nodes just now."""

    __slots__ = ("groups", "used_cpus")

    def __init__(self) -> None:
        self.used_cpus = 0
        #: Its groups that have somebody waiting.
        self.groups: dict[GroupKey, Group] = {}


class Group:
    """Waiting items that want the same."""

    __slots__ = ("entry", "items", "key", "live", "parked", "priority", "share")

    def __init__(self, key: GroupKey, share: Share) -> None:
        self.key = key
        self.priority = key[0]
        self.share = share
        self.items: deque[Item] = deque()
        #: Items that still wait; a cancelled one is left in `items` and skipped.
        self.live = 0
        self.parked = False
        #: Number of its entry in the queue's heap; an entry with another number is outdated. 0: it has none.
        self.entry = 0

    def head(self, but: Item | None = None) -> Item | None:
        """The oldest that waits, other than `but`."""
        items = self.items
        while items and items[0].group is not self:
            items.popleft()
        if not items or items[0] is not but:
            return items[0] if items else None
        while len(items) > 1 and items[1].group is not self:
            del items[1]
        return items[1] if len(items) > 1 else None


#: (cpus, memory bytes, gpus, walltime or None, allowed nodes, how many of them at once)
Shape = tuple[int, int, float, float | None, tuple[str, ...], int]
#: (priority, batch, shape, is a slot request)
GroupKey = tuple[int, str, Shape, bool]


class Queue:
    """All groups."""

    def __init__(self) -> None:
        self._groups: dict[GroupKey, Group] = {}
        #: (-priority, cores its batch uses, order, entry, group)
        self._heap: list[tuple[int, int, int, int, Group]] = []
        self._shares: dict[str, Share] = {}
        self._parked: list[Group] = []
        self._count = 0
        self.waiting = 0

    def __len__(self) -> int:
        """How many groups wait."""
        return len(self._groups)

    def share(self, batch: str) -> Share:
        """The share of a batch, made when first asked for."""
        found = self._shares.get(batch)
        if found is None:
            found = self._shares[batch] = Share()
        return found

    def add(self, item: Item) -> bool:
        """Take an item in, at the place its age gives it; return whether it is the only one of its group."""
        key = (item.priority, item.batch, item.shape, item.is_slot)
        group = self._groups.get(key)
        if group is None:
            share = self.share(item.batch)
            group = self._groups[key] = share.groups[key] = Group(key, share)
        item.group = group
        items = group.items
        if not items or item.order > items[-1].order:
            items.append(item)
        elif item.order < items[0].order:
            items.appendleft(item)
        else:
            _insert(items, item)
        group.live += 1
        self.waiting += 1
        if not group.parked and (not group.entry or group.items[0] is item):
            self._push(group)
        return group.live == 1

    def remove(self, item: Item) -> None:
        """Take an item out, wherever it stands."""
        group = item.group
        if group is None:
            return
        item.group = None
        group.live -= 1
        self.waiting -= 1
        items = group.items
        if not group.live:
            items.clear()
            group.entry = 0
            del self._groups[group.key]
            del group.share.groups[group.key]
        elif items[0] is item:
            items.popleft()
        elif items[1] is item:
            del items[1]
        elif len(items) > 2 * group.live + 16:
            group.items = deque(other for other in items if other.group is group)

    def _push(self, group: Group) -> None:
        head = group.head()
        if head is None:
            return
        self._count = group.entry = self._count + 1
        heap = self._heap
        heapq.heappush(heap, (-group.priority, group.share.used_cpus, head.order, self._count, group))
        if len(heap) > 4 * len(self._groups) + 64:
            heap[:] = [entry for entry in heap if entry[4].entry == entry[3]]
            heapq.heapify(heap)

    def renew(self, share: Share) -> None:
        """A batch uses less than before: its groups move up."""
        if len(self._groups) > 1:
            for group in share.groups.values():
                if group.entry:
                    self._push(group)

    def first(self) -> Group | None:
        """The group whose head is next, or None when all that wait are parked. Stays in place."""
        heap = self._heap
        while heap:
            _priority, used, order, entry, group = heap[0]
            if entry != group.entry:
                heapq.heappop(heap)
                continue
            head = group.head()
            assert head is not None
            if used == group.share.used_cpus and order == head.order:
                return group
            heapq.heappop(heap)
            self._push(group)
        return None

    def park(self, group: Group) -> None:
        """Pass a group over until `unpark`: it fits nowhere now."""
        group.entry = 0
        group.parked = True
        self._parked.append(group)

    def unpark(self) -> None:
        """Room appeared: every group is considered again."""
        if self._parked:
            parked, self._parked = self._parked, []
            for group in parked:
                group.parked = False
                self._push(group)

    def groups(self) -> list[Group]:
        """Every group that has somebody waiting."""
        return list(self._groups.values())


def _insert(items: deque[Item], item: Item) -> None:
    """Put an item where its age says: a late recall, or another attempt.

    It is older than most that wait, so its place is looked for from the front, in strides that double.
    """
    stride, order = 1, item.order
    while stride < len(items) and items[stride].order < order:
        stride *= 2
    items.insert(bisect_left(items, order, stride // 2, min(stride, len(items)), key=_age), item)


def _age(item: Item) -> int:
    return item.order
