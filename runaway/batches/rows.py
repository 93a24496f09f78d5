"""`--csv` and `--jsonl`: one execution a row, its columns are parameters. Pure but for what `lines` reads.

A value is one word, whatever is in it: blanks, quotes, a `;`. It is as written: `0.10` stays `0.10`, in JSON as well.

CSV: the first line names the columns. Columns are separated by commas, or by tabs or semicolons when the first line holds
no comma. Values may stand between double quotes. Each row has as many as there are columns; blank lines are none.

JSON lines: one object a line, its keys are the parameters, which may differ from line to line. Text is what it stands for, a
list or object its JSON, true and false are words, and null is as if the key were not there.

The text is kept whole, and each row is taken apart when it is asked for: eight bytes a row beside the text.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from typing import Protocol

import msgspec

from liborch.errors import SpecError
from liborch.specs import MAX_ARGUMENT_BYTES
from runaway.batches.grids import check_names
from runaway.batches.lines import Lines


class Rows(Protocol):
    """A table of parameters."""

    #: Every parameter, in order of appearance.
    names: tuple[str, ...]
    #: Parameters that some row does not have, and the number of the first such line.
    lacking: dict[str, int]

    @property
    def count(self) -> int:
        """How many rows."""
        ...

    def at(self, index: int) -> dict[str, str]:
        """Return one row, in the order of the columns."""
        ...


class CsvRows:
    """Rows of comma separated values.

    Raises:
        SpecError: A row that is no row: file, line, what was expected.
    """

    def __init__(self, text: str, where: str) -> None:
        self.lacking: dict[str, int] = {}
        self._text = text
        self._starts = array("Q")
        self._delimiter = ","
        lines = _Counted(text)
        head = text.lstrip("\r\n").partition("\n")[0]
        if "," not in head:
            self._delimiter = next((char for char in "\t;" if char in head), ",")
        reader = self._reader(lines)
        self.names: tuple[str, ...] = ()
        line = 1
        try:
            while True:
                start, line = lines.at, lines.number + 1
                row = next(reader, None)
                if row is None:
                    break
                if not row:
                    continue
                if not self.names:
                    self.names = tuple(name.strip() for name in row)
                    check_names(self.names, f"{where}, line {line}")
                elif len(row) != len(self.names):
                    raise SpecError(
                        f"{where}, line {line}: {len(row)} values; expected {len(self.names)}, one for each of "
                        f"{', '.join(self.names)}. Write one that holds the separator between double quotes"
                    )
                else:
                    self._starts.append(start)
        except csv.Error as error:
            raise SpecError(
                f"{where}, line {line}: {error}; expected values between double quotes to end with one, doubled inside, "
                f"and none of more than {MAX_ARGUMENT_BYTES} bytes"
            ) from error
        if not self.names:
            raise SpecError(f"{where}: it is empty; expected a first line with the names of the columns")

    def _reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self._delimiter, skipinitialspace=True, strict=True)

    @property
    def count(self) -> int:
        return len(self._starts)

    def at(self, index: int) -> dict[str, str]:
        row = next(self._reader(_Counted(self._text, self._starts[index])))
        return dict(zip(self.names, row, strict=True))


class _Counted(Iterator[str]):
    """The lines of a text, with their ends; knows where the next begins."""

    def __init__(self, text: str, at: int = 0) -> None:
        self.at = at
        self.number = 0
        self._text = text

    def __next__(self) -> str:
        if self.at >= len(self._text):
            raise StopIteration
        end = self._text.find("\n", self.at) + 1 or len(self._text)
        line, self.at = self._text[self.at : end], end
        self.number += 1
        return line


class JsonRows:
    """Rows of JSON objects, one a line.

    Raises:
        SpecError: A line that is no object: file, line, what was expected.
    """

    def __init__(self, text: str, where: str) -> None:
        self._lines = Lines(text, where)
        self._decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
        present: dict[str, int] = {}
        for index in range(len(self._lines)):
            for name in self._row(index):
                present[name] = present.get(name, 0) + 1
        self.names = tuple(present)
        check_names(self.names, where)
        self.lacking = {
            name: self._first_without(name) for name in self.names if present[name] < len(self._lines)
        }

    def _first_without(self, name: str) -> int:
        return next(
            self._lines.number(index) for index in range(len(self._lines)) if name not in self._row(index)
        )

    def _row(self, index: int) -> dict[str, str]:
        line = self._lines[index].encode("utf-8", "surrogateescape")
        try:
            found = self._decoder.decode(line)
            return {name: value for name, raw in found.items() if (value := _word(raw)) is not None}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SpecError(
                f'{self._lines.where}, line {self._lines.number(index)}: {error}; expected an object such as {{"lr": 0.1, "seed": 1}}'
            ) from error

    @property
    def count(self) -> int:
        return len(self._lines)

    def at(self, index: int) -> dict[str, str]:
        return self._row(index)


def _word(raw: msgspec.Raw) -> str | None:
    text = bytes(raw).decode("utf-8").strip()
    if text == "null":
        return None
    if not text.startswith('"'):
        return text
    value = msgspec.json.decode(text, type=str)
    if "\0" in value:
        raise msgspec.DecodeError("a NUL character, which no program can be given")
    return value
