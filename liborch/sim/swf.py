"""`python -m liborch.sim.swf TRACE`: how a workload trace would have fared under another policy.

Parses, opens files, prints; see `docs/simulation.md`. As a library: `swf_trace.read_trace`, `swf_replay.replay` and
`swf_replay.sum_up`, none of which touches the world.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict

import click

from liborch.command_line import call
from liborch.errors import StorageError, TraceError
from liborch.quantities import format_duration
from liborch.sim.swf_replay import ORDERS, POLICIES, THRESHOLD_S, Figures, Replay, replay, sum_up
from liborch.sim.swf_trace import SETTLED, SKIPPED, Trace, read_trace

NAME = "python -m liborch.sim.swf"
#: Of what --json prints.
SCHEMA_VERSION = 1


@click.command(context_settings={"help_option_names": ["--help", "-h"]})
@click.argument("trace")
@click.option(
    "--processors",
    metavar="N",
    type=click.IntRange(min=1),
    help="How many the machine has; else as the trace's header says.",
)
@click.option("--policy", type=click.Choice(POLICIES), default="easy", show_default=True)
@click.option(
    "--priority",
    "order",
    type=click.Choice(tuple(ORDERS)),
    help="Who comes first with --policy priority; shortest when not said.",
)
@click.option("--starts", metavar="FILE", help="Write a line JOB,START for each job, in order of submission.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
def command(
    trace: str, processors: int | None, policy: str, order: str | None, starts: str | None, as_json: bool
) -> int:
    """Replay a trace in the Standard Workload Format, as it is or gzipped; - is standard input."""
    if order is not None and policy != "priority":
        raise click.UsageError("--priority goes with --policy priority")
    read = _read(trace)
    began = time.perf_counter()
    done = replay(read, processors, policy, order or "shortest")
    took_s = time.perf_counter() - began
    figures = sum_up(done)
    if starts is not None:
        _write_starts(done, starts)
    report = _report(done, figures, took_s)
    if as_json:
        print(json.dumps(report))
    else:
        _print(done, figures, took_s)
    sys.stdout.flush()
    return 0


def _read(path: str) -> Trace:
    if path == "-":
        return read_trace(sys.stdin.buffer, "standard input")  # type: ignore[arg-type]
    try:
        with open(path, "rb") as stream:
            return read_trace(stream, path)
    except OSError as error:
        why = error.strerror or str(error)
        raise TraceError(path, None, "", f"cannot be read: {why}", "a trace in SWF") from error


def _write_starts(done: Replay, path: str) -> None:
    """Whole or not at all where that can be: a file that is not there, or a regular one. A pipe or a device is written to."""
    lines = (
        f"{number},{start:.15g}\n" for number, start in zip(done.trace.jobs.numbers, done.starts, strict=True)
    )
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "w") as file:
                file.writelines(lines)
            return
        target = os.path.realpath(path)
        draft = f"{target}.part-{os.getpid()}"
        try:
            with open(draft, "x") as file:
                file.writelines(lines)
            os.replace(draft, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft)
    except OSError as error:
        raise StorageError("this machine", path, error.errno or 0, "writing starts") from error


def _report(done: Replay, figures: Figures, took_s: float) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        "trace": done.trace.name,
        "processors": done.machine,
        "policy": done.policy,
        "priority": done.order or None,
        **asdict(figures),
        "bounded_slowdown_threshold_s": THRESHOLD_S,
        "skipped": {why: done.trace.skipped[why] for why in SKIPPED},
        "settled": {what: done.trace.settled[what] for what in SETTLED},
        "simulated_s": took_s,
        "simulated_jobs_per_s": figures.jobs / took_s,
    }


def _print(done: Replay, figures: Figures, took_s: float) -> None:
    policy = f"{done.policy}, {done.order} first" if done.order else done.policy
    rows = [
        ("policy", f"{policy}, {done.machine:,} processors"),
        ("jobs", f"{figures.jobs:,}"),
        ("mean wait", _duration(figures.mean_wait_s)),
        ("longest wait", _duration(figures.max_wait_s)),
        ("mean bounded slowdown", f"{figures.mean_bounded_slowdown:.2f} (threshold {THRESHOLD_S:.0f} s)"),
        ("utilisation", f"{figures.utilisation:.1%}"),
        ("makespan", _duration(figures.makespan_s)),
        ("simulated", f"{figures.jobs / took_s:,.0f} jobs/s"),
    ]
    width = max(len(name) for name, _text in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")
    for told, known in ((done.trace.skipped, SKIPPED), (done.trace.settled, SETTLED)):
        for what, meaning in known.items():
            if told[what]:
                skipped = "skipped: " if known is SKIPPED else ""
                print(f"{told[what]:,} {skipped}{meaning}", file=sys.stderr)


def _duration(seconds: float) -> str:
    return f"{seconds:,.1f} s ({format_duration(seconds)})" if seconds >= 60 else f"{seconds:,.1f} s"


def main() -> int:
    """Return the exit status."""
    return call(NAME, command)


if __name__ == "__main__":
    sys.exit(main())
