"""Allocations by shell procedures, run for real: on this machine, in a home of their own."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from liborch.batch_systems.base import Accepted, Command, Output, Rejected, Request, Sight, Unclear, is_id
from liborch.batch_systems.procedures import Handles, Procedures
from liborch.errors import ProcedureError, SpecError
from liborch.profiles import procedures as shell
from liborch.specs import Procedures as Commands
from tests.batch_systems.captures import answer

TOKEN = "abc123"
ID = "0_abc123"


class Frontend:
    """Runs commands as a frontend would: through a shell, with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.system = Procedures(Commands())

    def commands(self, start: list[str], cancel: list[str] | None = None, **more: object) -> Procedures:
        self.system = Procedures(
            Commands(tuple(start), tuple(cancel or ()), **more),  # type: ignore[arg-type]
            {"RUNAWAY_X": "it's; $HOME\n", "RUNAWAY_PATH": "/scratch"},
        )
        return self.system

    def run(self, command: Command, **variables: str) -> Output:
        done = subprocess.run(
            command.argv, input=command.stdin, capture_output=True, timeout=30, cwd="/", check=False,
            env={"HOME": str(self.home), "PATH": os.environ["PATH"], **variables},
        )  # fmt: skip
        return Output(done.returncode, done.stdout, done.stderr)

    def submit(self, token: str = TOKEN) -> str:
        told = self.system.parse_submit(self.run(self.system.submit(Request(token))))
        assert isinstance(told, Accepted), told
        return told.id

    def sights(self, *ids: str) -> dict[str, Sight]:
        told = self.system.parse_query(self.run(self.system.query(ids)))
        assert isinstance(told, dict), told
        return told

    def wait(self, true: Callable[[Sight], bool], id: str = ID) -> Sight:
        end = time.monotonic() + 20
        while not true(sight := self.sights(id)[id]):
            assert time.monotonic() < end, sight
            time.sleep(0.02)
        return sight

    def cancel(self, *ids: str) -> Rejected | Unclear | None:
        return self.system.parse_cancel(self.run(self.system.cancel(ids)))

    def written(self, name: str) -> str:
        file = self.home / name
        return file.read_text() if file.exists() else ""


@pytest.fixture
def frontend(tmp_path: Path) -> Frontend:
    """A frontend with an empty home."""
    return Frontend(tmp_path)


def test_variables_and_folder_travel_from_start_to_cancel(frontend: Frontend) -> None:
    frontend.commands(
        ["mkdir -p 'a b'; cd 'a b'", 'export RUNAWAY_NODES=" n1  n2 "; RUNAWAY_Y="$RUNAWAY_X!"'],
        ['printf "%s|%s|%s" "$PWD" "$RUNAWAY_Y" "$RUNAWAY_NODES" > ~/cancelled'],
        allocation_duration_s=60.0,
    )
    assert frontend.submit() == ID
    assert is_id(ID)
    sight = frontend.wait(lambda sight: sight.state == "active")
    assert (sight.token, sight.nodes, sight.restarts) == (TOKEN, ("n1", "n2"), 0)
    assert sight.left_s is not None
    assert 40 < sight.left_s <= 60
    assert frontend.cancel(ID) is None
    assert frontend.written("cancelled") == f"{frontend.home}/a b|it's; $HOME\n!| n1  n2 "
    # It is told of to who asks for it, and not to others.
    assert frontend.sights(ID)[ID].end == "cancelled"
    assert frontend.sights() == {}


def test_a_token_starts_once_however_often_it_is_asked_for(frontend: Frontend) -> None:
    frontend.commands(["echo x >> ~/starts", "export RUNAWAY_NODES=n1"], ["echo x >> ~/ends"])
    command = frontend.system.submit(Request(TOKEN))
    running = [
        subprocess.Popen(command.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
                         env={"HOME": str(frontend.home), "PATH": os.environ["PATH"]})
        for _ in range(4)
    ]  # fmt: skip
    for each in running:
        assert frontend.system.parse_submit(Output(0, each.communicate(command.stdin)[0])) == Accepted(ID)
    frontend.wait(lambda sight: sight.state == "active")
    frontend.submit()
    assert frontend.written("starts") == "x\n"
    assert frontend.cancel(ID) is None
    assert frontend.cancel(ID, "0_neverwas") is None
    assert frontend.written("ends") == "x\n"


def test_a_start_without_nodes_says_what_is_missing_and_gives_back_what_it_got(frontend: Frontend) -> None:
    frontend.commands(["RUNAWAY_NODES='  '"], ["echo x >> ~/ends"])
    frontend.submit()
    sight = frontend.wait(lambda sight: sight.state == "ended")
    assert (sight.end, sight.nodes) == ("failed", ())
    assert "start_allocation: set RUNAWAY_NODES to nothing" in sight.why
    assert frontend.written("ends") == "x\n"
    frontend.commands(["true"])
    frontend.submit("other1")
    sight = frontend.wait(lambda sight: sight.state == "ended", "0_other1")
    assert "start_allocation: did not set RUNAWAY_NODES; expected a command such as `export" in sight.why


def test_a_start_that_fails_at_once_has_nothing_to_cancel(frontend: Frontend) -> None:
    frontend.commands(["echo no room >&2; exit 3", "export RUNAWAY_NODES=n1"], ["echo x >> ~/ends"])
    frontend.submit()
    sight = frontend.wait(lambda sight: sight.state == "ended")
    assert "ended with code 3 at command 1 of 2: 'echo no room >&2; exit 3'" in sight.why
    assert frontend.cancel(ID) is None
    assert frontend.written("ends") == ""


def test_a_start_that_fails_half_way_gives_back_what_it_got(frontend: Frontend) -> None:
    frontend.commands(["RUNAWAY_GOT=17", "false"], ["echo $RUNAWAY_GOT >> ~/ends"])
    frontend.submit()
    frontend.wait(lambda sight: sight.state == "ended")
    assert frontend.cancel(ID) is None
    assert frontend.written("ends") == "17\n"


def test_cancelled_while_it_starts_it_is_ended_and_what_it_had_got_is_given_back(frontend: Frontend) -> None:
    frontend.commands(
        ["RUNAWAY_GOT=17", "sleep 987; export RUNAWAY_NODES=n1"], ["echo $RUNAWAY_GOT >> ~/ends"]
    )
    frontend.submit()
    note = frontend.home / ".local/state/orchestra/allocations/abc123/note"
    end = time.monotonic() + 20
    while not (note.exists() and b"RUNAWAY_GOT" in note.read_bytes()):
        assert time.monotonic() < end
        time.sleep(0.02)
    sight = frontend.sights()[ID]
    assert (sight.state, sight.why) == ("queued", "start_allocation runs")
    pid = int((note.parent / "process").read_text().split()[0])
    assert frontend.cancel(ID) is None
    assert frontend.written("ends") == "17\n"
    assert frontend.sights(ID)[ID].end == "cancelled"
    # Whoever is left is dead, and waits to be reaped.
    group = [file.read_text() for file in Path("/proc").glob("[0-9]*/stat") if _is_there(file)]
    fields = [text.rpartition(")")[2].split() for text in group]
    assert [each for each in fields if int(each[2]) == pid and each[0] != "Z"] == []


def test_cancelled_in_its_first_command_it_had_got_nothing(frontend: Frontend) -> None:
    frontend.commands(["sleep 987", "export RUNAWAY_NODES=n1"], ["echo x >> ~/ends"])
    frontend.submit()
    frontend.wait(
        lambda sight: (frontend.home / ".local/state/orchestra/allocations/abc123/process").exists()
    )
    assert frontend.cancel(ID) is None
    assert (frontend.sights(ID)[ID].end, frontend.written("ends")) == ("cancelled", "")


def test_a_cancellation_that_fails_is_told_and_may_be_tried_again(frontend: Frontend) -> None:
    frontend.commands(["export RUNAWAY_NODES=n1"], ["echo x >> ~/ends; echo busy >&2; [ -e ~/free ]"])
    frontend.submit()
    frontend.wait(lambda sight: sight.state == "active")
    told = frontend.cancel(ID)
    assert isinstance(told, Rejected)
    assert told.is_retriable
    assert "ended with code 1: busy" in told.why
    assert frontend.sights()[ID].state == "active"
    (frontend.home / "free").touch()
    assert frontend.cancel(ID) is None
    assert frontend.written("ends") == "x\nx\n"


def test_a_start_that_was_killed_is_over_and_what_it_had_got_can_be_given_back(frontend: Frontend) -> None:
    frontend.commands(["RUNAWAY_GOT=17", "sleep 987"], ["echo $RUNAWAY_GOT >> ~/ends"])
    frontend.submit()
    folder = frontend.home / ".local/state/orchestra/allocations/abc123"
    end = time.monotonic() + 20
    while not ((folder / "note").exists() and b"RUNAWAY_GOT" in (folder / "note").read_bytes()):
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(int((folder / "process").read_text().split()[0]), signal.SIGKILL)
    sight = frontend.wait(lambda sight: sight.state == "ended")
    assert "was killed" in sight.why
    assert frontend.cancel(ID) is None
    assert frontend.written("ends") == "17\n"


def test_noise_fills_no_disk_and_changes_no_answer(frontend: Frontend) -> None:
    frontend.commands(
        [
            "head -c 5000000 /dev/zero; yes 'RUNAWAY_NODES=evil' | head -c 5000000",
            "export RUNAWAY_NODES=n1; echo end",
        ]
    )
    frontend.submit()
    assert frontend.wait(lambda sight: sight.state == "active").nodes == ("n1",)
    assert (frontend.home / ".local/state/orchestra/allocations/abc123/log").stat().st_size <= 1 << 20


def test_handles_are_got_where_start_allocation_left_off(frontend: Frontend) -> None:
    system = frontend.commands(["cd /usr", "export RUNAWAY_NODES='n1 n2' RUNAWAY_JOB=7"])
    frontend.submit()
    frontend.wait(lambda sight: sight.state == "active")
    outcome = system.parse_outcome(frontend.run(system.outcome(ID)))
    assert not isinstance(outcome, Unclear)
    assert outcome.folder == "/usr"
    system = frontend.commands(
        [], get_node_handles=("echo noise", 'export RUNAWAY_HANDLES=" $RUNAWAY_NODE_ID-$RUNAWAY_JOB  $PWD "')
    )
    handles = system.parse_handles(frontend.run(system.handles(outcome, "n2")))
    assert isinstance(handles, Handles)
    assert handles.words == ("n2-7", "/usr")
    assert handles.outcome.variables["RUNAWAY_X"] == "it's; $HOME\n"


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (("true",), "get_node_handles: did not set RUNAWAY_HANDLES; expected a command such as"),
        (("RUNAWAY_HANDLES=' '",), "get_node_handles: set RUNAWAY_HANDLES to nothing"),
        (("true", "exit 3"), "get_node_handles: ended with code 3 at command 2 of 2: 'exit 3'"),
    ],
)
def test_handles_that_are_missing_are_named(frontend: Frontend, commands: tuple[str, ...], said: str) -> None:
    system = frontend.commands([], get_node_handles=commands)
    command = system.handles(dataclasses.replace(_outcome(), folder="/gone"), "n1")
    with pytest.raises(ProcedureError, match=said):
        system.parse_handles(frontend.run(command))


def test_it_works_without_bash(frontend: Frontend) -> None:
    programs = frontend.home / "bin"
    programs.mkdir()
    for name in [
        "sh",
        "cat",
        "mkdir",
        "mv",
        "rm",
        "rmdir",
        "find",
        "date",
        "uname",
        "sed",
        "tr",
        "grep",
        "wc",
        "tail",
        "dd",
        "xargs",
        "sleep",
        "touch",
        "mktemp",
        "setsid",
    ]:
        found = subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=True)
        (programs / name).symlink_to(found.stdout.strip())
    run = frontend.run
    frontend.run = lambda command, **_: run(command, PATH=str(programs))  # type: ignore[method-assign]
    frontend.commands(
        ["RUNAWAY_GOT=17", "sleep 987; export RUNAWAY_NODES=n1"], ["echo $RUNAWAY_GOT >> ~/ends"]
    )
    frontend.submit()
    note = frontend.home / ".local/state/orchestra/allocations/abc123/note"
    frontend.wait(lambda sight: note.exists() and b"RUNAWAY_GOT" in note.read_bytes())
    assert frontend.cancel(ID) is None
    assert frontend.written("ends") == "17\n"


def test_what_cannot_be_is_refused_beforehand() -> None:
    with pytest.raises(SpecError, match="put them into start_allocation"):
        Procedures(Commands()).submit(Request(TOKEN, options=("-q", "long")))
    with pytest.raises(SpecError, match="begins with RUNAWAY"):
        Procedures(Commands(), {"PATH": "/evil"})
    with pytest.raises(ValueError, match="an id that is none"):
        Procedures(Commands()).cancel(["1; rm -rf ~"])


def test_a_node_is_put_into_the_proxy_command() -> None:
    system = Procedures(Commands(node_proxycommand="ssh front -W $RUNAWAY_NODE_ID:22"))
    assert system.proxycommand("n1") == "ssh front -W n1:22"
    assert Procedures(Commands()).proxycommand("n1") == ""


@pytest.mark.parametrize(
    "told",
    [
        b"<html>",
        b"abc123 started 1795286893 0 99\nshort\n\n",
        b"abc123 flying 1795286893 0 0\n\n\n",
        b"abc123 started 1795286893 0 3\nxyz\n\n",
        b"banner\nabc123 starting 0 0 0\n\n\n",
        b"abc123 starting 0 0 0\n\n\nmore\n",
        b"abc123 starting 0 0 0\n\n",
    ],
)
def test_an_answer_that_is_not_ours_is_none(told: bytes) -> None:
    system = Procedures(Commands())
    for output in (answer(0, told), answer(1, told), Output(0, told)):
        assert isinstance(system.parse_query(output), Unclear)
        assert isinstance(system.parse_submit(output), Unclear)
        assert isinstance(system.parse_cancel(output), Unclear)
    assert isinstance(system.parse_query(Output(None, answer(0).stdout)), Unclear)
    assert system.parse_query(answer(0, b"abc123 starting 0 0 0\n\n\n")) != {}
    assert system.parse_query(answer(0)) == {}


def _is_there(file: Path) -> bool:
    try:
        return bool(file.read_text())
    except OSError:
        return False


def _outcome() -> shell.Outcome:
    return shell.Outcome({"RUNAWAY_NODES": "n1"}, "/", 1)
