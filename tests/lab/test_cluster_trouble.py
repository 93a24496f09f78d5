"""A Slurm that refuses, dawdles, talks nonsense or lacks programs, under commands that a person types."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.person import Person, running, wait_until
from tests.lab.slurm import SlurmCluster
from tests.lab.test_allocations import PROFILE, queue, until_go, visiting, write_profile
from tests.lab.test_promises_clusters import some_succeeded

pytestmark = pytest.mark.lab


@pytest.fixture
def person(slurm_lab: SlurmCluster, tmp_path: Path) -> Iterator[Person]:
    """Somebody with a profile of the cluster, which is as found afterwards."""
    yield from visiting(slurm_lab, tmp_path)


def with_options(options: str) -> str:
    """The profile, with words for sbatch."""
    return PROFILE.replace("most: 2}", f"most: 2, options: [{options}]}}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--partition=admins", "User's group not permitted to use this partition"),
        (
            "--partition=short",
            "could never begin: PartitionTimeLimit; partition short: MaxTime is 1m, asked for are 2m: say less in the profile's",
        ),
        ("--partition=short, --time=1, --nodes=3", "cannot be an option of sbatch"),
        ("--mem=9T", "Memory specification can not be satisfied"),
        ("--gres=gpu:1", "Invalid generic resource (gres) specification"),
    ],
)
def test_what_can_never_be_had_ends_the_command_with_the_reason(
    slurm_lab: SlurmCluster, person: Person, options: str, said: str
) -> None:
    login = "bob@h1" if "admins" in options else "h1"
    write_profile(person, with_options(options).replace("ssh: h1", f"ssh: {login}"))
    done = person.run("exec", "big", "/bin/true", timeout_s=30)
    assert said in done.stderr.decode()
    assert done.returncode in (2, 255), done.stderr.decode()
    assert queue(slurm_lab) == []


def test_scontrol_and_the_accounting_are_not_needed(slurm_lab: SlurmCluster, person: Person) -> None:
    missing = "echo 'sh: 1: not found' >&2; exit 127"
    with (
        slurm_lab.fake("scontrol", missing),
        slurm_lab.fake("sacct", missing),
        slurm_lab.fake("sacctmgr", missing),
    ):
        done = person.run("exec", "big", "uname", "--", "-n", timeout_s=30)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() in slurm_lab.nodes
    wait_until("the queue is empty", lambda: queue(slurm_lab) == [])


@pytest.mark.parametrize(("batch_system", "program"), [("pbs", "qsub"), ("lsf", "bsub")])
def test_a_batch_system_that_is_not_there_is_said_to_be_missing(
    slurm_lab: SlurmCluster, person: Person, batch_system: str, program: str
) -> None:
    write_profile(person, PROFILE.replace("slurm", batch_system))
    done = person.run("exec", "big", "/bin/true", timeout_s=30)
    assert done.returncode in (2, 255)
    assert f"'{program}': No such file or directory; is this its frontend" in done.stderr.decode()


@pytest.mark.parametrize(
    "lost",
    [
        "exit 0",
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
    ],
    ids=["silent", "timed out"],
)
def test_a_submission_whose_answer_is_lost_is_found_and_made_only_once(
    slurm_lab: SlurmCluster, person: Person, lost: str
) -> None:
    before = len(slurm_lab.run("squeue -h -t all -o %i").stdout.split())
    with slurm_lab.fake("sbatch", f'/usr/bin/sbatch "$@" >/dev/null; {lost}'):
        done = person.run("exec", "big", "/bin/true", timeout_s=60)
    assert done.returncode == 0, done.stderr.decode()
    assert b"looking whether it is in the queue" in done.stderr
    assert len(slurm_lab.run("squeue -h -t all -o %i").stdout.split()) == before + 1
    assert queue(slurm_lab) == []


@pytest.mark.parametrize(
    "nonsense",
    [
        "printf '\\033[2J1;touch /root/hacked\\n'",
        "exit 0",
        "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
    ],
    ids=["escapes", "nothing", "error"],
)
def test_questions_that_are_answered_with_nonsense_lose_nothing(
    slurm_lab: SlurmCluster, person: Person, nonsense: str
) -> None:
    wrong = slurm_lab.frontend.sbin / "answered-wrong"
    with (
        until_go(slurm_lab, person) as go,
        running(person, "batch", "big", "until-go.sh", "-x", "12", "--json") as batch,
    ):
        wait_until("it runs", lambda: any(each["state"] == "running" for each in person.executions()))
        with slurm_lab.fake("squeue", f"echo x >> {wrong}; {nonsense}"), slurm_lab.fake("scancel", nonsense):
            wait_until("it was asked in vain", wrong.exists, 60)
            go()
            wait_until("some of it is done", lambda: some_succeeded(person))
        out, err = batch.communicate(timeout=90)
    assert batch.returncode == 0, err.decode()
    assert [json.loads(line)["attempts"] for line in out.splitlines()] == [1] * 12
    assert not (slurm_lab.frontend.home / "hacked").exists()
    wait_until("the queue is empty", lambda: queue(slurm_lab) == [])
    wrong.unlink()


def test_a_controller_that_dies_right_after_a_submission_is_waited_for(
    make_slurm_lab: Callable[..., SlurmCluster], tmp_path: Path
) -> None:
    cluster = make_slurm_lab(1, MessageTimeout=2)
    somebody = Person(tmp_path, cluster.lab.ssh_config)
    write_profile(somebody, PROFILE.replace("nodes: 3", "nodes: 1"))
    try:
        # It may come back with a queue that knows nothing of it, or know it, or have begun it.
        submitted = '/usr/bin/sbatch "$@" && touch /tmp/submitted'
        with cluster.fake("sbatch", submitted), running(somebody, "exec", "big", "/bin/true") as waiting:
            wait_until("it is submitted", cluster.frontend.path("/tmp/submitted").exists)
            cluster.kill_controller()
            told = [waiting.stderr.readline().decode() for _ in range(4)] if waiting.stderr else []
            cluster.start_controller()
            _, rest = waiting.communicate(timeout=60)
        assert waiting.returncode == 0, (told, rest.decode())
        assert "asking again in" in "".join(told) + rest.decode()
        wait_until("the queue is empty", lambda: queue(cluster) == [])
    finally:
        somebody.close()


@pytest.mark.soak
def test_a_slurm_that_takes_a_minute_for_every_answer_is_given_the_time(
    slurm_lab: SlurmCluster, person: Person
) -> None:
    write_profile(person, PROFILE.replace("walltime: 2m", "walltime: 20m"))
    before = len(slurm_lab.run("squeue -h -t all -o %i").stdout.split())
    slow = 'sleep 60; exec /usr/bin/{} "$@"'
    with slurm_lab.fake("sbatch", slow.format("sbatch")), slurm_lab.fake("squeue", slow.format("squeue")):
        done = person.run("exec", "big", "uname", "--", "-n", timeout_s=590)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() in slurm_lab.nodes
    assert len(slurm_lab.run("squeue -h -t all -o %i").stdout.split()) == before + 1
    assert queue(slurm_lab) == []


@pytest.mark.soak
def test_ten_minutes_of_errors_lose_nothing_and_cost_few_questions(
    slurm_lab: SlurmCluster, person: Person
) -> None:
    write_profile(person, PROFILE.replace("walltime: 2m", "walltime: 30m"))
    asked = slurm_lab.frontend.sbin / "asked"
    error = f"echo x >> {asked}; echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    with running(person, "batch", "big", "/bin/sleep", "-x", "36", "--json", "--", "215") as batch:
        wait_until("it runs", lambda: any(each["state"] == "running" for each in person.executions()))
        with contextlib.ExitStack() as broken:
            for program in ("sbatch", "squeue", "scancel"):
                broken.enter_context(slurm_lab.fake(program, error))
            with pytest.raises(subprocess.TimeoutExpired):
                batch.wait(timeout=600)
            assert len(asked.read_text().split()) <= 40
        out, err = batch.communicate(timeout=120)
    asked.unlink()
    assert batch.returncode == 0, err.decode()
    assert [json.loads(line)["attempts"] for line in out.splitlines()] == [1] * 36
    wait_until("the queue is empty", lambda: queue(slurm_lab) == [])
