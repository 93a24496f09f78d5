"""A word for who waits: commands that answer at once say nothing of what they do, those that have to wait say for what."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator, Sequence

from liborch.plain_text import neutral

#: Who waits longer than this is told for what, in seconds.
SLOW_S = 0.5
#: Names that are told of many.
_NAMED = 4


@contextlib.contextmanager
def said_if_slow(text: str) -> Iterator[None]:
    """Say `text` on stderr if the block takes longer than `SLOW_S`. Within a running event loop; fine to leave in any way."""
    saying = asyncio.get_running_loop().call_later(SLOW_S, _say, text)
    try:
        yield
    finally:
        saying.cancel()


def _say(text: str) -> None:
    # Whoever closed stderr is told nothing, and gets the answer all the same.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{neutral(text)}\n")
        sys.stderr.flush()


def asking(names: Sequence[str]) -> str:
    """`asking gpu1, gpu2`; `asking gpu1, gpu2, gpu3 and 9 more`."""
    if len(names) <= _NAMED:
        return f"asking {', '.join(names)}"
    return f"asking {', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more"
