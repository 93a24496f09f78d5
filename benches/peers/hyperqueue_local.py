"""HyperQueue's LocalCluster with one worker of four cores: a program and as many tasks as lines of standard input.

Usage: hyperqueue_local.py PROGRAM. Prints {"seconds", "done"}; a task's output is kept in files, HyperQueue's own default.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig


def main() -> None:
    lines = sys.stdin.read().split()
    folder = Path.cwd()
    with LocalCluster(worker_config=WorkerConfig(cores=4)) as cluster:
        client = cluster.client()
        began = time.perf_counter()
        job = Job(default_workdir=folder)
        for line in lines:
            job.program([sys.argv[1], line])
        # Raises when one failed.
        client.wait_for_jobs([client.submit(job)])
        seconds = time.perf_counter() - began
    # Each that ran has left the file its output went to.
    done = sum(path.suffix == ".stdout" for path in folder.rglob("*"))
    print("\n" + json.dumps({"seconds": seconds, "done": done}), flush=True)
    # Its threads would go on for a while.
    os._exit(0)


main()
