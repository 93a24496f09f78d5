"""Executions and batches on a real Slurm: allocations asked for, used, given back."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.person import Person, wait_until
from tests.lab.slurm import SlurmCluster

pytestmark = pytest.mark.lab

PROFILE = """name: big
ssh: h1
directory: /root/orchestra
batch_system: slurm
allocation: {nodes: 3, walltime: 2m, most: 2}
"""


@pytest.fixture
def person(slurm_lab: SlurmCluster, tmp_path: Path) -> Iterator[Person]:
    """Somebody with a profile of the cluster, which is as found afterwards."""
    yield from visiting(slurm_lab, tmp_path)


def visiting(cluster: SlurmCluster, folder: Path) -> Iterator[Person]:
    """Somebody with a profile named big of the cluster, which is as found afterwards."""
    somebody = Person(folder, cluster.lab.ssh_config)
    write_profile(somebody, PROFILE)
    yield somebody
    somebody.close()
    cluster.clear()


def write_profile(person: Person, text: str) -> None:
    """Give the person a profile named big."""
    folder = person.root / "config" / "orchestra" / "hosts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "big.yaml").write_text(text)


@contextlib.contextmanager
def until_go(cluster: SlurmCluster, person: Person) -> Iterator[Callable[[], None]]:
    """Gives the person a script `until-go.sh` that lasts until what this yields is called."""
    files = [cluster.lab.host(node).home / "go" for node in cluster.nodes]
    person.write("until-go.sh", "until [ -e /root/go ]; do sleep 0.1; done\n")

    def go() -> None:
        for each in files:
            each.touch()

    try:
        yield go
    finally:
        for each in files:
            each.unlink(missing_ok=True)


def queue(cluster: SlurmCluster) -> list[str]:
    """States of what is in the queue."""
    return cluster.run("squeue -h -t PD,R,CG,CF -o %T").stdout.split()


def test_an_execution_gets_a_node_and_leaves_nothing_in_the_queue(
    slurm_lab: SlurmCluster, person: Person
) -> None:
    person.write("here.sh", 'uname -n; echo "$RUNAWAY_NODES" > made\n')
    before = len(slurm_lab.run("squeue -h -t all -o %i").stdout.split())
    done = person.run("exec", "big", "here.sh", timeout_s=60)
    assert done.returncode == 0, done.stderr.decode()
    node = done.stdout.decode().strip()
    assert node in slurm_lab.nodes
    assert (person.folder / "made").read_text() == f"{node}\n"
    assert queue(slurm_lab) == []
    assert len(slurm_lab.run("squeue -h -t all -o %i").stdout.split()) == before + 1


def test_a_batch_fills_whole_nodes(slurm_lab: SlurmCluster, person: Person) -> None:
    done = person.run("batch", "big", "/bin/sleep", "-x", "36", "--json", "--", "0.5", timeout_s=90)
    assert done.returncode == 0, done.stderr.decode()
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ended) == 36
    assert len({each["node"].partition("/")[0] for each in ended}) == 3
    assert queue(slurm_lab) == []


def test_what_slurm_refuses_is_told_in_its_words(slurm_lab: SlurmCluster, person: Person) -> None:
    write_profile(person, PROFILE.replace("most: 2}", "most: 2, options: [--partition=nowhere]}"))
    done = person.run("exec", "big", "/bin/true", timeout_s=60)
    assert done.returncode != 0
    assert b"invalid partition specified: nowhere" in done.stderr
    assert queue(slurm_lab) == []


@pytest.mark.parametrize("words", [("exec", "big", "/bin/true"), ("batch", "big", "/bin/true", "-x", "40")])
def test_ctrl_c_while_allocations_wait_takes_them_out_of_the_queue(
    slurm_lab: SlurmCluster, person: Person, words: tuple[str, ...]
) -> None:
    slurm_lab.run("sbatch --wrap 'sleep 600' -N3 --exclusive -o /dev/null")
    wait_until("somebody else has all nodes", lambda: queue(slurm_lab) == ["RUNNING"])
    waiting = person.start(*words)
    wait_until("it is in the queue", lambda: "PENDING" in queue(slurm_lab))
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(timeout=30) == 130
    assert queue(slurm_lab) == ["RUNNING"]


def test_a_client_that_is_killed_is_followed_by_another_that_uses_the_same_allocation(
    slurm_lab: SlurmCluster, person: Person
) -> None:
    with person.start("batch", "big", "/bin/sleep", "-x", "40", "--", "1") as batch:
        wait_until(
            "some of it runs",
            lambda: b"running" in person.run("ps").stdout and b"succeeded" in person.run("ps").stdout,
        )
        batch.kill()
    assert "RUNNING" in queue(slurm_lab)
    done = person.run("attach", "last", timeout_s=90)
    assert done.returncode == 0, done.stderr.decode()
    assert b"40 succeeded" in done.stderr
    assert queue(slurm_lab) == []


def test_after_ctrl_c_what_runs_ends_and_nothing_is_kept_for_what_waits(
    slurm_lab: SlurmCluster, person: Person
) -> None:
    batch = person.start("batch", "big", "/bin/sleep", "-x", "30", "--", "1")
    wait_until("it runs", lambda: any(each["state"] == "running" for each in person.executions()))
    batch.send_signal(signal.SIGINT)
    assert batch.wait(timeout=30) == 130
    assert queue(slurm_lab) == []
    done = person.run("attach", "last", timeout_s=90)
    assert done.returncode == 0, done.stderr.decode()
    assert b"30 succeeded" in done.stderr
    assert queue(slurm_lab) == []
