"""What the reading commands say, and how little they need for it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from runaway.commands.completion import command as completion_command
from runaway.complete import SCRIPTS, candidates
from runaway.logs import Tail
from runaway.outputs import Neutral
from runaway.secrets import hide_values, hide_words
from tests.cli.person import Person, lines

READING = (
    "runaway.complete",
    "runaway.records",
    "runaway.outputs",
    "runaway.logs",
    "runaway.commands.ps",
    "runaway.commands.show",
)


@pytest.mark.parametrize("module", READING)
def test_commands_that_read_import_nothing_that_connects(module: str) -> None:
    code = f"import sys, {module}; print(*({{'asyncio', 'asyncssh', 'yaml', 'rich', 'liborch.drive.driver'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_terminal_is_never_steered_by_output() -> None:
    shown = Neutral()
    text = shown.feed(b"\x1b]0;title\x07 \x1b[31mred\x1b[0m \x1b[2J\xff \xc3")
    text += shown.feed(b"\xa9\n\x1b[3") + shown.feed(b"2mgreen")
    assert text.decode() == "\\x1b]0;title\\x07 \x1b[31mred\x1b[0m \\x1b[2J\\xff é\n\x1b[32mgreen"


def test_logs_on_a_terminal_show_what_would_steer_it(person: Person) -> None:
    person.run("exec", "local", "printf", "--", r"\033[2Jcleared\n")
    assert person.run("logs", "last").stdout == b"\x1b[2Jcleared\n"
    ours, theirs = pty.openpty()
    shown = subprocess.Popen(
        [sys.executable, "-m", "runaway", "logs", "last"],
        cwd=person.folder,
        env=person.environment,
        stdout=theirs,
    )
    os.close(theirs)
    assert shown.wait(30) == 0
    assert os.read(ours, 1000) == b"\\x1b[2Jcleared\r\n"
    os.close(ours)


@pytest.mark.parametrize(("wanted", "expected"), [(0, b""), (1, b"c\n"), (2, b"b\nc\n"), (9, b"a\nb\nc\n")])
def test_the_last_lines_are_whole_lines(wanted: int, expected: bytes) -> None:
    out: list[bytes] = []
    tail = Tail(wanted, lambda _name, data: out.append(data))
    for piece in (b"a\nb", b"\nc", b"\n"):
        tail.write("out", piece)
    tail.flush()
    assert b"".join(out) == expected


def test_values_of_names_that_look_like_secrets_are_hidden() -> None:
    shown = hide_values({"API_KEY": "x", "DB_PASSWORD": "x", "KEYBOARD": "us", "URL": "https://me:x@host/"})
    assert shown == {"API_KEY": "***", "DB_PASSWORD": "***", "KEYBOARD": "us", "URL": "https://me:***@host/"}
    assert hide_words(["--token", "x", "--lr", "1", "--api-key=x", "TOKEN=x"]) == [
        "--token", "***", "--lr", "1", "--api-key=***", "TOKEN=***",
    ]  # fmt: skip


def test_ps_shows_what_ended_and_how(person: Person) -> None:
    person.run("exec", "local", "sh", "--", "-c", "exit 5")
    head, row = lines(person.run("ps").stdout)
    assert head.split() == ["ID", "STATE", "HOST", "NODE", "AGE", "TOOK", "WHAT"]
    assert "failed (exit 5)" in row
    shown = person.json("show", "last")
    assert (shown["exit_code"], shown["exit_status"], shown["spec"]["argv"]) == (5, 5, ["sh", "-c", "exit 5"])
    assert shown["ended_at"] >= shown["started_at"]


def test_names_and_ids_complete(person: Person) -> None:
    ssh = person.home / ".ssh"
    ssh.mkdir()
    (ssh / "config").write_text("Host gpu1 gpu2\n    User me\n")
    person.run("exec", "local", "true")
    x = person.executions()[0]["id"]
    assert lines(person.run("--complete", "exec", "gp").stdout) == ["gpu1", "gpu2"]
    assert lines(person.run("--complete", "logs", x[:2]).stdout) == [x]
    assert lines(person.run("--complete", "kill", "").stdout) == []
    assert "--output-folder" in lines(person.run("--complete", "exec", "--ou").stdout)
    assert lines(person.run("--complete", "at").stdout) == ["attach"]
    person.write("run.sh", "exit 0\n")
    person.run("batch", "local", "run.sh")
    [batch] = person.run("ps", "--batches", "-q").stdout.decode().split()
    for words in (
        ("results",),
        ("show",),
        ("wait", x),
        ("ps", "--batch"),
        ("batch", "local", "s", "--batch"),
    ):
        assert batch in lines(person.run("--complete", *words, batch[:3]).stdout)
    assert batch not in lines(person.run("--complete", "kill", "").stdout)


def test_options_with_their_values_are_no_operands(person: Person) -> None:
    def complete(*words: str) -> list[str]:
        return person.run("--complete", *words).stdout.decode().split()

    assert complete("exec", "--leave", "") == ["nothing", "code", "everything"]
    assert complete("exec", "-l", "c") == ["code"]
    assert complete("exec", "-o", "") == []
    for before in (["-l", "code"], ["--time", "1h", "-S"], ["-V"]):
        assert complete("exec", *before, "loc") == ["local"]
        assert complete("exec", *before, "local", "loc") == []


def test_nothing_is_completed_behind_two_dashes() -> None:
    assert candidates(["exec", "local", "x.py", "--", ""], {"exec": ("", "")}) == []


def test_every_shell_has_a_script() -> None:
    (shell,) = (param for param in completion_command.params if param.name == "shell")
    assert set(SCRIPTS) == set(shell.type.choices)  # type: ignore[attr-defined]
    done = subprocess.run(["bash", "-n"], input=SCRIPTS["bash"], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_hosts_and_doctor_say_what_is_there(person: Person) -> None:
    profiles = person.root / "config" / "orchestra" / "hosts"
    profiles.mkdir(parents=True)
    (profiles / "desk.yaml").write_text("name: desk\nssh: local\n")
    listed = person.json("hosts", "list")
    assert [host["name"] for host in listed["hosts"]] == ["local", "desk"]
    assert person.json("hosts", "show", "desk")["ssh"] == "local"
    assert person.json("hosts", "check", "desk")["error"] is None
    examined = person.run("doctor", "local")
    assert examined.returncode == 0, examined.stdout
    assert [line.split()[1] for line in lines(examined.stdout) if line[0] != " "][:5] == [
        "profile", "agent", "clock", "directory", "limits",
    ]  # fmt: skip
    gone = person.run("doctor", "no.such.host.invalid")
    assert gone.returncode == 255
    assert b"does not resolve" in gone.stdout
