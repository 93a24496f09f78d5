"""A batch over several hosts, with code: where its executions go, what a dead host means, how often anybody logs in."""

from __future__ import annotations

import json

import pytest

from tests.cli.person import Person, wait_until
from tests.lab.hosts import Lab

pytestmark = pytest.mark.lab


def test_a_host_that_dies_only_narrows_the_batch(three: tuple[Lab, Person]) -> None:
    lab, person = three
    person.write("run.sh", 'echo "$1" on "$(uname -n)"; echo "$1" > made; sleep 0.2\n')
    command = (
        "batch",
        "h1,h2,h3",
        "run.sh",
        "--slots",
        "2",
        "--give-up",
        "2s",
        "--json",
        "--grid",
        "n=1..40",
    )
    with person.start(*command, "--", "{n}") as batch:
        seen = lab.host("h3").path("/root/orchestra")
        wait_until("work on the host that dies", seen.exists)
        lab.host("h3").stop_sshd(sessions=True)
        out, err = batch.communicate(timeout=90)
    assert batch.returncode == 0, err.decode()
    ended = [json.loads(line) for line in out.splitlines()]
    assert sorted(int(each["parameters"]["n"]) for each in ended) == list(range(1, 41))
    assert {each["state"] for each in ended} == {"succeeded"}
    made = [path.read_text() for path in person.folder.glob("batch/*/made")]
    assert sorted(map(int, made)) == list(range(1, 41))
    for name in ("h1", "h2"):
        assert lab.host(name).sshd_log().count("Accepted publickey") == 1
        assert not lab.host(name).path("/root/orchestra").exists()
