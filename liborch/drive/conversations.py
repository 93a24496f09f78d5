"""Transfer conversations with nodes: a few per link, each used for one transfer after the other.

A conversation costs its node the start of a worker, which takes longer than most transfers; and a thousand executions that
end together must not start a thousand workers. What is said in one is `liborch.transfer`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from liborch.drive.link import AgentLink
from liborch.transfer.stream import Stream

#: Transfers with one node at a time.
MOST = 4
#: A conversation that nobody used for so long is ended, in seconds.
IDLE_S = 5.0


class _Line:
    """What there is on one link."""

    def __init__(self) -> None:
        self.room = asyncio.Semaphore(MOST)
        #: The last used is used again first, so that the others may end.
        self.idle: list[Stream] = []
        #: How often each was used so far.
        self.used: dict[Stream, int] = {}


class Conversations:
    """See the module's text.

    Args:
        spawn: Runs something beside, and sees to its end.
    """

    def __init__(self, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._spawn = spawn
        self._lines: weakref.WeakKeyDictionary[AgentLink, _Line] = weakref.WeakKeyDictionary()

    @contextlib.asynccontextmanager
    async def hold(self, link: AgentLink) -> AsyncIterator[Stream]:
        """Hold a conversation for one transfer. Left by an exception or a cancellation, it is ended: it may be in the middle."""
        line = self._lines.setdefault(link, _Line())
        async with line.room:
            stream = line.idle.pop() if line.idle else link.open_stream("transfer")
            try:
                yield stream
            except BaseException:
                line.used.pop(stream, None)
                await stream.close()
                raise
            used = line.used[stream] = line.used.get(stream, 0) + 1
            line.idle.append(stream)
            asyncio.get_running_loop().call_later(IDLE_S, self._end_if_idle, line, stream, used)

    def _end_if_idle(self, line: _Line, stream: Stream, used: int) -> None:
        if stream in line.idle and line.used[stream] == used:
            line.idle.remove(stream)
            del line.used[stream]
            self._spawn(stream.close())
