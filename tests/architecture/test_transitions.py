"""Every transition in a table of the core is reached by some test of the core: an edge nobody takes is not known to work."""

from __future__ import annotations

import enum
import json
import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.architecture.reached import TABLE, Recording, edges_of
from tests.architecture.reading import ROOT, covers, modules

#: "liborch.core.module.TABLE: STATE, EVENT" -> why no test can take this edge.
OUT_OF_REACH: dict[str, str] = {}

HAS_CORE = any(module.name == "liborch.core.machine" for module in modules())


def unreached_by(tests: list[str], folder: Path, record: Path, package: str = "liborch.core") -> list[str]:
    """Run tests in a folder and return the edges of a package's tables that none of them took."""
    # In one process and a fresh interpreter: the tables must be replaced before anything imports them.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    path = os.pathsep.join([str(folder), str(ROOT)])
    record_here = {"ORCHESTRA_REACHED": str(record), "ORCHESTRA_REACHED_IN": package, "PYTHONPATH": path}
    plugins = ["-p", "tests.architecture.reached", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, "-m", "not soak and not lab", *tests],
        cwd=folder,
        env={**kept, **record_here},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert record.exists(), done.stdout
    return [
        f"{name}: {', '.join(edge)}"
        for name, table in json.loads(record.read_text()).items()
        for edge in table["edges"]
        if edge not in table["taken"]
    ]


@pytest.mark.skipif(not HAS_CORE, reason="liborch.core.machine is not there yet")
def test_the_core_keeps_its_transitions_in_tables() -> None:
    tables = [m.name for m in modules() if covers("liborch.core", m.name) and TABLE.search(m.text)]
    assert tables, "no mapping named *_TRANSITIONS in liborch.core: states belong in tables, on one screen"


@pytest.mark.skipif(not HAS_CORE, reason="liborch.core.machine is not there yet")
def test_every_transition_in_a_table_is_reached_by_some_test(tmp_path: Path) -> None:
    unreached = unreached_by(["tests/core"], ROOT, tmp_path / "reached.json")
    assert [edge for edge in unreached if edge not in OUT_OF_REACH] == []
    # An exception that is no longer one goes.
    assert [edge for edge in OUT_OF_REACH if edge not in unreached] == []


class Light(enum.Enum):
    """A machine of two states."""

    RED = 1
    GREEN = 2


@pytest.mark.parametrize(
    "table",
    [
        {(Light.RED, "go"): Light.GREEN, (Light.GREEN, "stop"): Light.RED},
        {Light.RED: {"go": Light.GREEN}, Light.GREEN: {"stop": Light.RED}},
        MappingProxyType({Light.RED: MappingProxyType({"go": "x"}), Light.GREEN: {"stop": "y"}}),
    ],
)
def test_a_look_up_is_recorded_and_the_edge_not_taken_is_left(table: dict[object, object]) -> None:
    recording = Recording(table, set())
    assert set(edges_of(recording)) == {("RED", "go"), ("GREEN", "stop")} == set(edges_of(table))
    assert recording.taken == set()
    first = recording.get((Light.RED, "go")) or recording[Light.RED]
    if isinstance(first, dict):
        assert first.get("never") is None
        assert first["go"]
    assert recording.taken == {("RED", "go")}


def test_a_table_of_next_states_records_what_was_asked_for() -> None:
    recording = Recording({Light.RED: (Light.GREEN,), Light.GREEN: (Light.RED, Light.GREEN)}, set())
    assert set(edges_of(recording)) == {("RED", "GREEN"), ("GREEN", "RED"), ("GREEN", "GREEN")}
    assert Light.RED in recording[Light.GREEN]
    assert Light.RED not in recording[Light.RED]
    assert recording.taken == {("GREEN", "RED")}


def test_an_entry_of_more_than_a_next_state_comes_back_as_it_is() -> None:
    recording = Recording(
        {Light.RED: {"go": (Light.GREEN, ["open"])}, (Light.GREEN, "stop"): (Light.RED, [])}, set()
    )
    assert recording[Light.RED]["go"] == (Light.GREEN, ["open"])
    assert recording[Light.GREEN, "stop"] == (Light.RED, [])
    assert recording.taken == {("RED", "go"), ("GREEN", "stop")}


def test_an_edge_that_no_test_takes_is_named(tmp_path: Path) -> None:
    toy = tmp_path / "toy"
    toy.mkdir()
    (toy / "__init__.py").touch()
    (toy / "tables.py").write_text("LIGHT_TRANSITIONS = {('red', 'go'): 'green', ('green', 'stop'): 'red'}\n")
    # Imported by name, as a machine would: the replaced table must be the one it looks edges up in.
    (toy / "machine.py").write_text(
        "from toy.tables import LIGHT_TRANSITIONS\ndef step(state, event): return LIGHT_TRANSITIONS[state, event]\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    soak: slow\n    lab: real\n")
    (tmp_path / "test_toy.py").write_text(
        "from toy.machine import step\ndef test_go(): assert step('red', 'go') == 'green'\n"
    )
    unreached = unreached_by(["test_toy.py"], tmp_path, tmp_path / "reached.json", package="toy")
    assert unreached == ["toy.tables.LIGHT_TRANSITIONS: green, stop"]
