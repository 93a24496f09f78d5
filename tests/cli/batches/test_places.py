"""`--on`, `--exclude`, `--each`: which nodes a batch uses, and what of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from liborch.agent import node as _untyped
from liborch.errors import SpecError, UnknownName
from liborch.specs import HostProfile, NodeSpec, SlotSpec
from runaway.batches.places import Place, choose, parse_place
from tests.cli.person import Person

node: Any = _untyped

DESKS = HostProfile(
    "desks", "", slots=SlotSpec(count=2), nodes=(NodeSpec("d1"), NodeSpec("d2"), NodeSpec("d3"))
)
BOX = HostProfile("me@box:22", "me@box:22")


@pytest.mark.parametrize(
    ("text", "name", "place"),
    [
        ("d1", "d1", Place()),
        ("d1:0", "d1", Place(0)),
        ("d1::2,3", "d1", Place(None, ("2", "3"))),
        ("d1:1::GPU-ab-cd", "d1", Place(1, ("GPU-ab-cd",))),
        ("me@box:22", "me@box:22", Place()),
        ("me@box:22:1", "me@box:22", Place(1)),
    ],
)
def test_a_place_is_a_host_a_numa_node_and_gpus(text: str, name: str, place: Place) -> None:
    assert parse_place(text, ["d1", "me@box:22", "me@box"]) == (name, place)


@pytest.mark.parametrize("text", ["d1:", "d1:x", "d1::", "d1::1,,2", "d1::1,1", "d1:0:1"])
def test_what_is_no_place_is_an_error(text: str) -> None:
    with pytest.raises(SpecError):
        parse_place(text, ["d1"])


def test_a_mistyped_host_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean d1"):
        parse_place("dd1:0", ["d1", "box"])


def names(profiles: list[HostProfile]) -> list[str]:
    return [name for each in profiles for name in ([node.ssh for node in each.nodes] or [each.name])]


def test_what_is_chosen_and_excluded_is_what_is_left() -> None:
    both = [DESKS, BOX]
    assert names(choose(both, (), ())) == ["d1", "d2", "d3", "me@box:22"]
    assert names(choose(both, ("d2", "me@box:22"), ())) == ["d2", "me@box:22"]
    assert names(choose(both, ("desks",), ("d1",))) == ["d2", "d3"]
    assert names(choose(both, (), ("desks",))) == ["me@box:22"]
    with pytest.raises(SpecError, match="leave no host"):
        choose(both, ("d1",), ("d1",))
    with pytest.raises(SpecError, match="named before"):
        choose(both, ("d1:0", "d1:1"), ())
    (cut,) = choose(both, ("d2:1::0",), ())
    assert cut.nodes == (NodeSpec("d2", SlotSpec(count=2, numa=1, gpu_ids=("0",))),)


def fake_gpus(person: Person, count: int) -> None:
    """A node whose tool lists so many GPUs."""
    tool = person.root / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nfor n in $(seq 0 {count - 1}); do echo GPU-$n; done\n")
    tool.chmod(0o755)
    person.environment["PATH"] = f"{tool.parent}:{person.environment['PATH']}"


def test_only_the_gpus_that_are_named_are_used_one_each(person: Person) -> None:
    fake_gpus(person, 4)
    script = f'echo "$CUDA_VISIBLE_DEVICES" >> {person.root}/used; mkdir {person.root}/$CUDA_VISIBLE_DEVICES && sleep 0.05; rmdir {person.root}/$CUDA_VISIBLE_DEVICES\n'
    person.write("run.sh", script)
    done = person.run("batch", "local", "run.sh", "--slots", "4", "--on", "local::1,GPU-3", "-x", "8")
    assert done.returncode == 0, done.stderr.decode()
    used = (person.root / "used").read_text().split()
    assert len(used) == 8
    assert set(used) == {"GPU-1", "GPU-3"}
    assert b"mkdir" not in b"".join(path.read_bytes() for path in person.folder.glob("batch/*/stderr"))


def test_a_numa_node_is_what_an_execution_is_bound_to(person: Person) -> None:
    done = person.run("batch", "local", "sh", "--on", "local:0", "--json", "--", "-c", "'nproc; :'")
    assert done.returncode == 0, done.stderr.decode()
    (line,) = map(json.loads, done.stdout.splitlines())
    assert "cpus:affinity" in line["means"]
    assert line["stdout"] == f"{len(node.numa_nodes()[0])}\n"


def test_what_is_not_there_is_told_and_nothing_is_recorded_as_failed(person: Person) -> None:
    fake_gpus(person, 1)
    for place, text in (("local:7", b"no NUMA node 7"), ("local::3", b"no GPU 3; it has GPU-0")):
        done = person.run("batch", "local", "true", "--on", place)
        assert done.returncode not in (0, 1), done.stderr.decode()
        assert text in done.stderr
        assert b"1 of 1 is left" in done.stderr


def test_each_is_once_on_every_node(person: Person) -> None:
    done = person.run("batch", "local", "true", "--each", "-n", "--", "{a;b}")
    assert done.stdout.decode().splitlines() == [
        "local: true a  -> batch/$RUNAWAY_UUID",
        "local: true b  -> batch/$RUNAWAY_UUID",
        "2 executions on local",
    ]
    assert person.run("batch", "local", "true", "--each", "-x", "2").returncode == 2
    done = person.run("batch", "local", "true", "--each", "--json")
    assert [json.loads(line)["node"] for line in done.stdout.splitlines()] == ["local"]
    again = person.run("batch", "local", "true", "--each", "--resume")
    assert b"1 of 1 have a verdict, 0 to go" in again.stderr
