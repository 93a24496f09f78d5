"""One command's bytes, both ways, over one SSH channel.

A Channel is the session object asyncssh calls back, and what the pool's users hold. It never decodes: one invalid byte
would cost the whole connection. Memory is bounded: what was read ahead by READ_AHEAD, what waits to be sent by SEND_AHEAD,
stderr by its tail.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncssh import SSHClientChannel

#: Bytes read ahead of the reader before the server is held back, on top of the channel's window.
READ_AHEAD = 4 << 20
#: Bytes waiting to be sent above which `write` waits.
SEND_AHEAD = 1 << 20
#: Bytes of stderr kept.
STDERR_TAIL = 64 << 10
#: `write` hands bytes over in pieces of this size, so that it never holds a second copy of all of them.
_PIECE = 256 << 10


class Channel:
    """A command running on a host: raw bytes to its stdin, from its stdout, the tail of its stderr, its end."""

    def __init__(self, host: str, released: Callable[[bool], None], abandoned: Callable[[], None]) -> None:
        self.host = host
        self._released = released
        self._abandoned = abandoned
        self._given_up = False
        self._channel: SSHClientChannel[bytes] | None = None
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._eof = False
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Event = asyncio.Event()
        self._writable.set()
        self._stderr: deque[bytes] = deque()
        self._stderr_size = 0
        #: Bytes of stderr kept.
        self.stderr_limit = STDERR_TAIL
        #: Exit status; None while running, and for ever when it is unknown.
        self.exit_status: int | None = None
        #: Name of the signal that ended the command, without SIG.
        self.signal: str | None = None
        #: stderr beyond the limit was dropped.
        self.stderr_truncated = False
        self._ended = asyncio.Event()
        self._closed = asyncio.Event()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Channel {self.host}: {state}, {self._buffered} bytes unread>"

    # What users of the pool call.

    @property
    def is_open(self) -> bool:
        """Whether the server still has the channel open. Unread bytes may be left after it closed."""
        return not self._closed.is_set()

    async def read(self, max_bytes: int = 1 << 20) -> bytes:
        """Return some bytes of stdout as soon as there are any, at most `max_bytes`; b"" at the end.

        The end looks the same when the link died: `wait` tells. One reader at a time. Cancelling loses nothing.
        """
        while not self._chunks:
            if self._eof:
                return b""
            if self._readable is None or self._readable.done():
                self._readable = asyncio.get_running_loop().create_future()
            await self._readable
        taken: list[bytes] = []
        room = max_bytes
        while self._chunks and room > 0:
            chunk = self._chunks[0]
            if len(chunk) > room:
                taken.append(chunk[:room])
                self._chunks[0] = chunk[room:]
                room = 0
            else:
                taken.append(chunk)
                self._chunks.popleft()
                room -= len(chunk)
        data = taken[0] if len(taken) == 1 else b"".join(taken)
        self._buffered -= len(data)
        if self._paused and self._buffered <= READ_AHEAD // 2:
            self._paused = False
            if self._channel is not None:
                self._channel.resume_reading()
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes to the command's stdin, waiting while the window is full.

        Cancelling may leave a first part of `data` sent. Raises BrokenPipeError when the channel is closed.
        """
        view = memoryview(data).cast("B")
        for at in range(0, len(view), _PIECE):
            await self._writable.wait()
            if self._channel is None or not self.is_open:
                raise BrokenPipeError(f"{self.host}: the channel is closed")
            try:
                self._channel.write(view[at : at + _PIECE])
            except OSError as error:
                raise BrokenPipeError(f"{self.host}: the command takes no more input") from error
        # A turn of the loop even while the window is open, so that no writer starves the others.
        await self._writable.wait()

    def write_eof(self) -> None:
        """Close the command's stdin once everything written is sent."""
        if self._channel is not None and self.is_open:
            self._channel.write_eof()

    def stderr_tail(self) -> bytes:
        """The last bytes of stderr so far (64 KiB of it)."""
        return b"".join(self._stderr)[-self.stderr_limit :]

    async def wait(self) -> int | None:
        """Wait for the command's end; its exit status, or None: unknown (or a signal, see `signal`)."""
        await self._ended.wait()
        return self.exit_status

    def close(self) -> None:
        """Close at once; unsent and unread bytes are dropped. What runs on the host may go on: a channel is no leash."""
        self._chunks.clear()
        self._buffered = 0
        self._end_of_output()
        if self._channel is not None and self.is_open and not self._given_up:
            self._given_up = True
            self._channel.abort()
            # A server that still runs the command keeps the room until it ends.
            self._abandoned()

    async def wait_closed(self) -> None:
        """Wait until the server has closed the channel too, or the link is gone."""
        await self._closed.wait()

    def ask_to_end(self) -> None:
        """Ask the server to send TERM to the command. Not every server does (not to root's, on a stock sshd)."""
        if self._channel is not None and self.is_open:
            self._channel.send_signal("TERM")

    # What asyncssh calls.

    def connection_made(self, channel: Any) -> None:
        """The channel is open on the server; the command is not yet asked for."""
        self._channel = channel
        channel.set_write_buffer_limits(high=SEND_AHEAD, low=SEND_AHEAD // 4)

    def session_started(self) -> None:
        """The server started the command."""

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Bytes of stdout, or of stderr when `datatype` is set."""
        if datatype is not None:
            self._stderr.append(data)
            self._stderr_size += len(data)
            while self._stderr_size - len(self._stderr[0]) >= self.stderr_limit:
                self._stderr_size -= len(self._stderr.popleft())
                self.stderr_truncated = True
            return
        if self._eof:
            return
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > READ_AHEAD and not self._paused and self._channel is not None:
            self._paused = True
            self._channel.pause_reading()
        self._wake_reader()

    def eof_received(self) -> bool:
        """No more output. Keeps our sending side open: the command may still read."""
        self._end_of_output()
        return True

    def exit_status_received(self, status: int) -> None:
        """The command ended by itself."""
        self.exit_status = status
        self._ended.set()

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """The command was ended by a signal."""
        self.signal = signal
        self._ended.set()

    def pause_writing(self) -> None:
        """Enough waits to be sent."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """There is room to send again."""
        self._writable.set()

    def xon_xoff_requested(self, client_can_do: bool) -> None:
        """Of terminals; no matter here."""

    def connection_lost(self, error: Exception | None) -> None:
        """The channel is closed on both sides, or the link died."""
        self._closed.set()
        self._ended.set()
        self._writable.set()
        self._end_of_output()
        self._released(self._given_up)

    def _end_of_output(self) -> None:
        self._eof = True
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)
