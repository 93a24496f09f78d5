"""Hosts without a python3 that works: `runaway exec` does its work through plain sh, and says so."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from liborch.drive.shell_link import LIMITS
from tests.lab.hosts import Host, Lab
from tests.lab.machine import wait_until

pytestmark = pytest.mark.lab

MakeLab = Callable[..., Lab]


class Person:
    """Somebody with a folder of code and `runaway`, whose files are all below one folder."""

    def __init__(self, folder: Path, lab: Lab) -> None:
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "ORCHESTRA_SSH_CONFIG": str(lab.ssh_config),
        }

    def script(self, text: str) -> None:
        """Write the script that is run."""
        path = self.work / "run.sh"
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start runaway."""
        return subprocess.Popen(
            [sys.executable, "-m", "runaway", *words],
            cwd=self.work,
            env={**self.env, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def exec(self, host: str, text: str, *words: str) -> tuple[int, bytes, str]:
        """Run a script on a host; returns its exit status, its output, and what was said."""
        self.script(text)
        with self.start("exec", *words, host, "run.sh") as process:
            out, err = process.communicate(timeout=60)
        return process.returncode, out, err.decode()


def end_keepers(host: Host) -> None:
    for pid in host.pids_matching("fallback-"):
        host.kill(pid)


def break_python(host: Host, how: str) -> str:
    """Returns what a person should be told."""
    if how == "none":
        empty = host.folder / "nothing"
        empty.write_text("")
        host.bind(empty, "/usr/bin/python3")
        return "has no python3"
    if how == "false":
        host.bind("/bin/false", "/usr/bin/python3")
        return "python3 there ended with status 1"
    stub = host.sbin / "python3"
    stub.write_text("#!/bin/sh\necho Python 2.7.18\n")
    stub.chmod(0o755)
    return "python3 there ended with status 0"


@pytest.mark.parametrize("how", ["none", "false", "old"])
def test_a_host_whose_python_is_missing_broken_or_old_runs_fetches_and_says_why(
    make_lab: MakeLab, tmp_path: Path, how: str
) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    told = break_python(host, how)
    person = Person(tmp_path, lab)
    person.exec("h1", "true")
    began = time.monotonic()
    (person.work / "data").write_bytes(bytes(range(256)) * 3)
    status, out, said = person.exec(
        "h1", "cat data; echo problem >&2; echo result > made; echo more >> data; exit 3"
    )
    took = time.monotonic() - began
    assert (status, out) == (3, bytes(range(256)) * 3)
    assert told in said
    assert "problem\n" in said
    assert took < 5
    found = {path.name: path.read_bytes() for path in person.work.rglob("*") if path.is_file()}
    assert found.get("made") == b"result\n"
    big = os.urandom(1 << 20)
    (person.work / "data").write_bytes(big)
    status, out, _ = person.exec("h1", "cat data; exit 0")
    assert (status, hashlib.sha256(out).digest()) == (0, hashlib.sha256(big).digest())
    assert not (host.home / "orchestra").exists() or not list((host.home / "orchestra").iterdir())
    end_keepers(host)


@pytest.mark.parametrize("how", ["none", "false"])
def test_doctor_names_the_python_that_does_not_work_and_what_cannot_be_done_without(
    make_lab: MakeLab, tmp_path: Path, how: str
) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    told = break_python(host, how)
    person = Person(tmp_path, lab)
    with person.start("doctor", "h1") as process:
        out, err = process.communicate(timeout=60)
    said = out.decode()
    assert process.returncode == 0, said + err.decode()
    assert "python3     " + ("none" if how == "none" else "/usr/bin/python3 does not run") in said
    assert "works through plain sh, answers in" in said
    assert f"the node {told}" in said
    for limit in LIMITS:
        assert f"warning limits      {limit}" in said
    assert "ok      directory" in said
    assert "ok      slots" in said
    with person.start("doctor", "--json", "h1") as process:
        lines = [json.loads(line) for line in process.communicate(timeout=60)[0].splitlines()]
    assert {line["seen"] for line in lines if line["step"] == "limits"} >= set(LIMITS)
    end_keepers(host)


def test_without_bash_and_python_an_account_with_sh_is_enough(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    break_python(host, "none")
    empty = host.folder / "no-bash"
    empty.write_text("")
    host.bind(empty, "/usr/bin/bash")
    person = Person(tmp_path, lab)
    status, out, _ = person.exec("sue@h1", "command -v bash; id -un; exit 4")
    assert (status, out) == (4, b"sue\n")
    end_keepers(host)


def test_a_cut_of_seconds_and_a_cancel_leave_nothing_wrong(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    break_python(host, "false")
    person = Person(tmp_path, lab)
    person.script("echo first; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo last; exit 5")
    with person.start("exec", "h1", "run.sh") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        host.reset_connections()
        host.run("touch /tmp/go")
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (5, b"last\n"), err.decode()
    person.script("echo on; trap '' TERM; setsid sleep 601 & sleep 602")
    with person.start("exec", "h1", "run.sh") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        wait_until("both", lambda: bool(host.pids_matching("sleep 601") and host.pids_matching("sleep 602")))
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    wait_until("their end", lambda: not host.pids_matching("sleep 60"))
    end_keepers(host)


def test_two_clients_at_once_each_get_their_own(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    break_python(host, "false")
    people = [Person(tmp_path / name, lab) for name in ("one", "two")]
    for number, person in enumerate(people):
        person.script(f"echo {number}; exit {number + 6}")
    processes = [person.start("exec", "h1", "run.sh") for person in people]
    for number, process in enumerate(processes):
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (number + 6, b"%d\n" % number), err.decode()
    end_keepers(host)


def test_a_client_killed_at_once_is_followed_by_one_that_attaches(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    break_python(host, "false")
    person = Person(tmp_path, lab)
    person.script("echo first; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo last; echo r > made; exit 7")
    with person.start("exec", "h1", "run.sh") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.kill()
        process.communicate()
    host.run("touch /tmp/go")
    with person.start("attach", "last") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 7, err.decode()
    assert out.endswith(b"last\n")
    assert list(person.work.rglob("made"))
    end_keepers(host)


WAITS = "echo first; echo x >> /tmp/starts; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo last; echo r > made; exit 7"


def starts(host: Host) -> int:
    return int(host.run("wc -l </tmp/starts").stdout)


def ends(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err.decode()


def test_what_was_begun_without_python_is_followed_to_its_end_once_python_is_mended(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    break_python(host, "false")
    person, other = Person(tmp_path / "one", lab), Person(tmp_path / "other", lab)
    person.script(WAITS)
    with person.start("exec", "h1", "run.sh") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.kill()
        process.communicate()
    host.unbind("/usr/bin/python3")
    # Slots are counted by one: who comes now is served by the same, and told.
    status, out, said = other.exec("h1", "echo other; exit 3")
    assert (status, out) == (3, b"other\n"), said
    assert "begun while its python3 did not work" in said
    host.run("touch /tmp/go")
    with person.start("attach", "last") as process:
        status, out, said = ends(process)
    assert (status, out.endswith(b"last\n")) == (7, True), said
    assert list(person.work.rglob("made"))
    assert starts(host) == 1
    # Nothing is left there that anybody needs: python3 takes over.
    status, out, said = person.exec("h1", "echo again; exit 4")
    assert (status, out) == (4, b"again\n"), said
    assert "plain sh" not in said
    end_keepers(host)


@pytest.mark.parametrize("how", ["none", "false"])
def test_what_runs_is_followed_to_its_end_when_python_breaks_under_it(
    make_lab: MakeLab, tmp_path: Path, how: str
) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    person, other = Person(tmp_path / "one", lab), Person(tmp_path / "other", lab)
    person.script(WAITS)
    with person.start("exec", "h1", "run.sh") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.kill()
        process.communicate()
    break_python(host, how)
    status, out, said = other.exec("h1", "echo other; exit 3")
    assert (status, out) == (3, b"other\n"), said
    with person.start("attach", "last") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        host.reset_connections()
        host.run("touch /tmp/go")
        status, out, said = ends(process)
    assert (status, out.endswith(b"last\n")) == (7, True), said
    assert list(person.work.rglob("made"))
    assert starts(host) == 1


def test_an_agent_that_nobody_can_speak_to_is_waited_for(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    person = Person(tmp_path, lab)
    person.script(WAITS)
    with person.start("exec", "h1", "run.sh") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"first\n"
        break_python(host, "none")
        library = host.run("dirname $(readlink -f /usr/lib/python3*/os.py)").stdout.strip()
        empty = host.folder / "no-library"
        empty.mkdir()
        host.bind(empty, library)
        host.reset_connections()
        said = b""
        while b"nobody can speak to it" not in said:
            line = process.stderr.readline()
            assert line, said.decode()
            said += line
        host.run("touch /tmp/go")
        host.unbind(library)
        host.unbind("/usr/bin/python3")
        status, out, rest = ends(process)
    assert (status, out) == (7, b"last\n"), rest
    assert starts(host) == 1
