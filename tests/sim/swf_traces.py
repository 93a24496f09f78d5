"""Traces in the Standard Workload Format for tests and benches: lines of it, and traces made like those of real machines."""

from __future__ import annotations

import math
import random
from itertools import pairwise

DAY_S = 86400


def line(
    number: int,
    submit: float,
    run: float,
    processors: int,
    request: float = -1,
    *,
    allocated: int | None = None,
    status: int = 1,
    queue: int = -1,
) -> str:
    """One job. `allocated` is as `processors`, which is what was requested, when not said."""
    given = processors if allocated is None else allocated
    return f"{number} {submit} -1 {run} {given} -1 -1 {processors} {request} -1 {status} -1 -1 -1 {queue} -1 -1 -1"


def made(seed: int, jobs: int, processors: int, load: float) -> str:
    """A trace with what makes real ones hard, after Lublin and Feitelson's model of 2003, in coarse strokes.

    Sizes are mostly powers of two and run times spread over five orders of magnitude, longer for larger jobs. Users submit by
    day, several of the same at once, ask for whole quarters and hours, and some die at once. `load`: the part of the machine
    that they would keep busy.
    """
    chance = random.Random(seed)
    rows: list[tuple[int, int, int]] = []
    while len(rows) < jobs:
        size = (
            1
            if chance.random() < 0.25
            else min(processors, round(2 ** chance.uniform(0.8, math.log2(processors))))
        )
        if chance.random() < 0.75:
            size = 1 << round(math.log2(size))
        run = round(math.exp(chance.gauss(5.5 + 0.25 * math.log2(size), 2.0)))
        run = min(max(run, 1), 36 * 3600)
        request = next((at for at in (300, 900, 1800) if at > run * chance.uniform(1, 6)), 0)
        request = request or math.ceil(run * chance.uniform(1, 4) / 3600) * 3600
        for _ in range(
            min(jobs - len(rows), 1 if chance.random() < 0.6 else 1 + int(chance.expovariate(0.2)))
        ):
            died = chance.random() < 0.1
            rows.append((min(size, processors), chance.randrange(0, 30) if died else run, request))
    times: list[float] = [0.0]
    for previous, row in pairwise(rows):
        is_same = previous[0] == row[0] and previous[2] == row[2]
        times.append(times[-1] + chance.expovariate(1) * (0.05 if is_same else 1.5))
    span_s = sum(size * run for size, run, _request in rows) / (processors * load)
    lines = [f"; MaxProcs: {processors}"]
    for number, (time, (size, run, request)) in enumerate(zip(times, rows, strict=True), start=1):
        # Most of a day's work is submitted in the first half of it.
        days, hour = divmod(time / times[-1] * span_s / DAY_S, 1.0)
        submit = int((days + hour**1.5) * DAY_S)
        lines.append(line(number, submit, run, size, request))
    return "\n".join(lines) + "\n"
