"""Seeing an execution through: its output on ours, Ctrl-C, its end; for `exec` and whoever takes one over."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sys
from typing import Any

import msgspec

from liborch.command_line import CLOSED_PIPE
from liborch.drive.driver import Driver
from liborch.drive.execution import Execution
from liborch.drive.results import Result
from liborch.errors import OrchestraError
from liborch.quantities import format_size
from runaway.interrupt import Interrupts
from runaway.messages import Messages
from runaway.records import SCHEMA_VERSION


async def see_through(
    driver: Driver,
    execution: Execution,
    messages: Messages,
    output: Output,
    *,
    no_ecode: bool,
    as_json: bool,
) -> int:
    """Wait for the end, minding Ctrl-C; print the result."""
    with Interrupts(driver, execution, messages) as interrupts, terminal_of(execution):
        waiting = asyncio.ensure_future(execution.wait())
        ends: list[asyncio.Future[Any]] = [waiting, interrupts.left, output.broken]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            driver.detached = True
            short = execution.id[:8]
            if interrupts.cancelling:
                messages.error(f"left; {short} was asked to end, and will: runaway attach {short} says how")
            else:
                why = "stdout was closed" if output.broken.done() else "left"
                messages.error(f"{why}; {short} goes on: runaway attach {short}")
            status = CLOSED_PIPE if output.broken.done() else 130
            if as_json:
                print(json.dumps(left_as_dict(execution, status)))
            return status
        try:
            result = await waiting
        except OrchestraError:
            if execution.id in driver.executions:
                driver.detached = True
                messages.error(f"{execution.id[:8]} goes on where it is: runaway attach {execution.id[:8]}")
            raise
    status = 0 if no_ecode and result.reason == "exit" else result.exit_status
    # It did well, and yet something is not as it should be: its results are not here.
    status = 255 if status == 0 and result.why else status
    if interrupts.count:
        status = 130
    say_end(result, messages, status if as_json else None)
    transfer = execution.spec.transfer
    if transfer is not None and not transfer.fetch:
        messages.stage(f"its results stay on {result.host}: runaway fetch {execution.id[:8]}")
    return status


def left_as_dict(execution: Execution, status: int) -> dict[str, Any]:
    """The JSON form of an execution that goes on without this command."""
    return {
        "schema_version": SCHEMA_VERSION,
        "id": execution.id,
        "state": execution.state,
        "host": execution.host,
        "node": execution.node,
        "exit_status": status,
    }


def say_end(result: Result, messages: Messages, status: int | None) -> None:
    """Print what there is to say of an end besides its output.

    Args:
        status: What the command ends with; None: not as JSON.
    """
    if status is not None:
        print(json.dumps({**result_as_dict(result), "exit_status": status}))
    for path, why in result.refused:
        messages.error(f"not fetched: {path}: {why}")
    if result.reason != "exit":
        messages.reason(": ".join(dict.fromkeys(filter(None, (result.state, result.reason, result.why)))))
    elif result.why and not result.stderr.rstrip().endswith(result.why.encode()):
        messages.reason(result.why)


def result_as_dict(result: Result) -> dict[str, Any]:
    """The JSON form of a Result. Output that is no UTF-8 comes as base64 as well, exactly."""
    fields: dict[str, Any] = msgspec.to_builtins(result)
    for name in ("stdout", "stderr"):
        raw: bytes = getattr(result, name)
        fields[name] = raw.decode("utf-8", "backslashreplace")
        try:
            raw.decode()
        except UnicodeDecodeError:
            fields[f"{name}_base64"] = base64.b64encode(raw).decode()
    fields["ranks"] = [result_as_dict(each) for each in result.ranks]
    return {"schema_version": SCHEMA_VERSION, **fields, "exit_status": result.exit_status}


class Output:
    """The execution's output on ours, byte for byte."""

    def __init__(self, swallow: bool) -> None:
        self._swallow = swallow
        self._loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[None] = self._loop.create_future()

    def write(self, name: str, data: bytes) -> None:
        """May be called from a thread: a reader that is slow holds up nobody else."""
        if self._swallow or self.broken.done():
            return
        fd = 1 if name == "out" else 2
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except BlockingIOError:
            os.set_blocking(fd, True)
            self.write(name, bytes(view))
        except OSError:
            self._loop.call_soon_threadsafe(self._break)

    def _break(self) -> None:
        if not self.broken.done():
            self.broken.set_result(None)


@contextlib.contextmanager
def terminal_of(execution: Execution) -> Any:
    """With --tty: this terminal in raw mode, its keys and its size on their way to the other one."""
    if execution.spec.tty is None or not sys.stdin.isatty():
        yield
        return
    from runaway.terminal import raw_terminal

    with raw_terminal(execution):
        yield


def of_node(node: str, why: str) -> str:
    """`gpu1: why`; most errors name their host themselves."""
    return why if why.startswith((f"{node} ", f"{node}:")) else f"{node}: {why}"


def narrate(messages: Messages, what: str, fields: dict[str, Any], *, sends: bool) -> None:
    """Say what the driver tells, where people care."""
    if what == "sent":
        messages.stage(f"sending {fields['files']} files ({format_size(fields['bytes'])})")
        messages.stage("running")
    elif what == "linked":
        messages.detail(f"connected to {fields['node']}")
        if not sends:
            messages.stage("running")
    elif what == "fetched":
        messages.stage(
            f"fetching {fields['files']} files ({format_size(fields['bytes'])}) into {fields['folder']}"
        )
    elif what == "tidied":
        messages.stage("cleaning")
    elif what == "unreachable":
        messages.stage(of_node(fields["node"], fields["why"]))
    elif what == "lost":
        messages.stage(f"{of_node(fields['node'], fields['why'])}; what runs there goes on, connecting again")
    elif what == "limited":
        messages.stage(f"{fields['node']}: {fields['why']}; working through plain sh, slower and with less")
        for limit in fields["limits"]:
            messages.detail(f"{fields['node']}: {limit}")
    elif what in ("trouble", "stalled"):
        messages.error(str(fields["why"]))
    elif what == "retry":
        messages.stage(f"attempt {fields['attempt']} ended ({fields['reason']}); another one follows")
    else:
        narrate_cluster(messages, what, fields)


def narrate_cluster(messages: Messages, what: str, fields: dict[str, Any]) -> None:
    """Say what a batch system does with what was asked of it."""
    if what == "refused":
        if fields["again"]:
            messages.stage(f"{fields['host']}: no allocation now: {fields['why']}; asking again later")
    elif what == "frontend":
        said, _, then = str(fields["why"]).rpartition("; ")
        host = said.partition(": ")[0]
        # What a batch system says is long, and it says the same for as long as it is in trouble.
        is_news = not said or messages.is_news(host, said)
        messages.stage(str(fields["why"]) if is_news else f"{host}: the same; {then}")
    elif what == "allocation":
        nodes = f"{fields['nodes']} node{'s' if fields['nodes'] != 1 else ''}"
        name = f"{fields['host']}: allocation {fields['id']} of {nodes}"
        why = f" ({fields['why']})" if fields["why"] else ""
        if fields["state"] == "active":
            messages.stage(f"{name} has begun")
        elif fields["state"] == "used":
            messages.detail(f"{name} is used")
        elif fields["state"] == "held":
            messages.stage(f"{name} is held{why}: it will not begin by itself")
        elif fields["state"] == "queued":
            # How its reasons change is for who asks.
            is_news = messages.is_news(name, "queued")
            (messages.stage if is_news else messages.detail)(f"{name} is queued{why}")
        elif fields["released"]:
            messages.detail(f"{name} was given back")
        else:
            messages.stage(f"{name} is over: {fields['end']}{why}")
