"""`--json`: whatever happens, a program that reads stdout finds the JSON it waits for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.person import Person, lines


def error_of(person: Person, *words: str) -> tuple[dict[str, Any], int]:
    """The one JSON value of a command that failed, and its exit status."""
    done = person.run(*words)
    assert len(lines(done.stdout)) == 1, done
    value = json.loads(done.stdout)
    assert value["schema_version"] == 1
    assert value["exit_status"] == done.returncode
    assert value["error"]["message"] in done.stderr.decode()
    return value["error"], done.returncode


def test_a_persons_mistake_is_one_json_value(person: Person) -> None:
    error, status = error_of(person, "exec", "local", "--json", "nope.sh")
    assert (error["type"], status) == ("SpecError", 2)
    assert "nope.sh" in error["message"]


def test_a_host_that_cannot_be_used_is_one_json_value(person: Person) -> None:
    error, status = error_of(person, "exec", "--json", "nobody@127.0.0.1:1", "true")
    assert (error["type"], status) == ("HostUnreachable", 255)
    assert error["fields"]["address"] == "127.0.0.1:1"


@pytest.mark.parametrize(
    "verb", ["logs", "attach", "wait", "kill", "pause", "resume", "explain", "fetch", "show"]
)
def test_an_unknown_execution_is_one_json_value_of_every_verb(person: Person, verb: str) -> None:
    error, status = error_of(person, verb, "--json", "0000")
    assert (error["type"], status) == ("UnknownName", 2)
    assert error["fields"]["name"] == "0000"


def test_an_option_that_is_not_there_is_one_json_value(person: Person) -> None:
    error, status = error_of(person, "exec", "local", "true", "--json", "--nope")
    assert (error["type"], status) == ("NoSuchOption", 2)


def test_json_behind_the_dashes_is_the_persons_and_not_for_us(person: Person) -> None:
    done = person.run("exec", "local", "nope.sh", "--", "--json")
    assert (done.returncode, done.stdout) == (2, b"")


def test_what_was_left_behind_is_one_json_value(person: Person) -> None:
    left = json.loads(person.run("exec", "--detach", "--json", "local", "sleep", "--", "1000").stdout)
    assert (left["exit_status"], left["host"]) == (0, "local")
    assert left["id"] == person.executions()[0]["id"]
    killed = person.json("kill", "last")
    assert (killed["id"], killed["state"]) == (left["id"], "cancelled")
