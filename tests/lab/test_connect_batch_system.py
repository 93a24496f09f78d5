"""Nodes that accept no ssh: entered through a real Slurm, in steps of the allocation."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.person import Person, wait_until
from tests.lab.machine import PATH
from tests.lab.slurm import SlurmCluster
from tests.lab.test_allocations import PROFILE, queue, write_profile

pytestmark = pytest.mark.lab

ENTERED = PROFILE + "connect: batch_system\n"


@pytest.fixture
def person(slurm_lab: SlurmCluster, tmp_path: Path) -> Iterator[Person]:
    """Somebody whose profile says that nodes accept no ssh; the cluster is as found afterwards."""
    somebody = Person(tmp_path, slurm_lab.lab.ssh_config)
    write_profile(somebody, ENTERED)
    yield somebody
    somebody.close()
    slurm_lab.clear()


def test_an_execution_and_its_files_go_through_the_batch_system(
    slurm_lab: SlurmCluster, person: Person
) -> None:
    # An agent that ssh began serves steps, too, and must not hold up their end.
    write_profile(person, PROFILE)
    assert person.run("exec", "big", "/bin/true").returncode == 0
    write_profile(person, ENTERED)
    person.write("here.sh", "uname -n; echo made > made\n")
    done = person.run("exec", "big", "here.sh", timeout_s=60)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() in slurm_lab.nodes
    assert (person.folder / "made").read_text() == "made\n"
    assert b"connection was closed" not in done.stderr
    wait_until("the queue is empty", lambda: queue(slurm_lab) == [])


def test_what_runs_outlives_a_killed_client_where_steps_leave_nothing_behind(
    make_slurm_lab: Callable[..., SlurmCluster], tmp_path: Path
) -> None:
    if not Path("/sys/fs/cgroup/freezer").exists():
        pytest.skip("Slurm's control groups need version 1 of them here")
    cluster = make_slurm_lab(1, confined=True)
    somebody = Person(tmp_path, cluster.lab.ssh_config)
    write_profile(somebody, ENTERED.replace("nodes: 3", "nodes: 1"))
    try:
        batch = somebody.start("batch", "big", "/bin/sleep", "-x", "4", "--", "3")
        wait_until("it runs", lambda: any(each["state"] == "running" for each in somebody.executions()))
        ran = {each["id"] for each in somebody.executions() if each["state"] == "running"}
        batch.send_signal(signal.SIGKILL)
        batch.wait()
        done = somebody.run("attach", "last", timeout_s=60)
        assert done.returncode == 0, done.stderr.decode()
        assert b"4 succeeded" in done.stderr
        assert {each["attempt"] for each in somebody.executions() if each["id"] in ran} == {1}
        host = cluster.lab.host(cluster.nodes[0])
        wait_until(
            "no agent is left",
            lambda: not [each.argv for each in host.processes() if "orchestra/agent-" in " ".join(each.argv)],
        )
    finally:
        somebody.close()


def test_nodes_that_are_held_are_entered_the_same_way(slurm_lab: SlurmCluster, person: Person) -> None:
    held = person.json("alloc", "big", "-N", "2")
    x = person.run("exec", "big", "/bin/sleep", "--alloc", "last", "--detach", "--", "600").stdout.decode()
    told = [json.loads(line) for line in person.run("nodes", "big", "--json").stdout.splitlines()]
    runs = {each["machine"]: [run["id"] for run in each["runs"]] for each in told if each["kind"] == "node"}
    assert sorted(runs) == sorted(held["nodes"])
    assert [run for each in runs.values() for run in each] == [x.strip()]
    beside = person.run("shell", "--exec", "last", "--", "sh", "-c", "echo $RUNAWAY_UUID on $(uname -n)")
    (where,) = [machine for machine, ids in runs.items() if ids]
    assert beside.stdout.decode() == f"{x.strip()} on {where}\n", beside.stderr.decode()
    there = person.run("shell", "big", "--alloc", "last", "--json", "--", "sh", "-c", "uname -n; exit 7")
    told = json.loads(there.stdout)
    assert (told["stdout"].strip() in held["nodes"], told["exit_status"]) == (True, 7)
    assert person.run("kill", "last").returncode == 0
    assert person.run("release", "last").returncode == 0


def test_on_the_frontend_itself_no_ssh_is_needed_at_all(slurm_lab: SlurmCluster, person: Person) -> None:
    write_profile(person, ENTERED.replace("ssh: h1", "ssh: local"))
    # As if this machine were the frontend: Slurm's commands are there.
    stubs = person.root / "bin"
    stubs.mkdir()
    for name in ("sbatch", "squeue", "scancel", "sacct", "srun"):
        inside = shlex.join([*slurm_lab.frontend._enter(), "env", "-i", "HOME=/root", f"PATH={PATH}", name])
        (stubs / name).write_text(f'#!/bin/sh\nexec {inside} "$@"\n')
        (stubs / name).chmod(0o755)
    done = person.run("exec", "big", "uname", "--", "-n", PATH=f"{stubs}:{os.environ['PATH']}", timeout_s=30)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() in slurm_lab.nodes
    wait_until("the queue is empty", lambda: queue(slurm_lab) == [])
