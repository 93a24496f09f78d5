"""Submitting to Slurm, and cancelling: the scripts that are rendered, run by a real sh, and answers of a real Slurm."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liborch.batch_systems.base import Accepted, Output, Rejected, Request, Unclear
from liborch.batch_systems.slurm import Slurm
from liborch.errors import SpecError
from tests.batch_systems.captures import answer
from tests.batch_systems.slurm_answers import answers, run_with

SLURM = Slurm()
SUBMISSIONS = answers("submissions")
CANCELS = answers("cancels")
#: An sbatch that leaves what it was given.
SBATCH = 'for word; do printf "%s\\0" "$word"; done >"$HERE/words"; cat >"$HERE/script"; env >"$HERE/env"; echo 4711'


def words_of(folder: Path, request: Request) -> list[str]:
    """What sbatch is started with."""
    output = run_with(SLURM.submit(request), folder, {"sbatch": SBATCH})
    assert SLURM.parse_submit(output) == Accepted("4711")
    return (folder / "words").read_text().split("\0")[:-1]


def test_sbatch_is_told_what_is_asked_for_and_given_the_holder_as_its_script(tmp_path: Path) -> None:
    words = words_of(tmp_path, Request("abc123", nodes=3, walltime_s=7200, holder=("sleep", "for ever; $X'")))
    assert words == [
        *("--parsable", "--job-name=orch-abc123", "--nodes=3", "--no-requeue", "--no-kill"),
        *("--exclusive", "--time=0-02:00:00", "--output=/dev/null"),
    ]
    script = (tmp_path / "script").read_text()
    assert script.startswith("#!/bin/sh\n")
    (tmp_path / "sleep").write_text('#!/bin/sh\nprintf %s "$1"\n')
    (tmp_path / "sleep").chmod(0o755)
    said = run_with(SLURM.submit(Request("abc124")), tmp_path, {"sbatch": 'sh "$HERE/script" >&2; echo 1'})
    assert said.stderr == b"orch-begin\nfor ever; $X'"


@pytest.mark.parametrize(
    "option", ["--exclusive=user", "-c4", "--ntasks-per-node=2", "-n8", "-s", "-vs", "-Hn8", "--cpus-per-t=4"]
)
def test_whole_nodes_are_asked_for_unless_the_person_says_how_much_of_each(
    option: str, tmp_path: Path
) -> None:
    assert "--exclusive" in words_of(tmp_path, Request("abc123", options=("--mem=4G",)))
    assert "--exclusive" not in words_of(tmp_path, Request("abc123", options=(option,)))


def test_nodes_of_no_use_are_excluded_unless_the_person_says_which(tmp_path: Path) -> None:
    assert "--exclude=n1,n2" in words_of(tmp_path, Request("abc123", avoided=("n1", "n2")))
    words = words_of(tmp_path, Request("abc123", avoided=("n1",), options=("--exclude=n7",)))
    assert [word for word in words if word.startswith("--exclude=")] == ["--exclude=n7"]


def test_options_of_the_person_arrive_word_by_word_after_ours(tmp_path: Path) -> None:
    options = (
        "--partition=long",
        "-A",
        "me & you",
        '--comment=it\'s "$HOME" `id` \\',
        "-c4",
        "--exclusive",
        "--gres=gpu:2",
    )
    assert words_of(tmp_path, Request("abc123", options=options))[-7:] == list(options)


def test_variables_that_would_change_what_sbatch_does_are_not_there(tmp_path: Path) -> None:
    run_with(
        SLURM.submit(Request("abc123")), tmp_path, {"sbatch": SBATCH},
        SBATCH_ARRAY_INX="0-9", SBATCH_WAIT="1", SBATCH_PARTITION="mine", SLURM_CLUSTERS="one",
    )  # fmt: skip
    found = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert {"SBATCH_PARTITION", "SLURM_CLUSTERS"} <= found
    assert not {"SBATCH_ARRAY_INX", "SBATCH_WAIT", "TZ", "LC_ALL"} & found


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "0-00:01:00"), (60, "0-00:01:00"), (60.1, "0-00:02:00"), (3600, "0-01:00:00"), (90061, "1-01:02:00"), (864000, "10-00:00:00")],
)  # fmt: skip
def test_walltimes_are_rounded_up_to_minutes(tmp_path: Path, seconds: float, text: str) -> None:
    assert f"--time={text}" in words_of(tmp_path, Request("abc123", walltime_s=seconds))


def test_without_a_walltime_the_partition_s_holds_and_a_log_goes_where_it_is_wanted(tmp_path: Path) -> None:
    words = words_of(tmp_path, Request("abc123", log_folder="/home/me/100%\\n"))
    assert not [word for word in words if word.startswith("--time")]
    assert "--output=/home/me/100%%\\\\n/orch-abc123.log" in words


@pytest.mark.parametrize(
    "options",
    [
        *(
            ["--job-name=x"],
            ["-J", "x"],
            ["-Jx"],
            ["--job-n=x"],
            ["--nodes=2"],
            ["-N2"],
            ["-N", "2"],
            ["--time=1:00"],
        ),
        *(
            ["-t60"],
            ["--array=0-9"],
            ["-a0-9"],
            ["--wait"],
            ["-W"],
            ["--parsable"],
            ["--wrap=true"],
            ["--test-only"],
        ),
        *(
            ["--clusters=other"],
            ["-Mother"],
            ["--help"],
            ["-V"],
            ["--"],
            ["script.sh"],
            ["--hold", "script.sh"],
        ),
        *(
            ["-p", "long", "script.sh"],
            ["--mem=1G", "script.sh"],
            ["-c4", "script.sh"],
            ["-"],
            ["--comment=a\nb"],
            ["-HN2"],
        ),
    ],
)
def test_options_that_are_ours_are_refused_by_name(options: list[str]) -> None:
    with pytest.raises(SpecError, match=r"options? of sbatch"):
        SLURM.submit(Request("abc123", options=tuple(options)))


def test_a_script_that_is_cut_off_on_its_way_submits_nothing(tmp_path: Path) -> None:
    command = SLURM.submit(Request("abc123", options=("--partition=long",)))
    for length in range(0, len(command.stdin) - len(b"} </dev/null\n"), 5):
        cut = type(command)(command.argv, command.stdin[:length])
        output = run_with(cut, tmp_path, {"sbatch": SBATCH})
        assert not (tmp_path / "words").exists(), f"the first {length} bytes submitted something"
        assert isinstance(SLURM.parse_submit(output), Unclear)


REFUSED = {
    "no_partition": "Invalid partition name specified",
    "no_feature": "Invalid feature specification",
    "no_gres": "Invalid generic resource (gres) specification",
    "no_node": "Invalid node name specified",
    "too_many_gpus": "Requested node configuration is not available",
    "too_much_memory": "Memory specification can not be satisfied",
    "unknown_option": "unrecognized option",
    "ambiguous": "is ambiguous",
    "bad_value": "Invalid --mem specification",
    "bad_begin": "Invalid --begin specification",
    "bad_number": 'Invalid numeric value "many"',
    "reservation": "Requested reservation is invalid",
    "license": "Invalid license specification",
    "enforced_time": "Requested time limit is invalid",
    "enforced_nodes": "Node count specification invalid",
    "enforced_all": "More processors requested than permitted",
    "no_account": "Invalid account or account/partition combination",
    "no_qos": "Invalid qos specification",
    "qos_limit": "QOSMaxSubmitJobPerUserLimit",
    "account_limit": "AssocMaxSubmitJobLimit",
    "no_sbatch": "not found",
}


@pytest.mark.parametrize("name", sorted(SUBMISSIONS))
def test_real_answers_to_a_submission_are_understood(name: str) -> None:
    answer = SLURM.parse_submit(SUBMISSIONS[name])
    if name == "accepted":
        assert answer == Accepted("1")
    elif name == "controller_down":
        assert isinstance(answer, Unclear)
        assert "Unable to contact slurm controller" in answer.why
    else:
        assert isinstance(answer, Rejected), answer
        assert REFUSED[name] in answer.why
        assert answer.is_retriable == name.endswith("_limit")


def failed(words: str, code: int = 1) -> Output:
    """A program said this on stderr and ended so."""
    return answer(code, b"", words.encode())


@pytest.mark.parametrize(
    ("words", "retriable"),
    [
        # 20.11 and newer name the limit; before, only the second line comes.
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS "
         "policy (job submit limit, user's size and/or time limits)\n", True),
        ("sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy\n", True),
        ("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or "
         "time limits)\n", False),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified\n", False),
        ("sbatch: error: Batch job submission failed: Invalid qos specification\n", False),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
         "sbatch: error: Batch job submission failed: Resource temporarily unavailable\n", True),
        ("sbatch: error: Batch job submission failed: MaxJobCount limit reached\n", True),
        ("sbatch: error: Batch job submission failed: Required partition not available (inactive or drain)\n", True),
        ("sbatch: error: Batch job submission failed: Requested operation is presently disabled\n", True),
        ("sbatch: error: Please give an account with -A; see https://example.org\n"
         "sbatch: error: Batch job submission failed: Unspecified error\n", False),
        ("sbatch: error: Batch job submission failed: Access/permission denied\n", False),
        ("sbatch: error: Batch job submission failed: User's group not permitted to use this partition\n", False),
    ],
)  # fmt: skip
def test_refusals_of_other_sites_and_versions_say_whether_later_will_do(words: str, retriable: bool) -> None:
    answer = SLURM.parse_submit(failed(words))
    assert isinstance(answer, Rejected), answer
    assert answer.is_retriable is retriable
    assert answer.why.startswith(words.partition("\n")[0][:60])


@pytest.mark.parametrize(
    "words",
    [
        "Socket timed out on send/recv operation", "Unable to contact slurm controller (connect failure)", "Message receive failure",
        "Zero Bytes were transmitted or received", "Unexpected message received", "Insane message length", "Connection refused",
        "Protocol authentication error", "Transport endpoint is not connected", "Interrupted system call",
        "Header lengths are longer than data received", "Slurm backup controller in standby mode", "Connection reset by peer",
    ],
)  # fmt: skip
def test_when_the_answer_was_lost_nobody_knows_what_became_of_the_submission(words: str) -> None:
    said = f"sbatch: error: Batch job submission failed: {words}\n"
    assert isinstance(SLURM.parse_submit(failed(said)), Unclear)
    also = f"sbatch: error: Invalid generic resource (gres) specification\n{said}"
    assert isinstance(SLURM.parse_submit(failed(also)), Unclear)


@pytest.mark.parametrize(
    "output",
    [
        Output(0), answer(0), answer(0, b"<html>502</html>\n"), answer(0, b"1; rm -rf ~\n"), answer(0, b"\x1b[2J4711\n"),
        Output(0, b"4711\n"), Output(None, b"4711\n"), answer(1, b"4711\n"), answer(0, b"Submitted batch job 4711\n"),
        answer(0, b"4711 \n"), Output(0, answer(0, b"4711\n").stdout[:-1]), dataclasses.replace(answer(0, b"4711\n"), is_cut=True),
        answer(0, b"9" * 300 + b"\n"), answer(0, b"4711;a b\n"), answer(0, b"", b"sbatch: error: Invalid partition\n"),
        answer(0, "४७\n".encode()), answer(0, b"4711"),
        failed("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n", 124),
        failed("sbatch: error: Invalid partition name specified\n", 137),
        failed("sbatch: erreur : la soumission a \xe9chou\xe9\n"), failed("Segmentation fault\n", 139), failed(""),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_answer_is_unclear(output: Output) -> None:
    assert isinstance(SLURM.parse_submit(output), Unclear)


@pytest.mark.parametrize(
    ("stdout", "id"),
    [
        (b"42\n*** maintenance on Monday ***\n4711\n", "4711"),
        (b"4711;cluster-2\n", "4711;cluster-2"),
        (b"\xff\xfe\n67108865;east\n", "67108865;east"),
    ],
)
def test_banners_before_the_id_and_warnings_beside_it_do_no_harm(stdout: bytes, id: str) -> None:
    output = answer(0, stdout, b"sbatch: warning: can't honor --ntasks\n")
    banner = dataclasses.replace(
        output, stdout=b"Welcome!\n4712\n" + output.stdout, stderr=b"error: \xff" + output.stderr
    )
    assert SLURM.parse_submit(output) == SLURM.parse_submit(banner) == Accepted(id)


@given(st.binary(max_size=200), st.binary(max_size=60), st.sampled_from([0, 1, None]))
def test_no_bytes_are_too_strange(stdout: bytes, stderr: bytes, code: int | None) -> None:
    for output in (Output(code, stdout, stderr), answer(0, stdout, stderr), answer(1, stdout, stderr)):
        assert isinstance(SLURM.parse_submit(output), Accepted | Rejected | Unclear)
        assert SLURM.parse_cancel(output) is None or isinstance(
            SLURM.parse_cancel(output), Rejected | Unclear
        )


def test_many_are_cancelled_by_one_scancel_for_each_cluster(tmp_path: Path) -> None:
    command = SLURM.cancel(["1", "2;east", "3", "4;west", "5;east", "1"])
    output = run_with(command, tmp_path, {"scancel": 'echo "$@" >>"$HERE/said"'})
    assert SLURM.parse_cancel(output) is None
    assert (tmp_path / "said").read_text() == "1 3\n--clusters=east 2 5\n--clusters=west 4\n"
    with pytest.raises(ValueError, match="no id"):
        SLURM.cancel(["1", "2; rm -rf ~"])


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (CANCELS["unknown"], None),
        (CANCELS["denied"], Rejected),
        (CANCELS["controller_down"], Unclear),
        (failed("scancel: error: Kill job error on job id 7: Invalid job id specified\n"), None),
        (failed("scancel: error: Kill job error on job id 7: Job/step already completing or completed\n"), None),
        (failed("scancel: error: Kill job error on job id 7: Invalid job id specified\n"
                "scancel: error: Kill job error on job id 8: Socket timed out on send/recv operation\n"), Unclear),
        (failed("sh: 1: scancel: not found\n", 127), Unclear),
        (Output(None, b""), Unclear),
        (Output(0, b"<html>\n"), Unclear),
    ],
)  # fmt: skip
def test_cancelling_what_is_over_is_fine_and_only_that(output: Output, expected: type | None) -> None:
    answer = SLURM.parse_cancel(output)
    assert answer is None if expected is None else isinstance(answer, expected), answer


def test_a_node_is_entered_with_words_that_are_checked() -> None:
    words = SLURM.enter("12;east", "n1", ["python3", "-c", "pass"])
    assert words[0] == "srun"
    assert words[-3:] == ("python3", "-c", "pass")
    assert {"--jobid=12", "--clusters=east", "--overlap", "--nodelist=n1", "--unbuffered"} <= set(words)
    for id, node in (("12 --uid=0", "n1"), ("12", "n1,n2"), ("12", "-x")):
        with pytest.raises(ValueError, match="is no"):
            SLURM.enter(id, node, ["true"])
