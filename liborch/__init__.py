"""Orchestra's non-blocking core library: hosts, slots and executions as awaitables.

The public names are here, each once, and imported when first used: `import liborch` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from liborch.drive.execution import Execution
    from liborch.drive.results import Result
    from liborch.executor import Executor
    from liborch.host import Host, Slot, as_completed, open_host
    from liborch.specs import ExecutionSpec, HostProfile, Resources

__version__ = "0.1.0"

_HOMES = {
    "Execution": "liborch.drive.execution",
    "ExecutionSpec": "liborch.specs",
    "Executor": "liborch.executor",
    "Host": "liborch.host",
    "HostProfile": "liborch.specs",
    "Resources": "liborch.specs",
    "Result": "liborch.drive.results",
    "Slot": "liborch.host",
    "as_completed": "liborch.host",
    "open_host": "liborch.host",
}

__all__ = [
    "Execution",
    "ExecutionSpec",
    "Executor",
    "Host",
    "HostProfile",
    "Resources",
    "Result",
    "Slot",
    "as_completed",
    "open_host",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'liborch' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
