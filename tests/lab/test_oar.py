"""The dialect of OAR against a real one. Marked soak: it needs PostgreSQL, and some seconds for each decision of its scheduler."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator

import pytest

from liborch.batch_systems.base import Accepted, Command, Output, Rejected, Request, Sight
from liborch.batch_systems.oar import Oar
from tests.lab import oar
from tests.lab.hosts import Lab
from tests.lab.machine import wait_until
from tests.lab.oar import OarServer

pytestmark = [pytest.mark.lab, pytest.mark.soak]

OAR = Oar()


@pytest.fixture
def server(make_lab: Callable[..., Lab]) -> Iterator[OarServer]:
    """OAR on two fresh hosts."""
    if reason := oar.unavailable():
        pytest.skip(reason)
    with OarServer(make_lab(2)) as built:
        yield built


def ask(server: OarServer, command: Command) -> Output:
    """Run a command of the dialect on the frontend, as a person."""
    done = server.run(shlex.join(command.argv), check=False, input=command.stdin.decode())
    return Output(done.returncode, done.stdout.encode(), done.stderr.encode())


def query(server: OarServer, *ids: str) -> dict[str, Sight]:
    """What is said of jobs of ours."""
    # oarstat is costly, and nothing here changes faster.
    time.sleep(0.3)
    sights = OAR.parse_query(ask(server, OAR.query(ids)))
    assert isinstance(sights, dict), sights
    return sights


def submit(server: OarServer, request: Request) -> str:
    """Submit, and return the id."""
    told = OAR.parse_submit(ask(server, OAR.submit(request)))
    assert isinstance(told, Accepted), told
    return told.id


def test_an_allocation_comes_goes_and_is_found_by_its_name(server: OarServer) -> None:
    assert query(server) == {}
    refused = OAR.parse_submit(ask(server, OAR.submit(Request("refused1", nodes=5))))
    assert isinstance(refused, Rejected)
    assert "not enough resources" in refused.why
    short = submit(server, Request("short123", walltime_s=5, options=("-l", "core=1")))
    failed = submit(server, Request("failed12", holder=("sh", "-c", "exit 3"), options=("-l", "core=1")))
    held = submit(server, Request("held1234", options=("--hold",)))
    wait_until(
        "the end of both",
        lambda: {query(server, short, failed)[id].state for id in (short, failed)} == {"ended"},
        60,
    )
    sights = query(server, short, failed)
    assert (sights[short].end, sights[failed].end, sights[failed].why) == (
        "timeout",
        "failed",
        "Terminated, exit code 3",
    )
    two = submit(server, Request("twonodes1", nodes=2, walltime_s=600))
    # Nobody needs the ids to find them.
    wait_until("the start", lambda: query(server)[two].state == "active", 60)
    sights = query(server)
    assert (sights[two].token, sights[two].nodes) == ("twonodes1", ("h1", "h2"))
    left = sights[two].left_s
    assert left is not None
    assert 500 < left <= 600
    assert (sights[held].state, sights[held].token) == ("held", "held1234")
    # oarsh hands its words to a shell, and what the command reads, prints and ends with passes as it is.
    entered = OAR.enter(two, "h2", ("sh", "-c", 'cat; echo "it\'s $(hostname) $(id -un)"; exit 3'))
    done = server.run(shlex.join(entered), check=False, input="hello\n")
    assert (done.returncode, done.stdout) == (3, "hello\nit's h2 bob\n"), done.stderr
    assert OAR.parse_cancel(ask(server, OAR.cancel([two, held]))) is None
    wait_until("the end", lambda: query(server) == {}, 60)
    assert query(server, two)[two].end == "cancelled"
    assert OAR.parse_cancel(ask(server, OAR.cancel([two, held]))) is None
    assert not [pid for host in server.lab.hosts for pid in host.pids_matching("sleep infinity")]
