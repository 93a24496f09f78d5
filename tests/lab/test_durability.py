"""Batches that everything goes wrong for: short rounds always, fifty rounds of two hundred executions in `make soak`.

What a round showed once is told as a story of its own where its cause can be arranged: `test_batch_leftovers.py`,
`test_promises_node.py`. The seeds are kept here; instants are of the wall clock, so a seed is no whole history.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.durability import DEADLY, Schedule, durable_lab, try_seed
from tests.lab.hosts import Lab

pytestmark = pytest.mark.lab

#: {seed: what was found with it}
ONCE_FAILED = {
    102: "output cut by a full disk of a node was a success like any other",
    110: "the same, of one that ended just when another client took over",
    114: "the disk had room again when the one whose output was cut ended",
    118: "the same, of output that was cut in its middle",
    201: "events told while a disk was full hid those of the next keeper: the batch waited for ever",
}
FIFTY = range(201, 251)


@pytest.fixture(scope="module")
def durable(need_lab: None) -> Iterator[Lab]:
    with durable_lab() as lab:
        yield lab


@pytest.mark.parametrize("seed", [2, 3, 4, 6])
def test_a_short_round_of_misfortunes_loses_nothing_and_leaves_nothing(
    durable: Lab, seed: int, tmp_path: Path
) -> None:
    assert try_seed(durable, seed, tmp_path / "person").starts >= 1


@pytest.mark.soak
@pytest.mark.parametrize("seed", sorted(ONCE_FAILED))
def test_a_round_that_failed_once_does_well(durable: Lab, seed: int, tmp_path: Path) -> None:
    # The same seed may be among the fifty: each has a ledger of its own on the hosts.
    try_seed(durable, seed, tmp_path / "person", soak=True, tag="once")


@pytest.mark.soak
@pytest.mark.parametrize("seed", FIFTY)
def test_fifty_rounds_of_two_hundred_lose_nothing_and_leave_nothing(
    durable: Lab, seed: int, tmp_path: Path
) -> None:
    try_seed(durable, seed, tmp_path / "person", soak=True)


def test_the_rounds_have_every_kind_of_misfortune() -> None:
    kinds = {fault.kind for seed in FIFTY for fault in Schedule.of(seed, soak=True).faults}
    assert kinds >= {*DEADLY, "client", "client twice", "talker", "sessions", "sshd", "cut", "drop", "reset"}
    assert kinds >= {"client disk", "node disk"}
    lengths = [
        fault.length_s
        for seed in FIFTY
        for fault in Schedule.of(seed, soak=True).faults
        if fault.kind == "cut"
    ]
    assert min(lengths) < 2.0
    assert max(lengths) > 40.0
