"""`make`: executors on this machine, with a journal and an agent of the test's own, and nothing left behind."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import liborch
from liborch.specs import HostProfile, SlotSpec
from tests.drive.conftest import Here, here

__all__ = ["Here", "here", "make", "temporary"]

Make = Callable[..., liborch.Executor]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process puts temporary files, all of them ours."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def make(here: Here, temporary: Path) -> Iterator[Make]:
    """`make(slots=2, **options)` is an Executor on this machine; afterwards no thread, file or process of it is left."""
    before = set(threading.enumerate())
    made: list[liborch.Executor] = []

    def make_one(slots: int = 2, **options: Any) -> liborch.Executor:
        profile = HostProfile(name="local", ssh="local", slots=SlotSpec(count=slots))
        made.append(liborch.Executor(profile, **{"python": sys.executable, **options}))
        return made[-1]

    yield make_one
    for each in made:
        each.shutdown(cancel_futures=True)
    assert set(threading.enumerate()) <= before
    assert list(temporary.iterdir()) == []
    if made:
        here.assert_bare()
