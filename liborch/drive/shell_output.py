"""The output of an execution on a node that has only sh, followed over a channel of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from liborch.drive.shell import MAX_LINE, Shell, ShellPipe, command
from liborch.errors import AgentError, HostUnreachable, TransferError


class ShellOutput:
    """The output of one execution on its way here, as the agent's stream of kind "output" would bring it."""

    def __init__(
        self,
        shell: Shell,
        key: tuple[str, int],
        fields: dict[str, Any],
        closed: Callable[[ShellOutput], None],
    ) -> None:
        self.key = key
        self._closed = closed
        self._offsets = {name: int(fields.get(name, 0)) for name in ("out", "err")}
        self._frames: asyncio.Queue[tuple[dict[str, Any], bytes]] = asyncio.Queue(4)
        self._rest: deque[tuple[dict[str, Any], bytes]] = deque()
        self._over = asyncio.Event()
        self._lost: str | None = None
        self._task = asyncio.ensure_future(self._follow(shell))

    async def _follow(self, shell: Shell) -> None:
        pipe: ShellPipe | None = None
        try:
            x, attempt = self.key
            words = f"follow {x}.{attempt} {self._offsets['out']} {self._offsets['err']}"
            pipe = await shell.open(command(words))
            await self._pass_on(pipe)
        except (OSError, ValueError, AgentError, HostUnreachable) as error:
            self.lose(str(error) or "the connection broke")
        finally:
            if pipe is not None:
                pipe.close()

    async def _pass_on(self, pipe: ShellPipe) -> None:
        buffer = bytearray()

        async def more() -> None:
            data = await pipe.read(1 << 18)
            if not data:
                raise ConnectionResetError("the connection was closed")
            buffer.extend(data)

        while True:
            while (end := buffer.find(b"\n")) < 0:
                if len(buffer) > MAX_LINE:
                    raise ValueError("an endless line")
                await more()
            words = bytes(buffer[:end]).decode("ascii", "replace").split()
            del buffer[: end + 1]
            if not words:
                continue
            if words[0] in self._offsets and len(words) == 3:
                at, size = int(words[1]), int(words[2])
                if not 0 <= size <= 1 << 20:
                    raise ValueError(f"{size} bytes announced")
                while len(buffer) < size:
                    await more()
                data = bytes(buffer[:size])
                del buffer[:size]
                await self._frames.put(({"t": "data", "s": words[0], "at": at}, data))
                self._offsets[words[0]] = max(self._offsets[words[0]], at + size)
            elif words[0] == "end":
                await self._frames.put(({"t": "end", **self._offsets}, b""))
                return
            elif words[0] == "gone":
                await self._frames.put(({"t": "error", "why": "its output is not on the node any more"}, b""))
                return

    def finish(self, out: bytes, err: bytes) -> None:
        """The whole output is here: what has not been passed on follows, then the end."""
        self._task.cancel()
        if self._rest:
            return
        for name, data in (("out", out), ("err", err)):
            at = self._offsets[name]
            if len(data) > at:
                self._rest.append(({"t": "data", "s": name, "at": at}, data[at:]))
                self._offsets[name] = len(data)
        self._rest.append(({"t": "end", **self._offsets}, b""))
        self._over.set()

    def lose(self, why: str) -> None:
        """Note that the link is gone."""
        if self._lost is None:
            self._lost = why
        self._over.set()

    async def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Nothing can be said to an output."""

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        """See Stream."""
        while True:
            if not self._frames.empty():
                return self._frames.get_nowait()
            if self._rest:
                return self._rest.popleft()
            if self._lost is not None:
                raise TransferError(f"the output was interrupted: {self._lost}", retriable=True)
            coming = asyncio.ensure_future(self._frames.get())
            over = asyncio.ensure_future(self._over.wait())
            try:
                await asyncio.wait({coming, over}, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    return coming.result()
            finally:
                coming.cancel()
                over.cancel()

    async def close(self) -> None:
        """See Stream."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.lose("it was closed")
        self._closed(self)
