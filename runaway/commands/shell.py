"""`runaway shell HOST`: a terminal there."""

from __future__ import annotations

import click

#: Where the words of the command are kept while the rest is parsed.
_WORDS = "runaway.shell.words"


class _WithCommand(click.Command):
    """What follows `--` is the command, also where no HOST is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            args, ctx.meta[_WORDS] = args[:at], tuple(args[at + 1 :])
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]


@click.command(cls=_WithCommand)
@click.argument("host", required=False)
@click.option("--alloc", metavar="ALLOCATION", help="On a node of this allocation; or `last`.")
@click.option("--node", metavar="NODE", help="Which node. [default: the first]")
@click.option(
    "--exec", "execution", metavar="EXECUTION",
    help="Beside this execution, which runs: on its node, in its folder, with its environment, on its cores.",
)  # fmt: skip
@click.option("--dry-run", "-n", is_flag=True, help="Print the command that would be run; run nothing.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print its output and exit status as one JSON value at its end."
)
@click.option(
    "--accept-new", is_flag=True, help="Trust the key of a host that is not known yet, and remember it."
)
@click.pass_context
def command(
    ctx: click.Context,
    host: str | None,
    alloc: str | None,
    node: str | None,
    execution: str | None,
    dry_run: bool,
    as_json: bool,
    accept_new: bool,
) -> int:
    """Open your shell on HOST (its frontend, where it has one), or run COMMAND there; ends with its exit status.

    What is piped in is run. It takes no slot.
    """
    from runaway.shells import Wish, open_shell

    if execution is not None and (alloc is not None or node is not None):
        raise click.UsageError("--exec says which node; leave --alloc and --node away")
    return open_shell(
        Wish(host, ctx.meta.get(_WORDS, ()), alloc, node, execution, dry_run, as_json, accept_new)
    )
