"""A string of arguments -> its words. Pure. It never fails: what could be no quote is none.

Blanks (space, tab, line end) separate words, as in a shell. They do not:

* between quotes. A quote begins at the start of a word, behind a `=`, or behind another quote, and goes where a second one ends
  it; both are taken off. Between double quotes `\\"` is a quote and `\\\\` a backslash; between single ones all is as it stands.
* between matching `{}` or `[]`: `{"k": 1}` and `layers=[64, 64]` are one word, unchanged.

Unlike in a shell all other quotes, and backslashes, are text: `it's`, `5"`, `{"k":"v"}`, `\\d+` reach the program as they are
written. What `shlex.join` writes is read back exactly.
"""

from __future__ import annotations

import re

from runaway.batches.templates import BLANKS

_WORD = re.compile(f"[^{BLANKS}]+")
_MEANT = re.compile(r"['\"\[{]")
_DOUBLE_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')
_BRACKETS = re.compile(r'[\[\]{}"]')
_ENDS = {"{": "}", "[": "]"}


def split_words(text: str) -> list[str]:
    """Return the words; none for a string of blanks."""
    if not _MEANT.search(text):
        return _WORD.findall(text)
    pairs = match_brackets(text)
    words = []
    at = 0
    while found := _WORD.search(text, at):
        word, at = _word(text, found.start(), pairs)
        words.append(word)
    return words


def match_brackets(text: str) -> dict[int, int]:
    """Return {place of a `{` or `[`: place of what closes it}. Those without, and those in strings within brackets, are left out."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    at = 0
    quotes_end = True
    while found := _BRACKETS.search(text, at):
        at, char = found.end(), found.group()
        if char in _ENDS:
            opened.append(found.start())
        elif char == '"':
            # Brackets in a string of JSON are none.
            string = _DOUBLE_QUOTED.match(text, found.start()) if opened and quotes_end else None
            if string:
                at = string.end()
            elif opened:
                quotes_end = False
        elif opened and _ENDS[text[opened[-1]]] == char:
            pairs[opened.pop()] = found.start()
    return pairs


def _word(text: str, at: int, pairs: dict[int, int]) -> tuple[str, int]:
    """Return the word that begins at `at`, and where it ends."""
    pieces = []
    may_quote = True
    while at < len(text) and (char := text[at]) not in BLANKS:
        if may_quote and char in "'\"":
            piece, end = _quoted(text, at)
            if end > 0:
                pieces.append(piece)
                at = end
                continue
        end = pairs.get(at, at) + 1
        pieces.append(text[at:end])
        may_quote = char == "="
        at = end
    return "".join(pieces), at


def _quoted(text: str, at: int) -> tuple[str, int]:
    """Return what is between the quotes, and where they end; 0: nothing ends them."""
    if text[at] == '"':
        found = _DOUBLE_QUOTED.match(text, at)
        return (_ESCAPED.sub(r"\1", found.group(1)), found.end()) if found else ("", 0)
    end = text.find("'", at + 1)
    while end > at + 1 and text[end - 1].isalnum() and text[end + 1 : end + 2].isalnum():
        end = text.find("'", end + 1)
    return text[at + 1 : end], end + 1
