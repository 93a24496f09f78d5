"""Nodes that end what a login leaves behind: noticed before anything runs, and left for a scope where that helps.

The programs of systemd are stand-ins: a machine in which logind ends this test's own login cannot be had.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.harness import Node

LOGINCTL = """#!/bin/sh
case "$*" in
*Linger*) echo Linger={lingers} ;;
*) echo KillUserProcesses={kills}; echo KillOnlyUsers={only}; echo KillExcludeUsers={exclude} ;;
esac
"""
#: Notes what it is asked to run, and runs it.
SYSTEMD_RUN = """#!/bin/sh
while [ "${{1#--}}" != "$1" ]; do shift; done
echo "$*" >>{notes}
exec "$@"
"""


class Machine:
    """Makes nodes whose logind says this or that."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        self.notes = root / "notes"
        self.nodes: list[Node] = []

    def program(self, name: str, text: str) -> None:
        """Put a script first on the PATH."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def node(self, session: str = "4", **said: str) -> Node:
        """A node that a login enters."""
        told = {"kills": "yes", "only": "", "exclude": "", "lingers": "no", **said}
        self.program("loginctl", LOGINCTL.format(**told))
        made = Node(
            self.root / "node",
            PATH=f"{self.bin}:{os.environ['PATH']}",
            **({"XDG_SESSION_ID": session} if session else {}),
        )
        self.nodes.append(made)
        return made


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Nothing of it is left afterwards."""
    made = Machine(tmp_path)
    yield made
    for node in made.nodes:
        node.stop()


def test_a_node_that_ends_what_a_login_leaves_says_so_to_whoever_comes(machine: Machine) -> None:
    node = machine.node()
    assert node.connect().hello["ends_with_login"] is True
    machine.program("loginctl", "#!/bin/sh\nexit 1\n")
    assert node.connect().hello["ends_with_login"] is True, "the agent that is there began so"


@pytest.mark.parametrize(
    "said",
    [
        {"kills": "no"},
        {"exclude": "somebody root"},
        {"only": "somebody else"},
        {"session": ""},
    ],
    ids=["not killed", "excluded", "others only", "no session of logind"],
)
def test_where_nothing_is_ended_nothing_is_said(machine: Machine, said: dict[str, str]) -> None:
    if os.getuid() != 0:
        pytest.skip("the stand-in speaks of root")
    assert machine.node(**said).connect().hello["ends_with_login"] is False


def test_where_logind_does_not_answer_nothing_is_said(machine: Machine) -> None:
    node = machine.node()
    (machine.bin / "loginctl").write_text("#!/bin/sh\necho Failed to connect to bus; exit 1\n")
    assert node.connect().hello["ends_with_login"] is False


def test_an_account_that_lingers_has_its_agent_in_a_scope_of_its_own(machine: Machine) -> None:
    machine.program("systemd-run", SYSTEMD_RUN.format(notes=machine.notes))
    node = machine.node(lingers="yes")
    client = node.client("one")
    assert client.hello["ends_with_login"] is False
    tried, entered = machine.notes.read_text().splitlines()
    assert tried == "true"
    assert entered.endswith("entry.py test")
    assert client.run("echo ${ORCHESTRA_IN_SCOPE-nothing}")["out"] == "nothing\n"


def test_a_scope_that_cannot_be_had_is_said_like_none(machine: Machine) -> None:
    machine.program("systemd-run", "#!/bin/sh\necho Failed to connect to bus >&2; exit 1\n")
    assert machine.node(lingers="yes").connect().hello["ends_with_login"] is True
