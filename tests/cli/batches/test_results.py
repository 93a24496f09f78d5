"""`runaway results`: the table of a batch, in each of its forms."""

from __future__ import annotations

import csv
import io
import json

import pytest

from runaway.batches.results import flat, kinds_of, read_features
from tests.cli.batches.test_batch import resumed
from tests.cli.person import Person

WRITES = """echo '{"loss": {"train": '$1'.5}, "note": "n", "curve": [1, 2]}' > metrics.json
[ "$1" != 2 ] || echo 'no json' > metrics.json
exit "$1"
"""


def begin(person: Person, *more: str) -> None:
    person.write("run.sh", WRITES)
    done = person.run("batch", "local", "run.sh", "--grid", "n=0..2", *more, "--", "{n}")
    assert done.returncode == 1, done.stderr.decode()


def test_each_execution_is_a_row_with_its_parameters_its_end_and_its_metrics(person: Person) -> None:
    begin(person)
    done = person.run("results", "last")
    assert done.returncode == 0, done.stderr.decode()
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    rows.sort(key=lambda row: row["param.n"])
    assert [(row["state"], row["exit_code"], row["metric.loss.train"]) for row in rows] == [
        ("succeeded", "0", "0.5"),
        ("failed", "1", "1.5"),
        ("failed", "2", ""),
    ]
    assert {row["host"] for row in rows} == {"local"}
    assert all(row["started"].endswith("Z") and float(row["duration_s"]) >= 0 for row in rows)
    assert (person.folder / "batch" / rows[0]["id"]).samefile(rows[0]["output_folder"])
    assert rows[0]["metric.curve"] == "[1, 2]"
    assert b"no metrics of" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_lines_of_json_hold_the_same(person: Person) -> None:
    begin(person)
    lines = [json.loads(line) for line in person.run("results", "last", "--json").stdout.splitlines()]
    assert {line["param.n"]: line.get("metric.loss.train") for line in lines} == {
        "0": 0.5,
        "1": 1.5,
        "2": None,
    }


def test_parquet_has_numbers_where_all_are_numbers(person: Person) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    begin(person)
    done = person.run("results", "last", "-F", "parquet", "-o", "table.parquet")
    assert done.returncode == 0, done.stderr.decode()
    table = parquet.read_table(person.folder / "table.parquet")
    assert str(table.schema.field("param.n").type) == "int64"
    assert str(table.schema.field("started").type) == "timestamp[ms, tz=UTC]"
    assert sorted(table.column("metric.loss.train").to_pylist(), key=str) == [0.5, 1.5, None]
    assert [path.name for path in person.folder.glob("table*")] == ["table.parquet"]


def test_what_was_run_again_is_one_row_and_all_shows_both(person: Person) -> None:
    begin(person)
    command = ("batch", "local", "run.sh", "--grid", "n=0..2", "--", "{n}")
    again = person.run(*resumed(command, "--resume", "--retry-failed"))
    assert again.returncode == 1, again.stderr.decode()
    assert len(person.run("results", "last", "--json").stdout.splitlines()) == 3
    assert len(person.run("results", "last", "--json", "--all").stdout.splitlines()) == 5
    [line] = person.run("ps", "--batches", "--json").stdout.splitlines()
    assert json.loads(line)["counts"] == {"failed": 2, "succeeded": 1}


def test_a_batch_that_is_not_there_is_an_error_that_says_where_to_look(person: Person) -> None:
    done = person.run("results", "nothing")
    assert done.returncode == 2
    assert b"runaway ps --batches" in done.stderr


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "2"], "int64"),
        (["1", "0.5"], "float64"),
        (["1", "x"], "string"),
        (["007"], "string"),
        (["1e-3", "-0.5"], "float64"),
        (["1_000"], "string"),
        ([None], "string"),
        ([str(1 << 70)], "string"),
    ],
)
def test_a_column_of_parameters_is_what_holds_every_value(values: list[str], kind: str) -> None:
    assert kinds_of([{"param.p": value} for value in values])["param.p"] == kind


def test_features_are_lines_of_names_and_values_or_one_value() -> None:
    assert list(read_features("loss=0.5\nname = a b\n")) == [("loss", 0.5), ("name", "a b")]
    assert list(read_features("1.5")) == [("features", 1.5)]
    assert list(read_features("")) == []


def test_nested_metrics_have_the_names_on_their_way() -> None:
    assert dict(flat({"a": {"b": {"c": 1}}, "d": True, "e": [1]})) == {"a.b.c": 1, "d": True, "e": "[1]"}
