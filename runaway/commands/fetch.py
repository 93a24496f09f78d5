"""`runaway fetch ID`: results again, or for the first time."""

from __future__ import annotations

import click


@click.command()
@click.argument("execution")
@click.option("--output-folder", "-o", metavar="FOLDER", help="Where they go. [default: as at submission]")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
@click.option("--silent", "-S", is_flag=True, help="Say errors only.")
def command(execution: str, output_folder: str | None, as_json: bool, silent: bool) -> int:
    """Fetch what EXECUTION left in its folder on the host, after `--on-local`, `--leave everything` or a failed fetch.

    Nothing is removed there: `runaway clean ID` does that.
    """
    from runaway.leftovers import fetch

    return fetch(execution, output_folder=output_folder, as_json=as_json, quiet=silent)
