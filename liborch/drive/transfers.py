"""Carry out what the core decides about files: bring them to a node, bring results home, clean up behind.

One snapshot is taken per local folder and submission, and sent once per host however many executions start at once.
What moves files is imported when files move: most commands send nothing, and start sooner without.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liborch import patterns
from liborch.drive.orders import remote_folder
from liborch.errors import SpecError
from liborch.specs import Transfer

if TYPE_CHECKING:
    from liborch.transfer.fetch import FetchReport
    from liborch.transfer.send import CleanReport, Progress, SendReport
    from liborch.transfer.snapshot import Snapshot
    from liborch.transfer.stream import Stream


class Snapshots:
    """Snapshots taken by this client."""

    def __init__(self, cache: Path | None) -> None:
        self._cache = cache
        self._taken: dict[tuple[str, str | None, tuple[str, ...]], Snapshot] = {}

    def put(
        self,
        local_folder: str,
        send_ignore: str | None,
        snapshot: Snapshot,
        results: tuple[str, ...] = (),
    ) -> None:
        """Keep one that was taken at submission."""
        self._taken[local_folder, send_ignore, results] = snapshot

    async def of(self, transfer: Transfer) -> Snapshot:
        """Return the snapshot of a transfer as it was at submission.

        Raises:
            SpecError: It was taken by a client that is gone, and the folder has changed since.
        """
        from liborch.transfer.snapshot import empty_snapshot, take_snapshot

        key = (transfer.local_folder, transfer.send_ignore, transfer.results)
        known = self._taken.get(key)
        if known is not None and (not transfer.snapshot or known.id == transfer.snapshot):
            return known
        folder = Path(transfer.local_folder)
        if not transfer.snapshot:
            return empty_snapshot(folder)
        ignore = Path(transfer.send_ignore) if transfer.send_ignore else None
        taken = await asyncio.to_thread(
            take_snapshot, folder, send_ignore=ignore, cache=self._cache, results=transfer.results
        )
        if taken.id != transfer.snapshot:
            raise SpecError(
                f"{folder} has changed since this was submitted (snapshot {transfer.snapshot[:12]}, now {taken.id[:12]}); "
                "what was meant cannot be sent any more: submit it again"
            )
        self._taken[key] = taken
        return taken


async def stage(
    stream: Stream,
    transfer: Transfer,
    snapshot: Snapshot,
    folder: str,
    directory: str,
    host: str,
    progress: Progress | None,
) -> SendReport:
    """Send. See `liborch.transfer.send`."""
    from liborch.transfer.send import send

    return await send(
        stream,
        snapshot,
        folder,
        directory=directory,
        progress=progress,
        sole=transfer.leave == "nothing" and not transfer.shared,
        host=host,
    )


async def collect(
    stream: Stream,
    transfer: Transfer,
    folder: str,
    directory: str,
    host: str,
    values: dict[str, str],
    progress: Progress | None,
) -> tuple[Path, FetchReport]:
    """Fetch into the output folder, whose pattern is filled in with what is known now."""
    from liborch.transfer.fetch import fetch
    from liborch.transfer.rules import fetch_rules

    target = output_folder(transfer, values)
    ignore = Path(transfer.fetch_ignore) if transfer.fetch_ignore else None
    rules = fetch_rules(Path(transfer.local_folder), ignore)
    report = await fetch(
        stream, folder, target, directory=directory, fetch_ignore=rules, progress=progress, host=host
    )
    return target, report


async def tidy(stream: Stream, transfer: Transfer, folder: str, directory: str, host: str) -> CleanReport:
    """Leave on the host what is to stay there."""
    from liborch.transfer.send import clean

    return await clean(
        stream, folder, directory=directory, leave=transfer.leave, keep_store=transfer.shared, host=host
    )


async def sweep(stream: Stream, directory: str, host: str) -> None:
    """Remove what was sent to a host and no folder there needs any more."""
    from liborch.transfer.send import clean

    # A folder that never was: nothing goes but what nobody needs.
    nowhere = f"{directory}/.orchestra/nowhere"
    await clean(stream, nowhere, directory=directory, leave="nothing", host=host)


def output_folder(transfer: Transfer, values: dict[str, str]) -> Path:
    """Fill in the pattern."""
    known = {**transfer.variables, **values}
    text = patterns.parse_output(transfer.output_folder, known).fill(known)
    return Path(os.path.abspath(os.path.join(transfer.local_folder, text)))


def values_after(detail: dict[str, Any], folder: str, node: str) -> dict[str, str]:
    """The pattern names that are known after an execution."""
    variables: dict[str, str] = dict(detail.get("variables", {}))
    code = detail.get("code")
    number = detail.get("signal")
    ecode = str(code) if code is not None else str(128 + number) if number is not None else "unknown"
    return {
        **variables,
        "RUNAWAY_ECODE": ecode,
        "RUNAWAY_STDOUT": detail.get("out", ""),
        "RUNAWAY_STDERR": detail.get("err", ""),
        "RUNAWAY_PWD": folder,
        "RUNAWAY_NODES": node,
        "RUNAWAY_NODE_ID": node,
        "RUNAWAY_HANDLE_ID": str(detail.get("slot", "")),
    }


__all__ = ["Snapshots", "collect", "output_folder", "remote_folder", "stage", "tidy", "values_after"]
