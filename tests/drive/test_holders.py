"""What holds an allocation, by what was asked for."""

from __future__ import annotations

import pytest

from liborch.drive.holders import grants_part, holder_script
from liborch.specs import AllocationSpec, BatchSystem, HostProfile


def profile(*options: str, system: BatchSystem = "slurm") -> HostProfile:
    """A cluster's, whose nodes accept ssh."""
    return HostProfile("big", "front", batch_system=system, allocation=AllocationSpec(options=options))


@pytest.mark.parametrize(
    ("options", "is_part"),
    [
        ((), False),
        (("--partition=long", "--mem=4G"), False),
        (("-c2",), True),
        (("-c", "2"), True),
        (("--ntasks-per-node=4",), True),
        (("--exclusive",), False),
        (("--exclusive=user",), True),
        (("--exclusive", "--ntasks-per-node=4"), False),
        (("--gres=gpu:1",), True),
        (("--exclusive", "--gpus-per-node=2"), True),
    ],
)
def test_an_allocation_of_parts_of_nodes_is_held_by_a_process_on_each(
    options: tuple[str, ...], is_part: bool
) -> None:
    assert grants_part(profile(*options)) == is_part
    assert ("srun" in holder_script(profile(*options))) == is_part


def test_other_batch_systems_are_held_by_their_script_alone() -> None:
    assert holder_script(profile("-c2", system="pbs")) == ""
    assert not grants_part(profile("-c2", system="pbs"))
