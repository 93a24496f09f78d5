"""What `runaway plan` says of a batch, beside what a real Slurm of three nodes with four slots each then takes for it.

    python benches/plan.py [executions]

The measure is how far the plan is off, in percent of what it took; every execution must have done well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import _batches
import _lab

PROFILE = """name: big
ssh: h1
directory: /root/orchestra
batch_system: slurm
allocation: {nodes: 3, walltime: 2m}
slots: 4
"""
TAKES_S = 1


def main(count: int = 480) -> None:
    """Plan, run, and print one line for the table."""
    from tests.lab import slurm

    with _lab.lab(4) as lab:
        reason = slurm.unavailable()
        if reason is not None:
            _lab.skip("plan", reason)
            return
        with (
            slurm.SlurmCluster(lab, cpus=4),
            _lab.own_folders(lab.ssh_config) as environment,
            _batches.results_folder() as folder,
        ):
            profiles = Path(environment["XDG_CONFIG_HOME"]) / "orchestra" / "hosts"
            profiles.mkdir(parents=True)
            (profiles / "big.yaml").write_text(PROFILE)
            measure(environment, folder, count)


def measure(environment: dict[str, str], folder: Path, count: int) -> None:
    """Plan a batch, run it, compare."""
    words = ["big", "/bin/sleep", "-x", str(count)]
    said = subprocess.run(
        [_batches.RUNAWAY, "plan", *words, "--duration", f"{TAKES_S}s", "--json", "--", str(TAKES_S)],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
    )
    planned_s = json.loads(said.stdout)["makespan_s"]
    taken = _batches.run_batch(environment, folder, *words, "--", str(TAKES_S))
    _batches.check_results(folder, count)
    off = 100 * abs(planned_s - taken.wall_s) / taken.wall_s
    _lab.report(
        "plan",
        round(off, 2),
        "%",
        better="lower",
        target=10,
        command=f"runaway plan said {planned_s:.1f} s for {count} x {TAKES_S} s on a real Slurm, which took {taken.wall_s:.1f} s",
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
