"""`runaway explain ID`: why it is not further than it is."""

from __future__ import annotations

import click


@click.command()
@click.argument("execution", metavar="EXECUTION|BATCH")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def command(execution: str, as_json: bool) -> int:
    """Say what EXECUTION waits for, condition by condition, or how it ended; or how far BATCH is, and why the rest waits."""
    from runaway.attending import explain

    return explain(execution, as_json=as_json)
