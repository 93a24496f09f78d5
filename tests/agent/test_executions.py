"""One execution on a node: what it is given, what comes back, byte for byte."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.agent.harness import Node, old_pythons

#: Prints its arguments and environment as JSON of base64.
SHOW = (
    "import base64, json, os, sys;"
    "b = lambda s: base64.b64encode(s).decode();"
    "print(json.dumps([[b(os.fsencode(a)) for a in sys.argv[1:]], {b(k): b(v) for k, v in os.environb.items()}]))"
)


def test_exit_codes_come_back_exactly_and_a_signal_is_told_apart_from_137(node: Node) -> None:
    client = node.client()
    codes = (0, 1, 2, 126, 127, 128, 130, 137, 143, 255)
    for code in codes:
        client.sh(f"c{code}", f"exit {code}")
    client.sh("killed", "kill -9 $$")
    for code in codes:
        end = client.ended(f"c{code}")
        assert (end["reason"], end["code"], end["signal"]) == ("exit", code, None)
    end = client.ended("killed")
    assert (end["reason"], end["code"], end["signal"]) == ("signal", None, 9)


def test_output_comes_as_it_was_written(node: Node) -> None:
    client = node.client()
    assert client.run("printf foo", "a")["out"] == "foo"
    assert client.run("echo '   x   '", "b")["out"] == "   x   \n"
    end = client.run("echo RUNAWAY_ECODE: 0; printf '\\033]0;t\\007\\000\\377' >&2; exit 3", "c")
    assert (end["code"], end["out"]) == (3, "RUNAWAY_ECODE: 0\n")
    assert end["err"].encode("latin-1") == b"\x1b]0;t\x07\x00\xff"


def test_a_hundred_thousand_lines_arrive_in_order(node: Node) -> None:
    client = node.client()
    end = client.run("seq 100000")
    assert end["files"]
    output = client.follow("x", final={"out": end["out_size"], "err": end.get("err_size", 0)})
    assert output.out == b"".join(b"%d\n" % n for n in range(1, 100_001))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """One agent for the two hundred examples below."""
    made = Node(tmp_path_factory.mktemp("shared"))
    yield made
    made.stop()


WORDS = st.binary(max_size=60).filter(lambda word: b"\0" not in word)
NAMES = st.from_regex(rb"\A[A-Za-z_][A-Za-z0-9_]{0,9}\Z").map(lambda name: b"X_" + name)
_numbers = iter(range(10**9))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, min_size=8, max_size=8), st.dictionaries(NAMES, WORDS, max_size=8))
def test_arguments_and_variables_arrive_byte_for_byte(
    shared: Node, words: list[bytes], env: dict[bytes, bytes]
) -> None:
    client = shared.clients[0] if shared.clients else shared.client()
    x = f"x{next(_numbers)}"
    argv = [sys.executable, "-I", "-S", "-c", SHOW, *map(os.fsdecode, words)]
    client.order((x, {"argv": argv, "env": {os.fsdecode(k): os.fsdecode(v) for k, v in env.items()}}))
    got_words, got_env = json.loads(client.ended(x)["out"])
    assert [base64.b64decode(word) for word in got_words] == words
    got = {base64.b64decode(k): base64.b64decode(v) for k, v in got_env.items()}
    assert {k: got.get(k) for k in env} == env


def test_words_a_shell_would_touch_are_not_touched(node: Node) -> None:
    client = node.client()
    client.order(("x", {"argv": ["printf", "%s|", "a b", 'c"d', "*", "$HOME", "it's;x", ""]}))
    assert client.ended("x")["out"] == "a b|c\"d|*|$HOME|it's;x||"


def test_bytes_arrive_also_where_the_login_has_another_encoding(make_node: Callable[..., Node]) -> None:
    for locale in ("C", "POSIX", "en_US.ISO-8859-1"):
        client = make_node(LC_ALL=locale, LANG=locale, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0").client()
        client.order(
            ("x", {"argv": ["printf", "%s", os.fsdecode("é\udcff".encode("utf-8", "surrogateescape"))]})
        )
        assert client.ended("x")["out"].encode("latin-1") == b"\xc3\xa9\xff"


def test_two_thousand_variables_and_a_long_argument_arrive(node: Node) -> None:
    client = node.client()
    env = {f"V{n}": "v" * 100 for n in range(2000)}
    client.order(("x", {"argv": ["/bin/sh", "-c", "env | grep -c ^V; printf %s \"$1\" | wc -c", "sh", "y" * 120_000],
                        "env": env}))  # fmt: skip
    assert client.ended("x")["out"].split() == ["2000", "120000"]


def test_what_cannot_be_given_to_a_program_is_an_end_with_a_reason(node: Node) -> None:
    client = node.client()
    client.order(("nul", {"argv": ["printf", "a\0b"]}), ("long", {"argv": ["printf", "y" * 200_000]}))
    client.order(("none", {"argv": []}), ("sum", {"argv": ["true"], "env": {"A": "x\0"}}))
    for x in ("nul", "long", "none", "sum"):
        end = client.ended(x)
        assert (end["reason"], end["code"]) == ("exit", 126), end
        assert end["why"]
    assert client.run("echo on", "after")["out"] == "on\n"


def test_programs_are_found_on_the_path_of_the_execution(node: Node) -> None:
    folder = node.home / "bin"
    folder.mkdir()
    (folder / "mine").write_text("#!/bin/sh\necho mine\n")
    (folder / "mine").chmod(0o755)
    client = node.client()
    client.order(("x", {"argv": ["mine"], "env": {"PATH": f"/nowhere:{folder}:/bin:/usr/bin"}}))
    assert client.ended("x")["out"] == "mine\n"
    client.order(("y", {"argv": ["mine"]}))
    end = client.ended("y")
    assert (end["code"], end["why"], end["err"]) == (
        127,
        "mine: command not found",
        "mine: command not found\n",
    )


def test_what_cannot_be_executed_says_why(node: Node) -> None:
    (node.home / "plain").write_text("x")
    (node.home / "lost").write_text("#!/nowhere/python9\n")
    (node.home / "lost").chmod(0o755)
    client = node.client()
    for x, argv, cwd, code, text in (
        ("a", ["./plain"], None, 126, "./plain: Permission denied"),
        ("b", ["./nothing"], None, 127, "./nothing: No such file or directory"),
        ("c", ["/bin"], None, 126, "/bin: Permission denied"),
        ("d", ["true"], "/nowhere", 127, "/nowhere: No such file or directory"),
        ("e", ["./lost"], None, 127, "./lost: its first line names /nowhere/python9, which is not there"),
    ):
        client.order((x, {"argv": argv, **({"cwd": cwd} if cwd else {})}))
        end = client.ended(x)
        assert (end["reason"], end["code"], end["why"]) == ("exit", code, text)
        assert end["err"] == text + "\n"


def test_a_script_without_a_first_line_runs_as_a_shell_would_run_it(node: Node) -> None:
    (node.home / "script").write_text("echo $1 from sh\n")
    (node.home / "script").chmod(0o755)
    client = node.client()
    client.order(("x", {"argv": ["./script", "hello"]}))
    assert client.ended("x")["out"] == "hello from sh\n"


def test_it_runs_in_its_folder_also_when_that_was_made_anew(node: Node) -> None:
    client = node.client()
    folder = node.home / "work"
    for turn in range(3):
        folder.mkdir()
        (folder / f"file{turn}").touch()
        assert client.run("ls; pwd", f"x{turn}", cwd=str(folder))["out"] == f"file{turn}\n{folder}\n"
        (folder / f"file{turn}").unlink()
        folder.rmdir()
    assert client.run("pwd", "home")["out"] == f"{node.home}\n"


def test_it_inherits_the_persons_umask_and_default_signals(make_node: Callable[..., Node]) -> None:
    old = os.umask(0o027)
    try:
        node = make_node()
        client = node.client()
    finally:
        os.umask(old)
    assert client.run("umask", "u")["out"].strip() in ("0027", "027")
    ignored = client.run("grep SigIgn /proc/self/status; grep SigBlk /proc/self/status", "s")["out"]
    # 32 and 33 are the C library's own.
    assert {int(line.split()[1], 16) & 0x7FFFFFFF for line in ignored.splitlines()} == {0}
    assert (os.stat(node.state).st_mode & 0o777, os.stat(node.state / "keeper.sock").st_mode & 0o777) == (
        0o700,
        0o600,
    )


def test_it_has_no_descriptor_of_ours_and_a_session_of_its_own(node: Node) -> None:
    client = node.client()
    client.sh("long", "sleep 30")
    client.event("started", "long")
    end = client.run("ls /proc/self/fd | wc -l; cut -d' ' -f1,5,6 /proc/$$/stat", "x")
    count, pids = end["out"].splitlines()
    assert int(count) == 4  # 0, 1, 2 and that of ls itself
    assert len(set(pids.split())) == 1


#: Prints policy, nice value and length of a turn of the process that runs it.
TURNS = (
    "import ctypes, os, struct;"
    "numbers = {'x86_64': 315, 'aarch64': 275, 'riscv64': 275, 'ppc64le': 356, 's390x': 346};"
    "seen = ctypes.create_string_buffer(48);"
    "call = ctypes.CDLL(None).syscall;"
    "call(ctypes.c_long(numbers[os.uname().machine]), PID, seen, 48, 0);"
    "fields = struct.unpack('=IIQiIQQQ', seen.raw);"
    "print(fields[1], fields[3], fields[5])"
)


def test_its_turns_on_a_processor_are_those_of_any_process_though_its_keeper_asks_for_short_ones(
    node: Node,
) -> None:
    client = node.client()
    usual = subprocess.run(
        [sys.executable, "-c", TURNS.replace("PID", "0")], capture_output=True, text=True, check=True
    ).stdout
    seen = client.run(shlex.join([sys.executable, "-c", TURNS.replace("PID", "0")]), "x")["out"]
    assert seen == usual
    # $$ is the shell that the keeper started.
    asked = TURNS.replace("PID", "int(open(f'/proc/{os.environ[\"SHELL_PID\"]}/stat').read().split()[3])")
    keeper = client.run(f"SHELL_PID=$$ {shlex.join([sys.executable, '-c', asked])}; true", "y")["out"]
    if tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 12):
        assert keeper.split() == [*usual.split()[:2], "100000"]


def test_it_is_told_who_and_where_it_is(node: Node) -> None:
    client = node.client()
    end = client.run("echo $RUNAWAY_UUID $RUNAWAY_HANDLE_ID $RUNAWAY_NODE_ID", "abc", node="n7")
    assert end["out"] == "abc 0 n7\n"


def test_measures_come_with_the_end(node: Node) -> None:
    client = node.client()
    client.order(("x", {"argv": [sys.executable, "-c", "x = bytearray(80 << 20); sum(range(1000000))"]}))
    end = client.ended("x")
    assert 80 << 20 < end["rss"] < 160 << 20
    assert 0.005 < end["cpu"] <= end["dur"] * 2


@pytest.mark.parametrize("python", old_pythons() or ["none"])
def test_the_agent_runs_on_older_pythons(python: str, make_node: Callable[..., Node], tmp_path: Path) -> None:
    if python == "none":
        pytest.skip("no Python from 3.6 to 3.10 on this machine")
    node = make_node(python=python)
    client = node.client()
    minor = [int(part) for part in client.hello["python"].split(".")][1]
    assert minor < 11
    assert client.run("printf '\\377'; exit 4", "a")["out"].encode("latin-1") == b"\xff"
    assert client.run("seq 100000", "b")["files"]
    assert client.follow("b", final={"out": 588895, "err": 0}).sizes["out"] == 588895
    client.sh("c", "trap '' TERM; sleep 60 & sleep 60", grace=0.2)
    client.event("started", "c")
    client.tell("pause", "c")
    client.event("paused", "c")
    client.tell("cancel", "c")
    assert client.ended("c")["reason"] == "cancelled"
    assert node.marked("c") == []
    client.order(("d", {"argv": ["sh", "-c", "tty; stty size"], "tty": [80, 24]}))
    assert client.ended("d")["out"].split()[1:] == ["24", "80"]
    node.kill("talker")
    again = node.client(client.owner, ack=0)
    assert [event[3] for event in again.events if event[2] == "ended"] == ["a", "b", "c", "d"]
