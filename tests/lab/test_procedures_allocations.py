"""Allocations by a profile's own shell procedures, on real hosts."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.person import Person, running, wait_until
from tests.lab.hosts import Lab

pytestmark = pytest.mark.lab

PROFILE = """name: borrowed
ssh: h1
directory: /root/orchestra
batch_system: procedures
procedures:
  start_allocation:
    - echo started >> /root/allocations
    - {sleep}
    - export RUNAWAY_NODES="h2 h3 "
    - export RUNAWAY_COLOUR="$RUNAWAY_TASTE and red"
    - mkdir -p /root/place
    - cd /root/place
  cancel_allocation:
    - {sleep}
    - echo cancelled $RUNAWAY_COLOUR >> /root/allocations
  get_node_handles:
    - export RUNAWAY_HANDLES=" left-$RUNAWAY_NODE_ID  "
  allocation_duration: {duration}
"""


def write(person: Person, text: str) -> None:
    """Give the person the profile."""
    folder = person.root / "config" / "orchestra" / "hosts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "borrowed.yaml").write_text(text)


def filled(sleep: str = "'true'", duration: str = "1h") -> str:
    """The profile."""
    return PROFILE.replace("{sleep}", sleep).replace("{duration}", duration)


@pytest.fixture
def person(lab: Lab, tmp_path: Path) -> Iterator[Person]:
    """Somebody with the profile; nothing was ever allocated."""
    somebody = Person(tmp_path, lab.ssh_config)
    write(somebody, filled())
    for node in ("h2", "h3"):
        # As on a file system that they share.
        lab.host(node).run("mkdir -p /root/place")
    yield somebody
    somebody.close()
    for name in ("h1", "h2", "h3"):
        lab.host(name).run("rm -rf /root/allocations /root/place /root/.orchestra /root/orchestra")


def told(lab: Lab) -> list[str]:
    """What the procedures noted."""
    return lab.host("h1").run("cat /root/allocations").stdout.splitlines()


def test_variables_and_the_folder_travel_from_the_frontend_to_the_execution(lab: Lab, person: Person) -> None:
    command = "echo $RUNAWAY_TASTE: $RUNAWAY_COLOUR: $RUNAWAY_NODE_ID $RUNAWAY_HANDLE_ID; pwd"
    done = person.run("exec", "borrowed", "/bin/sh", "--", "-c", command, RUNAWAY_TASTE="sweet", timeout_s=60)
    assert done.returncode == 0, done.stderr.decode()
    first, folder = done.stdout.decode().splitlines()
    node = first.split()[-2]
    assert first == f"sweet: sweet and red: {node} left-{node}"
    assert folder == "/root/place"
    assert told(lab) == ["started", "cancelled sweet and red"]


@pytest.mark.parametrize(
    ("count", "takes_s", "duration"),
    [
        pytest.param(200, 5, "1m", marks=pytest.mark.soak, id="200 in minutes"),
        pytest.param(14, 1, "4s", id="14 in seconds"),
    ],
)
def test_a_batch_over_several_allocations_cancels_each_that_was_granted(
    lab: Lab, person: Person, count: int, takes_s: int, duration: str
) -> None:
    write(person, filled(f"sleep {takes_s}", duration))
    done = person.run("batch", "borrowed", "/bin/sleep", "-x", str(count), "--json", "--", "1", timeout_s=280)
    assert done.returncode == 0, done.stderr.decode()
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ended) == count
    assert {each["attempts"] for each in ended} == {1}, (
        "nothing is cut off: they are only not issued any more"
    )
    notes = told(lab)
    assert notes.count("started") == notes.count("cancelled and red") >= 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("export RUNAWAY_NODES", "export RUNAWAY_OTHER", "RUNAWAY_NODES"),
        ("export RUNAWAY_HANDLES", "export RUNAWAY_OTHER", "RUNAWAY_HANDLES"),
        ("- mkdir -p /root/place\n    - cd", "- exit 3\n    - cd", "start_allocation"),
        ("- export RUNAWAY_HANDLES", "- exit 3\n    - export RUNAWAY_HANDLES", "get_node_handles"),
    ],
)
def test_what_a_procedure_does_not_do_is_an_error_that_names_it(
    lab: Lab, person: Person, old: str, new: str, said: str
) -> None:
    assert old in filled()
    write(person, filled().replace(old, new))
    done = person.run("exec", "borrowed", "/bin/true", timeout_s=60)
    assert done.returncode == 255
    assert said.encode() in done.stderr
    notes = told(lab)
    assert notes.count("started") == len(notes) / 2, "what had begun is given back"


def test_noise_of_procedures_is_no_answer(lab: Lab, person: Person) -> None:
    noise = "yes RUNAWAY_HANDLES=wrong | head -c 300000; echo 0_wrong started 1 0 0; echo orch-end >&2"
    loud = filled(noise).replace("- export", f"- {noise}\n    - export")
    write(person, loud)
    done = person.run("exec", "borrowed", "/bin/sh", "--", "-c", "echo $RUNAWAY_HANDLE_ID", timeout_s=60)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() in ("left-h2", "left-h3")
    assert told(lab) == ["started", "cancelled and red"]


def test_what_procedures_give_can_be_held_and_is_given_back_by_them(lab: Lab, person: Person) -> None:
    refused = person.run("alloc", "borrowed", "-N", "3")
    assert (refused.returncode, b"start_allocation alone" in refused.stderr) == (2, True)
    done = person.run("alloc", "borrowed", RUNAWAY_TASTE="sweet")
    assert done.returncode == 0, done.stderr.decode()
    used = person.run("exec", "borrowed", "/bin/sh", "--alloc", "last", "--", "-c", "echo $RUNAWAY_COLOUR")
    assert used.stdout == b"sweet and red\n", used.stderr.decode()
    assert told(lab) == ["started"]
    assert person.run("release", done.stdout.decode().strip()).returncode == 0
    assert told(lab) == ["started", "cancelled sweet and red"]


@pytest.mark.parametrize(
    ("where", "before", "cancelled"),
    [
        ("start_allocation", "- export RUNAWAY_NODES", "cancelled"),
        ("get_node_handles", "- export RUNAWAY_HANDLES", "cancelled and red"),
    ],
)
def test_a_procedure_that_hangs_is_left_by_ctrl_c_and_what_was_begun_is_given_back(
    lab: Lab, person: Person, where: str, before: str, cancelled: str
) -> None:
    write(person, filled().replace(before, f"- echo {where} > /root/place/hangs; sleep 1000\n    {before}"))
    lab.host("h1").run("mkdir -p /root/place")
    hangs = [lab.host(name).home / "place" / "hangs" for name in ("h1", "h2", "h3")]
    with running(person, "exec", "borrowed", "/bin/true") as waiting:
        wait_until("it hangs", lambda: any(each.exists() for each in hangs))
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=20) == 130
    assert told(lab) == ["started", cancelled]
