"""What a person sees of a batch: one line that is written over on a terminal, a line now and then elsewhere, failures at the end."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from liborch.drive.driver import Driver
from liborch.drive.execution import Execution
from liborch.drive.results import Result
from liborch.quantities import format_duration
from runaway.batches.post import Post
from runaway.messages import Messages

#: Seconds between two pictures on a terminal, and between two lines elsewhere.
TERMINAL_S = 0.25
LINES_S = 10.0
#: The rate is that of the last so many seconds.
RATE_S = 20.0
#: Different failures that are listed at the end.
SIGNATURES = 10


@dataclass
class Failure:
    """Failures that look the same."""

    count: int
    #: Of the first of them.
    example: str
    words: str


class Progress:
    """Counts ends, and shows them.

    Args:
        count: How many executions there are, as far as known; it may grow.
    """

    def __init__(self, count: int, messages: Messages) -> None:
        self.total = count
        self.ended: Counter[str] = Counter()
        #: How many had ended before this client began.
        self.before: Counter[str] = Counter()
        self.too_many = False
        #: Says how many post commands run, or wait for their turn.
        self.posts_under_way: Callable[[], int] = lambda: 0
        self._messages = messages
        self._failures: dict[str, Failure] = {}
        #: Post commands that failed, alike.
        self._post_failures: dict[str, Failure] = {}
        self._began = time.monotonic()
        #: (when, how many had ended)
        self._history: deque[tuple[float, int]] = deque([(self._began, 0)])
        self._tried_again = 0

    @property
    def failed(self) -> int:
        """How many ended otherwise than well, not counting those that were cancelled."""
        return self.ended["failed"] + self.ended["lost"]

    @property
    def all_succeeded(self) -> bool:
        """Whether nothing ended otherwise than well, before us or now."""
        every = self.ended + self.before
        return every.total() == every["succeeded"]

    def count(self, execution: Execution, result: Result) -> None:
        """One more is over."""
        self.ended[result.state] += 1
        if result.state in ("failed", "lost"):
            words = words_of(result)
            signature = re.sub(r"0x[0-9a-f]+|\d+", "N", words)
            known = self._failures.setdefault(signature, Failure(0, execution.id, words))
            known.count += 1
            self._messages.detail(f"{execution.id[:8]} {result.state}: {words}")

    @property
    def failed_posts(self) -> int:
        """How many post commands failed."""
        return sum(failure.count for failure in self._post_failures.values())

    def count_post(self, execution: Execution, post: Post) -> None:
        """A post command is over."""
        short = execution.id[:8]
        if post.status:
            lines = post.tail.splitlines()
            words = f"exit {post.status}" + (f": {lines[-1][:120]}" if lines else "")
            signature = re.sub(r"\d+", "N", words)
            known = self._post_failures.get(signature)
            if known is None:
                known = self._post_failures[signature] = Failure(0, execution.id, words)
                self._messages.error(f"{short}: its post command failed: {words}")
            known.count += 1
        for line in post.tail.splitlines():
            self._messages.detail(f"{short} post: {line}")

    async def keep_showing(self, driver: Driver) -> None:
        """Show how far it is, until cancelled."""
        live = self._messages.shows_bars
        while True:
            await asyncio.sleep(TERMINAL_S if live else LINES_S)
            now = time.monotonic()
            self._history.append((now, self.ended.total()))
            while len(self._history) > 2 and self._history[1][0] < now - RATE_S:
                self._history.popleft()
            if live:
                self._messages.picture(self.describe(driver))
            else:
                self._messages.stage(self.describe(driver))

    def describe(self, driver: Driver) -> str:
        """How far it is, in one line."""
        counts = driver.core.counts
        done = self.ended.total() + self.before.total()
        rate = self._rate()
        parts = [f"{done}/{self.total}"]
        failed = self.failed + self.before["failed"] + self.before["lost"]
        if failed:
            parts.append(f"{failed} failed")
        busy = ", ".join(
            f"{node.name} {node.cpus - node.free_cpus}/{node.cpus}"
            for node in list(driver.core.nodes.values())[:6]
            if node.state == "USABLE"
        )
        parts.append(f"{counts['RUNNING']} running" + (f" ({busy})" if busy else ""))
        posts = self.posts_under_way()
        moving = counts["STAGING"] + counts["COLLECTING"] - posts
        if posts:
            parts.append(f"{posts} post commands")
        if moving > 0:
            parts.append(f"{moving} sent or fetched")
        if rate:
            parts.append(f"{rate:.1f}/s" if rate < 10 else f"{rate:.0f}/s")
            if done < self.total:
                parts.append(f"{format_duration((self.total - done) / rate)} left")
        return ", ".join(parts)

    def _rate(self) -> float:
        (then, before), (now, after) = self._history[0], self._history[-1]
        return (after - before) / (now - then) if now > then else 0.0

    def describe_rest(self) -> str:
        """What is not over."""
        done = self.ended.total() + self.before.total() - self.ended["cancelled"] - self.before["cancelled"]
        return f"{max(0, self.total - done)} of {self.total} are left"

    def show_end(self) -> None:
        """The last line, and what went wrong, grouped."""
        self._messages.picture("")
        every = self.ended + self.before
        took = format_duration(time.monotonic() - self._began)
        states = ", ".join(f"{count} {state}" for state, count in sorted(every.items()) if count)
        self._messages.stage(f"{states or 'nothing ran'} in {took}")
        ordered = sorted(self._failures.values(), key=lambda failure: -failure.count)
        for failure in ordered[:SIGNATURES]:
            self._messages.error(f"{failure.count} x {failure.words} (such as {failure.example[:8]})")
        if len(ordered) > SIGNATURES:
            self._messages.error(f"and {len(ordered) - SIGNATURES} other kinds of failure")
        posts = sorted(self._post_failures.values(), key=lambda failure: -failure.count)
        for failure in posts[:SIGNATURES]:
            which = f"such as {failure.example[:8]}; see post.out in its output folder"
            self._messages.error(f"{failure.count} x post command: {failure.words} ({which})")
        sys.stderr.flush()


def words_of(result: Result) -> str:
    """Why it failed, in one line: how it ended, and the last line it wrote to stderr."""
    if result.reason == "exit":
        how = f"exit {result.exit_code}"
    elif result.reason == "signal":
        how = f"signal {result.signal}"
    else:
        how = result.reason
    lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
    why = result.why or (lines[-1][:120] if lines else "")
    return f"{how}: {why}" if why else how
