"""Trees of files for the tests: making them, and telling what is in one."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from liborch.errors import TransferError
from liborch.transfer.stream import FrameStream

#: What a tree is made of: content of a file, ("x", content) of an executable one, ("l", target) of a link, None for an
#: empty folder.
Thing = bytes | tuple[str, bytes] | None


def grow(folder: Path, things: Mapping[bytes | str, Thing]) -> Path:
    """Make a tree."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, thing in things.items():
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if thing is None:
            os.makedirs(path, exist_ok=True)
        elif isinstance(thing, tuple) and thing[0] == "l":
            os.symlink(thing[1], path)
        else:
            data = thing if isinstance(thing, bytes) else thing[1]
            with open(path, "wb") as file:
                file.write(data)
            if isinstance(thing, tuple):
                os.chmod(path, 0o755)
    return folder


def picture(folder: Path) -> dict[bytes, Thing]:
    """Return what is in a tree, in the form `grow` takes; folders that are not empty are implied."""
    root = os.fsencode(folder)
    found: dict[bytes, Thing] = {}
    for inside, folders, files in os.walk(root):
        prefix = os.path.relpath(inside, root)
        for name in (*folders, *files):
            path = name if prefix == b"." else prefix + b"/" + name
            full = os.path.join(inside, name)
            status = os.lstat(full)
            if stat.S_ISLNK(status.st_mode):
                found[path] = ("l", os.readlink(full))
            elif stat.S_ISDIR(status.st_mode):
                if not os.listdir(full):
                    found[path] = None
            else:
                with open(full, "rb") as file:
                    data = file.read()
                found[path] = ("x", data) if status.st_mode & 0o100 else data
    return found


def fingerprint(folder: Path) -> dict[bytes, tuple[int, int, int, int]]:
    """Return inode, size, mode and modification time of everything in a tree, to see that none of it was touched."""
    root = os.fsencode(folder)
    found: dict[bytes, tuple[int, int, int, int]] = {}
    for inside, folders, files in os.walk(root):
        for name in (*folders, *files):
            full = os.path.join(inside, name)
            status = os.lstat(full)
            when = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
            found[full] = (
                status.st_ino,
                0 if stat.S_ISDIR(status.st_mode) else status.st_size,
                status.st_mode,
                when,
            )
    return found


class Counting:
    """A stream that counts the file bytes sent through it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.file_bytes = 0
        self.heads: list[dict[str, Any]] = []

    async def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        self.heads.append(head)
        if head["t"] in ("small", "large"):
            self.file_bytes += len(body)
        await self.stream.send(head, body)

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        answer: tuple[dict[str, Any], bytes] = await self.stream.receive()
        return answer

    async def close(self) -> None:
        await self.stream.close()


class Dying:
    """A stream whose link breaks for good after some frames in either direction."""

    def __init__(self, stream: FrameStream, frames: int) -> None:
        self.stream = stream
        self.left = frames

    def _count(self) -> None:
        if self.left <= 0:
            self.stream.lose("cut by the test")
            raise TransferError("the transfer was interrupted: cut by the test", retriable=True)
        self.left -= 1

    async def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        self._count()
        await self.stream.send(head, body)

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        self._count()
        return await self.stream.receive()

    async def close(self) -> None:
        await self.stream.close()


class Scripted:
    """A stream whose other side says what the test wrote down: a node that lies."""

    def __init__(self, *answers: tuple[dict[str, Any], bytes]) -> None:
        self.answers = list(answers)
        self.sent: list[tuple[dict[str, Any], bytes]] = []

    async def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        self.sent.append((head, body))
        await asyncio.sleep(0)

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        await asyncio.sleep(0)
        return self.answers.pop(0)

    async def close(self) -> None:
        pass
