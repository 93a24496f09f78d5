"""Where `runaway logs` finds output: here (record, outputs/ID), at the client that drives, or on the node itself.

Of a batch it is what its driver says in the background.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from typing import Any

from liborch.drive.ask import ask
from liborch.errors import SpecError
from liborch.journal import ExecutionRow, OrchestrationRow
from runaway.background import log_path
from runaway.outputs import Write, pass_on, to_descriptors, watch
from runaway.records import FINAL, SCHEMA_VERSION, Records


def print_logs(text: str, *, follow: bool, only: str | None, tail: int | None, as_json: bool) -> int:
    """Print an execution's output, or what a batch said in the background; returns the exit status. Raises OrchestraError."""
    records = Records()
    row = records.find_any(text)
    if isinstance(row, OrchestrationRow):
        return _print_background(records, row, follow=follow, tail=tail)
    offsets = {"out": 0, "err": 0}
    write = _json_lines(only) if as_json else to_descriptors(only=only, neutral=True)
    tailing = Tail(tail, write) if tail is not None else None
    out = tailing.write if tailing is not None else write
    try:
        if row.state in FINAL:
            pass_on(records, row, out, offsets)
        else:
            _print_live(records, row, out, offsets, follow=follow, tailing=tailing)
    except KeyboardInterrupt:
        return 130
    if tailing is not None:
        tailing.flush()
    sys.stdout.flush()
    return 0


def _print_background(records: Records, batch: OrchestrationRow, *, follow: bool, tail: int | None) -> int:
    short = batch.id[:8]
    path = log_path(records.folders.state, batch.id)
    if follow or not path.exists():
        why = "is a batch" if follow else "is a batch that was never in the background"
        raise SpecError(
            f"{short} {why}: `runaway attach --follow {short}` prints what its executions write, `runaway ps --batch {short} --all` names "
            "them; what one has written is in `stdout` and `stderr` of its output folder, or `runaway logs` of its own id"
        )
    text = path.read_text(errors="backslashreplace")
    lines = text.splitlines(keepends=True)
    sys.stdout.write("".join(lines[len(lines) - tail :] if tail is not None and tail < len(lines) else lines))
    sys.stdout.flush()
    return 0


def _print_live(
    records: Records,
    row: ExecutionRow,
    write: Write,
    offsets: dict[str, int],
    *,
    follow: bool,
    tailing: Tail | None,
) -> None:
    collected = records.output_folder(row.id).exists()
    if follow or not collected:
        asked = (
            ask(records.folders.state, row.orchestration, {"do": "follow", "id": row.id}) if follow else None
        )
        if asked is None and not (collected and _is_driven(records, row)):
            pass_on(records, row, write, offsets)
            _from_node(records, row, write, offsets, wait=follow)
            return
    pass_on(records, row, write, offsets)
    if follow:
        if tailing is not None:
            tailing.flush()
        row = watch(records, row, write, offsets)
        if row.state not in FINAL:
            _from_node(records, row, write, offsets, wait=True)


def _is_driven(records: Records, row: ExecutionRow) -> bool:
    from liborch.drive.ask import is_driven

    return is_driven(records.folders.state, row.orchestration)


def _from_node(
    records: Records, row: ExecutionRow, write: Write, offsets: dict[str, int], *, wait: bool
) -> None:
    """Read on where nobody collects it: on the node."""
    if row.node is None:
        return  # It has not been anywhere.
    import asyncio

    from liborch.drive.adopt import read_left, target_of
    from liborch.drive.peek import linked, read_output
    from runaway.patience import asking, said_if_slow

    left = read_left(records.folders, row.orchestration, events=False)
    target = target_of(left, row.node)

    async def read() -> None:
        async with contextlib.AsyncExitStack() as stack:
            with said_if_slow(asking([target.name])):
                link = await stack.enter_async_context(linked(target, left.places(records.folders)))
            await read_output(link, row.orchestration, row.id, row.attempt or 1, offsets, write, wait=wait)

    asyncio.run(read())


def _json_lines(only: str | None) -> Write:
    offsets = {"out": 0, "err": 0}

    def write(name: str, data: bytes) -> None:
        at = offsets[name]
        offsets[name] += len(data)
        if only is not None and name != only:
            return
        line: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "stream": "stdout" if name == "out" else "stderr",
            "at": at,
            "text": data.decode("utf-8", "backslashreplace"),
        }
        try:
            data.decode()
        except UnicodeDecodeError:
            line["base64"] = base64.b64encode(data).decode()
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    return write


class Tail:
    """Keeps the last lines of each stream; after `flush` everything passes."""

    #: Lines longer than this are kept in part, in bytes for all of them.
    MOST_BYTES = 64 << 20

    def __init__(self, lines: int, write: Write) -> None:
        self._lines = lines
        self._write = write
        self._kept = {"out": b"", "err": b""}
        self._open = False

    def write(self, name: str, data: bytes) -> None:
        """Take in a piece."""
        if self._open:
            self._write(name, data)
            return
        kept = self._kept[name] + data
        # A final newline ends the last line, it does not begin another.
        parts = kept.split(b"\n")
        extra = 1 if kept.endswith(b"\n") else 0
        wanted = self._lines + extra
        self._kept[name] = (b"\n".join(parts[-wanted:]) if wanted and self._lines else b"")[
            -self.MOST_BYTES :
        ]

    def flush(self) -> None:
        """Write what was kept, and from now on everything."""
        if not self._open:
            self._open = True
            for name, data in self._kept.items():
                if data:
                    self._write(name, data)
