"""`runaway results BATCH`: one row per execution."""

from __future__ import annotations

import os

import click


@click.command()
@click.argument("batch", metavar="BATCH")
@click.option(
    "--format", "-F", type=click.Choice(["csv", "jsonl", "parquet"]), default="csv", show_default=True
)
@click.option("--output", "-o", metavar="FILE", help="Into a file, whole or not at all. [default: stdout]")
@click.option(
    "--all", "-a", "everything", is_flag=True, help="Also what failed and was then run again by --resume."
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format jsonl.")
@click.option("--silent", "-S", is_flag=True, help="Say errors only.")
def command(
    batch: str, format: str, output: str | None, everything: bool, as_json: bool, silent: bool
) -> int:
    """Write a table of BATCH (a prefix of its id, or `last`): parameters, how each execution ended, where, what it took, metrics.

    Parameters are columns `param.NAME`. Metrics are columns `metric.NAME`: what an execution wrote into metrics.json in the folder
    it runs in; or lines key=value in the variable RUNAWAY_FEATURES (no file), where a profile's `execution` sets it.
    """
    from runaway.batches.results import write_results
    from runaway.messages import Messages

    messages = Messages(dict(os.environ), quiet=silent)
    form = "jsonl" if as_json else format
    return write_results(batch, format=form, output=output, everything=everything, messages=messages)
