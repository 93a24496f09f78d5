"""Files of one thing a line, and how any file of a batch is read: whole, once, kept as one text.

Blank lines, and lines whose first character other than a blank is `#`, are no lines. Write `''` for an execution without
arguments, `'#...'` for one whose first argument begins so.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import BinaryIO, overload

from liborch.errors import SpecError
from runaway.batches.templates import Template, parse

#: The name that stands for standard input.
STDIN = "-"
#: Strings of a file that can be counted.
MOST = 2**63 - 1


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


class TemplateLines:
    """Lines that are templates, one behind the other; one is parsed when something of it is asked for.

    Raises:
        TemplateError: A line that is no template; all are looked at.
    """

    def __init__(self, lines: Lines, names: Collection[str] = ()) -> None:
        self._lines = lines
        self._known = names
        #: For each line, the index behind its last string.
        self._ends = array("Q")
        #: {parameter that is named: where first}.
        self.names: dict[str, str] = {}
        #: How many strings.
        self.count = 0
        for index in range(len(lines)):
            template = self._parse(index)
            self.count += template.count
            if self.count > MOST:
                raise SpecError(f"{lines.where}, line {lines.number(index)}: more than {MOST} altogether")
            self._ends.append(self.count)
            for name in template.names - self.names.keys():
                self.names[name] = f"{lines.where}, line {lines.number(index)}"
        self._last = (-1, parse(""))

    def template(self, index: int) -> tuple[Template, int]:
        """Return the template of the string at `index`, and which of its strings that is."""
        line = bisect_right(self._ends, index)
        if self._last[0] != line:
            self._last = (line, self._parse(line))
        return self._last[1], index - (self._ends[line - 1] if line else 0)

    def at(self, index: int) -> str:
        """Return one string, `index` from 0 below `count`."""
        template, here = self.template(index)
        return template.at(here)

    def _parse(self, index: int) -> Template:
        where = self._lines.where
        try:
            return parse(self._lines[index], self._known, where=where)
        except SpecError:
            # The number of a line is counted for messages only.
            return parse(self._lines[index], self._known, where=where, line=self._lines.number(index))
