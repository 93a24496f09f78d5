"""`runaway resume ID`."""

from __future__ import annotations

import click


@click.command()
@click.argument("execution")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def command(execution: str, as_json: bool) -> int:
    """Let EXECUTION go on after `runaway pause`."""
    from runaway.attending import set_pace

    return set_pace(execution, pause=False, as_json=as_json)
