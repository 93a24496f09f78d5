"""Which part of a node an allocation has, as its processes know."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from liborch.agent import enforce as _enforce
from liborch.agent import grants as _grants
from liborch.agent import node as _node
from liborch.agent import slots as _slots
from tests.agent.harness import Node, until

grants: Any = _grants
enforce: Any = _enforce
node_facts: Any = _node
slots: Any = _slots

FOUR = ["GPU-aaaaaaaa-0", "GPU-bbbbbbbb-1", "GPU-cccccccc-2", "GPU-dddddddd-3"]


@contextlib.contextmanager
def holder(**environment: str) -> Iterator[None]:
    """A process of an allocation, bound to the first core there is."""
    first = min(os.sched_getaffinity(0))
    process = subprocess.Popen(
        ["taskset", "-c", str(first), "sleep", "600"], env={"PATH": os.environ["PATH"], **environment}
    )
    try:
        # taskset has become sleep when it is bound.
        while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
            os.sched_yield()
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    ("told", "listed", "ours"),
    [
        (None, FOUR, FOUR),
        (["1", "3"], FOUR, [FOUR[1], FOUR[3]]),
        # The others are hidden from us: numbers say nothing then.
        (["1", "3"], FOUR[:2], FOUR[:2]),
        (["GPU-cccccccc-2"], FOUR, [FOUR[2]]),
        (["GPU-bbbb"], FOUR, [FOUR[1]]),
        (["MIG-of-somebody"], FOUR, FOUR[:1]),
        ([], FOUR, []),
    ],
)
def test_gpus_are_those_that_were_granted(told: list[str] | None, listed: list[str], ours: list[str]) -> None:
    assert grants.Grant(None, told).of(listed) == ours


@pytest.mark.parametrize(
    ("allocation", "environment", "gpus"),
    [
        (
            "70001",
            {"SLURM_JOB_ID": "70001", "SLURM_STEP_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "0,1"},
            ["2", "3"],
        ),
        ("70002.head", {"PBS_JOBID": "70002.head", "CUDA_VISIBLE_DEVICES": "GPU-x"}, ["GPU-x"]),
        ("70003", {"LSB_JOBID": "70003", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        ("70004", {"JOB_ID": "70004"}, None),
    ],
)
def test_a_process_of_the_allocation_knows_cores_and_gpus(
    allocation: str, environment: dict[str, str], gpus: list[str] | None
) -> None:
    with holder(**environment):
        found = grants.look(allocation, False)
        assert (found.cores, found.gpus) == ([min(os.sched_getaffinity(0))], gpus)
        # One whose number begins the same is another.
        assert grants.look(allocation[:4], False).cores is None


def test_who_has_a_part_of_a_node_and_is_told_of_no_gpu_has_none() -> None:
    with holder(SLURM_JOB_ID="70008"):
        assert grants.look("70008", True).of(FOUR) == []
        assert grants.look("70008", False).of(FOUR) == FOUR


def test_what_an_execution_was_given_is_not_taken_for_all_there_is() -> None:
    with (
        holder(SLURM_JOB_ID="70005", CUDA_VISIBLE_DEVICES="0,1,2"),
        holder(SLURM_JOB_ID="70006", CUDA_VISIBLE_DEVICES="3"),
        holder(SLURM_JOB_ID="70006", CUDA_VISIBLE_DEVICES="1", ORCHESTRA_EXECUTION="x.1@here"),
    ):
        assert grants.look("70006", False).gpus == ["3"]


def test_nothing_is_known_of_what_nobody_holds() -> None:
    found = grants.look("70007", False)
    assert (found.cores, found.gpus, found.of(FOUR)) == (None, None, FOUR)


def test_two_allocations_on_a_node_have_agents_of_their_own(tmp_path: Path) -> None:
    first, second = (
        Node(tmp_path, ORCHESTRA_AGENT_STATE="", ORCHESTRA_ALLOCATION=each) for each in ("71.srv", "72.srv")
    )
    try:
        for each, allocation in ((first, "71.srv"), (second, "72.srv")):
            each.state = first.home / ".local/state/orchestra/nodes" / f"{node_facts.name()}@{allocation}"
            assert each.client(cpus=1).run("echo ran")["out"] == "ran\n"
        assert first.pid("keeper") != second.pid("keeper")
        assert first.pid("keeper")
        assert second.pid("keeper")
    finally:
        first.stop()
        second.stop()


def test_an_allocations_agent_leaves_nothing_that_nobody_waits_for(tmp_path: Path) -> None:
    node = Node(tmp_path, ORCHESTRA_AGENT_STATE="", ORCHESTRA_ALLOCATION="73")
    node.state = node.home / ".local/state/orchestra/nodes" / f"{node_facts.name()}@73"
    try:
        client = node.client(cpus=1)
        client.run("echo ran")
        assert client.ask("retire", "retiring")["yes"]
        until("the keeper's end", lambda: not node.pid("keeper"))
        assert node.state.exists(), "its client has not said that it knows"
        again = node.client(client.owner)
        again.ack(again.attached["last"])
        again.settle()
        assert again.ask("retire", "retiring")["yes"]
        until("nothing is left", lambda: not node.state.exists())
    finally:
        node.stop()


def test_cores_of_which_nobody_knows_whose_they_are_are_not_bound_to() -> None:
    cores = enforce.Cores([[0, 1], [2, 3]])
    cores.are_unsure = True
    assert cores.take(2) == ()
    assert cores.take(2, 1) == (2, 3)
    cores.are_unsure = False
    assert cores.take(2) == (0, 1)


def test_what_allocations_left_long_ago_is_removed_and_nothing_else(tmp_path: Path) -> None:
    names = ("n1", "n1@1", "n1@2", "n1@3", "n2@1", "n1@now")
    for name in names:
        (tmp_path / name).mkdir()
        for each in ("keeper.lock", "log-1"):
            (tmp_path / name / each).touch()
    now = os.stat(tmp_path).st_mtime + 8 * 86400
    os.utime(tmp_path / "n1@2" / "log-1", (now, now))
    with open(tmp_path / "n1@3" / "keeper.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        grants.sweep(str(tmp_path / "n1"), now)
        assert sorted(os.listdir(tmp_path)) == sorted(names)
        grants.sweep(str(tmp_path / "n1@now"), now)
        assert sorted(os.listdir(tmp_path)) == sorted(set(names) - {"n1@1"})


def test_of_gpus_nobody_names_only_as_many_as_were_granted_are_used() -> None:
    room = slots.Room(4, 0, list(FOUR))
    room.resize(2, 0, True, 3)
    assert (room.gpus, room.free_gpus) == (FOUR[:3], FOUR[:3])
    _slot, given = room.take(1, 0, 2)
    room.resize(2, 0, True, 1)
    assert (room.gpus, room.free_gpus) == (FOUR[:1], [])
    room.give_back(0, 1, 0, 2, given)
    assert room.free_gpus == FOUR[:1]
