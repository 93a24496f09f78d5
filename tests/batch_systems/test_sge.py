"""Grid Engine: commands as they should be, and answers as it gave them (captured/sge)."""

from __future__ import annotations

import pytest

from liborch.batch_systems.base import Accepted, Rejected, Request, Sight, Unclear
from liborch.batch_systems.sge import FAILED, STATES, Sge
from liborch.errors import SpecError
from tests.batch_systems.captures import answer, captured, changed, line_of

SGE = Sge()


def words(**fields: object) -> str:
    """The submission of a request, without what comes before `qsub`."""
    command = SGE.submit(Request("abc123", **fields))  # type: ignore[arg-type]
    return line_of(command, "qsub").replace("'", "")


def state_of(word: str) -> Sight:
    """What is said of a job with a state of qstat's."""
    sights = SGE.parse_query(changed(captured("sge", "query"), "<state>Eqw<", f"<state>{word}<"))
    assert isinstance(sights, dict), sights
    return sights["5"]


def test_one_node_needs_no_parallel_environment() -> None:
    command = SGE.submit(Request("abc123", walltime_s=90.5))
    assert command.argv == ("sh",)
    assert words(walltime_s=90.5) == (
        "-terse -N orch-abc123 -S /bin/sh -j y -o /dev/null -l h_rt=91 -r n <<orch-abc123-end"
    )
    assert b"#!/bin/sh\nexec sleep infinity\norch-abc123-end\n" in command.stdin


def test_several_nodes_multiply_the_slots_of_the_environment() -> None:
    told = words(nodes=3, options=("-pe", "mpi", "16", "-q", "long.q"), log_folder="/home/me/logs")
    assert told == (
        "-terse -N orch-abc123 -S /bin/sh -j y -o /home/me/logs/orch-abc123.log -pe mpi 48 -r n -q long.q <<orch-abc123-end"
    )


def test_several_nodes_without_an_environment_are_refused_with_what_to_write() -> None:
    with pytest.raises(SpecError, match=r"-pe, NAME, SLOTS.*qconf -spl"):
        SGE.submit(Request("abc123", nodes=2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-N", "mine"), "-N.*the name carries"),
        (("-t", "1-9"), "-t.*most"),
        (("-terse",), "terse"),
        (("-@", "file"), "one by one"),
        (("-o", "x"), "where the output goes"),
        (("-l", "h_rt=3600"), "h_rt.*walltime"),
        (("-l", "gpu=1,h_rt=3600"), "h_rt.*walltime"),
        (("-pe", "mpi", "4-8"), "NAME SLOTS"),
        (("-pe", "mpi"), "NAME SLOTS"),
        (("-q", "a\nb"), "line end"),
    ],
)
def test_options_that_are_ours_are_named(options: tuple[str, ...], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        SGE.submit(Request("abc123", options=options))


def test_whether_to_start_again_is_the_persons_to_say() -> None:
    assert "-r n" not in words(options=("-r", "y"))


def test_an_id_and_nothing_else_is_an_acceptance() -> None:
    assert SGE.parse_submit(answer(0, b"25\n")) == Accepted("25")
    # Perhaps the beginning of a longer one, then qsub's other answers.
    for told in (b"25", b"25\n\n", b" 25\n", b'Your job 25 ("x") has been submitted\n', b"25.1-3:1\n"):
        assert isinstance(SGE.parse_submit(answer(0, told)), Unclear), told


@pytest.mark.parametrize(
    ("said", "retriable"),
    [
        # Each of 8.1.9.
        (b'Unable to run job: job rejected: the requested parallel environment "nope" does not exist\nExiting.\n', False),
        (b'Unable to run job: Job was rejected because job requests unknown queue "nope.q"\nExiting.\n', False),
        (b'Unable to run job: unknown resource "nope"\nExiting.\n', False),
        (b"Unable to run job: error: no suitable queues\nExiting.\n", False),
        (b'Unable to run job: denied: host "h1" is not a submit host\nExiting.\n', False),
        (b"Unable to run job: job rejected: only 1 jobs are allowed per user (current job count: 1)\nExiting.\n", True),
        (
            b"error: commlib error: got select error (Connection refused)\nUnable to run job: unable to send message to "
            b'qmaster using port 6444 on host "h1": got send error\nExiting.\n',
            True,
        ),
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_its_own_words(said: bytes, retriable: bool) -> None:
    rejected = SGE.parse_submit(answer(1, b"", said))
    assert isinstance(rejected, Rejected)
    assert rejected.is_retriable is retriable
    assert "Unable to run job" in rejected.why


def test_a_broken_request_is_not_a_refusal() -> None:
    # It may have arrived.
    said = b"Unable to run job: failed receiving gdi request response for mid=1 (got syncron message receive timeout error).\n"
    assert isinstance(SGE.parse_submit(answer(1, b"", said)), Unclear)


def test_everything_of_ours_is_read_from_one_answer() -> None:
    sights = SGE.parse_query(captured("sge", "query"))
    assert isinstance(sights, dict)
    assert sights["1"] == Sight(
        id="1", token="abc123", state="active", why="r", nodes=("h1", "h2"), left_s=298.0, cpus=1
    )
    assert {id: (sight.state, sight.why, sight.token) for id, sight in sights.items()} == {
        "1": ("active", "r", "abc123"),
        "2": ("held", "hqw", "abc124"),
        "3": ("queued", "qw", "abc125"),
        "4": ("active", "r", "abc126"),
        "5": ("held", "Eqw", "abc127"),
        "7": ("queued", "t", "abc129"),
    }


def test_how_a_job_ended_is_told_by_the_accounting() -> None:
    sights = SGE.parse_query(captured("sge", "query_ended"))
    assert isinstance(sights, dict)
    assert {id: (s.end, s.why, s.token) for id, s in sights.items() if s.state == "ended"} == {
        "4": ("timeout", "37 : qmaster enforced h_rt, h_cpu, or h_vmem limit", "abc126"),
        "6": ("failed", "exit_status 1", "abc128"),
        "7": ("done", "exit_status 0", "abc129"),
    }
    assert sights["1"].left_s == 280.0
    assert "77" not in sights


def test_slots_of_a_node_are_counted_without_the_masters_own_row() -> None:
    told = captured("sge", "query").stdout.decode()
    row = told[told.index("    <job_list") : told.index("</job_list>") + len("</job_list>\n")]
    slave = row.replace("MASTER", "SLAVE")
    four = (row + slave * 4).replace('granted_pe name="per_node">2', 'granted_pe name="smp">4')
    for rows in (four, four.replace(slave, "", 1)):
        sights = SGE.parse_query(answer(0, f"<job_info>\n{rows}</job_info>\n".encode()))
        assert isinstance(sights, dict)
        assert (sights["1"].nodes, sights["1"].cpus) == (("h1",), 4)


@pytest.mark.parametrize(
    ("word", "state"),
    [
        # The table of sge_status(5).
        *((word, "queued") for word in ("qw", "Rq", "t", "Rt", "tS", "ts")),
        *((word, "held") for word in ("hqw", "hRwq", "Eqw", "Ehqw", "EhRqw")),
        *((word, "active") for word in ("r", "Rr", "s", "S", "T", "Rs", "RS", "RT")),
        *((word, "ending") for word in ("dr", "dt", "dRr", "dRt", "ds", "dS", "dT", "dRs", "dRS", "dRT")),
        ("z", "ended"),
    ],
)  # fmt: skip
def test_every_state_of_the_manual_is_known(word: str, state: str) -> None:
    assert state_of(word).state == state
    assert state_of(word).restarts == (1 if "R" in word else 0)


def test_an_unknown_state_makes_no_answer() -> None:
    assert isinstance(SGE.parse_query(changed(captured("sge", "query"), "<state>Eqw<", "<state>X<")), Unclear)


def test_each_code_of_a_failure_has_a_meaning_that_is_an_end() -> None:
    for code, end in (*FAILED.items(), (27, "failed")):
        sights = SGE.parse_query(
            changed(captured("sge", "query_ended"), "failed       37 ", f"failed       {code} ")
        )
        assert isinstance(sights, dict)
        assert sights["4"].end == end
    assert len({letter for letter, _ in STATES}) == len(STATES)


@pytest.mark.parametrize("name", ["cancel", "cancel_again"])
def test_ending_what_is_over_is_fine(name: str) -> None:
    assert SGE.parse_cancel(captured("sge", name, code=1)) is None


def test_ending_what_belongs_to_another_is_refused() -> None:
    said = b'sue - you do not have the necessary privileges to delete the job "15"\n'
    assert isinstance(SGE.parse_cancel(answer(1, said)), Rejected)


def test_an_unreachable_master_has_ended_nothing() -> None:
    said = b'unable to send message to qmaster using port 6444 on host "h1": got send error\n'
    assert isinstance(SGE.parse_cancel(answer(1, said)), Unclear)


def test_limits_are_read_and_none_is_none() -> None:
    limits = SGE.parse_limits(captured("sge", "limits"))
    assert (limits.most_submitted, limits.most_active, limits.most_walltime_s) == (None, None, 86400.0)
    assert limits.sources == {"most_walltime_s": "h_rt of queue all.q"}
    told = changed(captured("sge", "limits"), "max_u_jobs                   0", "max_u_jobs 7")
    assert SGE.parse_limits(told).most_submitted == 7
    assert b"\nqconf -sq long.q\n" in SGE.limits(["-q", "long.q@@fast"]).stdin
    assert b"qconf -sq" not in SGE.limits(["-q", "$(id)"]).stdin


def test_nodes_cannot_be_entered() -> None:
    assert not SGE.can_enter
    with pytest.raises(SpecError, match="ssh"):
        SGE.enter("1", "h1", ["true"])
