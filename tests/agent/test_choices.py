"""Which GPUs and which NUMA node: chosen by name, counted by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from liborch.agent import node as _facts
from liborch.agent import slots as _slots
from tests.agent.harness import Node

facts: Any = _facts
slots: Any = _slots


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Node]:
    """A node whose tool lists four GPUs."""
    tool = tmp_path / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf 'GPU-a\\nGPU-b\\nGPU-c\\nGPU-d\\n'\n")
    tool.chmod(0o755)
    made = Node(tmp_path, PATH=f"{tool.parent}:{os.environ['PATH']}")
    yield made
    made.stop()


def test_room_counts_the_gpus_that_will_do() -> None:
    room = slots.Room(8, 0, ["a", "b", "c"])
    assert room.take(1, 0, 1, ["1", "c"]) == (0, ["b"])
    assert room.free_gpus == ["a", "c"]
    assert room.fits(1, 0, 1, ["c"])
    assert not room.fits(1, 0, 1, ["1"])
    assert room.could_ever(1, 0, 1, ["1"])
    assert not room.could_ever(1, 0, 2, ["c", "7"])
    assert room.take(1, 0, 2) == (1, ["a", "c"])
    room.give_back(0, 1, 0, 1, ["b"])
    assert room.fits(1, 0, 1, ["1"])


def test_an_execution_sees_the_gpus_it_named_and_waits_for_them(four: Node) -> None:
    client = four.client(cpus=4)
    show = "echo $CUDA_VISIBLE_DEVICES; until [ -e go ]; do sleep 0.02; done"
    client.sh("first", show, gpus=1, gpu_ids=["2"])
    assert client.event("started", "first")
    client.sh("same", "echo $CUDA_VISIBLE_DEVICES", gpus=1, gpu_ids=["GPU-c"])
    client.settle()
    assert client.count("ended", "same") == 0
    (four.home / "go").touch()
    assert client.ended("first")["out"] == client.ended("same")["out"] == "GPU-c\n"
    assert (
        client.run("echo $CUDA_VISIBLE_DEVICES", "two", gpus=2, gpu_ids=["3", "GPU-a"])["out"]
        == "GPU-a,GPU-d\n"
    )


def test_what_the_node_does_not_have_is_refused(four: Node) -> None:
    client = four.client()
    client.sh("gpu", "true", gpus=1, gpu_ids=["9"])
    assert "allowed: 9" in client.event("refused", "gpu")["why"]
    client.sh("numa", "true", numa=99)
    assert "NUMA node 99" in client.event("refused", "numa")["why"]
    client.sh("bad", "true", gpu_ids=[1])
    assert "gpu_ids" in client.event("refused", "bad")["why"]


def test_a_numa_node_binds_to_all_of_its_cores(node: Node) -> None:
    end = node.client().run("python3 -c 'import os; print(sorted(os.sched_getaffinity(0)))'", numa=0)
    assert end["out"].strip() == str(facts.numa_nodes()[0])
    assert "cpus:affinity" in end["means"]


def test_room_that_one_client_cut_is_whole_again_for_one_who_says_nothing(four: Node) -> None:
    whole = four.client().attached["room"]["cpus"]
    cut = four.client("cut", cpus=whole + 3)
    assert cut.attached["room"]["cpus"] == whole + 3
    cut.sh("busy", "until [ -e go ]; do sleep 0.02; done")
    assert cut.event("started", "busy")
    # Not while something runs that it was cut for.
    assert four.client().attached["room"]["cpus"] == whole + 3
    (four.home / "go").touch()
    cut.ended("busy")
    last = four.client()
    assert last.attached["room"]["cpus"] == whole
    # Nor does the next keeper know of the cut.
    assert four.replace_keeper(last)["room"]["cpus"] == whole
