"""`nodes HOST`: its nodes, how much of each is free, who uses it, and why others wait.

Each node is asked itself: its agent's slots are the truth, whoever they were given to. The journal says what they are called here.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import click

from liborch.core.things import lead_of
from liborch.drive.ask import ask
from liborch.drive.peek import linked
from liborch.drive.targets import Target, granted, targets_of
from liborch.errors import Conflict, OrchestraError
from liborch.places import Places, places
from liborch.plain_text import neutral
from liborch.profiles.find import find_host
from liborch.quantities import format_duration, format_size
from liborch.specs import HostProfile
from runaway.allocations import Found, ask_all, pooled
from runaway.patience import asking, said_if_slow
from runaway.records import SCHEMA_VERSION, STATUS_S, Records
from runaway.tables import columns

#: Nodes that are asked at a time.
_AT_ONCE = 8
#: Executions that wait are counted up to so many.
_COUNTED = 1000
#: Reasons shown of each orchestration that waits.
_REASONS = 4

HEAD = ["NODE", "CORES", "MEMORY", "GPUS", "QUEUE", "USED BY"]


@dataclass(frozen=True)
class Asked:
    """A node, and what it said."""

    target: Target
    #: "": the host's own.
    allocation: str
    #: What its agent says, see `on_status` there; None: it cannot be asked.
    status: dict[str, Any] | None
    error: str = ""


async def show_nodes(host: str, *, as_json: bool, accept_new: bool) -> int:
    """Print them; returns the exit status, 255 when one of them cannot be asked. Raises OrchestraError."""
    folders = places(dict(os.environ))
    records = Records(folders)
    profile = find_host(host, folders.profiles, folders.ssh_config)
    targets = [(target, "") for target in targets_of(profile)]
    queued: list[Found] = []
    if profile.batch_system != "none":
        async with pooled(folders, accept_new=accept_new) as pool:
            answers = await ask_all([profile], pool, records)
        if answers.errors:
            raise answers.errors[0]
        for found in answers.found:
            if found.sight.state == "active":
                targets += [(_granted(found, machine), found.id) for machine in found.sight.nodes]
            else:
                queued.append(found)
    gate = asyncio.Semaphore(_AT_ONCE)
    with said_if_slow(asking([target.name for target, _ in targets])):
        asked = await asyncio.gather(*(_ask(*each, folders, gate, accept_new=accept_new) for each in targets))
    running = {run["x"] for node in asked if node.status is not None for run in node.status["runs"]}
    waiting = _waiting(profile, records, running)
    if as_json:
        for node in asked:
            click.echo(json.dumps(_as_dict(profile, node, records)))
        for each in waiting:
            click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "kind": "waiting", **each}))
    else:
        _print(profile, asked, queued, waiting, records)
    return 255 if any(node.status is None for node in asked) else 0


def _granted(found: Found, machine: str) -> Target:
    sight = found.sight
    room = (sight.cpus or 0, sight.memory_bytes or 0, sight.gpus or 0)
    return granted(f"{machine}/{sight.id}", machine, found.profile, sight.id, room)


async def _ask(
    target: Target, allocation: str, folders: Places, gate: asyncio.Semaphore, *, accept_new: bool
) -> Asked:
    async with gate:
        try:
            async with linked(target, folders, accept_new=accept_new) as link:
                return Asked(target, allocation, await link.ask("status"))
        except OrchestraError as error:
            return Asked(target, allocation, None, str(error))


def _cores(node: Asked) -> tuple[int, int]:
    """Cores that may be used, and those in use."""
    assert node.status is not None
    room = node.status["room"]
    return min(int(room["cpus"]), node.target.capacity.get("cpus", int(room["cpus"]))), int(room["used_cpus"])


def _as_dict(profile: HostProfile, node: Asked, records: Records) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "node",
        "host": profile.name,
        "node": node.target.name,
        "machine": node.target.machine or node.target.name,
        "allocation": node.allocation or None,
        "error": node.error or None,
    }
    if node.status is None:
        return fields
    room = node.status["room"]
    cpus, used = _cores(node)
    return {
        **fields,
        "cpus": cpus,
        "used_cpus": used,
        "memory_bytes": room["memory_bytes"],
        "used_memory_bytes": room["used_memory"],
        "gpus": list(room["gpus"]),
        "free_gpus": list(room["free_gpus"]),
        "shared_gpus": dict(room.get("shared_gpus", {})),
        "queued": node.status["queued"],
        "runs": [
            {
                "id": lead_of(run["x"])[0],
                "attempt": run["a"],
                "slot": run["slot"],
                "seconds": run["seconds"],
                "paused": run["paused"],
                "label": _label(run["x"], records) or None,
                "orchestration": run["owner"],
            }
            for run in node.status["runs"]
        ],
    }


def _print(
    profile: HostProfile,
    asked: Sequence[Asked],
    queued: Sequence[Found],
    waiting: Sequence[dict[str, Any]],
    records: Records,
) -> None:
    rows = []
    for node in asked:
        if node.status is None:
            rows.append([node.target.name, "?", "", "", "", node.error])
            continue
        room = node.status["room"]
        cpus, used = _cores(node)
        gpus = f"{len(room['free_gpus'])} of {len(room['gpus'])} free" if room["gpus"] else ""
        # A share is on one GPU: what is left of each is told by itself.
        for left in room.get("shared_gpus", {}).values():
            gpus += f" + {left:g}" if left else ""
        memory = f"{format_size(room['memory_bytes'] - room['used_memory'])} free"
        users = "; ".join(_describe(run, records) for run in node.status["runs"])
        queue = str(node.status["queued"] or "")
        rows.append([node.target.name, f"{max(0, cpus - used)} of {cpus} free", memory, gpus, queue, users])
    if rows:
        for line in columns(HEAD, rows):
            click.echo(line)
    else:
        click.echo(
            neutral(
                f"no nodes of {profile.name} are yours now; {profile.batch_system} gives them in allocations: "
                f"runaway alloc {profile.name}, or any command that runs something there"
            ),
            err=True,
        )
    for found in queued:
        click.echo(
            neutral(f"allocation {found.id} ({found.purpose}) is {found.sight.state}: {found.sight.why}")
        )
    for each in waiting:
        count = f"{each['count']}{'' if each['count'] < _COUNTED else ' or more'}"
        click.echo(
            neutral(
                f"{count} wait{'s' if count == '1' else ''} in {each['orchestration'][:8]} ({each['title']})"
            )
        )
        for line in each["why"]:
            click.echo(neutral(f"  {line}"))


def _describe(run: dict[str, Any], records: Records) -> str:
    """`1b32ca20 for 2m: pi.py --samples 3`."""
    x = lead_of(run["x"])[0]
    label = _label(run["x"], records)
    paused = " (paused)" if run["paused"] else ""
    return f"{x[:8]} for {format_duration(run['seconds'])}{paused}: {label or 'of another client'}"


def _label(x: str, records: Records) -> str:
    row = records.journal.execution(lead_of(x)[0])
    return row.label if row is not None else ""


def _waiting(profile: HostProfile, records: Records, running: Container[str]) -> list[dict[str, Any]]:
    """Of each orchestration that has something waiting for this host: how many, and why its first one is not further.

    Args:
        running: What nodes say they run, though nobody was there to note it.
    """
    found = []
    for row in records.journal.orchestrations():
        if row.state == "ended" or row.kind == "alloc":
            continue
        hosts = [each["name"] for each in json.loads(row.details).get("profiles", ())]
        if profile.name not in hosts:
            continue
        # Those in the queue of a node, where every slot is taken, wait as well.
        rows = records.journal.executions(
            row.id, ["waiting", "placed"], _COUNTED, newest_first=False, live=True
        )
        rows = [each for each in rows if each.id not in running]
        if not rows:
            continue
        try:
            told = ask(records.folders.state, row.id, {"do": "explain", "id": rows[0].id}, STATUS_S)
        except Conflict as error:
            told = {"lines": [str(error)]}
        if told is None:
            told = {"lines": [f"nobody drives it: runaway attach {row.id[:8]}"]}
        found.append(
            {
                "orchestration": row.id,
                "title": row.title,
                "count": len(rows),
                "why": list(told.get("lines", ()))[:_REASONS],
            }
        )
    return found
