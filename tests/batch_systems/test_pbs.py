"""PBS and Torque: commands as they should be, and answers as servers of others gave them (captured/pbs)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from liborch.batch_systems._pbs_jobs import EXITS, STATES, TORQUE_EXITS
from liborch.batch_systems._reading import heard
from liborch.batch_systems.base import Accepted, Output, Rejected, Request, Sight, Unclear
from liborch.batch_systems.pbs import Pbs
from liborch.errors import SpecError
from tests.batch_systems.captures import answer, captured, changed, line_of

PBS = Pbs()


def words(**fields: object) -> str:
    """The submission of a request, without what comes before `qsub`."""
    command = PBS.submit(Request("abc123", **fields))  # type: ignore[arg-type]
    return line_of(command, "qsub").replace("'", "")


def sights(name: str) -> dict[str, Sight]:
    """What is read from a captured answer."""
    told = PBS.parse_query(captured("pbs", name))
    assert isinstance(told, dict), told
    return told


def over(name: str, old: str, new: str) -> Sight:
    """What is read from a captured answer of one job that is over, with something else in it."""
    found = PBS.parse_query(changed(captured("pbs", name), old, new))
    assert isinstance(found, dict), found
    return next(sight for sight in found.values() if sight.state == "ended")


@pytest.mark.parametrize(
    ("version", "options", "asked"),
    [
        ("pbs_version = 20.0.1", (), "-l select=2 -l place=scatter:excl"),
        ("pbs_version = 20.0.1", ("-l", "place=pack"), "-l place=pack -l select=2"),
        ("Version: 4.2.6.1", (), "-l nodes=2"),
    ],
)
def test_nodes_without_more_are_asked_for_in_the_words_of_each(
    tmp_path: Path, version: str, options: tuple[str, ...], asked: str
) -> None:
    (tmp_path / "qsub").write_text(
        f"#!/bin/sh\n[ $1 = --version ] && echo '{version}' || {{ echo $*; cat; }}\n"
    )
    (tmp_path / "qsub").chmod(0o755)
    command = PBS.submit(Request("abc123", nodes=2, walltime_s=5400, options=options))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh"], input=command.stdin, env=environment, capture_output=True, check=True)
    told = heard(Output(done.returncode, done.stdout, done.stderr))
    assert told is not None
    assert told[1].stdout.decode() == (
        f"-N orch-abc123 -S /bin/sh -l walltime=01:30:00 -j oe -o /dev/null -r n {asked}\n"
        "#!/bin/sh\nexec sleep infinity\n"
    )


def test_of_a_whole_node_the_node_itself_is_asked() -> None:
    found = PBS.parse_query(
        changed(captured("pbs", "query_19"), '"place": "scatter"', '"place": "scatter:excl"')
    )
    assert isinstance(found, dict)
    (sight,) = found.values()
    assert (sight.cpus, sight.memory_bytes, sight.nodes) == (None, None, ("charon24", "charon21"))


@pytest.mark.parametrize(
    ("options", "rendered"),
    [
        (("-l", "select=ncpus=4:ngpus=1", "-q", "gpu"), "-l select=3:ncpus=4:ngpus=1 -l place=scatter"),
        (("-lselect=1:ncpus=4", "-l", "place=excl"), "-l select=3:ncpus=4 "),
        (("-l", "nodes=1:ppn=4,mem=8gb"), "-l nodes=3:ppn=4 "),
    ],
)
def test_what_a_node_has_to_give_is_the_persons(options: tuple[str, ...], rendered: str) -> None:
    told = words(nodes=3, options=options)
    assert rendered in told
    assert told.count("place=") == (1 if "select" in rendered else 0)
    assert ("-l mem=8gb" in told) == ("nodes" in rendered)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-N", "mine"), "-N.*the name carries"),
        (("-Nmine",), "-Nmine.*the name carries"),
        (("-J", "1-9"), "most"),
        (("-z",), "lost sight of"),
        (("-I",), "background"),
        (("-W", "block=true"), "background"),
        (("-l", "walltime=1:00:00"), "walltime"),
        (("-l", "ncpus=1,walltime=1:00:00"), "walltime"),
        (("-l", "select=4:ncpus=1"), "how many nodes is said by `nodes`"),
        (("-l", "select=ncpus=1+ncpus=2"), "how many nodes"),
        (("-l", "nodes=4"), "how many nodes"),
        (("-l", "select=ncpus=$(id)"), "how many nodes"),
        (("--", "/bin/true"), "no program of yours"),
    ],
)
def test_options_that_are_ours_are_named(options: tuple[str, ...], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        PBS.submit(Request("abc123", options=options))


@pytest.mark.parametrize("id", ["1008.qot-calc0", "12860476.meta-pbs.metacentrum.cz", "77"])
def test_an_id_and_nothing_else_is_an_acceptance(id: str) -> None:
    assert PBS.parse_submit(answer(0, f"{id}\n".encode())) == Accepted(id)
    for told in (id, f"{id}\n\n", f" {id}\n", f"hello\n{id}\n", f"{id}\n{id}\n"):
        assert isinstance(PBS.parse_submit(answer(0, told.encode())), Unclear), told
    assert isinstance(PBS.parse_submit(answer(0, f"{id}\n".encode(), b"qsub: error: x")), Unclear)


@pytest.mark.parametrize(
    ("said", "retriable"),
    [
        # OpenPBS's own tests and reports of people.
        (b"qsub: would exceed queue generic's per-user limit of jobs in 'Q' state\n", True),
        (b"qsub: would exceed complex's per-user limit\n", True),
        (b"qsub: Maximum number of jobs already in queue workq\n", True),
        (b"qsub: submit error (Maximum number of jobs already in queue for user MSG=total number of current user's "
         b"jobs exceeds the queue limit: user me@fe00, queue standby)\n", True),
        (b"qsub: Queue is not enabled\n", True),
        (b"Connection refused\nqsub: cannot connect to server pbs1 (errno=15010)\n", True),
        (b"qsub: Unknown queue\n", False),
        (b"qsub: Job violates queue and/or server resource limits\n", False),
        (b"qsub: submit error (Unauthorized Request  MSG=group ACL is not satisfied: user me, queue x)\n", False),
        (b"qsub: Illegal attribute or resource value Resource_List.walltime\n", False),
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_its_own_words(said: bytes, retriable: bool) -> None:
    rejected = PBS.parse_submit(answer(38, b"", said))
    assert isinstance(rejected, Rejected), rejected
    assert rejected.is_retriable is retriable
    assert rejected.why == "; ".join(" ".join(line.split()) for line in said.decode().splitlines())


@pytest.mark.parametrize(
    "said", [b"qsub: End of File\n", b"Premature end of message\n", b"qsub: Communication failure.\n"]
)
def test_a_broken_request_is_not_a_refusal(said: bytes) -> None:
    assert isinstance(PBS.parse_submit(answer(1, b"", said)), Unclear)


def test_cores_of_one_node_that_are_told_one_by_one_are_one_node() -> None:
    assert sights("query_20") == {
        "1008.qot-calc0": Sight(
            # The clock of the times is another one than ours, so what was used counts.
            "1008.qot-calc0", "abc123", "active", "", "R", ("qot-calc0",), 14400.0, cpus=5,
        )
    }  # fmt: skip


def test_nodes_and_their_room_are_told() -> None:
    (sight,) = sights("query_19").values()
    assert sight.nodes == ("charon24", "charon21")
    assert (sight.cpus, sight.memory_bytes, sight.gpus) == (2, 4 << 30, None)
    assert sight.left_s == 57.0


def test_what_was_used_counts_where_the_clock_is_another() -> None:
    found = sights("query_2021")
    assert found["3472664.pbshpc"].left_s == 1200 - 77
    assert (found["3472664.pbshpc"].cpus, found["3472664.pbshpc"].gpus) == (1, 1)
    held, queued = (found[f"41202{n}.polaris-pbs-01.hsn.cm.polaris.alcf.anl.gov"] for n in (0, 1))
    assert (held.state, held.token) == ("held", "abc126")
    assert (queued.state, queued.nodes) == ("queued", ())
    assert queued.why == "Not Running: Job is requesting an exclusive node and node is in use"


def test_wrapped_lines_of_torque_are_one_again() -> None:
    found = sights("query_torque")
    first, second, third = found.values()
    assert (first.nodes, first.left_s, first.cpus) == (("cnode025.bw.nitech.ac.jp",), 2516937.0, 1)
    assert second.nodes == ("cnode002.bw.nitech.ac.jp", "cnode003.bw.nitech.ac.jp")
    assert (second.cpus, second.left_s, second.restarts, second.token) == (2, None, 1, "abc130")
    assert (third.id, third.end) == ("48[].torque01.bcgsc.ca", "cancelled")
    assert third.why.endswith("dependency of array 43[].torque01.bcgsc.ca can never be satisfied")


def test_a_value_with_a_line_end_changes_no_other_attribute() -> None:
    forged = "X=1\n    job_state = C\n    Job_Name = evil"
    found = PBS.parse_query(changed(captured("pbs", "query_torque"), "PBS_O_LANG=UTF-8", forged))
    assert isinstance(found, dict)
    assert found["114621.mike.bw.nitech.ac.jp"].state == "active"


def test_what_is_over_says_how() -> None:
    (sight,) = sights("query_19_over").values()
    assert (sight.state, sight.end, sight.nodes, sight.restarts) == ("ended", "done", (), 0)
    for code, end in (
        *EXITS.items(), (1, "failed"), (-1, "failed"), (256 + 15, "cancelled"), (256 + 9, "cancelled"), (256 + 11, "failed"),
    ):  # fmt: skip
        assert over("query_19_over", '"Exit_status": 0', f'"Exit_status": {code}').end == end, code
    for code, end in TORQUE_EXITS.items():
        assert over("query_torque", "exit_status = 271", f"exit_status = {code}").end == end, code
    used = '"Exit_status": 271, "resources_used": {"walltime": "48:00:03"}'
    assert over("query_19_over", '"Exit_status": 0', used).end == "timeout"
    why = '"comment": "job killed: vmem 192GB exceeded limit 190GB", "Exit_status": 271'
    assert over("query_19_over", '"Exit_status": 0', why).end == "memory"


@pytest.mark.parametrize("letter", sorted(STATES))
def test_every_letter_of_the_manual_is_known(letter: str) -> None:
    found = PBS.parse_query(
        changed(captured("pbs", "query_20"), '"job_state": "R"', f'"job_state": "{letter}"')
    )
    assert isinstance(found, dict)
    assert found["1008.qot-calc0"].state == STATES[letter]
    assert bool(found["1008.qot-calc0"].nodes) == (STATES[letter] in ("active", "ending"))


def test_jobs_that_the_server_forgot_are_just_not_told_of() -> None:
    said = b"qstat: Unknown Job Id 9.server\nqstat: 8.server Job has finished, use -x or -H to obtain historical job information\n"
    assert PBS.parse_query(answer(153, b"", b"qstat: Unknown Job Id 9.server\n")) == {}
    assert PBS.parse_query(answer(153, b"", b"qstat: Unknown Job Id Error 9.server\n")) == {}
    assert isinstance(PBS.parse_query(answer(153, b"", said + b"other\n")), Unclear)
    assert PBS.parse_query(answer(0, b"")) == {}


def test_a_server_that_cannot_be_reached_has_forgotten_nothing() -> None:
    said = b"qstat: cannot connect to server pbs1 (errno=15010)\n"
    assert isinstance(PBS.parse_query(answer(1, b"", said)), Unclear)
    assert isinstance(PBS.parse_query(answer(1, b"")), Unclear)


@pytest.mark.parametrize("name", ["query_19", "query_torque"])
def test_an_answer_that_was_cut_anywhere_is_none(name: str) -> None:
    told = captured("pbs", name).stdout
    for length in range(0, len(told), 37):
        assert isinstance(PBS.parse_query(Output(0, told[:length])), Unclear), told[:length][-40:]


def test_ending_what_is_over_is_fine() -> None:
    for said in (
        b"",
        b"qdel: Unknown Job Id 9.server\n",
        b"qdel: Job has finished 9.server\n",
        b"qdel: Request invalid for state of job MSG=invalid state for job - COMPLETE 9.server\n",
    ):
        assert PBS.parse_cancel(answer(0 if not said else 170, b"", said)) is None, said
    assert isinstance(PBS.parse_cancel(answer(159, b"", b"qdel: Unauthorized Request  9.server\n")), Rejected)
    assert isinstance(PBS.parse_cancel(answer(1, b"", b"qdel: cannot connect to server pbs1\n")), Unclear)
    assert isinstance(PBS.parse_cancel(answer(1)), Unclear)


def test_the_tighter_limit_holds_and_says_where_it_comes_from() -> None:
    limits = PBS.parse_limits(captured("pbs", "limits"))
    assert (limits.most_submitted, limits.most_active, limits.most_walltime_s) == (500, 4, 72 * 3600.0)
    assert limits.sources == {
        "most_submitted": "server: max_queued",
        "most_active": "queue workq: max_run",
        "most_walltime_s": "queue workq: resources_max.walltime",
    }
    asked = changed(captured("pbs", "limits"), "Asked: ", "Asked: short")
    assert PBS.parse_limits(asked).most_walltime_s == 7200.0
    assert b"'Asked: short'" in PBS.limits(["-q", "short@server"]).stdin
    assert b"'Asked: '" in PBS.limits(["-q", "$(id)"]).stdin


@pytest.mark.parametrize("shell", [name for name in ("dash", "bash", "busybox") if shutil.which(name)])
def test_the_question_runs_in_any_shell(tmp_path: Path, shell: str) -> None:
    # The programs are stubs that show how they were called: no PBS can be had here.
    stubs = {
        "qstat": """case "$*" in
-u*) printf '\\nserver:\\n%s\\n' "Req'd"; echo '12.server*  me  workq  orch-abc12 --  1 1 -- 01:00 Q --'
     echo '13.server*  me  workq  other      --  1 1 -- 01:00 Q --'; echo '14.server   me  workq  orch-abc14 --  1 1 -- 01:00 R --' ;;
--version) echo "$VERSION" ;;
-x*) exit 0 ;;
*) echo "called: $*" ;;
esac""",
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    for version, called in (
        ("pbs_version = 20.0.1", "-f -F json 12.server 14"),
        ("Version: 4.2.6.1", "-f 12.server 14"),
    ):
        argv = [shell, "sh"] if shell == "busybox" else [shell]
        done = subprocess.run(
            argv,
            input=PBS.query(["12.server"]).stdin,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "VERSION": version},
            capture_output=True,
            check=True,
        )
        told = heard(Output(done.returncode, done.stdout, done.stderr))
        assert told is not None
        assert told[1] == Output(0, f"called: {called}\n".encode())


def test_nodes_cannot_be_entered() -> None:
    assert not PBS.can_enter
    with pytest.raises(SpecError, match="ssh"):
        PBS.enter("1", "n1", ["true"])
