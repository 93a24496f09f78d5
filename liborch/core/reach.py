"""Nodes and their links: opened, torn, refused, given up, and what a node says it holds. The part of the machine that knows reach.

What cannot be seen has not failed: a torn link changes no execution. Only what a node itself no longer knows is lost, what a
person declares lost, and what is on a node out of reach for `Policy.give_up_s` while another one can be used.

States of items and links move here and in `machine.py`, by the tables alone; requests and ends are `machine.py`'s.
"""

from __future__ import annotations

import heapq
import random

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.gangs import Gangs
from liborch.core.policy import Policy
from liborch.core.tables import AT_NODE, EXECUTION_TRANSITIONS, LINK_TRANSITIONS, NODE_TRANSITIONS
from liborch.core.things import Allocation, Item, Node
from liborch.errors import IllegalTransition
from liborch.quantities import format_duration


class Reach(Gangs):
    """See the module's text. Base of `Orchestration`, which has the door."""

    def __init__(self, policy: Policy | None, rng: random.Random | None) -> None:
        super().__init__(policy, rng)
        #: (when, node number) of nodes out of reach: to be looked at then; outdated entries are skipped.
        self._give_ups: list[tuple[float, int]] = []
        #: Numbers of nodes that are gone for good.
        self._unused_numbers: list[int] = []
        #: Nothing new is started.
        self.draining = False

    # ------------------------------------------------------------------ what the machine does

    def _say_pause(self, item: Item) -> None:
        """Tell the node whether it is to be paused."""
        raise NotImplementedError

    # ------------------------------------------------------------------ states

    def _move(self, item: Item, edge: str) -> None:
        old = item.state
        new = EXECUTION_TRANSITIONS[old].get(edge)
        if new is None:
            raise IllegalTransition("execution", item.x, old, edge, self._tell(item.story))
        item.state = new
        if not item.rank:
            # The others of its gang are the same execution.
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
        if event.node not in self.nodes:
            self._add_node(event.node, event.host)

    def _add_node(self, name: str, host: str, allocation: Allocation | None = None) -> Node:
        if self._unused_numbers:
            number = self._unused_numbers.pop()
        else:
            number = len(self._by_number)
            self._by_number.append(None)  # type: ignore[arg-type]
        node = self.nodes[name] = self._by_number[number] = Node(name, host, number, allocation)
        self._possible.clear()
        if self.items:
            self._connect(node)
        return node

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
        node = self.nodes.get(event.node)
        if node is None or node.link not in ("CONNECTING", "OPEN"):
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
        used = (node.cpus - node.free_cpus, node.memory_bytes - node.free_memory)
        node.gpu_room.unused += event.gpus - node.gpus
        node.cpus, node.memory_bytes, node.gpus = event.cpus, event.memory_bytes, event.gpus
        node.free_cpus = node.cpus - used[0]
        node.free_memory = node.memory_bytes - used[1]
        node.free_gpus = node.gpu_room.free
        holding = {(x, attempt): state for x, attempt, state in event.holding}
        for item in list(node.items.values()):
            if item.state in AT_NODE:
                self._reconcile(item, node, holding.pop((item.x, item.attempt), None))
            elif item.state == "STAGING" and not was_open:
                self._out.append(act.Stage(item.x, node.name))
            elif (
                item.state == "COLLECTING"
                and not was_open
                and (item.gang is None or (item.gang.is_over and item.x in item.gang.awaited))
            ):
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
            self._over(item, "lost", None, "the node lost its records of it")
            return
        if held in ("running", "held", "paused") and item.state == "PLACED":
            self._begin(item)
        if held == "paused" and item.state == "RUNNING":
            self._move(item, "pause")
        elif held == "running" and item.state == "PAUSED":
            self._move(item, "resume")
        if item.cancelling or item.evicting:
            # Also when the order never came: then it is the end of it, and it can never start.
            item.state_id = node.state_id
            self._out.append(act.Cancel(item.x, item.attempt, node.name))
            return
        if held is None:
            self._hand(item, node)
        is_alone = item.gang is None and not item.lease and not item.is_slot
        if node.cpus == 0 and item.state == "PLACED" and is_alone:
            # Nothing is to be started there any more.
            item.recalling = True
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
        node = self.nodes.get(event.node)
        if node is None or node.link not in ("CONNECTING", "OPEN"):
            return
        node.failures = 1 if node.link == "OPEN" else node.failures + 1
        if not node.ever_open and node.failures >= self.policy.first_attempts:
            self._refuse_link(node, event.why)
            return
        self._move_link(node, "torn")
        node.why = event.why
        self._note_down(node)
        if node.is_leaving and not node.items:
            # Its allocation is being given back, or is over, and nothing of ours is there: nobody needs it any more.
            node.retry_at = None
            self._refresh(node)
            return
        ceiling = min(
            self.policy.backoff_cap_s, self.policy.backoff_base_s * 2.0 ** min(node.failures - 1, 20)
        )
        node.retry_at = self._now + self.rng.uniform(0.0, ceiling)
        heapq.heappush(self._retries, (node.retry_at, node.number))
        self._refresh(node)

    def _link_refused(self, event: ev.LinkRefused) -> None:
        node = self.nodes.get(event.node)
        if node is not None and node.link in ("CONNECTING", "OPEN", "BROKEN"):
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

    def _drain(self, _event: ev.Draining) -> None:
        """Ask back what nodes were told and have not started."""
        self.draining = True
        for node in self._by_number:
            for item in node.items.values():
                if item.state != "PLACED" or item.recalling or item.cancelling or item.is_slot or item.lease:
                    continue
                if item.gang is not None:
                    # It has room on all its nodes, and may run on some already.
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
        if any(other.is_open for other in self._by_number):
            node.down_at = None
            self._lose_items(
                node, f"{node.name} was out of reach for {format_duration(self.policy.give_up_s)}"
            )
        else:
            self._look_later(node)

    def _node_lost(self, event: ev.NodeLost) -> None:
        node = self.nodes.get(event.node)
        if node is not None and node.state != "LOST":
            self._lose_node(node, event.why)

    def _lose_node(self, node: Node, why: str) -> None:
        """Give a node up. One that came with an allocation never comes back: it is forgotten."""
        self._move_node(node, "lost")
        node.why = why
        node.retry_at = None
        self._lose_items(node, why)
        self._refresh(node)
        if node.is_granted:
            node.down_at = None
            for known in (self._hungry, self._starved):
                known.pop(node.number, None)
            del self.nodes[node.name]
            self._out.append(act.Forget(node.name))
            self._unused_numbers.append(node.number)
        self._nodes_changed()

    def _lose_items(self, node: Node, why: str) -> None:
        for item in list(node.items.values()):
            if self._is_unsaid(item):
                self._back_to_queue(item, "node_lost")
                continue
            if item.gang is not None:
                self._lose_rank(item, why)
                continue
            ended = item.ended
            self._leave_node(item)
            if ended is not None:
                self._conclude(item, ended[0], ended[1], f"its results are lost with the node: {why}")
            else:
                self._conclude(item, "cancelled" if item.cancelling else self._loss(node), None, why)

    @staticmethod
    def _loss(node: Node) -> str:
        """Why what was on a node that is given up is over."""
        return "allocation" if node.is_granted else "lost"

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
