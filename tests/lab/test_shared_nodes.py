"""Allocations that have parts of one node, on a real Slurm: each keeps to what it was granted, and leaves the other's alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.person import Person, running, wait_until
from tests.lab.slurm import SlurmCluster
from tests.lab.test_allocations import queue, write_profile

pytestmark = pytest.mark.lab

#: A core and a GPU of a node.
PART = """name: big
ssh: h1
directory: /root/orchestra
batch_system: slurm
connect: {connect}
allocation: {{nodes: 1, walltime: 2m, most: 2, options: [--ntasks=1, --cpus-per-task=1, --gres=gpu:1]}}
"""
#: Says what it has, and stays until it may go.
SHOW = (
    "echo $RUNAWAY_NODE_ID $(taskset -pc $$ | cut -d: -f2) $CUDA_VISIBLE_DEVICES >>/root/seen; "
    "until [ -e /root/go ]; do sleep 0.05; done"
)


@pytest.mark.parametrize("connect", ["ssh", "batch_system"])
def test_two_allocations_on_one_node_have_different_cores_and_gpus(
    make_slurm_lab: Callable[..., SlurmCluster], tmp_path: Path, connect: str
) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two allocations on one node need two cores")
    cluster = make_slurm_lab(1, cpus=2, gpus=2, confined=Path("/sys/fs/cgroup/freezer").exists())
    host = cluster.lab.host(cluster.nodes[0])
    host.add_gpus()
    person = Person(tmp_path, cluster.lab.ssh_config)
    write_profile(person, PART.format(connect=connect))
    seen = host.home / "seen"
    try:
        with running(person, "batch", "big", "sh", "--gpus", "0.5", "-x", "2", "--", f"-c '{SHOW}'") as batch:
            wait_until("both run", lambda: seen.exists() and len(seen.read_text().splitlines()) == 2, 30)
            told = [line.split() for line in seen.read_text().splitlines()]
            (host.home / "go").touch()
            assert batch.wait(30) == 0
        assert {node for node, _cores, _gpu in told} == {"h2"}
        assert {gpu[:12] for _node, _cores, gpu in told} == {"GPU-aaaaaaaa", "GPU-bbbbbbbb"}
        if cluster.confined:
            assert {cores for _node, cores, _gpu in told} == {"0", "1"}
        wait_until("the queue is empty", lambda: queue(cluster) == [])
    finally:
        person.close()


def test_the_end_of_one_allocation_is_nothing_to_the_other_on_its_node(
    make_slurm_lab: Callable[..., SlurmCluster], tmp_path: Path
) -> None:
    cluster = make_slurm_lab(1, cpus=2)
    host = cluster.lab.host(cluster.nodes[0])
    one, other = (Person(tmp_path / name, cluster.lab.ssh_config) for name in ("one", "other"))
    for each in (one, other):
        write_profile(each, PART.format(connect="ssh").replace(", --gres=gpu:1", ""))
    wait = "echo >>/root/$0; until [ -e /root/go ]; do sleep 0.05; done; echo went"
    try:
        with running(one, "exec", "big", "sh", "--json", "--", "-c", wait, "one") as first:
            wait_until("the first runs", (host.home / "one").exists, 30)
            with running(other, "exec", "big", "sh", "--json", "--", "-c", wait, "other") as second:
                wait_until("the second runs", (host.home / "other").exists, 30)
                (told,) = (json.loads(line) for line in one.run("nodes", "big", "--json").stdout.splitlines()
                           if json.loads(line)["allocation"] == "1")  # fmt: skip
                assert (told["cpus"], told["used_cpus"], len(told["runs"])) == (1, 1, 1)
                cluster.run("scancel 2")
                wait_until("it runs again", lambda: (host.home / "other").read_text() == "\n\n", 30)
                wait_until("once", lambda: len(host.pids_matching("echo went other")) == 1, 30)
                (host.home / "go").touch()
                ended = [json.loads(each.communicate(timeout=30)[0]) for each in (first, second)]
        assert [(each["stdout"], each["attempts"]) for each in ended] == [("went\n", 1), ("went\n", 2)]
    finally:
        one.close()
        other.close()
