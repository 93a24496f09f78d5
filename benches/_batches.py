"""What the benches of batches share: a person who types `runaway batch` in the lab, and a look at what is on record."""

from __future__ import annotations

import contextlib
import itertools
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNAWAY = str(Path(sys.executable).with_name("runaway"))
#: Seconds after which a batch is taken to hang.
MOST_S = 400


@contextlib.contextmanager
def results_folder() -> Iterator[Path]:
    """A folder for results, in memory where there is such a file system.

    What creating a file costs is the file system's affair, the same whoever asks, and between 5 us (in memory) and
    1 ms (a large old ext4): it would drown what is measured. The journal stays on the disk.
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="orchestra-bench-", dir=memory if memory.is_dir() else None
    ) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Taken:
    """What a batch cost: seconds of the whole process, and seconds of processor time in the client."""

    wall_s: float
    cpu_s: float


def run_batch(environment: dict[str, str], folder: Path, *words: str) -> Taken:
    """Type `runaway batch -S WORDS` in `folder`, which must end with 0.

    Raises:
        SystemExit: It did not.
    """
    shutil.rmtree(folder / "batch", ignore_errors=True)
    before = cpu_of_children()
    began = time.perf_counter()
    done = subprocess.run(
        [RUNAWAY, "batch", "-S", *words],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=MOST_S,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"runaway batch {' '.join(words)}: {done.returncode}, {done.stderr[-500:]!r}")
    return Taken(seconds, cpu_of_children() - before)


def cpu_of_children() -> float:
    """Processor seconds of all processes of ours that have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check_results(folder: Path, count: int) -> None:
    """Each execution has left its folder, with an `ecode` of 0 and its output."""
    folders = list((folder / "batch").iterdir())
    good = sum(
        (each / "ecode").read_bytes() == b"0\n" and (each / "stdout").exists() and (each / "stderr").exists()
        for each in folders
    )
    if good != count or len(folders) != count:
        raise SystemExit(f"{good} good results in {len(folders)} folders, {count} were wanted")


def check_journal(environment: dict[str, str], count: int) -> list[Stay]:
    """All that was ever asked for is on record, succeeded; returns when and where each ran.

    Raises:
        SystemExit: Something is missing, or did not go well.
    """
    from liborch.journal import Journal
    from liborch.places import places

    with Journal.open(places(environment).journal, readonly=True) as journal:
        rows = list(journal.executions())
    bad = [row for row in rows if row.state != "succeeded" or row.exit_code != 0]
    if len(rows) != count or bad:
        raise SystemExit(f"{len(rows)} executions are on record, {count} were asked for; not well: {bad[:3]}")
    return [Stay.of(str(row.node), json.loads(row.record or "{}")) for row in rows]


@dataclass(frozen=True)
class Stay:
    """One execution in its slot, by its node's own records; seconds since the epoch."""

    node: str
    slot: int
    began: float
    ended: float

    @classmethod
    def of(cls, node: str, record: dict[str, Any]) -> Stay:
        """Read what an agent told of an end."""
        return cls(node, record["slot"], record["start"], record["start"] + record["dur"])


def gaps(stays: list[Stay]) -> list[float]:
    """Seconds that slots were empty between one execution and the next, sorted."""
    found = []
    by_slot: dict[tuple[str, int], list[Stay]] = {}
    for stay in sorted(stays, key=lambda stay: stay.began):
        by_slot.setdefault((stay.node, stay.slot), []).append(stay)
    for one in by_slot.values():
        found += [then.began - first.ended for first, then in itertools.pairwise(one)]
    return sorted(found)
