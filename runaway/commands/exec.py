"""`runaway exec REMOTE SCRIPT [-- ARGUMENTS]`: one execution, from this folder to there and back."""

from __future__ import annotations

import sys
from typing import Any

import click

from runaway.options import Assignment, resources


@click.command(context_settings={"allow_interspersed_args": True})
@click.argument("remote")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--send-ignore", "-s", metavar="FILE", help="Patterns of what is not sent, instead of every .sendignore."
)
@click.option(
    "--fetch-ignore", "-f", metavar="FILE", help="Patterns of what is not fetched, instead of .fetchignore."
)
@click.option(
    "--leave",
    "-l",
    type=click.Choice(["nothing", "code", "everything"]),
    default="nothing",
    show_default=True,
    help="What stays on the host.",
)
@click.option(
    "--remote-folder",
    "-r",
    metavar="FOLDER",
    default=None,
    help="Where it runs on the host. [default: $RUNAWAY_PATH/$RUNAWAY_UUID]",
)
@click.option(
    "--output-folder",
    "-o",
    metavar="FOLDER",
    default=".",
    show_default=True,
    help="Where results go; $RUNAWAY_... names are filled in.",
)
@click.option(
    "--on-local", "-L", "stay", is_flag=True, help="Leave results where they were made; fetch nothing."
)
@click.option("--no-ecode", is_flag=True, help="Exit with 0 whatever the execution's exit code.")
@click.option("--no-env-read", is_flag=True, help="Do not pass RUNAWAY* variables of this environment on.")
@click.option(
    "--env", "-e", "variables", type=Assignment(), multiple=True, help="Set a variable for the execution."
)
@resources
@click.option(
    "--alloc",
    metavar="ALLOCATION",
    help="Run in this allocation, which `runaway alloc` asked for, and nowhere else; or `last`.",
)
@click.option("--tty", "-t", is_flag=True, help="Run it on a terminal: for interactive programs.")
@click.option("--detach", "-d", is_flag=True, help="Leave as soon as it is on its way; print its id.")
@click.option("--dry-run", "-n", is_flag=True, help="Say what would be sent and run; do nothing.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON value instead of the output."
)
@click.option(
    "--accept-new", is_flag=True, help="Trust the key of a host that is not known yet, and remember it."
)
@click.option("--verbose", "-V", is_flag=True, help="Say more.")
@click.option("--silent", "-S", is_flag=True, help="Say errors only.")
@click.option("--debug-ssh", is_flag=True, help="Say what happens on the SSH connections.")
def command(**options: Any) -> int:
    """Run SCRIPT on REMOTE and bring its results back.

    REMOTE is `local`, an SSH alias, user@name:port, or a profile. SCRIPT is a file below the current folder, which is sent
    along, or a command of the host. What follows `--` are the script's own arguments.
    """
    import asyncio

    from runaway.single import ExecOptions, run_exec

    status = asyncio.run(run_exec(ExecOptions(**options)))
    sys.stdout.flush()
    return status
