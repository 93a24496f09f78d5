"""A batch of 1,000,000 x `true`: what the client takes, when the first one starts, and whether it still answers.

It is watched while its plan is written into the journal and the first of it run already, until all of it is on record; then
stopped with Ctrl-C, after which everything is either done or still on record to go on with.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import _batches
import _lab

COUNT = 1_000_000
#: Seconds after which the plan should long have been on record.
MOST_S = 400
#: Questions asked once all is on record.
QUESTIONS = 5


def peak_bytes(pid: int) -> int:
    """The most resident memory a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"process {pid} does not tell its memory")


class Watch:
    """One batch under way. `ask` is `runaway ps`, timed."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment = environment
        self._folder = folder
        #: Seconds that `ps` took, each time.
        self.answers: list[float] = []
        #: Seconds of processor time it took.
        self.cpu: list[float] = []

    def ask(self) -> dict[str, int]:
        """{state: executions}, as a person sees them; empty while there is no batch."""
        before = _batches.cpu_of_children()
        began = time.perf_counter()
        done = subprocess.run(
            [_batches.RUNAWAY, "ps", "--batches", "--json"],
            env=self._environment,
            cwd=self._folder,
            capture_output=True,
            check=True,
        )
        self.answers.append(time.perf_counter() - began)
        self.cpu.append(_batches.cpu_of_children() - before)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        counts: dict[str, int] = rows[0]["counts"] if rows else {}
        return counts


def measure(environment: dict[str, str], folder: Path) -> None:
    """Run it, watch it, stop it."""
    _batches.run_batch(environment, folder, "-x", "4", "h1", "/bin/true")
    shutil.rmtree(folder / "batch")
    watch = Watch(environment, folder)
    began = time.perf_counter()
    client = subprocess.Popen(
        [_batches.RUNAWAY, "batch", "-S", "--slots", "4", "-x", str(COUNT), "h1", "/bin/true"],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    first_s = planned_s = 0.0
    try:
        while not planned_s:
            counts = watch.ask()
            passed = time.perf_counter() - began
            if client.poll() is not None or passed > MOST_S:
                raise SystemExit(f"after {passed:.0f} s: status {client.poll()}, on record {counts}")
            if not first_s and sum(counts.values()) > 4 and {"running", "succeeded"} & set(counts):
                first_s = passed
            if sum(counts.values()) == COUNT:
                planned_s = passed
            time.sleep(0.5)
        for _ in range(QUESTIONS):
            counts = watch.ask()
        memory = peak_bytes(client.pid)
        answer_s, end_s = stop(client)
    finally:
        client.kill()
        client.wait()
    check(watch, folder)
    more: dict[str, Any] = {
        "all_on_record_s": round(planned_s, 1),
        "done_meanwhile": counts.get("succeeded", 0),
        "client_ended_s": round(end_s, 2),
        "ps_median_s": round(statistics.median(watch.answers), 2),
        "ps_cpu_s": round(max(watch.cpu), 2),
    }
    command = f"benches/batch_million.py: runaway batch -x {COUNT} h1 /bin/true"
    for name, value, unit in (
        ("memory", round(memory / (1 << 20)), "MiB"),
        ("first", round(first_s, 2), "s"),
        ("ps", round(max(watch.answers), 2), "s"),
        ("stop", round(answer_s, 2), "s"),
    ):
        _lab.report(f"batch_million_{name}", value, unit, better="lower", command=command, **more)


def stop(client: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Press Ctrl-C; returns the seconds until it says something, and until it has ended."""
    told: list[float] = []
    began = time.perf_counter()

    def listen() -> None:
        assert client.stderr is not None
        for line in client.stderr:
            if b"nothing new is started" in line:
                told.append(time.perf_counter() - began)

    listener = threading.Thread(target=listen)
    listener.start()
    client.send_signal(signal.SIGINT)
    status = client.wait(60)
    end_s = time.perf_counter() - began
    listener.join(10)
    if status != 130 or not told:
        raise SystemExit(f"Ctrl-C: ended with {status}, said something {len(told)} times")
    return told[0], end_s


def check(watch: Watch, folder: Path) -> None:
    """Nothing is lost: each is done, with its folder, or waits to be gone on with."""
    counts = watch.ask()
    done = counts.get("succeeded", 0)
    folders = sum(1 for _ in (folder / "batch").iterdir())
    if sum(counts.values()) != COUNT or set(counts) - {"succeeded", "planned", "waiting"}:
        raise SystemExit(f"after Ctrl-C: on record {counts}")
    if not done or folders != done:
        raise SystemExit(f"{done} are done, {folders} have left a folder")
    print(f"batch_million: {counts}", file=sys.stderr)


def main() -> None:
    with (
        _lab.lab() as lab,
        _lab.own_folders(lab.ssh_config) as environment,
        _batches.results_folder() as folder,
    ):
        measure(environment, folder)


if __name__ == "__main__":
    main()
