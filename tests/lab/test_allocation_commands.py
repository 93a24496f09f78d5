"""Allocations that a person holds on a real Slurm: asked for, used by several commands, listed, given back."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.person import Person, running, wait_until
from tests.lab.slurm import SlurmCluster
from tests.lab.test_allocations import queue, until_go, visiting

pytestmark = pytest.mark.lab


@pytest.fixture
def person(slurm_lab: SlurmCluster, tmp_path: Path) -> Iterator[Person]:
    """Somebody with a profile of the cluster, which is as found afterwards."""
    yield from visiting(slurm_lab, tmp_path)


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
    with until_go(slurm_lab, person) as go:
        batch = person.start("batch", "big", "--alloc", held["id"], "until-go.sh", "-x", "4")
        wait_until("the batch uses it", lambda: bool(allocations(person)[0]["used_by"]))
        (seen,) = allocations(person, "big")
        assert (seen["id"], seen["state"], seen["held"]) == (held["id"], "active", True)
        assert sorted(seen["nodes"]) == sorted(held["nodes"])
        go()
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


def test_a_request_that_is_refused_for_now_waits_says_why_once_and_is_made_again(
    slurm_lab: SlurmCluster, person: Person
) -> None:
    tries = slurm_lab.lab.folder / "tries"
    tries.unlink(missing_ok=True)
    refusing = (
        f"echo >> {tries}\n"
        f'[ "$(wc -l < {tries})" -gt 2 ] && exec /usr/bin/sbatch "$@"\n'
        "echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2\n"
        "echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy' >&2\n"
        "exit 1"
    )
    with slurm_lab.fake("sbatch", refusing):
        done = person.run("alloc", "big", "-N", "1")
    assert done.returncode == 0, done.stderr.decode()
    assert len(tries.read_text()) == 3
    said = done.stderr.decode()
    assert said.count("big: no allocation now: ") == said.count("asking again later") == 1
    assert "AssocMaxSubmitJobLimit" in said
    assert [each["id"] for each in allocations(person)] == done.stdout.decode().split()


def test_ctrl_c_while_a_request_is_refused_for_now_leaves_nothing(
    slurm_lab: SlurmCluster, person: Person
) -> None:
    refusing = "echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2; exit 1"
    with slurm_lab.fake("sbatch", refusing), running(person, "alloc", "big") as waiting:
        assert waiting.stderr is not None
        while b"asking again later" not in (line := waiting.stderr.readline()):
            assert line, "it ended"
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=30) == 130
    assert queue(slurm_lab) == []
    assert allocations(person) == []


def test_an_id_that_nobody_knows_is_told_with_the_nearest(slurm_lab: SlurmCluster, person: Person) -> None:
    held = person.json("alloc", "big", "--detach", "-N", "1")
    done = person.run("release", f"{held['id']}0")
    assert done.returncode == 2
    assert f"did you mean {held['id']}?" in done.stderr.decode()
    assert held["id"] in person.run("--complete", "release", "").stdout.decode().split()
    slurm_lab.run(f"scancel {held['id']}")
    wait_until("it is noted that it is gone", lambda: not allocations(person))
    assert person.run("--complete", "release", "").stdout == b""


def test_nodes_and_shells_of_an_allocation(slurm_lab: SlurmCluster, person: Person) -> None:
    assert b"no nodes of big are yours now" in person.run("nodes", "big").stderr
    assert b"runaway alloc big" in person.run("shell", "big", "--alloc", "last").stderr
    held = person.json("alloc", "big", "-N", "2")
    one, other = held["nodes"]
    batch = person.start("batch", "big", "/bin/sleep", "--alloc", "last", "-x", "12", "--", "600")
    wait_until("four have no room", lambda: waiting(person) == 4)
    told = [each for each in nodes(person) if each["kind"] == "node"]
    assert {each["machine"] for each in told} == {one, other}
    assert [(each["cpus"], each["used_cpus"], len(each["runs"])) for each in told] == [(4, 4, 4)] * 2
    assert {run["label"] for each in told for run in each["runs"]} == {"/bin/sleep 600"}
    shown = person.run("nodes", "big").stdout.decode()
    assert "0 of 4 free" in shown
    assert "wait in " in shown
    assert person.run("shell", "big", "--", "uname", "-n").stdout == b"h1\n"
    there = person.run("shell", "big", "--alloc", "last", "--node", other, "--", "uname", "-n")
    assert there.stdout.decode() == f"{other}\n", there.stderr.decode()
    x, where = next((run["id"], each["node"]) for each in told for run in each["runs"])
    beside = person.run("shell", "--exec", x, "--", "sh", "-c", "echo $RUNAWAY_UUID on $(uname -n)")
    assert beside.stdout.decode() == f"{x} on {where.partition('/')[0]}\n", beside.stderr.decode()
    assert person.run("release", "last").returncode == 0
    batch.wait(timeout=30)
    assert queue(slurm_lab) == []


def nodes(person: Person) -> list[dict[str, Any]]:
    """What `nodes` tells, and what it tells of those who wait."""
    done = person.run("nodes", "big", "--json")
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def waiting(person: Person) -> int:
    """How many of a batch wait, once the others run."""
    told = nodes(person)
    ready = all(len(each["runs"]) == 4 for each in told if each["kind"] == "node")
    return sum(each["count"] for each in told if each["kind"] == "waiting") if ready else 0


def test_doctor_asks_the_batch_system(slurm_lab: SlurmCluster, person: Person) -> None:
    told = person.run("doctor", "big").stdout.decode()
    assert "slurm answers in" in told
    assert "allocations of yours: none" in told
