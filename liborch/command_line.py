"""What the command lines share: commands imported when they are called, and the border where errors become messages.

Not for embedding; it lives here because `runaway` knows nothing of `expegit` and `parasearch`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import sys
from collections.abc import Sequence
from typing import Any

import click

from liborch.plain_text import neutral

#: Exit status when whoever read our output has gone: 128 + SIGPIPE, as of any other program.
CLOSED_PIPE = 141
#: Of the form that an error has under --json.
SCHEMA_VERSION = 1


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

    def invoke(self, ctx: click.Context) -> Any:
        result = super().invoke(ctx)
        # Here, where click still minds a closed pipe, and not when the interpreter ends.
        sys.stdout.flush()
        return result

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self._table:
            return
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_module, text) in self._table.items()])


def run(name: str, text: str, table: dict[str, tuple[str, str]]) -> int:
    """Parse the words of a command with commands of its own, and call it; return the exit status."""
    settings = {"help_option_names": ["--help", "-h"]}
    return call(name, LazyGroup(table, name=name, help=text, context_settings=settings))


def call(name: str, command: click.Command) -> int:
    """Parse and call; return the exit status.

    What goes wrong is said on stderr. Under --json stdout gets it as well, as the one JSON value that a reader waits for.
    """
    command.params.append(_version(name))
    as_json = _wants_json(sys.argv[1:])
    try:
        status = command.main(prog_name=name, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except SystemExit:
        # `runaway logs last | head`: click has silenced the streams, but its status says that executions failed.
        return CLOSED_PIPE
    except (click.exceptions.Abort, KeyboardInterrupt):
        if as_json:
            _print_error("Interrupted", "interrupted", 130)
        return 130
    except click.ClickException as error:
        if as_json:
            _print_error(type(error).__name__, error.format_message(), 2)
        _show(error)
        return 2
    except Exception as error:
        return _explain(name, error, as_json=as_json)


def _explain(name: str, error: Exception, *, as_json: bool) -> int:
    """A person's or the world's mistake is a message; ours keeps its traceback."""
    from liborch.errors import InvariantError, OrchestraError

    if as_json:
        fields = vars(error) if isinstance(error, OrchestraError) else {}
        _print_error(type(error).__name__, str(error), getattr(error, "exit_status", 1), fields)
    if not isinstance(error, OrchestraError) or isinstance(error, InvariantError):
        raise error
    click.echo(neutral(f"{name}: {type(error).__name__}: {error}"), err=True)
    return error.exit_status


def _show(error: click.ClickException) -> None:
    """As click shows it; but what it quotes may have been pasted, or be a file's name."""
    text = io.StringIO()
    error.show(text)
    click.echo(neutral(text.getvalue()), err=True, nl=False)


def _wants_json(words: Sequence[str]) -> bool:
    """Whether --json was asked of us: what follows `--` is the person's. Parsing may be what failed, so it is not asked."""
    return "--json" in (words[: words.index("--")] if "--" in words else words)


def _print_error(kind: str, message: str, status: int, fields: dict[str, Any] | None = None) -> None:
    """The JSON form of an error: its class, what a person reads, and what a program may want of it in pieces."""
    import json

    plain = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (fields or {}).items()
        if isinstance(value, str | int | float | tuple | None)
    }
    value = {
        "schema_version": SCHEMA_VERSION,
        "error": {"type": kind, "message": message, "fields": plain},
        "exit_status": status,
    }
    with contextlib.suppress(OSError):  # Nobody reads any more: the exit status says it too.
        print(json.dumps(value, default=str), flush=True)


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
