"""What a person reads of a network that is not as it should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.person import Person
from tests.lab.hosts import Lab

pytestmark = pytest.mark.lab

#: Nothing listens there; the tests of others are not disturbed.
PORT = 9


@pytest.fixture
def walled(tmp_path: Path, lab: Lab) -> Iterator[Person]:
    """Somebody between whom and a port of h1 there is a firewall that says so."""
    somebody = Person(tmp_path, lab.ssh_config)
    rule = ["-p", "tcp", "--dport", str(PORT), "-j", "REJECT", "--reject-with", "icmp-host-unreachable"]
    h1 = lab.host("h1")
    h1.in_network("iptables", "-I", "INPUT", *rule)
    yield somebody
    h1.in_network("iptables", "-D", "INPUT", *rule)
    somebody.close()


@pytest.mark.parametrize("verb", ["exec", "doctor"])
def test_why_a_host_cannot_be_reached_is_said_in_the_systems_words(
    walled: Person, lab: Lab, verb: str
) -> None:
    name = f"root@{lab.host('h1').address}:{PORT}"
    done = walled.run(verb, name, *(["true"] if verb == "exec" else []))
    assert done.returncode == 255
    told = done.stdout + done.stderr
    assert b"No route to host" in told, told
    assert b"Connect call failed" not in told
    assert b"Errno" not in told
