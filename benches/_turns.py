"""Measures what is to be compared in turns (A B A B ...), since a shared machine changes its speed from minute to minute."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence


def program_time(
    argv: Sequence[str], environment: Mapping[str, str] | None = None, folder: str | None = None
) -> tuple[float, bytes]:
    """Run a program that must succeed; return (seconds, its output).

    Raises:
        SystemExit: It failed; its last words are in the text.
    """
    began = time.perf_counter()
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, env=environment, cwd=folder, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(
            f"{argv[0]} ended with status {done.returncode}: {done.stderr[-500:].decode(errors='replace')}"
        )
    return seconds, done.stdout


def in_turns(rounds: int, **measures: Callable[[], float]) -> dict[str, list[float]]:
    """Take each measure `rounds` times, one after the other in each round, after one round that does not count.

    Returns:
        {name: seconds of each round}
    """
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name, measure in measures.items():
            seconds = measure()
            if number:
                taken[name].append(seconds)
    return taken


def medians(taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """{name: the median, in seconds}"""
    return {name: statistics.median(values) for name, values in taken.items()}


def milliseconds(seconds: float) -> float:
    """For a report."""
    return round(seconds * 1000, 1)
