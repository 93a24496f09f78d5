"""Brings back what an execution made or changed on a host.

Its job: the client's half of the worker's `fetch` conversation (`agent/worker.py` tells the frames): read the host's
listing, decide what is wanted, check every content against its hash. Names and sizes come from a machine that may be
hostile, so nothing of them is trusted: `landing.py` writes, this file counts and refuses.

What comes back:

- without fetch rules: files the execution made, and sent files it changed;
- with fetch rules (`.fetchignore`, or another file): whatever they do not hide, sent files that are unchanged included;
  but an unchanged one never replaces a file that is here, which the person may have edited since;
- never: `.git` (refused by name); ignore files and our own, which would steer what is sent next time (left out).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from liborch.agent import frames
from liborch.errors import TransferError
from liborch.transfer.landing import Landing, Part, Refused, is_steering, why_not, why_not_link
from liborch.transfer.rules import Rules
from liborch.transfer.send import Progress, error_of
from liborch.transfer.stream import Stream

_T = TypeVar("_T")
_Name = bytes
#: Names kept of entries that were refused; more are only counted.
_NAMED = 1000
#: A file this small comes whole in one frame.
_SMALL = 128 << 10
_META = re.compile(rb"([fxldsu]) ([mcu]) (\d{1,19}) (-?\d{1,19})(?: (.*))?", re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """How much is let in at most; what goes beyond is refused by name."""

    #: Entries listed.
    entries: int = 2_000_000
    #: Bytes of all files together.
    total_bytes: int = 1 << 44
    #: Bytes of one file.
    file_bytes: int = 1 << 43


@dataclass
class FetchReport:
    """What a fetch did."""

    files: int = 0
    bytes: int = 0
    #: Links and empty folders that came.
    others: int = 0
    #: Files that were here already, from an earlier fetch that was interrupted.
    already: int = 0
    #: How many entries were not let in, or could not be read there or written here.
    refused_count: int = 0
    #: (path, why) of the first thousand of them.
    refused: list[tuple[str, str]] = field(default_factory=list)
    #: Entries that rules, or this program's own ones, kept from coming.
    left_out: int = 0

    def refuse(self, path: _Name, why: str) -> None:
        """Count one entry as refused."""
        self.refused_count += 1
        if len(self.refused) < _NAMED:
            self.refused.append((os.fsdecode(path), why))


async def fetch(
    stream: Stream,
    folder: str,
    target: Path,
    *,
    directory: str,
    fetch_ignore: Rules | None = None,
    sent: bool | None = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
    host: str = "the host",
) -> FetchReport:
    """Bring the results in a folder on a host to a folder of this machine.

    Args:
        stream: A conversation with a worker of that host; free for the next one afterwards.
        folder: Absolute path on the host.
        target: Where results go; made when absent.
        directory: The host's directory, which knows what was sent to the folder.
        fetch_ignore: Rules that hide entries; see `rules.fetch_rules`.
        sent: Whether files that were sent and are unchanged come, too (where no file here has their name);
            None: when there are `fetch_ignore` rules.
        limits: How much is let in.
        host: What the host is called in errors.

    Returns:
        FetchReport; entries that were refused are in it, they do not fail the fetch.

    Raises:
        TransferError: The link broke; retriable, fetching again continues. Or the host broke the protocol.
        StorageError: A file system refused as a whole (full, read-only, no permission on the target).

    Cancelled: whole files are in place, the rest is in a hidden folder of the target, from which the next fetch of the
    same folder continues. The stream is in the middle of the conversation: close it.
    """
    wants_sent = fetch_ignore is not None if sent is None else sent
    await stream.send({"t": "fetch", "directory": directory, "folder": folder, "sent": wants_sent})
    # One thread does all writing, in order; the loop stays free.
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as thread:
        fetching = _Fetching(
            stream, thread, f"{host}\0{folder}", target, fetch_ignore, limits or Limits(), host
        )
        return await fetching.run(progress)


class _Wanted:
    """One file of the listing that comes."""

    __slots__ = ("executable", "mtime_ns", "path", "size")

    def __init__(self, path: bytes, executable: bool, size: int, mtime_ns: int) -> None:
        self.path = path
        self.executable = executable
        self.size = size
        self.mtime_ns = mtime_ns


class _Fetching:
    def __init__(
        self,
        stream: Stream,
        thread: ThreadPoolExecutor,
        source: str,
        target: Path,
        rules: Rules | None,
        limits: Limits,
        host: str,
    ) -> None:
        self._stream = stream
        self._thread = thread
        self._source = source
        self._target = target
        self._rules = rules
        self._limits = limits
        self._host = host
        self._report = FetchReport()
        self._listed = 0
        self._wanted: dict[int, _Wanted] = {}
        self._seen: set[bytes] = set()
        self._links: list[tuple[bytes, bytes]] = []
        self._folders: list[bytes] = []
        self._part: tuple[int, Part] | None = None
        self._parts: dict[int, Part] = {}
        self._bytes = 0

    async def _blocking(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Run a call in the thread. Cancelled: waits for it to end first, so that nothing writes afterwards."""
        running = asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise

    async def run(self, progress: Progress | None) -> FetchReport:
        landing = await self._blocking(Landing, self._target, self._source)
        try:
            await self._receive_listing(landing)
            await self._ask(landing)
            await self._receive_files(landing, progress)
            await self._blocking(self._put_others, landing)
            await self._blocking(landing.finish)
        finally:
            for part in self._parts.values():
                part.close()
            landing.close()
        return self._report

    async def _receive(self) -> tuple[dict[str, Any], bytes]:
        head, body = await self._stream.receive()
        if head.get("t") == "error":
            raise error_of(head, self._host)
        return head, body

    def _broken(self, why: str) -> TransferError:
        return TransferError(f"{self._host}: the worker broke the protocol: {why}")

    async def _receive_listing(self, landing: Landing) -> None:
        while True:
            head, body = await self._receive()
            if head.get("t") != "list":
                raise self._broken(f"{head.get('t')!r} where a listing was expected")
            await self._blocking(self._judge_all, landing, body)
            if head.get("last"):
                return

    def _judge_all(self, landing: Landing, body: bytes) -> None:
        fields = body.split(b"\0")
        if len(fields) % 2 != 1 or fields[-1]:
            raise self._broken("a listing that is cut")
        for at in range(0, len(fields) - 1, 2):
            number = self._listed
            self._listed += 1
            self._judge(landing, number, fields[at], fields[at + 1])

    def _judge(self, landing: Landing, number: int, path: bytes, meta: bytes) -> None:
        """Decide about one entry of the listing."""
        report = self._report
        if number >= self._limits.entries:
            report.refuse(path, f"more than {self._limits.entries} entries")
            return
        match = _META.fullmatch(meta)
        why = why_not(path)
        if why is None and match is None:
            why = "a description that makes no sense"
        if why is not None:
            report.refuse(path, why)
            return
        assert match is not None
        kind, state = match[1], match[2]
        if is_steering(path):
            report.left_out += 1
            return
        if self._rules is not None:
            verdict = self._rules.decide(path, kind == b"d")
            if verdict is not None and verdict.ignored:
                report.left_out += 1
                return
        if kind == b"s":
            report.refuse(path, "a socket, pipe or device")
            return
        if kind == b"u":
            report.refuse(path, "a folder that cannot be read there")
            return
        if path in self._seen:
            report.refuse(path, "listed twice")
            return
        self._seen.add(path)
        if kind == b"d":
            if state == b"m":
                self._folders.append(path)
            return
        if state == b"u" and landing.exists(path):
            return
        if kind == b"l":
            target = match[5] or b""
            why = why_not_link(path, target)
            if why is not None:
                report.refuse(path, why)
            else:
                self._links.append((path, target))
            return
        size, mtime_ns = int(match[3]), int(match[4])
        if size > self._limits.file_bytes or self._bytes + size > self._limits.total_bytes:
            report.refuse(path, f"{size} bytes, more than is let in")
            return
        if landing.continued and landing.has(path, size, mtime_ns):
            report.already += 1
            return
        self._bytes += size
        self._wanted[number] = _Wanted(path, kind == b"x", size, mtime_ns)

    async def _ask(self, landing: Landing) -> None:
        parts: list[list[Any]] = []
        if landing.continued:
            for number, wanted in self._wanted.items():
                if wanted.size > _SMALL:
                    part = await self._blocking(landing.part, wanted.path)
                    if part.size:
                        parts.append([number, part.size, part.hash.hexdigest()])
                        self._parts[number] = part
                    else:
                        part.close()
        numbers = list(self._wanted)
        step = frames.CHUNK // 4
        for at in range(0, len(numbers) or 1, step):
            portion = numbers[at : at + step]
            last = at + step >= len(numbers)
            await self._stream.send(
                {"t": "wanted", "parts": parts if last else [], "last": last},
                struct.pack(f">{len(portion)}I", *portion),
            )

    async def _receive_files(self, landing: Landing, progress: Progress | None) -> None:
        total_files, total_bytes = len(self._wanted), self._bytes
        report = self._report
        while True:
            head, body = await self._receive()
            kind = head.get("t")
            try:
                if kind == "small":
                    await self._blocking(self._take_small, landing, head["k"], head["s"], body)
                elif kind == "large":
                    await self._blocking(self._take_large, landing, head, body)
                elif kind == "gone":
                    wanted = self._wanted.pop(head["k"])
                    report.refuse(wanted.path, f"could not be read there: {str(head.get('why'))[:200]}")
                elif kind == "done":
                    break
                else:
                    raise self._broken(f"{kind!r} where files were expected")
            except (KeyError, TypeError, ValueError) as error:
                raise self._broken(f"{kind!r} that makes no sense ({error!r})") from error
            if progress is not None:
                arrived = sum(part.size for part in self._parts.values())
                progress(report.bytes + arrived, total_bytes, report.files, total_files)
        for wanted in self._wanted.values():
            report.refuse(wanted.path, "did not come")

    def _take_small(self, landing: Landing, numbers: list[int], sizes: list[int], body: bytes) -> None:
        if (
            len(numbers) != len(sizes)
            or len(body) != 32 * len(numbers) + sum(sizes)
            or any(size < 0 for size in sizes)
        ):
            raise ValueError("sizes that do not add up")
        at = 32 * len(numbers)
        for place, (number, size) in enumerate(zip(numbers, sizes, strict=True)):
            wanted = self._wanted.pop(number)
            data = body[at : at + size]
            at += size
            if hashlib.sha256(data).digest() != body[32 * place : 32 * place + 32]:
                self._report.refuse(wanted.path, "its content is not what its hash says")
            elif self._grew(wanted, size):
                self._report.refuse(wanted.path, "grew beyond what is let in")
            else:
                try:
                    landing.put_file(wanted.path, data, wanted.executable, wanted.mtime_ns)
                except Refused as refused:
                    self._report.refuse(wanted.path, str(refused))
                else:
                    self._report.files += 1
                    self._report.bytes += size

    def _grew(self, wanted: _Wanted, size: int) -> bool:
        """Count what came beyond the listed size; whether it is too much."""
        if size > wanted.size:
            self._bytes += size - wanted.size
            wanted.size = size
        return size > self._limits.file_bytes or self._bytes > self._limits.total_bytes

    def _take_large(self, landing: Landing, head: dict[str, Any], body: bytes) -> None:
        number, at = int(head["k"]), int(head["at"])
        if number not in self._wanted:
            if number < self._listed:
                return  # refused on the way; the rest of it is let pass
            raise KeyError(number)
        wanted = self._wanted[number]
        part = self._parts.get(number)
        if part is None:
            part = self._parts[number] = landing.part(wanted.path)
            part.restart()
        if at == 0 and part.size:
            part.restart()
        if at != part.size:
            raise ValueError(f"a piece at {at}, expected at {part.size}")
        if self._grew(wanted, at + len(body)):
            self._drop(landing, number, "grew beyond what is let in")
            return
        if body:
            part.add(body)
        if not head.get("end"):
            return
        if part.hash.hexdigest() != head.get("sha"):
            self._drop(landing, number, "its content is not what its hash says")
            return
        try:
            landing.put_part(part, wanted.executable, wanted.mtime_ns)
        except Refused as refused:
            self._drop(landing, number, str(refused))
            return
        self._report.files += 1
        self._report.bytes += part.size
        part.close()
        del self._parts[number], self._wanted[number]

    def _drop(self, landing: Landing, number: int, why: str) -> None:
        wanted = self._wanted.pop(number)
        self._bytes -= wanted.size
        self._report.refuse(wanted.path, why)
        landing.drop_part(self._parts.pop(number))

    def _put_others(self, landing: Landing) -> None:
        """Links and empty folders go last: no file is ever written through a link that came."""
        for path in self._folders:
            self._put(path, landing.put_folder, path)
        for path, target in self._links:
            self._put(path, landing.put_link, path, target)

    def _put(self, path: bytes, call: Callable[..., None], *arguments: bytes) -> None:
        try:
            call(*arguments)
        except Refused as refused:
            self._report.refuse(path, str(refused))
        else:
            self._report.others += 1
