"""What a person is told while something is under way: short lines on stderr, in the order of the work."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from liborch.plain_text import neutral
from liborch.quantities import format_duration, format_size

#: A transfer that takes longer than this gets a progress bar, in seconds.
BAR_AFTER_S = 1.0


class Messages:
    """Lines on stderr. `quiet`: errors only. `verbose`: also what is usually not interesting."""

    def __init__(self, environment: Mapping[str, str], *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        terminal = sys.stderr.isatty() and environment.get("TERM") != "dumb"
        #: Whether lines are coloured.
        self.has_color = (terminal or bool(environment.get("FORCE_COLOR"))) and not environment.get(
            "NO_COLOR"
        )
        #: Whether there is a terminal on which a line can be written over.
        self.shows_bars = terminal and not quiet
        #: Set while the lower lines of the terminal are drawn by somebody: given a line and its colour.
        self.above: Callable[[str, str], None] | None = None
        self._bar_shown = False
        self._stamps = False
        self._errors: set[str] = set()
        #: {topic: what was told of it last}
        self._news: dict[str, str] = {}

    def go_to_log(self) -> None:
        """From now on nobody looks on: plain lines, each with its time."""
        self.has_color = self.shows_bars = False
        self._stamps = True

    def stage(self, text: str) -> None:
        """A step of the work."""
        if not self.quiet:
            self._line(text, "2")

    def detail(self, text: str) -> None:
        """Only with --verbose."""
        if self.verbose:
            self._line(text, "2")

    def error(self, text: str) -> None:
        """Always shown."""
        self._errors.add(text)
        self._line(text, "31")

    def reason(self, text: str) -> None:
        """Why it ended; shown unless it was already, when it happened."""
        if text not in self._errors:
            self.error(text)

    def is_news(self, topic: str, text: str) -> bool:
        """Whether this is not what was told of the topic last."""
        is_news = self._news.get(topic) != text
        self._news[topic] = text
        return is_news

    def _line(self, text: str, color: str) -> None:
        text = neutral(text)
        if self._stamps:
            text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
        # Where nobody reads any more, what is told of goes on, and must not be broken by telling.
        with contextlib.suppress(OSError):
            if self._bar_shown:
                sys.stderr.write("\r\x1b[K")
                self._bar_shown = False
            if self.above is not None:
                self.above(text, color)
                return
            sys.stderr.write(f"\x1b[{color}m{text}\x1b[0m\n" if self.has_color else f"{text}\n")
            sys.stderr.flush()

    def progress(self, what: str) -> Any:
        """Return a callback for a transfer, or None where bars are not shown."""
        if not self.shows_bars:
            return None
        began = time.monotonic()
        last = [0.0]

        def show(done: int, total: int, files: int, all_files: int) -> None:
            now = time.monotonic()
            if now - began < BAR_AFTER_S or (now - last[0] < 0.1 and done < total):
                return
            last[0] = now
            share = done / total if total else 1.0
            filled = int(share * 24)
            rate = done / (now - began)
            left = format_duration((total - done) / rate) if rate > 0 else "?"
            text = (
                f"{what} [{'#' * filled}{'.' * (24 - filled)}] {format_size(done)} of {format_size(total)}, "
                f"{files}/{all_files} files, {left} left"
            )
            # A line that wraps cannot be written over: on a narrow terminal each step would leave one behind.
            with contextlib.suppress(OSError):
                sys.stderr.write(f"\r\x1b[K{text[: width() - 1]}")
                sys.stderr.flush()
                self._bar_shown = True
                if done >= total:
                    sys.stderr.write("\r\x1b[K")
                    self._bar_shown = False

        return show


def width() -> int:
    """Columns of the terminal."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 80
