"""Asking Slurm where allocations are: the script, run by a real sh, and answers of a real Slurm."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liborch.batch_systems.base import Output, Sight, Unclear
from liborch.batch_systems.slurm import Slurm
from tests.batch_systems.captures import answer as framed
from tests.batch_systems.slurm_answers import answers, run_with

SLURM = Slurm()
QUERIES = answers("queries")
HEADER = "JOBID|STATE|NODES|CPUS|TRES_ALLOC|TRES_PER_NODE|TIME_LEFT|START_TIME|END_TIME|PREEMPT_TIME|RESTART_COUNT|NODELIST|REASON|NAME|"
NOW = 1_795_000_000


def row(id: str = "7", state: str = "RUNNING", *, nodes: str = "2", cpus: str = "8", tres: str = "cpu=8,mem=16G,node=2",
        gres: str = "N/A", left: str = "1:00:00", start: str = "N/A", end: str = "N/A", preempted: str = "N/A", restarts: str = "0",
        names: str = "n[1-2]", reason: str = "None", name: str = "orch-abc123") -> str:  # fmt: skip
    """A line of squeue's."""
    words = (id, state, nodes, cpus, tres, gres, left, start, end, preempted, restarts, names, reason, name)
    return "|".join(words) + "|"


def answer(*lines: str, asked: str = "7", past: tuple[str, ...] = (), code: int = 0) -> Output:
    """What the script prints when squeue prints these lines after its header."""
    told = (f"orch-asked|{asked}", HEADER, *lines, f"orch-squeue|{code}", *past, "")
    return framed(0, "\n".join(told).encode(), now=NOW)


def read(*lines: str, **more: object) -> dict[str, Sight]:
    """What an answer says."""
    sights = SLURM.parse_query(answer(*lines, **more))  # type: ignore[arg-type]
    assert not isinstance(sights, Unclear), sights
    return sights


def seen(name: str) -> dict[str, tuple[str, str, str]]:
    """{id: (state, end, why)} of a real answer."""
    sights = SLURM.parse_query(QUERIES[name])
    assert not isinstance(sights, Unclear), sights
    return {id: (sight.state, sight.end, sight.why) for id, sight in sights.items()}


def test_one_that_is_active_tells_its_nodes_its_room_and_its_time() -> None:
    sights = SLURM.parse_query(QUERIES["active"])
    assert sights == {
        "1": Sight("1", "tokenn07", "active", nodes=("h2", "h3", "h4"), left_s=300, cpus=4, memory_bytes=2000 << 20, gpus=2)
    }  # fmt: skip


def test_reasons_to_wait_are_told_in_slurm_s_words_and_those_for_a_person_apart() -> None:
    down = "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions"
    expected = {
        "2": ("queued", "Resources"), "3": ("queued", "PartitionDown"), "4": ("held", "PartitionTimeLimit"), "5": ("held", "JobHeldUser"),
        "6": ("queued", "Priority"), "7": ("queued", down), "8": ("queued", "BeginTime"), "9": ("held", "PartitionConfig"),
        "10": ("queued", "Dependency"), "11": ("held", "JobHeldAdmin"), "12": ("queued", "ReqNodeNotAvail, UnavailableNodes:h4"),
    }  # fmt: skip
    found = seen("pending")
    assert {id: (state, why) for id, (state, _, why) in found.items() if id != "1"} == expected
    sights = SLURM.parse_query(QUERIES["pending"])
    assert isinstance(sights, dict)
    assert {id: sight.starts_in_s for id, sight in sights.items() if sight.starts_in_s is not None} == {
        "2": 294, "6": 294, "7": 545, "8": 3596,
    }  # fmt: skip
    assert all(not sight.nodes and sight.left_s is None for id, sight in sights.items() if id != "1")
    old = SLURM.parse_query(QUERIES["old_format"])
    assert isinstance(old, dict)
    told = {id: dataclasses.replace(sight, memory_bytes=None) for id, sight in sights.items()}
    assert {id: dataclasses.replace(sight, memory_bytes=None) for id, sight in old.items()} == told


@pytest.mark.parametrize(
    ("name", "id", "expected"),
    [
        ("ended", "8", ("ended", "done", "COMPLETED")),
        ("ended", "9", ("ended", "failed", "FAILED (NonZeroExitCode)")),
        ("ended", "1", ("ended", "cancelled", "CANCELLED")),
        ("finished", "10", ("ended", "failed", "FAILED (BadConstraints)")),
        ("preempted", "6", ("ended", "preempted", "PREEMPTED")),
        ("preempted_requeued", "3", ("queued", "", "BeginTime")),
        ("node_down", "1", ("ended", "node", "NODE_FAIL (NodeDown)")),
        ("no_kill", "1", ("active", "", "")),
        ("suspended", "1", ("active", "", "SUSPENDED")),
        ("preempted_ending", "1", ("ending", "preempted", "COMPLETING")),
        ("timeout_ending", "1", ("ending", "timeout", "COMPLETING (TimeLimit)")),
        ("completing", "11", ("ending", "", "COMPLETING")),
        ("cancelled", "11", ("ended", "cancelled", "CANCELLED")),
        ("requeued", "1", ("queued", "", "BeginTime")),
        ("requeue_hold", "1", ("held", "", "job requeued in held state")),
        ("restarted", "1", ("active", "", "")),
        ("accounting_pending", "2", ("queued", "", "QOSMaxJobsPerUserLimit")),
        ("accounting_held", "3", ("held", "", "QOSMaxWallDurationPerJobLimit")),
        ("accounting_held", "4", ("held", "", "QOSMaxNodePerJobLimit")),
        ("timeout", "1", ("ended", "timeout", "TIMEOUT (TimeLimit)")),
    ],
)
def test_states_of_a_real_slurm_are_told_apart(name: str, id: str, expected: tuple[str, str, str]) -> None:
    assert seen(name)[id] == expected


def test_starts_are_counted_and_one_whose_node_failed_has_the_others() -> None:
    counts = {}
    for name in ("requeued", "restarted", "requeue_hold"):
        sights = SLURM.parse_query(QUERIES[name])
        assert isinstance(sights, dict)
        counts[name] = sights["1"].restarts
    assert counts == {"requeued": 1, "restarted": 1, "requeue_hold": 2}
    left = SLURM.parse_query(QUERIES["no_kill"])
    assert isinstance(left, dict)
    assert left["1"].nodes == ("h2", "h3")


def test_one_that_slurm_has_forgotten_is_missing_and_an_error_is_no_answer() -> None:
    assert SLURM.parse_query(QUERIES["purged"]) == {}
    for name, words in {
        "controller_down": "Unable to contact slurm controller",
        "no_squeue": "not found",
        "bad_option": "unrecognized option",
    }.items():
        unclear = SLURM.parse_query(QUERIES[name])
        assert isinstance(unclear, Unclear)
        assert words in unclear.why


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        *(
            ("CONFIGURING", "queued"),
            ("REQUEUED", "queued"),
            ("REQUEUE_HOLD", "held"),
            ("SPECIAL_EXIT", "held"),
        ),
        *(("RESV_DEL_HOLD", "held"), ("RESIZING", "active"), ("SIGNALING", "active"), ("STOPPED", "active")),
        *(("STAGE_OUT", "ending"), ("REVOKED", "ending"), ("BOOT_FAIL", "ended"), ("DEADLINE", "ended")),
        *(("OUT_OF_MEMORY", "ended"), ("NODE_FAIL", "ended"), ("EXPEDITING", "active")),
    ],
)
def test_states_that_are_rare_are_known(state: str, expected: str) -> None:
    sight = read(row(state=state))["7"]
    assert sight.state == expected
    assert sight.why == state
    assert bool(sight.nodes) == (expected in ("active", "ending"))


@pytest.mark.parametrize(
    ("reason", "held"),
    [
        *(
            ("QOSMaxJobsPerUserLimit", False),
            ("AssocGrpCpuLimit", False),
            ("Licenses", False),
            ("Reservation", False),
        ),
        *(
            ("AssocMaxJobsLimit", False),
            ("QOSGrpNodeLimit", False),
            ("None", False),
            ("(null)", False),
            ("NodeDown", False),
        ),
        *(
            ("QOSMaxWallDurationPerJobLimit", True),
            ("AssocMaxCpuPerJobLimit", True),
            ("QOSMaxGRESPerJob", True),
        ),
        *(
            ("QOSMaxCpuPerNode", True),
            ("DependencyNeverSatisfied", True),
            ("launch failed requeued held", True),
        ),
        *(("InvalidAccount", True), ("BadConstraints", True), ("launch_failed_requeued_held", True)),
    ],
)
def test_a_limit_that_others_leave_is_waited_for_and_one_of_its_own_is_not(reason: str, held: bool) -> None:
    sight = read(row(state="PENDING", names="", reason=reason))["7"]
    assert sight.state == ("held" if held else "queued")
    assert sight.why == ("PENDING" if reason in ("None", "(null)") else reason)


def test_what_asks_for_more_than_it_can_have_is_hopeless_and_what_somebody_holds_is_not() -> None:
    hopeless = {
        "PartitionTimeLimit": True,
        "QOSMaxWallDurationPerJobLimit": True,
        "AccountNotAllowed": True,
        "JobHeldUser": False,
        # Told as well while too many nodes are down.
        "PartitionNodeLimit": False,
        "Resources": False,
    }
    for reason, expected in hopeless.items():
        assert read(row(state="PENDING", names="", reason=reason))["7"].is_hopeless is expected, reason


@pytest.mark.parametrize(
    ("left", "end", "expected"),
    [
        *(
            ("1-02:03:04", "N/A", 93784.0),
            ("5:00", "N/A", 300.0),
            ("UNLIMITED", "N/A", None),
            ("NOT_SET", "N/A", None),
        ),
        *(
            ("INVALID", str(NOW - 5), 0.0),
            ("1:00:00", str(NOW + 30), 30.0),
            ("1:00:00", str(NOW + 9999), 3600.0),
        ),
        *(
            ("1:00:00", str(NOW - 30), 0.0),
            ("1:00:00", "Unknown", 3600.0),
            ("UNLIMITED", str(NOW + 30), None),
        ),
    ],
)
def test_the_time_that_is_left_is_the_shorter_of_walltime_and_announced_end(
    left: str, end: str, expected: float | None
) -> None:
    assert read(row(left=left, end=end))["7"].left_s == expected


@pytest.mark.parametrize(
    ("tres", "gres", "gpus"),
    [
        *(("cpu=8,node=2,gres/gpu=4", "N/A", 2), ("cpu=8,gres/gpu=4,gres/gpu:a100=4", "gres:gpu:9", 2)),
        *(
            ("cpu=8,mem=16G", "gres:gpu:3", 3),
            ("cpu=8", "gpu:tesla:2", 2),
            ("cpu=8", "gres/gpu:a100:1,gres/fpga:7", 1),
        ),
        *(
            ("", "gpu:2(S:0-1)", 2),
            ("cpu=8", "N/A", None),
            ("cpu=8", "(null)", None),
            ("cpu=8", "gres:gpux:3", None),
        ),
    ],
)
def test_gpus_of_a_node_are_those_given_else_those_asked_for(tres: str, gres: str, gpus: int | None) -> None:
    assert read(row(tres=tres, gres=gres))["7"].gpus == gpus


def test_room_is_that_of_one_node_and_nothing_is_made_up() -> None:
    sight = read(row(nodes="2", cpus="7", tres="cpu=7,mem=3072M,node=2"))["7"]
    assert (sight.cpus, sight.memory_bytes) == (3, 1536 << 20)
    for tres in ("", "cpu=7,node=2", "mem=0,node=2", "mem=much"):
        assert read(row(tres=tres))["7"].memory_bytes is None
    assert read(row(nodes="", cpus=""))["7"].cpus is None


def test_what_others_call_their_work_is_not_ours() -> None:
    sights = read(
        row("1", name="analysis|orch"), row("2", name="orchestra"), row("3", name="orch-"), row("4", name="orch-UPPER1"),
        row("8", state="NEVER_HEARD_OF", name="mine"), row("9", name="orch-abc124"), "garbage",
    )  # fmt: skip
    assert list(sights) == ["9"], "and a line of others that is not understood is passed over"


def test_what_is_not_called_ours_is_not_ours_whatever_its_id() -> None:
    assert read(
        row("7", name="mine"), past=("7|TIMEOUT|mine", "8|TIMEOUT|orch-abc124"), asked="7|8"
    ).keys() == {"8"}


@pytest.mark.parametrize(
    "line",
    [
        *(
            row(state="NEVER_HEARD_OF"),
            row(names="n[1-2"),
            row(names="$(reboot)"),
            row(names="n[1-99999999]"),
            row(cpus="many"),
        ),
        *(
            row(id="7_1"),
            row(id="7; rm -rf ~"),
            row(reason="a|b"),
            row(state="running"),
            row(left="a|b"),
            row(restarts="-1"),
        ),
    ],
)
def test_one_of_ours_that_is_not_understood_makes_the_whole_answer_none(line: str) -> None:
    assert isinstance(SLURM.parse_query(answer(row("6", name="orch-abc126"), line)), Unclear)


@pytest.mark.parametrize(
    "output",
    [
        Output(0), framed(0), framed(0, b"orch-asked|7\n"), Output(0, b"<html>502</html>\n"), framed(0, b"<html>502</html>\n"),
        framed(0, f"orch-asked|7\n{row()}\norch-squeue|0\n".encode()), answer(row(), code=1),
        framed(0, b"orch-asked|7\n\norch-squeue|0\n"), framed(0, b"orch-asked|7\nJOBIDSTATE\norch-squeue|0\n"),
        framed(0, b"orch-asked|7\n" + HEADER.encode() + b"\n"), dataclasses.replace(answer(row()), is_cut=True),
        dataclasses.replace(answer(row()), code=None), Output(0, answer(row()).stdout + b"more\n"),
    ],
)  # fmt: skip
def test_an_answer_without_its_frame_is_none(output: Output) -> None:
    assert isinstance(SLURM.parse_query(output), Unclear)


def test_an_answer_cut_anywhere_is_none_and_a_banner_before_it_does_no_harm() -> None:
    whole = answer(row(), row("8", name="orch-abc124")).stdout
    for length in range(len(whole)):
        assert isinstance(SLURM.parse_query(Output(0, whole[:length])), Unclear)
    sights = SLURM.parse_query(Output(0, b"Welcome\xff\n7|RUNNING|\n" + whole))
    assert isinstance(sights, dict)
    assert list(sights) == ["7", "8"]


@given(st.binary(max_size=300))
def test_no_bytes_are_too_strange(noise: bytes) -> None:
    told = answer(row()).stdout
    for output in (Output(0, noise), Output(0, noise + told), Output(0, told.replace(b"n[1-2]", noise))):
        assert isinstance(SLURM.parse_query(output), dict | Unclear)


def test_ids_of_a_federation_are_known_with_and_without_their_cluster() -> None:
    sights = read(
        "CLUSTER: east", HEADER, row("7"), row("8", name="orch-abc124"),
        "CLUSTER: west", HEADER, row("7", name="orch-abc125"),
        asked="7;east|8",
    )  # fmt: skip
    assert {id: sight.token for id, sight in sights.items()} == {
        "7;east": "abc123",
        "8": "abc124",
        "7;west": "abc125",
    }
    assert read(row("7"), asked="7;east")["7;east"].id == "7;east"
    both = read(
        row("7", "REVOKED"), row("7"), row("8", name="orch-abc124"), row("8", "REVOKED", name="orch-abc124")
    )
    assert {id: sight.state for id, sight in both.items()} == {"7": "active", "8": "active"}


def test_the_accounting_tells_how_one_ended_that_slurm_has_forgotten() -> None:
    past = (
        "7|TIMEOUT|orch-abc123", "8|CANCELLED by 1000|orch-abc124", "9|RUNNING|orch-abc125",
        "10|NODE_FAIL|orch-abc126", "11|noise", "<html>",
    )  # fmt: skip
    sights = read(row("10", "PENDING", name="orch-abc126"), past=past, asked="7|8;east|9|10|11")
    assert {id: (sight.state, sight.end, sight.why) for id, sight in sights.items()} == {
        "7": ("ended", "timeout", "TIMEOUT"),
        "8;east": ("ended", "cancelled", "CANCELLED by 1000"),
        "10": ("queued", "", "PENDING"),
    }


SQUEUE = """echo "$@" >>"$HERE/asked"; env | grep -E "^(SQUEUE|SLURM|LC_ALL)" >"$HERE/env"
case "$*" in *JobID:*) ;; *) exit 9 ;; esac
printf '%s\\n' "$LINES"
"""


def test_lines_of_others_stay_on_the_frontend_and_sacct_is_asked_only_for_the_missing(tmp_path: Path) -> None:
    others = [row(str(n), name=f"other {n}") for n in range(100, 400)]
    lines = "\n".join(
        [HEADER, row("7"), *others, row("70", name="orch-abc125"), row("8", name="orch-abc128")]
    )
    programs = {"squeue": SQUEUE, "sacct": 'echo "$@" >"$HERE/past"; echo "9|PREEMPTED|orch-abc129"'}
    output = run_with(
        SLURM.query(["7", "8", "9", "17"]), tmp_path, programs, LINES=lines, SQUEUE_FORMAT="%i", SQUEUE_STATES="CD", LC_ALL="fr_FR"
    )  # fmt: skip
    assert output.stdout.count(b"\n") == 10
    sights = SLURM.parse_query(output)
    assert isinstance(sights, dict)
    assert {id: sight.end or sight.state for id, sight in sights.items()} == {
        "7": "active", "70": "active", "8": "active", "9": "preempted",
    }  # fmt: skip
    assert len((tmp_path / "asked").read_text().splitlines()) == 1
    assert "--jobs=9,17 " in (tmp_path / "past").read_text()
    assert sorted((tmp_path / "env").read_text().split()) == ["LC_ALL=C", "SLURM_TIME_FORMAT=%s"]
    (tmp_path / "past").unlink()
    output = run_with(SLURM.query(["7"]), tmp_path, programs, LINES=lines)
    assert isinstance(SLURM.parse_query(output), dict)
    assert not (tmp_path / "past").exists()


def test_when_squeue_fails_sacct_is_not_asked_and_nothing_is_known(tmp_path: Path) -> None:
    error = "slurm_load_jobs error: Socket timed out on send/recv operation"
    programs = {
        "squeue": f'echo "{error}" >&2; exit 1',
        "sacct": 'touch "$HERE/past"; echo "7|COMPLETED|orch-abc123"',
    }
    unclear = SLURM.parse_query(run_with(SLURM.query(["7"]), tmp_path, programs))
    assert unclear == Unclear(f"squeue ended with code 1 and said: {error}")
    assert not (tmp_path / "past").exists()


def test_what_stands_in_place_of_an_answer_is_told(tmp_path: Path) -> None:
    unclear = SLURM.parse_query(
        run_with(SLURM.query([]), tmp_path, {"squeue": "echo 'Maintenance until noon'; echo more"})
    )
    assert isinstance(unclear, Unclear)
    assert "Maintenance until noon" in unclear.why


def test_clusters_of_ids_are_asked_unless_the_host_names_its_own(tmp_path: Path) -> None:
    for environment, told in (({}, "east,west"), ({"SLURM_CLUSTERS": "all"}, "all")):
        run_with(
            SLURM.query(["1;west", "2;east", "3"]), tmp_path, {"squeue": SQUEUE}, LINES=HEADER, **environment
        )
        assert f"SLURM_CLUSTERS={told}" in (tmp_path / "env").read_text().split()
    with pytest.raises(ValueError, match="no id"):
        SLURM.query(["1|2"])
