"""Parsl's high-throughput executor with four workers: bash_apps, one per line of standard input.

Usage: parsl_htex.py PROGRAM. Prints {"seconds", "done"}; a bash_app's result is its exit status.
"""

from __future__ import annotations

import json
import sys
import time

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from parsl.usage_tracking.levels import DISABLED


@parsl.bash_app
def run(program: str, argument: str) -> str:
    return f"{program} {argument}"


def main() -> None:
    lines = sys.stdin.read().split()
    executor = HighThroughputExecutor(
        label="htex",
        max_workers_per_node=4,
        address="127.0.0.1",
        loopback_address="127.0.0.1",
        encrypted=False,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    with parsl.load(Config(executors=[executor], usage_tracking=DISABLED)):
        # Its workers come up with the first ones.
        for first in [run("/bin/true", "first") for _ in range(4)]:
            first.result()
        began = time.perf_counter()
        futures = [run(sys.argv[1], line) for line in lines]
        done = sum(future.result() == 0 for future in futures)
        seconds = time.perf_counter() - began
    print("\n" + json.dumps({"seconds": seconds, "done": done}), flush=True)


main()
