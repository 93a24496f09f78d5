"""What the core's decisions cost: events per second, a placement on many nodes and on few, memory of those who wait.

    python benches/core.py [events] [placement] [memory]

Times are of the machine alone, called the way the driver calls it. Each figure is taken after a look at whether the work was
done: every execution ended, none on a node without room, all that should wait do.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import statistics
import subprocess
import sys
import time
import uuid
from collections import deque
from typing import Any

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.machine import Orchestration
from liborch.specs import ExecutionSpec

NODES, SLOTS, EXECUTIONS = 10, 4, 200_000
WAITING = 1_000_000


def cluster(nodes: int, slots: int) -> Orchestration:
    """A machine whose nodes are open and empty."""
    machine = Orchestration(None, random.Random(1))
    machine.handle(ev.Submitted("wake", cpus=1), 0.0)
    for number in range(nodes):
        machine.handle(ev.NodeAdded(f"n{number}", "lab"), 0.0)
    machine.handle(ev.CancelAsked("wake"), 0.0)
    for number in range(nodes):
        machine.handle(ev.LinkOpened(f"n{number}", "s", slots, 0, 0), 0.0)
    return machine


def play(machine: Orchestration, executions: int, slots: int) -> tuple[int, int]:
    """Submit everything while nodes start and end it in order, as agents do; return (events, succeeded).

    Every fifth runs long enough to say that it started. Two are submitted for each that ends, until all are.
    """
    handle = machine.handle
    queues: dict[str, deque[tuple[str, int]]] = {name: deque() for name in machine.nodes}
    running: deque[tuple[str, str, int]] = deque()
    busy = dict.fromkeys(machine.nodes, 0)
    events = succeeded = submitted = 0
    now = 0.0

    def take(actions: list[act.AnyAction]) -> None:
        nonlocal succeeded
        for action in actions:
            kind = type(action)
            if kind is act.Hand:
                queues[action.node].append((action.x, action.attempt))  # type: ignore[union-attr]
                fill(action.node)  # type: ignore[union-attr]
            elif kind is act.Finish:
                succeeded += action.state == "SUCCEEDED"  # type: ignore[union-attr]

    def fill(node: str) -> None:
        queue = queues[node]
        while busy[node] < slots and queue:
            busy[node] += 1
            running.append((node, *queue.popleft()))

    while succeeded < executions:
        now += 0.00005
        for _ in range(2):
            if submitted < executions:
                take(handle(ev.Submitted(f"e{submitted}"), now))
                submitted += 1
                events += 1
        node, x, attempt = running.popleft()
        if events % 5 == 0:
            take(handle(ev.Started(x, attempt), now))
            events += 1
        busy[node] -= 1
        take(handle(ev.Ended(x, attempt, "exit", 0), now))
        fill(node)
        events += 1
    return events, succeeded


def overhead(executions: int) -> float:
    """Seconds that `play` takes for itself: the same loop around a machine that decides nothing."""

    class Nothing:
        """Hands everything to the first node and finishes what ends."""

        nodes = dict.fromkeys(f"n{number}" for number in range(NODES))
        next = 0

        def handle(self, event: ev.Event, now: float) -> list[Any]:
            if type(event) is ev.Submitted:
                self.next = (self.next + 1) % NODES
                return [act.Hand(event.x, 1, f"n{self.next}")]
            if type(event) is ev.Ended:
                return [act.Finish(event.x, "SUCCEEDED", "exit", 0, 1)]
            return []

    began = time.perf_counter()
    play(Nothing(), executions, SLOTS)  # type: ignore[arg-type]
    return time.perf_counter() - began


def bench_events() -> dict[str, Any]:
    """Mixed events on ten nodes, best of three; the bench's own loop is measured apart and taken off."""
    rates = []
    for _ in range(3):
        machine = cluster(NODES, SLOTS)
        own_s = overhead(EXECUTIONS // 10) * 10
        gc.collect()
        began = time.perf_counter()
        events, succeeded = play(machine, EXECUTIONS, SLOTS)
        took_s = time.perf_counter() - began - own_s
        assert succeeded == EXECUTIONS
        assert machine.is_idle
        machine.check()
        rates.append(events / took_s)
    return {
        "bench": "core_events",
        "value": round(max(rates)),
        "unit": "events/s",
        "ratio": None,
        "better": "higher",
        "target": 200_000,
        "checked": True,
        "command": f"submit, start, end; {NODES} nodes x {SLOTS} slots, {EXECUTIONS} executions, best of 3",
    }


def placement_s(nodes: int, rounds: int = 1000) -> float:
    """Seconds for one end and the placement that follows, on full nodes with a queue behind: each round ten of them.

    Nodes end in no order, each its oldest execution, ten a second. The mean: work put off to a later round counts, too.
    """
    machine = cluster(nodes, SLOTS)
    chance = random.Random(2)
    running: dict[str, deque[str]] = {name: deque() for name in machine.nodes}
    names = list(running)
    count = 0

    def submit(times: int) -> None:
        nonlocal count
        for _ in range(times):
            for action in machine.handle(ev.Submitted(f"e{count}"), 0.0):
                if isinstance(action, act.Hand):
                    running[action.node].append(action.x)
            count += 1

    submit(nodes * SLOTS * 2 + 1000)
    took: list[float] = []
    now, handed = 1.0, 0
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        ends = [(name, running[name].popleft()) for name in chance.sample(names, 10)]
        caused: list[act.AnyAction] = []
        began = time.perf_counter()
        for _name, x in ends:
            now += 0.1 / nodes
            caused += machine.handle(ev.Ended(x, 1, "exit", 0), now)
        took.append((time.perf_counter() - began) / len(ends))
        for action in caused:
            if isinstance(action, act.Hand):
                running[action.node].append(action.x)
                handed += 1
        submit(len(ends))
    gc.enable()
    machine.check()
    assert handed > 9 * rounds, "ends led to no placements"
    return statistics.mean(took)


def bench_placement() -> dict[str, Any]:
    """The same at 10 nodes and at 10,000."""
    few, many = [], []
    for _ in range(3):
        few.append(placement_s(10))
        many.append(placement_s(10_000))
    few_s, many_s = min(few), min(many)
    return {
        "bench": "core_placement",
        "value": round(many_s * 1e6, 2),
        "unit": "us",
        "ratio": round(many_s / few_s, 2),
        "better": "lower",
        "target": 2,
        "checked": True,
        "command": "an end and the placement it allows, 10,000 nodes beside 10",
    }


def bench_memory() -> dict[str, Any]:
    """A million that wait, with what the driver keeps of each: an id, a shared spec, its own arguments."""
    machine = cluster(NODES, SLOTS)
    spec = ExecutionSpec(argv=("python3", "train.py"))
    kept: dict[str, tuple[ExecutionSpec, str]] = {}
    gc.collect()
    before = _resident_bytes()
    for number in range(WAITING):
        x = str(uuid.UUID(int=number * 0x9E3779B97F4A7C15))
        kept[x] = (spec, f"--seed={number:08d} --learning-rate=0.00010")
        machine.handle(ev.Submitted(x), 0.0)
    grown = _resident_bytes() - before
    assert machine.queue.waiting > WAITING - 10_000
    return {
        "bench": "core_memory",
        "value": round(grown / WAITING),
        "unit": "B",
        "ratio": None,
        "better": "lower",
        "target": 1024,
        "checked": True,
        "command": f"{WAITING} executions waiting, growth of resident memory for each, with id, spec and arguments",
    }


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


BENCHES = {"events": bench_events, "placement": bench_placement, "memory": bench_memory}


def main() -> None:
    """Print one line each; every bench in a fresh interpreter, so that none measures another's leavings."""
    names = sys.argv[1:] or list(BENCHES)
    if len(names) == 1:
        print(json.dumps(BENCHES[names[0]]()), flush=True)
        return
    for name in names:
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main()
