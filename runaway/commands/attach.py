"""`runaway attach ID`: follow an execution to its end, whoever started it."""

from __future__ import annotations

import click


@click.command()
@click.argument("execution", metavar="EXECUTION|BATCH")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON value instead of the output."
)
@click.option(
    "--follow",
    "-f",
    is_flag=True,
    help="Of a batch: print what its executions write, each line with its short id.",
)
@click.option("--verbose", "-V", is_flag=True, help="Say more.")
@click.option("--silent", "-S", is_flag=True, help="Say errors only.")
def command(execution: str, as_json: bool, follow: bool, verbose: bool, silent: bool) -> int:
    """Follow EXECUTION (a prefix of its id, or `last`) from the beginning of its output to its end, results included.

    A batch shows how far it is, as the command that began it does. Ctrl-C leaves what another command drives as it is.
    Takes over what another command left or died on; watches while another one is at it. Ends with the execution's status.
    """
    from runaway.attending import attach

    return attach(execution, as_json=as_json, quiet=silent, verbose=verbose, follow=follow)
