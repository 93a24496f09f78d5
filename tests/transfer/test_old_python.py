"""The node's half runs on Python 3.6, standard library only, loose or packed into one folder."""

from __future__ import annotations

import ast
import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from liborch.transfer.send import clean, send
from liborch.transfer.snapshot import take_snapshot
from liborch.transfer.stream import worker_stream
from tests.transfer.trees import grow, picture

AGENT = Path(__file__).parents[2] / "liborch/agent"
MODULES = ["files", "frames", "link", "store", "index", "folder", "clean", "worker"]


@pytest.mark.parametrize("module", MODULES)
def test_source_is_python_3_6(module: str) -> None:
    tree = ast.parse((AGENT / f"{module}.py").read_text(), feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= sys.stdlib_module_names | set(MODULES)


def old_pythons() -> list[str]:
    """Interpreters of this machine older than ours, oldest first."""
    found = [shutil.which(f"python3.{minor}") for minor in (6, 7, 8, 9)]
    found += glob.glob(os.path.expanduser("~/.pyenv/versions/3.[6-9].*/bin/python3"))
    return [
        path
        for path in found
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
    ]


@pytest.mark.parametrize("python", [*old_pythons()[:1], sys.executable])
async def test_worker_of_copied_files_serves_under_any_locale(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in MODULES:
        shutil.copy(AGENT / f"{module}.py", tmp_path)
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")
    tree = grow(
        tmp_path / "tree",
        {"é": b"1", b"\xff": b"2", "large": os.urandom(400_000), "l": ("l", "ü".encode()), "d": None},
    )
    directory = tmp_path / "höst"
    async with worker_stream([python, "-I", "-S", str(tmp_path / "worker.py"), "9"], number=9) as stream:
        await send(stream, take_snapshot(tree), str(directory / "run"), directory=str(directory))
        assert picture(directory / "run") == picture(tree)
        await clean(stream, str(directory / "run"), directory=str(directory), leave="nothing")
    assert not directory.exists()
