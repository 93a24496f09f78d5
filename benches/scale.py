"""A very large cluster through the real core, on virtual time: 10,000 nodes x 64 slots, 10,000,000 executions.

    python benches/scale.py [FRACTION]

100 allocations of a hundredth of the nodes each, for two hours at a time, 1 % of the nodes failing per hour, executions of ten minutes
(±1). A decision is an event that the core is told and answers. Its time is the core's alone, of a processor; `whole_s` has that of the model of nodes and batch
system, too. What is printed was checked: every execution ended well, allocations were over before all was done, nodes failed, and the
last quarter of the decisions cost about what the first did.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from itertools import pairwise

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.machine import Orchestration
from liborch.core.policy import Policy
from liborch.sim.modelled import Play
from liborch.sim.plan import Costs, Model, Room, Times, Work
from liborch.specs import AllocationSpec

NODES, SLOTS, EXECUTIONS = 10_000, 64, 10_000_000


class Watched:
    """The core's door with a clock on it."""

    def __init__(self, machine: Orchestration) -> None:
        self.handle_inside = machine.handle
        self.spent_s = 0.0
        self.decisions = 0

    def handle(self, event: ev.Event, now: float) -> list[act.AnyAction]:
        """As `Orchestration.handle`."""
        began = time.thread_time()
        actions = self.handle_inside(event, now)
        self.spent_s += time.thread_time() - began
        self.decisions += 1
        return actions


def play(fraction: float = 1.0) -> dict[str, float]:
    """Simulate it, or a part of it; returns figures."""
    nodes, executions = round(NODES * fraction), round(EXECUTIONS * fraction)
    model = Model(
        "big",
        {f"n{number:05d}": Room(SLOTS) for number in range(nodes)},
        AllocationSpec(nodes=max(1, nodes // 100), most=100, walltime_s=7200.0),
        queue_wait=Times(60.0, 60.0),
        failures_per_hour=0.01,
    )
    whole = Play(model, Work(executions, Times(600.0, 60.0), retries=5), 1, Costs())
    # Of ten million, some are cut off by one allocation after the other: none of them is given up here.
    whole.machine.policy = Policy(give_up_s=1800.0, cut_offs_most=50)
    watched = Watched(whole.machine)
    whole.machine.handle = watched.handle  # type: ignore[method-assign]
    marks = [(0, 0.0)]
    quarter = executions // 4

    def look() -> None:
        """Once a virtual minute: how far it is."""
        if whole.finished >= quarter * len(marks):
            marks.append((watched.decisions, watched.spent_s))
        if whole.finished < executions:
            whole.later(60.0, look)

    whole.later(0.0, look)
    # What is kept is kept by counting: looking through millions of live objects again and again finds nothing.
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    outcome = whole.run()
    whole_s = time.perf_counter() - began
    gc.enable()
    assert outcome.succeeded == executions, outcome.why
    assert len(outcome.allocations) > min(nodes, 100)
    assert outcome.node_failures or fraction < 0.01
    marks.append((watched.decisions, watched.spent_s))
    cost = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(marks)]
    return {
        "executions": executions,
        "decisions": watched.decisions,
        "per_s": watched.decisions / watched.spent_s,
        "core_s": watched.spent_s,
        "whole_s": whole_s,
        "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20),
        "first_quarter_us": cost[0] * 1e6,
        "last_quarter_us": cost[-1] * 1e6,
        "virtual_s": outcome.makespan_s,
        "allocations": len(outcome.allocations),
        "node_failures": outcome.node_failures,
        "cut_off": outcome.cut_off,
        "utilisation": outcome.utilisation,
    }


def main() -> None:
    """Print a line for the table, and all figures beside it."""
    fraction = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    found = play(fraction)
    name = "scale" if fraction == 1.0 else f"scale_{fraction:g}"
    what = (
        f"{round(NODES * fraction)} nodes x {SLOTS} slots, {round(found['executions'])} executions, simulated"
    )
    flat = found["last_quarter_us"] / found["first_quarter_us"]
    lines = (
        (name, found["per_s"], "decisions/s", None, "higher", 100_000, what),
        (f"{name}_memory", found["memory_gib"], "GiB", None, "lower", 8, what),
        (
            f"{name}_flat",
            found["last_quarter_us"],
            "us",
            flat,
            "lower",
            1.5,
            "a decision in the last quarter beside the first",
        ),
    )
    for bench, value, unit, ratio, better, target, command in lines:
        line = {
            "bench": bench,
            "value": round(value, 2),
            "unit": unit,
            "ratio": None if ratio is None else round(ratio, 2),
            "better": better,
            "target": target,
            "checked": True,
            "command": command,
        }
        print(json.dumps(line), flush=True)
    print("  ".join(f"{key} {value:.6g}" for key, value in found.items()), file=sys.stderr)


if __name__ == "__main__":
    main()
