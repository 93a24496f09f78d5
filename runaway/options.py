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


class Gpus(click.ParamType[float]):
    """`2`, or `0.5` of one."""

    name = "gpus"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from liborch.errors import QuantityError
        from liborch.quantities import parse_gpus

        try:
            return parse_gpus(str(value))
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


def simulation(command: F) -> F:
    """What is told to `runaway plan`, and to `runaway batch --simulate`."""
    for option in (
        click.option("--svg", metavar="FILE", help="Draw it into a file."),
        click.option("--gantt", is_flag=True, help="Draw it: a row for each node, time to the right."),
        click.option(
            "--model-seed", type=int, default=0, metavar="N", help="Other chances.", show_default=True
        ),
        click.option(
            "--model-nodes",
            metavar="NODES[xCORES[xGPUS]]",
            help="Of so many such nodes, instead of what the profile says.",
        ),
        click.option(
            "--failures",
            default="0",
            metavar="RATE",
            show_default=True,
            help="Failures of a node per hour, such as 1%.",
        ),
        click.option(
            "--queue-wait",
            default="0",
            metavar="TIME",
            show_default=True,
            help="What an allocation waits in the queue, such as 10m or 10m±5m.",
        ),
        click.option(
            "--duration",
            metavar="TIME|FILE",
            help="What an execution takes, such as 10m or 10m±2m, or a file of them. [default: as earlier ones]",
        ),
    ):
        command = option(command)
    return command


def resources(command: F) -> F:
    """--time --cpus --mem --gpus."""
    for option in (
        click.option(
            "--gpus", type=Gpus(), default=None, metavar="N", help="GPUs, or a share of one, such as 0.5."
        ),
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
