"""`runaway allocs [HOST]`: allocations that are queued or active."""

from __future__ import annotations

import click


@click.command()
@click.argument("hosts", nargs=-1, metavar="[HOST...]")
@click.option("--json", "as_json", is_flag=True, help="One JSON value per allocation.")
@click.option(
    "--accept-new", is_flag=True, help="Trust the key of a host that is not known yet, and remember it."
)
def command(hosts: tuple[str, ...], as_json: bool, accept_new: bool) -> int:
    """List your allocations, as the batch systems of HOSTS tell; of every profile with a batch system, when none is named.

    Also those that killed clients left: they last until their time is over, or `runaway release`.
    """
    import asyncio

    from runaway.allocating import list_allocations

    return asyncio.run(list_allocations(hosts, as_json=as_json, accept_new=accept_new))
