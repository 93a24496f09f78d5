"""What the benches of batches share: a person who types `runaway batch` in the lab, and a look at what is on record."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

RUNAWAY = str(Path(sys.executable).with_name("runaway"))
#: Seconds after which a batch is taken to hang.
MOST_S = 180


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


def run_batch(environment: dict[str, str], folder: Path, *words: str) -> float:
    """Type `runaway batch -S WORDS` in `folder`; return the seconds of the whole process.

    Raises:
        SystemExit: It did not end with 0.
    """
    shutil.rmtree(folder / "batch", ignore_errors=True)
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
    return seconds


def check_results(folder: Path, count: int) -> None:
    """Each execution has left its folder, with an `ecode` of 0 and its output."""
    folders = list((folder / "batch").iterdir())
    good = sum(
        (each / "ecode").read_bytes() == b"0\n" and (each / "stdout").exists() and (each / "stderr").exists()
        for each in folders
    )
    if good != count or len(folders) != count:
        raise SystemExit(f"{good} good results in {len(folders)} folders, {count} were wanted")


def check_journal(environment: dict[str, str], count: int) -> None:
    """All that was ever asked for is on record, succeeded."""
    from liborch.journal import Journal
    from liborch.places import places

    with Journal.open(places(environment).journal, readonly=True) as journal:
        rows = journal.executions()
        bad = [row for row in rows if row.state != "succeeded" or row.exit_code != 0]
    if len(rows) != count or bad:
        raise SystemExit(f"{len(rows)} executions are on record, {count} were asked for; not well: {bad[:3]}")
