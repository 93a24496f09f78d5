"""The dialect of Grid Engine against a real one: what is rendered is taken, what is printed is understood."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator

import pytest

from liborch.batch_systems.base import Accepted, Command, Output, Rejected, Request, Sight
from liborch.batch_systems.sge import Sge
from tests.lab import gridengine
from tests.lab.gridengine import GridEngine
from tests.lab.hosts import Lab
from tests.lab.machine import wait_until

pytestmark = pytest.mark.lab

SGE = Sge()


@pytest.fixture
def grid(make_lab: Callable[..., Lab]) -> Iterator[GridEngine]:
    """Grid Engine on two fresh hosts."""
    # Not a failure in CI: Debian may drop the packages, which nothing else here needs.
    if reason := gridengine.unavailable():
        pytest.skip(reason)
    with GridEngine(make_lab(2)) as built:
        yield built


def ask(grid: GridEngine, command: Command) -> Output:
    """Run a command of the dialect on the frontend."""
    done = grid.run(shlex.join(command.argv), check=False, input=command.stdin.decode())
    return Output(done.returncode, done.stdout.encode(), done.stderr.encode())


def query(grid: GridEngine, *ids: str) -> dict[str, Sight]:
    """What is said of jobs of ours."""
    # Grid Engine schedules once a second.
    time.sleep(0.2)
    sights = SGE.parse_query(ask(grid, SGE.query(ids)))
    assert isinstance(sights, dict), sights
    return sights


def test_an_allocation_comes_goes_and_is_found_by_its_name(grid: GridEngine) -> None:
    assert query(grid) == {}
    assert query(grid, "77") == {}
    refused = SGE.parse_submit(
        ask(grid, SGE.submit(Request("refused1", nodes=2, options=("-pe", "nope", "1"))))
    )
    assert isinstance(refused, Rejected)
    assert '"nope" does not exist' in refused.why
    two = SGE.parse_submit(
        ask(grid, SGE.submit(Request("twonodes1", nodes=2, walltime_s=600, options=("-pe", "per_node", "1"))))
    )
    held = SGE.parse_submit(ask(grid, SGE.submit(Request("held1234", walltime_s=600, options=("-h",)))))
    broken = SGE.parse_submit(ask(grid, SGE.submit(Request("broken12", log_folder="/nowhere"))))
    assert isinstance(two, Accepted)
    assert isinstance(held, Accepted)
    assert isinstance(broken, Accepted)
    # Nobody needs the ids to find them.
    wait_until("the start", lambda: query(grid)[two.id].state == "active")
    wait_until("the error", lambda: query(grid)[broken.id].why == "Eqw")
    sights = query(grid)
    assert sights[two.id].token == "twonodes1"
    # The master's node is first, whichever that is.
    assert sorted(sights[two.id].nodes) == ["h1", "h2"]
    left = sights[two.id].left_s
    assert left is not None
    assert 500 < left <= 600
    assert (sights[held.id].state, sights[held.id].token) == ("held", "held1234")
    ids = [two.id, held.id, broken.id]
    assert SGE.parse_cancel(ask(grid, SGE.cancel([*ids, "77"]))) is None
    wait_until("the end", lambda: not [s for s in query(grid).values() if s.state != "ended"])
    # Once more is fine.
    assert SGE.parse_cancel(ask(grid, SGE.cancel(ids))) is None
    assert not [pid for host in grid.lab.hosts for pid in host.pids_matching("sleep infinity")]
    limits = SGE.parse_limits(ask(grid, SGE.limits(["-q", "all.q"])))
    assert (limits.most_walltime_s, limits.most_submitted) == (86400.0, None)
