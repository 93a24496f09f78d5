"""What benches share: a lab host and files of their own, so that nothing of the person's is touched or measured."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@contextlib.contextmanager
def lab(count: int = 1, **options: Any) -> Iterator[Any]:
    """Hosts with a real sshd. Prints why and exits with 0 where that cannot be."""
    from tests.lab.hosts import Lab, unavailable

    reason = unavailable()
    if reason is not None:
        print(json.dumps({"bench": Path(sys.argv[0]).stem, "skipped": reason}))
        raise SystemExit(0)
    with Lab(count=count, **options) as made:
        yield made


@contextlib.contextmanager
def own_folders(ssh_config: Path | str | None = None) -> Iterator[dict[str, str]]:
    """An environment whose state, cache and configuration are empty and vanish."""
    with tempfile.TemporaryDirectory(prefix="orchestra-bench-") as folder:
        # A person has compiled modules; a workplace may forbid writing them, which would measure the compiler.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        for name in ("STATE", "CACHE", "CONFIG"):
            environment[f"XDG_{name}_HOME"] = f"{folder}/{name.lower()}"
        environment["ORCHESTRA_AGENT_STATE"] = f"{folder}/agent"
        if ssh_config is not None:
            environment["ORCHESTRA_SSH_CONFIG"] = str(ssh_config)
        yield environment


def report(
    bench: str, value: float, unit: str, *, better: str, command: str, ratio: float | None = None, **more: Any
) -> None:
    """Print one measure. Only called once the work was checked."""
    line = {
        "bench": bench,
        "value": value,
        "unit": unit,
        "ratio": ratio,
        "better": better,
        "checked": True,
        "command": command,
    }
    print(json.dumps({**line, **more}), flush=True)


def skip(bench: str, why: str) -> None:
    """Say that a measure cannot be taken here."""
    print(json.dumps({"bench": bench, "skipped": why}), flush=True)
