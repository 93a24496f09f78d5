"""Slurm with accounting: limits that are told, limits that are reached, and ends that only the accounting remembers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from liborch.batch_systems.base import Accepted, Rejected, Request
from liborch.batch_systems.slurm import Slurm
from tests.cli.person import Person, running
from tests.lab.hosts import Lab
from tests.lab.machine import wait_until
from tests.lab.slurm import SlurmCluster
from tests.lab.test_allocations import PROFILE, queue, write_profile
from tests.lab.test_slurm import await_state, look, submit, token

pytestmark = pytest.mark.lab

SLURM = Slurm()


@pytest.fixture(scope="module")
def counted(need_slurm: None) -> Iterator[SlurmCluster]:
    """Two nodes, a QOS `busy` of two submitted and one active, and a limit of three for bob."""
    with SlurmCluster(Lab(3), accounting=True) as cluster:
        cluster.sacctmgr(
            "add qos busy",
            "modify qos busy set MaxSubmitJobsPerUser=2 MaxJobsPerUser=1 MaxWall=02:00:00",
            "modify user root,bob set qos+=busy",
            "modify user bob set MaxSubmitJobs=3 MaxJobs=2 MaxWall=1:00:00",
        )
        yield cluster


@pytest.fixture
def empty(counted: SlurmCluster) -> Iterator[SlurmCluster]:
    """The same with an empty queue, before and after."""
    counted.clear()
    yield counted
    counted.clear()


def test_limits_are_told_before_they_are_reached(empty: SlurmCluster) -> None:
    bob = SLURM.parse_limits(empty.ask(SLURM.limits([]), login="bob"))
    assert (bob.most_submitted, bob.most_active, bob.most_walltime_s, bob.most_nodes) == (3, 2, 3600, 2)
    busy = SLURM.parse_limits(empty.ask(SLURM.limits(["--qos", "busy"])))
    assert (busy.most_submitted, busy.most_active, busy.most_walltime_s) == (2, 1, 7200)
    assert busy.sources["most_submitted"] == "QOS busy: MaxSubmitJobsPerUser"


def test_one_more_than_may_be_submitted_is_refused_until_another_has_ended(empty: SlurmCluster) -> None:
    ids = [submit(empty, "--hold", login="bob") for _ in range(3)]

    def once_more() -> Accepted | Rejected:
        answer = SLURM.parse_submit(empty.ask(SLURM.submit(Request(token(), options=("-H",))), login="bob"))
        assert isinstance(answer, Accepted | Rejected)
        return answer

    refused = once_more()
    assert isinstance(refused, Rejected)
    assert "AssocMaxSubmitJobLimit" in refused.why
    assert refused.is_retriable
    assert SLURM.parse_cancel(empty.ask(SLURM.cancel(ids[:1]), login="bob")) is None
    wait_until("room for another", lambda: isinstance(once_more(), Accepted))


def test_a_batch_never_has_more_in_the_queue_than_may_be_and_says_so_once(
    empty: SlurmCluster, tmp_path: Path
) -> None:
    person = Person(tmp_path, empty.lab.ssh_config)
    write_profile(
        person, PROFILE.replace("nodes: 3", "nodes: 1").replace("most: 2}", "most: 4, options: [--qos=busy]}")
    )
    try:
        done = person.run("batch", "big", "sleep", "-x", "4", "--cpus", "4", "--", "1", timeout_s=60)
        assert done.returncode == 0, done.stderr.decode()
        told = done.stderr.decode()
        assert told.count("QOS busy: MaxSubmitJobsPerUser lets 2 be in the queue") == 1
        assert "no allocation now" not in told
    finally:
        person.close()


def test_a_refusal_for_a_limit_is_told_once_and_waited_out(empty: SlurmCluster, tmp_path: Path) -> None:
    others = [submit(empty, "--qos=busy", "--hold") for _ in range(2)]
    person = Person(tmp_path, empty.lab.ssh_config)
    write_profile(person, PROFILE.replace("most: 2}", "most: 1, options: [--qos=busy]}"))
    try:
        counting = 'echo >>/tmp/asked; exec /usr/bin/sbatch "$@"'
        asked = empty.frontend.path("/tmp/asked")
        with empty.fake("sbatch", counting), running(person, "exec", "big", "true") as command:
            wait_until("asked for again", lambda: asked.exists() and len(asked.read_text()) >= 3)
            assert SLURM.parse_cancel(empty.ask(SLURM.cancel(others))) is None
            said = command.communicate(timeout=60)[1]
        assert command.returncode == 0, said.decode()
        assert said.count(b"no allocation now") == 1
    finally:
        person.close()


def test_a_limit_on_active_ones_is_waited_for_and_one_on_walltime_is_not(empty: SlurmCluster) -> None:
    await_state(empty, submit(empty, "--qos=busy"), "active")
    second = submit(empty, "--qos=busy")
    wait_until("its reason", lambda: look(empty)[second].why == "QOSMaxJobsPerUserLimit")
    assert look(empty)[second].state == "queued"
    empty.clear()
    long = submit(empty, "--qos=busy", walltime_s=3 * 3600)
    wait_until("its reason", lambda: look(empty)[long].why == "QOSMaxWallDurationPerJobLimit")
    assert look(empty)[long].state == "held"


def test_an_account_without_rights_is_refused_by_name(empty: SlurmCluster) -> None:
    for option, words in {"--account=nosuch": "Invalid account", "--qos=nosuch": "Invalid qos"}.items():
        answer = SLURM.parse_submit(empty.ask(SLURM.submit(Request(token(), options=(option,)))))
        assert isinstance(answer, Rejected)
        assert words in answer.why
        assert not answer.is_retriable


def test_ids_carry_their_cluster_where_the_host_names_one(empty: SlurmCluster) -> None:
    bashrc = empty.frontend.home_of("bob") / ".bashrc"
    bashrc.write_text("export SLURM_CLUSTERS=lab\n")
    try:
        id = submit(empty, login="bob")
        assert id.endswith(";lab")
        nodes = await_state(empty, id, "active", login="bob").nodes
        plain = id.removesuffix(";lab")
        assert look(empty, plain, login="bob")[plain].nodes == nodes, "also where it was known without"
    finally:
        bashrc.unlink()
    words = shlex.join(SLURM.enter(id, nodes[0], ["hostname"]))
    assert empty.run(words, user="bob").stdout == f"{nodes[0]}\n"
    assert look(empty, id, login="bob")[id].state == "active", "the id says it where the host does not"
    assert SLURM.parse_cancel(empty.ask(SLURM.cancel([id]), login="bob")) is None
    assert await_state(empty, id, "ended", login="bob").end == "cancelled"


def test_the_accounting_remembers_how_one_ended_that_slurm_has_forgotten(empty: SlurmCluster) -> None:
    done = submit(empty, holder=("true",))
    await_state(empty, done, "ended")
    taken = submit(empty)
    # One that ends before the accounting has heard of it has no name there.
    await_state(empty, taken, "active")
    assert SLURM.parse_cancel(empty.ask(SLURM.cancel([taken]))) is None
    await_state(empty, taken, "ended")
    recorded = f"sacct -nPX -j {done},{taken} -o State,JobName | grep -c '^C.*orch-'"
    wait_until("both on record", lambda: empty.run(recorded, check=False).stdout == "2\n")
    empty.forget()
    seen = look(empty, done, taken, "999999")
    assert {id: (sight.end, sight.why) for id, sight in seen.items()} == {
        done: ("done", "COMPLETED"),
        taken: ("cancelled", "CANCELLED by 0"),
    }
    assert look(empty) == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--account=nosuch", "Invalid account or account/partition combination specified"),
        ("--qos=busy", "QOSMaxWallDurationPerJobLimit; QOS busy: MaxWall is 2h, asked for are 3h"),
    ],
)
def test_what_an_account_may_not_have_ends_the_command_with_the_reason(
    empty: SlurmCluster, tmp_path: Path, options: str, said: str
) -> None:
    person = Person(tmp_path, empty.lab.ssh_config)
    try:
        write_profile(
            person, PROFILE.replace("walltime: 2m, most: 2}", f"walltime: 3h, options: [{options}]}}")
        )
        done = person.run("exec", "big", "/bin/true", timeout_s=40)
    finally:
        person.close()
    assert done.returncode in (2, 255)
    assert said in done.stderr.decode()
    assert queue(empty) == []
