"""Dask's LocalCluster with four workers of one thread: `subprocess.run`, one per line of standard input.

Usage: dask_subprocess.py PROGRAM. Prints {"seconds", "done"}; a task's result is the exit status and what was printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from distributed import Client, LocalCluster


def run(program: str, argument: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run([program, argument], stdin=subprocess.DEVNULL, capture_output=True)
    return done.returncode, done.stdout, done.stderr


def main() -> None:
    lines = sys.stdin.read().split()
    with (
        LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        began = time.perf_counter()
        futures = client.map(run, [sys.argv[1]] * len(lines), lines, pure=False)
        done = sum(status == 0 for status, _, _ in client.gather(futures))
        seconds = time.perf_counter() - began
    print("\n" + json.dumps({"seconds": seconds, "done": done}), flush=True)


if __name__ == "__main__":
    main()
