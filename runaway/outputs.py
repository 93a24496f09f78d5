"""An execution's output on this machine: in its record where it is small, in outputs/ID where it is large or still growing."""

from __future__ import annotations

import codecs
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from liborch.drive.ask import is_driven
from liborch.journal import ExecutionRow
from runaway.records import FINAL, Records, detail_of

#: Given "out" or "err" and bytes, in order.
Write = Callable[[str, bytes], None]

FILES = {"out": "stdout", "err": "stderr"}
#: How often a growing output and the verdict are looked at, in seconds: at first, and at most.
LOOK_S = 0.02
LOOK_MOST_S = 0.25
#: How often it is asked whether anybody still drives it, in seconds.
ASK_S = 1.0
_CHUNK = 1 << 20
#: Colours and bold type may pass; everything else that steers a terminal is shown instead.
_HARMLESS = re.compile(r"\x1b\[[0-9;:]*m")
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;:]{0,40})?\Z")


def pass_on(records: Records, row: ExecutionRow, write: Write, offsets: dict[str, int]) -> None:
    """Give what there is beyond `offsets` to `write`, and move them."""
    detail = detail_of(row) if row.state in FINAL else {}
    folder = records.output_folder(row.id)
    for name, file in FILES.items():
        inline = str(detail.get(name, "")).encode("latin-1")
        if offsets[name] < len(inline):
            write(name, inline[offsets[name] :])
            offsets[name] = len(inline)
        for data in _read(folder / file, offsets[name]):
            write(name, data)
            offsets[name] += len(data)


def _read(path: Path, at: int) -> Iterator[bytes]:
    """A file from a place on, piece by piece; nothing when it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        while data := os.pread(fd, _CHUNK, at):
            yield data
            at += len(data)
    finally:
        os.close(fd)


def watch(
    records: Records,
    row: ExecutionRow,
    write: Write | None,
    offsets: dict[str, int],
    *,
    until: float | None = None,
) -> ExecutionRow:
    """Pass an execution's output on while another client drives it; return its row when it is final, when nobody drives it any more,
    or at `until` (monotonic seconds)."""
    pause = LOOK_S
    asked_at = time.monotonic()
    while True:
        before = dict(offsets)
        row = records.again(row)
        if write is not None:
            pass_on(records, row, write, offsets)
        now = time.monotonic()
        if row.state in FINAL or (until is not None and now >= until):
            return row
        if now - asked_at >= ASK_S:
            asked_at = now
            if not is_driven(records.folders.state, row.orchestration):
                return records.again(row)
        pause = LOOK_S if offsets != before else min(LOOK_MOST_S, pause * 1.5)
        time.sleep(pause)


def stored_bytes(records: Records, row: ExecutionRow, name: str, limit: int) -> bytes:
    """The first `limit` bytes of what is here of a stream."""
    inline = str(detail_of(row).get(name, "")).encode("latin-1") if row.state in FINAL else b""
    try:
        with (records.output_folder(row.id) / FILES[name]).open("rb") as file:
            return max(file.read(limit), inline[:limit], key=len)
    except OSError:
        return inline[:limit]


def to_descriptors(*, only: str | None = None, neutral: bool = False) -> Write:
    """Write to stdout and stderr.

    Args:
        only: "out" or "err": that one alone, on stdout, since it is what was asked for.
        neutral: Where it is a terminal, nothing in the output may steer it.
    """
    filters = {name: Neutral() for name, fd in (("out", 1), ("err", 2)) if neutral and os.isatty(fd)}

    def write(name: str, data: bytes) -> None:
        if only is not None and name != only:
            return
        if name in filters:
            data = filters[name].feed(data)
        view = memoryview(data)
        while view:
            view = view[os.write(1 if name == "out" or only == "err" else 2, view) :]

    return write


class Neutral:
    """Bytes from elsewhere, made safe for a terminal, piece by piece."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""

    def feed(self, data: bytes) -> bytes:
        """Return what can be shown now."""
        text = self._held + self._decoder.decode(data)
        unfinished = _UNFINISHED.search(text)
        self._held = unfinished.group() if unfinished else ""
        text = text[: len(text) - len(self._held)]
        parts = []
        at = 0
        for found in _HARMLESS.finditer(text):
            parts += [_shown(text[at : found.start()]), found.group()]
            at = found.end()
        parts.append(_shown(text[at:]))
        return "".join(parts).encode("utf-8", "backslashreplace")


def _shown(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t\r" else c.encode("unicode_escape").decode() for c in text
    )
