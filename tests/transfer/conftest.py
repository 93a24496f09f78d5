from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from liborch.specs import Leave
from liborch.transfer.fetch import FetchReport, fetch
from liborch.transfer.send import CleanReport, SendReport, clean, send
from liborch.transfer.snapshot import take_snapshot
from liborch.transfer.stream import FrameStream, worker_stream


@dataclass
class Host:
    """A host of this machine: a directory and a conversation with a worker."""

    directory: Path
    stream: FrameStream

    async def send(self, tree: Path, name: str = "run", stream: Any = None, **options: Any) -> SendReport:
        snapshot = take_snapshot(tree)
        return await send(
            stream or self.stream,
            snapshot,
            str(self.directory / name),
            directory=str(self.directory),
            **options,
        )

    async def fetch(self, target: Path, name: str = "run", stream: Any = None, **options: Any) -> FetchReport:
        return await fetch(
            stream or self.stream,
            str(self.directory / name),
            target,
            directory=str(self.directory),
            **options,
        )

    async def clean(self, leave: Leave, name: str = "run", **options: Any) -> CleanReport:
        return await clean(
            self.stream, str(self.directory / name), directory=str(self.directory), leave=leave, **options
        )


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with worker_stream() as stream:
        yield Host(tmp_path / "host", stream)
