"""`runaway release ID...`: give allocations back."""

from __future__ import annotations

import click


@click.command()
@click.argument("allocations", nargs=-1, metavar="[ALLOCATION...]")
@click.option(
    "--host", "-H", "hosts", multiple=True, metavar="HOST", help="Only of this host. May be repeated."
)
@click.option(
    "--all", "everything", is_flag=True, help="All of them, also those that others of your commands use."
)
@click.option("--dry-run", "-n", is_flag=True, help="Say which; end none.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value per allocation.")
@click.option(
    "--accept-new", is_flag=True, help="Trust the key of a host that is not known yet, and remember it."
)
def command(
    allocations: tuple[str, ...],
    hosts: tuple[str, ...],
    everything: bool,
    dry_run: bool,
    as_json: bool,
    accept_new: bool,
) -> int:
    """End ALLOCATIONS, queued or active; returns when the batch system says that they are over.

    What runs in them is ended, and attempted again in another allocation, where its command asks for any.
    """
    import asyncio

    from runaway.allocating import release

    if bool(allocations) == everything:
        raise click.UsageError("name allocations, or say --all")
    return asyncio.run(release(allocations, hosts, dry_run=dry_run, as_json=as_json, accept_new=accept_new))
