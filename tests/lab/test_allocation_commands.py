"""Allocations that a person holds on a real Slurm: asked for, used by several commands, listed, given back."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.person import Person, wait_until
from tests.lab.slurm import SlurmCluster
from tests.lab.test_allocations import PROFILE, queue, write_profile

pytestmark = pytest.mark.lab


@pytest.fixture
def person(slurm_lab: SlurmCluster, tmp_path: Path) -> Iterator[Person]:
    """Somebody with a profile of the cluster, which is as found afterwards."""
    somebody = Person(tmp_path, slurm_lab.lab.ssh_config)
    write_profile(somebody, PROFILE)
    yield somebody
    somebody.close()
    slurm_lab.clear()


def allocations(person: Person, *words: str) -> list[dict[str, Any]]:
    """What `allocs` tells."""
    done = person.run("allocs", "--json", *words)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_nodes_that_are_held_serve_several_commands_until_they_are_released(
    slurm_lab: SlurmCluster, person: Person
) -> None:
    held = person.json("alloc", "big", "-N", "2", "-t", "10m")
    assert (held["state"], len(held["nodes"])) == ("active", 2)
    assert 500 < held["left_s"] <= 600
    done = person.run("exec", "big", "--alloc", "last", "uname", "--", "-n")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() in held["nodes"]
    with person.start("batch", "big", "/bin/sleep", "--alloc", held["id"], "-x", "4", "--", "2") as batch:
        wait_until("the batch uses it", lambda: bool(allocations(person)[0]["used_by"]))
        (seen,) = allocations(person, "big")
        assert (seen["id"], seen["state"], seen["held"]) == (held["id"], "active", True)
        assert sorted(seen["nodes"]) == sorted(held["nodes"])
        assert batch.wait(timeout=60) == 0
    assert queue(slurm_lab) == ["RUNNING"]
    released = person.run("release", held["id"])
    assert released.stdout.decode() == f"allocation {held['id']} of big is over\n"
    assert queue(slurm_lab) == []
    after = person.run("exec", "big", "/bin/true", "--alloc", held["id"])
    assert after.returncode == 2
    assert f"allocation {held['id']} of big is over" in after.stderr.decode()


def test_ctrl_c_before_the_nodes_are_there_takes_the_request_back(
    slurm_lab: SlurmCluster, person: Person
) -> None:
    slurm_lab.run("sbatch --wrap 'sleep 600' -N3 --exclusive -o /dev/null")
    wait_until("somebody else has all nodes", lambda: queue(slurm_lab) == ["RUNNING"])
    with person.start("alloc", "big") as waiting:
        wait_until("it is in the queue", lambda: queue(slurm_lab).count("PENDING") == 1)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=30) == 130
    assert queue(slurm_lab) == ["RUNNING"]


def test_what_a_killed_client_left_is_listed_with_what_it_waits_for_and_can_be_released(
    slurm_lab: SlurmCluster, person: Person
) -> None:
    slurm_lab.run("sbatch --wrap 'sleep 600' -N3 --exclusive -o /dev/null")
    wait_until("somebody else has all nodes", lambda: queue(slurm_lab) == ["RUNNING"])
    with person.start("exec", "big", "/bin/true") as waiting:
        wait_until("it is in the queue", lambda: queue(slurm_lab).count("PENDING") == 1)
        wait_until("it is known here", lambda: len(allocations(person)) == 1)
        waiting.kill()
    (left,) = allocations(person)
    assert (left["state"], left["held"], left["maker"]["kind"]) == ("queued", False, "exec")
    assert not left["maker"]["driven"]
    assert left["why"]
    assert b"left by exec" in person.run("allocs").stdout
    assert b"would end" in person.run("release", "--all", "--dry-run").stdout
    assert queue(slurm_lab).count("PENDING") == 1
    assert person.run("release", "--all").returncode == 0
    assert queue(slurm_lab) == ["RUNNING"]


def test_a_batch_whose_allocation_is_released_says_so(slurm_lab: SlurmCluster, person: Person) -> None:
    held = person.json("alloc", "big", "-N", "1")
    with person.start("batch", "big", "/bin/sleep", "--alloc", "last", "-x", "8", "--", "30") as batch:
        wait_until("it is used", lambda: bool(allocations(person)[0]["used_by"]))
        assert person.run("release", "--all").returncode == 0
        _, said = batch.communicate(timeout=60)
    assert batch.returncode == 1
    assert f"allocation {held['id']} is over" in said.decode()
    assert queue(slurm_lab) == []


def test_options_go_to_the_batch_system_and_what_it_refuses_is_told(
    slurm_lab: SlurmCluster, person: Person
) -> None:
    planned = person.run("alloc", "big", "--dry-run", "--json", "--", "--partition=nowhere")
    assert "--partition=nowhere" in json.loads(planned.stdout)["stdin"]
    done = person.run("alloc", "big", "--", "--partition=nowhere")
    assert done.returncode == 2
    assert b"invalid partition specified: nowhere" in done.stderr
    assert queue(slurm_lab) == []


def test_an_id_that_nobody_knows_is_told_with_the_nearest(slurm_lab: SlurmCluster, person: Person) -> None:
    held = person.json("alloc", "big", "--detach", "-N", "1")
    done = person.run("release", f"{held['id']}0")
    assert done.returncode == 2
    assert f"did you mean {held['id']}?" in done.stderr.decode()
    assert person.run("release", "last").returncode == 0
