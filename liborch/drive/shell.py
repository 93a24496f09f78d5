"""Commands on a node that has only sh: how the fallback is brought there and called, and its answers read."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from liborch.drive.bootstrap import Pipe
from liborch.ssh import Pool

#: The longest line of the fallback, in bytes, and what a login may print before we speak.
MAX_LINE = 64 << 10
#: The most a node may list of one folder, in bytes.
MAX_LISTING = 1 << 29


class ShellPipe(Pipe, Protocol):
    """A pipe whose input can be ended; `liborch.ssh.Channel` is one."""

    def write_eof(self) -> None:
        """End the command's input."""


class Shell(Protocol):
    """Runs command lines on a node."""

    async def open(self, command: str) -> ShellPipe:
        """Start a command in the person's login shell. Raises as `Pool.open_channel`."""


class PoolShell:
    """A Shell over SSH."""

    def __init__(self, pool: Pool, ssh: str) -> None:
        self._pool = pool
        self._ssh = ssh

    async def open(self, command: str) -> ShellPipe:
        """See Shell."""
        return await self._pool.open_channel(self._ssh, command)


#: The files of `liborch/agent/fallback/` in the order in which they make one program.
_PARTS = ("ground", "run", "keeper", "recovery", "session", "files", "verbs")


@functools.cache
def fallback_script() -> tuple[str, bytes]:
    """Return (hash, text) of the program for nodes without python3: one file, its hash over the whole."""
    folder = Path(__file__).parent.parent / "agent" / "fallback"
    data = b"\n".join((folder / f"{name}.sh").read_bytes() for name in _PARTS)
    return hashlib.sha256(data).hexdigest()[:16], data


def command(arguments: str) -> str:
    """Return the command line that runs a verb of the fallback that is on the node already. Any login shell reads it the same."""
    file = f"${{XDG_CACHE_HOME:-$HOME/.cache}}/orchestra/fallback-{fallback_script()[0]}.sh"
    return f"exec /bin/sh -c 'exec sh \"{file}\" {arguments}'"


def session_command(marker: str) -> str:
    """Return the command line that brings the fallback to the node, where it is missing, and starts a session."""
    name = f"fallback-{fallback_script()[0]}.sh"
    script = (
        f'd="${{XDG_CACHE_HOME:-$HOME/.cache}}/orchestra"; f="$d/{name}"; t="$f.$(uname -n).$$"; '
        f'if [ -f "$f" ]; then echo {marker}have; else mkdir -p "$d" || {{ echo {marker}nowrite; exit 0; }}; '
        # What was brought before and came to nothing; a new one may be on its way to a node that shares this home.
        f'find "$d"/.agent-*.* "$d"/fallback-*.sh.* -mtime +1 -exec rm -f {{}} + 2>/dev/null; '
        f"echo {marker}need; "
        # Not cat, head or dd: only read leaves alone what follows. Without its last line it did not come whole.
        f'{{ while IFS= read -r l; do [ "$l" = {marker} ] && break; printf %s "$l"; echo; done; '
        f'[ "$l" = {marker} ]; }} >"$t" && mv "$t" "$f" || {{ rm -f "$t"; echo {marker}nowrite; exit 0; }}; fi; exec sh "$f" session'
    )
    return f"exec /bin/sh -c '{script}'"


class Reader:
    """Reads lines and counted bytes from a script's output."""

    def __init__(self, pipe: ShellPipe) -> None:
        self.pipe = pipe
        self._buffer = bytearray()

    async def _more(self) -> None:
        data = await self.pipe.read(1 << 18)
        if not data:
            tail = self.pipe.stderr_tail().decode("utf-8", "replace").strip().splitlines()
            raise ConnectionResetError(tail[-1] if tail else "the connection was closed")
        self._buffer += data

    async def line(self) -> bytes:
        """Return the next line, without its end. Raises OSError."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > 1 << 16:
                raise ValueError("an endless line")
            await self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def exactly(self, count: int) -> bytes:
        """Return so many bytes. Raises OSError."""
        if count > MAX_LISTING:
            raise ValueError(f"{count} bytes at once")
        while len(self._buffer) < count:
            await self._more()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def sized(self) -> bytes:
        """Return what `show` of the fallback printed."""
        return await self.exactly(int(await self.line()))

    async def rest(self, host: str) -> bytes:
        """Return everything up to the end. Raises OSError when the link broke before it."""
        while data := await self.pipe.read(1 << 18):
            self._buffer += data
            if len(self._buffer) > MAX_LISTING:
                raise ValueError(f"more than {MAX_LISTING} bytes")
        if await self.pipe.wait() is None:
            raise ConnectionResetError(f"{host}: the connection was closed")
        return bytes(self._buffer)


@contextlib.asynccontextmanager
async def opened(pipe: ShellPipe) -> AsyncIterator[Reader]:
    try:
        yield Reader(pipe)
    finally:
        pipe.close()


def quoted(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise ValueError("a NUL byte in a path")
    return b"'" + raw.replace(b"'", b"'\\''") + b"'"


def as_text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
