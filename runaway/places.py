"""Where the person's own ssh configuration is."""

from __future__ import annotations

import os
from pathlib import Path

from liborch.places import Places


def ssh_config_of(folders: Places) -> Path:
    """The file whose aliases can be named."""
    return folders.ssh_config or Path(os.path.expanduser("~/.ssh/config"))
