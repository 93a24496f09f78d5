"""The parts of an execution on several nodes: what each is given, and what is known of each. Pure.

To the core and the agents a rank is an execution of its own; to the journal and to people all are one. So the parts have no row:
what their agents say of them lies in the execution's own record, under `ranks`.
"""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import msgspec

from liborch.core.things import Gang, Item, lead_of, rank_id
from liborch.drive.execution import Execution
from liborch.drive.targets import Target
from liborch.specs import ExecutionSpec
from liborch.ssh import Pool

#: Ports that the ranks of an execution meet at: one of so many from the first, by its id and attempt.
FIRST_PORT = 20_000
PORTS = 12_000


def spec_of(spec: ExecutionSpec, rank: int) -> ExecutionSpec:
    """What one rank is asked for: folders of its own, below those of the execution on this machine, beside them on its node."""
    if not rank:
        return spec
    transfer = spec.transfer
    if transfer is not None:
        transfer = msgspec.structs.replace(
            transfer,
            # Beside and not below: nodes may share their homes, and what is below is rank 0's.
            remote_folder=f"{transfer.remote_folder.rstrip('/')}-rank{rank}",
            output_folder=f"{transfer.output_folder.rstrip('/')}/rank{rank}",
        )
    outcome = f"{spec.outcome_folder.rstrip('/')}/rank{rank}" if spec.outcome_folder else ""
    return msgspec.structs.replace(
        spec, transfer=transfer, outcome_folder=outcome, post=(), live=False, tty=None
    )


def part_of(lead: Execution, rank: int) -> Execution:
    """A rank as the driver deals with it."""
    part = Execution(lead._driver, rank_id(lead.id, rank), lead.host, spec_of(lead.spec, rank))
    part.lead = lead.id
    part.submitted_at = lead.submitted_at
    return part


def part_ids(x: str, count: int) -> list[str]:
    """Ids of the ranks of an execution beside the first."""
    return [rank_id(x, rank) for rank in range(1, count)]


def environment(item: Item, gang: Gang, targets: dict[str, Target], pool: Pool) -> dict[str, str]:
    """Variables by which ranks know of each other: ours, and those that `torch.distributed` and others look for."""
    lead = gang.members[0]
    address = address_of(targets[gang.names[0]], pool)
    number = int.from_bytes(hashlib.sha256(f"{lead.x}.{lead.attempt}".encode()).digest()[:4], "big")
    port = str(FIRST_PORT + number % PORTS)
    rank, size = str(item.rank), str(len(gang.names))
    return {
        "RUNAWAY_RANK": rank,
        "RUNAWAY_WORLD_SIZE": size,
        "RUNAWAY_MASTER_ADDRESS": address,
        "RUNAWAY_MASTER_PORT": port,
        "RUNAWAY_NODES": " ".join(gang.names),
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": "0",
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }


def address_of(target: Target, pool: Pool) -> str:
    """Where a node is reached: what the person's ssh configuration says."""
    if target.ssh == "local":
        return platform.node()
    endpoint = pool.host(target.ssh).endpoint
    return endpoint.host if endpoint is not None else target.name


def keep_detail(
    details: dict[str, dict[str, Any]], execution: Execution, node: str, detail: dict[str, Any]
) -> None:
    """Note what an agent said of an execution, or of one rank of it."""
    x = execution.id
    if execution.spec.node_count > 1:
        detail["node"] = node
        if execution.lead:
            whole = details.setdefault(execution.lead, {})
            whole.setdefault("ranks", {})[str(lead_of(x)[1])] = detail
        else:
            detail["ranks"] = details.get(x, {}).get("ranks", {})
    details[x] = detail


def open_details(details: dict[str, dict[str, Any]]) -> None:
    """Have what a record says of ranks found by their ids, as while they ran."""
    for x, detail in list(details.items()):
        for rank, part in detail.get("ranks", {}).items():
            details[rank_id(x, int(rank))] = part
