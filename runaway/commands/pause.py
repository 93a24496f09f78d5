"""`runaway pause ID`."""

from __future__ import annotations

import click


@click.command()
@click.argument("execution")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def command(execution: str, as_json: bool) -> int:
    """Stop every process of EXECUTION until `runaway resume`. Paused time does not count against its walltime."""
    from runaway.attending import set_pace

    return set_pace(execution, pause=True, as_json=as_json)
