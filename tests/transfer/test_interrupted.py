"""The link breaks, or the caller gives up, at every possible frame: nothing half-done shows, the next try continues."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from liborch.errors import TransferError
from liborch.transfer.fetch import fetch
from liborch.transfer.send import send
from liborch.transfer.snapshot import Snapshot, take_snapshot
from liborch.transfer.stream import FrameStream, worker_stream
from tests.transfer.trees import Counting, Dying, Thing, grow, picture

LARGE = os.urandom(1_300_000)
TREE: dict[bytes | str, Thing] = {
    **{f"d{n}/f{m}": os.urandom(30_000) for n in range(3) for m in range(10)},
    "large": LARGE,
    "empty": None,
    "l": ("l", b"d1"),
}


class Cancelling(Dying):
    """A stream on which the caller is cancelled after some frames."""

    def _count(self) -> None:
        if self.left == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        self.left -= 1


async def until_it_holds(
    attempt: Callable[[Any], Any], wrap: Callable[[FrameStream, int], Any], error: type[BaseException]
) -> AsyncIterator[int]:
    """Call with a stream that breaks after 0, 1, 2... frames, on a fresh worker each time, until it holds."""
    for count in range(200):
        async with worker_stream() as stream:
            try:
                await attempt(wrap(stream, count))
            except error:
                yield count
            else:
                return
    raise AssertionError("it never held")


@pytest.mark.parametrize(("wrap", "error"), [(Dying, TransferError), (Cancelling, asyncio.CancelledError)])
async def test_sending_again_after_every_break_continues(
    tmp_path: Path, wrap: Any, error: type[BaseException]
) -> None:
    tree = grow(tmp_path / "tree", TREE)
    snapshot = take_snapshot(tree)
    run, directory = tmp_path / "host/run", tmp_path / "host"
    sent = 0

    async def attempt(stream: Any) -> None:
        nonlocal sent
        counting = Counting(stream)
        try:
            await send(counting, snapshot, str(run), directory=str(directory))
        finally:
            sent += counting.file_bytes
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                task.uncancel()

    breaks = 0
    async for _ in until_it_holds(attempt, wrap, error):
        breaks += 1
        assert not run.exists()
    assert breaks >= 4
    assert picture(run) == picture(tree)
    assert list((directory / ".orchestra/tmp").iterdir()) == []
    assert list((directory / ".orchestra/store/incoming").iterdir()) == []
    # What arrived was not sent again: beyond the tree's bytes only frames that were under way when it broke.
    assert sent < snapshot.total_bytes + breaks * 3 * 262_144


@pytest.mark.parametrize(("wrap", "error"), [(Dying, TransferError), (Cancelling, asyncio.CancelledError)])
async def test_fetching_again_after_every_break_continues(
    tmp_path: Path, wrap: Any, error: type[BaseException]
) -> None:
    run, back = grow(tmp_path / "host/run", TREE), tmp_path / "back"
    whole = picture(run)
    reports = []

    async def attempt(stream: Any) -> None:
        try:
            reports.append(await fetch(stream, str(run), back, directory=str(tmp_path / "host")))
        finally:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                task.uncancel()

    breaks = 0
    async for _ in until_it_holds(attempt, wrap, error):
        breaks += 1
        if back.exists():
            landed = {
                path: thing for path, thing in picture(back).items() if not path.startswith(b".orchestra")
            }
            assert landed.items() <= whole.items()
    assert breaks >= 4
    assert picture(back) == whole
    assert reports[0].already > 0
    assert reports[0].bytes < sum(len(thing) for thing in whole.values() if isinstance(thing, bytes))


async def test_large_file_continues_from_its_offset(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", {"large": LARGE})
    snapshot: Snapshot = take_snapshot(tree)
    run, directory = tmp_path / "host/run", tmp_path / "host"
    incoming = directory / ".orchestra/store/incoming"
    incoming.mkdir(parents=True)
    (incoming / snapshot.entries[0].digest.hex()).write_bytes(LARGE[:1_000_000])
    async with worker_stream() as stream:
        counting = Counting(stream)
        await send(counting, snapshot, str(run), directory=str(directory))
    assert counting.file_bytes == 300_000
    assert picture(run) == picture(tree)


async def test_large_file_whose_beginning_is_torn_is_sent_whole(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", {"large": LARGE})
    snapshot = take_snapshot(tree)
    run, directory = tmp_path / "host/run", tmp_path / "host"
    incoming = directory / ".orchestra/store/incoming"
    incoming.mkdir(parents=True)
    (incoming / snapshot.entries[0].digest.hex()).write_bytes(bytes(1_000_000))
    async with worker_stream() as stream:
        await send(stream, snapshot, str(run), directory=str(directory))
    assert picture(run) == picture(tree)


async def test_fetched_beginning_that_no_longer_fits_is_fetched_whole(tmp_path: Path) -> None:
    run, back = grow(tmp_path / "host/run", {"large": LARGE}), tmp_path / "back"
    async with worker_stream() as stream:
        with pytest.raises(TransferError):
            await fetch(Dying(stream, 6), str(run), back, directory=str(tmp_path / "host"))
    [part] = back.glob(".orchestra-fetch-*/part-*")
    assert part.stat().st_size > 0
    changed = bytes(LARGE[:9] + b"?" + LARGE[10:])
    (run / "large").write_bytes(changed)
    async with worker_stream() as stream:
        await fetch(stream, str(run), back, directory=str(tmp_path / "host"))
    assert picture(back) == {b"large": changed}


async def test_worker_killed_while_sending_is_a_retriable_error(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", TREE)
    async with worker_stream(["/bin/false"]) as stream:
        with pytest.raises(TransferError, match="interrupted") as caught:
            await send(stream, take_snapshot(tree), str(tmp_path / "run"), directory=str(tmp_path / "host"))
    assert caught.value.retriable


async def test_merge_into_a_folder_that_breaks_off_shows_only_whole_files(tmp_path: Path) -> None:
    """Interrupted while replacing files: each is the old or the new one, and afterwards none counts as the person's."""
    old = grow(tmp_path / "old", {f"f{n}": b"old" * 20_000 for n in range(20)})
    new = grow(tmp_path / "new", {f"f{n}": b"new" * 20_001 + b"%d" % n for n in range(20)})
    run, directory = tmp_path / "host/run", tmp_path / "host"
    async with worker_stream() as stream:
        await send(stream, take_snapshot(old), str(run), directory=str(directory))

    async def attempt(stream: Any) -> None:
        await send(stream, take_snapshot(new), str(run), directory=str(directory))

    async for _ in until_it_holds(attempt, Dying, TransferError):
        for path, thing in picture(run).items():
            assert thing in (picture(old)[path], picture(new)[path])
    assert picture(run) == picture(new)
