"""How long a key press takes: a host's name among 1,000 ssh aliases, and an execution's id among 10,000 in the journal.

Called as the completion scripts of the shells do, beside the bare interpreter it runs in; the slower of the two counts.
"""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import _lab
import _turns

from liborch.journal import Change, Group, Journal, NewExecution
from liborch.places import places

ROUNDS = 15
HOSTS = 1000
EXECUTIONS = 10_000


def fill_journal(environment: dict[str, str]) -> list[str]:
    """Executions that have ended, in batches; returns their ids."""
    path = places(environment).journal
    path.parent.mkdir(parents=True, mode=0o700)
    ids = [str(uuid.uuid4()) for _ in range(EXECUTIONS)]
    with Journal.open(path) as journal:
        for start in range(0, EXECUTIONS, 1000):
            batch = str(uuid.uuid4())
            journal.begin(batch, "batch", "bench")
            part = ids[start : start + 1000]
            new = [NewExecution(x, number, "train.py", "gpu", "{}") for number, x in enumerate(part)]
            ended = [Change(x, "succeeded", "exit", 0, None, "gpu", 1, 1e9, 1e9 + 1, "{}") for x in part]
            journal.commit([Group(batch, 1e9, len(part), b"", new, ended)])
            journal.end(batch, "ended")
    return ids


def write_hosts(path: Path) -> None:
    """An ssh configuration as a large site hands it out."""
    path.write_text(
        "".join(f"Host node{n:04}\n    HostName 10.0.{n // 250}.{n % 250}\n" for n in range(HOSTS))
    )


def main() -> None:
    runaway = str(Path(sys.executable).with_name("runaway"))
    with _lab.own_folders() as environment:
        config = Path(environment["XDG_CACHE_HOME"] + "-ssh")
        write_hosts(config)
        environment["ORCHESTRA_SSH_CONFIG"] = str(config)
        ids = fill_journal(environment)
        wanted = ids[EXECUTIONS // 2]

        def complete(words: list[str], expected: list[str]) -> float:
            seconds, output = _turns.program_time([runaway, "--complete", *words], environment)
            if output.decode().split() != expected:
                raise SystemExit(f"{words} completed to {output[:500]!r}, expected {expected}")
            return seconds

        def host() -> float:
            return complete(["exec", "node073"], [f"node073{n}" for n in range(10)])

        def execution() -> float:
            return complete(["logs", wanted[:8]], sorted(x for x in ids if x.startswith(wanted[:8])))

        def bare() -> float:
            return _turns.program_time([sys.executable, "-c", "pass"], environment)[0]

        taken = _turns.in_turns(ROUNDS, host=host, execution=execution, bare=bare)
    found = _turns.medians(taken)
    slower = max(found["host"], found["execution"])
    _lab.report(
        "completion",
        round(slower, 4),
        "s",
        ratio=round(slower / found["bare"], 2),
        better="lower",
        command="runaway --complete exec node073 / logs ID, beside python -c pass",
        **{f"{name}_ms": _turns.milliseconds(seconds) for name, seconds in found.items()},
    )


if __name__ == "__main__":
    main()
