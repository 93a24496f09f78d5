"""One conversation with a worker on a node: what transfers need of a link, and the credit keeping they share.

Its job: the `Stream` protocol that `send.py` and `fetch.py` are written against; `FrameStream`, which turns "write
these bytes" and "this frame came" into a Stream, so that a driver needs a few lines; and `worker_stream`, a Stream to a
worker of this machine. Which link carries the bytes, and when it is opened, is the driver's.

What a driver does: make `FrameStream(number, write)`, call its `feed` for every frame of that stream that comes in
(as `frames.Decoder` cuts them), and `lose` when the link is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from liborch.agent import frames as _untyped
from liborch.errors import TransferError

#: The agent's files carry no types: they run on Python 3.6, as they are.
frames: Any = _untyped

#: Credit is handed back in portions of this many bytes.
_PORTION = frames.WINDOW // 4


class Stream(Protocol):
    """A conversation in frames with the worker of a node."""

    async def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Send one frame, waiting for window. Cancelled: the frame is sent whole or not at all.

        Raises:
            TransferError: The link is gone; retriable.
        """

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        """Return the next frame's head and body. Cancelled: no frame is lost.

        Raises:
            TransferError: The link is gone; retriable.
        """

    async def close(self) -> None:
        """End the conversation. Safe to call twice, and when the link is gone."""


class FrameStream:
    """A Stream over any link that can write bytes in order.

    Args:
        number: The stream's number on the link.
        write: Writes bytes; may wait when the link is congested. Never called with a part of a frame.
        closed: Told once when it is closed on this side: frames of that number that still come are nobody's.
    """

    def __init__(
        self,
        number: int,
        write: Callable[[bytes], Awaitable[None]],
        closed: Callable[[int], object] = lambda _number: None,
    ) -> None:
        self.number = number
        self._write = write
        self._forget = closed
        self._window = frames.Window()
        self._arrived: deque[tuple[dict[str, Any], bytes, int]] = deque()
        self._owed = 0
        self._lost: str | None = None
        self._closed = False
        #: Set while there is window, or no hope of any.
        self._may_send = asyncio.Event()
        self._may_send.set()
        #: Set while a frame waits to be read, or none will ever come.
        self._may_receive = asyncio.Event()

    def __repr__(self) -> str:
        state = f"lost: {self._lost}" if self._lost else "closed" if self._closed else "open"
        return f"<FrameStream {self.number}: {state}, {len(self._arrived)} frames waiting, {self._window.left} bytes of window>"

    def feed(self, raw_head: bytes, body: bytes, length: int) -> None:
        """Take in one frame of this stream, as `frames.Decoder.feed` returns it (without its stream number)."""
        head = frames.parse_head(raw_head)
        if head.get("t") == "credit":
            self._window.credit(int(head.get("n", 0)))
            if self._window.left > 0:
                self._may_send.set()
        elif head.get("t") == "close":
            self.lose("the worker ended the conversation")
        else:
            self._arrived.append((head, body, length))
            self._may_receive.set()

    def lose(self, why: str) -> None:
        """Note that the link is gone: whoever waits gets a TransferError once the frames that came are read."""
        if self._lost is None:
            self._lost = why
        self._may_send.set()
        self._may_receive.set()

    def _gone(self) -> TransferError:
        return TransferError(f"the transfer was interrupted: {self._lost}", retriable=True)

    async def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        data = frames.encode(self.number, head, body)
        while self._window.left <= 0 and self._lost is None:
            await self._may_send.wait()
        if self._lost is not None:
            raise self._gone()
        self._window.spend(len(data))
        if self._window.left <= 0:
            self._may_send.clear()
        try:
            await self._write(data)
        except OSError as error:
            self.lose(str(error))
            raise self._gone() from error

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        while not self._arrived:
            if self._lost is not None:
                raise self._gone()
            await self._may_receive.wait()
        if self._owed >= _PORTION and self._lost is None:
            owed, self._owed = self._owed, 0
            with contextlib.suppress(OSError):
                await self._write(frames.encode(self.number, {"t": "credit", "n": owed}))
        head, body, length = self._arrived.popleft()
        if not self._arrived and self._lost is None:
            self._may_receive.clear()
        self._owed += length
        return head, body

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._lost is None:
            with contextlib.suppress(OSError):
                await self._write(frames.encode(self.number, {"t": "close"}))
            self.lose("it was closed")
        self._forget(self.number)


class _Pipe(asyncio.Protocol):
    """Bytes to and from a worker's socket."""

    def __init__(self) -> None:
        self.stream: FrameStream | None = None
        self._decoder = frames.Decoder()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=1 << 20)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.stream is not None
        try:
            for _number, raw_head, body, length in self._decoder.feed(data):
                self.stream.feed(raw_head, body, length)
        except frames.FrameError as error:
            self.stream.lose(str(error))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if self.stream is not None:
            self.stream.lose(str(exc) if exc else "the worker ended")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)
        await self._writable.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def worker_command(number: int) -> list[str]:
    """Return the command line of a worker of this machine."""
    file = Path(__file__).parent.parent / "agent" / "worker.py"
    return [sys.executable, "-IS", str(file), str(number)]


@contextlib.asynccontextmanager
async def worker_stream(argv: Sequence[str] | None = None, *, number: int = 1) -> AsyncIterator[FrameStream]:
    """Run a worker on this machine and hold a Stream to it; the worker is gone when the block ends.

    Args:
        argv: The worker's command line; None: this package's own worker under this Python.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            for each in (ours, theirs):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            process = await asyncio.create_subprocess_exec(
                *(argv or worker_command(number)), stdin=theirs.fileno(), stdout=theirs.fileno()
            )
        except BaseException:
            ours.close()
            raise
    _, pipe = await asyncio.get_running_loop().create_connection(_Pipe, sock=ours)
    stream = FrameStream(number, pipe.write)
    pipe.stream = stream
    try:
        yield stream
    finally:
        await stream.close()
        pipe.close()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        except asyncio.CancelledError:
            process.kill()
            raise
