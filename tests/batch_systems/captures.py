"""Reads what batch systems printed, kept as files below `captured/`; each folder's README says of which version."""

from __future__ import annotations

from pathlib import Path

from liborch.batch_systems.base import Output

FOLDER = Path(__file__).parent / "captured"


def captured(system: str, name: str, *, code: int = 0, stderr: bytes = b"") -> Output:
    """Return the answer whose stdout is `captured/SYSTEM/NAME.txt`."""
    return Output(code, (FOLDER / system / f"{name}.txt").read_bytes(), stderr)
