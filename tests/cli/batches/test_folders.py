"""Where executions run and where results go: counts, clashes, what is there already."""

from __future__ import annotations

import pytest

from liborch.errors import PatternError, SpecError
from runaway.batches.folders import make_folders
from runaway.batches.sources import make_plan


def folders_of(plan, **options):
    options.setdefault("environment", {})
    folders = make_folders(plan, **options)
    return [folders.output(p).fill(folders.values(p, RUNAWAY_UUID=f"u{p.index}")) for p in plan]


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "file").write_text(text)
        return str(tmp_path / "file")

    return write


def test_each_execution_has_a_folder_of_its_own_name():
    assert folders_of(make_plan(["a;b"])) == ["batch/u0", "batch/u1"]


def test_parameters_arguments_and_the_callers_variables_may_name_it():
    plan = make_plan(["x"], grids=["lr=1,2"], repeats=2)
    pattern = "out/$RUNAWAY_TAG/$RUNAWAY_PARAM_LR-$RUNAWAY_REPETITION"
    assert folders_of(plan, output_folder=pattern, environment={"RUNAWAY_TAG": "t"}) == [
        *("out/t/1-0", "out/t/1-1", "out/t/2-0", "out/t/2-1")
    ]
    assert folders_of(make_plan(["a;b"]), output_folder="o/$RUNAWAY_ARGUMENTS") == ["o/a", "o/b"]


def test_three_outputs_for_three_arguments_are_one_each(file):
    plan = make_plan(["a;b;c"])
    assert folders_of(plan, outputs_file=file("x\n\n# c\ny/{1;2}\n")) == ["x", "y/1", "y/2"]
    assert folders_of(plan, output_folder="out/{x;y;z}") == ["out/x", "out/y", "out/z"]


def test_folders_stay_with_their_arguments_when_shuffled(file):
    plan = make_plan(grids=["n=0..9"], shuffle=True)
    found = folders_of(plan, outputs_file=file("\n".join(f"o{n}" for n in range(10))))
    assert found == [f"o{planned.parameters['n']}" for planned in plan] != sorted(found)


def test_one_folder_for_each_before_repeats_serves_its_repetitions():
    plan = make_plan(["a;b"], repeats=2)
    assert folders_of(plan, output_folder="{x;y}/$RUNAWAY_REPETITION") == ["x/0", "x/1", "y/0", "y/1"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"outputs_file": "x\ny"},
            r"--outputs-file .*: 2 folders for 3 executions; expected 3, one for each",
        ),
        ({"outputs_file": "x"}, "1 folders for 3"),
        ({"outputs_file": ""}, "0 folders for 3"),
        ({"remotes_file": "/a\n/b\n/c\n/d"}, "--remotes-file .*: 4 folders for 3"),
        ({"output_folder": "{a;b}"}, "--output-folder: 2 folders for 3"),
    ],
)
def test_a_count_that_does_not_match_is_an_error(file, options, says):
    options = {name: file(text) if name.endswith("file") else text for name, text in options.items()}
    with pytest.raises(SpecError, match=says):
        make_folders(make_plan(["a;b;c"]), environment={}, **options)


def test_an_option_and_its_file_at_once_are_an_error(file):
    with pytest.raises(SpecError, match="at once"):
        make_folders(make_plan(), output_folder="x", outputs_file=file("y"), environment={})


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("out", r"execution 1 \(a\) and execution 2 \(b c\) would both have the output folder out;"),
        ("out/$RUNAWAY_ECODE", r"may both have the output folder out/\$RUNAWAY_ECODE"),
        ("out/$RUNAWAY_REPETITION", "would both have the output folder out/0"),
        ("{x;./y/../x;z}", "1 .*2 .*folder x"),
        ("{x;$RUNAWAY_UUID;x}", "execution 1 .*execution 3"),
    ],
)
def test_two_executions_with_one_output_folder_are_named(pattern, says):
    with pytest.raises(SpecError, match=says):
        make_folders(make_plan(["a;b c;d"]), output_folder=pattern, environment={})


def test_folders_that_differ_by_what_is_known_are_no_clash():
    assert len(folders_of(make_plan(["a;b"]), output_folder="$RUNAWAY_ECODE/$RUNAWAY_ARGUMENTS")) == 2
    assert folders_of(make_plan(["a"]), output_folder="out") == ["out"]


def test_executions_may_share_a_folder_on_the_host():
    plan = make_plan(["a;b"])
    folders = make_folders(plan, remote_folder="/scratch/$USER", environment={})
    assert {folders.remote(p).fill(folders.values(p)) for p in plan} == {"/scratch/${USER}"}


def test_a_name_that_will_not_be_known_is_an_error_before_anything_starts(file):
    plan = make_plan(grids=["lr=1,2"])
    with pytest.raises(PatternError, match="RUNAWAY_PARAM_LRR is not known"):
        make_folders(plan, output_folder="$RUNAWAY_PARAM_LRR", environment={})
    with pytest.raises(PatternError, match="only known after"):
        make_folders(plan, remote_folder="/x/$RUNAWAY_ECODE", environment={})
    with pytest.raises(PatternError, match="--no-env-read"):
        make_folders(plan, output_folder="$RUNAWAY_TAG", environment={"RUNAWAY_TAG": "x"}, env_read=False)
    with pytest.raises(PatternError, match="NOPE"):
        make_folders(plan, outputs_file=file("a\n$RUNAWAY_NOPE"), environment={})


@pytest.mark.parametrize("value", ["../../x", "/etc"])
def test_a_value_that_leads_out_of_the_folder_is_an_error(value):
    plan = make_plan(grids=[f"p=ok,{value}"])
    root = "" if value.startswith("/") else "out/"
    with pytest.raises(PatternError, match="RUNAWAY_PARAM_P"):
        make_folders(plan, output_folder=f"{root}$RUNAWAY_PARAM_P/$RUNAWAY_UUID", environment={})


def test_an_output_folder_with_files_is_found_and_an_empty_one_is_free(tmp_path):
    plan = make_plan(["{a;b;c;d}"])
    folders = make_folders(plan, output_folder="out/$RUNAWAY_ARGUMENTS", environment={})
    folders.check_unused(plan, str(tmp_path))
    (tmp_path / "out/a").mkdir(parents=True)
    (tmp_path / "out/b/deep").mkdir(parents=True)
    (tmp_path / "out/d").write_text("a file")
    assert [(p.index, f) for p, f in folders.in_use(plan, str(tmp_path))] == [
        *((1, tmp_path / "out/b"), (3, tmp_path / "out/d"))
    ]
    with pytest.raises(SpecError, match=r"out/b of execution 2 \(b\) exists.*--resume.*--into-existing"):
        folders.check_unused(plan, str(tmp_path))


def test_folders_with_an_id_in_them_are_not_looked_for(tmp_path):
    plan = make_plan(["a;b"])
    (tmp_path / "batch").mkdir()
    (tmp_path / "batch/other").write_text("")
    assert list(make_folders(plan, environment={}).in_use(plan, str(tmp_path))) == []
