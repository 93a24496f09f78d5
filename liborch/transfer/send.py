"""Brings a snapshot to a folder on a host, and takes away again what was made there.

Its job: the client's half of the worker's `send` and `clean` conversations (`agent/worker.py` tells the frames). The
worker says which contents it lacks; only those go over, many small ones to a frame, large ones in pieces, without a
round trip per file. What arrived before a break stays on the host and is not sent again.

What happens in a folder that exists already: only files that differ are written. A file that was there before and has
the name of one that is sent is moved aside (never deleted): `SendReport.displaced` says where it lies, and `clean` with
leave="nothing" puts it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from typing import Any

from liborch.agent import frames
from liborch.errors import StorageError, TransferError
from liborch.specs import Leave
from liborch.transfer.snapshot import SMALL_BYTES, Entry, Snapshot
from liborch.transfer.stream import Stream

#: Called with (done_bytes, total_bytes, done_files, total_files); the totals count what has to travel.
Progress = Callable[[int, int, int, int], None]
#: Bytes read from files in one go.
_READ_AHEAD = 1 << 20
#: Head and body of a frame, and how many contents are complete with it.
_Piece = tuple[dict[str, Any], bytes, int]


@dataclass(frozen=True)
class SendReport:
    """What sending did."""

    #: Files and bytes in the snapshot.
    files: int
    bytes: int
    #: Contents and bytes that had to travel; what the host had already is not counted.
    sent_files: int
    sent_bytes: int
    #: Files, links and empty folders written in the folder; the others were as they should be.
    written: int
    #: Whether the folder was made by this.
    fresh: bool
    #: (path, where it lies now) of what had the name of a file that was sent.
    displaced: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class CleanReport:
    """What cleaning did."""

    #: Entries removed.
    removed: int
    #: Files that were there before, back in their place.
    restored: tuple[str, ...] = ()
    #: (path, where it lies) of files whose place was taken when they should have returned.
    kept: tuple[tuple[str, str], ...] = ()


async def send(
    stream: Stream,
    snapshot: Snapshot,
    folder: str,
    *,
    directory: str,
    progress: Progress | None = None,
    sole: bool = False,
    host: str = "the host",
) -> SendReport:
    """Bring a folder on a host to the state of a snapshot.

    Args:
        stream: A conversation with a worker of that host; free for the next one afterwards.
        folder: Absolute path on the host; made when absent.
        directory: The host's directory, absolute; the store lies in its `.orchestra`.
        sole: No other folder will need this snapshot: large files are moved into place, not copied.
        host: What the host is called in errors.

    Returns:
        SendReport. Sending the same again is cheap and changes nothing.

    Raises:
        TransferError: The link broke (retriable; sending again continues), or a file changed since the snapshot was
            taken (`path` names it; retriable with a new snapshot).
        StorageError: The host's or this machine's file system refused.

    Cancelled: contents that arrived stay in the host's store; the folder either is not there, or holds whole files
    only. The stream is in the middle of the conversation: close it.
    """
    await stream.send(
        {"t": "send", "directory": directory, "folder": folder, "snapshot": snapshot.id, "sole": sole}
    )
    sending = _Sending(stream, snapshot, progress, host)
    head, body = await _receive(stream, host)
    if head["t"] == "want":
        for at in range(0, len(snapshot.manifest) or 1, frames.CHUNK):
            piece = snapshot.manifest[at : at + frames.CHUNK]
            await stream.send({"t": "manifest", "last": at + frames.CHUNK >= len(snapshot.manifest)}, piece)
        head, body = await _receive(stream, host)
    while head["t"] == "missing":
        wanted = list(_numbers(body))
        parts = {int(k): int(offset) for k, offset in head["parts"]}
        while not head["last"]:
            head, body = await _receive(stream, host)
            wanted += _numbers(body)
            parts.update({int(k): int(offset) for k, offset in head["parts"]})
        head, body = await sending.run(wanted, parts)
    if head["t"] != "done":
        raise _unexpected(head, host)
    return SendReport(
        snapshot.files,
        snapshot.total_bytes,
        sending.sent_files,
        sending.sent_bytes,
        int(head["written"]),
        bool(head["fresh"]),
        tuple((str(path), str(at)) for path, at in head["displaced"]),
    )


async def clean(
    stream: Stream,
    folder: str,
    *,
    directory: str,
    leave: Leave,
    keep_store: bool = False,
    host: str = "the host",
) -> CleanReport:
    """Take away from a host what was made in a folder.

    "nothing": the folder when we made it, else what we and the execution put into it; contents no other folder needs;
    with the last folder the store, too. "code": what the execution made goes, what it changed is as sent again.
    "everything": nothing goes. Files that were there before us survive all three, changed by the execution or not.

    Args:
        keep_store: Contents stay although no folder needs them now: more executions of that code are waiting.

    Raises:
        TransferError: The link broke; retriable, cleaning again continues.
        StorageError: The host's file system refused.

    Cancelled: the worker finishes what it began.
    """
    await stream.send(
        {"t": "clean", "directory": directory, "folder": folder, "leave": leave, "keep_store": keep_store}
    )
    head, _ = await _receive(stream, host)
    if head["t"] != "done":
        raise _unexpected(head, host)
    return CleanReport(
        int(head["removed"]),
        tuple(str(path) for path in head["restored"]),
        tuple((str(path), str(at)) for path, at in head["kept"]),
    )


async def _receive(stream: Stream, host: str) -> tuple[dict[str, Any], bytes]:
    head, body = await stream.receive()
    if head.get("t") == "error":
        raise error_of(head, host)
    return head, body


def error_of(head: dict[str, Any], host: str) -> TransferError | StorageError:
    """Return the error that a worker reports."""
    kind = head.get("kind")
    if kind == "storage":
        return StorageError(host, str(head.get("path")), int(head.get("errno") or 0), str(head.get("doing")))
    if kind == "changed":
        paths = [str(path) for path in head.get("paths", ())]
        return _changed(paths)
    return TransferError(f"{host}: {head.get('why')}")


def _changed(paths: list[str]) -> TransferError:
    others = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
    return TransferError(
        f"changed after the snapshot was taken{others}; nothing was started with it: submit again",
        path=paths[0],
        retriable=True,
    )


def _unexpected(head: dict[str, Any], host: str) -> TransferError:
    return TransferError(f"{host}: the worker answered {head.get('t')!r}, which makes no sense here")


def _numbers(body: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{len(body) // 4}I", body)


class _Sending:
    """Reads what is missing and sends it, reading ahead while a frame is under way."""

    def __init__(self, stream: Stream, snapshot: Snapshot, progress: Progress | None, host: str) -> None:
        self._stream = stream
        self._snapshot = snapshot
        self._progress = progress
        self._host = host
        self._root = os.fsencode(snapshot.folder)
        #: Contents in the order in which the worker numbers them: by first appearance.
        first: dict[bytes, Entry] = {}
        for entry in snapshot.entries:
            if entry.kind in "fx":
                first.setdefault(entry.digest, entry)
        self._contents = list(first.values())
        self.sent_files = 0
        self.sent_bytes = 0

    async def run(self, wanted: list[int], parts: dict[int, int]) -> tuple[dict[str, Any], bytes]:
        """Send contents; return the worker's next frame."""
        if any(not 0 <= k < len(self._contents) for k in wanted):
            raise TransferError(f"{self._host}: the worker asks for files that are not in the snapshot")
        total_bytes = self.sent_bytes + sum(self._contents[k].size - parts.get(k, 0) for k in wanted)
        total_files = self.sent_files + len(wanted)
        # The worker answers early only when something is wrong: then there is no use in sending on.
        answer = asyncio.ensure_future(self._stream.receive())
        try:
            async with contextlib.aclosing(_ahead(_grouped(self._pieces(wanted, parts)))) as groups:
                async for group in groups:
                    for head, body, files in group:
                        if not answer.done():
                            await self._stream.send(head, body)
                            self.sent_files += files
                            self.sent_bytes += len(body)
                    if answer.done():
                        break
                    if self._progress is not None:
                        self._progress(self.sent_bytes, total_bytes, self.sent_files, total_files)
            await self._stream.send({"t": "sent"})
            head, body = await answer
        finally:
            answer.cancel()
            with contextlib.suppress(asyncio.CancelledError, TransferError):
                await asyncio.gather(answer, return_exceptions=True)
        if head.get("t") == "error":
            raise error_of(head, self._host)
        return head, body

    def _pieces(self, wanted: list[int], parts: dict[int, int]) -> Generator[_Piece, None, None]:
        """Yield (head, body, contents completed) of the frames to send. Reads files: for a thread."""
        which: list[int] = []
        sizes: list[int] = []
        data: list[bytes] = []
        pending = 0
        for k in wanted:
            entry = self._contents[k]
            if entry.size > SMALL_BYTES:
                continue
            content = self._snapshot.kept.get(entry.digest)
            if content is None:
                content = self._read(entry)
            which.append(k)
            sizes.append(len(content))
            data.append(content)
            pending += len(content)
            if pending >= frames.CHUNK or len(which) >= 1024:
                yield {"t": "small", "k": which, "s": sizes}, b"".join(data), len(which)
                which, sizes, data, pending = [], [], [], 0
        if which:
            yield {"t": "small", "k": which, "s": sizes}, b"".join(data), len(which)
        for k in wanted:
            entry = self._contents[k]
            if entry.size > SMALL_BYTES:
                yield from self._read_large(k, entry, parts.get(k, 0))

    def _open(self, entry: Entry) -> int:
        path = os.path.join(self._root, entry.path)
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise _changed([entry.name]) from error
        except OSError as error:
            raise StorageError(
                "this machine", os.fsdecode(path), error.errno or 0, "reading what is sent"
            ) from error

    def _read(self, entry: Entry) -> bytes:
        descriptor = self._open(entry)
        try:
            content = os.read(descriptor, entry.size + 1)
        except OSError as error:
            raise StorageError(
                "this machine", entry.name, error.errno or 0, "reading what is sent"
            ) from error
        finally:
            os.close(descriptor)
        if len(content) != entry.size:
            raise _changed([entry.name])
        return content

    def _read_large(self, k: int, entry: Entry, at: int) -> Generator[_Piece, None, None]:
        descriptor = self._open(entry)
        try:
            while at < entry.size:
                piece = os.pread(descriptor, min(frames.CHUNK, entry.size - at), at)
                if not piece:
                    raise _changed([entry.name])
                yield {"t": "large", "k": k, "at": at}, piece, int(at + len(piece) == entry.size)
                at += len(piece)
        except OSError as error:
            raise StorageError(
                "this machine", entry.name, error.errno or 0, "reading what is sent"
            ) from error
        finally:
            os.close(descriptor)


def _grouped(pieces: Generator[_Piece, None, None]) -> Generator[list[_Piece], None, None]:
    """Several pieces at a time: a change of threads costs as much as reading one."""
    with contextlib.closing(pieces):
        group: list[_Piece] = []
        pending = 0
        for piece in pieces:
            group.append(piece)
            pending += len(piece[1])
            if pending >= _READ_AHEAD:
                yield group
                group, pending = [], 0
        if group:
            yield group


async def _ahead(groups: Generator[list[_Piece], None, None]) -> AsyncGenerator[list[_Piece], None]:
    """Yield from a blocking iterator that runs in a thread, one step ahead of who consumes it."""
    loop = asyncio.get_running_loop()
    coming = loop.run_in_executor(None, next, groups, None)
    try:
        while (group := await asyncio.shield(coming)) is not None:
            coming = loop.run_in_executor(None, next, groups, None)
            yield group
    finally:
        # The thread cannot be interrupted, but it is done after one step; only then may the file be closed.
        try:
            await asyncio.wait([coming])
        finally:
            if coming.done():
                coming.exception()  # looked at, whatever it was: what ended this matters more
                groups.close()
