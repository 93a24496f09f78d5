"""`--detach` on a real host: once the command has left, the execution needs nobody here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.person import Person, lines, wait_until
from tests.lab.hosts import Lab

pytestmark = pytest.mark.lab


@pytest.fixture
def far(tmp_path: Path, lab: Lab) -> Iterator[Person]:
    """Somebody who uses the lab's hosts."""
    somebody = Person(tmp_path, lab.ssh_config)
    yield somebody
    somebody.close()


def test_what_was_left_runs_though_the_link_is_slow_and_nobody_asks(far: Person, lab: Lab) -> None:
    far.write("run.sh", "echo begun; touch $HOME/detached.begun; echo made > made.txt; exit 4")
    slow = lab.delay_proxy("h1", 0.03)
    detached = far.run("exec", "--detach", slow, "run.sh")
    assert detached.returncode == 0, detached.stderr.decode()
    begun = lab.host("h1").path("/root/detached.begun")
    # Nothing of ours runs here now, so only the node itself can make this so.
    wait_until("its start on the node", begun.exists)
    begun.unlink()
    wait_until("its output", lambda: lines(far.run("logs", "last").stdout) == ["begun"])
    attached = far.run("attach", "last")
    assert (attached.returncode, lines(attached.stdout)) == (4, ["begun"])
    assert (far.folder / "made.txt").read_text() == "made\n"
