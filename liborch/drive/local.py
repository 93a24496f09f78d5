"""The agent of this machine: the same program, started over a local pipe instead of a channel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from liborch.agent.pack import agent_hash


class LocalPipe:
    """A relay of this machine as a subprocess."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._stderr = b""
        self._reader = asyncio.ensure_future(self._read_stderr())

    async def _read_stderr(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        while data := await stream.read(65536):
            self._stderr = (self._stderr + data)[-65536:]

    async def read(self, max_bytes: int = 1 << 18) -> bytes:
        stream = self._process.stdout
        assert stream is not None
        return await stream.read(max_bytes)

    async def write(self, data: bytes) -> None:
        stream = self._process.stdin
        assert stream is not None
        stream.write(data)
        await stream.drain()

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._reader.cancel()

    def stderr_tail(self) -> bytes:
        return self._stderr

    async def wait(self) -> int | None:
        return await self._process.wait()


async def open_local_pipe() -> LocalPipe:
    """Start a relay. It talks frames from its first byte: there is no login to get through."""
    entry = Path(__file__).parent.parent / "agent" / "entry.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        str(entry),
        agent_hash(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
        start_new_session=True,
        env=dict(os.environ),
    )
    return LocalPipe(process)
