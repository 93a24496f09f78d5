"""`runaway doctor HOST`: step by step, what works and what does not."""

from __future__ import annotations

import click


@click.command()
@click.argument("host", required=False)
@click.option(
    "--accept-new", is_flag=True, help="Trust the key of a host that is not known yet, and remember it."
)
@click.option(
    "--rebuild-journal", is_flag=True, help="Save what can be read of a damaged journal; a copy is kept."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON value per step, one per line.")
def command(host: str | None, accept_new: bool, rebuild_journal: bool, as_json: bool) -> int:
    """Try everything that HOST has to do for us, and say what to do about what fails.

    Ends with 0 (warnings included), 1 when something does not work, 255 when the host cannot be used at all.
    """
    if rebuild_journal:
        from runaway.doctor import rebuild

        return rebuild(as_json=as_json)
    if host is None:
        raise click.UsageError("name a HOST, or pass --rebuild-journal")
    from runaway.doctor import examine

    return examine(host, accept_new=accept_new, as_json=as_json)
