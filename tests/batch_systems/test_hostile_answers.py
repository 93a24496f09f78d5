"""Whatever a program prints instead of its answer, nobody guesses, no id of it reaches a command, and messages stay short and plain."""

from __future__ import annotations

import pytest

from liborch.batch_systems._reading import bytes_of, clock_of, excerpt, keep_ours, seconds_of
from liborch.batch_systems.base import Accepted, BatchSystem, Limits, Output, Rejected, Request, Unclear
from liborch.batch_systems.names import NAMES, named
from liborch.batch_systems.procedures import Procedures
from liborch.errors import SpecError, UnknownName
from liborch.specs import Procedures as Commands

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
    accepted = system.parse_submit(Output(0, TAKEN[system.name]))
    assert isinstance(accepted, Accepted)
    assert accepted.id.startswith("4924")


@pytest.mark.parametrize(
    "told", [b"", HTML, ANSI, SHELL, LOCALISED, b"\xff\xfe\0", b"\n", b"0x10\n", b"-1\n", b"OAR_JOB_ID=-5\n"]
)
@pytest.mark.parametrize("code", [0, 1, 255])
def test_what_is_no_answer_is_unclear(system: BatchSystem, told: bytes, code: int) -> None:
    for output in (Output(code, told), Output(code, told, LOCALISED), Output(code, b"", told)):
        for parsed in (system.parse_submit(output), system.parse_query(output), system.parse_cancel(output)):
            if parsed is None or parsed == {}:
                # PBS says nothing when all went well, and LSF nothing but a remark when there is nothing.
                assert system.name == "pbs"
                assert (code, output.stdout + output.stderr) in ((0, b""), (0, b"\n"))
                continue
            assert isinstance(parsed, Unclear), (output, parsed)
            assert len(parsed.why) < 400
            assert parsed.why.isprintable()


@pytest.mark.parametrize("around", ["before", "after", "twice", "cut", "stderr", "code", "shell", "ansi"])
def test_an_id_with_anything_beside_it_is_unclear(system: BatchSystem, around: str) -> None:
    taken = TAKEN[system.name]
    output = {
        "before": Output(0, b"Welcome to the cluster!\n" + taken),
        "after": Output(0, taken + b"Have a nice day\n"),
        "twice": Output(0, taken + taken),
        "cut": Output(0, taken[: taken.index(b"4924") + 2]),
        "stderr": Output(0, taken, b"error: could not write the spool file\n"),
        "code": Output(1, taken),
        "shell": Output(0, taken.replace(b"4924", b"4924; rm -rf ~")),
        "ansi": Output(0, taken.replace(b"4924", ANSI.strip())),
    }[around]
    assert isinstance(system.parse_submit(output), Unclear)


def test_a_command_that_did_not_end_says_nothing(system: BatchSystem) -> None:
    output = Output(None, TAKEN[system.name], b"qsub: Unknown queue\n")
    for parsed in (system.parse_submit(output), system.parse_query(output), system.parse_cancel(output)):
        assert isinstance(parsed, Unclear)
        assert "did not end" in parsed.why
    assert system.parse_limits(output) == Limits()


def test_an_endless_answer_says_nothing(system: BatchSystem) -> None:
    # Were any of it read in quadratic time, this would never end.
    for flood in (b"4924\n" * (1 << 17), b'{"1":' * (1 << 16), b"<job_list>" * (1 << 16)):
        for output in (Output(0, flood, flood, is_cut=True), Output(1, b"1795286893\n" + flood, b"")):
            for parsed in (
                system.parse_submit(output),
                system.parse_query(output),
                system.parse_cancel(output),
            ):
                assert isinstance(parsed, Unclear)
                assert len(parsed.why) < 600
            system.parse_limits(output)


@pytest.mark.parametrize("id", ["1; rm -rf ~", "$(id)", "-1", "1 2", "", "1\n", "a", "1" * 200])
def test_what_is_no_id_reaches_no_command(system: BatchSystem, id: str) -> None:
    for render in (system.query, system.cancel):
        with pytest.raises(ValueError, match="is no id"):
            render([id])


def test_every_command_speaks_english_and_utc(system: BatchSystem) -> None:
    for command in (system.submit(Request("abc123")), system.query(["1"]), system.cancel(["1"])):
        assert command.argv[:4] == ("env", "LC_ALL=C", "LANG=C", "TZ=UTC")


def test_a_holder_with_anything_in_it_is_words(system: BatchSystem) -> None:
    command = system.submit(Request("abc123", holder=("sh", "-c", "it's; $HOME `id`")))
    text = command.stdin.decode() + command.argv[-1]
    assert """'it'"'"'s; $HOME `id`'""" in text


def test_every_name_of_a_profile_has_its_system() -> None:
    assert [named(name).name for name in NAMES] == list(NAMES)
    with pytest.raises(UnknownName, match="did you mean slurm"):
        named("moab")
    with pytest.raises(UnknownName, match="profile's own commands"):
        named("procedures")


def test_all_of_them_are_what_the_driver_knows() -> None:
    systems: list[BatchSystem] = [*map(named, NAMES), Procedures(Commands())]
    for system in systems:
        assert isinstance(system.can_enter, bool)
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
    assert isinstance(named("sge").parse_submit(Output(0, b"", b"denied: x\n")), Unclear)
    assert isinstance(named("sge").parse_submit(Output(1, b"", b"denied: x\n")), Rejected)
