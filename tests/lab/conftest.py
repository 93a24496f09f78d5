"""Hosts to be rough with, and the person who uses them; for tests that go through the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.person import Person
from tests.lab.hosts import Host, Lab


@pytest.fixture(scope="module")
def rough(need_lab: None) -> Iterator[Lab]:
    """Two hosts of a module's own. A test may do anything to them that `well` can mend."""
    with Lab(count=2) as built:
        yield built


@pytest.fixture
def h1(rough: Lab) -> Iterator[Host]:
    """The first of them, in good health before and after."""
    host = rough.hosts[0]
    yield host
    host.restore()
    if host._sshd_pid() == 0:
        host.start_sshd()


@pytest.fixture
def asker(rough: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Person]:
    """A person with an empty journal, in this process as well: for `open_host`."""
    somebody = Person(tmp_path, rough.ssh_config)
    for name, value in somebody.environment.items():
        monkeypatch.setenv(name, value)
    yield somebody
    somebody.close()


@pytest.fixture
def three(tmp_path: Path, make_lab: Callable[..., Lab]) -> Iterator[tuple[Lab, Person]]:
    """Three hosts of one's own, and a person."""
    lab = make_lab(3)
    somebody = Person(tmp_path, lab.ssh_config)
    yield lab, somebody
    somebody.close()
