"""Debian's packages, unpacked into a folder instead of installed: for batch systems that only the lab's hosts shall have."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def unpack(name: str, packages: Sequence[str], prefix: Path) -> str | None:
    """Download and unpack packages into `prefix`, which is whole or not there. Returns why that cannot be, or None."""
    fresh = prefix.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    done = subprocess.run(
        f"apt-get download -qq {' '.join(packages)} && for f in *.deb; do dpkg-deb -x $f . || exit; done; rm *.deb",
        shell=True, cwd=fresh, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode:
        return f"Debian's packages of {name} cannot be had: {done.stderr.strip()[-300:]}"
    shutil.rmtree(prefix, ignore_errors=True)
    fresh.rename(prefix)
    return None
