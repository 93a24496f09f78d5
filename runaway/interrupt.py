"""Ctrl-C and its relatives. First: start nothing new, let what runs finish. Second: cancel, clean up. Third: leave now."""

from __future__ import annotations

import asyncio
import os
import signal
from types import TracebackType

from liborch.drive.driver import Driver
from liborch.drive.execution import Execution
from runaway.messages import Messages

#: After the second Ctrl-C, cancelling may take so long, in seconds.
CANCEL_S = 20.0


class Interrupts:
    """While it is entered, signals are counted and acted upon. `left` is done when the person wants out."""

    def __init__(self, driver: Driver, execution: Execution, messages: Messages) -> None:
        self._driver = driver
        self._execution = execution
        self._messages = messages
        self.count = 0
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def cancelling(self) -> bool:
        """Whether its end was asked for."""
        return self.count >= 2

    def __enter__(self) -> Interrupts:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        for number in (signal.SIGHUP, signal.SIGTERM):
            loop.add_signal_handler(number, self._leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            loop.remove_signal_handler(number)
        # From here on everything is bounded; an impatient person may still break it off.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self) -> None:
        self.count += 1
        short = self._execution.id[:8]
        if self.count == 1 and self._execution.state in ("running", "paused", "collecting"):
            self._messages.error(
                f"{short} is running and will finish; Ctrl-C again cancels it, a third time ends this command at once"
            )
        elif self.count <= 2:
            self._messages.error(f"cancelling {short}; Ctrl-C again leaves at once")
            self._execution.cancel()
            self.count = 2
            asyncio.get_running_loop().call_later(CANCEL_S, self._leave)
        elif self.count == 3:
            self._leave()
        else:
            os._exit(130)

    def _leave(self) -> None:
        if not self.left.done():
            self.left.set_result(None)
