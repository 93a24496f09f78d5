"""`hosts check`: connect, and say what is there."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

from liborch.drive.peek import linked
from liborch.drive.targets import Target, entries_of
from liborch.errors import OrchestraError
from liborch.places import Places, places
from liborch.plain_text import neutral
from liborch.profiles.find import find_host
from liborch.quantities import format_size
from runaway.patience import asking, said_if_slow
from runaway.records import SCHEMA_VERSION


def check(names: tuple[str, ...], *, accept_new: bool, as_json: bool) -> int:
    """Check every node of the named hosts; returns 0, or 255 when one cannot be used. Raises UnknownName, ProfileError."""
    folders = places(dict(os.environ))
    targets = [
        target
        for name in names
        for target in entries_of(find_host(name, folders.profiles, folders.ssh_config))
    ]
    found = asyncio.run(_check_all(targets, folders, accept_new=accept_new))
    for fields in found:
        if as_json:
            print(json.dumps({"schema_version": SCHEMA_VERSION, **fields}))
        elif fields["error"]:
            print(neutral(f"{fields['name']}: {fields['error']}"))
        else:
            room = fields["room"]
            gpus = f", {len(room['gpus'])} GPUs" if room["gpus"] else ""
            print(
                neutral(
                    f"{fields['name']}: ok, {fields['latency_s'] * 1000:.0f} ms, python {fields['python']}, agent {fields['agent'][:8]}, "
                    f"{room['cpus'] - room['used_cpus']} of {room['cpus']} slots free, {format_size(room['memory_bytes'])}{gpus}"
                )
            )
    return 255 if any(fields["error"] for fields in found) else 0


async def _check_all(targets: list[Target], folders: Places, *, accept_new: bool) -> list[dict[str, Any]]:
    gate = asyncio.Semaphore(8)

    async def one(target: Target) -> dict[str, Any]:
        async with gate:
            try:
                return await look(target, folders, accept_new=accept_new)
            except OrchestraError as error:
                return {"name": target.name, "error": str(error)}

    with said_if_slow(asking([target.name for target in targets])):
        return list(await asyncio.gather(*(one(target) for target in targets)))


async def look(target: Target, folders: Places, *, accept_new: bool = False) -> dict[str, Any]:
    """What a node says of itself. Raises WorldError."""
    began = time.monotonic()
    async with linked(target, folders, accept_new=accept_new) as link:
        connected = time.monotonic()
        skew = time.time() - float(link.hello.get("clock", 0.0))
        await link.ask("ping", at=0)
        answered = time.monotonic()
        status = await link.ask("status")
        hello = link.hello
        return {
            "name": target.name,
            "error": None,
            "connect_s": connected - began,
            "latency_s": answered - connected,
            "python": hello.get("python", ""),
            "agent": hello.get("hash", ""),
            "directory": target.directory,
            "clock_skew_s": skew,
            "room": status["room"],
            "runs": status.get("runs", []),
            "queued": status.get("queued", 0),
        }
