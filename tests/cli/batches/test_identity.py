"""Executions are told apart by what they are, not by where they stand."""

from __future__ import annotations

import pytest

from liborch.specs import Resources
from runaway.batches.identity import identities, identity
from runaway.batches.sources import make_plan

BASE = ("snap", ("python3", "s.py"), ("--a", "1"), {"x": "1", "y": "2"}, Resources(cpus=2))


def test_the_same_content_has_the_same_name_on_every_machine_and_day():
    # A change of this name loses every batch that is under way: raise VERSION knowingly.
    assert identity(*BASE) == "b04470807ff22e53fd69fa1fbacb15a3"
    snapshot, command, arguments, _, resources = BASE
    assert identity(snapshot, list(command), list(arguments), {"y": "2", "x": "1"}, resources) == identity(
        *BASE
    )


@pytest.mark.parametrize(
    ("place", "other"),
    [
        (0, ""),
        (1, ("python3", "t.py")),
        (1, ("python3",)),
        (2, ("--a 1",)),
        (2, ("--a", "1", "")),
        (2, ("--a", "\udcff")),
        (3, {"x": "1"}),
        (3, {"x": "2", "y": "1"}),
        (4, Resources(cpus=3)),
        (4, Resources(cpus=2, gpus=1)),
    ],
)
def test_any_other_content_has_another_name(place, other):
    content = list(BASE)
    content[place] = other
    assert identity(*content) != identity(*BASE)


def test_a_word_of_the_command_is_not_one_of_the_arguments():
    snapshot, _, _, parameters, resources = BASE
    assert identity(snapshot, ("a", "b"), ("c",), parameters, resources) != identity(
        snapshot, ("a",), ("b", "c"), parameters, resources
    )


def names(*words, **options):
    return [name for name, _ in identities(make_plan(words, **options), "snap", ("run",), Resources())]


def test_repetitions_are_counted():
    first, second, other = names("a;a;b")
    assert first.removesuffix("#1") == second.removesuffix("#2") != other.removesuffix("#1")
    assert names("a", repeats=2) == [first, second]


def test_moved_added_and_removed_lines_keep_the_names_of_the_others():
    before, after = names("a;b;c"), names("new;c;a")
    assert set(before) & set(after) == {before[0], before[2]}
    assert sorted(names(grids=["n=1..9"])) == sorted(names(grids=["n=1..9"], shuffle=True, seed=3))


def test_a_value_is_the_same_from_a_grid_and_from_a_table(tmp_path):
    (tmp_path / "t.csv").write_text("lr\n0.1\n0.2\n")
    assert names(csv=str(tmp_path / "t.csv")) == names(grids=["lr=0.1,0.2"])


def test_a_repetition_keeps_its_number_in_any_order():
    def numbered(**options):
        plan = make_plan(["a;b"], repeats=5, **options)
        return {
            (name.partition("#")[2], planned.repetition)
            for name, planned in identities(plan, "snap", ("run",), Resources())
        }

    assert numbered(shuffle=True, seed=1) == numbered() == {(str(n + 1), n) for n in range(5)}
