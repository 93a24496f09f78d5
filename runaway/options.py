"""Option types and option groups that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Duration(click.ParamType[float]):
    """`90`, `1h30m`, `01:30:00` -> seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from liborch.errors import QuantityError
        from liborch.quantities import parse_duration

        try:
            return parse_duration(str(value))
        except QuantityError as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType[int]):
    """`500M`, `4G` -> bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from liborch.errors import QuantityError
        from liborch.quantities import parse_size

        try:
            return parse_size(str(value))
        except QuantityError as error:
            self.fail(str(error), param, ctx)


class Assignment(click.ParamType[tuple[str, str]]):
    """`NAME=value` -> (name, value)."""

    name = "K=V"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is no NAME=value", param, ctx)
        return name, text


def resources(command: F) -> F:
    """--time --cpus --mem --gpus."""
    for option in (
        click.option("--gpus", type=click.IntRange(0), default=0, metavar="N", help="GPUs."),
        click.option("--mem", type=Size(), default=0, metavar="SIZE", help="Memory limit, such as 4G."),
        click.option(
            "--cpus", "-c", type=click.IntRange(1), default=None, metavar="N", help="Cores, bound to it."
        ),
        click.option(
            "--time",
            "-T",
            "walltime",
            type=Duration(),
            default=None,
            metavar="TIME",
            help="Ended after so long, such as 1h30m.",
        ),
    ):
        command = option(command)
    return command
