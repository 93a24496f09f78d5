"""`runaway logs ID`: what an execution has written, wherever it is just now."""

from __future__ import annotations

import click


@click.command()
@click.argument("execution")
@click.option("--follow", "-f", is_flag=True, help="Go on until it ends.")
@click.option("--stdout", "only", flag_value="out", help="Its stdout only.")
@click.option("--stderr", "only", flag_value="err", help="Its stderr only (printed on stdout).")
@click.option("--tail", "-n", type=click.IntRange(0), metavar="N", help="The last N lines of each only.")
@click.option(
    "--json", "as_json", is_flag=True, help="JSON lines: {stream, at, text} or base64 where it is no UTF-8."
)
def command(execution: str, follow: bool, only: str | None, tail: int | None, as_json: bool) -> int:
    """Print the output of EXECUTION (a prefix of its id, or `last`): stdout on stdout, stderr on stderr.

    Of a batch in the background: what it said about itself.
    Exact bytes where the output goes to a file or a pipe; on a terminal, nothing in it can steer the terminal.
    """
    from runaway.logs import print_logs

    return print_logs(execution, follow=follow, only=only, tail=tail, as_json=as_json)
