"""What a person sees of a batch that this client drives: a picture on a terminal, a line now and then elsewhere, failures at the end.

How it looks is `picture`'s.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass

from liborch.core.tables import FINAL
from liborch.core.things import Node
from liborch.drive.driver import Driver
from liborch.drive.execution import Execution
from liborch.drive.results import Result
from liborch.quantities import format_duration
from runaway.batches.picture import NodeUse, Picture, Rate, screen
from runaway.batches.post import Post, PostCommands
from runaway.batches.summary import Failure, last_lines
from runaway.messages import Messages

#: Seconds between two pictures on a terminal, and between two lines elsewhere.
TERMINAL_S = 0.25
LINES_S = 10.0
#: So many of the latest failures are drawn, with the last lines of so much of their stderr, in bytes.
LAST_FAILURES = 6
LAST_BYTES = 600
#: Different failures that are listed at the end.
SIGNATURES = 10


@dataclass
class Alike:
    """Failures that look the same."""

    count: int
    #: Of the first of them.
    example: str
    words: str


class Progress:
    """Counts ends, and shows them.

    Args:
        count: How many executions there are, as far as known; it may grow.
        title: What it is a batch of.
        draws: On a terminal, draw a picture; lines otherwise.
    """

    def __init__(self, count: int, messages: Messages, *, title: str = "", draws: bool = True) -> None:
        self.total = count
        self.title = title
        self.ended: Counter[str] = Counter()
        #: How many had ended before this client began.
        self.before: Counter[str] = Counter()
        self.too_many = False
        #: How many left nothing here, because their output folder cannot be written.
        self.unwritten = 0
        #: How many did well, and something of what they left may be missing: their node's disk was full.
        self.doubtful = 0
        #: Those of this client.
        self.posts: PostCommands | None = None
        #: Executions whose post command was told to take long.
        self._told_long: set[str] = set()
        self._messages = messages
        self._failures: dict[str, Alike] = {}
        #: Post commands that failed, alike.
        self._post_failures: dict[str, Alike] = {}
        self._began = time.monotonic()
        self._rate = Rate()
        #: (id, how, the end of stderr) of the latest failures.
        self._last: deque[tuple[str, str, bytes]] = deque(maxlen=LAST_FAILURES)
        self._draws = messages.shows_bars and draws

    @property
    def failed(self) -> int:
        """How many ended otherwise than well, not counting those that were cancelled."""
        return self.ended["failed"] + self.ended["lost"]

    @property
    def all_succeeded(self) -> bool:
        """Whether nothing ended otherwise than well, before us or now, with all that it left."""
        every = self.ended + self.before
        return every.total() == every["succeeded"] and not self.doubtful

    def count(self, execution: Execution, result: Result) -> None:
        """One more is over."""
        self.ended[result.state] += 1
        if result.ok and result.why:
            self.doubtful += 1
            self._note(execution.id, f"{result.state}, but {result.why}")
        if result.state in ("failed", "lost"):
            words = words_of(result)
            self._note(execution.id, words)
            self._last.append((execution.id, words, result.stderr[-LAST_BYTES:]))
            self._messages.detail(f"{execution.id[:8]} {result.state}: {words}")

    def _note(self, x: str, words: str) -> None:
        signature = re.sub(r"0x[0-9a-f]+|\d+", "N", words)
        self._failures.setdefault(signature, Alike(0, x, words)).count += 1

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
                known = self._post_failures[signature] = Alike(0, execution.id, words)
                self._messages.error(f"{short}: its post command failed: {words}")
            known.count += 1
        for line in post.tail.splitlines():
            self._messages.detail(f"{short} post: {line}")

    async def keep_showing(self, driver: Driver) -> None:
        """Show how far it is, until cancelled."""
        if not self._draws:
            while True:
                await asyncio.sleep(LINES_S)
                self._messages.stage(self.picture(driver).in_a_line())
        # Most batches are worth a picture; one that is over at once is not.
        await asyncio.sleep(TERMINAL_S)
        with screen(self._messages) as shown:
            while True:
                shown.show(self.picture(driver))
                await asyncio.sleep(TERMINAL_S)

    def picture(self, driver: Driver) -> Picture:
        """How far it is."""
        # What is over is counted here: before us others did.
        live = {state.lower(): count for state, count in driver.core.counts.items() if state not in FINAL}
        counts = Counter(live)
        counts += self.ended + self.before
        counts["waiting"] += max(0, self.total - counts.total())
        return Picture(
            self.total,
            counts,
            self._rate.note(self.ended.total()),
            [
                use_of(node)
                for node in driver.core.nodes.values()
                if node.items or node.name not in driver.targets or not driver.targets[node.name].closed
            ],
            [Failure(x, words, last_lines(said.decode("utf-8", "replace"))) for x, words, said in self._last],
            self.posts.under_way if self.posts is not None else 0,
            self.title,
            self._note_long(),
            driver.core.draining,
        )

    def _note_long(self) -> tuple[str, float] | None:
        """The post command that has run longest, if that is long; each is told once, where lines follow one another."""
        long = self.posts.long() if self.posts is not None else []
        for x, took in long:
            if x not in self._told_long:
                self._told_long.add(x)
                self._messages.stage(f"{x[:8]}: its post command has run for {format_duration(took)}")
        return long[0] if long else None

    def describe_rest(self) -> str:
        """What is not over."""
        done = self.ended.total() + self.before.total() - self.ended["cancelled"] - self.before["cancelled"]
        return left_words(self.total - done, self.total)

    def show_end(self) -> None:
        """The last line, and what went wrong, grouped."""
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


def left_words(left: int, total: int) -> str:
    """`3 of 8 are left`."""
    return f"{max(0, left)} of {total} {'is' if left == 1 else 'are'} left"


def use_of(node: Node) -> NodeUse:
    """How much of a node is taken."""
    trouble = "" if node.state == "USABLE" else node.why or node.link.lower()
    return NodeUse(node.name, node.cpus - node.free_cpus, node.cpus, trouble)


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
