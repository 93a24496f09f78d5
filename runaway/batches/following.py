"""`--follow`: the output of every execution of a batch while it is written, line by line, each with the short id before it.

Lines stay whole, whoever else writes at the same time; those of stdout go to stdout, those of stderr to stderr. What steers a terminal
is shown instead, where there is one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from liborch.drive.ask import ask
from liborch.drive.results import Result
from liborch.journal import OrchestrationRow
from runaway.outputs import Neutral, Write, pass_on
from runaway.records import FINAL, Records, result_of_row

#: Colours of ids, by turns.
COLORS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
#: So many of those that run are followed from outside: their client collects the output for it.
MOST_FOLLOWED = 500
#: An end may come on record so much later than it was, in seconds.
LATE_S = 60.0
#: A line that is longer is cut there, in bytes: it has to be kept until it ends.
MOST_LINE = 1 << 16


class Follower:
    """Prefixes lines. Its writers may be called from any thread.

    Args:
        outputs: The folder in which output too large for a verdict was collected.
        broken: Called, from any thread, when nobody reads stdout any more; nothing is written then. None: BrokenPipeError.
    """

    def __init__(
        self, environment: Mapping[str, str], outputs: Path, broken: Callable[[], object] | None = None
    ) -> None:
        self._broken = broken
        self._outputs = outputs
        self._followed: set[str] = set()
        self._colors = {
            name: not environment.get("NO_COLOR")
            and bool(environment.get("FORCE_COLOR") or (os.isatty(fd) and environment.get("TERM") != "dumb"))
            for name, fd in (("out", 1), ("err", 2))
        }
        self._tames = {name for name, fd in (("out", 1), ("err", 2)) if os.isatty(fd)}
        #: {(execution, stream): the beginning of a line}
        self._begun: dict[tuple[str, str], bytes] = {}
        self._lock = threading.Lock()
        self._turn = 0

    def writer(self, x: str) -> Callable[[str, bytes], None]:
        """What takes in one execution's output."""
        self._followed.add(x)
        color = COLORS[self._turn % len(COLORS)]
        self._turn += 1

        def write(name: str, data: bytes) -> None:
            with self._lock:
                *whole, rest = (self._begun.pop((x, name), b"") + data).split(b"\n")
                if len(rest) > MOST_LINE:
                    whole.append(rest)
                elif rest:
                    self._begun[x, name] = rest
                if whole:
                    self._print(x, name, color, whole)

        return write

    def ended(self, x: str, result: Result) -> None:
        """One is over. Most are so short that they were not followed: all they wrote came with their end."""
        if x in self._followed:
            self._followed.discard(x)
            return
        write = self.writer(x)
        self._followed.discard(x)
        for name, file, data, size in (
            ("out", "stdout", result.stdout, result.stdout_bytes),
            ("err", "stderr", result.stderr, result.stderr_bytes),
        ):
            collected = self._outputs / x / file
            if len(data) < size and collected.exists():
                with collected.open("rb") as source:
                    while piece := source.read(1 << 20):
                        write(name, piece)
            else:
                write(name, data)

    def close(self, only: str | None = None) -> None:
        """Print what never ended with a newline; `only`: of that execution."""
        with self._lock:
            for x, name in list(self._begun):
                if only in (None, x):
                    self._print(x, name, COLORS[0], [self._begun.pop((x, name))])

    def _print(self, x: str, name: str, color: int, lines: list[bytes]) -> None:
        head = x[:8].encode()
        head = b"\x1b[%dm%s\x1b[0m " % (color, head) if self._colors[name] else head + b" "
        if name in self._tames:
            lines = [Neutral().feed(line) for line in lines]
        view = memoryview(b"".join(head + line + b"\n" for line in lines))
        try:
            while view:
                view = view[os.write(1 if name == "out" else 2, view) :]
        except BrokenPipeError:
            if self._broken is None:
                raise
            if name == "out":
                self._broken()


class Watch:
    """The same for a batch that another client drives: what runs is collected at our wish, what ended is on record.

    Only what is written from now on, and what those that run have written so far.
    """

    def __init__(self, records: Records, batch: OrchestrationRow, follower: Follower) -> None:
        self._records = records
        self._batch = batch
        self._follower = follower
        #: {execution: (what takes its output, how much of it did)} of those that run.
        self._running: dict[str, tuple[Write, dict[str, int]]] = {}
        self._since = time.time()
        #: {execution: when it ended} of those that need no more looking at.
        self._done = {x: at for at, x in self._ended()}

    def _ended(self) -> list[tuple[float, str]]:
        return self._records.journal.ended_since(self._batch.id, self._since - LATE_S)

    def look(self) -> None:
        """Print what there is now."""
        journal = self._records.journal
        for row in journal.under_way(self._batch.id, MOST_FOLLOWED):
            if row.state not in ("running", "paused"):
                continue
            if row.id not in self._running:
                ask(self._records.folders.state, self._batch.id, {"do": "follow", "id": row.id})
                self._running[row.id] = (self._follower.writer(row.id), {"out": 0, "err": 0})
            pass_on(self._records, row, *self._running[row.id])
        for at, x in self._ended():
            if x not in self._done:
                self._done[x] = at
                self._since = max(self._since, at)
                self._finish(x)
        self._done = {x: at for x, at in self._done.items() if at > self._since - 2 * LATE_S}

    def _finish(self, x: str) -> None:
        row = self._records.journal.execution(x)
        if row is None or row.state not in FINAL:
            return
        followed = self._running.pop(x, None)
        if followed is not None:
            pass_on(self._records, row, *followed)
        self._follower.ended(x, result_of_row(row))
        self._follower.close(x)
