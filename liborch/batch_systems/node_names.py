"""Names of nodes as Slurm writes many at once: "n[1-4,7],gpu-a[01-12]" and the names it stands for.

Strict: names become part of commands and of addresses, so what is no plain list of host names is refused.
"""

from __future__ import annotations

import re
from typing import Final

#: More names than the largest cluster has; a range beyond it is a mistake, or meant to hurt.
MOST_NAMES: Final = 1 << 17

#: One comma of a list that is outside brackets ends a word; inside them it separates ranges.
_WORD = re.compile(r"((?:[^\[\],]|\[[^\[\]]*\])+)(?:,|\Z)")
_PIECE = re.compile(r"([A-Za-z0-9._-]+)|\[([0-9,-]+)\]")
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")


def expand(text: str) -> tuple[str, ...]:
    """Return the names in the order they are written, each once; none for "".

    Raises ValueError for what is no list of names, and for more than `MOST_NAMES`.
    """
    names: dict[str, None] = {}
    at = 0
    while at < len(text):
        word = _WORD.match(text, at)
        if word is None:
            raise ValueError(f"{text[:80]!r} is no list of nodes: near {text[at : at + 20]!r}")
        at = word.end()
        if at == len(text) and text.endswith(","):
            raise ValueError(f"{text[:80]!r} is no list of nodes: it ends with a comma")
        names.update(dict.fromkeys(_expand_word(word[1])))
        if len(names) > MOST_NAMES:
            raise ValueError(f"{text[:80]!r} names more than {MOST_NAMES} nodes")
    return tuple(names)


def _expand_word(word: str) -> list[str]:
    """`rack[1-2]n[01-02]` -> every combination, the last numbers fastest."""
    found = [""]
    at = 0
    while at < len(word):
        piece = _PIECE.match(word, at)
        if piece is None:
            raise ValueError(f"{word[:80]!r} is no name of nodes")
        at = piece.end()
        ends = [piece[1]] if piece[1] else _numbers(piece[2])
        if len(found) * len(ends) > MOST_NAMES:
            raise ValueError(f"{word[:80]!r} names more than {MOST_NAMES} nodes")
        found = [name + end for name in found for end in ends]
    wrong = next((name for name in found if not _NAME.match(name)), None)
    if wrong is not None:
        raise ValueError(f"{wrong[:80]!r} is no name of a node")
    return found


def _numbers(text: str) -> list[str]:
    """`1-4,7` -> the numbers, as wide as the first of each range is written."""
    numbers: list[str] = []
    for part in text.split(","):
        spread = _RANGE.match(part)
        if spread is None:
            raise ValueError(f"{part[:40]!r} is no range of numbers")
        first, last = spread[1], spread[2] or spread[1]
        count = int(last) - int(first) + 1
        if not 0 < count <= MOST_NAMES:
            raise ValueError(f"{part[:40]!r} is no range of at most {MOST_NAMES} numbers")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        if len(numbers) > MOST_NAMES:
            raise ValueError(f"{text[:80]!r} names more than {MOST_NAMES} nodes")
    return numbers
