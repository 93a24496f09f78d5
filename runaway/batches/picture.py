"""How far a batch is, at one time: as a line, and as a picture on a terminal that is drawn over until it ends.

What is in it is for `progress` (who drives) and `attending` (who looks on) to say. rich is imported when something is drawn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from liborch.plain_text import neutral
from liborch.quantities import format_duration
from runaway.batches.summary import Failure
from runaway.messages import Messages

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

#: The rate is that of the last so many seconds.
RATE_S = 20.0
#: Nodes named in a line.
NODES_IN_LINE = 6
#: Columns of a bar.
BAR = 24
#: What is drawn has no more lines than this, however high the terminal is.
MOST_LINES = 30


@dataclass(frozen=True)
class NodeUse:
    """A node's slots."""

    name: str
    busy: int
    slots: int
    #: Why it is not in use; "": it is.
    trouble: str = ""


@dataclass(frozen=True)
class Picture:
    """A batch at one time."""

    total: int
    #: {state of an execution: how many}
    counts: dict[str, int]
    #: Ends per second.
    rate: float = 0.0
    nodes: list[NodeUse] = field(default_factory=list)
    #: The latest last.
    failures: list[Failure] = field(default_factory=list)
    #: Post commands that run, or wait for their turn.
    posts: int = 0
    title: str = ""
    #: (execution, for how many seconds) of the post command that has run longest, if that is long.
    longest_post: tuple[str, float] | None = None
    #: Nothing new is started: what runs comes to its end.
    is_ending: bool = False

    @property
    def done(self) -> int:
        """How many are over."""
        return sum(self.counts.get(state, 0) for state in ("succeeded", "failed", "lost", "cancelled"))

    @property
    def failed(self) -> int:
        """How many ended otherwise than well, of themselves."""
        return self.counts.get("failed", 0) + self.counts.get("lost", 0)

    @property
    def moving(self) -> int:
        """How many are being sent or fetched."""
        return max(0, self.counts.get("staging", 0) + self.counts.get("collecting", 0) - self.posts)

    @property
    def post_words(self) -> str:
        """`post commands (12345678 for 5m)`."""
        if self.longest_post is None:
            return "post commands"
        x, took = self.longest_post
        return f"post commands ({x[:8]} for {format_duration(took)})"

    def in_a_line(self) -> str:
        """For where lines follow one another."""
        parts = [f"{self.done}/{self.total}"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        used = [node for node in self.nodes if not node.trouble][:NODES_IN_LINE]
        busy = ", ".join(f"{node.name} {node.busy}/{node.slots}" for node in used)
        parts.append(f"{self.counts.get('running', 0)} running" + (f" ({busy})" if busy else ""))
        if self.posts:
            parts.append(f"{self.posts} {self.post_words}")
        if self.moving:
            parts.append(f"{self.moving} sent or fetched")
        return ", ".join([*parts, *self.pace()])

    def pace(self) -> list[str]:
        """Rate and time left, as far as they can be told."""
        if self.is_ending:
            return ["nothing new is started"]
        if not self.rate:
            return []
        parts = [f"{self.rate:.1f}/s" if self.rate < 10 else f"{self.rate:.0f}/s"]
        if self.done < self.total:
            parts.append(f"{format_duration(max(1.0, (self.total - self.done) / self.rate))} left")
        return parts


class Rate:
    """Ends per second, of the last RATE_S."""

    def __init__(self, done: int = 0) -> None:
        #: (when, how many had ended)
        self._history: deque[tuple[float, int]] = deque([(time.monotonic(), done)])

    def note(self, done: int) -> float:
        """So many have ended by now; returns the rate."""
        now = time.monotonic()
        self._history.append((now, done))
        while len(self._history) > 2 and self._history[1][0] < now - RATE_S:
            self._history.popleft()
        then, before = self._history[0]
        return (done - before) / (now - then) if now > then else 0.0


class Screen:
    """The lower lines of the terminal, drawn over. Messages go above it meanwhile."""

    def __init__(self, live: Any) -> None:
        self._live = live

    def show(self, picture: Picture) -> None:
        """Draw."""
        console = self._live.console
        self._live.update(draw(picture, console.width, console.height), refresh=True)


@contextmanager
def screen(messages: Messages) -> Iterator[Screen]:
    """Hold the lower lines of the terminal; however it ends, they are empty and the terminal is as before."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True, highlight=False, no_color=not messages.has_color)
    # Drawn by us, at our times: no thread, and nobody else's output is caught.
    live = Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    )

    def above(text: str, style: str) -> None:
        console.print(Text(text, style={"2": "dim", "31": "red"}.get(style, "")), soft_wrap=True)

    live.start()
    # A client that is killed would leave the terminal without one.
    console.show_cursor(True)
    messages.above = above
    try:
        yield Screen(live)
    finally:
        messages.above = None
        live.stop()


def draw(picture: Picture, width: int, height: int) -> Group:
    """The picture in at most `height` - 1 lines of `width` columns."""
    from rich.console import Group

    room = min(height - 1, MOST_LINES)
    lines = [_bar(picture, width), _counts(picture)]
    if picture.title and room > 12:
        lines.insert(0, _line((picture.title, "bold")))
    # Failures say more than nodes do: they have at least half of what is left.
    nodes = _nodes(picture.nodes, width, max(0, (room - len(lines)) // 2))
    lines += nodes
    lines += _failures(picture.failures, room - len(lines))
    return Group(*lines[: max(1, room)])


def _line(*parts: tuple[str, str]) -> Text:
    from rich.text import Text

    line = Text(no_wrap=True, overflow="ellipsis")
    for text, style in parts:
        line.append(neutral(text).replace("\n", " ").replace("\t", " "), style)
    return line


def _bar(picture: Picture, width: int) -> Text:
    share = picture.done / picture.total if picture.total else 1.0
    size = max(0, min(BAR, width - 50))
    filled = int(share * size)
    wrong = min(filled, -(-picture.failed * size // picture.total)) if picture.total else 0
    return _line(
        ("━" * (filled - wrong), "green"),
        ("━" * wrong, "red"),
        ("─" * (size - filled), "dim"),
        (f"{' ' if size else ''}{picture.done}/{picture.total}", "bold"),
        (f" {int(share * 100)}%  " + "  ".join(picture.pace()), ""),
    )


def _counts(picture: Picture) -> Text:
    counts = picture.counts
    parts: list[tuple[str, str]] = []
    for words, count, style in (
        ("succeeded", counts.get("succeeded", 0), "green"),
        ("failed", counts.get("failed", 0), "red"),
        ("lost", counts.get("lost", 0), "red"),
        ("cancelled", counts.get("cancelled", 0), "yellow"),
        ("running", counts.get("running", 0), "cyan"),
        ("paused", counts.get("paused", 0), "yellow"),
        ("sent or fetched", picture.moving, ""),
        (picture.post_words, picture.posts, ""),
        ("waiting", counts.get("waiting", 0) + counts.get("placed", 0), "dim"),
    ):
        if count:
            parts += [("  " if parts else "", ""), (f"{count} {words}", style)]
    return _line(*parts)


def _nodes(nodes: list[NodeUse], width: int, room: int) -> list[Text]:
    """In columns, and what does not fit summed up."""
    if not nodes or room < 1:
        return []
    cells = [
        (f"{node.name} {node.busy}/{node.slots}", "")
        if not node.trouble
        else (f"{node.name} {node.trouble}", "red")
        for node in sorted(nodes, key=lambda node: not node.trouble)
    ]
    wide = min(width, max(len(text) for text, _ in cells) + 2)
    across = max(1, width // wide)
    if len(cells) > across * room:
        shown = across * room - 1
        rest = sorted(nodes, key=lambda node: not node.trouble)[shown:]
        busy, slots = sum(node.busy for node in rest), sum(node.slots for node in rest)
        cells = [*cells[:shown], (f"{len(rest)} more nodes {busy}/{slots}", "dim")]
    return [
        _line(*((text.ljust(wide), style) for text, style in cells[at : at + across]))
        for at in range(0, len(cells), across)
    ]


def _failures(failures: list[Failure], room: int) -> list[Text]:
    """The latest ones, with the ends of what they said, as far as there is room."""
    blocks: list[list[Text]] = []
    for failure in reversed(failures):
        block = [_line((f"{failure.id[:8]} ", "bold red"), (failure.how, "red"))]
        block += [_line((f"  {line}", "dim")) for line in failure.lines if line not in failure.how]
        if sum(map(len, blocks)) + len(block) > room:
            if not blocks and room > 0:
                blocks.append(block[:room])
            break
        blocks.append(block)
    return [line for block in reversed(blocks) for line in block]
