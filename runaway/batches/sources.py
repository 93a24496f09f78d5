"""What a batch executes: templates, files, grids and tables -> a `Plan`. Nothing is expanded before it is asked for.

Where arguments come from:

* The words behind `--`. A single one is a template (see `templates`), and each string of it is split into words (see `words`).
  Of several, those in which nothing can mean anything (no `;`, no placeholder) are arguments as they stand, byte for byte. One
  with alternatives in it is a template whose strings are split like a single one's (so `{'';'--flag'}` may add nothing); one
  with placeholders only stays one argument. A `;` outside braces would be unclear there: an error.
* `--arguments-file/-A FILE`: each line is such a single template. What is no line is said in `lines`.

Where parameters come from: `--grid` (see `grids`), `--csv` or `--jsonl` (see `rows`). Where an argument has `{name}`, the value
goes there, whatever is in it, and never makes two words. Every parameter that the arguments of an execution do not name is added
to them, as `--name=value`, in the order in which they were given. All are in the environment too: `RUNAWAY_PARAM_NAME`.

What is given together is multiplied: rows vary slowest, then the grids from first to last, then lines and templates. Each
execution is repeated `--repeats` times in a row (a, a, b, b), and RUNAWAY_REPETITION counts them from 0. `--shuffle`
changes the order afterwards, always in the same way for the same `--seed` and count.

For FILE `-` is standard input, once.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from random import Random
from typing import BinaryIO, Protocol

from liborch.errors import SpecError
from runaway.batches.grids import Grid, check_names, parse_grid, variable_of
from runaway.batches.lines import STDIN, Lines, TemplateLines, read_text
from runaway.batches.rows import CsvRows, JsonRows, Rows
from runaway.batches.templates import MARK, Template, in_shell, parse, quote
from runaway.batches.words import split_words

#: A shuffled plan keeps eight bytes for each execution.
MOST_SHUFFLED = 10**8

_PLACEHOLDER = re.compile(f"{MARK}([^{MARK}]*){MARK}")


@dataclass(frozen=True, slots=True)
class Planned:
    """One execution of a plan."""

    #: Its place before shuffling, from 0: which line of `--outputs-file` belongs to it.
    index: int
    #: What follows the command; parameters are in it.
    arguments: tuple[str, ...]
    #: {name: value}, in the order in which they were given.
    parameters: dict[str, str]
    #: Which one of its repetitions, from 0.
    repetition: int

    @property
    def variables(self) -> dict[str, str]:
        """What its environment is given: RUNAWAY_PARAM_... and RUNAWAY_REPETITION."""
        found = {variable_of(name): value for name, value in self.parameters.items()}
        found["RUNAWAY_REPETITION"] = str(self.repetition)
        return found


class _Arguments(Protocol):
    """Lists of words, in which placeholders are names between MARKs."""

    #: Parameters that they name, as {name: where}.
    names: dict[str, str]
    count: int

    def words(self, index: int) -> list[str]: ...


class _Words:
    """The words behind `--`: constants and templates, multiplied."""

    def __init__(self, words: Sequence[str], names: Sequence[str]) -> None:
        self._is_alone = len(words) == 1
        self._parts = [
            _part(word, number, names, alone=self._is_alone) for number, word in enumerate(words, 1)
        ]
        templates = [part for part in self._parts if isinstance(part, Template)]
        self.count = prod(part.count for part in templates)
        self.names = {name: "template" for part in templates for name in part.names}

    def words(self, index: int) -> list[str]:
        lists: list[list[str]] = []
        for part in reversed(self._parts):
            if isinstance(part, str):
                lists.append([part])
            else:
                index, here = divmod(index, part.count)
                text = part.at(here)
                lists.append(split_words(text) if self._is_alone or part.has_alternatives else [text])
        return [word for words in reversed(lists) for word in words]


def _part(word: str, number: int, names: Sequence[str], *, alone: bool) -> str | Template:
    where = "template" if alone else f"word {number} of the template"
    if alone:
        return parse(word, names, where=where, typed=True)
    if ";" not in word and not any("{" + name + "}" in word for name in names):
        return word
    template = parse(word, names, where=where, typed=True)
    if template.has_top_alternatives:
        raise SpecError(
            f"{where}: {word!r} has a ; outside braces, and stands among other words; expected the alternatives in braces, "
            f"or the whole template as one word in quotes of the shell. As plain text, write {in_shell(quote(word))}"
        )
    if template.has_alternatives or template.names:
        return template
    return template.at(0)


class _Lines(TemplateLines):
    """The lines of an arguments file."""

    def words(self, index: int) -> list[str]:
        return split_words(self.at(index))


class Plan:
    """Executions in order, each made when it is asked for.

    `<Plan: 4 executions, parameters lr, seed>`
    """

    def __init__(
        self,
        arguments: _Arguments,
        rows: Rows | None = None,
        grids: Sequence[Grid] = (),
        *,
        repeats: int = 1,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self._arguments = arguments
        self._rows = rows
        self._grids = tuple(grids)
        self.repeats = repeats
        #: Every parameter.
        self.parameters = (*(rows.names if rows else ()), *(grid.name for grid in grids))
        #: How many different ones, before they are repeated.
        self.distinct = (rows.count if rows else 1) * prod(grid.count for grid in grids) * arguments.count
        #: How many executions; known without making any.
        self.count = self.distinct * repeats
        self.is_shuffled = shuffle
        self._seed = seed
        if shuffle and self.count > MOST_SHUFFLED:
            raise SpecError(f"--shuffle: {self.count} executions; expected at most {MOST_SHUFFLED}")

    def __repr__(self) -> str:
        named = f", parameters {', '.join(self.parameters)}" if self.parameters else ""
        return f"<Plan: {self.count} executions{named}>"

    def __iter__(self) -> Iterator[Planned]:
        """Yield every execution; each time from the first, in the same order."""
        if not self.is_shuffled:
            return self.unshuffled()
        order = array("Q", range(self.count))
        Random(self._seed).shuffle(order)
        return map(self.at, order)

    def unshuffled(self) -> Iterator[Planned]:
        """Yield every execution in the order of what it was made from."""
        return map(self.at, range(self.count))

    def at(self, index: int) -> Planned:
        """Return the execution at a place before shuffling, from 0 below `count`."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        which, repetition = divmod(index, self.repeats)
        which, here = divmod(which, self._arguments.count)
        values: dict[str, str] = {}
        for grid in reversed(self._grids):
            which, at = divmod(which, grid.count)
            values[grid.name] = grid.at(at)
        parameters = self._rows.at(which) if self._rows else {}
        parameters.update(reversed(values.items()))
        words = self._arguments.words(here)
        if parameters:
            words = _fill(words, parameters)
        return Planned(index, tuple(words), parameters, repetition)


def _fill(words: list[str], parameters: dict[str, str]) -> list[str]:
    """Put values where their names are; add the others at the end."""
    left = dict(parameters)

    def value(found: re.Match[str]) -> str:
        left.pop(found.group(1), None)
        return parameters[found.group(1)]

    words = [_PLACEHOLDER.sub(value, word) if MARK in word else word for word in words]
    return words + [f"--{name}={text}" for name, text in left.items()]


def make_plan(
    words: Sequence[str] = (),
    *,
    arguments_file: str | None = None,
    grids: Sequence[str] = (),
    csv: str | None = None,
    jsonl: str | None = None,
    repeats: int = 1,
    shuffle: bool = False,
    seed: int = 0,
    stdin: BinaryIO | None = None,
) -> Plan:
    """Read what the options name, and plan.

    Args:
        words: What follows `--`; nothing: one execution without arguments (for each row, for each point of the grids).
        arguments_file: FILE of `--arguments-file`, `-` for standard input.
        grids: What each `--grid` was given, in order.
        csv: FILE of `--csv`.
        jsonl: FILE of `--jsonl`.
        repeats: Executions of each.
        shuffle: In another order.
        seed: Which other order.
        stdin: Standard input.

    Raises:
        SpecError: A file that cannot be read, text that cannot be understood, options that contradict, or nothing to execute.
        TemplateError: A SpecError with line and column.
    """
    if repeats < 1:
        raise SpecError(f"--repeats {repeats}: expected 1 or more")
    if words and arguments_file is not None:
        raise SpecError("arguments behind -- and --arguments-file at once; expected one of them")
    if csv is not None and jsonl is not None:
        raise SpecError("--csv and --jsonl at once; expected one of them")
    if [arguments_file, csv, jsonl].count(STDIN) > 1:
        raise SpecError("- stands for standard input, which can be read once; name files for the others")
    points = [parse_grid(text) for text in grids]
    rows: Rows | None = None
    if csv is not None:
        rows = CsvRows(read_text(csv, "--csv", stdin), _where(csv))
    elif jsonl is not None:
        rows = JsonRows(read_text(jsonl, "--jsonl", stdin), _where(jsonl))
    names = [*(rows.names if rows else ()), *(grid.name for grid in points)]
    check_names(names, "the parameters")
    arguments: _Arguments
    if arguments_file is None:
        arguments = _Words(words, names)
    else:
        text = read_text(arguments_file, "--arguments-file", stdin)
        arguments = _Lines(Lines(text, _where(arguments_file)), names)
    for name, where in arguments.names.items():
        if rows and name in rows.lacking:
            raise SpecError(
                f"{where} names {{{name}}}, which {_where(csv or jsonl or '')}, line {rows.lacking[name]}, does not have; "
                "add it there"
            )
    plan = Plan(arguments, rows, points, repeats=repeats, shuffle=shuffle, seed=seed)
    if not plan.count:
        empty = arguments_file if not arguments.count else csv or jsonl
        raise SpecError(f"{_where(empty or '')}: there is nothing to execute; expected at least one line")
    return plan


def _where(name: str) -> str:
    return "standard input" if name == STDIN else name
