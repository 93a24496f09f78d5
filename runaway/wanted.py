"""What each execution asks for: as the command line says, else as much as a slot holds. Pure.

Cores and GPUs that a profile gives to its slots are what an execution takes that names none itself; where it may run on
several nodes, the least that a slot of any of them holds. Memory is a limit, and only what a person asks for is one.
"""

from __future__ import annotations

from collections.abc import Iterable

from liborch.specs import HostProfile, Resources, SlotSpec


def resources_of(
    profiles: Iterable[HostProfile], cpus: int | None, memory_bytes: int, gpus: float | None
) -> Resources:
    """Fill in what the command line left open (None)."""
    slots = list(_slots_of(profiles))
    if cpus is None:
        cpus = min((each.cpus or 0 for each in slots), default=0) or None
    if gpus is None:
        # Who names GPUs wants one.
        named = int(any(each.gpu_ids for each in slots))
        gpus = min((each.gpus or 0 for each in slots), default=0) or named
    return Resources(cpus, memory_bytes, gpus)


def _slots_of(profiles: Iterable[HostProfile]) -> Iterable[SlotSpec]:
    for profile in profiles:
        if profile.nodes:
            yield from (node.slots or profile.slots for node in profile.nodes)
        else:
            yield profile.slots
