"""A pytest plugin that notes which edges of the core's transition tables a run of tests takes.

    pytest -p tests.architecture.reached tests/core

with ORCHESTRA_REACHED naming the file to write, and ORCHESTRA_REACHED_IN the package when it is not liborch.core.
A table is a module's mapping whose name ends in `TRANSITIONS`, in any of these shapes:

    {(state, event): next}      {state: {event: next}}      {state: (next, ...)}

Each is replaced by one that behaves the same and remembers what was looked up. Nothing else of the core changes, so
what is tested is what runs; a core that looks edges up elsewhere is noticed, as none of its edges are ever reached.
"""

from __future__ import annotations

import enum
import importlib
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Edge = tuple[str, ...]
#: The line that a table begins with.
TABLE = re.compile(r"^(\w*TRANSITIONS)\b[^=\n]*= ", re.MULTILINE)


def plain(key: object) -> Edge:
    """Return a key, or each part of it, as a reader would write it."""
    if isinstance(key, tuple):
        return tuple(part for item in key for part in plain(item))
    if isinstance(key, enum.Enum):
        return (key.name,)
    return (key.__name__,) if isinstance(key, type) else (str(key),)


def is_many(key: object, value: object, above: Edge) -> bool:
    """Whether an entry is {state: (next, ...)}: a collection of next states rather than one of them, or what to do."""
    return not above and not isinstance(key, tuple) and isinstance(value, tuple | list | set | frozenset)


def edges_of(table: Mapping[Any, Any], above: Edge = ()) -> Iterator[Edge]:
    """Yield every edge of a table."""
    for key, value in table.items():
        at = above + plain(key)
        if isinstance(value, Mapping):
            yield from edges_of(value, at)
        elif is_many(key, value, above):
            yield from (at + plain(item) for item in value)
        else:
            yield at


class RecordingTuple(tuple[Any, ...]):
    """Next states that remember which of them were asked for."""

    taken: set[Edge]
    at: Edge

    def __contains__(self, item: object) -> bool:
        found = super().__contains__(item)
        if found:
            self.taken.add(self.at + plain(item))
        return found


class RecordingSet(frozenset[Any]):
    """The same, where the table has sets."""

    taken: set[Edge]
    at: Edge

    def __contains__(self, item: object) -> bool:
        found = super().__contains__(item)
        if found:
            self.taken.add(self.at + plain(item))
        return found


class Recording(dict[Any, Any]):
    """A transition table that remembers which of its edges were looked up, in `taken`."""

    def __init__(self, table: Mapping[Any, Any], taken: set[Edge], above: Edge = ()) -> None:
        super().__init__()
        self.taken = taken
        self._above = above
        for key, value in table.items():
            at = above + plain(key)
            if isinstance(value, Mapping):
                value = Recording(value, taken, at)
            elif is_many(key, value, above):
                nexts = RecordingSet(value) if isinstance(value, set | frozenset) else RecordingTuple(value)
                nexts.taken, nexts.at = taken, at
                value = nexts
            super().__setitem__(key, value)

    def _note(self, key: object, value: object) -> None:
        if not isinstance(value, Recording | RecordingSet | RecordingTuple):
            self.taken.add(self._above + plain(key))

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        self._note(key, value)
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if super().__contains__(key) else default

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        if found:
            self._note(key, super().__getitem__(key))
        return found


def install(package: str) -> dict[str, Recording]:
    """Replace every table of a package, wherever it was imported to; return them by dotted name."""
    home = importlib.import_module(package)
    names = [info.name for info in pkgutil.walk_packages(home.__path__, package + ".")]
    found: dict[str, Recording] = {}
    for module in [home, *(importlib.import_module(name) for name in names)]:
        # Where a table is written, not where it is imported to.
        for name in TABLE.findall(Path(module.__file__ or os.devnull).read_text()):
            table = vars(module)[name]
            recording = Recording(table, set())
            found[f"{module.__name__}.{name}"] = recording
            for other in [m for key, m in sys.modules.items() if key.startswith(package.split(".")[0])]:
                for alias, value in list(vars(other).items()):
                    if value is table:
                        setattr(other, alias, recording)
    return found


_tables: dict[str, Recording] = {}


def pytest_configure() -> None:
    """Install before any test is read."""
    _tables.update(install(os.environ.get("ORCHESTRA_REACHED_IN", "liborch.core")))


def pytest_sessionfinish() -> None:
    """Write {table: {"edges": [...], "taken": [...]}}."""
    record = {
        name: {"edges": sorted(edges_of(table)), "taken": sorted(table.taken)}
        for name, table in _tables.items()
    }
    with open(os.environ["ORCHESTRA_REACHED"], "w") as file:
        json.dump(record, file)
