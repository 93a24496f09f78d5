"""Puts a tree onto a node that has only sh: as one tar stream, or file by file where there is no tar either."""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Awaitable, Callable

from liborch.drive.shell import ShellPipe, as_text, quoted


class Refused(Exception):
    """The node or the request does not allow it, in words."""


class TarWriter:
    """Writes a tree as a tar stream."""

    def __init__(self, pipe: ShellPipe) -> None:
        self._pipe = pipe
        self._pad = 0
        self._left = 0

    async def file(self, path: bytes, kind: str, size: int) -> None:
        """Begin a file; its data follow."""
        info = tarfile.TarInfo("./" + as_text(path))
        info.size = size
        info.mode = 0o755 if kind == "x" else 0o644
        await self._header(info)
        self._left, self._pad = size, -size % 512
        if size == 0:
            await self.data(b"")

    async def data(self, data: bytes) -> None:
        """Go on with the file."""
        self._left -= len(data)
        await self._pipe.write(data + b"\0" * self._pad if self._left <= 0 else data)

    async def link(self, path: bytes, target: bytes) -> None:
        """A symbolic link."""
        info = tarfile.TarInfo("./" + as_text(path))
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, as_text(target), 0o777
        await self._header(info)

    async def folder(self, path: bytes) -> None:
        """An empty folder."""
        info = tarfile.TarInfo("./" + as_text(path))
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        await self._header(info)

    async def _header(self, info: tarfile.TarInfo) -> None:
        # The one form that GNU tar and busybox both read with names of any length and any bytes.
        await self._pipe.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))

    async def end(self) -> None:
        """Nothing follows."""
        await self._pipe.write(bytes(1024 * 10))
        self._pipe.write_eof()


class FileWriter:
    """Writes a tree file by file, where the node has no tar."""

    def __init__(self, run: Callable[[bytes, bytes], Awaitable[bytes]], folder: str) -> None:
        self._run = run
        self._folder = folder
        self._left = 0
        self._script = b""
        self._data = io.BytesIO()

    async def file(self, path: bytes, kind: str, size: int) -> None:
        """Begin a file; its data follow."""
        where = quoted(b"./" + path)
        self._left = size
        self._script = b"mkdir -p %b && cat >%b" % (quoted(b"./" + posixpath.dirname(path)), where)
        if kind == "x":
            self._script += b" && chmod +x " + where
        self._data = io.BytesIO()
        if size == 0:
            await self.data(b"")

    async def data(self, data: bytes) -> None:
        """Go on with the file: a piece at a time, so that a large one is never held whole."""
        self._left -= len(data)
        self._data.write(data)
        if self._left > 0 and self._data.tell() < 8 << 20:
            return
        await self._do(self._script, self._data.getvalue())
        self._script = self._script.replace(b"cat >", b"cat >>")
        self._data = io.BytesIO()

    async def link(self, path: bytes, target: bytes) -> None:
        """A symbolic link."""
        await self._do(
            b"mkdir -p %b && ln -s %b %b"
            % (quoted(b"./" + posixpath.dirname(path)), quoted(target), quoted(b"./" + path)),
            b"",
        )

    async def folder(self, path: bytes) -> None:
        """An empty folder."""
        await self._do(b"mkdir -p %b" % quoted(b"./" + path), b"")

    async def end(self) -> None:
        """Nothing follows."""

    async def _do(self, script: bytes, data: bytes) -> None:
        told = await self._run(b"cd %b && %b && echo done" % (quoted(self._folder), script), data)
        if told != b"done\n":
            raise Refused(f"a file could not be written on the node: {told[-200:]!r}")
