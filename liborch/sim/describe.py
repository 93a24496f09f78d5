"""A deep, comparable description of a machine: everything that could make it behave otherwise.

Two machines with equal descriptions answer every further event alike. Used to show that replaying events rebuilds the state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from liborch.core.machine import Orchestration

#: Looked up again, or bound to the machine itself.
_SKIPPED = frozenset({"_handlers", "_out", "_retries", "_give_ups"})


def describe(machine: Orchestration) -> dict[str, Any]:
    """Return plain data; objects met twice are named by where they were met first, so that identity counts, too."""
    seen: dict[int, str] = {}

    def plain(value: Any, at: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, tuple):
            return tuple(plain(part, f"{at}[{number}]") for number, part in enumerate(value))
        if isinstance(value, set | frozenset):
            return sorted(repr(part) for part in value)
        known = seen.get(id(value))
        if known is not None:
            return f"the one at {known}"
        seen[id(value)] = at
        if isinstance(value, Mapping):
            return [(repr(key), plain(part, f"{at}[{key!r}]")) for key, part in value.items()]
        if isinstance(value, list | deque):
            return [plain(part, f"{at}[{number}]") for number, part in enumerate(value)]
        if hasattr(value, "getstate"):
            return value.getstate()
        names = getattr(type(value), "__slots__", None) or sorted(vars(value))
        return {name: plain(getattr(value, name), f"{at}.{name}") for name in names}

    return {name: plain(value, name) for name, value in sorted(vars(machine).items()) if name not in _SKIPPED}
