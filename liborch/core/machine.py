"""The one deterministic machine that owns every decision.

`handle(event, now)` is the only door: state changes nowhere else, so a list of events with their times is the whole
history, and handling it again rebuilds the state. What the states mean and which edges there are: `tables.py`.

Which item goes where is decided in `placement.py`, the base of this class; what is kept of each, in `things.py`.
What is left to others: carrying actions out (`liborch.drive`), remembering (`liborch.journal`).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core import verdict
from liborch.core.placement import Placement
from liborch.core.tables import AT_NODE, EXECUTION_TRANSITIONS, LINK_TRANSITIONS, NODE_TRANSITIONS
from liborch.core.things import Item, Node, Policy
from liborch.errors import IllegalTransition
from liborch.quantities import format_duration


class Orchestration(Placement):
    """See the module's text.

    Args:
        policy: How to behave.
        rng: Chance, for back-off; the same seed and events give the same actions.
    """

    def __init__(self, policy: Policy | None = None, rng: random.Random | None = None) -> None:
        super().__init__(policy, rng)
        #: {slot request: ids of the executions inside it}
        self._tenants: dict[str, dict[str, None]] = {}
        #: (when, node number) of nodes out of reach: to be looked at then; outdated entries are skipped.
        self._give_ups: list[tuple[float, int]] = []
        #: Nothing new is started.
        self.draining = False
        self._handlers: dict[type[ev.Event], Callable[..., None]] = {
            ev.NodeAdded: self._node_added,
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
        if self.draining:
            return out
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
        give_ups = self._give_ups
        while give_ups and self._by_number[give_ups[0][1]].down_at is None:
            heapq.heappop(give_ups)
        if give_ups and (first is None or give_ups[0][0] < first):
            first = give_ups[0][0]
        if (
            self._donors
            and self._index
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

    def _links_wanted(self, _event: ev.LinksWanted) -> None:
        self._connect_all()

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
        if node.link not in ("CONNECTING", "OPEN"):
            return
        # Told again over an open link: the node's keeper was replaced, and what was on its way to the old one is gone.
        was_open = node.link == "OPEN"
        self._move_link(node, "opened")
        if node.state == "LOST":
            # Given up, and there after all: nothing of ours may go on there that is recorded as lost.
            for x, attempt, _state in event.holding:
                self._out.append(act.Cancel(x, attempt, node.name))
            return
        self._move_node(node, "known")
        node.failures = 0
        node.down_at = None
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
            elif item.state == "STAGING" and not was_open:
                self._out.append(act.Stage(item.x, node.name))
            elif item.state == "COLLECTING" and not was_open:
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
        self._note_down(node)
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
        self._note_down(node)
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

    def _drain(self, _event: ev.Draining) -> None:
        """Ask back what nodes were told and have not started."""
        self.draining = True
        for node in self._by_number:
            for item in node.items.values():
                if item.state != "PLACED" or item.recalling or item.cancelling or item.is_slot or item.lease:
                    continue
                item.recalling = True
                if node.link == "OPEN":
                    self._out.append(act.Recall(item.x, item.attempt, node.name))

    def _note_down(self, node: Node) -> None:
        if node.down_at is None and node.items:
            node.down_at = self._now
            self._look_later(node)

    def _look_later(self, node: Node) -> None:
        if self.policy.give_up_s is not None:
            heapq.heappush(self._give_ups, (self._now + self.policy.give_up_s, node.number))

    def _give_up(self, node: Node) -> None:
        """A node was out of reach for so long that what is on it is done elsewhere. It stays in use, should it come back."""
        assert self.policy.give_up_s is not None
        if node.down_at is None or node.down_at + self.policy.give_up_s > self._now:
            return
        if any(other.is_usable for other in self._by_number):
            node.down_at = None
            self._lose_items(
                node, f"{node.name} was out of reach for {format_duration(self.policy.give_up_s)}"
            )
        else:
            self._look_later(node)

    def _node_lost(self, event: ev.NodeLost) -> None:
        node = self.nodes[event.node]
        if node.state == "LOST":
            return
        self._move_node(node, "lost")
        node.why = event.why
        node.retry_at = None
        self._lose_items(node, event.why)
        self._refresh(node)
        self._nodes_changed()

    def _lose_items(self, node: Node, why: str) -> None:
        for item in list(node.items.values()):
            if self._is_unsaid(item):
                self._back_to_queue(item, "node_lost")
                continue
            ended = item.ended
            self._leave_node(item)
            if ended is not None:
                self._conclude(item, ended[0], ended[1], f"its results are lost with the node: {why}")
            else:
                self._conclude(item, "cancelled" if item.cancelling else "lost", None, why)

    def _restarted(self, _event: ev.Restarted) -> None:
        self.draining = False
        for node in self._by_number:
            if node.link != "CLOSED":
                self._move_link(node, "restart")
            node.retry_at = None
            node.failures = 0
            # Where something of ours is, or was: it was reached once, and is tried until it is reached again.
            node.ever_open = bool(node.items)
            node.down_at = None
            self._note_down(node)
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
        while self._give_ups and self._give_ups[0][0] <= self._now:
            _when, number = heapq.heappop(self._give_ups)
            self._give_up(self._by_number[number])

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
        if self.draining and not item.lease:
            self._out.append(act.Unstage(item.x, item.node.name))
            self._back_to_queue(item, "recalled")
        elif item.node.link == "OPEN":
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
        reserved = self._reserved
        if reserved is not None and item.group is reserved[0].group and item.order < reserved[0].order:
            # It wants the same and is before who the node is kept for: nobody behind it in its group is asked.
            self._reserved = (item, reserved[1])

    # ------------------------------------------------------------------ promises

    def check(self) -> None:
        """Verify the invariants; tests call it after every step. Raises InvariantError."""
        from liborch.core.invariants import check

        check(self)

    def explain(self, x: str) -> list[str]:
        """Why an execution is not further than it is, condition by condition. Empty when it is not known here."""
        from liborch.core.explain import explain

        return explain(self, x)
