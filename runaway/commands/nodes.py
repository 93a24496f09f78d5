"""`runaway nodes HOST`: who uses what there."""

from __future__ import annotations

import click


@click.command()
@click.argument("host")
@click.option("--json", "as_json", is_flag=True, help="One JSON value per node, and per command that waits.")
@click.option(
    "--accept-new", is_flag=True, help="Trust the key of a host that is not known yet, and remember it."
)
def command(host: str, as_json: bool, accept_new: bool) -> int:
    """Ask each node of HOST what is free and who uses it, and your other commands why they wait for it.

    Of a host with a batch system: the nodes of your allocations.
    """
    import asyncio

    from runaway.nodes import show_nodes

    return asyncio.run(show_nodes(host, as_json=as_json, accept_new=accept_new))
