"""Why an execution is not further than it is, in a person's words. Reads the machine, changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from liborch.core.room import describe_room
from liborch.quantities import format_duration, format_size

if TYPE_CHECKING:
    from liborch.core.machine import Orchestration
    from liborch.core.things import Item, Node


def explain(machine: Orchestration, x: str, now: float) -> list[str]:
    """One line per condition, the most telling first; empty when `x` is not live here."""
    item = machine.items.get(x)
    if item is None:
        return []
    if item.state == "WAITING":
        return _waiting(machine, item, now)
    if item.gang is not None:
        return [
            f"rank {member.rank}: {line}"
            for member, name in zip(item.gang.members, item.gang.names, strict=True)
            for line in _on_node(member, name, now)
        ]
    assert item.node is not None
    return _on_node(item, item.node.name, now)


def _on_node(item: Item, name: str, now: float) -> list[str]:
    if item.gang is not None and item.state == "COLLECTING" and not item.gang.is_over:
        return [f"it ended on {name}; the others are waited for"]
    node = item.node
    if node is None:
        return [f"it ended on {name}"]
    lines = {
        "STAGING": [f"its files are being sent to {node.name}"],
        "PLACED": [_placed(item, node)],
        "RUNNING": [f"it runs on {node.name}"],
        "PAUSED": [f"it is paused on {node.name}"],
        "COLLECTING": [f"it ended on {node.name}; its results are being fetched"],
    }[item.state]
    if item.cancelling:
        lines.append("it was asked to end")
    if node.link != "OPEN":
        lines.append(_unreachable(node, now))
    return lines


def _placed(item: Item, node: Node) -> str:
    if item.x in node.ahead:
        before = list(node.ahead).index(item.x)
        return f"it is in the queue of {node.name}, where every slot is taken; {before} of ours are before it"
    return f"{node.name} was told to start it"


def _waiting(machine: Orchestration, item: Item, now: float) -> list[str]:
    lines: list[str] = []
    if not machine.nodes and not machine.clusters:
        return ["there is no node yet"]
    before = sum(
        1
        for other in machine.items.values()
        if other.state == "WAITING" and (-other.priority, other.order) < (-item.priority, item.order)
    )
    if before:
        lines.append(f"{before} wait before it")
    for node in machine.nodes.values():
        if item.nodes and node.name not in item.nodes:
            lines.append(f"{node.name}: not among the nodes asked for")
        elif node.state == "LOST":
            lines.append(f"{node.name}: lost: {node.why}")
        elif node.link != "OPEN":
            lines.append(_unreachable(node, now))
        elif not node.could_ever(item):
            whole = describe_room(node.cpus, node.memory_bytes, node.gpus)
            lines.append(f"{node.name}: has {whole} in all; asked: {_asked(item)}")
        elif not node.fits(item):
            lines.append(f"{node.name}: {_lacking(item, node)}; asked: {_asked(item)}")
        elif node.ahead:
            lines.append(f"{node.name}: {len(node.ahead)} of ours are in its queue already")
        elif (
            machine._reserved is not None
            and node.number in machine._reserved[1]
            and machine._reserved[0] is not item
        ):
            lines.append(f"{node.name}: kept for {machine._reserved[0].x}, which is before it")
    lines += _to_come(machine, now)
    if item.node_count > 1:
        lines.append(f"it takes {item.node_count} nodes at once")
    return lines or ["it is about to be placed"]


def _to_come(machine: Orchestration, now: float) -> list[str]:
    """What is asked of batch systems, and what they say."""
    lines = []
    for allocation in machine.allocations.values():
        # Since when one is queued or active that another client asked for, nobody told.
        age = "" if allocation.is_lent else format_duration(max(0.0, now - allocation.story[-1][0]))
        name = f"allocation {allocation.id}" if allocation.id else "an allocation"
        nodes = f"{allocation.node_count} node{'s' if allocation.node_count != 1 else ''}"
        why = f": {allocation.why}" if allocation.why else ""
        state = {
            "REQUESTED": f"is being asked for, for {age}",
            "QUEUED": f"has been queued for {age}" if age else "is queued",
            "ACTIVE": f"is active, for {age}" if age else "is active",
            "DRAINING": "takes nothing more: it is about to be over",
        }[allocation.state]
        lines.append(f"{allocation.cluster.name}: {name} of {nodes} {state}{why}")
    for cluster in machine.clusters.values():
        if cluster.is_refused or (cluster.retry_at or 0.0) > now:
            again = format_duration((cluster.retry_at or 0.0) - now) if not cluster.is_refused else ""
            lines.append(f"{cluster.name}: {cluster.why}{f'; asked again in {again}' if again else ''}")
    return lines


def _lacking(item: Item, node: Node) -> str:
    lacking = []
    if item.cpus > node.free_cpus:
        lacking.append(f"{node.free_cpus} of {node.cpus} cores free")
    if item.memory_bytes > node.free_memory:
        lacking.append(f"{format_size(max(0, node.free_memory))} of {format_size(node.memory_bytes)} free")
    if item.gpus > node.free_gpus:
        lacking.append(_free_gpus(node))
    return ", ".join(lacking)


def _free_gpus(node: Node) -> str:
    """`1 of 2 GPUs free`, `0 of 2 GPUs free, 0.4 of a shared one`."""
    unused = node.gpu_room.unused
    left = node.free_gpus - unused
    return f"{max(0, unused)} of {node.gpus} GPUs free{f', {left:.3g} of a shared one' if left else ''}"


def _asked(item: Item) -> str:
    return describe_room(item.cpus, item.memory_bytes, item.gpus)


def _unreachable(node: Node, now: float) -> str:
    since = format_duration(max(0.0, now - node.since))
    if node.link == "CONNECTING":
        return f"{node.name}: being connected to, for {since}"
    if node.link == "CLOSED":
        return f"{node.name}: not connected"
    if node.link == "REFUSED":
        return f"{node.name}: cannot be used: {node.why}"
    again = "" if node.retry_at is None else f"; next try in {format_duration(max(0.0, node.retry_at - now))}"
    return f"{node.name}: unreachable for {since}: {node.why}{again}"
