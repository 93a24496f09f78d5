"""Runs a batch of the experiment and records its executions as they end.

The batch is `runaway batch` with the code of a commit; what it leaves goes through a folder beside the campaign's repository. Two things
go on at once: the batch, and an import of what has ended, again and again. A kill stops both: the batch is gone on with as any
(`--resume`), and the import has nothing to remember, for the journal is the record.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from expegit import code
from expegit.importing import COMMIT, Imported, import_batch
from expegit.store import Campaign
from liborch.errors import CampaignError
from liborch.places import Places
from runaway.batches.options import BatchOptions
from runaway.batches.run import run_batch
from runaway.records import Records

#: What has ended is recorded so often, in seconds; less often where that takes longer than a tenth of it.
RECORD_S = 1.0


def options_for(
    campaign: Campaign, options: BatchOptions, folders: Places, *, commit: str, script: str
) -> BatchOptions:
    """What the batch is told: code of a commit, results beside the campaign's repository.

    Args:
        commit: Of the experiment; "": the pinned one.
        script: From the experiment's root; "": what the campaign says.

    Raises:
        CampaignError: There is no such commit, or no such script in it.
    """
    whole = code.resolve(campaign, commit)
    folder = code.export(campaign, whole, folders)
    name = script or campaign.settings.script
    path = folder / name
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise CampaignError(
            str(campaign.folder),
            f"the experiment has no script {name!r} at commit {whole[:12]}; --script, or experiment.script in campaign.toml, names it",
        )
    return replace(
        options,
        script=str(path),
        output_folder=str(campaign.outputs / "$RUNAWAY_UUID"),
        variables=(*options.variables, (COMMIT, whole)),
    )


async def run_and_record(campaign: Path, options: BatchOptions) -> tuple[int, Imported]:
    """Run a batch, recording what ends meanwhile; returns its exit status, and what was recorded.

    Raises:
        OrchestraError: As `runaway batch`; or the campaign takes something not: the batch goes on to its end first.
    """
    began: list[str] = []
    total = Imported()
    over = asyncio.Event()
    # The repository and the journal are one thread's.
    with ThreadPoolExecutor(1, "record") as thread:
        loop = asyncio.get_running_loop()

        def record() -> float:
            since = time.monotonic()
            done = import_batch(Campaign(campaign), records[0], records[0].find_batch(began[0]))
            total.recorded += done.recorded
            total.left_out += done.left_out
            return time.monotonic() - since

        records: list[Records] = []

        async def follow() -> None:
            took = 0.0
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(RECORD_S, 10 * took)):
                        await over.wait()
                if began:
                    if not records:
                        records.append(await loop.run_in_executor(thread, Records))
                    took = await loop.run_in_executor(thread, record)

        following = asyncio.create_task(follow())
        try:
            status = await run_batch(options, began=began.append)
        finally:
            over.set()
            await following
    return status, total
