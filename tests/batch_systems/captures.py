"""Answers for tests: what batch systems printed, kept as files below `captured/`, or in the tests, as it would arrive.

Each folder's README says of which version its files are.
"""

from __future__ import annotations

from pathlib import Path

from liborch.batch_systems.base import Command, Output

FOLDER = Path(__file__).parent / "captured"
#: Seconds since 1970 on the frontend, where a test says nothing else.
NOW = 1795286893


def answer(code: int, stdout: bytes = b"", stderr: bytes = b"", *, now: int = NOW) -> Output:
    """Return the answer of a command that ended with `code` and printed this, as `_reading.shell` has it sent."""
    framed = b"orch-begin|%d\n%sorch-end|%d\n" % (now, stdout, code)
    return Output(0, framed, b"orch-begin\n" + stderr)


def captured(system: str, name: str, *, code: int = 0, stderr: bytes = b"") -> Output:
    """Return the answer whose stdout is `captured/SYSTEM/NAME.txt`; a first line of digits is the frontend's clock."""
    told = (FOLDER / system / f"{name}.txt").read_bytes()
    first, _, rest = told.partition(b"\n")
    return answer(code, rest, stderr, now=int(first)) if first.isdigit() else answer(code, told, stderr)


def changed(output: Output, old: str, new: str) -> Output:
    """Return an answer with something else in it."""
    told = output.stdout.decode()
    assert old in told
    return Output(output.code, told.replace(old, new).encode(), output.stderr)


def line_of(command: Command, program: str) -> str:
    """Return the line of a command's script that runs a program, without what comes before its name."""
    lines = command.stdin.decode().splitlines()
    return next(line for line in lines if f" {program} " in f" {line}").partition(f"{program} ")[2]
