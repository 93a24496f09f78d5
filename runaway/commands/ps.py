"""`runaway ps`: running and recent executions and batches."""

from __future__ import annotations

import click


@click.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Every execution there is a record of.")
@click.option("--batches", "-b", is_flag=True, help="Batches only, one line each.")
@click.option(
    "--batch", metavar="BATCH", help="The executions of one batch that are under way or ended lately."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON value per line.")
@click.option("--quiet", "-q", is_flag=True, help="Ids only.")
def command(everything: bool, batches: bool, batch: str | None, as_json: bool, quiet: bool) -> int:
    """List what is under way, and what ended lately. A batch is one line, with its last failures below.

    BATCH is a prefix of its id, or `last`. With --all the executions of batches are listed one by one, too.
    """
    from runaway.listing import list_batch, list_batches, list_recent

    if batches and batch is not None:
        raise click.UsageError("--batches lists all of them, --batch one: say one of the two")
    if batch is not None:
        return list_batch(batch, everything=everything, as_json=as_json, quiet=quiet)
    if batches:
        return list_batches(everything=everything, as_json=as_json, quiet=quiet)
    return list_recent(everything=everything, as_json=as_json, quiet=quiet)
