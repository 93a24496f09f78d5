"""A batch's places over several hosts, and its post commands while a link is torn."""

from __future__ import annotations

import json

import pytest

from tests.cli.person import Person, wait_until
from tests.lab.hosts import Lab

pytestmark = pytest.mark.lab


def test_each_is_once_on_every_host_and_on_and_exclude_are_kept_to(three: tuple[Lab, Person]) -> None:
    _lab, person = three

    def nodes(*options: str) -> list[str]:
        done = person.run("batch", "h1,h2,h3", "true", "--json", *options)
        assert done.returncode == 0, done.stderr.decode()
        return sorted(json.loads(line)["node"] for line in done.stdout.splitlines())

    assert nodes("--each") == ["h1", "h2", "h3"]
    assert nodes("--each", "--exclude", "h2") == ["h1", "h3"]
    assert set(nodes("-x", "20", "--on", "h2:0", "--on", "h3")) <= {"h2", "h3"}
    assert nodes("-x", "3", "--on", "h2") == ["h2"] * 3


def test_a_torn_link_neither_ends_nor_repeats_a_post_command(three: tuple[Lab, Person]) -> None:
    lab, person = three
    person.write("run.sh", "echo made > made\n")
    post = f"echo x >> {person.root}/began; until [ -e {person.root}/go ]; do sleep 0.05; done; cat made"
    with person.start("batch", "h1", "run.sh", "-V", "-p", post) as batch:
        wait_until("a post command", (person.root / "began").exists)
        lab.host("h1").stop_sshd(sessions=True)
        lab.host("h1").start_sshd()
        assert batch.stderr is not None
        while b"connected again" not in (line := batch.stderr.readline()):
            assert line
        (person.root / "go").touch()
        _, told = batch.communicate(timeout=60)
    assert batch.returncode == 0, told.decode()
    assert (person.root / "began").read_text() == "x\n"
    assert [path.read_text() for path in person.folder.glob("batch/*/post.out")] == ["made\n"]


def test_a_host_that_is_excluded_on_resume_gets_nothing_new_and_what_runs_there_counts(
    three: tuple[Lab, Person],
) -> None:
    _lab, person = three
    person.write("waits.sh", "until [ -e $HOME/go ]; do sleep 0.05; done; hostname\n")
    words = ("waits.sh", "--slots", "2", "-x", "9", "--json")
    with person.start("batch", "h1,h2", *words) as first:
        hosts = [_lab.host(name) for name in ("h1", "h2")]
        wait_until(
            "all slots are taken", lambda: all(len(each.pids_matching("waits.sh")) == 2 for each in hosts)
        )
        first.kill()
        first.communicate()
    second = person.start("batch", "h2,h3", "--resume", *words)
    for name in ("h2", "h3"):
        (_lab.host(name).home / "go").touch()
    # Also what waited on h1 behind those that run there.
    assert second.stdout is not None
    first_seven = [json.loads(second.stdout.readline()) for _ in range(7)]
    assert "h1" not in {each["node"] for each in first_seven}
    (_lab.host("h1").home / "go").touch()
    out, told = second.communicate(timeout=60)
    assert second.returncode == 0, told.decode()
    assert [json.loads(line)["node"] for line in out.splitlines()] == ["h1", "h1"]
    [line] = person.run("ps", "--batches", "--json").stdout.splitlines()
    assert json.loads(line)["counts"] == {"succeeded": 9}
