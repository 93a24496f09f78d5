"""`person`: somebody with a home, a journal and an agent of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.person import Person


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    """Types commands; everything they started is gone afterwards."""
    somebody = Person(tmp_path)
    yield somebody
    somebody.close()
