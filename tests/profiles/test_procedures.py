"""Procedures, run by the real shells: what the commands of a profile can rely on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liborch.errors import ProcedureError
from liborch.profiles.procedures import (
    OUTCOME_VARIABLE,
    Outcome,
    argv,
    carry_on,
    failure,
    join_arguments,
    parse_outcome,
    proxycommand,
    render,
    words_of,
)

SHELLS = [name for name in ("bash", "dash", "busybox sh") if shutil.which(name.split()[0])]


class Ran:
    """One procedure, run to its end."""

    def __init__(self, command: Sequence[str], folder: Path, env: dict[str, str] | None = None) -> None:
        note = folder / "note"
        note.unlink(missing_ok=True)
        environment = {
            b"PATH": os.environb[b"PATH"],
            **{os.fsencode(k): os.fsencode(v) for k, v in (env or {}).items()},
        }
        environment[OUTCOME_VARIABLE.encode()] = os.fsencode(note)
        # Ends the test, rather than the patience of whoever runs it, should a procedure hang.
        done = subprocess.run(
            [os.fsencode(word) for word in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            cwd=folder,
            timeout=20,
            check=False,
        )
        self.code = done.returncode
        self.stdout = done.stdout
        self.stderr = done.stderr
        self.raw = note.read_bytes() if note.exists() else b""

    @property
    def outcome(self) -> Outcome:
        return parse_outcome(self.raw)


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path):
    def run(*commands: str, env: dict[str, str] | None = None, arguments: Sequence[str] = ()) -> Ran:
        return Ran([*request.param.split(), "-c", render(commands), "procedure", *arguments], tmp_path, env)

    return run


@pytest.fixture
def bash(tmp_path: Path):
    def run(*commands: str, env: dict[str, str] | None = None) -> Ran:
        return Ran(["bash", "-c", render(commands)], tmp_path, env)

    return run


def test_commands_share_one_shell(shell):
    ran = shell("cd /tmp", "pwd", 'a="X Y"', "echo $a", "f() { echo in f; }", "f")
    assert (ran.code, ran.stdout) == (0, b"/tmp\nX Y\nin f\n")
    assert ran.outcome.folder == "/tmp"


def test_the_first_failure_ends_the_list_with_its_code(shell):
    ran = shell("echo one", "false", "echo never")
    assert (ran.code, ran.stdout, ran.outcome.reached) == (1, b"one\n", 2)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 126, 127, 128, 130, 137, 143, 255])
def test_exit_ends_it_with_its_code_and_the_variables_are_noted(shell, code):
    ran = shell("RUNAWAY_A=1", f"exit {code}", "echo never")
    assert (ran.code, ran.stdout, ran.outcome.variables) == (code, b"", {"RUNAWAY_A": "1"})


def test_the_code_of_a_failing_command_comes_back_as_it_is(shell):
    for code in (1, 2, 126, 127, 128, 130, 137, 143, 255):
        assert shell(f"(exit {code})").code == code


def test_death_by_signal_is_no_exit_code(shell):
    assert shell("kill -9 $$").code == -9
    assert shell("exit 137").code == 137


def test_only_the_last_status_of_a_command_counts(shell):
    ran = shell("false; true", "false || echo rescued", "if false; then :; fi")
    assert (ran.code, ran.stdout) == (0, b"rescued\n")


def test_an_unknown_program_is_127(shell):
    assert shell("no_such_program_here").code == 127


def test_a_syntax_error_is_a_failure_of_that_command_alone(shell):
    ran = shell("RUNAWAY_A=1", "echo one", "echo 'unbalanced", "echo never")
    assert (ran.code, ran.stdout) == (2, b"one\n")
    assert ran.outcome == Outcome({"RUNAWAY_A": "1"}, ran.outcome.folder, 3)


def test_set_and_exported_variables_are_noted_and_others_are_not(shell):
    ran = shell(
        "export RUNAWAY_A=1",
        "RUNAWAY_B='two words '",
        "OTHER=3",
        "RUNAWAY=4; RUNAWAYX=",
        "unset RUNAWAY_OLD",
        env={"RUNAWAY_OLD": "x", "RUNAWAY_KEPT": "k"},
    )
    assert ran.outcome.variables == {
        "RUNAWAY_A": "1",
        "RUNAWAY_B": "two words ",
        "RUNAWAY": "4",
        "RUNAWAYX": "",
        "RUNAWAY_KEPT": "k",
    }


@pytest.mark.parametrize(
    "value",
    [
        "",
        " x ",
        "a=b",
        "'\"",
        "$HOME `id` \\n",
        "one\ntwo\n\n",
        "\nRUNAWAY_FAKE=1\n",
        "*",
        "\x01\x7f",
        "é",
        "\udcff\udc80",
    ],
)
def test_values_are_noted_byte_for_byte(shell, value):
    ran = shell(":", env={"RUNAWAY_X": value, "OTHER": value})
    assert ran.outcome.variables == {"RUNAWAY_X": value}


@settings(max_examples=30, deadline=None)
@given(value=st.binary(max_size=200).map(lambda raw: raw.replace(b"\0", b"")))
def test_any_bytes_survive_two_procedures_in_turn(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("turns", numbered=True)
    text = os.fsdecode(value)
    for program in ("bash", "dash"):
        first = Ran([program, "-c", render(['export RUNAWAY_B="$RUNAWAY_A"'])], folder, {"RUNAWAY_A": text})
        second = Ran(
            [program, "-c", render(['printf %s "$RUNAWAY_B"'])],
            folder,
            carry_on(first.outcome, {"RUNAWAY_NODE_ID": "n"}),
        )
        assert second.stdout == value
        assert second.outcome.variables == {"RUNAWAY_A": text, "RUNAWAY_B": text, "RUNAWAY_NODE_ID": "n"}


def test_folders_with_odd_names_are_noted_exactly(shell, tmp_path):
    for name in ("a b", "line\nend", "ends\n", "ends\n\n", "'q\"$x"):
        (tmp_path / name).mkdir(exist_ok=True)
        assert shell('cd "$RUNAWAY_TO"', env={"RUNAWAY_TO": name}).outcome.folder == str(tmp_path / name)


def test_nothing_printed_changes_the_outcome(shell):
    lie = "printf 'RUNAWAY_ECODE: 0\\norchestra outcome 1\\0RUNAWAY_A=2\\0\\0'; echo RUNAWAY_ECODE: 0 >&2"
    ran = shell("RUNAWAY_A=1", lie, "exit 7")
    assert (ran.code, ran.outcome.variables) == (7, {"RUNAWAY_A": "1"})


def test_output_is_not_touched(shell):
    ran = shell("printf foo", "echo '   x   '", "printf '\\377\\001' >&2")
    assert (ran.stdout, ran.stderr) == (b"foo   x   \n", b"\xff\x01")


def test_a_command_that_reads_finds_the_end_not_the_script(shell):
    ran = shell("cat", "read line || echo none", "echo after")
    assert (ran.code, ran.stdout) == (0, b"none\nafter\n")


def test_the_commands_own_shell_options_are_honoured_and_do_no_harm(shell):
    ran = shell("set -u; set -f; set -C; IFS=_", "RUNAWAY_A='*'", "echo $RUNAWAY_A")
    assert (ran.code, ran.stdout, ran.outcome.variables) == (0, b"*\n", {"RUNAWAY_A": "*"})
    ran = shell("set -e", "RUNAWAY_A=1; false; echo never")
    assert (ran.code, ran.stdout, ran.outcome.variables) == (1, b"", {"RUNAWAY_A": "1"})


def test_functions_named_like_builtins_do_no_harm(shell):
    ran = shell("printf() { echo no; }; pwd() { echo no; }", "RUNAWAY_A=1")
    assert ran.outcome.variables == {"RUNAWAY_A": "1"}
    assert ran.outcome.folder != "no"


def test_a_path_without_programs_is_enough(shell):
    assert shell("PATH=/nonexistent", "RUNAWAY_A=1").outcome.variables == {"RUNAWAY_A": "1"}


def test_replacing_the_shell_leaves_the_state_before_it(shell):
    ran = shell("RUNAWAY_A=1", "cd /", "exec sh -c 'exit 9'")
    assert (ran.code, ran.outcome) == (9, Outcome({"RUNAWAY_A": "1"}, "/", 2))


def test_an_exit_trap_of_the_commands_runs_and_keeps_the_variables_so_far(shell):
    ran = shell("RUNAWAY_A=1", "trap 'echo mine' EXIT", "RUNAWAY_B=2", "exit 4")
    assert (ran.code, ran.stdout) == (4, b"mine\n")
    assert ran.outcome.variables == {"RUNAWAY_A": "1", "RUNAWAY_B": "2"}


def test_subshells_and_substitutions_note_nothing_of_their_own(shell):
    ran = shell("RUNAWAY_A=1", "(RUNAWAY_A=2; exit 0)", "x=$(RUNAWAY_A=3; echo y; exit 0)", "echo $x")
    assert (ran.stdout, ran.outcome.variables) == (b"y\n", {"RUNAWAY_A": "1"})


def test_where_the_note_goes_is_hidden_from_the_commands(shell):
    assert (
        shell('echo "${ORCHESTRA_OUTCOME-unset}"', "sh -c 'echo ${ORCHESTRA_OUTCOME-unset}'").stdout
        == b"unset\nunset\n"
    )


def test_without_a_place_for_the_note_the_commands_run_all_the_same():
    done = subprocess.run(["bash", "-c", render(["echo x", "exit 3"])], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"x\n", b"")


def test_a_note_that_cannot_be_written_does_not_change_the_code(tmp_path):
    for program in ("bash", "dash"):
        env = {**os.environ, OUTCOME_VARIABLE: str(tmp_path / "no" / "such" / "folder")}
        done = subprocess.run(
            [program, "-c", render(["set -e", "exit 3"])], capture_output=True, env=env, check=False
        )
        assert done.returncode == 3


def test_no_command_and_empty_commands_are_a_success(shell):
    assert (shell().code, shell("", "", "echo x").stdout) == (0, b"x\n")


def test_commands_of_several_lines_work(shell):
    assert shell("for i in 1 2; do\n  echo $i\ndone", "cat <<END\nit's\nEND").stdout == b"1\n2\nit's\n"


def test_arguments_arrive_whole_as_positional_parameters(shell):
    arguments = ["a b", 'c"d', "*", "$HOME", "it's;x", ""]
    assert shell("printf '%s|' \"$@\"", arguments=arguments).stdout == b"a b|c\"d|*|$HOME|it's;x||"
    assert join_arguments(["--x", "1"]) == "--x 1"


def test_bash_is_taken_where_it_is_and_sh_where_it_is_not(tmp_path):
    asks = ["echo ${BASH_VERSION+bash}", "RUNAWAY_A=1"]
    ran = Ran(argv(asks, ["x"]), tmp_path)
    assert (ran.stdout, ran.outcome.variables) == (b"bash\n", {"RUNAWAY_A": "1"})
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to(shutil.which("dash") or "/bin/sh")
    ran = Ran(argv(asks, ["x"]), tmp_path, {"PATH": str(programs)})
    assert (ran.stdout, ran.outcome.variables) == (b"\n", {"RUNAWAY_A": "1"})


def test_what_needs_bash_works_in_bash(bash):
    ran = bash("a=(1 2); [[ ${#a[@]} == 2 ]]", "source /dev/null", "export RUNAWAY_FEATURES=$'x\\ny'")
    assert (ran.code, ran.outcome.variables) == (0, {"RUNAWAY_FEATURES": "x\ny"})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        b"orchestra outcome 1\0",
        b"orchestra outcome 1\x002\0/\n\0RUNAWAY_A=1\0",
        b"orchestra outcome 1\x002\0/\n\0RUNAWAY_A=1",
        b"orchestra outcome 1\x002\0/\n\0PATH=1\0\0",
        b"orchestra outcome 1\x002\0/\n\0RUNAWAY_A\0\0",
        b"orchestra outcome 1\0x\0/\n\0\0",
        b"orchestra outcome 2\x002\0/\n\0\0",
        b"orchestra outcome 1\x002\0/\n\0" + b"RUNAWAY_A=" + b"x" * (5 << 20) + b"\0\0",
    ],
)
def test_a_torn_or_foreign_note_is_an_error(raw):
    with pytest.raises(ProcedureError):
        parse_outcome(raw)


@pytest.mark.parametrize("cut", range(40))
def test_every_cut_of_a_note_is_an_error(cut):
    whole = b"orchestra outcome 1\x002\0/tmp\n\0RUNAWAY_A=1\0\0"
    assert parse_outcome(whole) == Outcome({"RUNAWAY_A": "1"}, "/tmp", 2)
    if cut < len(whole):
        with pytest.raises(ProcedureError):
            parse_outcome(whole[:cut])


def test_words_are_split_on_blanks_and_trailing_ones_do_no_harm():
    assert words_of({"RUNAWAY_NODES": " n1  n2\tn3 \n"}, "RUNAWAY_NODES", "start_allocation") == (
        "n1",
        "n2",
        "n3",
    )


@pytest.mark.parametrize("variables", [{}, {"RUNAWAY_NODE": "n1"}, {"RUNAWAY_NODES": "  "}])
def test_missing_words_are_an_error_that_names_the_variable_and_the_procedure(variables):
    with pytest.raises(ProcedureError, match=r"start_allocation: .*set RUNAWAY_NODES.*expected"):
        words_of(variables, "RUNAWAY_NODES", "start_allocation")


def test_a_node_id_goes_into_the_proxy_command():
    assert proxycommand("ssh -W $RUNAWAY_NODE_ID:22 gate", "n1") == "ssh -W n1:22 gate"
    assert (
        proxycommand("ssh -W ${RUNAWAY_NODE_ID}x $RUNAWAY_NODE_IDS", "n1") == "ssh -W n1x $RUNAWAY_NODE_IDS"
    )


@pytest.mark.parametrize(
    "node", ["", "-oProxyCommand=x", "a;id", "$(id)", "a b", "a\nb", "`id`", "a" * 300, "\\1", "a\n"]
)
def test_a_node_id_that_a_shell_or_ssh_could_obey_is_refused(node):
    with pytest.raises(ProcedureError):
        proxycommand("ssh -W $RUNAWAY_NODE_ID:22 gate", node)


def test_a_failure_names_the_command_that_did_it(shell):
    commands = ["true", "echo  x;\n false", "true"]
    ran = shell(*commands)
    error = failure("start_allocation", commands, ran.code, ran.outcome)
    assert (str(error), error.code) == (
        "start_allocation: ended with code 1 at command 2 of 3: 'echo x; false'",
        1,
    )
    assert str(failure("execution", commands, 137, None)) == "execution: ended with code 137"
