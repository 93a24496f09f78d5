"""What the command lines share: commands imported when they are called, and the border where errors become messages.

Not for embedding; it lives here because `runaway`, `expegit` and `parasearch` may not import one another.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

import click


class LazyGroup(click.Group):
    """Knows its commands by name and one line of help."""

    def __init__(self, table: dict[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(**options)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._table.get(cmd_name)
        if entry is None:
            return None
        command = importlib.import_module(entry[0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self._table, 2)
            if not near:
                raise
            raise click.UsageError(
                f"No such command {args[0]!r}; did you mean {' or '.join(near)}?", ctx
            ) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self._table:
            return
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_module, text) in self._table.items()])


def run(name: str, text: str, table: dict[str, tuple[str, str]]) -> int:
    """Parse and call; return the exit status."""
    group = LazyGroup(table, name=name, help=text, context_settings={"help_option_names": ["--help", "-h"]})
    group.params.append(_version(name))
    try:
        status = group.main(prog_name=name, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except Exception as error:
        return _explain(name, error)


def _explain(name: str, error: Exception) -> int:
    """A person's or the world's mistake is a message; ours keeps its traceback."""
    from liborch.errors import InvariantError, OrchestraError

    if isinstance(error, BrokenPipeError):
        sys.stderr.close()
        return 141
    if not isinstance(error, OrchestraError) or isinstance(error, InvariantError):
        raise error
    click.echo(f"{name}: {type(error).__name__}: {error}", err=True)
    return error.exit_status


def _version(name: str) -> click.Option:
    def show(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            from liborch import __version__

            click.echo(f"{name} {__version__}")
            ctx.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help="Show the version.",
    )
