"""`runaway kill ID...`: end executions."""

from __future__ import annotations

import click


@click.command()
@click.argument("executions", nargs=-1, required=True, metavar="EXECUTION|BATCH...")
@click.option("--json", "as_json", is_flag=True, help="One JSON value per execution.")
def command(executions: tuple[str, ...], as_json: bool) -> int:
    """End EXECUTIONS: TERM, their grace, KILL, on their hosts. Returns when they have ended; those that had are fine.

    Of a BATCH nothing is started any more.
    """
    from runaway.attending import kill

    return kill(executions, as_json=as_json)
