"""`--grid NAME=VALUES`: a parameter and the values it takes. Pure.

VALUES are separated by commas: `lr=0.1,0.01`, `model=small,large`. Each may be a range, both ends in it: `seed=0..9`, `9..0`,
`0..100..20`, `0.1..0.5..0.1` (exact, as written: 0.1, 0.2, 0.3, not 0.30000000000000004), `001..100` (as wide as written).
A number with a decimal point needs a step. What is no range of numbers is text: `../data`, `a..c`.

Commas between quotes or brackets separate nothing, and the quotes are taken off: `layers=[64,64],[128]`, `mode="a,b",c`. Within
quotes a doubled one is one. `tag='',fast` has an empty value; without quotes an empty one is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from liborch.errors import SpecError
from runaway.batches.words import match_brackets

#: What a parameter may be called.
NAME = re.compile(r"[^\W\d][\w.-]*")
#: Values one `--grid` may have; each is only made when it is asked for, but somebody mistyped.
MOST_VALUES = 10**12

_NUMBER = r"[+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?:\.\.({_NUMBER}))?")


@dataclass(frozen=True, slots=True)
class _Range:
    """Numbers with a fixed distance, as text."""

    first: Decimal
    step: Decimal
    count: int
    #: Digits to fill up with zeros.
    width: int = 0

    def at(self, index: int) -> str:
        # Scaled to the digits that were written: first and step have as many behind the point.
        text = f"{self.first + index * self.step:f}"
        if not self.width:
            return text
        sign = "-" if text.startswith("-") else ""
        return sign + text.removeprefix("-").rjust(self.width - len(sign), "0")


@dataclass(frozen=True, slots=True)
class Grid:
    """A parameter and its values; none is made before it is asked for."""

    name: str
    _parts: tuple[str | _Range, ...]
    count: int

    def at(self, index: int) -> str:
        """Return one value, `index` from 0 below `count`."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        for part in self._parts:
            here = 1 if isinstance(part, str) else part.count
            if index < here:
                return part if isinstance(part, str) else part.at(index)
            index -= here
        raise AssertionError("unreachable")

    def __iter__(self) -> Iterator[str]:
        return map(self.at, range(self.count))


def parse_grid(text: str) -> Grid:
    """Parse what was given to one `--grid`.

    Raises:
        SpecError: It is no NAME=VALUES, a value is missing, or a range never ends.
    """
    name, equals, values = text.partition("=")
    if not equals or not NAME.fullmatch(name):
        raise SpecError(
            f"--grid {text!r}: expected NAME=VALUES, such as lr=0.1,0.01 or seed=0..9; "
            "a name is letters, digits, _ . - and begins with a letter or _"
        )
    parts: list[str | _Range] = []
    for number, (value, is_quoted) in enumerate(_split(text, values), 1):
        found = None if is_quoted else _RANGE.fullmatch(value)
        if not value and not is_quoted:
            raise SpecError(
                f"--grid {text!r}: value {number} is empty; expected one, or '' if it shall be empty"
            )
        parts.append(_range(text, *found.groups()) if found else value)
    count = sum(1 if isinstance(part, str) else part.count for part in parts)
    if count > MOST_VALUES:
        raise SpecError(f"--grid {text!r}: {count} values; expected at most {MOST_VALUES}")
    return Grid(name, tuple(parts), count)


def _split(text: str, values: str) -> Iterator[tuple[str, bool]]:
    """Yield each value, and whether it was quoted."""
    pairs: dict[int, int] | None = None
    at = 0
    while True:
        char = values[at : at + 1]
        if char and char in "'\"":
            found = re.compile(f"{char}((?:[^{char}]|{char}{char})*){char}(?=,|$)", re.DOTALL).match(
                values, at
            )
            if not found:
                raise SpecError(
                    f"--grid {text!r}: a {char} is never closed; expected another before the next comma"
                )
            yield found.group(1).replace(char * 2, char), True
            end = found.end()
        else:
            pairs = match_brackets(values) if pairs is None else pairs
            end = at
            while end < len(values) and values[end] != ",":
                end = pairs.get(end, end) + 1
            yield values[at:end].strip(), False
        if end >= len(values):
            return
        at = end + 1


def _range(text: str, first: str, last: str, step: str | None) -> _Range:
    begin, end = Decimal(first), Decimal(last)
    if step is None and ("." in first or "." in last):
        raise SpecError(f"--grid {text!r}: {first}..{last} needs a step; write {first}..{last}..STEP")
    by = Decimal(step) if step is not None else Decimal(1 if begin <= end else -1)
    if not by or (end - begin) * by < 0:
        raise SpecError(f"--grid {text!r}: steps of {by} never lead from {first} to {last}")
    # Digits behind the point as in the finest of the three, in every value.
    digits = Decimal(1).scaleb(min(int(number.as_tuple().exponent) for number in (begin, end, by)))
    padded = any(re.match(r"[+-]?0[0-9]", number) for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return _Range(begin.quantize(digits), by.quantize(digits), int((end - begin) // by) + 1, width)


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse names that no parameter can have, and those that would be one variable.

    Raises:
        SpecError: With the name, and why.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not NAME.fullmatch(name):
            raise SpecError(
                f"{where}: {name!r} cannot be the name of a parameter; expected letters, digits, _ . - with a letter or _ first"
            )
        variable = variable_of(name)
        if variable in seen:
            other = seen[variable]
            why = "there twice" if other == name else f"like {other!r}, both would be {variable}"
            raise SpecError(f"{where}: the parameter {name!r} is {why}; rename or leave out one")
        seen[variable] = name


@lru_cache
def variable_of(name: str) -> str:
    """`learning-rate` -> `RUNAWAY_PARAM_LEARNING_RATE`: the variable that an execution finds a parameter in."""
    return "RUNAWAY_PARAM_" + re.sub(r"\W", "_", name, flags=re.ASCII).upper()
