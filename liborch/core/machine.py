"""The one deterministic machine that owns every decision.

`handle(event, now)` is the only door: state changes nowhere else, so a list of events with their times is the whole
history, and handling it again rebuilds the state. What the states mean and which edges there are: `tables.py`.

What is in reach is known in `reach.py`, what is asked of batch systems in `allocations.py`, and which item goes where is decided
in `placement.py`, the bases of this class; what is kept of each, in `things.py`.
What is left to others: carrying actions out (`liborch.drive`), remembering (`liborch.journal`).
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core import verdict
from liborch.core.allocations import Allocations
from liborch.core.policy import Policy
from liborch.core.tables import AT_NODE
from liborch.core.things import Item, Node


class Orchestration(Allocations):
    """See the module's text.

    Args:
        policy: How to behave.
        rng: Chance, for back-off; the same seed and events give the same actions.
    """

    def __init__(self, policy: Policy | None = None, rng: random.Random | None = None) -> None:
        super().__init__(policy, rng)
        #: {slot request: ids of the executions inside it}
        self._tenants: dict[str, dict[str, None]] = {}
        self._handlers: dict[type[ev.Event], Callable[..., None]] = {
            ev.PolicyChosen: self._policy_chosen,
            ev.NodeAdded: self._node_added,
            ev.ClusterAdded: self._cluster_added,
            ev.AllocationHeld: self._allocation_held,
            ev.AllocationQueued: self._allocation_queued,
            ev.AllocationRefused: self._allocation_refused,
            ev.AllocationActive: self._allocation_active,
            ev.AllocationEnded: self._allocation_ended,
            ev.AllocationsUnwanted: self._allocations_unwanted,
            ev.LinksWanted: self._links_wanted,
            ev.LinkOpened: self._link_opened,
            ev.LinkLost: self._link_lost,
            ev.LinkRefused: self._link_refused,
            ev.Draining: self._drain,
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
        if not self.draining:
            if self.queue.waiting:
                self._place_waiting()
            elif self._donors and self._index.nodes and self._now >= self._rebalance_at:
                self._rebalance()
        if self.clusters:
            self._review()
        return out

    def next_deadline(self) -> float | None:
        """When to call `handle(Tick(), now)` next; None: not before something happens."""
        retries = self._retries
        while retries and self._by_number[retries[0][1]].retry_at != retries[0][0]:
            heapq.heappop(retries)
        first = retries[0][0] if retries else None
        give_ups = self._give_ups
        while give_ups and self._by_number[give_ups[0][1]].down_at is None:
            heapq.heappop(give_ups)
        if give_ups and (first is None or give_ups[0][0] < first):
            first = give_ups[0][0]
        if self._review_at < math.inf and (first is None or self._review_at < first):
            first = self._review_at
        if (
            self._donors
            and self._index.nodes
            and not self.draining
            and not self.queue.waiting
            and (first is None or self._rebalance_at < first)
        ):
            return self._rebalance_at
        return first

    @property
    def is_idle(self) -> bool:
        """Nothing waits, nothing runs, nothing is being collected."""
        return not self.items

    @property
    def is_drained(self) -> bool:
        """What is left waits here, and for nothing but the end of draining."""
        return self.draining and self.counts["WAITING"] == len(self.items)

    def _policy_chosen(self, event: ev.PolicyChosen) -> None:
        self.policy = event.policy

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
        is_held = lease is not None and lease.state == "RUNNING" and not (lease.cancelling or lease.evicting)
        if lease is None or lease.node is None or not is_held:
            self._conclude(item, "refused", None, "its slot is not held any more")
            return
        self._tenants.setdefault(lease.x, {})[item.x] = None
        self._put_on(item, lease.node)

    def _put_on(self, item: Item, node: Node) -> None:
        """Send an item to a node; room was taken by the caller where it takes any."""
        item.node = node
        item.state_id = ""
        if node.allocation is not None and not node.items:
            node.allocation.occupied += 1
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
        if item is None:
            return
        if item.gang is not None:
            self._end_gang(item.gang)
            return
        if item.cancelling or item.state == "COLLECTING":
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
        for each in item.gang.members if item.gang is not None else (item,):
            each.pausing = pausing
            if each.state in ("RUNNING", "PAUSED"):
                self._say_pause(each)

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
        if event.attempt not in (0, item.attempt):
            return
        self._move(item, "staged")
        if self.draining and not item.lease and (item.gang is None or not item.gang.is_said):
            self._out.append(act.Unstage(item.x, item.node.name))
            self._back_to_queue(item, "recalled")
        elif item.evicting:
            # The node is being given up, and with it the slot it was to run in, or its part of a gang.
            self._out.append(act.Unstage(item.x, item.node.name))
            self._back_to_queue(item, "recalled")
        elif item.node.link == "OPEN":
            self._hand(item, item.node)

    def _stage_failed(self, event: ev.StageFailed) -> None:
        item = self.items.get(event.x)
        if item is None or item.state != "STAGING" or item.node is None:
            return
        if (event.node and event.node != item.node.name) or event.attempt not in (0, item.attempt):
            return
        if item.gang is not None:
            self._rank_over(item, "staging", None, event.why)
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
        self._note_duration(item)
        reason, code, why = event.reason, event.code, ""
        if item.evicting and reason == "cancelled" and not item.cancelling:
            reason, code, why = "allocation", None, "its allocation was about to be over"
        has_results = (item.collected or event.left) and reason not in ("lost", "node", "allocation")
        if item.gang is not None:
            self._rank_over(item, reason, code, why, has_results=has_results)
            return
        if has_results and not item.is_slot and not self._wants_retry(item, reason, code):
            self._give_room_back(item)
            item.ended = (reason, code)
            self._move(item, "collect")
            if node.link == "OPEN":
                self._out.append(act.Collect(item.x, node.name))
            return
        self._leave_node(item)
        self._conclude(item, reason, code, why)

    def _collected(self, event: ev.Collected) -> None:
        item = self.items.get(event.x)
        if item is None or item.state != "COLLECTING" or item.ended is None:
            return
        if item.gang is not None:
            self._rank_home(item, event.why)
            return
        reason, code = item.ended
        self._leave_node(item)
        self._conclude(item, reason, code, event.why)

    def _recalled(self, event: ev.Recalled) -> None:
        item = self._current(event.x, event.attempt)
        if item is None or item.state != "PLACED":
            return
        if item.staged and item.node is not None:
            self._out.append(act.Unstage(item.x, item.node.name))
        if item.evicting and item.gang is None:
            # The node was also asked to end it, and will say that it did: of this attempt, so the next is another.
            self._leave_node(item)
            self._conclude(item, "cancelled" if item.cancelling else "allocation", None, "")
            return
        self._back_to_queue(item, "recalled")

    def _refused(self, event: ev.Refused) -> None:
        item = self._current(event.x, event.attempt)
        if item is None or item.state != "PLACED":
            return
        if item.gang is not None:
            self._rank_over(item, "refused", None, event.why)
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
            self._count_cut_off(item, reason)
            item.attempt += 1
            item.started_at = None
            item.recalling = False
            self._requeue(item)
            return
        state = verdict.final_state(reason, code)
        self._move(item, verdict.edge(state))
        self._finish(item, reason, code, why)

    def _wants_retry(self, item: Item, reason: str, code: int | None) -> bool:
        if item.cancelling or item.is_slot or item.lease:
            return False
        return self._asks_another(item, reason, code)

    def _asks_another(self, item: Item, reason: str, code: int | None) -> bool:
        if reason == "allocation":
            return item.cut_offs < self.policy.cut_offs_most
        return item.attempt <= item.retries and verdict.asks_retry(item.retry_on, reason, code)

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
        if item.gang is not None:
            self._rank_over(item, "lost", None, "", is_free=True)
            return
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
        self._is_stale = True
        if self.queue.add(item):
            self._unstarve()
        reserved = self._reserved
        if reserved is not None and item.group is reserved[0].group and item.order < reserved[0].order:
            # It wants the same and is before who the node is kept for: nobody behind it in its group is asked.
            self._reserved = (item, reserved[1])

    # ------------------------------------------------------------------ promises

    def check(self) -> None:
        """Verify the invariants; tests call it after every step. Raises InvariantError."""
        from liborch.core.invariants import check

        check(self)

    def explain(self, x: str, now: float | None = None) -> list[str]:
        """Why an execution is not further than it is, condition by condition. Empty when it is not known here.

        Args:
            x: Its id.
            now: Seconds on the engine's clock, for how long things have lasted. None: when something happened last.
        """
        from liborch.core.explain import explain

        return explain(self, x, self._now if now is None else now)
