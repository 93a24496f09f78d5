"""Allocations: asked for when the backlog is worth it, kept while they pay, left before their time is over, given back.

====================================  =================================================================================
more waits than nodes are to come     another allocation is asked for: as large as what waits needs, within what the
                                      cluster allows; none when those there are will be done before it could begin
its time is nearly over               nothing more is placed on it (DRAINING). What runs goes on; what would not be over in
                                      time is asked to end, with grace, and ended for certain `Policy.cut_margin_s` before
                                      the end
nothing is on it, nobody waits for    after `Policy.idle_s` it is given back; at once when nothing new may start
it is over, or was taken away         its nodes are left: what can still be reached is ended there, what cannot is given up
                                      after `Policy.leave_s`
none of its nodes can be used         it is given back; its nodes are not asked for again
an execution was cut off              another attempt under the same id, which costs none of its retries; after
                                      `Policy.cut_offs_most` in a row it is over: no allocation is long enough for it
the batch system says "not now"       asked again later, with back-off
the batch system says no              the cluster is refused: what waits for it alone is over
a person holds it                     it is asked for, or used, whatever waits, and kept when idle
it is lent: another client holds it   it is never given back; when it is over, what waits for it alone is over
====================================  =================================================================================

An execution whose walltime is known starts only where it fits before the end. Where it is not known, what ended before tells how
long one takes; when nothing did, the grace is kept free.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.policy import Policy
from liborch.core.queue import Shape
from liborch.core.reach import Reach
from liborch.core.room import describe_room
from liborch.core.tables import ALLOCATION_TRANSITIONS, AT_NODE
from liborch.core.things import Allocation, Cluster, Item, Node
from liborch.errors import IllegalTransition
from liborch.quantities import format_duration, shares_of

#: How much the newest of a series counts in its average.
_NEWEST = 0.2
#: How much longer than on average an execution may take and still be expected to be over in time.
_SPARE = 2.0


class Allocations(Reach):
    """See the module's text. Base of `Orchestration`, which has the door."""

    def __init__(self, policy: Policy | None, rng: random.Random | None) -> None:
        super().__init__(policy, rng)
        self.clusters: dict[str, Cluster] = {}
        #: {name: allocation}; those that are not over.
        self.allocations: dict[str, Allocation] = {}
        #: How many were ever asked for.
        self._asked = 0
        #: When what is needed is thought over next.
        self._review_at = math.inf
        #: Nobody needs nodes any more.
        self._unwanted = False
        #: Nodes whose allocation is over and that hold something: {number: (node, given up when out of reach until)}
        self._left: dict[int, tuple[Node, float | None]] = {}
        #: What a person asked for and was refused for now: {name: (cluster, nodes)}. It is asked for again.
        self.held_later: dict[str, tuple[Cluster, int]] = {}
        #: How long an execution takes, a moving average in seconds; None: none has ended.
        self._takes_s: float | None = None

    # ------------------------------------------------------------------ what happened

    def _cluster_added(self, event: ev.ClusterAdded) -> None:
        known = self.clusters.get(event.cluster)
        if known is None:
            self.clusters[event.cluster] = Cluster(event)
        elif known.most != event.most:
            # Whoever goes on with it says anew whether to use what is held, or to ask for its own.
            known.change(event)
        else:
            return
        self._possible.clear()
        self._is_stale = True

    def _allocation_held(self, event: ev.AllocationHeld) -> None:
        cluster = self.clusters.get(event.cluster)
        if cluster is None or event.a in self.allocations:
            return
        self._hold(event.a, cluster, event.nodes, event.id)

    def _hold(self, name: str, cluster: Cluster, node_count: int, id: str = "") -> None:
        allocation = Allocation(name, cluster, node_count, self._now)
        allocation.is_held = True
        allocation.is_lent = bool(id)
        allocation.story.append((self._now, "held", allocation.state))
        self.allocations[name] = allocation
        if allocation.is_lent:
            allocation.id = id
            self._move_allocation(allocation, "queued")
            cluster.is_refused = False
            self._possible.clear()
        else:
            self._ask(allocation)
        self._is_stale = True

    def _allocation_queued(self, event: ev.AllocationQueued) -> None:
        allocation = self.allocations.get(event.a)
        if allocation is None:
            return
        allocation.id, allocation.why = event.id, event.why
        if allocation.state == "REQUESTED":
            self._move_allocation(allocation, "queued")
            allocation.cluster.failures = 0
        elif allocation.state in ("ACTIVE", "DRAINING"):
            # Preempted, or its nodes failed, and it will be started again from the beginning.
            self._leave_nodes(allocation, f"allocation {event.id} was put back into the queue: {event.why}")
            self._move_allocation(allocation, "requeued")
        self._is_stale = True

    def _allocation_refused(self, event: ev.AllocationRefused) -> None:
        allocation = self.allocations.get(event.a)
        if allocation is None or allocation.state not in ("REQUESTED", "QUEUED"):
            return
        self._move_allocation(allocation, "refused")
        del self.allocations[event.a]
        cluster = allocation.cluster
        cluster.why = event.why
        if not event.is_retriable:
            self._refuse(cluster, event.why)
        else:
            self._request_later(cluster)
            if allocation.is_held and not allocation.is_lent:
                self.held_later[allocation.name] = (cluster, allocation.node_count)
        self._is_stale = True

    def _request_later(self, cluster: Cluster) -> None:
        cluster.failures += 1
        ceiling = min(
            self.policy.request_cap_s, self.policy.backoff_base_s * 2.0 ** min(cluster.failures, 20)
        )
        cluster.retry_at = self._now + self.rng.uniform(ceiling / 2, ceiling)

    def _allocation_active(self, event: ev.AllocationActive) -> None:
        allocation = self.allocations.get(event.a)
        if allocation is None:
            return
        allocation.id, allocation.why = event.id, ""
        deadline = math.inf if event.left_s is None else self._now + event.left_s
        if allocation.state in ("REQUESTED", "QUEUED"):
            self._move_allocation(allocation, "active")
            cluster = allocation.cluster
            cluster.failures = 0
            waited = self._now - allocation.requested_at
            cluster.wait_s = waited if cluster.wait_s is None else _averaged(cluster.wait_s, waited)
            allocation.active_at = self._now
            allocation.room = (event.cpus, event.memory_bytes, event.gpus)
            if event.cpus and cluster.room is None:
                cluster.room = allocation.room
            allocation.deadline = deadline
            allocation.is_soft = event.is_soft
            start = cluster.starts[event.id] = cluster.starts.get(event.id, 0) + 1
            if allocation.is_lent:
                cluster.walltime_s = event.left_s
                cluster.most_nodes = len(event.nodes)
                self._nodes_changed()
            which = event.id if start == 1 else f"{event.id}.{start}"
            for machine in dict.fromkeys(event.nodes):
                node = self._add_node(f"{machine}/{which}", cluster.name, allocation)
                node.machine = machine
                node.until = allocation.until(self.policy.cut_margin_s)
                allocation.nodes.append(node)
        elif allocation.state in ("ACTIVE", "DRAINING"):
            allocation.deadline = deadline
            gone = [node for node in allocation.nodes if node.machine not in event.nodes]
            if event.nodes and gone:
                self._leave(allocation, gone, f"allocation {event.id} goes on without it")
            for node in allocation.nodes:
                node.until = allocation.until(self.policy.cut_margin_s)
                self._refresh(node)
        self._is_stale = True

    def _allocation_ended(self, event: ev.AllocationEnded) -> None:
        allocation = self.allocations.pop(event.a, None)
        if allocation is None:
            return
        how = event.end if not event.why else f"{event.end}: {event.why}"
        was_active = allocation.state in ("ACTIVE", "DRAINING")
        self._move_allocation(allocation, "ended")
        cluster = allocation.cluster
        cluster.ended += 1
        if was_active:
            self._leave_nodes(allocation, f"allocation {allocation.id} is over ({how})")
        elif not (allocation.is_releasing or allocation.is_lent):
            # It never began: asking at once for another would be asking for the same.
            cluster.why = f"allocation {allocation.id} was over before it began ({how})"
            self._request_later(cluster)
        if allocation.is_lent and not cluster.most:
            self._refuse(cluster, f"allocation {allocation.id} is over ({how})")
        self._is_stale = True

    def _refuse(self, cluster: Cluster, why: str) -> None:
        """Nothing more is to be had from it until a person acts."""
        cluster.why = why
        cluster.is_refused = True
        self._nodes_changed()

    def _link_opened(self, event: ev.LinkOpened) -> None:
        super()._link_opened(event)
        node = self.nodes.get(event.node)
        if node is not None and node.allocation is not None:
            cluster = node.allocation.cluster
            room = (node.cpus, node.memory_bytes, node.gpus)
            cluster.room = room if cluster.room is None else _larger(cluster.room, room)
            cluster.useless = 0
            self._is_stale = True

    def _link_lost(self, event: ev.LinkLost) -> None:
        super()._link_lost(event)
        self._is_stale = True

    def _link_refused(self, event: ev.LinkRefused) -> None:
        super()._link_refused(event)
        self._is_stale = True

    def _allocations_unwanted(self, _event: ev.AllocationsUnwanted) -> None:
        self._unwanted = True
        self.held_later.clear()
        for allocation in list(self.allocations.values()):
            self._release(allocation)

    def _restarted(self, event: ev.Restarted) -> None:
        super()._restarted(event)
        self._unwanted = False
        for allocation in self.allocations.values():
            if allocation.is_releasing:
                if not allocation.id:
                    self._ask(allocation, is_repeated=True)
                self._out.append(act.Release(allocation.name, allocation.cluster.name))
            elif allocation.state == "REQUESTED":
                self._ask(allocation, is_repeated=True)
        self._is_stale = True

    # ------------------------------------------------------------------ states

    def _move_allocation(self, allocation: Allocation, edge: str) -> None:
        new = ALLOCATION_TRANSITIONS[allocation.state].get(edge)
        if new is None:
            raise IllegalTransition(
                "allocation", allocation.name, allocation.state, edge, self._tell(allocation.story)
            )
        allocation.state = new
        allocation.story.append((self._now, edge, new))
        del allocation.story[:-50]

    def _ask(self, allocation: Allocation, *, is_repeated: bool = False) -> None:
        self._out.append(
            act.Allocate(
                allocation.name,
                allocation.cluster.name,
                allocation.node_count,
                allocation.walltime_s,
                tuple(allocation.cluster.avoided),
                is_repeated,
            )
        )

    def _release(self, allocation: Allocation) -> None:
        if allocation.is_releasing or allocation.is_lent:
            return
        allocation.is_releasing = True
        self._stop_placing(allocation)
        self._out.append(act.Release(allocation.name, allocation.cluster.name))

    def _stop_placing(self, allocation: Allocation) -> None:
        if allocation.state != "ACTIVE":
            return
        self._move_allocation(allocation, "stop")
        for node in allocation.nodes:
            node.is_leaving = True
            self._refresh(node)
            for item in node.items.values():
                if item.state == "PLACED" and not (item.is_slot or item.lease or item.gang):
                    self._recall(item, node)

    def _recall(self, item: Item, node: Node) -> None:
        if not item.recalling and not item.cancelling:
            item.recalling = True
            if node.link == "OPEN":
                self._out.append(act.Recall(item.x, item.attempt, node.name))

    # ------------------------------------------------------------------ leaving nodes

    def _leave_nodes(self, allocation: Allocation, why: str) -> None:
        """Its nodes are not ours any more."""
        allocation.deadline = allocation.stop_at = math.inf
        allocation.idle_since = None
        self._leave(allocation, allocation.nodes, why)

    def _leave(self, allocation: Allocation, nodes: Sequence[Node], why: str) -> None:
        numbers = {node.number for node in nodes}
        allocation.nodes = [node for node in allocation.nodes if node.number not in numbers]
        for node in nodes:
            allocation.occupied -= bool(node.items)
            node.is_leaving = True
            node.allocation = None
            node.why = why
            self._refresh(node)
            self._evict(node, math.inf)
            self._left[node.number] = (node, None)
        self._look_at_left()

    def _evict(self, node: Node, over_by: float) -> None:
        """End what is there, unless it is expected to be over by then."""
        for item in list(node.items.values()):
            if item.state == "COLLECTING" or item.evicting or item.cancelling:
                continue
            if -math.inf < over_by < math.inf and not self._outlasts(item, over_by):
                continue
            if self._is_unsaid(item) and item.gang is None and not item.lease:
                if item.state == "STAGING":
                    self._out.append(act.Unstage(item.x, node.name))
                self._back_to_queue(item, "node_lost")
                continue
            item.evicting = True
            if node.link == "OPEN" and item.state in AT_NODE:
                self._out.append(act.Cancel(item.x, item.attempt, node.name))

    def _outlasts(self, item: Item, over_by: float) -> bool:
        """Whether something that runs is expected to run for longer. What has not started is not there to be asked to end."""
        if item.started_at is None:
            return False
        if item.walltime_s is not None and item.started_at + item.walltime_s <= over_by:
            return False
        if self._takes_s is None:
            return True
        end = item.started_at + _SPARE * self._takes_s
        # Where it takes longer than others already, nobody knows how long.
        return end > over_by or end < self._now

    def _look_at_left(self) -> None:
        """Give up nodes that hold nothing more, or have been out of reach for long enough."""
        for number, (node, until) in list(self._left.items()):
            if node.items and node.link == "OPEN":
                self._left[number] = (node, None)
            elif node.items and until is None:
                self._left[number] = (node, self._now + self.policy.leave_s)
            elif not node.items or (until is not None and until <= self._now):
                del self._left[number]
                self._lose_node(node, node.why)

    # ------------------------------------------------------------------ thinking it over

    def _review(self) -> None:
        """What time and use mean for allocations, and whether more are needed."""
        if not (self.allocations or self.queue.waiting or self._left or self.held_later):
            self._is_stale = False
            # A look that was due for what is gone by now is due no more.
            self._review_at = math.inf
            return
        if self._is_stale:
            # Not after every event, and not before all of a batch is there: soon is early enough.
            self._is_stale = False
            self._review_at = min(
                self._review_at, self._now + (0.0 if self.draining else self.policy.review_s)
            )
        if self._now < self._review_at:
            return
        self._review_at = math.inf
        if self._left:
            self._look_at_left()
            self._look_again(
                min((at for _node, at in self._left.values() if at is not None), default=math.inf)
            )
        for allocation in list(self.allocations.values()):
            self._review_one(allocation)
        if self.draining or self._unwanted:
            return
        for name, (cluster, node_count) in list(self.held_later.items()):
            if cluster.retry_at is not None and self._now < cluster.retry_at:
                self._look_again(cluster.retry_at)
            else:
                del self.held_later[name]
                self._hold(name, cluster, node_count)
        for cluster in self.clusters.values():
            self._request(cluster)

    def _look_again(self, at: float) -> None:
        self._review_at = min(self._review_at, max(at, self._now))

    def _review_one(self, allocation: Allocation) -> None:
        if allocation.is_releasing:
            return
        if allocation.state in ("REQUESTED", "QUEUED"):
            self._review_use(allocation)
            return
        if self._is_useless(allocation):
            return
        gone_by = allocation.until(self.policy.cut_margin_s)
        if allocation.state == "ACTIVE":
            takes = self.policy.cut_grace_s if self._takes_s is None else _SPARE * self._takes_s
            allocation.stop_at = min(allocation.deadline, gone_by - min(takes, self.policy.cut_grace_s))
            if self._now >= allocation.stop_at:
                self._stop_placing(allocation)
            else:
                self._look_again(allocation.stop_at)
                self._review_use(allocation)
        cut_at = gone_by - self.policy.cut_grace_s
        if self._now >= gone_by:
            cut_by = -math.inf
        elif self._now >= cut_at:
            cut_by = gone_by
            self._look_again(gone_by)
        else:
            self._look_again(cut_at)
            cut_by = math.inf
        if cut_by < math.inf and allocation.occupied:
            for node in allocation.nodes:
                self._evict(node, cut_by)
        if allocation.state == "DRAINING" and not allocation.occupied:
            self._release(allocation)

    def _review_use(self, allocation: Allocation) -> None:
        if allocation.is_held:
            return
        if allocation.occupied or (self.queue.waiting and not self.draining and self._has_takers(allocation)):
            allocation.idle_since = None
            return
        if allocation.idle_since is None:
            allocation.idle_since = self._now
        if self.draining or self._now >= allocation.idle_since + self.policy.idle_s:
            self._release(allocation)
        else:
            self._look_again(allocation.idle_since + self.policy.idle_s)

    def _has_takers(self, allocation: Allocation) -> bool:
        """Whether somebody waits who could run there."""
        room = allocation.cluster.room
        return any(_share_of_node(group.key[2], room) is not None for group in self.queue.groups())

    def _is_useless(self, allocation: Allocation) -> bool:
        """Give back what has no node that can be used; a cluster of which that is all there is takes no more requests."""
        for node in allocation.nodes:
            if node.link == "REFUSED":
                allocation.cluster.avoided[node.machine] = None
        if allocation.is_releasing or any(node.link != "REFUSED" for node in allocation.nodes):
            return False
        cluster = allocation.cluster
        if allocation.is_lent and cluster.is_refused:
            return True
        node = allocation.nodes[0]
        cluster.why = (
            f"none of the nodes of allocation {allocation.id} can be used; {node.machine}: {node.why}"
        )
        self._release(allocation)
        self._request_later(cluster)
        cluster.useless += 1
        if cluster.useless >= self.policy.useless_most or allocation.is_lent:
            self._refuse(cluster, cluster.why)
        return True

    # ------------------------------------------------------------------ asking for more

    def _request(self, cluster: Cluster) -> None:
        """Ask for as many allocations as what waits needs and the cluster allows."""
        if cluster.is_refused or not self.queue.waiting:
            return
        if cluster.retry_at is not None and self._now < cluster.retry_at:
            self._look_again(cluster.retry_at)
            return
        live = [each for each in self.allocations.values() if each.cluster is cluster and not each.is_held]
        if len(live) >= cluster.most:
            return
        needed = self._nodes_needed(cluster)
        here = sum(len(each.nodes) for each in live if each.state == "ACTIVE")
        if here and self._takes_s is not None:
            left_s = needed * self._takes_s / here
            if left_s <= (cluster.wait_s or 0.0) + self._takes_s and self._lasts(live, left_s):
                return
        uncovered = needed - sum(self._to_come(each) for each in live)
        while uncovered > 0 and len(live) < cluster.most:
            count = max(math.ceil(uncovered), self._nodes_at_once(cluster), cluster.least_nodes)
            count = min(count, cluster.most_nodes)
            self._asked += 1
            allocation = Allocation(f"a{self._asked}", cluster, count, self._now)
            allocation.story.append((self._now, "asked", allocation.state))
            self.allocations[allocation.name] = allocation
            live.append(allocation)
            self._ask(allocation)
            uncovered -= count

    @staticmethod
    def _to_come(allocation: Allocation) -> int:
        """How many nodes of it will be there and are not yet."""
        if allocation.state in ("REQUESTED", "QUEUED"):
            return allocation.node_count
        if allocation.state == "ACTIVE":
            return sum(1 for node in allocation.nodes if node.state == "UNKNOWN" and node.link != "REFUSED")
        return 0

    def _lasts(self, allocations: Sequence[Allocation], seconds: float) -> bool:
        """Whether those that are active will be there for so long."""
        return any(each.state == "ACTIVE" and each.stop_at - self._now >= seconds for each in allocations)

    def _nodes_needed(self, cluster: Cluster) -> float:
        """How many nodes would run all that waits at once."""
        needed = 0.0
        for group in self.queue.groups():
            share = _share_of_node(group.key[2], cluster.room)
            if share is not None:
                needed += share * group.live
        return needed

    def _nodes_at_once(self, cluster: Cluster) -> int:
        """The most nodes that one execution takes together, of those that wait."""
        counts = (group.key[2][5] for group in self.queue.groups())
        return min(max(counts, default=1), cluster.most_nodes)

    # ------------------------------------------------------------------ what the rest of the machine asks

    @property
    def has_clusters(self) -> bool:
        """Whether nodes may be granted by a batch system."""
        return bool(self.clusters)

    def _note_duration(self, item: Item) -> None:
        if item.started_at is not None and self.clusters:
            took = self._now - item.started_at
            self._takes_s = took if self._takes_s is None else _averaged(self._takes_s, took)

    def _could_come(self, item: Item) -> bool:
        """Whether nodes may still be granted that would have room for it, for long enough."""
        return any(self._suits(cluster, item) for cluster in self.clusters.values())

    def _suits(self, cluster: Cluster, item: Item) -> bool:
        if cluster.is_refused or item.node_count > cluster.most_nodes or item.nodes:
            return False
        longest = (cluster.walltime_s or math.inf) - self.policy.cut_margin_s
        if item.walltime_s is not None and item.walltime_s > longest:
            return False
        return _share_of_node(item.shape, cluster.room) is not None

    def _why_not_to_come(self, item: Item) -> str:
        """Why no cluster will ever have a node for it; "": there is none."""
        reasons = []
        for cluster in self.clusters.values():
            longest = (cluster.walltime_s or math.inf) - self.policy.cut_margin_s
            if cluster.is_refused:
                reasons.append(f"{cluster.name}: {cluster.why}")
            elif item.walltime_s is not None and item.walltime_s > longest:
                reasons.append(
                    f"asks for {format_duration(item.walltime_s)}; allocations of {cluster.name} last "
                    f"{format_duration(cluster.walltime_s or 0.0)}, of which the last {self.policy.cut_margin_s:g} s are kept "
                    "free: give it less --time, or the profile's allocation more walltime"
                )
            elif item.node_count > cluster.most_nodes:
                reasons.append(
                    f"asks for {item.node_count} nodes at once; allocations of {cluster.name} have at most {cluster.most_nodes}"
                )
            elif cluster.room is not None:
                reasons.append(
                    f"asks for {describe_room(item.cpus, item.memory_bytes, item.gpus)}; a node of {cluster.name} has "
                    f"{describe_room(*cluster.room)}"
                )
        return "; ".join(reasons)


def _larger(one: tuple[int, int, int], other: tuple[int, int, int]) -> tuple[int, int, int]:
    return max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2])


def _averaged(old: float, new: float) -> float:
    return old + (new - old) * _NEWEST


def _share_of_node(shape: Shape, room: tuple[int, int, int] | None) -> float | None:
    """How much of a node an execution of this shape takes (all of each of several for a gang); None: no node is large enough."""
    cpus, memory_bytes, gpus, _walltime_s, nodes, node_count = shape
    if nodes:
        return None
    if room is None:
        return float(node_count)
    if cpus > room[0] or memory_bytes > room[1] or gpus > room[2]:
        return None
    if node_count > 1:
        return float(node_count)
    shares = [cpus / room[0]]
    if memory_bytes:
        shares.append(memory_bytes / room[1])
    if gpus:
        # Shares are of one GPU each: so many as fit on each, on all of them.
        shares.append(gpus / room[2] if gpus >= 1 else 1 / (shares_of(gpus) * room[2]))
    return max(shares)
