"""`expegit pull`: take over what others recorded."""

from __future__ import annotations

import click

from expegit.commands import sync
from expegit.commands.options import campaign_option, json_option


@click.command()
@campaign_option
@json_option
def command(folder: str, as_json: bool) -> None:
    """Take over what others recorded. Pushes nothing."""
    sync.run(folder, as_json, pull=True, push=False)
