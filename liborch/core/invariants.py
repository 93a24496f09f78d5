"""What always holds between two events; `Orchestration.check()` and the tests ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from liborch.core.tables import FINAL
from liborch.errors import InvariantError

if TYPE_CHECKING:
    from liborch.core.machine import Orchestration

_HERE = frozenset({"STAGING", "PLACED", "RUNNING", "PAUSED", "COLLECTING"})


def check(machine: Orchestration) -> None:
    """Raise InvariantError naming the first promise that does not hold."""
    live: dict[str, int] = {}
    waiting = 0
    for x, item in machine.items.items():
        live[item.state] = live.get(item.state, 0) + 1
        _need(item.x == x, f"{item!r} is filed under {x}")
        _need(item.state not in FINAL, f"{item!r} is final and still kept")
        _need((item.state in _HERE) == (item.node is not None), f"{item!r}: state and node disagree")
        _need((item.state == "WAITING") == (item.group is not None), f"{item!r}: state and queue disagree")
        if item.group is not None:
            waiting += 1
        if item.node is not None:
            _need(item.node.items.get(x) is item, f"{item!r} is not known to {item.node!r}")
            _need(machine.nodes.get(item.node.name) is item.node, f"{item!r} is on a node nobody knows")
        else:
            _need(not item.has_room, f"{item!r} has room nowhere")
        _need(
            (item.state == "COLLECTING") == (item.ended is not None), f"{item!r}: verdict and state disagree"
        )
    for group in machine.queue.groups():
        inside = [item for item in group.items if item.group is group]
        _need(
            len(inside) == len({item.x for item in inside}) == group.live > 0,
            f"{group.key}: {group.live} live",
        )
        _need(inside == sorted(inside, key=lambda item: item.order), f"{group.key} is not kept by age")
        _need(group.parked != bool(group.entry), f"{group.key} is neither parked nor queued, or both")
        waiting -= len(inside)
    _need(waiting == 0, f"{waiting} wait and are in no group")
    waiting = live.get("WAITING", 0)
    _need(waiting == machine.queue.waiting, f"{waiting} wait, the queue counts {machine.queue.waiting}")
    for state, count in machine.counts.items():
        _need(
            state in FINAL or live.get(state, 0) == count,
            f"{live.get(state, 0)} are {state}, counted {count}",
        )
    shares: dict[int, int] = {}
    for node in machine.nodes.values():
        cpus = memory = gpus = 0
        for x, item in node.items.items():
            _need(item.node is node, f"{item!r} is filed under {node!r}")
            _need(x in machine.items, f"{item!r} on {node!r} is not known")
            if item.has_room:
                cpus += item.cpus
                memory += item.memory_bytes
                gpus += item.gpus
                shares[id(item.share)] = shares.get(id(item.share), 0) + item.cpus
                _need(x not in node.ahead, f"{item!r} is ahead and has room")
        _need(node.free_cpus == node.cpus - cpus, f"{node!r}: cores do not add up")
        _need(node.free_memory == node.memory_bytes - memory, f"{node!r}: memory does not add up")
        _need(node.free_gpus == node.gpus - gpus, f"{node!r}: GPUs do not add up")
        _need(
            all(node.items.get(x) is item for x, item in node.ahead.items()), f"{node!r}: ahead but not here"
        )
        _need(node.state != "LOST" or not node.items, f"{node!r} is lost and has executions")
        indexed = machine._index._where.get(node.number)
        usable = node.state == "USABLE" and node.link == "OPEN" and node.free_cpus > 0 and not node.ahead
        wanted = (node.free_gpus, node.free_cpus, node.free_memory) if usable else None
        _need(indexed == wanted, f"{node!r}: the index says {indexed}, should be {wanted}")
        _need(
            not node.ahead or not node.fits(next(iter(node.ahead.values()))),
            f"{node!r}: the oldest order ahead would fit",
        )
        _need(bool(node.ahead) == (node.number in machine._donors), f"{node!r}: donors are not up to date")
    for share in machine.queue._shares.values():
        _need(share.used_cpus == shares.get(id(share), 0), "a batch's share does not add up")
    if machine._reserved is not None:
        head, kept = machine._reserved
        _need(machine.items.get(head.x) is head and head.state == "WAITING", f"room is reserved for {head!r}")
        _need(kept.link == "OPEN", f"{kept!r} is reserved and out of reach")


def _need(holds: bool, text: str) -> None:
    if not holds:
        raise InvariantError(text)
