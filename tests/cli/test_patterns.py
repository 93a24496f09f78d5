"""Folders with `$RUNAWAY_...` in them."""

from __future__ import annotations

import os.path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liborch.errors import PatternError
from liborch.patterns import AFTER, BEFORE, caller_variables, parse_output, parse_remote

VALUES = {
    "RUNAWAY_PATH": "$HOME/orchestra",
    "RUNAWAY_UUID": "0123-abc",
    "RUNAWAY_ECODE": "3",
    "RUNAWAY_NODE_ID": "n7",
    "RUNAWAY_LOCAL_FOLDER": "/home/me/code",
}


def output(text, environment=None, *, env_read=True, **values):
    pattern = parse_output(text, environment or {}, env_read=env_read)
    return pattern.fill({**VALUES, **(environment or {}), **values})


def test_a_folder_by_exit_code_and_id():
    pattern = parse_output("batch/$RUNAWAY_ECODE/$RUNAWAY_UUID", {})
    assert (pattern.needs_outcome, pattern.names) == (True, ("RUNAWAY_ECODE", "RUNAWAY_UUID"))
    assert pattern.fill(VALUES) == "batch/3/0123-abc"


def test_variables_of_the_caller_are_known():
    assert output("out/$RUNAWAY_TAG", {"RUNAWAY_TAG": "x"}) == "out/x"


def test_without_the_environment_they_are_an_error_that_says_why():
    with pytest.raises(PatternError, match=r"\$RUNAWAY_TAG is not known.*--no-env-read") as caught:
        output("out/$RUNAWAY_TAG", {"RUNAWAY_TAG": "x"}, env_read=False)
    assert caught.value.name == "RUNAWAY_TAG"


def test_braces_end_a_name():
    assert output("${RUNAWAY_UUID}_x/${RUNAWAY_ECODE}") == "0123-abc_x/3"


def test_the_longest_name_wins():
    assert output("$RUNAWAY_NODE_ID", {"RUNAWAY_NODE": "wrong"}) == "n7"
    with pytest.raises(PatternError, match=r"RUNAWAY_NODE_IDX is not known.*write \$\{RUNAWAY_NODE_ID\}X"):
        output("$RUNAWAY_NODE_IDX", {"RUNAWAY_NODE": "wrong"})


def test_an_unknown_name_is_an_error_with_the_nearest():
    with pytest.raises(PatternError, match=r"\$RUNAWAY_UID is not known.*did you mean \$RUNAWAY_UUID"):
        output("out/$RUNAWAY_UID")


@pytest.mark.parametrize("name", BEFORE)
def test_every_name_known_before_can_be_in_both_folders(name):
    assert parse_output(f"${name}", {}).needs_outcome is False
    assert parse_remote(f"/x/${{{name}}}", {}).fill({name: "v"}) == "/x/v"


@pytest.mark.parametrize("name", AFTER)
def test_every_name_known_after_can_only_be_in_the_output_folder(name):
    pattern = parse_output(f"a/${name}/b", {})
    assert pattern.needs_outcome
    assert pattern.fill({name: "v"}) == "a/v/b"
    with pytest.raises(PatternError, match="only known after"):
        parse_remote(f"/x/${name}", {})


def test_a_caller_cannot_pass_off_its_own_as_ours():
    assert caller_variables({"RUNAWAY_UUID": "x", "RUNAWAY_TAG": "y", "HOME": "z", "RUNAWAY-A": "q"}) == {
        "RUNAWAY_TAG": "y"
    }
    assert caller_variables({"RUNAWAY_TAG": "y"}, env_read=False) == {}
    with pytest.raises(PatternError, match="only known after"):
        parse_remote("/x/$RUNAWAY_ECODE", {"RUNAWAY_ECODE": "0"})


def test_the_default_folders():
    assert output(".") == "."
    assert parse_remote("$RUNAWAY_PATH/$RUNAWAY_UUID", {}).fill(VALUES) == "$HOME/orchestra/0123-abc"


def test_other_names_are_left_to_the_host_and_refused_here():
    assert parse_remote("$SCRATCH/${USER}/$RUNAWAY_UUID", {}).fill(VALUES) == "${SCRATCH}/${USER}/0123-abc"
    with pytest.raises(PatternError, match=r"\$HOME is not known.*shell"):
        output("$HOME/x")


def test_two_dollars_are_one():
    assert output("a$$b/$$RUNAWAY_NOPE$$$RUNAWAY_ECODE") == "a$b/$RUNAWAY_NOPE$3"
    assert output("costs 5$ or $5 (50%)") == "costs 5$ or $5 (50%)"
    with pytest.raises(PatternError, match="dollar sign"):
        parse_remote("/x/$$y", {})


@pytest.mark.parametrize("text", ["", "a\0b", "${}", "${RUNAWAY_UUID:-x}", "${ RUNAWAY_UUID}"])
def test_text_that_is_no_pattern_is_an_error(text):
    for parse in (parse_output, parse_remote):
        with pytest.raises(PatternError):
            parse(text, {})


@pytest.mark.parametrize("value", ["..", "a/../../b", "/etc", "//etc", "x/..", "../x", "\0", "x" * 5000])
@pytest.mark.parametrize("pattern", ["$RUNAWAY_ARGUMENTS", "$RUNAWAY_ARGUMENTS/y"])
def test_a_value_known_before_that_leads_out_is_an_error_before(pattern, value):
    with pytest.raises(PatternError):
        parse_output(pattern, {}).fill({"RUNAWAY_ARGUMENTS": value})


def test_an_empty_value_cannot_make_a_path_absolute():
    with pytest.raises(PatternError, match="absolute"):
        output("$RUNAWAY_TAG/etc", {"RUNAWAY_TAG": ""})
    assert output("$RUNAWAY_FEATURES/etc") == "etc"


def test_a_value_in_the_middle_cannot_restart_the_path():
    assert output("out/$RUNAWAY_TAG", {"RUNAWAY_TAG": "/etc"}) == "out//etc"


def test_dots_cannot_be_put_together():
    with pytest.raises(PatternError, match=r"adds a `\.\.`"):
        output("out/.$RUNAWAY_TAG", {"RUNAWAY_TAG": "."})
    with pytest.raises(PatternError, match=r"adds a `\.\.`"):
        output("out/${RUNAWAY_TAG}..", {"RUNAWAY_TAG": ""})
    assert output("out/.$RUNAWAY_FEATURES/x", RUNAWAY_FEATURES=".") == "out/__/x"
    assert output("out/$RUNAWAY_FEATURES", RUNAWAY_FEATURES="..a/...") == "out/..a/..."


def test_what_the_person_wrote_is_theirs():
    assert output("../results/$RUNAWAY_UUID/..") == "../results/0123-abc/.."
    assert output("/data/$RUNAWAY_UUID") == "/data/0123-abc"
    assert output("$RUNAWAY_LOCAL_FOLDER/out") == "/home/me/code/out"


def test_each_side_has_a_root_of_its_own():
    with pytest.raises(PatternError, match="absolute"):
        output("$RUNAWAY_PATH/x", RUNAWAY_PATH="/root/.ssh")
    with pytest.raises(PatternError, match="absolute"):
        parse_remote("$RUNAWAY_LOCAL_FOLDER/x", {}).fill(VALUES)
    with pytest.raises(PatternError, match="would expand"):
        parse_remote("/x/$RUNAWAY_LOCAL_FOLDER", {}).fill({"RUNAWAY_LOCAL_FOLDER": "/home/a$b"})


def test_a_value_from_the_host_never_costs_the_results():
    assert output("$RUNAWAY_STDOUT/x", RUNAWAY_STDOUT="/etc/../../a\n") == "etc/__/__/a/x"
    assert output("$RUNAWAY_STDOUT", RUNAWAY_STDOUT="") == "."
    assert output("o/$RUNAWAY_STDERR", RUNAWAY_STDERR="a\0b\r\n") == "o/ab"
    assert output("o/$RUNAWAY_FEATURES") == "o/"


def test_long_values_are_cut_and_stay_different():
    one, other = (output("o/$RUNAWAY_ARGUMENTS", RUNAWAY_ARGUMENTS="é" * 300 + end) for end in "ab")
    assert one != other
    assert max(len(name.encode()) for name in (one, other)) <= 2 + 255
    assert len(output("$RUNAWAY_STDOUT", RUNAWAY_STDOUT="a/" * 1_000_000)) < 1100


def test_check_finds_before_what_fill_would_meet_after():
    pattern = parse_output("$RUNAWAY_TAG/$RUNAWAY_ECODE", {"RUNAWAY_TAG": "x"})
    pattern.check({"RUNAWAY_TAG": "a"})
    for values in ({}, {"RUNAWAY_TAG": "../a"}, {"RUNAWAY_TAG": "/a"}):
        with pytest.raises(PatternError):
            pattern.check(values)


def test_nothing_in_a_remote_folder_is_expanded_but_what_the_person_wrote():
    for value in ("$(id)", "`id`", "$HOME", "a\\b", "../x"):
        with pytest.raises(PatternError):
            parse_remote("/x/$RUNAWAY_ARGUMENTS", {}).fill({"RUNAWAY_ARGUMENTS": value})


@given(
    before=st.text(alphabet="./ab", max_size=8),
    after=st.text(alphabet="./ab\0\n", max_size=8),
    glue=st.lists(
        st.sampled_from(["${RUNAWAY_ARGUMENTS}", "${RUNAWAY_FEATURES}", "/", ".", "c"]),
        min_size=1,
        max_size=6,
    ),
)
@settings(deadline=None)
def test_no_values_lead_out_of_the_folder(before, after, glue):
    pattern = parse_output("safe/" + "".join(glue), {})
    written_up = sum(
        part == ".." for part in "".join(part if part in "/.c" else "?" for part in glue).split("/")
    )
    values = {"RUNAWAY_ARGUMENTS": before, "RUNAWAY_FEATURES": after}
    try:
        pattern.check(values)
    except PatternError:
        return
    filled = pattern.fill(values)
    assert filled.startswith("safe/")
    assert filled.split("/").count("..") == written_up


@given(after=st.text(max_size=600))
@settings(deadline=None)
def test_any_output_of_an_execution_makes_a_usable_folder_name(after):
    filled = parse_output("$RUNAWAY_STDOUT", {}).fill({"RUNAWAY_STDOUT": after})
    assert "\0" not in filled
    assert not os.path.isabs(filled)
    assert all(len(part.encode("utf-8", "surrogatepass")) <= 255 for part in filled.split("/"))
