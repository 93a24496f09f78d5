"""pytest fixtures of the lab: `lab` (three hosts for the whole session), `make_lab` (fresh ones for a test), and the
same with Slurm on them: `slurm_lab`, `make_slurm_lab`.

Where a lab cannot be built the test is skipped with the reason; with CI or ORCHESTRA_LAB=require in the environment it
fails instead.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab import slurm
from tests.lab.hosts import Lab, unavailable
from tests.lab.slurm import SlurmCluster


@functools.cache
def _reason() -> str | None:
    return unavailable()


@functools.cache
def _slurm_reason() -> str | None:
    return slurm.unavailable()


def _need_lab() -> None:
    _need(_reason())


def _need(reason: str | None) -> None:
    if reason is None:
        return
    if os.environ.get("CI") or os.environ.get("ORCHESTRA_LAB") == "require":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def need_lab() -> None:
    """Skips, or fails, where no lab can be built."""
    _need_lab()


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Three hosts shared by the session's tests. Leave them as you found them."""
    _need_lab()
    with Lab(count=3) as built:
        yield built


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """`make_lab(count, **sshd_options)` builds hosts that live until the test ends."""
    _need_lab()
    built: list[Lab] = []

    def make(count: int = 1, **sshd_options: object) -> Lab:
        new = Lab(count, **sshd_options)
        built.append(new)
        return new.start()

    yield make
    for each in built:
        each.stop()


@pytest.fixture(scope="session")
def need_slurm(need_lab: None) -> None:
    """Skips, or fails, where no Slurm can be started."""
    _need(_slurm_reason())


@pytest.fixture(scope="session")
def slurm_lab(need_slurm: None) -> Iterator[SlurmCluster]:
    """A frontend and three nodes with four CPUs each, shared by the session's tests. Leave the queue empty."""
    with SlurmCluster(Lab(count=4)) as built:
        yield built


@pytest.fixture
def make_slurm_lab(need_slurm: None) -> Iterator[Callable[..., SlurmCluster]]:
    """`make_slurm_lab(nodes, **options)` builds a cluster that lives until the test ends; options are `SlurmCluster`'s."""
    built: list[SlurmCluster] = []

    def make(nodes: int = 1, **options: Any) -> SlurmCluster:
        new = SlurmCluster(Lab(nodes + 1), **options)
        built.append(new)
        return new.start()

    yield make
    for each in built:
        each.stop()
