"""LSF: commands as they should be, and answers after those of others (captured/lsf)."""

from __future__ import annotations

import pytest

from liborch.batch_systems.base import Accepted, Rejected, Request, Sight, Unclear
from liborch.batch_systems.lsf import REASONS, STATES, Lsf
from liborch.errors import SpecError
from tests.batch_systems.captures import answer, captured, changed, line_of

LSF = Lsf()


def words(**fields: object) -> str:
    """The submission of a request, without what comes before `bsub`."""
    command = LSF.submit(Request("abc123", **fields))  # type: ignore[arg-type]
    return line_of(command, "bsub").replace("'", "")


def other(old: str, new: str) -> dict[str, Sight]:
    """What is read from the captured answer with something else in it."""
    sights = LSF.parse_query(changed(captured("lsf", "query"), old, new))
    assert isinstance(sights, dict), sights
    return sights


def test_slots_of_each_node_are_the_persons_how_many_nodes_is_ours() -> None:
    assert words(walltime_s=61) == (
        "-J orch-abc123 -n 1 -R span[ptile=1] -W 2 -oo /dev/null -rn -L /bin/sh <<orch-abc123-end"
    )
    told = words(nodes=3, options=("-n", "20", "-q", "long", "-R", "rusage[mem=4G]"), log_folder="/home/me/")
    assert told == (
        "-J orch-abc123 -n 60 -R span[ptile=20] -oo /home/me/orch-abc123.log -rn -L /bin/sh "
        "-q long -R rusage[mem=4G] <<orch-abc123-end"
    )
    command = LSF.submit(Request("abc123"))
    assert b" env LSB_NTRIES=1 bsub " in command.stdin
    assert b"#!/bin/sh\nexec sleep infinity\norch-abc123-end\n" in command.stdin


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-J", "mine"), "-J.*the name carries"),
        (("-W", "60"), "-W.*walltime"),
        (("-n", "4,8"), "slots taken of each node"),
        (("-n",), "slots taken of each node"),
        (("-R", "span[hosts=1]"), "span"),
        (("-K",), "background"),
        (("-nnodes", "4"), "nodes"),
    ],
)
def test_options_that_are_ours_are_named(options: tuple[str, ...], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        LSF.submit(Request("abc123", options=options))


@pytest.mark.parametrize(
    "told",
    [
        "Job <542935> is submitted to queue <short>.\n",
        "Job <542935> is submitted to default queue <normal>.\n",
    ],
)
def test_one_sentence_is_an_acceptance(told: str) -> None:
    assert LSF.parse_submit(answer(0, told.encode())) == Accepted("542935")
    assert LSF.parse_submit(answer(0, told.encode(), b"esub: project is default\n")) == Accepted("542935")
    for other in (told[:-2], f"hello\n{told}", told * 2, told.replace("542935", "1; rm -rf ~")):
        assert isinstance(LSF.parse_submit(answer(0, other.encode())), Unclear), other


@pytest.mark.parametrize(
    ("said", "retriable"),
    [
        (b"normalx: No such queue. Job not submitted.\n", False),
        (b"RUNLIMIT: Cannot exceed queue's hard limit(s). Job not submitted.\n", False),
        (b"Request aborted by esub. Job not submitted.\n", False),
        (b"User permission denied. Job not submitted.\n", False),
        (b"Pending job threshold reached. Retrying in 60 seconds...\n", True),
        (b"Cannot connect to LSF. Please wait ...\n", True),
    ],
)
def test_a_refusal_is_told_in_its_own_words(said: bytes, retriable: bool) -> None:
    rejected = LSF.parse_submit(answer(255, b"", said))
    assert isinstance(rejected, Rejected)
    assert (rejected.is_retriable, rejected.why) == (retriable, said.decode().strip())


def test_a_broken_request_is_not_a_refusal() -> None:
    said = b"Failed in an LSF library call: Communication time out. Job not submitted.\n"
    assert isinstance(LSF.parse_submit(answer(255, b"", said)), Unclear)


def test_everything_of_ours_is_read_from_one_answer() -> None:
    sights = LSF.parse_query(captured("lsf", "query"))
    assert isinstance(sights, dict)
    assert sights["22006"] == Sight(
        "22006", "abc124", "active", "", "RUN", ("tbi-cn019", "tbi-cn020"), 7140.0, cpus=20
    )
    assert {id: (s.state, s.end, s.why) for id, s in sights.items() if id != "22006"} == {
        "22005": ("ended", "done", "DONE"),
        "22007": ("queued", "", "New job is waiting for scheduling;"),
        "22008": ("ended", "cancelled", "TERM_OWNER: job killed by owner"),
        "22009": ("ended", "timeout", "TERM_RUNLIMIT: job killed after reaching LSF run time limit"),
        "22010": ("ended", "failed", "EXIT, exit code 1"),
        "22011": ("held", "", "PSUSP"),
    }


@pytest.mark.parametrize(
    ("hosts", "nodes", "cpus"),
    [
        ("n1", ("n1",), 1),
        ("n1:n1:n2", ("n1", "n2"), 1),
        ("4*n1.example.org:4*n2", ("n1.example.org", "n2"), 4),
    ],
)
def test_each_way_to_name_nodes_is_read(hosts: str, nodes: tuple[str, ...], cpus: int) -> None:
    sight = other("20*tbi-cn019:20*tbi-cn020", hosts)["22006"]
    assert (sight.nodes, sight.cpus) == (nodes, cpus)


@pytest.mark.parametrize(
    ("text", "left"), [("0:05 L", 300.0), ("00:05:30 L", 330.0), ("-", None), ("1:00 X", None)]
)
def test_what_is_left_is_of_the_run_limit_alone(text: str, left: float | None) -> None:
    assert other("1:59 L", text)["22006"].left_s == left


@pytest.mark.parametrize("word", sorted(STATES))
def test_every_state_of_the_manual_is_known(word: str) -> None:
    assert other('"STAT":"RUN"', f'"STAT":"{word}"')["22006"].state == STATES[word]


@pytest.mark.parametrize("word", sorted(REASONS))
def test_every_reason_of_an_end_is_an_end(word: str) -> None:
    assert other("TERM_OWNER", word)["22008"].end == REASONS[word]
    assert other("TERM_OWNER", "TERM_NEW")["22008"].end == "failed"


def test_nothing_of_ours_is_an_answer_too() -> None:
    assert LSF.parse_query(answer(0, b'{\n  "COMMAND":"bjobs",\n  "JOBS":0,\n  "RECORDS":[\n  ]\n}\n')) == {}
    assert LSF.parse_query(answer(255, b"", b"Job <orch-*> is not found\n")) == {}
    assert LSF.parse_query(answer(0, b"", b"No job found\n")) == {}
    assert isinstance(LSF.parse_query(answer(255, b"", b"LSF is down. Please wait ...\n")), Unclear)


def test_a_count_that_is_another_makes_no_answer() -> None:
    assert isinstance(LSF.parse_query(changed(captured("lsf", "query"), '"JOBS":7', '"JOBS":8')), Unclear)


def test_ending_what_is_over_is_fine() -> None:
    fine = b"Job <1> is being terminated\n"
    gone = b"Job <2>: Job has already finished\nJob <3>: No matching job found\n"
    assert LSF.parse_cancel(answer(0, fine)) is None
    assert LSF.parse_cancel(answer(255, fine, gone)) is None
    assert isinstance(LSF.parse_cancel(answer(255, b"", b"Job <1>: User permission denied\n")), Rejected)
    assert isinstance(LSF.parse_cancel(answer(255, b"", b"LSF is down. Please wait ...\n")), Unclear)
    assert isinstance(LSF.parse_cancel(answer(0)), Unclear)


def test_the_longest_run_is_the_hard_limit() -> None:
    limits = LSF.parse_limits(captured("lsf", "limits"))
    assert (limits.most_walltime_s, limits.sources) == (14400.0, {"most_walltime_s": "queue short: RUNLIMIT"})
    assert b"\nbqueues -l short\n" in LSF.limits(["-q", "short"]).stdin
    assert b"bqueues" not in LSF.limits(["-q", "$(id)"]).stdin


def test_nodes_cannot_be_entered() -> None:
    assert not LSF.can_enter
    with pytest.raises(SpecError, match="ssh"):
        LSF.enter("1", "n1", ["true"])
