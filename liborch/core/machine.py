"""The one deterministic machine that owns every decision.

`handle(event, now)` is the only door: state changes nowhere else, so a list of events with their times is the whole
history, and handling it again rebuilds the state. What the states mean and which edges there are: `tables.py`.

Placement. Items wait in groups (`queue.py`); the first one that fits a node (`room.py`: best fit) is placed there. The first
of all that fits nowhere reserves the node that will have room for it soonest; others may pass it everywhere else, and
there only if their walltime says they are gone in time: it is never delayed by who passes. When nothing is free, orders
are handed over ahead, a few per node, so that a slot refills without a round trip; they are recalled when
another node runs dry.

What is left to others: carrying actions out (`liborch.drive`), remembering (`liborch.journal`).
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core import verdict
from liborch.core.queue import Group, Queue, Shape, Share
from liborch.core.room import Index, describe_room
from liborch.core.tables import AT_NODE, EXECUTION_TRANSITIONS, LINK_TRANSITIONS, NODE_TRANSITIONS
from liborch.errors import IllegalTransition


class Policy(msgspec.Struct, frozen=True):
    """How an orchestration behaves. Times in seconds."""

    #: Longest wait before the n-th try to open a link is base * 2**n, at most the cap; the wait is drawn evenly below it.
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 30.0
    #: A node that was never reached is refused after so many tries; one that was reached once is tried for ever.
    first_attempts: int = 5
    #: Orders handed ahead of free slots are meant to last so long.
    ahead_s: float = 0.25
    #: Most orders handed ahead per node.
    ahead_most: int = 2000
    #: Orders ahead are recalled for a free node when they would wait longer than this.
    recall_after_s: float = 0.5


class Item:
    """One execution or slot request that is not final."""

    __slots__ = (
        "attempt",
        "batch",
        "cancelling",
        "collected",
        "cpus",
        "ended",
        "gpus",
        "group",
        "has_room",
        "is_slot",
        "lease",
        "memory_bytes",
        "node",
        "nodes",
        "order",
        "pausing",
        "priority",
        "recalling",
        "retries",
        "retry_on",
        "shape",
        "share",
        "staged",
        "started_at",
        "state",
        "state_id",
        "story",
        "walltime_s",
        "x",
    )

    def __init__(self, event: ev.Submitted, order: int) -> None:
        self.x = event.x
        self.batch = event.batch
        self.cpus = event.cpus
        self.memory_bytes = event.memory_bytes
        self.gpus = event.gpus
        self.priority = event.priority
        self.walltime_s = event.walltime_s
        self.retries = event.retries
        self.retry_on = event.retry_on
        self.staged = event.staged
        self.collected = event.collected
        self.nodes = event.nodes
        self.lease = event.lease
        self.is_slot = event.is_slot
        self.order = order
        self.state = "WAITING"
        self.attempt = 1
        self.node: Node | None = None
        self.group: Group | None = None
        self.share: Share | None = None
        self.shape: Shape = (event.cpus, event.memory_bytes, event.gpus, event.walltime_s, event.nodes)
        #: Takes part of the node's room (an order handed ahead does not yet).
        self.has_room = False
        self.cancelling = False
        self.recalling = False
        #: Somebody wants its processes stopped.
        self.pausing = False
        #: The agent's last word, while results are collected: (reason, code).
        self.ended: tuple[str, int | None] | None = None
        self.started_at: float | None = None
        #: The agent's state folder that the order was given to; "": it was not given yet.
        self.state_id = ""
        self.story: list[tuple[float, str, str]] | None = None

    def __repr__(self) -> str:
        where = f" on {self.node.name}" if self.node is not None else ""
        return f"<{'slot request' if self.is_slot else 'execution'} {self.x} attempt {self.attempt}: {self.state}{where}>"


class Node:
    """One node, its link and what is on it."""

    __slots__ = (
        "ahead",
        "cpus",
        "ever_open",
        "failures",
        "free_cpus",
        "free_gpus",
        "free_memory",
        "gpus",
        "host",
        "items",
        "last_end",
        "link",
        "low_water",
        "memory_bytes",
        "name",
        "number",
        "rate",
        "retry_at",
        "since",
        "state",
        "state_id",
        "story",
        "why",
    )

    def __init__(self, name: str, host: str, number: int) -> None:
        self.name = name
        self.host = host
        self.number = number
        self.state = "UNKNOWN"
        self.link = "CLOSED"
        self.cpus = self.memory_bytes = self.gpus = 0
        self.free_cpus = self.free_memory = self.free_gpus = 0
        self.state_id = ""
        #: {id: item} of everything staging, placed, running, paused or collecting here.
        self.items: dict[str, Item] = {}
        #: Orders handed ahead of free room, oldest first.
        self.ahead: OrderedDict[str, Item] = OrderedDict()
        #: With so many orders ahead, or fewer, it takes more.
        self.low_water = 0
        self.failures = 0
        self.ever_open = False
        self.retry_at: float | None = None
        self.since = 0.0
        self.why = ""
        #: Ends per second, a moving average; 0: not known.
        self.rate = 0.0
        self.last_end: float | None = None
        self.story: list[tuple[float, str, str]] = []

    def __repr__(self) -> str:
        return f"<node {self.name}: {self.state}, link {self.link}, {self.free_cpus} of {self.cpus} cores free, {len(self.items)} here>"

    @property
    def is_usable(self) -> bool:
        """Whether orders can be given to it just now."""
        return self.link == "OPEN" and self.state == "USABLE"

    def could_ever(self, item: Item) -> bool:
        """Whether the empty node would have room."""
        return item.cpus <= self.cpus and item.memory_bytes <= self.memory_bytes and item.gpus <= self.gpus

    def fits(self, item: Item) -> bool:
        """Whether there is room now."""
        return (
            item.cpus <= self.free_cpus
            and item.memory_bytes <= self.free_memory
            and item.gpus <= self.free_gpus
        )


_FOREVER: Final = math.inf
#: Nodes compared for a reservation.
_LOOKED_AT: Final = 256


class Orchestration:
    """See the module's text.

    Args:
        policy: How to behave.
        rng: Chance, for back-off; the same seed and events give the same actions.
    """

    def __init__(self, policy: Policy | None = None, rng: random.Random | None = None) -> None:
        self.policy = policy or Policy()
        self.rng = rng or random.Random(0)
        self.items: dict[str, Item] = {}
        self.nodes: dict[str, Node] = {}
        self.queue = Queue()
        self.counts: dict[str, int] = dict.fromkeys(EXECUTION_TRANSITIONS, 0)
        self._by_number: list[Node] = []
        self._index = Index()
        self._order = 0
        #: (item, node) kept for the first in the queue that fits nowhere.
        self._reserved: tuple[Item, Node] | None = None
        #: What no node in reach has room for even when empty: nothing can be kept for it.
        self._hopeless: set[Shape] = set()
        #: Nodes that may take more orders ahead, and nodes that hold some.
        self._hungry: dict[int, Node] = {}
        #: Nodes for which nobody in the queue is suited; looked at again when others come.
        self._starved: dict[int, Node] = {}
        self._donors: dict[int, Node] = {}
        self._rebalance_at = 0.0
        #: (when, node number) of links to be tried again; outdated entries are skipped.
        self._retries: list[tuple[float, int]] = []
        #: Whether any node could ever run a shape; emptied when nodes change.
        self._possible: dict[Shape, bool] = {}
        #: {slot request: ids of the executions inside it}
        self._tenants: dict[str, dict[str, None]] = {}
        self._out: list[act.AnyAction] = []
        self._now = 0.0
        self._handlers: dict[type[ev.Event], Callable[..., None]] = {
            ev.NodeAdded: self._node_added,
            ev.LinkOpened: self._link_opened,
            ev.LinkLost: self._link_lost,
            ev.LinkRefused: self._link_refused,
            ev.NodeLost: self._node_lost,
            ev.Restarted: self._restarted,
            ev.Submitted: self._submitted,
            ev.SlotAbandoned: self._slot_abandoned,
            ev.CancelAsked: self._cancel_asked,
            ev.PauseAsked: self._pause_asked,
            ev.ResumeAsked: self._resume_asked,
            ev.Staged: self._staged,
            ev.StageFailed: self._stage_failed,
            ev.Started: self._started,
            ev.Paused: self._paused,
            ev.Continued: self._continued,
            ev.Ended: self._ended,
            ev.Recalled: self._recalled,
            ev.Refused: self._refused,
            ev.Collected: self._collected,
            ev.Tick: self._tick,
        }

    # ------------------------------------------------------------------ the door

    def handle(self, event: ev.Event, now: float) -> list[act.AnyAction]:
        """Take in what happened; return what to do, in order. `now`: seconds on the driver's clock, never going back."""
        if now > self._now:
            self._now = now
        out: list[act.AnyAction] = []
        self._out = out
        self._handlers[type(event)](event)
        if self.queue.waiting:
            self._place_waiting()
        elif self._donors and self._index and self._now >= self._rebalance_at:
            self._rebalance()
        return out

    def next_deadline(self) -> float | None:
        """When to call `handle(Tick(), now)` next; None: not before something happens."""
        retries = self._retries
        while retries and self._by_number[retries[0][1]].retry_at != retries[0][0]:
            heapq.heappop(retries)
        first = retries[0][0] if retries else None
        if (
            self._donors
            and self._index
            and not self.queue.waiting
            and (first is None or self._rebalance_at < first)
        ):
            return self._rebalance_at
        return first

    @property
    def is_idle(self) -> bool:
        """Nothing waits, nothing runs, nothing is being collected."""
        return not self.items

    # ------------------------------------------------------------------ states

    def _move(self, item: Item, edge: str) -> None:
        old = item.state
        new = EXECUTION_TRANSITIONS[old].get(edge)
        if new is None:
            raise IllegalTransition("execution", item.x, old, edge, self._tell(item.story))
        item.state = new
        self.counts[old] -= 1
        self.counts[new] += 1
        if item.story is None:
            item.story = []
        item.story.append((self._now, edge, new))

    def _move_link(self, node: Node, edge: str) -> None:
        new = LINK_TRANSITIONS[node.link].get(edge)
        if new is None:
            raise IllegalTransition("link", node.name, node.link, edge, self._tell(node.story))
        node.link = new
        node.since = self._now
        node.story.append((self._now, edge, new))
        del node.story[:-50]

    def _move_node(self, node: Node, edge: str) -> None:
        new = NODE_TRANSITIONS[node.state].get(edge)
        if new is None:
            raise IllegalTransition("node", node.name, node.state, edge, self._tell(node.story))
        node.state = new

    @staticmethod
    def _tell(story: list[tuple[float, str, str]] | None) -> list[str]:
        return [f"{at:.3f} s: {edge} -> {state}" for at, edge, state in story or ()]

    # ------------------------------------------------------------------ nodes and links

    def _node_added(self, event: ev.NodeAdded) -> None:
        if event.node in self.nodes:
            return
        node = self.nodes[event.node] = Node(event.node, event.host, len(self._by_number))
        self._by_number.append(node)
        self._possible.clear()
        if self.items:
            self._connect(node)

    def _connect(self, node: Node) -> None:
        if node.link in ("CLOSED", "BROKEN") and node.state != "LOST":
            node.retry_at = None
            self._move_link(node, "connect")
            self._out.append(act.Connect(node.name, node.failures + 1))

    def _connect_all(self) -> None:
        for node in self._by_number:
            if node.link == "CLOSED":
                self._connect(node)

    def _link_opened(self, event: ev.LinkOpened) -> None:
        node = self.nodes[event.node]
        if node.link != "CONNECTING":
            return
        self._move_link(node, "opened")
        if node.state == "LOST":
            # Given up, and there after all: nothing of ours may go on there that is recorded as lost.
            for x, attempt, _state in event.holding:
                self._out.append(act.Cancel(x, attempt, node.name))
            return
        self._move_node(node, "known")
        node.failures = 0
        node.ever_open = True
        node.why = ""
        node.state_id = event.state_id
        used = (node.cpus - node.free_cpus, node.memory_bytes - node.free_memory, node.gpus - node.free_gpus)
        node.cpus, node.memory_bytes, node.gpus = event.cpus, event.memory_bytes, event.gpus
        node.free_cpus = node.cpus - used[0]
        node.free_memory = node.memory_bytes - used[1]
        node.free_gpus = node.gpus - used[2]
        holding = {(x, attempt): state for x, attempt, state in event.holding}
        for item in list(node.items.values()):
            if item.state in AT_NODE:
                self._reconcile(item, node, holding.pop((item.x, item.attempt), None))
            elif item.state == "STAGING":
                self._out.append(act.Stage(item.x, node.name))
            elif item.state == "COLLECTING":
                self._out.append(act.Collect(item.x, node.name))
        for (x, attempt), _state in holding.items():
            # Ours once, final or elsewhere by now: it must not run for nothing.
            if x not in self.items or self.items[x].attempt != attempt:
                self._out.append(act.Cancel(x, attempt, node.name))
        self._advance(node)
        self._hungry[node.number] = node
        self._nodes_changed()

    def _reconcile(self, item: Item, node: Node, held: str | None) -> None:
        """The agent told what it has: bring our picture and its in line."""
        if held is None and item.state_id and (item.state_id != node.state_id or item.state != "PLACED"):
            # It ran there, or may have, and the node knows nothing of it: nobody can tell what it did.
            self._leave_node(item)
            self._conclude(item, "lost", None, "the node lost its records of it")
            return
        if held in ("running", "held", "paused") and item.state == "PLACED":
            self._begin(item)
        if held == "paused" and item.state == "RUNNING":
            self._move(item, "pause")
        elif held == "running" and item.state == "PAUSED":
            self._move(item, "resume")
        if item.cancelling:
            # Also when the order never came: then it is the end of it, and it can never start.
            item.state_id = node.state_id
            self._out.append(act.Cancel(item.x, item.attempt, node.name))
            return
        if held is None:
            self._hand(item, node)
        if item.recalling and held in (None, "queued", "hold"):
            self._out.append(act.Recall(item.x, item.attempt, node.name))
        if item.pausing != (item.state == "PAUSED"):
            self._say_pause(item)

    def _begin(self, item: Item) -> None:
        """It runs; a slot is held."""
        self._take_room(item)
        item.started_at = self._now
        item.recalling = False
        self._move(item, "started")
        assert item.node is not None
        if item.is_slot and not item.cancelling:
            self._out.append(act.Grant(item.x, item.node.name))

    def _hand(self, item: Item, node: Node) -> None:
        item.state_id = node.state_id
        self._out.append(act.Hand(item.x, item.attempt, node.name))

    def _link_lost(self, event: ev.LinkLost) -> None:
        node = self.nodes[event.node]
        if node.link not in ("CONNECTING", "OPEN"):
            return
        node.failures = 1 if node.link == "OPEN" else node.failures + 1
        if not node.ever_open and node.failures >= self.policy.first_attempts:
            self._refuse_link(node, event.why)
            return
        self._move_link(node, "torn")
        node.why = event.why
        ceiling = min(
            self.policy.backoff_cap_s, self.policy.backoff_base_s * 2.0 ** min(node.failures - 1, 20)
        )
        node.retry_at = self._now + self.rng.uniform(0.0, ceiling)
        heapq.heappush(self._retries, (node.retry_at, node.number))
        self._refresh(node)

    def _link_refused(self, event: ev.LinkRefused) -> None:
        node = self.nodes[event.node]
        if node.link == "CONNECTING" or node.link == "OPEN" or node.link == "BROKEN":
            self._refuse_link(node, event.why)

    def _refuse_link(self, node: Node, why: str) -> None:
        self._move_link(node, "refused")
        node.why = why
        node.retry_at = None
        self._refresh(node)
        for item in list(node.items.values()):
            if self._is_unsaid(item) and not item.lease:
                self._back_to_queue(item, "node_lost")
        self._nodes_changed()

    @staticmethod
    def _is_unsaid(item: Item) -> bool:
        """Whether the agent was never told of it: then it can go elsewhere."""
        return item.state == "STAGING" or (item.state == "PLACED" and not item.state_id)

    def _node_lost(self, event: ev.NodeLost) -> None:
        node = self.nodes[event.node]
        if node.state == "LOST":
            return
        self._move_node(node, "lost")
        node.why = event.why
        node.retry_at = None
        for item in list(node.items.values()):
            if self._is_unsaid(item):
                self._back_to_queue(item, "node_lost")
                continue
            ended = item.ended
            self._leave_node(item)
            if ended is not None:
                self._conclude(item, ended[0], ended[1], f"its results are lost with the node: {event.why}")
            else:
                self._conclude(item, "cancelled" if item.cancelling else "lost", None, event.why)
        self._refresh(node)
        self._nodes_changed()

    def _restarted(self, _event: ev.Restarted) -> None:
        for node in self._by_number:
            if node.link != "CLOSED":
                self._move_link(node, "restart")
            node.retry_at = None
            node.failures = 0
            # Where something of ours is, or was: it was reached once, and is tried until it is reached again.
            node.ever_open = bool(node.items)
            self._refresh(node)
        if self.items:
            self._connect_all()

    def _tick(self, _event: ev.Tick) -> None:
        retries = self._retries
        while retries and retries[0][0] <= self._now:
            when, number = heapq.heappop(retries)
            node = self._by_number[number]
            if node.retry_at == when:
                self._connect(node)

    def _refresh(self, node: Node) -> None:
        """Bring the index in line with a node."""
        # Room beside orders ahead is theirs: the agent starts them in order, whatever else would fit.
        if node.is_usable and not node.ahead:
            self._index.put(node.number, node.free_cpus, node.free_memory, node.free_gpus)
            return
        self._index.remove(node.number)
        if self._reserved is not None and self._reserved[1] is node:
            self._unreserve()

    # ------------------------------------------------------------------ requests

    def _submitted(self, event: ev.Submitted) -> None:
        if event.x in self.items:
            return
        self._order += 1
        item = self.items[event.x] = Item(event, self._order)
        self.counts["WAITING"] += 1
        item.share = self.queue.share(item.batch)
        if item.lease:
            self._place_in_lease(item)
            return
        self._requeue(item)
        if not self._is_possible(item):
            self._conclude(item, "refused", None, self._why_impossible(item))
            return
        if len(self.items) == 1:
            self._connect_all()

    def _place_in_lease(self, item: Item) -> None:
        lease = self.items.get(item.lease)
        if lease is None or lease.node is None or lease.state != "RUNNING" or lease.cancelling:
            self._conclude(item, "refused", None, "its slot is not held any more")
            return
        self._tenants.setdefault(lease.x, {})[item.x] = None
        self._put_on(item, lease.node)

    def _put_on(self, item: Item, node: Node) -> None:
        """Send an item to a node; room was taken by the caller where it takes any."""
        item.node = node
        item.state_id = ""
        node.items[item.x] = item
        if item.staged:
            self._move(item, "stage")
            self._out.append(act.Stage(item.x, node.name))
        else:
            self._move(item, "place")
            if node.link == "OPEN":
                self._hand(item, node)

    def _slot_abandoned(self, event: ev.SlotAbandoned) -> None:
        self._wish_end(event.x)

    def _cancel_asked(self, event: ev.CancelAsked) -> None:
        self._wish_end(event.x)

    def _wish_end(self, x: str) -> None:
        item = self.items.get(x)
        if item is None or item.cancelling or item.state == "COLLECTING":
            return
        for tenant in list(self._tenants.get(x, ())):
            self._wish_end(tenant)
        if item.state == "WAITING":
            self._conclude(item, "cancelled", None, "before it was placed")
        elif item.state == "STAGING":
            node = item.node
            assert node is not None
            self._leave_node(item)
            self._out.append(act.Unstage(item.x, node.name))
            self._conclude(item, "cancelled", None, "before it started")
        else:
            item.cancelling = True
            node = item.node
            assert node is not None
            if node.link == "OPEN":
                self._out.append(act.Cancel(item.x, item.attempt, node.name))

    def _pause_asked(self, event: ev.PauseAsked) -> None:
        self._wish_pause(event.x, True)

    def _resume_asked(self, event: ev.ResumeAsked) -> None:
        self._wish_pause(event.x, False)

    def _wish_pause(self, x: str, pausing: bool) -> None:
        """A wish, carried out when the node can be told and the execution runs."""
        item = self.items.get(x)
        if item is None or item.is_slot or item.pausing == pausing:
            return
        item.pausing = pausing
        if item.state in ("RUNNING", "PAUSED"):
            self._say_pause(item)

    def _say_pause(self, item: Item) -> None:
        node = item.node
        assert node is not None
        if node.link == "OPEN" and item.state in ("RUNNING", "PAUSED") and not item.is_slot:
            wish = act.Pause if item.pausing else act.Resume
            self._out.append(wish(item.x, item.attempt, node.name))

    # ------------------------------------------------------------------ what nodes say

    def _current(self, x: str, attempt: int) -> Item | None:
        """The item an agent speaks of, unless what it says is old."""
        item = self.items.get(x)
        if item is None or item.attempt != attempt or item.state not in AT_NODE:
            return None
        return item

    def _staged(self, event: ev.Staged) -> None:
        item = self.items.get(event.x)
        if item is None or item.state != "STAGING" or item.node is None or item.node.name != event.node:
            return
        self._move(item, "staged")
        if item.node.link == "OPEN":
            self._hand(item, item.node)

    def _stage_failed(self, event: ev.StageFailed) -> None:
        item = self.items.get(event.x)
        if item is None or item.state != "STAGING" or item.node is None:
            return
        if event.node and event.node != item.node.name:
            return
        self._leave_node(item)
        self._move(item, "stage_failed")
        self._finish(item, "staging", None, event.why)

    def _started(self, event: ev.Started) -> None:
        item = self._current(event.x, event.attempt)
        if item is None or item.state != "PLACED":
            return
        self._begin(item)
        if item.pausing:
            self._say_pause(item)

    def _paused(self, event: ev.Paused) -> None:
        item = self._current(event.x, event.attempt)
        if item is not None and item.state != "PAUSED":
            self._take_room(item)
            self._move(item, "pause")

    def _continued(self, event: ev.Continued) -> None:
        item = self._current(event.x, event.attempt)
        if item is not None and item.state == "PAUSED":
            self._move(item, "resume")

    def _ended(self, event: ev.Ended) -> None:
        item = self._current(event.x, event.attempt)
        if item is None:
            return
        node = item.node
        assert node is not None
        self._count_end(node)
        if (
            (item.collected or event.left)
            and not item.is_slot
            and event.reason not in ("lost", "node")
            and not self._wants_retry(item, event.reason, event.code)
        ):
            self._give_room_back(item)
            item.ended = (event.reason, event.code)
            self._move(item, "collect")
            if node.link == "OPEN":
                self._out.append(act.Collect(item.x, node.name))
            return
        self._leave_node(item)
        self._conclude(item, event.reason, event.code, "")

    def _collected(self, event: ev.Collected) -> None:
        item = self.items.get(event.x)
        if item is None or item.state != "COLLECTING" or item.ended is None:
            return
        reason, code = item.ended
        self._leave_node(item)
        self._conclude(item, reason, code, event.why)

    def _recalled(self, event: ev.Recalled) -> None:
        item = self._current(event.x, event.attempt)
        if item is None or item.state != "PLACED":
            return
        self._back_to_queue(item, "recalled")

    def _refused(self, event: ev.Refused) -> None:
        item = self._current(event.x, event.attempt)
        if item is None or item.state != "PLACED":
            return
        self._leave_node(item)
        self._move(item, "refused")
        self._finish(item, "refused", None, event.why)

    # ------------------------------------------------------------------ ends

    def _conclude(self, item: Item, reason: str, code: int | None, why: str) -> None:
        """An attempt is over: another one, or the end."""
        if item.state in ("WAITING", "STAGING"):
            self.queue.remove(item)
            self._move(item, "cancel" if reason == "cancelled" else "impossible")
            self._finish(item, reason, code, why)
            return
        if item.state != "COLLECTING" and self._wants_retry(item, reason, code):
            self._move(item, "retry")
            self._out.append(act.Retry(item.x, item.attempt, reason))
            item.attempt += 1
            item.started_at = None
            item.recalling = False
            self._requeue(item)
            return
        state = verdict.final_state(reason, code)
        self._move(item, verdict.edge(state))
        self._finish(item, reason, code, why)

    @staticmethod
    def _wants_retry(item: Item, reason: str, code: int | None) -> bool:
        if item.attempt > item.retries or item.cancelling or item.is_slot or item.lease:
            return False
        return verdict.asks_retry(item.retry_on, reason, code)

    def _finish(self, item: Item, reason: str, code: int | None, why: str) -> None:
        del self.items[item.x]
        if item.lease:
            self._tenants.get(item.lease, {}).pop(item.x, None)
        elif item.is_slot:
            self._tenants.pop(item.x, None)
        if self._reserved is not None and self._reserved[0] is item:
            self._unreserve()
        self._out.append(act.Finish(item.x, item.state, reason, code, item.attempt, why))

    def _back_to_queue(self, item: Item, edge: str) -> None:
        """The item leaves its node without having run."""
        node = item.node
        assert node is not None
        self._leave_node(item)
        self._move(item, edge)
        item.recalling = False
        if item.cancelling:
            self._conclude(item, "cancelled", None, "before it started")
        elif item.lease:
            self._conclude(item, "refused", None, "its slot is not held any more")
        else:
            self._requeue(item)

    def _requeue(self, item: Item) -> None:
        if self.queue.add(item):
            self._unstarve()

    def _leave_node(self, item: Item) -> None:
        node = item.node
        if node is None:
            return
        self._give_room_back(item)
        del node.items[item.x]
        item.node = None
        item.ended = None

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
        item.has_room = True
        node.free_cpus -= item.cpus
        node.free_memory -= item.memory_bytes
        node.free_gpus -= item.gpus
        assert item.share is not None
        item.share.used_cpus += item.cpus

    def _give_room_back(self, item: Item) -> None:
        node = item.node
        assert node is not None
        if item.has_room:
            item.has_room = False
            node.free_cpus += item.cpus
            node.free_memory += item.memory_bytes
            node.free_gpus += item.gpus
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
        queue = self.queue
        index = self._index
        while index:
            group = queue.first()
            if group is None:
                break
            item = group.head()
            assert item is not None
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
        if queue.waiting and self._hungry:
            self._hand_ahead()

    def _choose(self, item: Item) -> Node | None:
        reserved = self._reserved
        keep = reserved[1].number if reserved is not None and reserved[0] is not item else -1
        if item.nodes:
            for name in item.nodes:
                node = self.nodes.get(name)
                if (
                    node is not None
                    and node.is_usable
                    and not node.ahead
                    and node.fits(item)
                    and (node.number != keep or self._may_pass(item))
                ):
                    return node
            return None
        number = self._index.best(item.cpus, item.memory_bytes, item.gpus, keep)
        if number >= 0:
            return self._by_number[number]
        # What is reserved is usable: see `_refresh`.
        kept = self._by_number[keep]
        return kept if keep >= 0 and not kept.ahead and kept.fits(item) and self._may_pass(item) else None

    def _may_pass(self, item: Item) -> bool:
        """Whether an item may use the reserved node: it will be gone when the reservation begins."""
        if item.walltime_s is None or self._reserved is None:
            return False
        head, node = self._reserved
        return self._now + item.walltime_s <= self._free_at(node, head)

    def _free_at(self, node: Node, item: Item) -> float:
        """When a node will have room for an item, by the walltimes of what runs; infinite when one has none."""
        cpus, memory, gpus = node.free_cpus, node.free_memory, node.free_gpus
        ends = sorted(
            (
                (other.started_at if other.started_at is not None else self._now)
                + (other.walltime_s or _FOREVER),
                other.order,
                other,
            )
            for other in node.items.values()
            if other.has_room
        )
        for end, _order, other in ends:
            if cpus >= item.cpus and memory >= item.memory_bytes and gpus >= item.gpus:
                return self._now
            cpus += other.cpus
            memory += other.memory_bytes
            gpus += other.gpus
            if cpus >= item.cpus and memory >= item.memory_bytes and gpus >= item.gpus:
                return end
        return self._now if not ends else _FOREVER

    def _reserve(self, item: Item) -> None:
        """Keep the node for it that has room soonest, of a good number that could have it: a decision stays cheap."""
        suited = (
            node
            for node in self._by_number
            if node.is_usable and node.could_ever(item) and (not item.nodes or node.name in item.nodes)
        )
        soonest = min(
            itertools.islice(suited, _LOOKED_AT),
            key=lambda node: (self._free_at(node, item), -node.free_cpus, node.number),
            default=None,
        )
        if soonest is None:
            self._hopeless.add(item.shape)
        else:
            self._reserved = (item, soonest)

    def _unreserve(self) -> None:
        self._reserved = None
        self.queue.unpark()
        self._unstarve()

    def _unstarve(self) -> None:
        if self._starved:
            self._hungry.update(self._starved)
            self._starved.clear()

    def _hand_ahead(self) -> None:
        """Nothing more fits: give nodes that have few orders ahead the next ones, evenly."""
        # A fresh dict: one that was large once is slow to look through, however little is left in it.
        hungry, self._hungry = list(self._hungry.values()), {}
        reserved = self._reserved[1] if self._reserved is not None else None
        # Who was given something comes last the next time.
        again: list[Node] = []
        for number, node in enumerate(hungry):
            if not self.queue.waiting:
                again[:0] = hungry[number:]
                break
            if node is reserved:
                again.append(node)
                continue
            if not node.is_usable:
                continue
            limit = self._ahead_limit(node)
            # Refilled in strides where ends are many: a stride is one message, and one group in the journal.
            node.low_water = limit * 3 // 4 if node.rate > 100 else limit - 1
            room = limit - len(node.ahead)
            fair = -(-self.queue.waiting // (len(hungry) - number))
            if room > 0:
                self._fill_ahead(node, min(room, fair))
                self._refresh(node)
            if len(node.ahead) <= node.low_water:
                if fair < room or not self.queue.waiting:
                    again.append(node)
                else:
                    self._starved[node.number] = node
        for node in again:
            self._hungry[node.number] = node

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
        if item is None:
            return False
        return node.could_ever(item) and (not item.nodes or node.name in item.nodes)

    def _ahead_limit(self, node: Node) -> int:
        wanted = math.ceil(node.rate * self.policy.ahead_s)
        return max(min(wanted, self.policy.ahead_most), node.cpus)

    def _rebalance(self) -> None:
        """Nodes have free room while others hold orders ahead that would wait long: ask for some of them back."""
        self._rebalance_at = self._now + self.policy.recall_after_s / 2
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
        """Whether some node could ever run it, or is not known yet."""
        found = self._possible.get(item.shape)
        if found is None:
            found = self._possible[item.shape] = not self.nodes or any(
                node.state == "UNKNOWN" or node.could_ever(item)
                for node in self._by_number
                if node.state != "LOST"
                and node.link != "REFUSED"
                and (not item.nodes or node.name in item.nodes)
            )
        return found

    def _why_impossible(self, item: Item) -> str:
        usable = [node for node in self._by_number if node.state == "USABLE" and node.link != "REFUSED"]
        if item.nodes:
            usable = [node for node in usable if node.name in item.nodes]
        if usable:
            largest = max(usable, key=lambda node: (node.cpus, node.memory_bytes, node.gpus))
            return (
                f"asks for {describe_room(item.cpus, item.memory_bytes, item.gpus)}, more than any node has; the largest, "
                f"{largest.name}, has {describe_room(largest.cpus, largest.memory_bytes, largest.gpus)}"
            )
        reasons = "; ".join(f"{node.name}: {node.why}" for node in self._by_number if node.why)
        return f"no node can be used: {reasons or 'there is none'}"

    # ------------------------------------------------------------------ promises

    def check(self) -> None:
        """Verify the invariants; tests call it after every step. Raises InvariantError."""
        from liborch.core.invariants import check

        check(self)

    def explain(self, x: str) -> list[str]:
        """Why an execution is not further than it is, condition by condition. Empty when it is not known here."""
        from liborch.core.explain import explain

        return explain(self, x)


def _time_ahead(node: Node) -> float:
    """How long, in seconds, the orders handed ahead will roughly wait."""
    return len(node.ahead) / (node.rate or 1e-3)


def _rank(group: Group) -> tuple[int, int, int]:
    head = group.head()
    return (-group.priority, group.share.used_cpus, head.order if head is not None else 0)
