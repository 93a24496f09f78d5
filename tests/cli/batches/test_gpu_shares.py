"""`--gpus 0.5` and `gpus: 0.5`: executions that share a GPU of this machine."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable

import pytest

from liborch.specs import HostProfile, NodeSpec, Resources, SlotSpec
from runaway.wanted import resources_of
from tests.cli.batches.test_places import fake_gpus
from tests.cli.person import Person, wait_until

#: Says which GPU it has, and how much of it, and stays until it may go.
SHOW = 'echo "$CUDA_VISIBLE_DEVICES ${RUNAWAY_GPU_SHARE-all}" >> %s/used; until [ -e %s/go ]; do sleep 0.02; done\n'


def used(person: Person) -> list[str]:
    """What executions said they have."""
    path = person.root / "used"
    return sorted(path.read_text().splitlines()) if path.exists() else []


def test_two_halves_run_on_one_gpu_at_a_time(person: Person) -> None:
    fake_gpus(person, 2)
    person.write("run.sh", SHOW % (person.root, person.root))
    batch = person.start("batch", "local", "run.sh", "--slots", "8", "--gpus", "0.5", "-x", "6")
    try:
        wait_until("four run", lambda: len(used(person)) == 4)
        assert used(person) == ["GPU-0 0.5"] * 2 + ["GPU-1 0.5"] * 2
        (told,) = (json.loads(line) for line in person.run("nodes", "local", "--json").stdout.splitlines()
                   if json.loads(line)["kind"] == "node")  # fmt: skip
        assert (told["free_gpus"], told["shared_gpus"]) == ([], {"GPU-0": 0.0, "GPU-1": 0.0})
        running = {each["id"] for each in told["runs"]}
        last = [each["id"] for each in person.executions() if each["id"] not in running][-1]
        assert b"0 of 2 GPUs free; asked: 1 core, 0.5 GPU" in person.run("explain", last).stdout
        assert "0.5 GPU" in person.run("show", last).stdout.decode()
        (person.root / "go").touch()
        assert batch.wait(30) == 0
    finally:
        if batch.poll() is None:
            batch.send_signal(signal.SIGKILL)
            batch.wait()
    assert len(used(person)) == 6


def test_what_a_slot_of_the_profile_holds_is_what_an_execution_takes(person: Person) -> None:
    fake_gpus(person, 1)
    profiles = person.environment["XDG_CONFIG_HOME"] + "/orchestra/hosts"
    person.write(f"{profiles}/box.yaml", "name: box\nssh: local\nslots: {count: 4, cpus: 1, gpus: 0.25}\n")
    done = person.run("exec", "box", "printenv", "--", "CUDA_VISIBLE_DEVICES", "RUNAWAY_GPU_SHARE")
    assert done.stdout == b"GPU-0\n0.25\n", done.stderr.decode()
    done = person.run("exec", "box", "printenv", "--gpus", "0", "--", "CUDA_VISIBLE_DEVICES")
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize("gpus", ["1.5", "-1", "half", "0.00001"])
def test_what_is_no_number_of_gpus_is_refused_before_anything_starts(person: Person, gpus: str) -> None:
    done = person.run("exec", "local", "true", f"--gpus={gpus}")
    assert done.returncode == 2
    assert b"GPU" in done.stderr
    assert person.executions() == []


BOX = HostProfile("box", "box", slots=SlotSpec(count=2, cpus=4, gpus=0.5))
DESKS = HostProfile(
    "desks", "", slots=SlotSpec(cpus=2), nodes=(NodeSpec("d1"), NodeSpec("d2", SlotSpec(cpus=8, gpus=1)))
)
NAMED = HostProfile("named", "named", slots=SlotSpec(gpu_ids=("0",)))


@pytest.mark.parametrize(
    ("profiles", "cpus", "gpus", "expected"),
    [
        ([BOX], None, None, Resources(4, 0, 0.5)),
        ([BOX], 1, 0, Resources(1, 0, 0)),
        ([BOX], None, 2, Resources(4, 0, 2)),
        ([DESKS], None, None, Resources(2, 0, 0)),
        ([BOX, DESKS], None, None, Resources(2, 0, 0)),
        ([NAMED, DESKS], None, None, Resources(None, 0, 1)),
        ([HostProfile("plain", "plain")], None, None, Resources()),
    ],
)
def test_what_is_not_said_is_the_least_that_a_slot_of_any_node_holds(
    profiles: Iterable[HostProfile], cpus: int | None, gpus: float | None, expected: Resources
) -> None:
    assert resources_of(profiles, cpus, 0, gpus) == expected
