"""Which nodes a batch uses, and what of them: `--on HOST[:NUMA][::GPU,...]` and `--exclude HOST`. Pure.

HOST is a host of the command line (all its nodes) or one node of a host's profile. NUMA is the number of a NUMA node: executions are bound
to its cores. GPUs are numbers, in the order in which the node's own tool lists them, or UUIDs. The choice becomes part of the
profiles, as they are noted with the batch, so whoever goes on with it keeps to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from liborch.errors import SpecError, UnknownName
from liborch.names import nearest
from liborch.specs import HostProfile, NodeSpec, SlotSpec


@dataclass(frozen=True)
class Place:
    """What of a node may be used."""

    numa: int | None = None
    gpu_ids: tuple[str, ...] = ()
    #: As the person wrote it.
    text: str = field(default="", compare=False)


def parse_place(text: str, names: Iterable[str]) -> tuple[str, Place]:
    """Read what `--on` was given.

    Args:
        names: Of hosts and nodes; they may hold colons themselves.

    Raises:
        SpecError: It is not HOST[:NUMA][::GPU,...].
        UnknownName: There is no such host in this batch.
    """
    known = sorted(names, key=len, reverse=True)
    name = next((each for each in known if text == each or text.startswith(f"{each}:")), None)
    if name is None:
        meant = text.partition(":")[0]
        raise _not_of_this_batch(meant, known)
    rest = text[len(name) :]
    found = re.fullmatch(r"(?::(\d+))?(?:::([^:]+))?", rest)
    gpus = [each.strip() for each in (found.group(2) or "").split(",")] if found is not None else []
    if found is None or (found.group(2) and not all(gpus)):
        raise SpecError(f"--on {text}: expected HOST, HOST:NUMA, HOST::GPU,... or HOST:NUMA::GPU,...")
    if len(set(gpus)) < len(gpus):
        raise SpecError(f"--on {text}: names a GPU twice")
    numa = int(found.group(1)) if found.group(1) is not None else None
    return name, Place(numa, tuple(gpus) if found.group(2) else (), text)


def _not_of_this_batch(name: str, names: Iterable[str]) -> UnknownName:
    known = sorted(names)
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return UnknownName("host or node of this batch", name, nearest(name, known), f"it has {shown}")


def choose(profiles: Sequence[HostProfile], on: Sequence[str], exclude: Sequence[str]) -> list[HostProfile]:
    """Return the profiles with what is left of their nodes. Without `on`: all of them.

    Raises:
        SpecError: A place is written wrongly, named twice, or nothing is left.
        UnknownName: A name is no host and no node of this batch.
    """
    if not on and not exclude:
        return list(profiles)
    names = {profile.name for profile in profiles} | {
        node.ssh for profile in profiles for node in profile.nodes
    }
    places: dict[str, Place] = {}
    for text in on:
        name, place = parse_place(text, names)
        if name in places:
            raise SpecError(f"--on {text}: {name} was named before, as {places[name].text}; name it once")
        places[name] = place
    for name in exclude:
        if name not in names:
            raise _not_of_this_batch(name, names)
    left = []
    for profile in profiles:
        if profile.name in exclude and not any(node.ssh == profile.name for node in profile.nodes):
            continue
        whole = places.get(profile.name)
        if not profile.nodes:
            if not on or whole is not None:
                left.append(msgspec.structs.replace(profile, slots=_cut(profile.slots, whole)))
            continue
        nodes: list[NodeSpec] = []
        for node in profile.nodes:
            mine = places.get(node.ssh, whole)
            if node.ssh not in exclude and (not on or mine is not None):
                nodes.append(msgspec.structs.replace(node, slots=_cut(node.slots or profile.slots, mine)))
        if nodes:
            left.append(msgspec.structs.replace(profile, nodes=tuple(nodes)))
    if not left:
        raise SpecError("--on and --exclude leave no host; leave one of them away")
    return left


def _cut(slots: SlotSpec, place: Place | None) -> SlotSpec:
    if place is None:
        return slots
    return msgspec.structs.replace(slots, numa=place.numa, gpu_ids=place.gpu_ids)
