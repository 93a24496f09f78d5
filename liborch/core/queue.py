"""Who is next: priority, then fair share between batches, then order of submission.

Waiting items with the same priority, batch and shape form a group, whose items only differ in age: so a group
that does not fit now is passed over as a whole, and a decision costs O(log groups), however many wait.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from liborch.core.machine import Item


class Share:
    """What a batch has of the nodes just now."""

    __slots__ = ("used_cpus",)

    def __init__(self) -> None:
        self.used_cpus = 0


class Group:
    """Waiting items that want the same."""

    __slots__ = ("items", "key", "live", "parked", "priority", "queued", "share")

    def __init__(self, key: GroupKey, share: Share) -> None:
        self.key = key
        self.priority = key[0]
        self.share = share
        self.items: deque[Item] = deque()
        #: Items that still wait; a cancelled one is left in `items` and skipped.
        self.live = 0
        self.parked = False
        self.queued = False

    def head(self) -> Item | None:
        """The oldest that waits."""
        items = self.items
        while items and items[0].group is not self:
            items.popleft()
        return items[0] if items else None


#: (cpus, memory bytes, gpus, walltime or None, allowed nodes)
Shape = tuple[int, int, int, float | None, tuple[str, ...]]
#: (priority, batch, shape)
GroupKey = tuple[int, str, Shape]


class Queue:
    """All groups."""

    def __init__(self) -> None:
        self._groups: dict[GroupKey, Group] = {}
        self._heap: list[tuple[int, int, int, int, Group]] = []
        self._shares: dict[str, Share] = {}
        self._parked: list[Group] = []
        self._count = 0
        self.waiting = 0

    def share(self, batch: str) -> Share:
        """The share of a batch, made when first asked for."""
        found = self._shares.get(batch)
        if found is None:
            found = self._shares[batch] = Share()
        return found

    def add(self, item: Item) -> None:
        """Take an item in, at the place its age gives it."""
        key = (item.priority, item.batch, item.shape)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(key, self.share(item.batch))
        item.group = group
        items = group.items
        if not items or item.order > items[-1].order:
            items.append(item)
        elif item.order < items[0].order:
            items.appendleft(item)
        else:
            # Only a person who changes priorities, or a late recall, gets here: a group is kept by age.
            group.items = deque(sorted([*items, item], key=_age))
        group.live += 1
        self.waiting += 1
        if not group.parked and not group.queued:
            self._push(group)

    def remove(self, item: Item) -> None:
        """Take an item out, wherever it stands."""
        group = item.group
        if group is None:
            return
        item.group = None
        group.live -= 1
        self.waiting -= 1
        if group.items and group.items[0] is item:
            group.items.popleft()

    def _push(self, group: Group) -> None:
        head = group.head()
        if head is None:
            group.queued = False
            return
        self._count += 1
        group.queued = True
        heapq.heappush(self._heap, (-group.priority, group.share.used_cpus, head.order, self._count, group))

    def first(self) -> Group | None:
        """The group whose head is next, or None when all that wait are parked. Stays in place."""
        heap = self._heap
        while heap:
            _priority, used, order, _count, group = heap[0]
            head = group.head()
            if head is None:
                heapq.heappop(heap)
                group.queued = False
                self._forget(group)
            elif used != group.share.used_cpus or order != head.order:
                heapq.heappop(heap)
                self._push(group)
            else:
                return group
        return None

    def park(self, group: Group) -> None:
        """Pass a group over until `unpark`: it fits nowhere now."""
        heapq.heappop(self._heap)
        group.queued = False
        group.parked = True
        self._parked.append(group)

    def unpark(self) -> None:
        """Room appeared: every group is considered again."""
        if self._parked:
            parked, self._parked = self._parked, []
            for group in parked:
                group.parked = False
                self._push(group)

    def _forget(self, group: Group) -> None:
        if not group.live and self._groups.get(group.key) is group:
            del self._groups[group.key]

    def groups(self) -> list[Group]:
        """Every group that has somebody waiting."""
        return [group for group in self._groups.values() if group.live]


def _age(item: Item) -> int:
    return item.order
