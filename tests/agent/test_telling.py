"""When a node tells what has happened there: at once, or gathered."""

from __future__ import annotations

from pathlib import Path

import pytest

from liborch.agent import ledger as ledgers

SINCE = 100.0


@pytest.fixture
def ledger(tmp_path: Path) -> ledgers.Ledger:
    """One that has ten things to tell, the first of them since `SINCE`."""
    made = ledgers.Ledger(str(tmp_path))
    made.unsent_since = SINCE
    made.unsent = [("owner", number, b"[]", None) for number in range(10)]
    return made


def test_a_node_that_has_run_dry_tells_at_once(ledger: ledgers.Ledger) -> None:
    assert ledger.tell_at(0) < SINCE


def test_a_node_far_from_running_dry_gathers_longer_than_one_that_is_about_to(ledger: ledgers.Ledger) -> None:
    soon, later = ledger.tell_at(39), ledger.tell_at(40)
    assert SINCE < soon < later
    # Well within what clients hand over ahead, a quarter of a second.
    assert later - SINCE <= 0.05


def test_a_great_deal_is_told_at_once_however_much_is_queued(ledger: ledgers.Ledger) -> None:
    ledger.unsent *= 7
    assert ledger.tell_at(100_000) < SINCE
