"""An event loop in virtual time: when nothing is ready it jumps to the next timer, so a week takes milliseconds.

What happens on it is decided by its timers and nothing else: the same coroutine does the same in the same order, every
time. There is no outside: sockets, pipes, processes and threads are errors that say so. When nothing is ready and
no timer is set, nothing could ever happen again; that is an error, too, and names the tasks that wait.

In a test::

    def test_a_week_passes() -> None:
        async def week() -> None:
            await asyncio.sleep(7 * 86400)

        run(week())
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, NoReturn, TypeVar

from liborch.errors import InvariantError

T = TypeVar("T")


class _NoOutside(selectors.BaseSelector):
    """Waits for nobody: tells the loop how long it would have waited, and returns at once."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self._keys:
            _refuse("files and sockets")
        # The loop's own: a pair of sockets by which signals and threads would wake it.
        key = self._keys[fileobj] = selectors.SelectorKey(fileobj, int(fileobj), events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.would_wait(timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def close(self) -> None:
        self._keys.clear()


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module's text. `time()` begins at 0.0, in seconds."""

    def __init__(self) -> None:
        self._virtual_s = 0.0
        super().__init__(_NoOutside(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual_s

    def would_wait(self, timeout_s: float | None) -> None:
        """Pass the time instead. Raises InvariantError when it would be for ever."""
        if timeout_s is None:
            waiting = sorted(task.get_name() for task in asyncio.all_tasks(self) if not task.done())
            raise InvariantError(
                f"nothing can ever happen again at {self._virtual_s} s; waiting: {', '.join(waiting)}"
            )
        if timeout_s > 0:
            # To the timer itself, not to a rounded sum: what is due at one moment is done in one turn.
            timers: list[asyncio.TimerHandle] = getattr(self, "_scheduled", [])
            self._virtual_s = timers[0].when() if timers else self._virtual_s + timeout_s

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> NoReturn:  # type: ignore[override]
        """Refused."""
        _refuse("threads")

    async def create_connection(self, *_args: Any, **_named: Any) -> NoReturn:
        """Refused."""
        _refuse("connections")

    async def create_server(self, *_args: Any, **_named: Any) -> NoReturn:
        """Refused."""
        _refuse("servers")

    async def subprocess_exec(self, *_args: Any, **_named: Any) -> NoReturn:
        """Refused."""
        _refuse("processes")

    async def subprocess_shell(self, *_args: Any, **_named: Any) -> NoReturn:
        """Refused."""
        _refuse("processes")


def _refuse(what: str) -> NoReturn:
    raise InvariantError(f"{what} belong to the real world; a virtual loop has none: give it a double")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time and return what it returns; tasks it leaves behind are an error.

    Raises:
        InvariantError: It waits for something that can never happen, reaches for the real world, or leaves tasks behind.
    """
    loop = VirtualLoop()
    try:
        result = loop.run_until_complete(coroutine)
        left = sorted(task.get_name() for task in asyncio.all_tasks(loop))
        if left:
            raise InvariantError(f"tasks nobody waited for: {', '.join(left)}")
        return result
    finally:
        _end(loop)


def _end(loop: VirtualLoop) -> None:
    """Cancel what is left, let it clean up, close."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
