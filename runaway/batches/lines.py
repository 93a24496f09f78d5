"""Files of one thing a line, and how any file of a batch is read: whole, once, kept as one text.

Blank lines, and lines whose first character other than a blank is `#`, are no lines. Write `''` for an execution without
arguments, `'#...'` for one whose first argument begins so.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, overload

from liborch.errors import SpecError

#: The name that stands for standard input.
STDIN = "-"


def read_text(name: str, option: str, stdin: BinaryIO | None) -> str:
    """Return what a file holds; bytes that are no UTF-8 as surrogate escapes, a byte order mark taken off.

    Args:
        name: Path, or `-`.
        option: What it was given to, for messages.
        stdin: Standard input; None: it may not be read.

    Raises:
        SpecError: It cannot be read, or holds a NUL.
    """
    try:
        if name != STDIN:
            raw = Path(name).read_bytes()
        elif stdin is None:
            raise SpecError(f"{option}: standard input (-) is not to be had here; name a file")
        else:
            raw = stdin.read()
    except FileNotFoundError as error:
        raise SpecError(f"{option}: there is no file {name}") from error
    except OSError as error:
        raise SpecError(f"{option}: {name} cannot be read: {error.strerror}") from error
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SpecError(
            f"{option}: {name} is UTF-16; expected UTF-8: save it as that, or convert it with iconv"
        )
    text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SpecError(f"{option}: {name}, line {line}: a NUL character, which no program can be given")
    return text


class Lines(Sequence[str]):
    """The lines of a text that count, each found when asked for: eight bytes a line beside the text."""

    def __init__(self, text: str, where: str) -> None:
        #: What the text is, for messages.
        self.where = where
        self._text = text
        self._starts = array("Q")
        at = 0
        while at < len(text):
            end = text.find("\n", at)
            end = len(text) if end < 0 else end
            line = text[at:end].lstrip()
            if line and line[0] != "#":
                self._starts.append(at)
            at = end + 1

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        start = self._starts[index]
        end = self._text.find("\n", start)
        return self._text[start : len(self._text) if end < 0 else end].removesuffix("\r")

    def number(self, index: int) -> int:
        """The number, from 1, that an editor shows beside a line."""
        return self._text.count("\n", 0, self._starts[index]) + 1
