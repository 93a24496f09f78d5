"""`expegit push`: give others what is recorded here."""

from __future__ import annotations

import click

from expegit.commands import sync
from expegit.commands.options import campaign_option, json_option


@click.command()
@campaign_option
@json_option
def command(folder: str, as_json: bool) -> None:
    """Push what is recorded here. When somebody was faster, nothing is taken over: `expegit sync` does both."""
    sync.run(folder, as_json, pull=False, push=True)
