"""`here`: this machine as a host, with a journal and an agent of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.harness import Client, Node


class Here:
    """What `local` is for one test, looked at from outside by a client of its own."""

    def __init__(self, folder: Path) -> None:
        self.node = Node(folder)
        self.state = folder / "xdg-state" / "orchestra"
        self._looker: Client | None = None

    def __repr__(self) -> str:
        return f"<Here {self.node.state}>"

    def status(self) -> dict[str, Any]:
        """What the keeper has under way, after all it was told so far."""
        if self._looker is None:
            self._looker = self.node.client("looker")
        return self._looker.settle()

    def assert_bare(self) -> None:
        """Nothing runs, waits or is held on the node, and no process of an execution is left."""
        status = self.status()
        assert (status["runs"], status["queued"], status["holds"]) == ([], 0, []), status
        assert self.node.marked() == []


async def assert_quiet() -> None:
    """No task but the test's own is left."""
    # What was cancelled last needs a turn to hear of it.
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert left == set()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """An isolated `local`."""
    host = Here(tmp_path)
    for name, value in host.node.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / f"xdg-{name.lower()}"))
    monkeypatch.delenv("ORCHESTRA_SSH_CONFIG", raising=False)
    yield host
    host.node.stop()
