"""`expegit run`: run the experiment, and record its executions as they end."""

from __future__ import annotations

import sys
from typing import Any

import click

from expegit.commands.options import find, plural
from runaway.commands import batch

#: Options of `runaway batch` that a campaign decides, or that make no sense where what ends is recorded.
_NOT_OURS = {
    *("script", "output_folder", "outputs_file", "into_existing", "stay", "detach", "simulate"),
    *batch.SIMULATION,
}


def _run(commit: str, script: str, folder: str, push: bool, retry_on: str, **options: Any) -> int:
    import asyncio
    import os

    from expegit.running import options_for, run_and_record
    from expegit.syncing import sync
    from liborch.places import places
    from runaway.batches.options import BatchOptions

    campaign = find(folder)
    told = {
        "retry_on": batch.reasons_of(retry_on),
        "outputs_file": None,
        "into_existing": False,
        "stay": False,
        "detach": False,
        "output_folder": None,
        "script": "",
        **options,
    }
    wanted = options_for(
        campaign, BatchOptions(**told), places(dict(os.environ)), commit=commit, script=script
    )
    status, done = asyncio.run(run_and_record(campaign.folder, wanted))
    sys.stdout.flush()
    if not options["silent"] and not options["dry_run"]:
        click.echo(f"{plural(len(done.recorded), 'execution')} recorded in {campaign.folder}", err=True)
    for path, why in done.left_out:
        click.echo(f"left out: {path}: {why}", err=True)
    if push:
        sync(find(folder))
    return status


command = click.Command(
    "run",
    context_settings={"allow_interspersed_args": True},
    callback=_run,
    params=[
        click.Option(
            ["--commit"], default="", metavar="COMMIT", help="Of the experiment. [default: the pinned one]"
        ),
        click.Option(
            ["--script"],
            default="",
            metavar="FILE",
            help="From the experiment's root. [default: the campaign's]",
        ),
        click.Option(["--push"], is_flag=True, help="Sync afterwards."),
        click.Option(
            ["-C", "--campaign", "folder"],
            metavar="FOLDER",
            default=".",
            help="Any folder in the campaign. [default: here]",
        ),
        *(each for each in batch.command.params if each.name not in _NOT_OURS),
    ],
    help="""Run the experiment on REMOTE, with arguments from TEMPLATE, files or parameters, and record every execution as it ends.

    The code is that of a commit, whatever your working tree holds. Everything else is as with `runaway batch`.""",
)
