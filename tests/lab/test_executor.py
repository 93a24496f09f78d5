"""The executor over real ssh: its functions on a host that has nothing of ours, and links that are cut under them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import liborch
from liborch.core.policy import Policy
from liborch.errors import WorldError
from liborch.ssh import Limits
from tests.agent.harness import until
from tests.cli.person import Person
from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.lab

MODULE = sys.modules[__name__]


class Found:
    """What a function saw where it ran."""

    def __init__(self, place: str, data: bytes) -> None:
        self.place = place
        self.data = data


def _version_of_hosts() -> list[str]:
    probe = "import sys; print(sys.version_info[0], sys.version_info[1])"
    done = subprocess.run(["/usr/bin/python3", "-c", probe], capture_output=True, text=True, check=False)
    return done.stdout.split()


same_python = pytest.mark.skipif(
    _version_of_hosts() != [str(n) for n in sys.version_info[:2]],
    reason="functions travel between equal versions of Python, and the hosts' own is another",
)
#: A silent link is given up after a second, and tried again often.
QUICK = Limits(keepalive_interval_s=0.3, keepalive_count=2, connect_timeout_s=2, backoff_cap_s=0.5)
SOON = Policy(backoff_base_s=0.1, backoff_cap_s=0.5)


def look(data: bytes) -> Found:
    print("looking")
    return Found(platform.node() + os.getcwd(), data[::-1])


def wait_for(path: str) -> str:
    import time

    while not os.path.exists(path):
        time.sleep(0.01)
    return Path(path).read_text()


def targets(executor: liborch.Executor) -> list[Any]:
    """The nodes as the executor's driver has them."""
    host = executor._bridge._host
    assert host is not None
    return list(host._driver.targets.values())


@pytest.fixture(autouse=True)
def by_value() -> Any:
    """Hosts do not have this file."""
    cloudpickle.register_pickle_by_value(MODULE)
    yield
    cloudpickle.unregister_pickle_by_value(MODULE)


@same_python
def test_functions_and_commands_share_a_host_and_leave_nothing_there(
    asker: Person, h1: Host, rough: Lab
) -> None:
    data = os.urandom(3 << 20)
    with liborch.Executor(h1.alias) as executor:
        future: Any = executor.submit(look, data)
        command = executor.submit(["hostname"])
        found = future.result(60)
        assert type(found) is Found
        assert found.data == data[::-1]
        assert "/orchestra/" in found.place
        assert future.execution_result.stdout == b"looking\n"
        assert list(executor.map(pow, range(20), [2] * 20, chunksize=7)) == [n * n for n in range(20)]
        assert command.result(60).ok
    left = [path for path in h1.path("/root/orchestra").rglob("*") if path.is_file()]
    assert left == []


@same_python
def test_a_function_goes_on_while_its_link_is_cut_and_its_result_arrives(
    asker: Person, h1: Host, rough: Lab
) -> None:
    with liborch.Executor(h1.alias, limits=QUICK, policy=SOON) as executor:
        future = executor.submit(wait_for, "/root/go")
        until("its start", future.running)
        h1.cut()
        until("the loss of its link", lambda: all(target.link is None for target in targets(executor)))
        h1.path("/root/go").write_text("on")
        assert not future.done()
        h1.restore()
        assert future.result(120) == "on"
    h1.path("/root/go").unlink()


def test_a_host_that_is_down_is_the_futures_exception(asker: Person, h1: Host, rough: Lab) -> None:
    h1.stop_sshd()
    with liborch.Executor(h1.alias, policy=Policy(first_attempts=1)) as executor:
        futures = [executor.submit(["true"]), executor.submit(abs, -1)]
        assert all(isinstance(future.exception(60), WorldError) for future in futures)
