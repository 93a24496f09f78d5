"""What is kept when a cluster misbehaves: preempted, timed out, forgotten, half dead, with one home for all nodes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.person import Person, running, wait_until
from tests.lab.hosts import Lab
from tests.lab.slurm import SlurmCluster
from tests.lab.test_allocations import PROFILE, queue, write_profile

pytestmark = pytest.mark.lab


@pytest.fixture
def rough(tmp_path: Path, make_slurm_lab: Callable[..., SlurmCluster]) -> Iterator[Callable[..., Any]]:
    """Makes a cluster of one's own and somebody who uses it."""
    made: list[Person] = []

    def make(nodes: int = 3, **options: Any) -> tuple[SlurmCluster, Person]:
        cluster = make_slurm_lab(nodes, **options)
        made.append(Person(tmp_path, cluster.lab.ssh_config))
        write_profile(made[0], PROFILE)
        return cluster, made[0]

    yield make
    for person in made:
        person.close()


def ended(out: bytes) -> list[dict[str, Any]]:
    """What a batch said with --json."""
    return [json.loads(line) for line in out.splitlines()]


def some_succeeded(person: Person) -> bool:
    """Whether the batch has come so far."""
    said = person.run("ps", "--json").stdout
    return any(json.loads(line).get("counts", {}).get("succeeded") for line in said.splitlines())


def test_nodes_that_share_one_home_get_code_once_and_lose_no_result(rough: Callable[..., Any]) -> None:
    cluster, person = rough(shared_home=True)
    person.write("run.sh", 'echo "$1 on $(uname -n)" > made; cat data\n')
    person.write("data", "the same for all\n")
    done = person.run(
        "batch", "big", "run.sh", "--json", "--grid", "n=1..36", "--", "{n}", timeout_s=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    made = sorted(path.read_text().split()[0] for path in person.folder.glob("batch/*/made"))
    assert made == sorted(map(str, range(1, 37)))
    assert {path.read_bytes() for path in person.folder.glob("batch/*/stdout")} == {b"the same for all\n"}
    assert queue(cluster) == []
    assert not (cluster.frontend.home / "orchestra").exists()


def test_an_allocation_that_ended_and_was_forgotten_while_nobody_looked_is_over(
    rough: Callable[..., Any],
) -> None:
    cluster, person = rough()
    with running(person, "batch", "big", "/bin/sleep", "-x", "60", "--json", "--", "1") as batch:
        wait_until("some of it is done", lambda: some_succeeded(person))
        batch.send_signal(signal.SIGSTOP)
        try:
            cluster.run("scancel $(squeue -h -t R -o %i)")
            cluster.forget()
        finally:
            batch.send_signal(signal.SIGCONT)
        out, err = batch.communicate(timeout=90)
    assert batch.returncode == 0, err.decode()
    assert len(ended(out)) == 60
    assert queue(cluster) == []


@pytest.mark.soak
def test_an_allocation_that_is_preempted_loses_nothing(rough: Callable[..., Any]) -> None:
    cluster, person = rough()
    with running(person, "batch", "big", "/bin/sleep", "-x", "120", "--json", "--", "1") as batch:
        wait_until("some of it is done", lambda: some_succeeded(person))
        cluster.run("sbatch -p high -N3 --exclusive -o /dev/null --wrap 'sleep 8'")
        out, err = batch.communicate(timeout=200)
    assert batch.returncode == 0, err.decode()
    assert len(ended(out)) == 120
    assert b"preempted" in err
    assert queue(cluster) == []


@pytest.mark.soak
def test_what_its_time_cuts_off_is_begun_again_in_the_next_allocation(rough: Callable[..., Any]) -> None:
    cluster, person = rough(1)
    write_profile(person, PROFILE.replace("nodes: 3, walltime: 2m", "nodes: 1, walltime: 1m"))
    # 35 s each on 4 slots: the second row cannot be over before the end of the first allocation.
    done = person.run("batch", "big", "/bin/sleep", "-x", "8", "--json", "--", "35", timeout_s=280)
    assert done.returncode == 0, done.stderr.decode()
    attempts = [each["attempts"] for each in ended(done.stdout)]
    assert len(attempts) == 8
    assert max(attempts) == 2
    assert queue(cluster) == []


@pytest.mark.soak
def test_a_node_whose_slurm_dies_with_all_its_steps_loses_nothing(rough: Callable[..., Any]) -> None:
    cluster, person = rough()
    with running(person, "batch", "big", "/bin/sleep", "-x", "240", "--json", "--", "1") as batch:
        wait_until("some of it is done", lambda: some_succeeded(person))
        cluster.kill_node("h3", steps=True)
        out, err = batch.communicate(timeout=250)
    assert batch.returncode == 0, err.decode()
    assert len(ended(out)) == 240
    cluster.start_node("h3")
    wait_until("the queue is empty", lambda: queue(cluster) == [])


def test_a_node_that_ends_what_a_login_leaves_is_told_of_before_anything_runs_there(
    make_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = make_lab(1, SetEnv="XDG_SESSION_ID=4")
    logind = lab.hosts[0].sbin / "loginctl"
    logind.write_text("#!/bin/sh\necho Linger=no; echo KillUserProcesses=yes; echo KillExcludeUsers=\n")
    logind.chmod(0o755)
    somebody = Person(tmp_path, lab.ssh_config)
    try:
        done = somebody.run("exec", "h1", "/bin/echo", "--", "ran")
        assert done.stdout == b"ran\n", done.stderr.decode()
        said = done.stderr.decode()
        assert said.index("loginctl enable-linger") < said.index("running")
        examined = somebody.run("doctor", "h1").stdout.decode()
        assert "warning login" in examined
        assert "-> `loginctl enable-linger`, once on that host, changes that" in examined
    finally:
        somebody.close()
