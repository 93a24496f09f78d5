"""The picture of a batch: what is in it, that it fits, and that a terminal is as before when it ends."""

from __future__ import annotations

import io
import os
import pty

import pytest
from rich.console import Console

from runaway.batches.picture import NodeUse, Picture, draw
from runaway.batches.summary import Failure
from tests.cli.person import RUNAWAY, Person

NODES = [NodeUse(f"node{n}", 3, 4) for n in range(40)]
FAILURES = [Failure(f"{n}bcdef0123", "exit 1: bad \x1b[2J seed", ("one", "x" * 300)) for n in range(6)]
PICTURE = Picture(
    100_000, {"succeeded": 40_000, "failed": 6, "running": 120, "waiting": 59_874}, 1200.0, NODES, FAILURES
)


def lines(picture: Picture, width: int, height: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height).print(draw(picture, width, height))
    return out.getvalue().splitlines()


def test_it_says_how_far_it_is_where_and_what_failed() -> None:
    shown = "\n".join(lines(PICTURE, 120, 40))
    for words in (
        "40006/100000 40%  1200/s  50s left",
        "40000 succeeded  6 failed  120 running",
        "node0 3/4",
    ):
        assert words in shown
    assert shown.count("exit 1: bad") == 6


def test_no_time_is_promised_when_nothing_new_is_started() -> None:
    picture = Picture(10, {"succeeded": 4, "running": 2, "waiting": 4}, 2.0, is_ending=True)
    shown = "\n".join(lines(picture, 120, 40))
    assert "4/10 40%  nothing new is started" in shown
    assert " left" not in shown


@pytest.mark.parametrize("size", [(120, 40), (80, 24), (40, 10), (20, 5), (10, 2)])
def test_it_fits_however_small_the_terminal_is(size: tuple[int, int]) -> None:
    width, height = size
    shown = lines(PICTURE, width, height)
    assert 0 < len(shown) < height
    assert max(map(len, shown)) <= width
    assert "\x1b" not in "".join(shown)


def test_nodes_that_do_not_fit_are_summed_up_and_those_in_trouble_come_first() -> None:
    away = NodeUse("node99", 0, 4, "unreachable")
    shown = "\n".join(lines(Picture(10, {}, nodes=[*NODES, away]), 60, 8))
    assert "node99 unreachable" in shown
    assert "more nodes" in shown


def test_a_terminal_is_as_before_when_a_batch_ends(person: Person) -> None:
    person.write("run.sh", "sleep 0.7; echo bad >&2; exit 3\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(person.folder)
        words = [RUNAWAY, "batch", "local", "run.sh", "--slots", "1", "-x", "2"]
        os.execve(RUNAWAY, words, {**person.environment, "TERM": "xterm"})
    said = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            break  # The other end was closed.
        said += piece
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    drawn, _, after = said.rpartition(b"\x1b[2K")
    assert b"0/2" in drawn
    assert b"1 failed" in drawn
    assert b"\x1b[?25h" in drawn
    assert b"\x1b[?25l" not in after
    assert b"2 failed in" in after
