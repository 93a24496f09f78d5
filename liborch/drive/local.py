"""The agent of this machine: the same program, started over a local pipe instead of a channel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from liborch.agent.pack import agent_hash


class LocalPipe:
    """A relay of this machine as a subprocess."""

    def __init__(
        self, process: asyncio.subprocess.Process, last_word: signal.Signals = signal.SIGKILL
    ) -> None:
        self._process = process
        self._last_word = last_word
        self._stderr = b""
        self._reader = asyncio.ensure_future(self._read_stderr())

    async def _read_stderr(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        while data := await stream.read(65536):
            self._stderr = (self._stderr + data)[-65536:]

    @property
    def is_open(self) -> bool:
        """Whether the process still runs."""
        return self._process.returncode is None

    async def read(self, max_bytes: int = 1 << 18) -> bytes:
        stream = self._process.stdout
        assert stream is not None
        return await stream.read(max_bytes)

    async def write(self, data: bytes) -> None:
        stream = self._process.stdin
        assert stream is not None
        stream.write(data)
        await stream.drain()

    def write_eof(self) -> None:
        """End its input."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(self._last_word)
        # Left to the collector, the pipes would outlive the event loop, which then complains.
        for pipe in self._process._transport._pipes.values():  # type: ignore[attr-defined]
            if pipe is not None:
                pipe.pipe.close()
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


async def open_local_command(line: str) -> LocalPipe:
    """Run a command line that leads to another machine: this one is its frontend."""
    return await LocalShell(os.environ).open(line)


class LocalShell:
    """A Shell of this machine, as `liborch.drive.shell_link` needs one. `env`: all that its login would have set."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = dict(env)
        self._pipes: list[LocalPipe] = []

    async def close(self) -> None:
        """Wait for what was closed; nothing of it is left in the event loop afterwards."""
        for pipe in self._pipes:
            pipe.close()
            await pipe.wait()

    async def open(self, command: str) -> LocalPipe:
        """Run a command line in the `sh` that is on the PATH."""
        sh = shutil.which("sh", path=self._env.get("PATH")) or "/bin/sh"
        process = await asyncio.create_subprocess_exec(
            sh,
            "-c",
            command.replace("/bin/sh", sh, 1),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
            start_new_session=True,
            env=self._env,
        )
        self._pipes = [pipe for pipe in self._pipes if pipe.is_open]
        # It has helpers of its own to end.
        self._pipes.append(LocalPipe(process, signal.SIGTERM))
        return self._pipes[-1]
