"""`runaway alloc HOST`: hold nodes of a cluster for later commands."""

from __future__ import annotations

import click

from runaway.options import Duration


@click.command()
@click.argument("host")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS]")
@click.option(
    "--nodes", "-N", type=click.IntRange(1), metavar="N", help="So many nodes. [default: the profile's]"
)
@click.option(
    "--time", "-t", "-T", "walltime", type=Duration(), metavar="TIME",
    help="For so long, such as 2h. [default: the profile's]",
)  # fmt: skip
@click.option("--detach", "-d", is_flag=True, help="Leave as soon as it is in the queue.")
@click.option(
    "--dry-run", "-n", is_flag=True, help="Print what the batch system would be asked; ask nothing."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
@click.option(
    "--accept-new", is_flag=True, help="Trust the key of a host that is not known yet, and remember it."
)
@click.option("--verbose", "-V", is_flag=True, help="Say more.")
@click.option("--silent", "-S", is_flag=True, help="Say errors only.")
def command(
    host: str,
    options: tuple[str, ...],
    nodes: int | None,
    walltime: float | None,
    detach: bool,
    dry_run: bool,
    as_json: bool,
    accept_new: bool,
    verbose: bool,
    silent: bool,
) -> int:
    """Ask the batch system of HOST for nodes and keep them for `exec --alloc` and others; prints the allocation's id.

    Returns when they are there. Ctrl-C before that takes it out of the queue again. It lasts until its time is over,
    or `runaway release`. What follows `--` goes to the batch system's submit command, after the profile's own options.
    """
    import asyncio

    from runaway.allocating import Wish, allocate

    wish = Wish(host, nodes, walltime, options, detach, dry_run, as_json, accept_new, verbose, silent)
    try:
        return asyncio.run(allocate(wish))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
