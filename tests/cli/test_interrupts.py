"""Ctrl-C and its relatives, and programs that want a terminal: tried on pseudo-terminals."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import termios
import time

from tests.cli.person import RUNAWAY, Person, wait_until

LONG = "import os, time\nprint('up', flush=True)\nopen(os.path.expanduser('~/up'), 'w')\nwhile not os.path.exists(os.path.expanduser('~/go')): time.sleep(0.02)\nprint('done')\n"


class Terminal:
    """A command on a pseudo-terminal of its own."""

    def __init__(self, person: Person, *words: str) -> None:
        self.ours, theirs = os.openpty()
        self.resize(80, 24)
        self.seen = b""
        self.before = termios.tcgetattr(theirs)

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [RUNAWAY, *words], cwd=person.folder, env={**person.environment, "TERM": "xterm"},
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=take_terminal,
        )  # fmt: skip
        self.theirs = theirs

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: bytes, timeout_s: float = 30) -> None:
        """Read on until this was seen."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} not in {self.seen!r}"
            if select.select([self.ours], [], [], 0.1)[0]:
                self.seen += os.read(self.ours, 65536)

    def end(self, timeout_s: float = 30) -> int:
        """Its exit status."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.ours], [], [], 0.05)[0]:
                self.seen += os.read(self.ours, 65536)
        while select.select([self.ours], [], [], 0)[0]:
            self.seen += os.read(self.ours, 65536)
        self.after = termios.tcgetattr(self.theirs)
        os.close(self.theirs)
        os.close(self.ours)
        return self.process.returncode


def test_ctrl_c_while_packing_ends_at_once_and_nothing_was_begun(person: Person) -> None:
    person.write("long.py", LONG)
    for number in range(4000):
        (person.folder / f"file{number}").write_text(str(number))
    terminal = Terminal(person, "exec", "local", "long.py")
    terminal.expect(b"packing")
    terminal.type(b"\x03")
    assert terminal.end(5) == 130
    assert person.executions() == []


def test_the_first_ctrl_c_lets_it_finish_and_says_how_to_do_more(person: Person) -> None:
    person.write("long.py", LONG)
    terminal = Terminal(person, "exec", "local", "long.py")
    terminal.expect(b"up")
    person.wait_state("running")
    terminal.type(b"\x03")
    terminal.expect(b"Ctrl-C again cancels")
    (person.home / "go").touch()
    assert terminal.end() == 130
    assert b"done" in terminal.seen
    assert person.executions()[0]["state"] == "succeeded"


def test_the_second_ctrl_c_cancels_and_cleans_up(person: Person) -> None:
    person.write("long.py", LONG)
    terminal = Terminal(person, "exec", "local", "long.py")
    terminal.expect(b"up")
    person.wait_state("running")
    terminal.type(b"\x03")
    terminal.expect(b"Ctrl-C again cancels")
    terminal.type(b"\x03")
    assert terminal.end() == 130
    assert person.executions()[0]["state"] == "cancelled"
    assert not any((person.home / "orchestra").glob("*-*"))


def test_what_json_says_of_the_exit_status_is_the_exit_status(person: Person) -> None:
    person.write("run.py", "import os\n" + LONG)
    with person.start("exec", "--json", "local", "run.py") as command:
        wait_until("it runs", (person.home / "up").exists)
        person.wait_state("running")
        for _ in range(2):
            os.kill(command.pid, signal.SIGINT)
            assert command.stderr is not None
            while b"Ctrl-C again" not in (line := command.stderr.readline()):
                assert line
        out, _ = command.communicate(timeout=30)
    said = json.loads(out)
    assert command.returncode == said["exit_status"] == 130
    assert (said["state"], said["signal"]) == ("cancelled", 15)


def test_the_third_ctrl_c_leaves_at_once_what_was_asked_to_end(person: Person) -> None:
    person.write(
        "stubborn.sh", "trap '' TERM INT HUP\ntouch ~/up\necho up\nwhile [ ! -e ~/go ]; do sleep 0.05; done\n"
    )
    terminal = Terminal(person, "exec", "local", "stubborn.sh")
    terminal.expect(b"up\r\n")
    person.wait_state("running")
    for said in (b"Ctrl-C again cancels", b"leaves at once", b"was asked to end"):
        terminal.type(b"\x03")
        terminal.expect(said)
    assert terminal.end() == 130
    (person.home / "go").touch()
    assert person.run("wait", "last").returncode != 255
    assert person.executions()[0]["ended_at"] is not None


def test_a_closed_terminal_leaves_it_running(person: Person) -> None:
    person.write("long.py", LONG)
    client = person.start("exec", "local", "long.py")
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    client.send_signal(signal.SIGHUP)
    _, err = client.communicate(timeout=20)
    assert b"runaway attach" in err
    (person.home / "go").touch()
    attached = person.run("attach", "last")
    assert (attached.returncode, attached.stdout) == (0, b"up\ndone\n")


def test_a_reader_that_goes_away_does_not_end_it(person: Person) -> None:
    person.write(
        "talks.py",
        "import os, time\nwhile not os.path.exists(os.path.expanduser('~/go')):\n    print('x' * 100, flush=True)\n    time.sleep(0.01)\n",
    )
    client = person.start("exec", "local", "talks.py")
    assert client.stdout is not None
    client.stdout.readline()
    client.stdout.close()
    assert client.wait(20) == 141
    (person.home / "go").touch()
    assert person.run("wait", "last").returncode == 0


def test_ctrl_c_while_a_host_is_dead_ends_at_once(person: Person) -> None:
    # A port that takes connections and never says a word.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        terminal = Terminal(person, "exec", f"me@127.0.0.1:{silent.getsockname()[1]}", "true")
        wait_until("its record", lambda: bool(person.executions()))
        silent.accept()
        terminal.type(b"\x03")
        began = time.monotonic()
        assert terminal.end() == 130
        assert time.monotonic() - began < 5
    assert person.executions()[0]["state"] == "cancelled"


def test_a_full_screen_program_gets_keys_sizes_and_ctrl_c_and_gives_the_terminal_back(person: Person) -> None:
    person.write(
        "screen.py",
        """
import os, signal, sys, termios, tty
def size(*_):
    columns, rows = os.get_terminal_size(0)
    sys.stdout.write(f"<{columns}x{rows}>"); sys.stdout.flush()
signal.signal(signal.SIGWINCH, size)
signal.signal(signal.SIGINT, lambda *_: (sys.stdout.write("<interrupted>"), sys.stdout.flush()))
before = termios.tcgetattr(0)
tty.setcbreak(0)
sys.stdout.write("\\x1b[?1049h<screen>"); size()
while (key := os.read(0, 1)) != b"q":
    sys.stdout.write(f"<key {key.decode()}>"); sys.stdout.flush()
sys.stdout.write("\\x1b[?1049l<bye>")
sys.exit(7)
""",
    )
    terminal = Terminal(person, "exec", "--tty", "--silent", "local", "screen.py")
    terminal.expect(b"\x1b[?1049h<screen><80x24>")
    terminal.type(b"j")
    terminal.expect(b"<key j>")
    terminal.resize(100, 30)
    terminal.expect(b"<100x30>")
    terminal.type(b"\x03")
    terminal.expect(b"<interrupted>")
    terminal.type(b"q")
    assert terminal.end() == 7
    assert b"<bye>" in terminal.seen
    assert terminal.after == terminal.before
