"""Groups and executions for the tests of the journal."""

from __future__ import annotations

from pathlib import Path

from liborch.journal import Change, Group, Journal, NewExecution


def name(number: int, orchestration: str = "o1") -> str:
    return f"{number:08x}-{orchestration}"


def entering(number: int, orchestration: str = "o1", *, payload: bytes = b"entered") -> Group:
    """One execution enters."""
    new = NewExecution(name(number, orchestration), number, f"label {number}", "local", '{"argv":["true"]}')
    return Group(orchestration, 1000.0 + number, 1, payload, [new])


def ending(number: int, orchestration: str = "o1", exit_code: int = 0) -> Group:
    """It is placed and ends."""
    id = name(number, orchestration)
    placed = Change(id, "placed", node="n1", attempt=1, started_at=2000.0)
    ended = Change(id, "succeeded", "exited", exit_code, ended_at=3000.0, record='{"cpu_s":0.1}')
    return Group(orchestration, 3000.0, 2, b"placed and ended", (), [placed, ended])


def begun(path: Path, *orchestrations: str) -> Journal:
    """A journal with orchestrations in it."""
    journal = Journal.open(path)
    for orchestration in orchestrations or ("o1",):
        journal.begin(orchestration, "batch", f"title of {orchestration}")
    return journal
