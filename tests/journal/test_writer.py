"""The asyncio side: order, group commits, cancelling, a disk that refuses, closing."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from liborch.errors import InvariantError, JournalError, StorageError
from liborch.journal import Change, Group, Journal, Writer
from tests.journal.stories import begun, ending, entering, name


class Gate(Journal):
    """A real journal whose commits can be held back, counted, and made to find the disk full."""

    def prepare(self) -> None:
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.at_gate = threading.Event()
        self.sizes: list[int] = []
        self.refuse_with: int | None = None
        self.refusals = 0

    def commit(self, groups: Sequence[Group]) -> None:
        self.at_gate.set()
        assert self.open_gate.wait(10)
        if self.refuse_with is not None:
            self.refusals += 1
            raise StorageError("this machine", str(self.path), self.refuse_with, "writing")
        self.sizes.append(len(groups))
        super().commit(groups)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    begun(tmp_path / "journal.db").close()
    journal = Gate.open(tmp_path / "journal.db")
    assert isinstance(journal, Gate)
    journal.prepare()
    return journal


def numbers(path: Path) -> list[int]:
    with Journal.open(path, readonly=True) as journal:
        return [row.number for row in journal.executions(newest_first=False)]


async def held_back(gate: Gate, writer: Writer) -> asyncio.Task[None]:
    """A commit that is under way and waits at the closed gate."""
    gate.open_gate.clear()
    gate.at_gate.clear()
    first = asyncio.create_task(writer.commit(entering(0)))
    await asyncio.sleep(0)
    await asyncio.to_thread(gate.at_gate.wait, 10)
    return first


async def test_what_arrives_during_a_commit_goes_into_the_next_together(gate: Gate) -> None:
    writer = Writer(gate)
    first = await held_back(gate, writer)
    others = [asyncio.create_task(writer.commit(entering(n))) for n in range(1, 20)]
    await asyncio.sleep(0)
    gate.open_gate.set()
    await asyncio.gather(first, *others)
    assert gate.sizes == [1, 19]
    assert [seq for seq, _, _ in await writer.run(lambda journal: list(journal.groups("o1")))] == list(
        range(1, 21)
    )
    await writer.close()
    await writer.close()
    assert numbers(gate.path) == list(range(20))


async def test_a_commit_is_in_the_file_when_it_returns(gate: Gate) -> None:
    writer = Writer(gate)
    for n in range(5):
        await writer.commit(entering(n))
        assert numbers(gate.path) == list(range(n + 1))
    await writer.close()


async def test_cancelling_a_commit_leaves_it_whole_and_the_others_alone(gate: Gate) -> None:
    writer = Writer(gate)
    first = await held_back(gate, writer)
    second = asyncio.create_task(writer.commit(entering(1)))
    third = asyncio.create_task(writer.commit(entering(2)))
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    gate.open_gate.set()
    await third
    assert first.cancelled() or first.cancelling()
    await writer.close()
    assert numbers(gate.path) == [0, 1, 2]


async def test_a_wrong_group_is_refused_alone(gate: Gate) -> None:
    writer = Writer(gate)
    first = await held_back(gate, writer)
    wrong = Group("o1", 1.0, 1, b"", (), [Change("unknown", "placed")])
    tasks = [asyncio.create_task(writer.commit(group)) for group in (entering(1), wrong, entering(2))]
    await asyncio.sleep(0)
    gate.open_gate.set()
    await first
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(None), InvariantError, type(None)]
    await writer.close()
    assert numbers(gate.path) == [0, 1, 2]


async def test_a_full_disk_is_told_kept_and_made_good(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liborch.journal.writer.LAST_RETRY_S", 0.05)
    stalls: list[StorageError] = []
    stalled, recovered = asyncio.Event(), asyncio.Event()

    def on_stall(error: StorageError) -> None:
        stalls.append(error)
        stalled.set()

    writer = Writer(gate, on_stall=on_stall, on_recover=recovered.set)
    gate.refuse_with = errno.ENOSPC
    task = asyncio.create_task(writer.commit(entering(0)))
    await stalled.wait()
    assert writer.stalled is stalls[0]
    assert not task.done()
    more = asyncio.create_task(writer.commit(ending(0)))
    gate.refuse_with = None
    await asyncio.gather(task, more)
    await recovered.wait()
    assert writer.stalled is None
    assert [error.code for error in stalls] == [errno.ENOSPC]
    await writer.close()
    assert numbers(gate.path) == [0]


async def test_memory_is_bounded_and_order_kept_while_the_disk_is_full(gate: Gate) -> None:
    stalled = asyncio.Event()
    writer = Writer(gate, on_stall=lambda _: stalled.set(), most_bytes=20_000)
    gate.refuse_with = errno.ENOSPC
    tasks = [asyncio.create_task(writer.commit(entering(n, payload=bytes(1000)))) for n in range(100)]
    await stalled.wait()
    assert writer._pending_bytes < 22_000
    assert len(writer._line) > 80
    tasks[90].cancel()
    gate.refuse_with = None
    await asyncio.gather(*tasks, return_exceptions=True)
    await writer.close()
    # The one that still waited for room was taken back whole.
    assert numbers(gate.path) == [n for n in range(100) if n != 90]
    with Journal.open(gate.path) as journal:
        assert [at for _, at, _ in journal.groups("o1")] == [1000.0 + n for n in range(100) if n != 90]


async def test_closing_on_a_full_disk_says_what_is_lost(gate: Gate) -> None:
    stalled = asyncio.Event()
    writer = Writer(gate, on_stall=lambda _: stalled.set(), most_bytes=3000)
    gate.refuse_with = errno.ENOSPC
    tasks = [asyncio.create_task(writer.commit(entering(n, payload=bytes(1000)))) for n in range(5)]
    await stalled.wait()
    with pytest.raises(StorageError):
        await writer.close()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StorageError] * 5
    with pytest.raises(StorageError):
        await writer.commit(entering(9))
    assert numbers(gate.path) == []


async def test_a_journal_that_is_gone_fails_every_commit_from_then_on(gate: Gate) -> None:
    writer = Writer(gate)
    await writer.commit(entering(0))
    gate.path.unlink()
    for n in (1, 2):
        with pytest.raises(JournalError):
            await writer.commit(entering(n))
    await writer.close()


async def test_a_call_runs_between_commits_and_raises_what_it_raises(gate: Gate) -> None:
    writer = Writer(gate)
    await writer.run(lambda journal: journal.begin("o2", "api", ""))
    await writer.commit(entering(0, "o2"))
    assert await writer.run(lambda journal: journal.find("last")) == [name(0, "o2")]
    with pytest.raises(ZeroDivisionError):
        await writer.run(lambda journal: 1 // 0)
    await writer.commit(entering(1, "o2"))
    await writer.close()
    with pytest.raises(InvariantError):
        await writer.commit(entering(2, "o2"))


async def test_the_log_is_moved_into_the_file_when_idle(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liborch.journal.writer.IDLE_S", 0.01)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    checkpoint = gate.checkpoint

    def tell() -> None:
        checkpoint()
        loop.call_soon_threadsafe(done.set)

    monkeypatch.setattr(gate, "checkpoint", tell)
    writer = Writer(gate)
    await writer.commit(entering(0))
    copy = gate.path.with_name("copy.db")
    found: list[int] = []
    async with asyncio.timeout(30):
        # On a busy machine it is idle before the commit, too.
        while not found:
            await done.wait()
            done.clear()
            copy.write_bytes(gate.path.read_bytes())
            found = numbers(copy)
    assert found == [0]
    await writer.close()


async def test_the_log_stays_small_under_load(gate: Gate) -> None:
    gate.checkpoint_bytes = 200_000
    writer = Writer(gate)
    sizes = []
    for n in range(60):
        await writer.commit(entering(n, payload=bytes(30_000)))
        sizes.append(gate._wal.stat().st_size)
    await writer.close()
    assert max(sizes) < 400_000
    assert numbers(gate.path) == list(range(60))
