"""Whatever a program prints instead of its answer, nobody guesses, no id of it reaches a command, and messages stay short and plain."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies

from liborch.batch_systems._reading import bytes_of, clock_of, excerpt, heard, keep_ours, seconds_of
from liborch.batch_systems.base import (
    Accepted,
    BatchSystem,
    Limits,
    Output,
    Rejected,
    Request,
    Unclear,
    is_id,
)
from liborch.batch_systems.names import NAMES, named
from liborch.batch_systems.procedures import Procedures
from liborch.errors import SpecError, UnknownName
from liborch.specs import ENTERED
from liborch.specs import Procedures as Commands
from tests.batch_systems.captures import answer, captured

OURS = ("oar", "pbs", "sge", "lsf")
#: What each says of a submission that it took.
TAKEN = {
    "oar": b"[ADMISSION RULE] Set default walltime to 7200.\nOAR_JOB_ID=4924 \n",
    "pbs": b"4924.server\n",
    "sge": b"4924\n",
    "lsf": b"Job <4924> is submitted to queue <normal>.\n",
}
HTML = b"<!DOCTYPE html>\n<html><body><h1>502 Bad Gateway</h1>OAR_JOB_ID=4924 4924</body></html>\n"
ANSI = b"\x1b[31m4924\x1b[0m\n"
SHELL = b"4924; rm -rf ~\n"
LOCALISED = "Erreur : la file d'attente n'existe pas\n".encode("latin-1")


@pytest.fixture(params=OURS)
def system(request: pytest.FixtureRequest) -> BatchSystem:
    """Each system in turn."""
    return named(request.param)


def test_what_it_took_is_an_acceptance(system: BatchSystem) -> None:
    taken = answer(0, TAKEN[system.name])
    # What a login shell says before is not the command's.
    noisy = Output(0, b"Welcome!\nOAR_JOB_ID=1\n1\n" + taken.stdout, b"tput: error: no TERM\n" + taken.stderr)
    for output in (taken, noisy):
        accepted = system.parse_submit(output)
        assert isinstance(accepted, Accepted)
        assert accepted.id.startswith("4924")


@pytest.mark.parametrize(
    "told", [b"", HTML, ANSI, SHELL, LOCALISED, b"\xff\xfe\0", b"\n", b"0x10\n", b"-1\n", b"OAR_JOB_ID=-5\n"]
)
@pytest.mark.parametrize("code", [0, 1, 255])
def test_what_is_no_answer_is_unclear(system: BatchSystem, told: bytes, code: int) -> None:
    for output in (
        Output(code, told),
        Output(code, b"", told),
        answer(code, told),
        answer(code, told, LOCALISED),
        answer(code, b"", told),
        Output(0, answer(code, told).stdout[:-1]),
        Output(0, answer(code, told).stdout[1:]),
    ):
        for parsed in (system.parse_submit(output), system.parse_query(output), system.parse_cancel(output)):
            if parsed is None or parsed == {}:
                # PBS says nothing when all went well, OAR when there is nothing; and nothing is nothing, not an error.
                assert system.name in ("pbs", "oar")
                told_nothing = heard(output)
                assert told_nothing is not None
                words = told_nothing[1].stdout + told_nothing[1].stderr
                assert (told_nothing[1].code, words.strip()) == (0, b"")
                continue
            assert isinstance(parsed, Unclear), (output, parsed)
            assert len(parsed.why) < 400
            assert parsed.why.isprintable()


@pytest.mark.parametrize(
    "around", ["before", "after", "twice", "cut", "stderr", "code", "shell", "ansi", "unframed"]
)
def test_an_id_with_anything_beside_it_is_unclear(system: BatchSystem, around: str) -> None:
    taken = TAKEN[system.name]
    output = {
        "before": answer(0, b"Welcome to the cluster!\n" + taken),
        "after": answer(0, taken + b"Have a nice day\n"),
        "twice": answer(0, taken + taken),
        "cut": answer(0, taken[: taken.index(b"4924") + 2]),
        "stderr": answer(0, taken, b"error: could not write the spool file\n"),
        "code": answer(1, taken),
        "shell": answer(0, taken.replace(b"4924", b"4924; rm -rf ~")),
        "ansi": answer(0, taken.replace(b"4924", ANSI.strip())),
        "unframed": Output(0, taken),
    }[around]
    assert isinstance(system.parse_submit(output), Unclear)


def test_a_program_that_is_not_there_is_a_refusal_that_says_so(system: BatchSystem) -> None:
    missing = (
        b"timeout: failed to run command 'qsub': No such file or directory\n",
        b"sh: 9: oarsub: not found\n",
        b"bash: line 3: bsub: command not found\n",
    )
    for said in missing:
        refused = system.parse_submit(answer(127, b"", said))
        assert isinstance(refused, Rejected)
        assert not refused.is_retriable
        assert "is this its frontend" in refused.why
    assert isinstance(system.parse_submit(answer(127, b"", b"")), Unclear)


def test_a_command_that_did_not_end_says_nothing(system: BatchSystem) -> None:
    output = Output(None, answer(0, TAKEN[system.name]).stdout, b"qsub: Unknown queue\n")
    for parsed in (system.parse_submit(output), system.parse_query(output), system.parse_cancel(output)):
        assert isinstance(parsed, Unclear)
        assert "did not end" in parsed.why
    assert system.parse_limits(output) == Limits()


def test_an_endless_answer_says_nothing(system: BatchSystem) -> None:
    # Were any of it read in quadratic time, this would never end.
    for flood in (b"4924\n" * (1 << 17), b'{"1":' * (1 << 16), b"<job_list>" * (1 << 16)):
        for output in (Output(0, flood, flood, is_cut=True), answer(1, flood), answer(0, flood)):
            for parsed in (
                system.parse_submit(output),
                system.parse_query(output),
                system.parse_cancel(output),
            ):
                assert isinstance(parsed, Unclear)
                assert len(parsed.why) < 600
            system.parse_limits(output)


#: Answers to start from.
TOLD = {
    "oar": [captured("oar", "query"), captured("oar", "query_ended")],
    "pbs": [
        captured("pbs", name)
        for name in ("query_19", "query_2021", "query_19_over", "query_torque", "limits")
    ],
    "sge": [captured("sge", name) for name in ("query", "query_ended", "cancel", "limits")],
    "lsf": [captured("lsf", "query"), captured("lsf", "limits")],
}


@given(data=strategies.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", OURS)
def test_an_answer_that_was_tampered_with_is_read_or_is_none(name: str, data: strategies.DataObject) -> None:
    system = named(name)
    output = data.draw(strategies.sampled_from(TOLD[name]))
    told = output.stdout
    for _ in range(data.draw(strategies.integers(1, 3))):
        at = data.draw(strategies.integers(0, len(told)))
        gone = data.draw(strategies.sampled_from([0, 1, 5, 50, 1000]))
        put = data.draw(strategies.sampled_from(
            [b"", b"\n", b"\0", b"\x1b[31m", b"1e999", b'{"a":', b"[]", b"null", b"-1", b"$(id)", b"<x>", b"9" * 5000, b"\xff"]
        ))  # fmt: skip
        told = told[:at] + put + told[at + gone :]
    tampered = Output(output.code, told, output.stderr)
    sights = system.parse_query(tampered)
    if isinstance(sights, dict):
        for id, sight in sights.items():
            assert sight.id == id
            assert is_id(id)
            assert sight.why.isprintable()
            assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", node) for node in sight.nodes)
            assert (sight.state == "ended") == (sight.end != "")
    system.parse_submit(tampered)
    system.parse_cancel(tampered)
    system.parse_limits(tampered)


@pytest.mark.parametrize("id", ["1; rm -rf ~", "$(id)", "-1", "1 2", "", "1\n", "a", "1" * 200])
def test_what_is_no_id_reaches_no_command(system: BatchSystem, id: str) -> None:
    for render in (system.query, system.cancel):
        with pytest.raises(ValueError, match="is no id"):
            render([id])


def test_every_command_is_a_script_that_speaks_english_and_utc(system: BatchSystem) -> None:
    for command in (system.submit(Request("abc123")), system.query(["1"]), system.cancel(["1"])):
        assert command.argv == ("sh",)
        assert command.stdin.startswith(b"{\nLC_ALL=C LANG=C TZ=UTC; export LC_ALL LANG TZ\n")


def test_a_submission_that_is_cut_off_on_its_way_runs_nothing(system: BatchSystem, tmp_path: Path) -> None:
    for name in ("oarsub", "qsub", "bsub"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\ncat >/dev/null\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = system.submit(Request("abc123")).stdin
    lines = script.splitlines(keepends=True)
    for length in range(1, len(lines)):
        subprocess.run(
            ["sh"], input=b"".join(lines[:length]), env=environment, capture_output=True, check=False
        )
    assert not (tmp_path / "ran").exists()
    subprocess.run(["sh"], input=script, env=environment, capture_output=True, check=True)
    assert (tmp_path / "ran").exists()


def test_a_holder_with_anything_in_it_is_words(system: BatchSystem, tmp_path: Path) -> None:
    command = system.submit(Request("abc123", holder=("printf", "%s|", "it's; $HOME `id`", "")))
    # Each runs its script as it is, or hands its last word to a shell.
    for name in ("qsub", "bsub"):
        (tmp_path / name).write_text("#!/bin/sh\nexec sh\n")
    (tmp_path / "oarsub").write_text('#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\nexec sh -c "$1"\n')
    for name in ("oarsub", "qsub", "bsub"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh"], input=command.stdin, env=environment, capture_output=True, check=True)
    told = heard(Output(done.returncode, done.stdout, done.stderr))
    assert told is not None
    assert told[1] == Output(0, b"it's; $HOME `id`||")


def test_every_name_of_a_profile_has_its_system() -> None:
    assert [named(name).name for name in NAMES] == list(NAMES)
    with pytest.raises(UnknownName, match="did you mean slurm"):
        named("moab")
    with pytest.raises(UnknownName, match="profile's own commands"):
        named("procedures")


def test_all_of_them_are_what_the_driver_knows() -> None:
    systems: list[BatchSystem] = [*map(named, NAMES), Procedures(Commands())]
    for system in systems:
        assert system.can_enter == (system.name in ENTERED)
        assert system.parse_limits(Output(0)) == Limits()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1:30", 90), ("01:01:30", 3690), ("1-00:00:00", 86400), ("1:00:00:00", 86400), ("", None), ("x", None),
     ("INFINITY", None), ("-1", None), ("1:2:3:4:5", None)],
)  # fmt: skip
def test_durations_are_read_as_systems_write_them(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


def test_clocks_are_rounded_up() -> None:
    assert [clock_of(each) for each in (0.2, 59.1, 3600, 360000)] == [
        "00:00:01",
        "00:01:00",
        "01:00:00",
        "100:00:00",
    ]


def test_sizes_are_read_as_systems_write_them() -> None:
    assert [bytes_of(text) for text in ("4gb", "4194304kb", "1.5G", "512", "512b", "2T", "x")] == [
        4 << 30, 4 << 30, 3 << 29, 512, 512, 2 << 40, None,
    ]  # fmt: skip


def test_excerpts_are_plain_and_short() -> None:
    assert excerpt(b"", b"\x1b]0;evil\x07 a\tb\n\n c\n") == "]0;evil a b; c"
    assert len(excerpt(b"x" * 10000)) == 240
    assert excerpt(b"") == "nothing"


def test_long_options_may_be_shortened_and_are_still_ours() -> None:
    for word in ("--name", "--name=x", "--na", "--nam=x", "-nx", "-n"):
        with pytest.raises(SpecError, match="because"):
            keep_ours("oarsub", [word], {"--name": "because", "-n": "because"}, attached="n")
    keep_ours(
        "oarsub", ["--notify", "-p", "name=x", "--"], {"--name": "because", "-n": "because"}, attached=""
    )


def test_a_refusal_is_none_when_the_command_succeeded() -> None:
    assert isinstance(named("sge").parse_submit(answer(0, b"", b"denied: x\n")), Unclear)
    assert isinstance(named("sge").parse_submit(answer(1, b"", b"denied: x\n")), Rejected)
