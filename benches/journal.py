"""What the journal costs: CPU per execution, latency of a commit, time to open; one line of JSON.

    python benches/journal.py [executions]

Every figure is of work that was checked to be in the file. The latency is taken twice: beside an idle event loop, and
beside one that another callback keeps busy, since both share Python's global lock.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from liborch.journal import Change, Group, Journal, NewExecution, Writer

GROUP = 50
SPEC = json.dumps(
    {"argv": ["python3", "train.py", "--lr=0.1"], "env": {}, "resources": {"cpus": 2}, "walltime_s": 3600.0}
)
RECORD = json.dumps(
    {"cpu_s": 0.1, "memory_bytes": 12345678, "enforced": ["affinity", "rlimit"], "out": [0, 1234]}
)
PAYLOAD = os.urandom(60 * GROUP)


def lives(count: int, first: int = 0) -> list[tuple[Group, Group, Group]]:
    """Groups of executions that enter, are placed, and end."""
    groups = []
    for start in range(first, first + count, GROUP):
        ids = [str(uuid.uuid4()) for _ in range(min(GROUP, first + count - start))]
        n = len(ids)
        new = [NewExecution(id, start + i, "train.py --lr=0.1", "cluster", SPEC) for i, id in enumerate(ids)]
        placed = [Change(id, "placed", node="node17", attempt=1) for id in ids]
        ended = [
            Change(id, "succeeded", "exited", 0, None, "node17", 1, 1e9 + start, 1e9 + start + 1, RECORD)
            for id in ids
        ]
        payload = PAYLOAD[: 60 * n]
        groups.append(
            (
                Group("bench", 1e9, n, payload, new),
                Group("bench", 1e9, n, payload, (), placed),
                Group("bench", 1e9, n, payload, (), ended),
            )
        )
    return groups


def check(path: Path, count: int) -> None:
    """Every execution is there, ended, with its events."""
    with Journal.open(path, readonly=True) as journal:
        rows = journal.executions("bench", newest_first=False)
        assert [row.number for row in rows] == list(range(count)), "executions are missing"
        assert all(row.state == "succeeded" and row.record == RECORD and row.node == "node17" for row in rows)
        assert sum(len(payload) for _, _, payload in journal.groups("bench")) == 3 * 60 * count


def cpu_per_execution(folder: Path, count: int) -> float:
    """Microseconds of CPU, of all threads, checkpoints included, groups made beforehand."""
    work = lives(count)
    with Journal.open(folder / "cpu.db") as journal:
        journal.begin("bench", "batch", "bench")
        start = time.process_time()
        for new, placed, ended in work:
            journal.commit([new])
            journal.commit([placed])
            journal.commit([ended])
            if journal.wants_checkpoint():
                journal.checkpoint()
        used = time.process_time() - start
    check(folder / "cpu.db", count)
    return used / count * 1e6


class Timed(Journal):
    """Notes how long each transaction takes in its thread, the way back to the event loop not included."""

    took: list[float]

    def commit(self, groups: Sequence[Group]) -> None:
        before = time.perf_counter()
        super().commit(groups)
        self.took.append(time.perf_counter() - before)


async def latency(folder: Path, executions: int, busy: bool) -> tuple[float, float]:
    """Milliseconds a transaction takes, and the longest the event loop was kept from running meanwhile."""
    path = folder / f"latency-{executions}-{busy}.db"
    journal = Timed.open(path)
    assert isinstance(journal, Timed)
    journal.took = []
    journal.begin("bench", "batch", "bench")
    writer = Writer(journal)
    longest = 0.0
    going = True

    async def neighbour() -> None:
        nonlocal longest
        while going:
            before = time.perf_counter()
            if busy:
                while time.perf_counter() - before < 0.002:
                    pass
                before = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - before)
            if not busy:
                await asyncio.sleep(0.0005)

    task = asyncio.create_task(neighbour())
    for round_ in range(60):
        groups = lives(executions, round_ * executions)
        for stage in range(3):
            await asyncio.gather(*(writer.commit(part[stage]) for part in groups))
    going = False
    await task
    await writer.close()
    check(path, 60 * executions)
    return statistics.median(journal.took) * 1e3, longest * 1e3


def opening(path: Path) -> float:
    """Milliseconds to open and close a journal that was closed properly."""
    took = []
    for _ in range(5):
        before = time.perf_counter()
        journal = Journal.open(path)
        took.append(time.perf_counter() - before)
        assert journal.find("last")
        journal.close()
    return statistics.median(took) * 1e3


def importing() -> float:
    """Milliseconds that importing liborch.journal adds to importing sqlite3 and msgspec."""
    program = "import sqlite3, msgspec, time; a = time.perf_counter(); import liborch.journal; print(time.perf_counter() - a)"
    took = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(5)]
    return min(took) * 1e3


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as name:
        folder = Path(name)
        used = round(cpu_per_execution(folder, count), 1)
        result: dict[str, object] = {
            "bench": "journal",
            "value": used,
            "unit": "us",
            "better": "lower",
            "checked": True,
            "command": f"CPU for each of {count} executions that enter, are placed and end",
        }
        result["bytes_per_execution"] = (folder / "cpu.db").stat().st_size // count
        result["open_ms"] = round(opening(folder / "cpu.db"), 2)
        for executions in (1, 100):
            for busy in (False, True):
                median, longest = asyncio.run(latency(folder, executions, busy))
                key = f"commit_{executions}{'_beside_busy_loop' if busy else ''}"
                result[f"{key}_ms"] = round(median, 3)
                result[f"{key}_loop_stalled_ms"] = round(longest, 3)
        result["import_ms"] = round(importing(), 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
