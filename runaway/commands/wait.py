"""`runaway wait ID...`: return when executions have ended."""

from __future__ import annotations

import click


@click.command()
@click.argument("executions", nargs=-1, required=True, metavar="EXECUTION|BATCH...")
@click.option("--json", "as_json", is_flag=True, help="One JSON value per execution, as it ends.")
def command(executions: tuple[str, ...], as_json: bool) -> int:
    """Wait until EXECUTIONS have ended, and fetch the results of those that nobody else looks after.

    Ends with the status of the one execution; with several: 0 when all succeeded, else 1.
    """
    from runaway.attending import wait

    return wait(executions, as_json=as_json)
