"""`--resume` of a batch of 100,000 executions of which one is missing: the whole process, the missing one run.

The other 99,999 are really run before, so that what is on record is what a person would have.
"""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

import _batches
import _lab

COUNT = 100_000
ROUNDS = 3


def measure(environment: dict[str, str], folder: Path) -> None:
    """Run all but the last few, then resume with one line more at a time."""
    words = ["--slots", "4", "-A", "lines", "h1", "/bin/true"]
    lines = folder / "lines"
    text = [f"{number}\n" for number in range(COUNT)]
    lines.write_text("".join(text[: COUNT - ROUNDS]))
    ran = _batches.run_batch(environment, folder, *words)
    _batches.check_results(folder, COUNT - ROUNDS)
    rounds = []
    for left in range(ROUNDS - 1, -1, -1):
        shutil.rmtree(folder / "batch")
        lines.write_text("".join(text[: COUNT - left]))
        rounds.append(_batches.run_batch(environment, folder, "--resume", *words))
        # The missing one, and no other.
        _batches.check_results(folder, 1)
    _batches.check_journal(environment, COUNT)
    _lab.report(
        "batch_resume",
        round(statistics.median(each.wall_s for each in rounds), 2),
        "s",
        better="lower",
        command=f"benches/batch_resume.py: runaway batch --resume, {COUNT} executions, 1 without a verdict",
        rounds_s=[round(each.wall_s, 2) for each in rounds],
        cpu_s=round(statistics.median(each.cpu_s for each in rounds), 2),
        history_per_s=round(COUNT / ran.wall_s),
        history_cpu_ms=round(ran.cpu_s / COUNT * 1000, 3),
    )


def main() -> None:
    with (
        _lab.lab() as lab,
        _lab.own_folders(lab.ssh_config) as environment,
        _batches.results_folder() as folder,
    ):
        measure(environment, folder)


if __name__ == "__main__":
    main()
