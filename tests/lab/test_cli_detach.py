"""`--detach` on a real host: once the command has left, the execution needs nobody here."""

from __future__ import annotations

import subprocess
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


def test_a_batch_in_the_background_outlives_a_torn_link_and_whoever_began_it(far: Person, lab: Lab) -> None:
    far.write(
        "run.sh",
        'echo "$1" >> $HOME/ran.detached; until [ -e $HOME/go.detached ]; do sleep 0.05; done; echo "$1" > made\n',
    )
    home = lab.host("h2").home
    done = far.run("batch", "h2", "run.sh", "--slots", "2", "--detach", "--", "{1;2;3;4}")
    assert done.returncode == 0, done.stderr.decode()
    id = done.stdout.decode().strip()
    try:
        wait_until(
            "two run",
            lambda: (
                (home / "ran.detached").exists() and len(lines((home / "ran.detached").read_bytes())) == 2
            ),
        )
        lab.host("h2").reset_connections()
        (home / "go.detached").touch()
        waited = far.run("wait", id, timeout_s=90)
        assert waited.returncode == 0, waited.stderr.decode() + far.run("logs", id).stdout.decode()
        assert sorted(path.read_text() for path in far.folder.glob("batch/*/made")) == [
            f"{n}\n" for n in range(1, 5)
        ]
        assert sorted(lines((home / "ran.detached").read_bytes())) == list("1234")
        wait_until("its last words", lambda: "4 succeeded" in far.run("logs", id).stdout.decode())
    finally:
        for name in ("ran.detached", "go.detached"):
            (home / name).unlink(missing_ok=True)


def test_a_key_that_would_be_asked_for_is_named_before_anything_goes_to_the_background(
    far: Person, lab: Lab
) -> None:
    locked = far.home / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(locked)], check=True)
    known = lab.ssh_config.with_name("known_hosts")
    config = far.write(
        "../ssh_config",
        f"Host asks\n  HostName {lab.host('h1').address}\n  User root\n  IdentityFile {locked}\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n",
    )
    far.environment["ORCHESTRA_SSH_CONFIG"] = str(config)
    far.environment.pop("SSH_AUTH_SOCK", None)
    done = far.run("batch", "asks", "true", "--detach")
    assert (done.returncode, done.stdout) == (255, b""), done.stderr.decode()
    assert b"needs its passphrase: load it with ssh-add" in done.stderr
