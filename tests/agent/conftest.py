"""`node`: an agent of the test's own. `make_node(...)`: more of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.harness import Node


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Make nodes that are ended with the test."""
    made: list[Node] = []

    def make(**options: str) -> Node:
        made.append(Node(tmp_path / f"node{len(made)}", **options))
        return made[-1]

    yield make
    for node in made:
        node.stop()


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """A node."""
    return make_node()
