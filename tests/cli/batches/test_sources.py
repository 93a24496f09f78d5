"""Plans: what is executed, from which options and files."""

from __future__ import annotations

import csv
import io
import json
import shlex
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liborch.errors import SpecError, TemplateError
from runaway.batches.grids import parse_grid
from runaway.batches.sources import make_plan
from runaway.batches.templates import parse

#: Python's csv module quotes neither leading blanks nor, in some versions, a lone carriage return.
VALUES = st.text(st.characters(exclude_characters="\0\r", exclude_categories=("Cs",))).map(str.strip)


def arguments(*words, **options):
    plan = make_plan(words, **options)
    lists = [list(planned.arguments) for planned in plan]
    assert len(lists) == plan.count
    return lists


def joined(*words, **options):
    return [" ".join(found) for found in arguments(*words, **options)]


@pytest.fixture
def file(tmp_path):
    def write(text, name="file"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


# Behind --


def test_nothing_is_one_execution_without_arguments():
    assert arguments() == [[]]
    assert arguments("") == [[]]


def test_the_strings_of_a_single_template_are_split_into_words():
    assert arguments("'--x '+{1;2}+' --y '+{3;4}")[1] == ["--x", "1", "--y", "4"]
    assert arguments("{''; '--flag'}") == [[], ["--flag"]]
    assert arguments('it\'s {"k":1}') == [["it's", '{"k":1}']]


def test_several_words_are_arguments_byte_for_byte():
    words = ["--name", "a  b", "it's", '{"k": 1}', "1e+3", "a+b", "", "'x'", "\udcff", "--", "#"]
    assert arguments(*words) == [words]


def test_several_words_may_hold_templates():
    assert arguments("--lr", "{0.1;0.01}", "a b") == [["--lr", "0.1", "a b"], ["--lr", "0.01", "a b"]]
    assert joined("{a;b}", "-n={1;2}") == ["a -n=1", "a -n=2", "b -n=1", "b -n=2"]
    assert arguments("x", "{'';'--flag 3'}") == [["x"], ["x", "--flag", "3"]]


def test_a_semicolon_outside_braces_among_several_words_is_an_error_that_shows_both_ways_out():
    with pytest.raises(SpecError, match=r"""word 2 .*';'.* in braces, .*write "';'"$"""):
        make_plan(["x", ";"])
    assert arguments("x", "'a;b'") == [["x", "a;b"]]
    assert arguments("x", '{"k": "a;b"}') == [["x", '{"k": "a;b"}']]


def test_what_was_typed_is_shown_as_it_is_to_be_typed():
    with pytest.raises(TemplateError, match=r"""write "'\{a;b'"$"""):
        make_plan(["{a;b"])
    with pytest.raises(TemplateError) as caught:
        make_plan(["{$a;b"])
    assert list(parse(shlex.split(caught.value.literal)[0])) == ["{$a;b"]


# Files


def test_an_arguments_file_runs_its_lines_in_order_each_expanded(file):
    name = file("--a {1;2}\r\n\n# a comment\n  --b\n''\n'# none'\n--c x\\y")
    assert joined(arguments_file=name) == ["--a 1", "--a 2", "--b", "", "# none", "--c x\\y"]
    assert make_plan(arguments_file=name).at(2).arguments == ("--b",)


def test_a_mistake_in_a_file_is_told_with_its_line(file):
    name = file("a\n\n# c\nb; {c;d\n")
    with pytest.raises(TemplateError, match=f"{name}, line 4, column 4: .*never closed"):
        make_plan(arguments_file=name)


def test_standard_input_is_a_file_called_dash():
    assert joined(arguments_file="-", stdin=io.BytesIO(b"a;b\nc\xff")) == ["a", "b", "c\udcff"]
    with pytest.raises(SpecError, match="read once"):
        make_plan(arguments_file="-", csv="-", stdin=io.BytesIO(b""))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "nothing to execute"),
        (b"# only this\n\n", "nothing to execute"),
        (b"a\nb\0\n", "line 2: a NUL"),
        ("a".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_says_nothing_is_an_error(file, content, says):
    with pytest.raises(SpecError, match=says):
        make_plan(arguments_file=file(content))


def test_a_file_that_is_not_there_is_named_with_its_option(tmp_path):
    with pytest.raises(SpecError, match=r"--csv: there is no file nowhere\.csv"):
        make_plan(csv="nowhere.csv")
    with pytest.raises(SpecError, match=r"--jsonl: .*cannot be read: Is a directory"):
        make_plan(jsonl=str(tmp_path))


# Grids


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("lr=0.1,0.01", ["0.1", "0.01"]),
        ("seed=0..9", [str(n) for n in range(10)]),
        ("n=3..1", ["3", "2", "1"]),
        ("n=0..100..40", ["0", "40", "80"]),
        ("n=10..1..-4", ["10", "6", "2"]),
        ("x=0.1..0.5..0.1", ["0.1", "0.2", "0.3", "0.4", "0.5"]),
        ("x=-1..1..0.5", ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ("n=008..011,-02..01", ["008", "009", "010", "011", "-02", "-01", "000", "001"]),
        ("n=0..2,10,a..c,../x", ["0", "1", "2", "10", "a..c", "../x"]),
        ("layers=[64,64],[128]", ["[64,64]", "[128]"]),
        ("""m="a,b",'c''d',e'f,'0..9'""", ["a,b", "c'd", "e'f", "0..9"]),
        ("tag='',fast", ["", "fast"]),
        ("opt=a=b", ["a=b"]),
    ],
)
def test_the_values_of_a_grid(text, values):
    grid = parse_grid(text)
    assert list(grid) == values
    assert grid.count == len(values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr", "expected NAME=VALUES"),
        ("=1", "expected NAME=VALUES"),
        ("a b=1", "expected NAME=VALUES"),
        ("lr=", "value 1 is empty"),
        ("lr=1,,2", "value 2 is empty"),
        ("lr=1,", "value 2 is empty"),
        ("x=0.1..0.5", "needs a step"),
        ("n=0..9..-1", "never lead"),
        ("n=0..9..0", "never lead"),
        ('n="a', "never closed"),
        ("n=0..9999999999999", "at most"),
    ],
)
def test_a_grid_that_is_none_is_an_error(text, says):
    with pytest.raises(SpecError, match=says) as caught:
        parse_grid(text)
    assert text in str(caught.value)


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 9))
def test_a_range_holds_what_python_counts(first, last, step):
    way = step if first <= last else -step
    expected = [str(n) for n in range(first, last + (1 if way > 0 else -1), way)]
    assert list(parse_grid(f"n={first}..{last}..{way}")) == expected


def test_grids_multiply_and_the_first_varies_slowest():
    assert joined(grids=["lr=0.1,0.01", "seed=0..1"]) == [
        "--lr=0.1 --seed=0",
        "--lr=0.1 --seed=1",
        "--lr=0.01 --seed=0",
        "--lr=0.01 --seed=1",
    ]
    planned = make_plan(grids=["lr=0.1,0.01", "batch-size=8"]).at(1)
    assert planned.parameters == {"lr": "0.01", "batch-size": "8"}
    assert planned.variables == {
        "RUNAWAY_PARAM_LR": "0.01",
        "RUNAWAY_PARAM_BATCH_SIZE": "8",
        "RUNAWAY_REPETITION": "0",
    }


def test_templates_vary_faster_than_grids():
    assert joined("{x;y}", grids=["n=1,2"]) == ["x --n=1", "y --n=1", "x --n=2", "y --n=2"]


def test_a_parameter_that_the_template_names_goes_there_and_only_there():
    assert joined("train --lr {lr}", grids=["lr=1,2", "seed=7"]) == [
        "train --lr 1 --seed=7",
        "train --lr 2 --seed=7",
    ]
    assert arguments("--set", "lr is {lr}", grids=["lr=1"]) == [["--set", "lr is 1"]]
    assert arguments('{"lr": {lr}}', grids=["lr=1"]) == [['{"lr": 1}']]
    assert arguments("'{lr}'", grids=["lr=1"]) == [["{lr}", "--lr=1"]]


def test_a_value_is_never_split_nor_read_as_a_template():
    value = "a b; {c} 'd \"e"
    assert arguments("--t {t}", jsonl="-", stdin=io.BytesIO(b'{"t": "a b; {c} \'d \\"e"}')) == [
        ["--t", value]
    ]


def test_an_alternative_that_does_not_name_a_parameter_gets_it_added():
    assert joined("{fast;slow {n}}", grids=["n=5,6"]) == ["fast --n=5", "slow 5", "fast --n=6", "slow 6"]


def test_parameters_of_one_name_are_an_error():
    with pytest.raises(SpecError, match="'lr' is there twice"):
        make_plan(grids=["lr=1", "lr=2"])
    with pytest.raises(SpecError, match="both would be RUNAWAY_PARAM_A_B"):
        make_plan(grids=["a-b=1", "a.b=2"])


# Tables


def test_each_row_of_a_table_is_an_execution(file):
    name = file('lr, note\n0.10,"a, ""b"""\n\n1e-3,it\'s 5" wide\n2,"x\ny"\n')
    assert arguments(csv=name) == [
        ["--lr=0.10", '--note=a, "b"'],
        ["--lr=1e-3", "--note=it's 5\" wide"],
        ["--lr=2", "--note=x\ny"],
    ]
    assert make_plan(csv=name).at(2).parameters == {"lr": "2", "note": "x\ny"}


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1))
def test_what_python_writes_as_csv_is_read_back(rows):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("a", "b"), *rows])
    plan = make_plan(csv="-", stdin=io.BytesIO(text.getvalue().encode()))
    assert [(p.parameters["a"], p.parameters["b"]) for p in plan] == rows
    assert [p.arguments for p in plan] == [(f"--a={a}", f"--b={b}") for a, b in rows]


@given(st.lists(st.dictionaries(st.sampled_from("abc"), VALUES), min_size=1))
def test_what_python_writes_as_json_is_read_back(rows):
    text = "\n".join(json.dumps(row) for row in rows)
    plan = make_plan(jsonl="-", stdin=io.BytesIO(text.encode()))
    assert [p.parameters for p in plan] == rows


@pytest.mark.parametrize("text", ["a\tb\n1\t2,3", "a;b\n1;2,3", '\ufeffa,b\r\n1,"2,3"\r\n'])
def test_other_separators_and_marks_of_spreadsheets_are_read(file, text):
    assert [planned.parameters for planned in make_plan(csv=file(text))] == [{"a": "1", "b": "2,3"}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("a,b\n", "nothing to execute"),
        ("a,b\n1,2\n3\n", "line 3: 1 values; expected 2, one for each of a, b"),
        ("a,b\n1,2,3\n", "line 2: 3 values"),
        ('a,b\n1,2\n\n3,"x\n4,5\n', "line 4: unexpected end of data"),
        ("learning rate,b\n1,2", "line 1: 'learning rate' cannot be the name"),
        ("a,a\n1,2", "'a' is there twice"),
    ],
)
def test_a_table_that_is_none_is_an_error_with_its_line(file, text, says):
    with pytest.raises(SpecError, match=says):
        make_plan(csv=file(text))


def test_json_lines_keep_what_was_written(file):
    name = file(
        '{"lr": 1e-3, "n": 10000000000000000000001, "s": "a \\u00e9", "l": [1, 2.50], "b": true}\n\n{"lr": null, "n": 2}\n'
    )
    assert [planned.parameters for planned in make_plan(jsonl=name)] == [
        {"lr": "1e-3", "n": "10000000000000000000001", "s": "a é", "l": "[1, 2.50]", "b": "true"},
        {"n": "2"},
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1}\n{"a": \n', "line 2: .*expected an object"),
        ("[1]", "line 1: .*expected an object"),
        ('{"a": "x\\u0000"}', "line 1: a NUL"),
        ('{"a b": 1}', "'a b' cannot be the name"),
    ],
)
def test_json_lines_that_are_none_are_an_error_with_their_line(file, text, says):
    with pytest.raises(SpecError, match=says):
        make_plan(jsonl=file(text))


def test_a_named_parameter_that_a_row_lacks_is_told_before_anything_starts(file):
    name = file('{"a": 1, "b": 2}\n{"a": 1}\n')
    with pytest.raises(SpecError, match=r"template names \{b\}, which .*, line 2, does not have"):
        make_plan(["{b}"], jsonl=name)
    assert joined("{a}", jsonl=name) == ["1 --b=2", "1"]


def test_rows_grids_and_lines_multiply(file):
    table, lines = file("a\n1\n2\n", "table"), file("{a}\nx;y {n}\n", "lines")
    assert joined(arguments_file=lines, csv=table, grids=["n=5,6"]) == [
        *("1 --n=5", "x --a=1 --n=5", "y 5 --a=1", "1 --n=6", "x --a=1 --n=6", "y 6 --a=1"),
        *("2 --n=5", "x --a=2 --n=5", "y 5 --a=2", "2 --n=6", "x --a=2 --n=6", "y 6 --a=2"),
    ]


# Repeats and order


def test_repeats_stand_beside_each_other():
    plan = make_plan(["a;b"], repeats=2)
    assert [(p.arguments, p.repetition, p.index) for p in plan] == [
        (("a",), 0, 0),
        (("a",), 1, 1),
        (("b",), 0, 2),
        (("b",), 1, 3),
    ]
    assert (plan.count, plan.distinct) == (4, 2)


def test_shuffling_keeps_every_execution_and_is_the_same_for_a_seed():
    def order(seed):
        return [p.index for p in make_plan(grids=["n=1..50"], repeats=2, shuffle=True, seed=seed)]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(100)) != order(1)
    plan = make_plan(grids=["n=1..50"], shuffle=True)
    assert list(plan) == list(plan) != [plan.at(n) for n in range(50)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"repeats": 0}, "--repeats 0"),
        ({"words": ["x"], "arguments_file": "f"}, "expected one of them"),
        ({"csv": "a", "jsonl": "b"}, "expected one of them"),
        ({"arguments_file": "-"}, "standard input"),
        ({"grids": ["n=1..1000000000"], "shuffle": True}, "--shuffle"),
    ],
)
def test_options_that_cannot_be_are_errors(options, says):
    with pytest.raises(SpecError, match=says):
        make_plan(**options)


def test_ten_million_executions_are_counted_without_being_made():
    tracemalloc.start()
    plan = make_plan(["{a;b}+{1;2;3;4;5}"], grids=["seed=0..999999"])
    assert plan.count == 10**7
    assert plan.at(10**7 - 1).arguments == ("b5", "--seed=999999")
    assert next(iter(plan)).arguments == ("a1", "--seed=0")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
