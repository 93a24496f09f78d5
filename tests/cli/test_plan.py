"""`runaway plan`: how a batch would run is said, and nothing is started or asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from liborch.sim import gantt
from liborch.sim.plan import Model, Room, Times, Work, simulate
from liborch.specs import AllocationSpec
from tests.cli.person import Person

PROFILE = """name: big
ssh: nowhere.invalid
batch_system: slurm
allocation: {nodes: 3, walltime: 2m}
slots: 4
"""


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    """Somebody with a script, and the profile of a cluster that cannot be reached."""
    somebody = Person(tmp_path)
    somebody.write("work.sh", "#!/bin/sh\ntrue\n")
    folder = tmp_path / "config" / "orchestra" / "hosts"
    folder.mkdir(parents=True)
    (folder / "big.yaml").write_text(PROFILE)
    yield somebody
    somebody.close()


def test_a_plan_says_how_a_batch_would_run_on_a_cluster_that_nobody_asks(person: Person) -> None:
    words = ("big", "work.sh", "-x", "2000", "--duration", "1s")
    done = person.run("plan", *words, "--json", "--svg", "plan.svg")
    assert done.returncode == 0, done.stderr.decode()
    plan = json.loads(done.stdout)
    assert plan["schema_version"] == 1
    assert (plan["executions"], plan["succeeded"], plan["nodes"]) == (2000, 2000, 3)
    assert 2000 / 12 < plan["makespan_s"] < 1.1 * 2000 / 12
    assert len(plan["allocations"]) == 2
    ElementTree.parse(person.folder / "plan.svg")
    # The same, through the batch's own command.
    assert json.loads(person.run("batch", *words, "--simulate", "--json").stdout) == plan
    assert person.run("ps").stdout == b"" or b"work.sh" not in person.run("ps").stdout


def test_a_plan_for_people_has_a_picture_that_fits(person: Person) -> None:
    done = person.run(
        "plan", "big", "work.sh", "-x", "60", "--duration", "20s±5s", "--queue-wait", "30s", "--gantt"
    )
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert any(re.match(r"makespan +\d+m\d+s$", line) for line in lines)
    rows = [line for line in lines if "|" in line]
    assert len(rows) == 12
    assert max(map(len, rows)) <= 120
    assert all("#" in row for row in rows)


def test_durations_are_those_of_earlier_executions_or_of_a_file(person: Person) -> None:
    script = person.write("short.sh", "#!/bin/sh\nsleep 0.3\n")
    assert b"say --duration" in person.run("plan", "local", str(script), "-x", "3").stderr
    assert person.run("batch", "local", "short.sh", "-x", "2", "--slots", "2").returncode == 0
    plan = json.loads(person.run("plan", "local", "short.sh", "-x", "100", "--slots", "2", "--json").stdout)
    assert plan["duration_from"] == "2 earlier executions"
    assert 0.2 < plan["duration_s"] < 20
    person.write("seen", "10s\n20s\n\n")
    plan = json.loads(
        person.run(
            "plan", "local", "short.sh", "-x", "9", "--duration", "seen", "--slots", "1", "--json"
        ).stdout
    )
    assert plan["duration_s"] == 15


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("plan", "desk", "work.sh", "--duration", "1m"), "desk: how much room a node has is not known"),
        (("plan", "big", "work.sh", "--duration", "soon"), "--duration: 'soon' is no duration"),
        (
            ("plan", "big", "work.sh", "--duration", "1m", "--queue-wait", "x"),
            "--queue-wait: 'x' is no duration",
        ),
        (
            ("plan", "big", "work.sh", "--duration", "1m", "--failures", "-1"),
            "--failures -1: expected failures",
        ),
        (
            ("plan", "big", "work.sh", "--duration", "1m", "--model-nodes", "4y8"),
            "expected NODES, NODESxCORES",
        ),
        (("plan", "big,local", "work.sh", "--duration", "1m"), "a cluster is planned alone"),
        (("plan", "big", "work.sh", "--duration", "1m", "--resume"), "a plan is of a whole batch"),
        (("batch", "big", "work.sh", "--duration", "1m"), "--duration is for simulating: add --simulate"),
    ],
)
def test_what_cannot_be_planned_is_refused_and_says_what_to_do(
    person: Person, words: tuple[str, ...], says: str
) -> None:
    done = person.run(*words)
    assert done.returncode == 2
    assert says in done.stderr.decode()


def test_a_row_for_each_slot_or_node_or_for_several() -> None:
    few = simulate(Model("m", {"a": Room(2), "b": Room(1)}), Work(6, Times(10.0)))
    assert gantt.arrange(few).names == ["a.0", "a.1", "b"]
    model = Model("m", {f"n{n:02d}": Room(8) for n in range(30)}, AllocationSpec(nodes=30, walltime_s=600.0))
    many = simulate(model, Work(600, Times(10.0)))
    assert gantt.arrange(many).names == [f"n{n:02d}" for n in range(30)]
    assert gantt.arrange(many, most=10).names[0] == "n00-n02"
    lines = gantt.text(many, 60, plain=True)
    assert {len(line) for line in lines[:-1]} == {60}


def test_a_drawing_has_a_title_for_each_bar_and_is_drawn_for_the_dark_too() -> None:
    outcome = simulate(Model("m", {"a": Room(2)}), Work(6, Times(10.0)))
    drawing = gantt.svg(outcome, "six <of> them")
    root = ElementTree.fromstring(drawing)
    bars = [each for each in root.iter("{http://www.w3.org/2000/svg}rect") if each.get("class") == "ran"]
    assert len(bars) == 6
    assert all((each[0].text or "").startswith("execution on a.") for each in bars)
    assert "prefers-color-scheme: dark" in drawing
