"""SSH connections: what a host's name means, whose keys are trusted, connections and channels within a server's limits.

`resolve` turns a name into an Endpoint as `ssh` would, `host_keys` judges the server's key, `handshake` makes one
connection of it, `channel` carries bytes, `connections` keeps one host's connections, `pool` all hosts' and hands out
channels, `pacing` says when and how many. Nothing here decides when to connect or what to run: the core does, the
driver calls. Importing this package is cheap; asyncssh is imported by the first connection.
"""

from __future__ import annotations

# Type checkers take the name for true; importing `typing` for it would cost more than all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from liborch.ssh.channel import Channel
    from liborch.ssh.connections import Connection
    from liborch.ssh.limits import Completed, Counters, Limits
    from liborch.ssh.pool import Pool
    from liborch.ssh.resolve import Endpoint, resolve_host

_HOMES = {
    "Channel": "channel",
    "Completed": "limits",
    "Connection": "connections",
    "Counters": "limits",
    "Endpoint": "resolve",
    "Limits": "limits",
    "Pool": "pool",
    "resolve_host": "resolve",
}

__all__ = ["Channel", "Completed", "Connection", "Counters", "Endpoint", "Limits", "Pool", "resolve_host"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `--help` never pays for asyncio."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
