"""Several executions on one GPU of a real agent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.harness import Node

#: Says what it has, and stays until it may go.
SHOW = "echo $CUDA_VISIBLE_DEVICES ${RUNAWAY_GPU_SHARE-none}; until [ -e go ]; do sleep 0.02; done"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Node]:
    """A node whose tool lists two GPUs."""
    tool = tmp_path / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf 'GPU-a\\nGPU-b\\n'\n")
    tool.chmod(0o755)
    # An agent may have been started by an execution that had a share itself.
    made = Node(tmp_path, PATH=f"{tool.parent}:{os.environ['PATH']}", RUNAWAY_GPU_SHARE="0.1")
    yield made
    made.stop()


def test_shares_see_the_one_gpu_they_are_on_and_are_told_how_much_of_it(two: Node) -> None:
    client = two.client(cpus=8)
    for x, gpus in (("a", 0.5), ("b", 0.5), ("c", 1), ("late", 0.25)):
        client.sh(x, SHOW, gpus=gpus)
    for x in "abc":
        client.event("started", x)
    client.settle()
    assert client.count("started", "late") == 0
    room = client.ask("status")["room"]
    assert (room["free_gpus"], room["shared_gpus"]) == ([], {"GPU-a": 0.0})
    (two.home / "go").touch()
    assert [client.ended(x)["out"] for x in "abc"] == ["GPU-a 0.5\n", "GPU-a 0.5\n", "GPU-b none\n"]
    assert client.ended("late")["out"].split()[1] == "0.25"
    room = client.ask("status")["room"]
    assert (sorted(room["free_gpus"]), room["shared_gpus"]) == (["GPU-a", "GPU-b"], {})


def test_a_slot_with_half_a_gpu_gives_it_to_what_runs_in_it_and_back(two: Node) -> None:
    client = two.client(cpus=8)
    client.order(("slot", {"hold": True, "gpus": 0.5, "gpu_ids": ["1"]}))
    assert client.event("held", "slot")["gpus"] == ["GPU-b"]
    shown = client.run("echo $CUDA_VISIBLE_DEVICES $RUNAWAY_GPU_SHARE", "inside", lease="slot")["out"]
    assert shown == "GPU-b 0.5\n"
    assert client.ask("status")["room"]["shared_gpus"] == {"GPU-b": 0.5}
    client.send({"t": "unhold", "lease": "slot"})
    client.event("unheld", "slot")
    assert client.ask("status")["room"]["shared_gpus"] == {}


def test_shares_are_dealt_out_again_after_the_keeper_was_replaced(two: Node) -> None:
    client = two.client(cpus=8)
    client.order(("slot", {"hold": True, "gpus": 0.7}))
    client.event("held", "slot")
    two.replace_keeper(client)
    assert client.ask("status")["room"]["shared_gpus"] == {"GPU-a": 0.3}


@pytest.mark.parametrize("gpus", [1.5, -0.5, "0.5", True])
def test_what_is_no_share_is_refused(two: Node, gpus: object) -> None:
    client = two.client()
    client.sh("bad", "true", gpus=gpus)
    assert "gpus of the order" in client.event("refused", "bad")["why"]
