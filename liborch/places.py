"""Where the person's files are, by the XDG convention. The one place in the library that reads the environment for it.

Imports no msgspec: completion asks here at every key press.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Places(NamedTuple):
    """Folders of this machine; none is made by looking."""

    #: The journal, outputs, locks.
    state: Path
    #: Hashes of unchanged files, names for completion.
    cache: Path
    #: Folders of profiles, the first wins.
    profiles: tuple[Path, ...]
    #: An ssh configuration to use instead of the person's own; None: theirs.
    ssh_config: Path | None = None

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.state / "journal.db"


def places(environment: Mapping[str, str] | None = None) -> Places:
    """Read the environment (os.environ when None)."""
    env = os.environ if environment is None else environment
    home = Path(env.get("HOME") or os.path.expanduser("~"))
    config = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
    given = env.get("ORCHESTRA_SSH_CONFIG")
    return Places(
        state=Path(env.get("XDG_STATE_HOME") or home / ".local" / "state") / "orchestra",
        cache=Path(env.get("XDG_CACHE_HOME") or home / ".cache") / "orchestra",
        profiles=(config / "orchestra" / "hosts", config / "runaway"),
        ssh_config=Path(given) if given else None,
    )
