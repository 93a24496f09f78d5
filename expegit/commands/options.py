"""What the commands share: which campaign is meant, and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from liborch.command_line import SCHEMA_VERSION

campaign_option = click.option(
    "-C",
    "--campaign",
    "folder",
    metavar="FOLDER",
    default=".",
    help="Any folder in the campaign. [default: here]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def find(folder: str) -> Any:
    """Open the campaign that a folder lies in. Raises CampaignError."""
    from expegit.store import Campaign

    return Campaign.find(Path(folder).resolve())


def tell(value: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """Print a value as JSON, or what a person reads of it."""
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **value}) if as_json else text())


def plural(count: int, what: str) -> str:
    """`1 commit`, `2 commits`."""
    return f"{count} {what}{'' if count == 1 else 's'}"
