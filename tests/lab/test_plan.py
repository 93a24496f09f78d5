"""What `runaway plan` says of a batch is about what a real Slurm then takes for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.person import Person
from tests.lab.slurm import SlurmCluster

pytestmark = pytest.mark.lab

PROFILE = """name: big
ssh: h1
directory: /root/orchestra
batch_system: slurm
allocation: {nodes: 3, walltime: 2m}
slots: 4
"""
BATCH = ("big", "/bin/sleep", "-x", "36")


@pytest.fixture
def person(slurm_lab: SlurmCluster, tmp_path: Path) -> Iterator[Person]:
    """Somebody with a profile of the cluster, which is as found afterwards."""
    somebody = Person(tmp_path, slurm_lab.lab.ssh_config)
    folder = tmp_path / "config" / "orchestra" / "hosts"
    folder.mkdir(parents=True)
    (folder / "big.yaml").write_text(PROFILE)
    yield somebody
    somebody.close()
    slurm_lab.clear()


def test_a_batch_takes_about_as_long_as_its_plan_says(slurm_lab: SlurmCluster, person: Person) -> None:
    planned = json.loads(person.run("plan", *BATCH, "--duration", "1s", "--json", "--", "1").stdout)
    began = time.monotonic()
    done = person.run("batch", *BATCH, "--json", "--", "1", timeout_s=60)
    took_s = time.monotonic() - began
    assert done.returncode == 0, done.stderr.decode()
    assert planned["succeeded"] == len(done.stdout.splitlines()) == 36
    assert len(planned["allocations"]) == 1
    # Three seconds of work: what is tried is that both count the same things. A busy machine takes its time; benches/plan.py measures.
    assert 3.0 < planned["makespan_s"] < took_s + 1.0
    assert took_s < 4.0 * planned["makespan_s"]
