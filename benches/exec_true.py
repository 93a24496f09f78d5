"""How long `runaway exec HOST true` takes, the whole process, beside `ssh HOST true`, each with a connection of its own.

Warm: the agent runs on the host, as after any execution of the last minutes; the target is for this one. Fresh: its program
is cached there but it does not run. Beside both, as information, ssh through a ControlMaster that is up already.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import _lab
import _turns

ROUNDS = 9
HOST = "h1"
#: In the command line of the agent's processes.
AGENT = "/orchestra/agent-"


def end_agent(host: Any) -> None:
    """Kill the agent's processes, those of this lab's own host only."""
    from tests.lab.machine import wait_until

    for pid in host.pids_matching(AGENT):
        host.kill(pid)
    wait_until("the agent's end", lambda: not host.pids_matching(AGENT))


def check_host(runaway: str, environment: dict[str, str], folder: str) -> None:
    """Executions really happen there, and their statuses come back."""
    _, text = _turns.program_time([runaway, "exec", "-S", HOST, "hostname"], environment, folder)
    status = subprocess.run([runaway, "exec", "-S", HOST, "false"], env=environment, cwd=folder).returncode
    if text != b"h1\n" or status != 1:
        raise SystemExit(f"exec does not work: printed {text!r}, `false` ended with {status}")


def check_journal(environment: dict[str, str], count: int) -> None:
    """As many executions of `true` as were measured are on record, each with its own result."""
    from liborch.journal import Journal
    from liborch.places import places

    with Journal.open(places(environment).journal, readonly=True) as journal:
        rows = [row for row in journal.executions() if json.loads(row.spec)["argv"] == ["true"]]
    if len(rows) != count or any(row.state != "succeeded" or row.exit_code != 0 for row in rows):
        raise SystemExit(f"{len(rows)} executions are on record, {count} were run: {rows[:3]}")


def measure(lab: Any, environment: dict[str, str], folder: str) -> None:
    runaway = str(Path(sys.executable).with_name("runaway"))
    host = lab.host(HOST)
    config = str(lab.ssh_config)
    control = f"{folder}/control"
    multiplexed = ["ssh", "-F", config, "-o", f"ControlPath={control}"]
    count = 0

    def warm() -> float:
        nonlocal count
        count += 1
        return _turns.program_time([runaway, "exec", "-S", HOST, "true"], environment, folder)[0]

    def fresh() -> float:
        end_agent(host)
        return warm()

    def ssh() -> float:
        return _turns.program_time(["ssh", "-F", config, HOST, "true"])[0]

    def master() -> float:
        return _turns.program_time([*multiplexed, HOST, "true"])[0]

    check_host(runaway, environment, folder)
    subprocess.run(
        [*multiplexed, "-o", "ControlMaster=yes", "-fN", HOST], check=True, stderr=subprocess.DEVNULL
    )
    try:
        taken = _turns.in_turns(ROUNDS, ssh=ssh, fresh=fresh, warm=warm, ssh_again=ssh, master=master)
    finally:
        subprocess.run([*multiplexed, "-O", "exit", HOST], check=True, stderr=subprocess.DEVNULL)
    check_journal(environment, count)
    taken["ssh"] += taken.pop("ssh_again")
    found = _turns.medians(taken)
    more = {f"{name}_ms": _turns.milliseconds(seconds) for name, seconds in found.items()}
    for name, measured in (("exec_true", "warm"), ("exec_true_fresh", "fresh")):
        _lab.report(
            name,
            round(found[measured], 4),
            "s",
            ratio=round(found[measured] / found["ssh"], 2),
            better="lower",
            command=f"runaway exec -S HOST true ({measured}), beside ssh HOST true",
            rounds_ms=[_turns.milliseconds(seconds) for seconds in taken[measured]],
            **more,
        )


def main() -> None:
    with _lab.lab() as lab, _lab.own_folders(lab.ssh_config) as environment:
        folder = environment["XDG_CACHE_HOME"] + "-cwd"
        Path(folder).mkdir()
        measure(lab, environment, folder)


if __name__ == "__main__":
    main()
