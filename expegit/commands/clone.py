"""`expegit clone`: bring a campaign from elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from expegit.commands.options import json_option, plural, tell


@click.command()
@click.argument("address", metavar="URL")
@click.argument("path", metavar="[PATH]", default="")
@click.option(
    "--branch", metavar="NAME", default="", help="The campaign's branch. [default: the one there is]"
)
@json_option
def command(address: str, path: str, branch: str, as_json: bool) -> None:
    """Bring the campaign at URL to PATH (the last part of URL when it is not given)."""
    from expegit import creating

    stem = address.rstrip("/").rpartition("/")[2].rpartition(":")[2].removesuffix(".git")
    folder = Path(path or stem or "campaign").absolute()
    campaign = creating.clone(address, folder, branch)
    count = len(campaign.ids())
    tell(
        {"folder": str(folder), "name": campaign.settings.name, "executions": count},
        as_json,
        lambda: f"{folder}: campaign {campaign.settings.name}, {plural(count, 'execution')}",
    )
