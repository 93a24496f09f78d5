"""What a person reads: each thing once, and what to do about it."""

from __future__ import annotations

import subprocess

import pytest

from runaway.messages import Messages
from tests.cli.person import RUNAWAY, Person, lines


def test_a_cancelled_execution_is_called_so_once(person: Person) -> None:
    person.run("exec", "--detach", "local", "sleep", "--", "1000")
    person.run("kill", "last")
    assert lines(person.run("attach", "last").stderr) == ["cancelled"]
    (line,) = lines(person.run("explain", "last").stdout)
    assert line.endswith(": cancelled")


def test_a_command_that_the_host_does_not_have_is_named_once(person: Person) -> None:
    done = person.run("exec", "local", "nosuchcommand")
    assert done.returncode == 127
    assert done.stderr.count(b"nosuchcommand: command not found") == 1


def test_results_that_cannot_be_written_are_told_of_once(person: Person) -> None:
    person.write("run.sh", "echo made > made.txt")
    done = person.run("exec", "local", "run.sh", "-o", "/proc/nowhere")
    assert done.returncode == 255
    assert done.stderr.count(b"/proc/nowhere: ") == 1


def test_a_mistyped_host_is_told_the_nearest_one_that_is_known(person: Person) -> None:
    config = person.write("config", "Host cluster.invalid\n")
    done = person.run("exec", "clutser.invalid", "true", ORCHESTRA_SSH_CONFIG=str(config))
    assert done.returncode == 255
    told = lines(done.stderr)
    assert "clutser.invalid is no host that is known here; did you mean cluster.invalid?" in told
    assert not any("clutser.invalid: clutser.invalid" in line for line in told)


def test_an_empty_word_is_no_script(person: Person) -> None:
    done = person.run("exec", "local", "")
    assert (done.returncode, b"SCRIPT is empty" in done.stderr) == (2, True)


@pytest.mark.parametrize("words", [("logs", "last"), ("ps", "--json")])
def test_a_reader_that_goes_away_is_no_failed_execution(person: Person, words: tuple[str, ...]) -> None:
    assert person.run("exec", "local", "seq", "--", "100000").returncode == 0
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = subprocess.run(
        [RUNAWAY, *words], stdout=reader.stdin, stderr=subprocess.PIPE, env=person.environment, timeout=30
    )
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_progress_bar_never_wraps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("runaway.messages.width", lambda: 40)
    monkeypatch.setattr("runaway.messages.BAR_AFTER_S", 0.0)
    show = Messages({"TERM": "xterm"}).progress("sending")
    show(1 << 20, 1 << 30, 3, 10000)
    (_, bar) = capsys.readouterr().err.split("\x1b[K")
    assert 30 < len(bar) < 40


def test_results_that_stay_on_the_host_are_not_forgotten(person: Person) -> None:
    person.write("run.sh", "echo made > made.txt")
    done = person.run("exec", "local", "run.sh", "--on-local")
    x = person.executions()[0]["id"]
    assert lines(done.stderr)[-1] == f"its results stay on local: runaway fetch {x[:8]}"
    shown = person.run("show", "last").stdout.decode()
    assert f"ran in      $HOME/orchestra/{x}\n" in shown
