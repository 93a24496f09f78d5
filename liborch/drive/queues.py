"""Asking a batch system about allocations, and ending them, without driving anything: what `allocs` and `release` stand on.

Whoever drives an orchestration has a `Frontend` (`allocating.py`), which keeps asking. Here each call is one question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace

from liborch.batch_systems.base import BatchSystem, Sight, Unclear, is_id
from liborch.drive.frontend_commands import run_on_frontend
from liborch.drive.procedures import system_of as known_system
from liborch.errors import SpecError, WorldError
from liborch.specs import HostProfile
from liborch.ssh import Pool

#: States of allocations that are not over.
LIVE = ("queued", "held", "active")
#: What was asked to end is looked for so long, and asked again so often, in seconds.
END_S = 30.0
AGAIN_S = 5.0
LOOK_S = 0.3
#: A question without an answer is asked once more, with so many times its time.
SLOW = 4.0


def system_of(profile: HostProfile) -> BatchSystem:
    """The batch system of a host. Raises SpecError when it has none."""
    if profile.batch_system == "none":
        where = profile.source or f"~/.config/orchestra/hosts/{profile.name}.yaml"
        raise SpecError(
            f"{profile.name} has no batch system, so nothing can be allocated there: its nodes are there for good. "
            f"If it has one, say so in {where}: `batch_system: slurm`"
        )
    return known_system(profile, {})


async def look(profile: HostProfile, pool: Pool, ids: Sequence[str] = ()) -> dict[str, Sight]:
    """Every allocation of ours that the batch system tells of, by id; also those of `ids` that are over, as far as it knows.

    Raises:
        HostUnreachable, HostKeyUnknown, HostKeyChanged, AuthenticationRefused: The frontend cannot be reached.
        SpecError: The host has no batch system.
        WorldError: The batch system gave no answer that is understood.
    """
    system = system_of(profile)
    command = system.query(ids)
    output = await run_on_frontend(profile, pool, command)
    if output.code is None:
        # It may only be slow.
        output = await run_on_frontend(profile, pool, replace(command, timeout_s=command.timeout_s * SLOW))
    answer = system.parse_query(output)
    if isinstance(answer, Unclear):
        raise WorldError(f"{profile.name}: {answer.why}; try again in a minute")
    return {id: sight for id, sight in answer.items() if sight.token or id in ids}


async def end(profile: HostProfile, pool: Pool, ids: Iterable[str]) -> list[str]:
    """End allocations; returns those that are still there after `END_S`. Cancelled: some may have been ended.

    Raises what `look` raises.
    """
    system = system_of(profile)
    left = [id for id in ids if is_id(id)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    asked_at = began - AGAIN_S
    while left and loop.time() - began < END_S:
        if loop.time() - asked_at >= AGAIN_S:
            asked_at = loop.time()
            said = system.parse_cancel(await run_on_frontend(profile, pool, system.cancel(left)))
            if said is not None and not isinstance(said, Unclear):
                raise WorldError(f"{profile.name}: {said.why}")
        told = await look(profile, pool, left)
        left = [id for id in left if id in told and told[id].state in LIVE]
        if left:
            await asyncio.sleep(LOOK_S)
    return left
