"""`--follow`: the output of every execution of a batch while it is written, line by line, each with the short id before it.

Lines stay whole, whoever else writes at the same time; those of stdout go to stdout, those of stderr to stderr. What steers a terminal
is shown instead, where there is one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from liborch.drive.results import Result
from runaway.outputs import Neutral

#: Colours of ids, by turns.
COLORS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
#: A line that is longer is cut there, in bytes: it has to be kept until it ends.
MOST_LINE = 1 << 16


class Follower:
    """Prefixes lines. Its writers may be called from any thread.

    Args:
        outputs: The folder in which output too large for a verdict was collected.
    """

    def __init__(self, environment: Mapping[str, str], outputs: Path) -> None:
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

    def close(self) -> None:
        """Print what never ended with a newline."""
        with self._lock:
            for (x, name), rest in self._begun.items():
                self._print(x, name, COLORS[0], [rest])
            self._begun.clear()

    def _print(self, x: str, name: str, color: int, lines: list[bytes]) -> None:
        head = x[:8].encode()
        head = b"\x1b[%dm%s\x1b[0m " % (color, head) if self._colors[name] else head + b" "
        if name in self._tames:
            lines = [Neutral().feed(line) for line in lines]
        view = memoryview(b"".join(head + line + b"\n" for line in lines))
        while view:
            view = view[os.write(1 if name == "out" else 2, view) :]
