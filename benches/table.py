"""Prints the table of targets from the JSON lines that `run.py` kept: measure, target, value, ratio, pass or miss.

The rows of `EXPECTED` come first and are shown even when nothing was measured, so that a bench nobody wrote cannot be
overlooked. Its targets hold over those a bench states itself. Other benches follow, with their own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Expected:
    """One row that must be there."""

    bench: str
    measure: str
    #: Which of the bench's numbers the target is for.
    of: Literal["ratio", "value"]
    better: Literal["higher", "lower"]
    target: float
    #: What the ratio is taken against, or the unit of the value.
    against: str


EXPECTED = (
    Expected(
        "throughput",
        "noop executions over real sshd, 4 slots",
        "ratio",
        "higher",
        0.8,
        "x xargs -P4 -n1 true",
    ),
    Expected("exec_true", "runaway exec HOST true, agent cached", "ratio", "lower", 3, "x ssh HOST true"),
    Expected("help_start", "runaway --help", "ratio", "lower", 5, "x python -c pass"),
    Expected("completion", "shell completion", "ratio", "lower", 5, "x python -c pass"),
    Expected("send_small", "first send of 10,000 small files", "ratio", "lower", 1.3, "x tar | ssh"),
    Expected("send_large", "first send of 1 GiB", "ratio", "lower", 1.3, "x tar | ssh"),
    Expected("resend_unchanged", "resend unchanged: file bytes", "value", "lower", 0, "B"),
    Expected("resend_unchanged_time", "resend unchanged: time", "ratio", "lower", 1, "x rsync"),
    Expected("resend_one", "resend with one file of 10,000 changed", "ratio", "lower", 1, "x rsync"),
    Expected("core_events", "core", "value", "higher", 200_000, "events/s"),
    Expected("core_placement", "a placement at 10,000 nodes", "ratio", "lower", 2, "x one at 10 nodes"),
    Expected(
        "batch_xargs", "batch: noop executions, 4 slots", "ratio", "higher", 0.8, "x xargs -P4 -n1 true"
    ),
    Expected("batch_hyperqueue", "the same, beside HyperQueue", "ratio", "higher", 3, "x LocalCluster"),
    Expected("batch_cpu", "client processor time per execution", "value", "lower", 0.4, "ms"),
    Expected("batch_load", "10,000 x 0.1 s on 64 slots of 4 hosts", "ratio", "higher", 0.95, "x ideal"),
    Expected("batch_gap", "empty slot between two, 100 ms away", "value", "lower", 5, "ms"),
    Expected("batch_million_memory", "1,000,000 waiting: client", "value", "lower", 1024, "MiB"),
    Expected("batch_million_first", "1,000,000: the first starts", "value", "lower", 30, "s"),
    Expected("batch_million_ps", "1,000,000: ps answers", "value", "lower", 1, "s"),
    Expected("batch_million_stop", "1,000,000: Ctrl-C answers", "value", "lower", 1, "s"),
    Expected("batch_resume", "--resume of 100,000 with 1 missing", "value", "lower", 5, "s"),
    Expected("slurm_batch", "2,000 x 1 s on Slurm, 3 nodes x 4 slots", "ratio", "higher", 0.9, "x ideal"),
    Expected("slurm_array", "the same beside sbatch --array", "ratio", "higher", 1, "x theirs"),
    Expected("slurm_srun", "the same beside an srun for each", "ratio", "higher", 1, "x theirs"),
    Expected("slurm_rpcs", "slurmctld: RPCs per execution", "value", "lower", 0.05, ""),
    Expected("slurm_fire", "500 under fire, on Slurm: all succeed", "ratio", "higher", 0, "x ideal"),
    Expected("plan", "a plan beside what Slurm took: off by", "value", "lower", 10, "%"),
    Expected("scale", "10,000 nodes x 64, 10,000,000 executions", "value", "higher", 100_000, "decisions/s"),
    Expected("scale_memory", "the same: memory", "value", "lower", 8, "GiB"),
    Expected("scale_flat", "the same: last quarter of decisions", "ratio", "lower", 1.5, "x the first"),
    Expected("swf_easy", "trace of 10,000 jobs, EASY, low load", "value", "higher", 50_000, "jobs/s"),
    Expected("core_memory", "waiting execution, of 1,000,000", "value", "lower", 1024, "B"),
)
HEADINGS = ("measure", "target", "value", "ratio", "")


def show(number: float | None, unit: str = "") -> str:
    """`2150.4`, `/s` -> `2,150 /s`; three digits where that is enough to tell."""
    if number is None:
        return ""
    text = f"{number:,.0f}" if abs(number) >= 1000 or number == int(number) else f"{number:.3g}"
    return f"{text} {unit}".rstrip()


def judge(measured: float, better: str, target: float) -> str:
    """`pass` or `MISS`; the target itself passes."""
    return "pass" if (measured >= target if better == "higher" else measured <= target) else "MISS"


def row_of(expected: Expected, measure: dict[str, Any] | None) -> tuple[str, ...]:
    """Return the cells of one row of the table."""
    sign = ">=" if expected.better == "higher" else "<="
    target = f"{sign} {show(expected.target)} {expected.against}".rstrip()
    if measure is None:
        return expected.measure, target, "", "", "not measured"
    if "skipped" in measure:
        return expected.measure, target, "", "", f"skipped: {measure['skipped']}"
    number = measure.get(expected.of)
    verdict = "not measured" if number is None else judge(number, expected.better, expected.target)
    return (
        expected.measure,
        target,
        show(measure["value"], measure["unit"]),
        show(measure.get("ratio")),
        verdict,
    )


def own_target(measure: dict[str, Any]) -> Expected | tuple[str, ...]:
    """Return what a bench outside `EXPECTED` asks of itself, or its finished row when it asks nothing."""
    target = measure.get("target")
    name = measure["bench"]
    if "skipped" in measure:
        return name, "", "", "", f"skipped: {measure['skipped']}"
    if target is None:
        return name, "", show(measure["value"], measure["unit"]), show(measure.get("ratio")), ""
    of: Literal["ratio", "value"] = "value" if measure.get("ratio") is None else "ratio"
    return Expected(
        name, name, of, measure["better"], float(target), measure["unit"] if of == "value" else "x"
    )


def build(measures: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the table's rows, without headings; of two lines of one bench the later holds."""
    by_bench = {measure["bench"]: measure for measure in measures}
    rows = [row_of(expected, by_bench.pop(expected.bench, None)) for expected in EXPECTED]
    for measure in by_bench.values():
        asked = own_target(measure)
        rows.append(row_of(asked, measure) if isinstance(asked, Expected) else asked)
    return rows


def main() -> int:
    """Print the table of the file named on the command line; 1 when a row is a miss."""
    lines = Path(sys.argv[1]).read_text().splitlines()
    rows = build([json.loads(line) for line in lines if line.strip()])
    widths = [max(len(row[column]) for row in (HEADINGS, *rows)) for column in range(len(HEADINGS))]
    for row in (HEADINGS, tuple("-" * width for width in widths), *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 1 if any(row[-1] == "MISS" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
