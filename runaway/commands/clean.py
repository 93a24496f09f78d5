"""`runaway clean`: remove what executions left, here and on hosts."""

from __future__ import annotations

import click

from runaway.options import Duration


@click.command()
@click.argument("what", nargs=-1, metavar="[HOST|ID]...")
@click.option(
    "--older", type=Duration(), default=30 * 86400.0, metavar="TIME", help="Ended so long ago. [default: 30d]"
)
@click.option(
    "--all",
    "-a",
    "everything",
    is_flag=True,
    help="However recent, and results that were never fetched, too.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Say what would go; remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def command(what: tuple[str, ...], older: float, everything: bool, dry_run: bool, as_json: bool) -> int:
    """Remove what ended executions left behind; never anything that is not ours.

    Alone: records and outputs on this machine of executions that ended more than --older ago. With an ID: its folder on the
    host, its output and its record. With a HOST: the folders of its ended executions there, and the agent, if it is idle;
    with --all their records here as well.
    """
    from runaway.leftovers import clean

    return clean(what, older_s=older, everything=everything, dry_run=dry_run, as_json=as_json)
