"""Nodes and shells of a host that is there for good, and allocations where nothing gives any."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
from typing import Any

import pytest

from runaway.messages import Messages
from runaway.seeing import narrate_cluster
from tests.cli.person import RUNAWAY, Person, lines, wait_until


def test_nodes_say_what_is_free_and_who_uses_the_rest(person: Person) -> None:
    person.run("exec", "--detach", "local", "sleep", "--", "1000")
    person.wait_state("running", "placed")
    x = person.executions()[0]["id"]

    def node() -> dict[str, Any]:
        done = person.run("nodes", "local", "--json")
        assert done.returncode == 0, done.stderr.decode()
        told: dict[str, Any] = json.loads(lines(done.stdout)[0])
        return told

    wait_until("it is told of", lambda: bool(node()["runs"]))
    told = node()
    assert (told["kind"], told["node"], told["used_cpus"]) == ("node", "local", 1)
    assert [(run["id"], run["label"]) for run in told["runs"]] == [(x, "sleep 1000")]
    (head, line) = lines(person.run("nodes", "local").stdout)
    assert head.split()[:2] == ["NODE", "CORES"]
    assert f"{told['cpus'] - 1} of {told['cpus']} free" in line
    assert f"{x[:8]} for " in line


def test_a_shell_beside_an_execution_has_its_folder_environment_and_cores(person: Person) -> None:
    person.write("run.sh", "cd sub && exec sleep 1000\n")
    person.write("sub/file", "text")
    person.run("exec", "--detach", "local", "run.sh", "-e", "RUNAWAY_MINE=yes", "--cpus", "1")
    wait_until("it runs", lambda: shell(person, "basename $PWD").stdout == b"sub\n")
    x = person.executions()[0]["id"]
    done = shell(person, "echo $RUNAWAY_UUID $RUNAWAY_MINE; cat file; echo; nproc; exit 3")
    assert lines(done.stdout) == [f"{x} yes", "text", "1"]
    assert done.returncode == 3
    told = json.loads(person.run("shell", "--exec", "last", "--json", "--", "cat", "file").stdout)
    assert (told["stdout"], told["exit_status"], told["node"]) == ("text", 0, "local")
    person.run("kill", "last")
    over = shell(person, "true")
    assert (over.returncode, b"has ended (cancelled)" in over.stderr) == (2, True)


def test_who_has_to_wait_for_an_answer_is_told_for_whose(person: Person) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        for verb, words in (("nodes", "asking"), ("doctor", "trying to reach"), ("hosts check", "asking")):
            with person.start(*verb.split(), host) as asking:
                try:
                    assert asking.stderr is not None
                    assert asking.stderr.readline().decode() == f"{words} {host}\n"
                finally:
                    asking.kill()


def test_what_a_batch_system_says_over_and_over_is_told_in_full_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    messages = Messages({})
    for why in (
        "big: squeue says: no; asking again in 1 s",
        "big: squeue says: no; asking again in 3 s",
        "big: squeue says: later; asking again in 7 s",
        "big: scancel says: no",
    ):
        narrate_cluster(messages, "frontend", {"why": why})
    assert capsys.readouterr().err.splitlines() == [
        "big: squeue says: no; asking again in 1 s",
        "big: the same; asking again in 3 s",
        "big: squeue says: later; asking again in 7 s",
        "big: scancel says: no",
    ]


def test_that_an_allocation_is_queued_is_told_once_also_of_one_that_another_command_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    messages = Messages({})
    for why in ("Priority", "Resources"):
        fields = {"host": "big", "id": "71", "nodes": 2, "state": "queued", "why": why}
        narrate_cluster(messages, "allocation", fields)
    assert capsys.readouterr().err == "big: allocation 71 of 2 nodes is queued (Priority)\n"


def shell(person: Person, script: str) -> subprocess.CompletedProcess[bytes]:
    """What is piped into a shell beside the last execution."""
    return subprocess.run(
        [RUNAWAY, "shell", "--exec", "last"],
        input=script.encode(),
        capture_output=True,
        env=person.environment,
        timeout=30,
    )


def test_a_shell_on_a_terminal_has_that_terminal(person: Person) -> None:
    ours, theirs = pty.openpty()
    environment = {**person.environment, "SHELL": "/bin/sh", "PS1": "ready> "}
    with subprocess.Popen(
        [RUNAWAY, "shell", "local"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as run:
        os.close(theirs)
        os.write(ours, b"test -t 0 && echo on a $((1 + 1))-way terminal; exit 5\n")
        seen = b""
        try:
            while piece := os.read(ours, 4096):
                seen += piece
        except OSError:
            pass  # The other end was closed: it is over.
        assert run.wait(timeout=30) == 5
    os.close(ours)
    assert b"on a 2-way terminal" in seen


def test_where_nothing_gives_allocations_that_is_said_with_what_to_write(person: Person) -> None:
    for words in (
        ("alloc", "local"),
        ("allocs", "local"),
        ("release", "--host", "local", "--all"),
        ("exec", "local", "/bin/true", "--alloc", "last"),
        ("batch", "local", "/bin/true", "--alloc", "last"),
    ):
        done = person.run(*words)
        assert done.returncode == 2, words
        assert b"local has no batch system" in done.stderr, words
    assert b"no profile has a batch system" in person.run("allocs").stderr


def test_a_cluster_that_is_misspelt_is_named(person: Person) -> None:
    hosts = person.root / "config" / "orchestra" / "hosts"
    hosts.mkdir(parents=True)
    (hosts / "cluster.yaml").write_text("name: cluster\nssh: nowhere.invalid\nbatch_system: slurm\n")
    done = person.run("alloc", "clutser")
    assert (done.returncode, b"'clutser'; did you mean cluster?" in done.stderr) == (2, True), done.stderr


def test_words_about_allocations_complete(person: Person) -> None:
    profile = person.root / "config" / "orchestra" / "hosts" / "big.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text("name: big\nssh: big\nbatch_system: slurm\n")
    for command in ("alloc", "allocs", "nodes", "shell"):
        assert lines(person.run("--complete", command, "bi").stdout) == ["big"]
    assert lines(person.run("--complete", "release", "--host", "bi").stdout) == ["big"]
    assert lines(person.run("--complete", "release", "").stdout) == []
    assert b"profile, slurm" in person.run("hosts", "list").stdout
