"""`runaway batch REMOTE[,REMOTE...] SCRIPT [-- TEMPLATE]`: many executions, wherever a slot is free."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from runaway.options import Assignment, Duration, resources, simulation

if TYPE_CHECKING:
    from runaway.background import Background


#: Names of the options that only simulating has.
SIMULATION = ("duration", "queue_wait", "failures", "model_nodes", "model_seed", "gantt", "svg")


@click.command(context_settings={"allow_interspersed_args": True})
@click.argument("remotes", metavar="REMOTE[,REMOTE...]")
@click.argument("script")
@click.argument("template", nargs=-1, type=click.UNPROCESSED)
@click.option("--arguments-file", "-A", metavar="FILE", help="One template per line.")
@click.option(
    "--grid",
    "grids",
    multiple=True,
    metavar="NAME=LIST",
    help="A parameter: lr=0.1,0.01 or seed=0..9. May be repeated.",
)
@click.option("--csv", metavar="FILE", help="One execution per row; columns are parameters.")
@click.option("--jsonl", metavar="FILE", help="One execution per line; fields are parameters.")
@click.option("--repeats", "-x", type=click.IntRange(1), default=1, metavar="N", help="So many of each.")
@click.option("--shuffle", is_flag=True, help="In another order.")
@click.option("--seed", type=int, default=0, metavar="N", help="Which other order.", show_default=True)
@click.option(
    "--output-folder", "-o", metavar="FOLDER", default=None,
    help="Where results go, a pattern. [default: batch/$RUNAWAY_UUID]",
)  # fmt: skip
@click.option("--outputs-file", "-O", metavar="FILE", help="One output folder per line and execution.")
@click.option(
    "--remote-folder", "-r", metavar="FOLDER", default=None,
    help="Where it runs on the host. [default: $RUNAWAY_PATH/$RUNAWAY_UUID]",
)  # fmt: skip
@click.option("--remotes-file", "-R", metavar="FILE", help="One remote folder per line and execution.")
@click.option("--into-existing", is_flag=True, help="Output folders may hold files already.")
@click.option(
    "--post-command", "-p", metavar="CMD",
    help="Run here for each execution that ended, in its output folder, with its RUNAWAY_* variables.",
)  # fmt: skip
@click.option("--post-script", "-P", metavar="FILE", help="The same, a file.")
@click.option(
    "--post-time",
    type=Duration(),
    metavar="TIME",
    help="End one of those that takes longer. [default: never]",
)
@click.option(
    "--send-ignore", "-s", metavar="FILE", help="Patterns of what is not sent, instead of every .sendignore."
)
@click.option(
    "--fetch-ignore", "-f", metavar="FILE", help="Patterns of what is not fetched, instead of .fetchignore."
)
@click.option(
    "--leave", "-l", type=click.Choice(["nothing", "code", "everything"]), default="nothing", show_default=True,
    help="What stays on the hosts.",
)  # fmt: skip
@click.option(
    "--on-local", "-L", "stay", is_flag=True, help="Leave results where they were made; fetch nothing."
)
@click.option("--no-env-read", is_flag=True, help="Do not pass RUNAWAY* variables of this environment on.")
@click.option(
    "--env", "-e", "variables", type=Assignment(), multiple=True, help="Set a variable for the executions."
)
@resources
@click.option(
    "--alloc",
    metavar="ALLOCATION",
    help="Run in this allocation, which `runaway alloc` asked for, and nowhere else; or `last`.",
)
@click.option(
    "--on", multiple=True, metavar="HOST[:NUMA][::GPU,...]",
    help="Only there: on this host or node, bound to this NUMA node, with these GPUs (one each, unless --gpus). May be repeated.",
)  # fmt: skip
@click.option("--exclude", multiple=True, metavar="HOST", help="Not there. May be repeated.")
@click.option("--each", is_flag=True, help="Once on every node.")
@click.option(
    "--nodes",
    "-N",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Each execution on so many nodes at once; see RUNAWAY_RANK.",
)
@click.option("--slots", type=click.IntRange(1), metavar="N", help="Executions at a time on each node.")
@click.option(
    "--retries", type=click.IntRange(0), default=2, metavar="N", show_default=True, help="Further attempts."
)
@click.option(
    "--retry-on", metavar="REASONS", default="lost", show_default=True,
    help="What is attempted again: lost, oom, signal, walltime, exit:N, node, staging, separated by commas.",
)  # fmt: skip
@click.option("--max-failures", type=click.IntRange(1), metavar="N", help="Stop when so many have failed.")
@click.option(
    "--halt", type=click.Choice(["soon", "now"]), default="soon", show_default=True,
    help="Stopping: start nothing new, or end what runs as well.",
)  # fmt: skip
@click.option(
    "--give-up",
    type=Duration(),
    default="30m",
    metavar="TIME",
    show_default=True,
    help="Do elsewhere what is on a node that cannot be reached for so long.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the last batch of this command line, else of this script: only what has no verdict yet.",
)
@click.option("--batch", metavar="BATCH", help="Which batch --resume means.")
@click.option("--retry-failed", is_flag=True, help="With --resume: also what failed.")
@click.option(
    "--code-changed", type=click.Choice(["keep", "rerun"]),
    help="With --resume, when the code has changed: keep verdicts of the old code, or run everything again.",
)  # fmt: skip
@click.option("--yes", "-y", is_flag=True, help="Do not ask, also for millions of executions.")
@click.option(
    "--detach", "-d", is_flag=True, help="Go on in the background once it is on its way; print its id."
)
@click.option("--dry-run", "-n", is_flag=True, help="Print every command, folder and count; do nothing.")
@click.option(
    "--follow",
    is_flag=True,
    help="Print every execution's output while it is written, its short id before each line.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON value per ended execution, one per line.")
@click.option(
    "--accept-new", is_flag=True, help="Trust the key of a host that is not known yet, and remember it."
)
@click.option("--verbose", "-V", is_flag=True, help="Say more.")
@click.option("--silent", "-S", is_flag=True, help="Say errors only.")
@click.option("--debug-ssh", is_flag=True, help="Say what happens on the SSH connections.")
@click.option(
    "--simulate",
    is_flag=True,
    help="Start nothing: say how it would run, as `runaway plan` does. The following options are for that.",
)
@simulation
def command(retry_on: str, simulate: bool, **options: Any) -> int:
    """Run SCRIPT many times, with arguments from TEMPLATE, files or parameters, on whichever REMOTE has a slot free.

    TEMPLATE: {a;b}+{c;d} makes ac, ad, bc, bd. Each execution's results, exit code, stdout and stderr go into a folder of its
    own. The same command with --resume goes on where an interrupted one stopped.
    """
    reasons = reasons_of(retry_on)
    told = {name: options.pop(name) for name in SIMULATION}
    if simulate:
        from runaway.batches.options import BatchOptions
        from runaway.simulate import SimulationOptions, simulate_batch

        return simulate_batch(BatchOptions(retry_on=reasons, **options), SimulationOptions(**told))
    _refuse_told(told)
    if options["detach"] and options["follow"]:
        raise click.UsageError(
            "--detach prints nothing but the id, --follow what is written: say one of the two"
        )
    if options["detach"] and not options["dry_run"]:
        from runaway.background import divide

        return divide(lambda background: _run(background, retry_on=reasons, **options))
    return _run(None, retry_on=reasons, **options)


#: What may be attempted again, besides exit:N.
_AGAIN = ("lost", "oom", "signal", "walltime", "exit", "node", "staging", "allocation")


def reasons_of(text: str) -> tuple[str, ...]:
    """What --retry-on says. Raises UsageError."""
    from liborch.names import nearest

    reasons = tuple(part.strip() for part in text.split(",") if part.strip())
    for reason in reasons:
        word, colon, code = reason.partition(":")
        if (colon and (word != "exit" or not code.isdecimal())) or (not colon and word not in _AGAIN):
            near = nearest(word, _AGAIN)
            meant = f"did you mean {' or '.join(near)}? " if near and not colon else ""
            raise click.UsageError(
                f"--retry-on {reason}: {meant}Expected some of {', '.join(_AGAIN)}, exit:N, with commas"
            )
    return reasons


def _refuse_told(told: dict[str, Any]) -> None:
    """What is only for simulating means that somebody meant to."""
    defaults = {each.name: each.default for each in command.params}
    for name, value in told.items():
        if value and value != defaults[name]:
            raise click.UsageError(
                f"--{name.replace('_', '-')} is for simulating: add --simulate, or use `runaway plan`"
            )


def _run(background: Background | None, **options: Any) -> int:
    import asyncio

    from runaway.batches.options import BatchOptions
    from runaway.batches.run import run_batch

    status = asyncio.run(run_batch(BatchOptions(**options), background))
    sys.stdout.flush()
    return status
