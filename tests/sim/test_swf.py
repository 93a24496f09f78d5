"""The command that replays traces, as a person or a script calls it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim import swf_reference as reference
from tests.sim.swf_traces import line, made

SMALL = "; MaxProcs: 8\n" + "\n".join(
    [line(1, 0, 100, 6), line(2, 1, 10, 8), line(3, 2, 5, 1, 98), line(4, 3, 9, 9), line(5, 3, -1, 1)]
)


def call(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "liborch.sim.swf", *words], input=stdin, capture_output=True, timeout=60
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.swf"
    path.write_text(SMALL)
    return str(path)


def test_a_large_trace_starts_as_by_the_book_from_file_to_file(tmp_path: Path) -> None:
    text = made(7, 2_000, 64, 0.9)
    (tmp_path / "t.swf.gz").write_bytes(gzip.compress(text.encode()))
    starts = tmp_path / "starts.csv"
    done = call(str(tmp_path / "t.swf.gz"), "--policy", "easy", "--json", "--starts", str(starts))
    assert done.returncode == 0, done.stderr
    rows = [[int(field) for field in row.split()] for row in text.splitlines() if row[0] != ";"]
    expected = reference.easy([reference.Job(row[1], row[3], row[8], row[7]) for row in rows], 64)
    assert starts.read_text() == "".join(
        f"{row[0]},{start}\n" for row, start in zip(rows, expected, strict=True)
    )
    report = json.loads(done.stdout)
    assert report["jobs"] == 2_000
    waits = [start - row[1] for row, start in zip(rows, expected, strict=True)]
    assert report["mean_wait_s"] == pytest.approx(sum(waits) / 2_000)


def test_json_tells_the_figures_and_what_was_skipped(small: str) -> None:
    done = call(small, "--policy", "easy", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.pop("simulated_s") > 0
    assert report.pop("simulated_jobs_per_s") > 0
    assert report.pop("mean_bounded_slowdown") == pytest.approx((1 + 109 / 10 + 1) / 3)
    assert report.pop("utilisation") == pytest.approx((600 + 80 + 5) / (8 * 110))
    skipped = report.pop("skipped")
    assert {why: count for why, count in skipped.items() if count} == {"too_large": 1, "no_run_time": 1}
    assert report == {
        "schema_version": 1,
        "trace": small,
        "processors": 8,
        "policy": "easy",
        "priority": None,
        "jobs": 3,
        "mean_wait_s": 33.0,
        "max_wait_s": 99,
        "makespan_s": 110,
        "bounded_slowdown_threshold_s": 10.0,
        "settled": {"no_requested_time": 3, "overran": 0, "unsorted": 0},
    }


def test_a_person_reads_figures_on_stdout_and_what_was_skipped_on_stderr(small: str) -> None:
    done = call(small, "--policy", "priority", "--priority", "smallest")
    assert done.returncode == 0
    told = {words[0].strip(): words[1] for words in (row.split("  ", 1) for row in done.stdout.splitlines())}
    assert told["policy"].strip() == "priority, smallest first, 8 processors"
    assert told["longest wait"].strip() == "99.0 s (1m39s)"
    assert "1 skipped: more processors than the machine has" in done.stderr
    assert "3 no requested time: the run time was taken" in done.stderr


def test_a_trace_may_come_from_standard_input(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    for data in (SMALL.encode(), gzip.compress(SMALL.encode())):
        done = call("-", "--processors", "16", "--policy", "fcfs", "--starts", str(starts), stdin=data)
        assert done.returncode == 0, done.stderr
        assert starts.read_text() == "1,0\n2,1\n3,2\n4,11\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.swf"], "nowhere.swf: cannot be read: No such file or directory; expected a trace in SWF"),
        (["."], ".: cannot be read: Is a directory"),
        (["-"], "standard input:1: 2 fields; expected 18 numbers"),
        (["-", "--policy", "lifo"], "'lifo' is not one of 'fcfs', 'easy', 'conservative', 'priority'"),
        (["-", "--processors", "0"], "0 is not in the range x>=1"),
        (["-", "--priority", "largest"], "--priority goes with --policy priority"),
    ],
)
def test_a_persons_mistake_is_a_message_and_status_2(words: list[str], message: str) -> None:
    done = call(*words, stdin=b"no trace\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_is_a_json_value_when_json_was_asked_for() -> None:
    done = call("-", "--json", stdin=line(1, 0, 1, 1).encode())
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "TraceError"
    assert "says nothing of MaxProcs or MaxNodes; expected --processors N" in error["message"]


def test_starts_that_cannot_be_written_leave_what_was_there(small: str, tmp_path: Path) -> None:
    there = tmp_path / "starts"
    there.mkdir()
    (there / "kept").touch()
    done = call(small, "--starts", str(there))
    assert done.returncode == 255
    assert "writing starts" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.swf", "starts"]


def test_starts_may_go_into_a_pipe_and_through_a_link(small: str, tmp_path: Path) -> None:
    done = call(small, "--json", "--starts", "/dev/stdout")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1,0\n2,100\n3,2\n{")
    assert Path("/dev/stdout").is_symlink()
    (tmp_path / "link").symlink_to("target")
    assert call(small, "--starts", str(tmp_path / "link")).returncode == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "1,0\n2,100\n3,2\n"
