"""Allocations by shell procedures on a frontend behind ssh: any login shell, and a start that outlives its connection."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time

import pytest

from liborch.batch_systems.base import Accepted, Command, Output, Request, Sight
from liborch.batch_systems.procedures import Procedures
from liborch.specs import Procedures as Commands
from tests.lab.hosts import Lab

pytestmark = pytest.mark.lab


def ask(lab: Lab, account: str, command: Command) -> Output:
    """Run a command on h1 as an account, over a connection of its own."""
    argv = ["ssh", "-F", str(lab.ssh_config), "-l", account, "h1", shlex.join(command.argv)]
    done = subprocess.run(argv, input=command.stdin, capture_output=True, timeout=25, check=False)
    return Output(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("account", ["bob", "kim", "finn"])
def test_a_start_goes_on_after_its_connection_and_is_cancelled_over_another(lab: Lab, account: str) -> None:
    home = lab.host("h1").home_of(account)
    if account == "bob":
        (home / ".bashrc").write_text("echo 0_welcome1; echo Welcome >&2\n")
    system = Procedures(
        Commands(
            ("while ! [ -e ~/go ]; do sleep 0.05; done", "cd /usr; export RUNAWAY_NODES='h2 h3'"),
            ('echo "$RUNAWAY_NODES $RUNAWAY_X $PWD" > ~/cancelled',),
        ),
        {"RUNAWAY_X": "it's $HOME"},
    )
    # ssh ends although the start does not: nothing of it holds the connection.
    accepted = system.parse_submit(ask(lab, account, system.submit(Request("abc123"))))
    assert accepted == Accepted("0_abc123")

    def sight() -> Sight:
        sights = system.parse_query(ask(lab, account, system.query(["0_abc123"])))
        assert isinstance(sights, dict), sights
        return sights["0_abc123"]

    assert sight().state == "queued"
    (home / "go").touch()
    end = time.monotonic() + 20
    while sight().state == "queued":
        assert time.monotonic() < end
    assert (sight().state, sight().nodes) == ("active", ("h2", "h3"))
    assert system.parse_cancel(ask(lab, account, system.cancel(["0_abc123"]))) is None
    assert (home / "cancelled").read_text() == "h2 h3 it's $HOME /usr\n"
    assert sight().end == "cancelled"
    for name in ("go", "cancelled", ".bashrc"):
        (home / name).unlink(missing_ok=True)
    shutil.rmtree(home / ".local/state/orchestra/allocations")
