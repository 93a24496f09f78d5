"""How full a batch keeps slots: 10,000 x `sleep 0.1` on 64 slots of four hosts, and slots of a host 100 ms away.

For the first, the ideal is what the sleeping alone takes. The whole process counts, with its start, its four connections and
its end; beside it, what `xargs -P64` comes to, which tells what of the rest this machine takes for starting so many programs.
For the second, the agent's own records say when a slot was left and when the next execution began in it.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import _batches
import _lab
import _turns

HOSTS = ("h1", "h2", "h3", "h4")
SLOTS = 16
COUNT = 10_000
SLEEP_S = 0.1
#: Each way.
DELAY_S = 0.05
FAR_COUNT = 600
FAR_SLEEP_S = 0.05
FAR_SLOTS = 4


def full_slots(environment: dict[str, str], folder: Path) -> None:
    """Report `batch_load`."""
    # Agents run, as after any execution of the last minutes.
    _batches.run_batch(environment, folder, "--each", ",".join(HOSTS), "/bin/true")
    ideal = COUNT * SLEEP_S / (SLOTS * len(HOSTS))
    words = ["--slots", str(SLOTS), "-x", str(COUNT), ",".join(HOSTS), "/bin/sleep", str(SLEEP_S)]
    plain, _ = _turns.program_time(
        ["sh", "-c", f"yes {SLEEP_S} | head -n {COUNT} | xargs -P{SLOTS * len(HOSTS)} -n1 /bin/sleep"]
    )
    taken = _batches.run_batch(environment, folder, *words)
    _batches.check_results(folder, COUNT)
    stays = [
        stay
        for stay in _batches.check_journal(environment, COUNT + len(HOSTS))
        if stay.ended - stay.began > SLEEP_S / 2
    ]
    slept = sum(stay.ended - stay.began for stay in stays)
    span = max(stay.ended for stay in stays) - min(stay.began for stay in stays)
    empty = _batches.gaps(stays)
    _lab.report(
        "batch_load",
        round(taken.wall_s, 2),
        "s",
        ratio=round(ideal / taken.wall_s, 3),
        better="higher",
        command=f"benches/batch_slots.py: {COUNT} x sleep {SLEEP_S} on {SLOTS * len(HOSTS)} slots, beside {ideal:.2f} s of sleep",
        xargs_s=round(plain, 2),
        xargs_ratio=round(ideal / plain, 3),
        first_to_last_s=round(span, 2),
        first_to_last_ratio=round(ideal / span, 3),
        one_sleep_ms=round(slept / COUNT * 1000, 1),
        client_cpu_s=round(taken.cpu_s, 2),
        **told(empty),
    )


def far_slots(environment: dict[str, str], folder: Path, host: str) -> None:
    """Report `batch_gap`."""
    words = ["--slots", str(FAR_SLOTS), "-x", str(FAR_COUNT), host, "/bin/sleep", str(FAR_SLEEP_S)]
    taken = _batches.run_batch(environment, folder, *words)
    _batches.check_results(folder, FAR_COUNT)
    empty = _batches.gaps(_batches.check_journal(environment, FAR_COUNT))
    _lab.report(
        "batch_gap",
        round(statistics.median(empty) * 1000, 2),
        "ms",
        better="lower",
        command=f"benches/batch_slots.py: {FAR_COUNT} x sleep {FAR_SLEEP_S}, {FAR_SLOTS} slots, {2000 * DELAY_S:.0f} ms round trip",
        wall_s=round(taken.wall_s, 2),
        **told(empty),
    )


def told(empty: list[float]) -> dict[str, float]:
    """The spread of gaps, in milliseconds."""
    return {
        "gap_mean_ms": round(statistics.fmean(empty) * 1000, 2),
        "gap_p99_ms": round(empty[int(len(empty) * 0.99)] * 1000, 2),
        "gap_most_ms": round(empty[-1] * 1000, 2),
    }


def each(lab: Any, work: Any, *more: str) -> None:
    """Run one of the two with folders of its own, so that what is on record is its own."""
    with _lab.own_folders(lab.ssh_config) as environment, _batches.results_folder() as folder:
        work(environment, folder, *more)


def main() -> None:
    with _lab.lab(len(HOSTS)) as lab:
        each(lab, full_slots)
        each(lab, far_slots, lab.delay_proxy("h1", DELAY_S))


if __name__ == "__main__":
    main()
