"""Limits that Slurm tells of: partitions and accounting, as a real one writes them and as its manual says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liborch.batch_systems.base import Limits, Output
from liborch.batch_systems.slurm import Slurm
from tests.batch_systems.captures import answer
from tests.batch_systems.slurm_answers import answers, run_with

SLURM = Slurm()
LIMITS = answers("limits")

PARTITIONS = (
    "PartitionName=long Default=NO QoS=N/A MaxNodes=UNLIMITED MaxTime=UNLIMITED TotalNodes=40\n"
    "PartitionName=day Default=YES QoS=daily MaxNodes=8 MaxTime=1-00:00:00 TotalNodes=20\n"
    "PartitionName=gpu Default=NO QoS=N/A MaxNodes=UNLIMITED MaxTime=06:00:00 TotalNodes=4\n"
)
ASSOC = (
    "physics||50|10|2-00:00:00|node=6|normal\nphysics|gpu|5|2||node=2|normal\nbiology||1|1|00:10:00||normal\n"
)
QOS = "normal|100|20|3-00:00:00|\ndaily|200||12:00:00|cpu=64,node=4\nfast|3|1|01:00:00|\n"


def told(options: Sequence[str], folder: Path, *, accounting: bool = True) -> Limits:
    """What is found for options, where Slurm's programs answer so."""
    no = "echo 'You are not running a supported accounting_storage plugin' >&2; exit 1"
    (folder / "partitions").write_text(PARTITIONS)
    (folder / "assoc").write_text(ASSOC)
    (folder / "qos").write_text(QOS)
    yes = 'case $* in *" user "*) echo physics ;; *assoc*) cat "$HERE/assoc" ;; *) cat "$HERE/qos" ;; esac'
    programs = {"scontrol": 'cat "$HERE/partitions"', "sacctmgr": yes if accounting else no}
    return SLURM.parse_limits(run_with(SLURM.limits(options), folder, programs))


def test_without_accounting_the_partition_s_limits_are_all_there_is() -> None:
    limits = SLURM.parse_limits(LIMITS["default"])
    assert (limits.most_walltime_s, limits.most_nodes) == (86400, 3)
    assert (limits.most_submitted, limits.most_active) == (None, None)
    short = SLURM.parse_limits(LIMITS["partition"])
    assert short == Limits(
        most_walltime_s=60,
        most_nodes=2,
        sources={"most_walltime_s": "partition short: MaxTime", "most_nodes": "partition short: MaxNodes"},
    )


def test_limits_of_a_person_and_of_a_qos_are_read_as_a_real_slurm_tells_them() -> None:
    limits = SLURM.parse_limits(LIMITS["accounting"])
    assert (limits.most_submitted, limits.most_active, limits.most_walltime_s, limits.most_nodes) == (
        3,
        2,
        3600,
        2,
    )
    limits = SLURM.parse_limits(LIMITS["accounting_qos"])
    assert (limits.most_submitted, limits.most_active, limits.most_walltime_s, limits.most_nodes) == (
        2,
        1,
        3600,
        1,
    )
    assert limits.sources["most_submitted"] == "QOS busy: MaxSubmitJobsPerUser"
    assert limits.sources["most_walltime_s"] == "account lab: MaxWall"


def test_without_scontrol_there_is_no_limit() -> None:
    assert SLURM.parse_limits(LIMITS["no_scontrol"]) == Limits()


@pytest.mark.parametrize("options", [["-p", "gpu"], ["-pgpu"], ["--partition=gpu"], ["--partition", "gpu"], ["-p", "day", "-p", "gpu"]])  # fmt: skip
def test_the_partition_of_the_options_counts(tmp_path: Path, options: list[str]) -> None:
    limits = told(options, tmp_path, accounting=False)
    assert (limits.most_walltime_s, limits.most_nodes) == (6 * 3600, 4)


def test_of_several_partitions_the_widest_counts(tmp_path: Path) -> None:
    limits = told(["-p", "gpu,day"], tmp_path, accounting=False)
    assert (limits.most_walltime_s, limits.most_nodes) == (86400, 8)
    limits = told(["-p", "gpu,long"], tmp_path, accounting=False)
    assert (limits.most_walltime_s, limits.most_nodes) == (None, 40)


def test_the_least_of_partition_account_and_qos_holds_and_says_where_it_comes_from(tmp_path: Path) -> None:
    assert told([], tmp_path) == Limits(
        most_submitted=50,
        most_active=10,
        most_walltime_s=12 * 3600,
        most_nodes=4,
        sources={
            "most_submitted": "account physics: MaxSubmitJobs",
            "most_active": "account physics: MaxJobs",
            "most_walltime_s": "QOS daily: MaxWall",
            "most_nodes": "QOS daily: MaxTRES",
        },
    )


def test_account_and_qos_of_the_options_count(tmp_path: Path) -> None:
    limits = told(["--account=biology", "-q", "fast"], tmp_path)
    assert (limits.most_submitted, limits.most_walltime_s) == (1, 600)
    limits = told(["--qos=fast"], tmp_path)
    assert (limits.most_submitted, limits.most_active, limits.most_walltime_s) == (3, 1, 3600)


def test_what_is_set_for_a_partition_goes_before_what_is_set_for_all(tmp_path: Path) -> None:
    limits = told(["--partition=gpu"], tmp_path)
    assert (limits.most_submitted, limits.most_active, limits.most_nodes) == (5, 2, 2)


@given(st.binary(max_size=200))
def test_what_is_not_understood_is_no_limit(noise: bytes) -> None:
    assert SLURM.parse_limits(Output(None, noise)) == Limits()
    heads = b"orch-chosen|partition=|account=|qos=\nPartitionName=", b"\norch-assoc\n", b"\norch-qos\n"
    assert isinstance(SLURM.parse_limits(answer(0, noise.join((b"", *heads, b"")))), Limits)
