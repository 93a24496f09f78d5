"""OAR: commands as they should be, and answers as it gave them (captured/oar)."""

from __future__ import annotations

import json

import pytest

from liborch.batch_systems._reading import heard
from liborch.batch_systems.base import Accepted, Rejected, Request, Sight, Unclear
from liborch.batch_systems.oar import STATES, Oar
from liborch.errors import SpecError
from tests.batch_systems.captures import answer, captured, changed, line_of

OAR = Oar()
TAKEN = (
    b"[ADMISSION RULE] Set default walltime to 7200.\n[ADMISSION RULE] Modify resource description with type constraints\n"
    b"OAR_JOB_ID=4924\n"
)


def words(**fields: object) -> str:
    """The submission of a request, without what comes before `oarsub`."""
    command = OAR.submit(Request("abc123", **fields))  # type: ignore[arg-type]
    return line_of(command, "oarsub").replace("'", "")


def other(id: str, **fields: object) -> Sight:
    """What is read of one job of the captured answers, with something else in it."""
    told = heard(captured("oar", "query_ended"))
    assert told is not None
    jobs = json.loads(told[1].stdout)
    jobs[id] |= fields
    sights = OAR.parse_query(answer(0, json.dumps(jobs).encode(), now=told[0]))
    assert isinstance(sights, dict), sights
    return sights[id]


def test_nodes_walltime_and_what_is_taken_of_each_are_one_word() -> None:
    assert words() == "-n orch-abc123 -l /nodes=1 -O /dev/null -E /dev/null sleep infinity"
    told = words(nodes=3, walltime_s=5400, options=("-l", "gpu=2", "-t", "besteffort"), log_folder="/home/me")
    assert told == (
        "-n orch-abc123 -l /nodes=3/gpu=2,walltime=01:30:00 -O /home/me/orch-abc123.log -E /home/me/orch-abc123.log "
        "-t besteffort sleep infinity"
    )
    assert "-l {mem>64}/nodes=2/core=4 " in words(nodes=2, options=("--resource={mem>64}/core=4",))
    assert b"\ntimeout -k 2 25 oarsub " in OAR.submit(Request("abc123")).stdin
    assert b" 'sleep infinity'\n" in OAR.submit(Request("abc123")).stdin


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-n", "mine"), "-n.*the name carries"),
        (("-nmine",), "-nmine.*the name carries"),
        (("--name=mine",), "--name.*the name carries"),
        (("--array", "3"), "most"),
        (("-I",), "background"),
        (("-J",), "usual"),
        (("-l", "nodes=4"), "nodes and walltime are said by"),
        (("-l", "host=4"), "nodes and walltime are said by"),
        (("-l", "core=1,walltime=1:00:00"), "nodes and walltime are said by"),
        (("-l", "core=1+gpu=1"), "nodes and walltime are said by"),
        (("-l", "core=1", "-l", "core=2"), "alternatives"),
        (("-l", "core=$(id)"), "resource=count"),
    ],
)
def test_options_that_are_ours_are_named(options: tuple[str, ...], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        OAR.submit(Request("abc123", options=options))


def test_an_id_among_remarks_of_admission_rules_is_an_acceptance() -> None:
    assert OAR.parse_submit(answer(0, TAKEN)) == Accepted("4924")
    # 2.5.10 and later.
    assert OAR.parse_submit(answer(0, b"# Filtering out exotic resources.\nOAR_JOB_ID=77\n")) == Accepted(
        "77"
    )
    assert isinstance(OAR.parse_submit(answer(0, b"# Error: something\nOAR_JOB_ID=77\n")), Unclear)


@pytest.mark.parametrize(
    ("code", "stdout", "said"),
    [
        # Each of 2.5.9.
        (8, b"OAR_JOB_ID=-5\n", b"There are not enough resources for your request\n[ERROR] Oarsub failed, please verify your request syntax.\n"),
        (248, b"", b"ERROR : The queue nope does not exist\n"),
        (8, b"OAR_JOB_ID=-5\n", b'Bad resource request (ERROR:  column "gpu" does not exist\nLINE 1: SELECT  network_address, gpu, resource_id\n'),
        (254, b"[ADMISSION RULE] Set default walltime to 7200.\n", b"[ADMISSION RULE] Error: unknown job type: nope\n"),
        (255, b"", b"/!\\ Cannot recognize the resource description : nodes==\n"),
        (1, b"", b"Unknown option: nope\n"),
        (254, b"", b"[ADMISSION RULE] root and oar users are not allowed to submit jobs.\n"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_its_own_words(code: int, stdout: bytes, said: bytes) -> None:
    rejected = OAR.parse_submit(answer(code, stdout, said))
    assert isinstance(rejected, Rejected)
    assert not rejected.is_retriable
    assert rejected.why.startswith(" ".join(said.decode().splitlines()[0].split()))


def test_a_quota_may_be_free_later() -> None:
    said = b"[ADMISSION RULE] Error: you cannot have more than 20 jobs in the queue.\n"
    rejected = OAR.parse_submit(answer(254, b"", said))
    assert isinstance(rejected, Rejected)
    assert rejected.is_retriable


def test_a_server_that_may_have_it_is_no_refusal() -> None:
    said = b"[ERROR] Cannot connect to executor h1:6666. Job is killed.\n"
    assert isinstance(OAR.parse_submit(answer(9, TAKEN, said)), Unclear)


def test_everything_of_ours_is_asked_for_in_one_condition() -> None:
    script = OAR.query(["4", "17"]).stdin.decode()
    assert "job_name LIKE 'orch-%' AND state NOT IN ('Terminated','Error')" in script
    assert "OR job_id IN (4,17)" in script
    assert "job_user = '$(id -un)' AND (" in script


def test_everything_of_ours_is_read_from_one_answer() -> None:
    sights = OAR.parse_query(captured("oar", "query"))
    assert isinstance(sights, dict)
    assert sights["1"] == Sight("1", "abc123", "active", "", "Running", ("h1", "h2"), 600.0 - 33)
    assert sights["2"] == Sight(
        "2",
        "abc124",
        "queued",
        "",
        "R=1,W=0:0:20,J=B,N=orch-abc124 (Karma=0.000,quota_ok)",
        starts_in_s=569.0,
    )
    assert {id: (s.state, s.starts_in_s) for id, s in sights.items() if id not in "12"} == {
        "3": ("queued", 569.0),
        "4": ("queued", 569.0),
        "5": ("held", None),
        "6": ("queued", None),
    }


def test_how_a_job_ended_is_told_by_its_events() -> None:
    sights = OAR.parse_query(captured("oar", "query_ended"))
    assert isinstance(sights, dict)
    assert {id: (s.end, s.why, s.nodes) for id, s in sights.items() if s.state == "ended"} == {
        "1": ("cancelled", "FRAG_JOB_REQUEST", ()),
        "2": ("timeout", "WALLTIME", ()),
        "3": ("failed", "Terminated, exit code 1", ()),
        "4": ("done", "Terminated", ()),
    }
    assert sights["6"].state == "active"
    assert "99" not in sights


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("BESTEFFORT_KILL", "preempted"),
        ("PING_CHECKER_NODE_SUSPECTED", "node"),
        ("PING_CHECKER_NODE_SUSPECTED_END_JOB", "node"),
        ("EXTERMINATE_JOB", "node"),
        ("SERVER_PROLOGUE_TIMEOUT", "node"),
        ("SWITCH_INTO_ERROR_STATE", "failed"),
    ],
)
def test_each_kind_of_event_that_ends_a_job_has_a_meaning(kind: str, end: str) -> None:
    # A job that was ended for a reason is also asked to end; the reason is what counts.
    events = [{"type": "FRAG_JOB_REQUEST"}] if end != "failed" else []
    assert other("1", events=[*events, {"type": kind}]).end == end


@pytest.mark.parametrize("word", sorted(STATES))
def test_every_state_of_the_manual_is_known(word: str) -> None:
    sight = other("6", state=word)
    assert sight.state == STATES[word]
    assert bool(sight.nodes) == (STATES[word] in ("active", "ending"))


def test_nothing_of_ours_is_an_answer_too() -> None:
    assert OAR.parse_query(answer(0)) == {}
    # Other versions: Perl's for a hash that was never made.
    assert OAR.parse_query(answer(0, b"null\n")) == {}
    assert isinstance(OAR.parse_query(answer(255, b"", b"DB connection error, exiting.\n")), Unclear)


def test_a_node_whose_name_is_none_makes_no_answer() -> None:
    assert isinstance(
        OAR.parse_query(changed(captured("oar", "query"), '"h2"', '"-oProxyCommand=x"')), Unclear
    )


def test_ending_what_is_over_is_fine() -> None:
    registered = (
        b"Deleting the job = 1 ...REGISTERED.\nThe job(s) [ 1 ] will be deleted in the near future.\n"
    )
    assert OAR.parse_cancel(answer(0, registered)) is None
    killed = b"Cannot frag 1 ; This job was already killed.\n"
    assert OAR.parse_cancel(answer(6, b"Deleting the job = 1 ...ERROR.\n", killed)) is None
    # OAR says so of ids that never were as well.
    other = b"Cannot frag 99 ; You are not the right user.\n"
    assert isinstance(OAR.parse_cancel(answer(1, b"Deleting the job = 99 ...ERROR.\n", other)), Rejected)
    assert isinstance(OAR.parse_cancel(answer(0)), Unclear)


def test_a_node_is_entered_as_one_word_of_the_shell() -> None:
    argv = OAR.enter("42", "n1.example.org", ["sh", "-c", "it's; id"])
    assert argv == ("env", "OAR_JOB_ID=42", "oarsh", "n1.example.org", """sh -c 'it'"'"'s; id'""")
    with pytest.raises(ValueError, match="no name of a node"):
        OAR.enter("42", "-oProxyCommand=x", ["true"])
