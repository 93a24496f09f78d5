"""One value of a profile: YAML node -> number, text, duration, size, commands. The key decides what its words mean.

How words are read, whatever YAML 1.1 would make of them (quotes make no difference, but for `null`):

* text: as written. `on`, `no`, `012`, `1e3`, `.nan` are those very characters;
* a whole number: digits only. `1e3`, `0x10`, `1_000`, `2.0`, `012` (octal in YAML 1.1, twelve in 1.2), `on` are errors;
* a duration or size: `liborch.quantities`;
* `null`, `~` and nothing at all, unquoted: an error, never a default. Leave the key out instead.

`load` holds the tables of keys; this module has no idea of profiles.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from liborch.errors import ProfileError, QuantityError
from liborch.profiles import nodes
from liborch.profiles.nodes import Node, Scalar, shown
from liborch.quantities import parse_duration, parse_gpus, parse_size

T = TypeVar("T")
#: Largest whole number taken: more of anything than there is.
MAX_NUMBER = 1_000_000
_YEAR_S = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where in which file a value stands; `key` is a path such as `nodes[2].slots.cpus`."""

    file: str
    node: Node
    key: str = ""

    def fail(self, problem: str, expected: str = "") -> NoReturn:
        """Raise ProfileError about this value."""
        raise ProfileError(self.file, self.node.line, self.key or None, problem, expected)

    def below(self, key: str, node: Node) -> Place:
        """The place of a value in this mapping."""
        return Place(self.file, node, f"{self.key}.{key}" if self.key else key)

    def item(self, index: int, node: Node) -> Place:
        """The place of an item, counted from 1, of this list."""
        return Place(self.file, node, f"{self.key}[{index}]")

    @property
    def found(self) -> str:
        """What stands here, for a message."""
        match self.node:
            case Scalar(text=text) as scalar:
                return "nothing" if scalar.is_null else shown(text)
            case nodes.Sequence():
                return "a list"
            case _:
                return "a mapping"


#: Reads the value at a place, or raises ProfileError.
Reader = Callable[[Place], T]


@dataclass(frozen=True, slots=True)
class Key:
    """What a key of a mapping holds."""

    read: Reader[Any]
    required: bool = False


def read_mapping(
    place: Place, table: Mapping[str, Key], hints: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Read a mapping by a table; keys that are not there are left out of the result.

    Args:
        place: The mapping.
        table: Every key allowed.
        hints: What to say about keys that are known not to belong here.

    Raises:
        ProfileError: No mapping; an unknown key (the nearest is named); a required key is missing; a bad value.
    """
    if not isinstance(place.node, nodes.Mapping):
        place.fail(f"found {place.found}", f"a mapping with {_listed(table)}")
    values: dict[str, Any] = {}
    for key, node in place.node.pairs:
        if key.text not in table:
            near = difflib.get_close_matches(key.text, table, n=1, cutoff=0.6)
            hint = (hints or {}).get(key.text)
            said = hint or (f"did you mean {near[0]}?" if near else "")
            problem = f"unknown key {shown(key.text)}" + (f"; {said}" if said else "")
            raise ProfileError(place.file, key.line, place.key or None, problem, f"one of {_listed(table)}")
        values[key.text] = table[key.text].read(place.below(key.text, node))
    for name, entry in table.items():
        if entry.required and name not in values:
            place.fail(f"the key {name} is missing", f"`{name}: ...`")
    return values


def read_text(place: Place) -> str:
    """Text on one line, not empty."""
    text = _scalar(place, "text").text
    if not text.strip():
        place.fail("is empty", "text")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        place.fail(f"{shown(text)} holds a control character", "text on one line")
    return text


def read_command(place: Place) -> str:
    """One command: any text, several lines as well, perhaps empty."""
    if isinstance(place.node, nodes.Mapping):
        place.fail(
            "found a mapping where a command belongs",
            "text; quote a command that holds `: `, as in 'echo a: b'",
        )
    scalar = _scalar(place, "a command", empty=True)
    if "\0" in scalar.text:
        place.fail("holds a NUL character", "text")
    return scalar.text


def read_commands(place: Place) -> tuple[str, ...]:
    """A list of commands; one command alone is taken as a list of it."""
    if isinstance(place.node, Scalar) and not place.node.is_null:
        return (read_command(place),)
    return read_list(place, read_command, "a list of commands")


def read_texts(place: Place) -> tuple[str, ...]:
    """A list of texts."""
    return read_list(place, read_text, "a list such as [a, b]")


def read_list(place: Place, read: Reader[T], expected: str) -> tuple[T, ...]:
    """A list whose items `read` takes."""
    if not isinstance(place.node, nodes.Sequence):
        place.fail(f"found {place.found}", expected)
    return tuple(read(place.item(index, node)) for index, node in enumerate(place.node.items, 1))


def whole_number(least: int, what: str = "a whole number") -> Reader[int]:
    """A reader of whole numbers from `least` to MAX_NUMBER."""

    def read(place: Place) -> int:
        expected = f"{what} of at least {least}"
        text = _scalar(place, expected).text.strip()
        if not re.fullmatch(r"-?[0-9]{1,12}", text):
            place.fail(f"found {shown(text)}", f"{expected}, digits only")
        if re.fullmatch(r"-?0[0-9]+", text):
            place.fail(f"found {text}: a leading zero means octal to some", f"{expected}, as in {int(text)}")
        if not least <= int(text) <= MAX_NUMBER:
            place.fail(f"found {text}", f"{expected}, {MAX_NUMBER:,} at most")
        return int(text)

    return read


def read_gpus(place: Place) -> float:
    """Whole GPUs, or a share of one."""
    expected = "a whole number, or a share of one GPU such as 0.5"
    text = _scalar(place, expected).text
    try:
        return parse_gpus(text)
    except QuantityError:
        place.fail(f"found {shown(text)}", expected)


def read_duration(place: Place) -> float:
    """Seconds: more than none, ten years at most."""
    expected = "a duration such as 90s, 1h30m or 01:30:00"
    text = _scalar(place, expected).text
    try:
        seconds = parse_duration(text)
    except QuantityError:
        place.fail(f"found {shown(text)}", expected)
    if not 0 < seconds <= 10 * _YEAR_S:
        place.fail(f"found {shown(text)}", f"{expected}, more than none and ten years at most")
    return seconds


def read_size(place: Place) -> int:
    """Bytes: at least one."""
    expected = "a size such as 500M, 4G or 4GiB"
    text = _scalar(place, expected).text
    try:
        size = parse_size(text)
    except QuantityError:
        place.fail(f"found {shown(text)}", expected)
    if not 0 < size < 1 << 60:
        place.fail(f"found {shown(text)}", f"{expected}, more than none")
    return size


def choice(words: Sequence[str]) -> Reader[str]:
    """A reader of one of some words."""

    def read(place: Place) -> str:
        expected = f"one of {_listed(words)}"
        text = _scalar(place, expected).text
        if text not in words:
            near = difflib.get_close_matches(text.lower(), words, n=1, cutoff=0.6)
            place.fail(f"found {shown(text)}" + (f"; did you mean {near[0]}?" if near else ""), expected)
        return text

    return read


def _scalar(place: Place, expected: str, *, empty: bool = False) -> Scalar:
    if not isinstance(place.node, Scalar):
        place.fail(f"found {place.found}", expected)
    if place.node.is_null and not (empty and place.node.text == ""):
        problem = "has no value" if not place.node.text else f"found {place.node.text}, which is no value"
        place.fail(problem, f"{expected}; leave the key out for the default, quote the word if you mean it")
    return place.node


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
