"""Noop executions per second of `runaway batch`, the whole process, beside others who run one program many times.

Ours: 4 slots of a host behind a real sshd, every execution on record, its exit status and output in a folder of its own.
Each is first made to leave something behind, which is counted, then timed with /bin/true, in turns. The counts differ
with the speed, so that a turn takes seconds. Of ours, all is timed: starting, connecting, the plan, the last result; the rivals that
have servers to start are timed without. Ours is of the size that people come for it with: half a second of start is a part of it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _batches
import _lab
import _rivals

ROUNDS = 3
#: No further round is begun after so many seconds: a busy machine measures less often, not for ever.
ENOUGH_S = 120
#: How many leave something behind, to be counted.
PROOF = 60
HOST = "h1"
#: {contestant: executions of one turn}
COUNTS = {
    "xargs": 6000,
    "runaway": 20_000,
    "hyperqueue": 2000,
    "dask": 1500,
    "parsl": 1000,
    "xargs_ssh": 400,
    "parallel_ssh": 40,
}
#: The others start programs on this machine.
ON_HOST = ("runaway", "xargs_ssh", "parallel_ssh")

#: (program, lines) -> seconds
Contestant = Callable[[str, Sequence[str]], float]


def contestants(
    rivals: _rivals.Rivals, environment: dict[str, str], folder: Path, cpu: dict[int, list[float]]
) -> dict[str, Contestant]:
    """Everybody who takes part, by name. `cpu`: gets {executions: processor seconds of our client each time}."""

    def runaway(program: str, lines: Sequence[str]) -> float:
        (folder / "lines").write_text("\n".join(lines) + "\n")
        words = ["--slots", str(_rivals.SLOTS), "-A", "lines", HOST, program]
        taken = _batches.run_batch(environment, folder, *words)
        _batches.check_results(folder, len(lines))
        cpu.setdefault(len(lines), []).append(taken.cpu_s)
        return taken.wall_s

    return {
        "xargs": rivals.xargs,
        "runaway": runaway,
        "hyperqueue": lambda program, lines: rivals.peer("hyperqueue_local", program, lines),
        "dask": lambda program, lines: rivals.peer("dask_subprocess", program, lines),
        "parsl": lambda program, lines: rivals.peer("parsl_htex", program, lines),
        "xargs_ssh": rivals.xargs_ssh,
        "parallel_ssh": rivals.parallel_ssh,
    }


def prove(name: str, contestant: Contestant, there: str, here: Path) -> None:
    """Have it make folders, and count them. `there` is where its processes see them, `here` where we do."""
    here.mkdir()
    contestant("/bin/mkdir", [f"{there}/{number}" for number in range(PROOF)])
    made = len(list(here.iterdir()))
    if made != PROOF:
        raise SystemExit(f"{name} says it ran {PROOF} programs; {made} left something behind")


def measure(lab: Any, environment: dict[str, str], folder: Path) -> None:
    """Prove, time and report everybody."""
    host = lab.host(HOST)
    rivals = _rivals.Rivals(lab.ssh_config, folder)
    cpu: dict[int, list[float]] = {}
    everybody = contestants(rivals, environment, folder, cpu)
    skipped: dict[str, str] = {}
    taken: dict[str, list[float]] = {}
    try:
        for name, contestant in everybody.items():
            here = (host.home if name in ON_HOST else folder) / f"made-{name}"
            try:
                prove(name, contestant, f"/root/{here.name}" if name in ON_HOST else str(here), here)
            except _rivals.NotHere as error:
                skipped[name] = str(error)
        began = time.monotonic()
        rounds = 0
        while not rounds or (rounds < ROUNDS and time.monotonic() - began < ENOUGH_S):
            rounds += 1
            for name, contestant in everybody.items():
                if name not in skipped:
                    lines = [f"x/{number}" for number in range(COUNTS[name])]
                    taken.setdefault(name, []).append(COUNTS[name] / contestant("/bin/true", lines))
    finally:
        rivals.close()
    _batches.check_journal(environment, PROOF + rounds * COUNTS["runaway"])
    report(taken, skipped)
    # What starting and connecting cost is in both.
    more = statistics.median(cpu[COUNTS["runaway"]]) - min(cpu[PROOF])
    _lab.report(
        "batch_cpu",
        round(more / (COUNTS["runaway"] - PROOF) * 1000, 3),
        "ms",
        better="lower",
        command=f"benches/batch.py: processor time of the client for each execution more than {PROOF}",
        rounds_s=[round(each, 2) for each in cpu[COUNTS["runaway"]]],
    )


def report(taken: dict[str, list[float]], skipped: dict[str, str]) -> None:
    """One line for each pair of us and another."""
    rates = {name: statistics.median(rounds) for name, rounds in taken.items()}
    for name in COUNTS:
        if name == "runaway":
            continue
        bench = f"batch_{name}"
        if name in skipped:
            _lab.skip(bench, skipped[name])
            continue
        _lab.report(
            bench,
            round(rates["runaway"]),
            "executions/s",
            ratio=round(rates["runaway"] / rates[name], 2),
            better="higher",
            command=f"benches/batch.py: runaway batch {HOST} /bin/true, 4 slots, beside {name}",
            theirs=round(rates[name]),
            rounds=[round(rate) for rate in taken["runaway"]],
            their_rounds=[round(rate) for rate in taken[name]],
        )
    print(json.dumps({name: round(rate) for name, rate in rates.items()}), file=sys.stderr)


def main() -> None:
    with (
        _lab.lab() as lab,
        _lab.own_folders(lab.ssh_config) as environment,
        _batches.results_folder() as folder,
    ):
        measure(lab, environment, folder)


if __name__ == "__main__":
    main()
