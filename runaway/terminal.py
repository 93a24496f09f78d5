"""--tty: this terminal in raw mode while a program on another machine uses it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator

from liborch.drive.execution import Execution


@contextlib.contextmanager
def raw_terminal(execution: Execution) -> Iterator[None]:
    """Pass keys (Ctrl-C among them) and changes of size on; the terminal is as before afterwards, whatever happens."""
    loop = asyncio.get_running_loop()
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    pending: list[bytes] = []
    tasks: set[asyncio.Task[None]] = set()

    async def flush() -> None:
        while execution.terminal is None and not execution.is_done:  # noqa: ASYNC110 - people type slowly
            await asyncio.sleep(0.02)
        stream = execution.terminal
        while pending and stream is not None:
            await stream.send({"t": "in"}, pending.pop(0))

    def start() -> None:
        if not tasks:
            task = loop.create_task(flush())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    def typed() -> None:
        data = os.read(fd, 4096)
        if data:
            pending.append(data)
            start()
        else:
            loop.remove_reader(fd)

    def resized() -> None:
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(fd)
            stream = execution.terminal
            if stream is not None:
                task = loop.create_task(stream.send({"t": "size", "c": size.columns, "r": size.lines}))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    tty.setraw(fd)
    loop.add_reader(fd, typed)
    loop.add_signal_handler(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        loop.remove_signal_handler(signal.SIGWINCH)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        for task in list(tasks):
            task.cancel()
