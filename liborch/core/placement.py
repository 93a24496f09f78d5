"""Which item goes to which node, and what is handed ahead: the part of the machine that knows room.

Items wait in groups (`queue.py`); the first one that fits a node (`room.py`: best fit) is placed there. The first
of all that fits nowhere reserves the node (or nodes) that will have room for it soonest; others may pass it everywhere else, and
there only if they are gone in time or fit beside it (`backfill.py`): it is never delayed by who passes. When nothing is free, orders
are handed over ahead, a few per node, so that a slot refills without a round trip; they are recalled when
another node runs dry.

States are left to `machine.py`, which tells what "put on a node" and "conclude" mean.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from liborch.core import actions as act
from liborch.core.backfill import FOREVER, Reservation, Room, reserve
from liborch.core.policy import Policy
from liborch.core.queue import Group, Queue, Shape
from liborch.core.room import Rooms, describe_room, parts_of
from liborch.core.tables import EXECUTION_TRANSITIONS
from liborch.core.things import Item, Node

_NONE: Final[Mapping[int, Node]] = {}
#: Nodes compared for a reservation.
_LOOKED_AT: Final = 256
#: Nodes that hold so many orders ahead get several at a time.
_STRIDES: Final = 32


class Placement:
    """Room, reservations and orders ahead. Base of `Orchestration`, which has the door."""

    def __init__(self, policy: Policy | None, rng: random.Random | None) -> None:
        self.policy = policy or Policy()
        self.rng = rng or random.Random(0)
        self.items: dict[str, Item] = {}
        self.nodes: dict[str, Node] = {}
        self.queue = Queue()
        self.counts: dict[str, int] = dict.fromkeys(EXECUTION_TRANSITIONS, 0)
        self._by_number: list[Node] = []
        self._index = Rooms()
        self._order = 0
        #: The first in the queue that fits nowhere, and {number: node} of what is kept for it.
        self._reserved: tuple[Item, dict[int, Node]] | None = None
        #: When each of these nodes has room for it, and what is spare beside it then: as far as asked for since room changed.
        self._soonest_on: dict[int, Reservation[Room]] = {}
        #: What no node in reach has room for even when empty: nothing can be kept for it.
        self._hopeless: set[Shape] = set()
        #: Nodes that may take more orders ahead, and nodes that hold some.
        self._hungry: OrderedDict[int, Node] = OrderedDict()
        #: Nodes for which nobody in the queue is suited; looked at again when others come.
        self._starved: dict[int, Node] = {}
        self._donors: dict[int, Node] = {}
        self._rebalance_at = 0.0
        #: (when, node number) of links to be tried again; outdated entries are skipped.
        self._retries: list[tuple[float, int]] = []
        #: Whether any node could ever run a shape; emptied when nodes change.
        self._possible: dict[Shape, bool] = {}
        #: Something happened that may change what allocations are needed.
        self._is_stale = False
        self._out: list[act.AnyAction] = []
        self._now = 0.0

    # ------------------------------------------------------------------ what the machine does

    def _put_on(self, item: Item, node: Node) -> None:
        """Send an item to a node; room was taken by the caller where it takes any."""
        raise NotImplementedError

    def _conclude(self, item: Item, reason: str, code: int | None, why: str) -> None:
        """An item is over."""
        raise NotImplementedError

    def _place_gang(self, lead: Item) -> bool:
        """Put an item on several nodes at once; whether there was room."""
        raise NotImplementedError

    @property
    def has_clusters(self) -> bool:
        """Whether nodes may be granted by a batch system."""
        raise NotImplementedError

    def _could_come(self, item: Item) -> bool:
        """Whether nodes may still be granted that would have room for it."""
        raise NotImplementedError

    def _why_not_to_come(self, item: Item) -> str:
        """Why none ever will be; "": there is nobody to grant any."""
        raise NotImplementedError

    # ------------------------------------------------------------------ room

    def _refresh(self, node: Node) -> None:
        """Bring the index in line with a node."""
        # Room beside orders ahead is theirs: the agent starts them in order, whatever else would fit.
        if not node.ahead and node.is_open:
            self._index.put(node.number, node.free_cpus, node.free_memory, node.free_gpus, node.until)
            return
        if node.number in self._index.nodes:
            self._index.remove(node.number)
        if self._reserved is not None and node.number in self._reserved[1]:
            self._unreserve()

    def _leave_node(self, item: Item) -> None:
        node = item.node
        if node is None:
            return
        self._give_room_back(item)
        del node.items[item.x]
        if node.allocation is not None and not node.items:
            node.allocation.occupied -= 1
            self._is_stale = True
        item.node = None
        item.ended = None
        item.evicting = False

    def _drop_ahead(self, item: Item, node: Node) -> None:
        ahead = node.ahead
        if ahead.pop(item.x, None) is not None:
            if len(ahead) <= node.low_water:
                self._hungry[node.number] = node
            if not ahead:
                del self._donors[node.number]

    def _take_room(self, item: Item) -> None:
        node = item.node
        assert node is not None
        if not item.has_room and not item.lease:
            self._occupy(item, node)
            self._refresh(node)

    def _occupy(self, item: Item, node: Node) -> None:
        self._drop_ahead(item, node)
        self._soonest_on.clear()
        item.has_room = True
        node.free_cpus -= item.cpus
        node.free_memory -= item.memory_bytes
        if item.gpus:
            node.take_gpus(item)
        assert item.share is not None
        item.share.used_cpus += item.cpus

    def _give_room_back(self, item: Item) -> None:
        node = item.node
        assert node is not None
        if item.has_room:
            item.has_room = False
            node.free_cpus += item.cpus
            node.free_memory += item.memory_bytes
            if item.gpus:
                node.give_gpus_back(item)
            assert item.share is not None
            item.share.used_cpus -= item.cpus
            self.queue.renew(item.share)
        else:
            self._drop_ahead(item, node)
        self._advance(node)

    def _advance(self, node: Node) -> None:
        """The agent starts the oldest order it holds if that fits; so does our picture of it. What is left is for others."""
        while node.ahead:
            oldest = next(iter(node.ahead.values()))
            if not node.fits(oldest):
                break
            self._occupy(oldest, node)
        self._refresh(node)
        if node.free_cpus > 0 and not node.ahead:
            self.queue.unpark()

    def _count_end(self, node: Node) -> None:
        if node.last_end is not None:
            gap = max(self._now - node.last_end, 1e-4)
            weight = min(0.2, gap)
            node.rate += (min(1.0 / gap, 1e4) - node.rate) * weight
        node.last_end = self._now

    # ------------------------------------------------------------------ placement

    def _place_waiting(self) -> None:
        """Place as many waiting items as fit; then hand some ahead."""
        if self._index.nodes:
            self._fill_room()
        if self._hungry and self.queue.waiting:
            self._hand_ahead()

    def _fill_room(self) -> None:
        queue = self.queue
        nodes = self._index.nodes
        self._soonest_on.clear()
        while nodes:
            group = queue.first()
            if group is None:
                break
            item = group.head()
            assert item is not None
            node = None
            if item.node_count > 1:
                if self._place_gang(item):
                    continue
            else:
                node = self._choose(item)
            if node is None:
                if self._reserved is None and item.shape not in self._hopeless:
                    self._reserve(item)
                queue.park(group)
                continue
            if self._reserved is not None and self._reserved[0] is item:
                self._unreserve()
            queue.remove(item)
            item.node = node
            self._take_room(item)
            self._put_on(item, node)

    def _kept_from(self, item: Item) -> Mapping[int, Node]:
        """Nodes kept for somebody else. What is kept is usable: see `_refresh`."""
        reserved = self._reserved
        return reserved[1] if reserved is not None and reserved[0] is not item else _NONE

    def _choose(self, item: Item) -> Node | None:
        kept = self._kept_from(item)
        if item.nodes:
            for name in item.nodes:
                node = self.nodes.get(name)
                if (
                    node is not None
                    and node.is_open
                    and node.takes(item)
                    and (node.number not in kept or self._may_pass(item, node))
                ):
                    return node
            return None
        number = self._index.best(item.cpus, item.memory_bytes, item.gpus, kept, self._gone_by(item))
        if number >= 0:
            return self._by_number[number]
        return next((node for node in kept.values() if node.takes(item) and self._may_pass(item, node)), None)

    def _gone_by(self, item: Item) -> float | None:
        """When it would be over if it began now; None: nobody knows."""
        return None if item.walltime_s is None else self._now + item.walltime_s

    def _may_pass(self, item: Item, node: Node) -> bool:
        """Whether an item may use a node kept for the head of the queue, which starts no later for that."""
        gone_by = self._gone_by(item)
        if self._reserved is None or (gone_by is not None and gone_by > node.until):
            return False
        head, nodes = self._reserved
        soonest = self._soonest_on
        if not soonest:
            soonest.update((number, self._soonest(each, head)) for number, each in nodes.items())
        begin = max(each.begin for each in soonest.values())
        kept = Reservation(begin, soonest[node.number].spare)
        if item.gpus and (head.gpus % 1 or node.gpu_room.is_shared):
            # What is spare of GPUs is a sum, which says nothing of how much is left of one of them.
            kept.spare = None
        return kept.lets_pass(_room_of(item), FOREVER if gone_by is None else gone_by)

    def _soonest(self, node: Node, item: Item) -> Reservation[Room]:
        """When a node will have room for an item, by the walltimes of what runs, and what is spare beside it then."""
        ends = sorted(
            (
                (other.started_at if other.started_at is not None else self._now)
                + (other.walltime_s or FOREVER),
                other.order,
                other,
            )
            for other in node.items.values()
            if other.has_room
        )
        free = Room(node.free_cpus, node.free_memory, node.gpu_room.free_parts)
        found = reserve(_room_of(item), free, ((end, _room_of(other)) for end, _, other in ends), self._now)
        return found or Reservation(FOREVER, None)

    def _reserve(self, item: Item) -> None:
        """Keep the nodes for it that have room soonest, of a good number that could have it: a decision stays cheap."""
        suited = (
            node
            for node in self._by_number
            if node.is_open and node.could_ever(item) and (not item.nodes or node.name in item.nodes)
        )
        soonest = heapq.nsmallest(
            item.node_count,
            itertools.islice(suited, max(_LOOKED_AT, 2 * item.node_count)),
            key=lambda node: (self._soonest(node, item).begin, -node.free_cpus, node.number),
        )
        if len(soonest) < item.node_count:
            self._hopeless.add(item.shape)
        else:
            self._reserved = (item, {node.number: node for node in soonest})
            self._soonest_on.clear()

    def _unreserve(self) -> None:
        self._reserved = None
        self._soonest_on.clear()
        self.queue.unpark()
        self._unstarve()

    def _unstarve(self) -> None:
        if self._starved:
            self._hungry.update(self._starved)
            self._starved.clear()

    def _hand_ahead(self) -> None:
        """Nothing more fits: give nodes that have few orders ahead the next ones, evenly."""
        # All of them may be hungry for long: only as many are looked at as there is something for.
        hungry = self._hungry
        reserved = self._reserved[1] if self._reserved is not None else _NONE
        # Who was given something comes last the next time.
        again: list[Node] = []
        while hungry and self.queue.waiting:
            _number, node = hungry.popitem(last=False)
            if node.number in reserved:
                again.append(node)
                continue
            if not node.is_open:
                continue
            limit = self._ahead_limit(node)
            # Refilled in strides where ends are many, or much is ahead: a stride is one message, and one group in the journal.
            node.low_water = limit * 3 // 4 if node.rate > 100 or limit >= _STRIDES else limit - 1
            room = limit - len(node.ahead)
            waiting = self.queue.waiting
            fair = -(-waiting // (len(hungry) + 1))
            if room > 0:
                self._fill_ahead(node, min(room, fair))
                self._refresh(node)
            if len(node.ahead) <= node.low_water:
                is_left_out = room > 0 and self.queue.waiting == waiting
                if (fair < room and not is_left_out) or not self.queue.waiting:
                    again.append(node)
                else:
                    self._starved[node.number] = node
        for node in again:
            hungry[node.number] = node

    def _fill_ahead(self, node: Node, room: int) -> None:
        """Hand `room` orders ahead: the groups of the highest priority in turn, then the next ones."""
        reserved = self._reserved[0] if self._reserved is not None else None
        groups = sorted((g for g in self.queue.groups() if self._may_go_ahead(g, node, reserved)), key=_rank)
        while groups and room > 0:
            top = groups[0].priority
            turn = [group for group in groups if group.priority == top]
            for group in turn:
                item = group.head(reserved)
                if item is None:
                    groups.remove(group)
                    continue
                if room <= 0:
                    return
                self.queue.remove(item)
                node.ahead[item.x] = item
                self._donors[node.number] = node
                self._put_on(item, node)
                room -= 1

    @staticmethod
    def _may_go_ahead(group: Group, node: Node, reserved: Item | None) -> bool:
        item = group.head(reserved)
        if item is None or item.node_count > 1:
            return False
        if item.walltime_s is not None and node.until < math.inf:
            # Nobody knows when its turn would come, and whether there would be time enough for it then.
            return False
        return node.could_ever(item) and (not item.nodes or node.name in item.nodes)

    def _ahead_limit(self, node: Node) -> int:
        wanted = math.ceil(node.rate * self.policy.ahead_s)
        return max(min(wanted, self.policy.ahead_most), node.cpus)

    def _rebalance(self) -> None:
        """Nodes have free room while others hold orders ahead that would wait long: ask for some of them back."""
        self._rebalance_at = self._now + self.policy.recall_after_s / 2
        self._soonest_on.clear()
        donors = [node for node in self._donors.values() if node.is_usable]
        donor = max(donors, key=_time_ahead, default=None)
        if donor is None or _time_ahead(donor) < self.policy.recall_after_s:
            return
        left = self._index.free_cpus() - sum(1 for item in donor.ahead.values() if item.recalling)
        stuck: set[Shape] = set()
        for item in reversed(donor.ahead.values()):
            if left <= 0:
                return
            if item.recalling or item.cancelling or item.state != "PLACED" or item.shape in stuck:
                continue
            if self._choose(item) is None:
                stuck.add(item.shape)
                continue
            item.recalling = True
            self._out.append(act.Recall(item.x, item.attempt, donor.name))
            left -= item.cpus

    # ------------------------------------------------------------------ what cannot be

    def _nodes_changed(self) -> None:
        """Look again at who waits: something fits now, or nothing ever will."""
        self._possible.clear()
        self._hopeless.clear()
        self.queue.unpark()
        self._unstarve()
        for group in self.queue.groups():
            head = group.head()
            if head is None or self._is_possible(head):
                continue
            why = self._why_impossible(head)
            for item in list(group.items):
                if item.group is group:
                    self._conclude(item, "refused", None, why)

    def _is_possible(self, item: Item) -> bool:
        """Whether some node (or as many as it takes) could ever run it, or is not known yet."""
        found = self._possible.get(item.shape)
        if found is None:
            suited = (
                node
                for node in self._by_number
                if node.state != "LOST"
                and node.link != "REFUSED"
                and not node.is_leaving
                and (not item.nodes or node.name in item.nodes)
                and (node.state == "UNKNOWN" or node.could_ever(item))
                and (item.walltime_s is None or self._now + item.walltime_s <= node.until)
            )
            enough = sum(1 for _node in itertools.islice(suited, item.node_count)) == item.node_count
            nothing_known = not self.nodes and not self.has_clusters
            found = self._possible[item.shape] = nothing_known or enough or self._could_come(item)
        return found

    def _why_impossible(self, item: Item) -> str:
        if self.has_clusters and not item.nodes:
            return self._why_not_to_come(item)
        usable = [node for node in self._by_number if node.state == "USABLE" and node.link != "REFUSED"]
        if item.nodes:
            usable = [node for node in usable if node.name in item.nodes]
        suited = [node.name for node in usable if node.could_ever(item)]
        if item.node_count > 1 and suited:
            return (
                f"asks for {item.node_count} nodes at once with {describe_room(item.cpus, item.memory_bytes, item.gpus)} each; "
                f"there {'is' if len(suited) == 1 else 'are'} {len(suited)}: {', '.join(suited[:10])}"
            )
        if usable:
            largest = max(usable, key=lambda node: (node.cpus, node.memory_bytes, node.gpus))
            return (
                f"asks for {describe_room(item.cpus, item.memory_bytes, item.gpus)}, more than any node has; the largest, "
                f"{largest.name}, has {describe_room(largest.cpus, largest.memory_bytes, largest.gpus)}"
            )
        reasons = "; ".join(f"{node.name}: {node.why}" for node in self._by_number if node.why)
        return f"no node can be used: {reasons or 'there is none'}"


def _room_of(item: Item) -> Room:
    return Room(item.cpus, item.memory_bytes, parts_of(item.gpus))


def _time_ahead(node: Node) -> float:
    """How long, in seconds, the orders handed ahead will roughly wait."""
    return len(node.ahead) / (node.rate or 1e-3)


def _rank(group: Group) -> tuple[int, int, int]:
    head = group.head()
    return (-group.priority, group.share.used_cpus, head.order if head is not None else 0)
