"""What always holds between two events; `Orchestration.check()` and the tests ask."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from liborch.core.room import parts_of
from liborch.core.tables import FINAL
from liborch.errors import InvariantError

if TYPE_CHECKING:
    from liborch.core.machine import Orchestration
    from liborch.core.things import Gang, Item, Node

_HERE = frozenset({"STAGING", "PLACED", "RUNNING", "PAUSED", "COLLECTING"})


def check(machine: Orchestration) -> None:
    """Raise InvariantError naming the first promise that does not hold."""
    _check_items(machine)
    _check_queue(machine)
    _check_allocations(machine)
    used: dict[int, int] = {}
    for node in machine.nodes.values():
        _check_node(machine, node, used)
    for batch, share in machine.queue._shares.items():
        if share.used_cpus != used.get(id(share), 0):
            raise InvariantError(
                f"batch {batch!r} uses {used.get(id(share), 0)} cores, counted {share.used_cpus}"
            )
    if machine._reserved is not None:
        head, kept = machine._reserved
        if machine.items.get(head.x) is not head or head.state != "WAITING":
            raise InvariantError(f"room is reserved for {head!r}")
        if head.group is None or head.group.head() is not head:
            raise InvariantError(f"room is reserved for {head!r}, who is not the next of its group")
        if len(kept) != head.node_count:
            raise InvariantError(
                f"{len(kept)} nodes are reserved for {head!r}, which asks for {head.node_count}"
            )
        for node in kept.values():
            if not node.is_open:
                raise InvariantError(f"{node!r} is reserved and out of reach")


def _check_items(machine: Orchestration) -> None:
    live: dict[str, int] = dict.fromkeys(machine.counts, 0)
    for x, item in machine.items.items():
        state, node = item.state, item.node
        live[state] += not item.rank
        if item.x != x or state in FINAL:
            raise InvariantError(f"{item!r} is filed under {x}, or final and still kept")
        # A rank that ended may have left its node while others still run.
        is_left = node is None and state == "COLLECTING" and item.gang is not None
        if (state in _HERE) != (node is not None or is_left) or (state == "WAITING") != (
            item.group is not None
        ):
            raise InvariantError(f"{item!r}: state, node {node!r} and place in the queue disagree")
        if node is None and item.has_room:
            raise InvariantError(f"{item!r} has room nowhere")
        if node is not None and (node.items.get(x) is not item or machine.nodes.get(node.name) is not node):
            raise InvariantError(f"{item!r} is not known to {node!r}")
        if (state == "COLLECTING") != (item.ended is not None):
            raise InvariantError(f"{item!r}: verdict {item.ended} and state disagree")
        if item.gang is not None:
            _check_rank(machine, item, item.gang)
        elif item.rank or (item.node_count > 1 and node is not None):
            raise InvariantError(f"{item!r} is without its gang")
    for state, count in machine.counts.items():
        if state not in FINAL and live[state] != count:
            raise InvariantError(f"{live[state]} are {state}, counted {count}")


def _check_allocations(machine: Orchestration) -> None:
    for cluster in machine.clusters.values():
        count = sum(
            1 for each in machine.allocations.values() if each.cluster is cluster and not each.is_held
        )
        if count > cluster.most:
            raise InvariantError(f"{cluster!r} has {count} allocations")
    for name, allocation in machine.allocations.items():
        if name != allocation.name or allocation.state in ("ENDED", "REFUSED"):
            raise InvariantError(f"{allocation!r} is filed under {name}, or over and still kept")
        if allocation.nodes and allocation.state not in ("ACTIVE", "DRAINING"):
            raise InvariantError(f"{allocation!r} has nodes")
        occupied = sum(1 for node in allocation.nodes if node.items)
        if allocation.nodes and occupied != allocation.occupied:
            raise InvariantError(
                f"{allocation!r}: {occupied} of its nodes are used, counted {allocation.occupied}"
            )
        for node in allocation.nodes:
            if machine.nodes.get(node.name) is not node or node.allocation is not allocation:
                raise InvariantError(f"{node!r} is not of {allocation!r}, or not known")
            if node.is_leaving != (allocation.state == "DRAINING"):
                raise InvariantError(f"{node!r} of {allocation!r} is being left, or is not")


def _check_rank(machine: Orchestration, item: Item, gang: Gang) -> None:
    if gang.members[item.rank] is not item or len(gang.members) != item.node_count:
        raise InvariantError(f"{item!r} is not of its gang")
    if any(machine.items.get(member.x) is not member for member in gang.members):
        raise InvariantError(f"{item!r}: not all of its gang are here")
    running = sum(1 for member in gang.members if member.state != "COLLECTING")
    if running != gang.running or (gang.is_over and not gang.awaited):
        raise InvariantError(
            f"{item!r}: {running} of its gang run, counted {gang.running}; awaited: {gang.awaited}"
        )
    if len({member.attempt for member in gang.members}) != 1:
        raise InvariantError(f"{item!r}: its gang is of several attempts")


def _check_queue(machine: Orchestration) -> None:
    waiting = 0
    for group in machine.queue.groups():
        inside = [item for item in group.items if item.group is group]
        if not len(inside) == len({item.x for item in inside}) == group.live > 0:
            raise InvariantError(f"{group.key}: {len(inside)} wait, counted {group.live}")
        if any(one.order >= other.order for one, other in pairwise(inside)):
            raise InvariantError(f"{group.key} is not kept by age")
        if group.parked == bool(group.entry):
            raise InvariantError(f"{group.key} is neither parked nor queued, or both")
        waiting += len(inside)
    if not waiting == machine.queue.waiting == machine.counts["WAITING"]:
        raise InvariantError(
            f"{machine.counts['WAITING']} wait, {waiting} in groups, the queue counts {machine.queue.waiting}"
        )


def _check_node(machine: Orchestration, node: Node, used: dict[int, int]) -> None:
    cpus = memory = parts = 0
    for x, item in node.items.items():
        if item.node is not node or machine.items.get(x) is not item:
            raise InvariantError(f"{item!r} is filed under {node!r}")
        if item.has_room:
            cpus += item.cpus
            memory += item.memory_bytes
            parts += parts_of(item.gpus)
            used[id(item.share)] = used.get(id(item.share), 0) + item.cpus
            if x in node.ahead:
                raise InvariantError(f"{item!r} is ahead and has room")
    taken_parts = parts_of(node.gpus) - node.gpu_room.free_parts
    taken = (node.cpus - node.free_cpus, node.memory_bytes - node.free_memory, taken_parts)
    if taken != (cpus, memory, parts):
        raise InvariantError(f"{node!r}: {taken} of its room is taken, used are {(cpus, memory, parts)}")
    if node.free_gpus != node.gpu_room.free:
        raise InvariantError(f"{node!r}: {node.free_gpus} GPUs are free, should be {node.gpu_room.free}")
    if node.state == "LOST" and node.items:
        raise InvariantError(f"{node!r} is lost and has executions")
    if any(node.items.get(x) is not item for x, item in node.ahead.items()):
        raise InvariantError(f"{node!r}: ahead but not here")
    if node.ahead and node.fits(next(iter(node.ahead.values()))):
        raise InvariantError(f"{node!r}: the oldest order ahead would fit")
    if bool(node.ahead) != (node.number in machine._donors):
        raise InvariantError(f"{node!r}: donors are not up to date")
    usable = node.is_open and node.free_cpus > 0 and not node.ahead
    wanted = (node.until, node.free_gpus, node.free_cpus, node.free_memory) if usable else None
    indexed = machine._index.nodes.get(node.number)
    if indexed != wanted:
        raise InvariantError(f"{node!r}: the index says {indexed}, should be {wanted}")
