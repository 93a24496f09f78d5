"""Short executions on a real Slurm of three nodes with four slots each, in allocations of two minutes; beside Slurm's own ways.

    python benches/slurm.py [executions] [executions of the others] [executions under fire]

Others: `sbatch --array`, a job for each, and one `srun` for each, twelve at a time. Then a batch during which the controller is
restarted, a node's slurmd killed, an allocation cancelled by hand and a node drained. Each must have done all its work, and
left nothing in the queue.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _batches
import _lab

NODES = 3
SLOTS = 4
#: How long each execution sleeps, in seconds.
TAKES_S = 1
#: Seconds after which something is taken to hang.
MOST_S = 600
PROFILE = """name: big
ssh: h1
directory: /root/orchestra
batch_system: slurm
allocation: {nodes: 3, walltime: 2m, most: 2}
"""
#: {seconds after the start: what happens then}, to a batch under fire.
FIRE: dict[float, Callable[[Any], object]] = {
    6: lambda cluster: cluster.kill_controller(),
    12: lambda cluster: cluster.start_controller(),
    17: lambda cluster: cluster.kill_node("h3"),
    22: lambda cluster: cluster.start_node("h3"),
    25: lambda cluster: cluster.run("scancel $(squeue -h -t R -o %i)"),
    32: lambda cluster: cluster.drain("h4"),
    40: lambda cluster: cluster.resume("h4"),
}


def ideal(count: int) -> float:
    """Seconds that so many would take with no slot ever empty."""
    return count * TAKES_S / (NODES * SLOTS)


def batch(environment: dict[str, str], folder: Path, count: int) -> float:
    """Seconds of `runaway batch` for so many, the whole process; all of them must have done well."""
    taken = _batches.run_batch(environment, folder, "big", "/bin/sleep", "-x", str(count), "--", str(TAKES_S))
    _batches.check_results(folder, count)
    return taken.wall_s


def allocations(cluster: Any, known: set[str]) -> list[str]:
    """Ids of jobs that are new. Raises SystemExit unless all of them are over."""
    jobs = dict(line.split() for line in cluster.run("squeue -h -a -t all -o '%i %t'").stdout.splitlines())
    left = [id for id, state in jobs.items() if state in ("PD", "R", "CF", "S")]
    if left:
        raise SystemExit(f"still in the queue: {left}")
    return [id for id in jobs if id not in known]


def array(cluster: Any, count: int) -> float:
    """Seconds of one array job."""
    script = f"sleep {TAKES_S}; mkdir -p /root/array; touch /root/array/$SLURM_ARRAY_TASK_ID"
    began = time.perf_counter()
    command = f"sbatch --wait --array=1-{count} -c1 -o /dev/null --wrap '{script}' >/dev/null"
    cluster.frontend.run(command, timeout_s=MOST_S)
    seconds = time.perf_counter() - began
    check_made(cluster, "array", count)
    return seconds


def sruns(cluster: Any, count: int) -> float:
    """Seconds of an srun for each."""
    script = f"sleep {TAKES_S}; mkdir -p /root/srun; touch /root/srun/@"
    began = time.perf_counter()
    command = f"seq {count} | xargs -P{NODES * SLOTS} -I@ srun -n1 -c1 sh -c '{script}'"
    cluster.frontend.run(command, timeout_s=MOST_S)
    seconds = time.perf_counter() - began
    check_made(cluster, "srun", count)
    return seconds


def check_made(cluster: Any, name: str, count: int) -> None:
    """Raises SystemExit unless each left its file, on whichever node."""
    made = sum(
        len(list((host.home / name).iterdir())) for host in cluster.lab.hosts if (host.home / name).is_dir()
    )
    if made != count:
        raise SystemExit(f"{name}: {made} of {count} left something behind")


def under_fire(cluster: Any, environment: dict[str, str], folder: Path, count: int) -> float:
    """Seconds of a batch to whose cluster everything happens."""
    began = time.perf_counter()
    over = threading.Event()

    def fire() -> None:
        for at, what in FIRE.items():
            over.wait(max(0.0, began + at - time.perf_counter()))
            what(cluster)

    firing = threading.Thread(target=fire)
    firing.start()
    try:
        return batch(environment, folder, count)
    finally:
        over.set()
        firing.join()


def measure(
    cluster: Any, environment: dict[str, str], folder: Path, count: int, others: int, fired: int
) -> None:
    """Take and report everything."""
    hosts = Path(environment["XDG_CONFIG_HOME"]) / "orchestra" / "hosts"
    hosts.mkdir(parents=True)
    (hosts / "big.yaml").write_text(PROFILE)
    known = set(cluster.run("squeue -h -a -t all -o %i").stdout.split())
    before = cluster.rpcs()
    seconds = batch(environment, folder, count)
    rpcs = cluster.rpcs() - before
    used = allocations(cluster, known)
    if len(used) < 2:
        raise SystemExit(f"{len(used)} allocations; two at least were wanted")
    _lab.report(
        "slurm_batch", round(seconds, 2), "s", ratio=round(ideal(count) / seconds, 3), better="higher",
        command=f"benches/slurm.py: runaway batch big /bin/sleep -x {count} -- {TAKES_S}, ideal {ideal(count):.1f} s",
        allocations=len(used),
    )  # fmt: skip
    _lab.report(
        "slurm_rpcs", round(rpcs / count, 4), "RPCs", better="lower",
        command=f"benches/slurm.py: sdiag, all RPCs of our user, by {count} executions", rpcs=rpcs,
    )  # fmt: skip
    rate = count / seconds
    for name, taken in (
        ("array", array(cluster, others)),
        ("srun", sruns(cluster, others)),
    ):
        _lab.report(
            f"slurm_{name}", round(rate, 2), "executions/s", ratio=round(rate / (others / taken), 2), better="higher",
            command=f"benches/slurm.py: the same beside {name}, {others} executions", theirs=round(others / taken, 2),
        )  # fmt: skip
    cluster.clear()
    seconds = under_fire(cluster, environment, folder, fired)
    _batches.check_journal(environment, count + fired)
    _lab.report(
        "slurm_fire", round(seconds, 2), "s", ratio=round(ideal(fired) / seconds, 3), better="higher",
        command=f"benches/slurm.py: {fired} while the controller restarts, a slurmd dies, an allocation is cancelled, a node drained",
    )  # fmt: skip


def main() -> None:
    given = [int(word) for word in sys.argv[1:]]
    count, others, fired = [*given, *(2000, 240, 500)[len(given) :]]
    from tests.lab import slurm

    with _lab.lab(NODES + 1) as lab:
        reason = slurm.unavailable()
        if reason is not None:
            _lab.skip("slurm_batch", reason)
            return
        with (
            slurm.SlurmCluster(lab, cpus=SLOTS) as cluster,
            _lab.own_folders(lab.ssh_config) as environment,
            _batches.results_folder() as folder,
        ):
            measure(cluster, environment, folder, count, others, fired)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{error}: {error.stderr}") from error
