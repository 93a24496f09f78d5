"""Promises about links, clocks and what a person sees: through `runaway` on the command line, over real sshds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import liborch
from tests.cli.person import Person, lines, wait_until
from tests.lab.hosts import Host, Lab
from tests.lab.test_links_torn import COUNTED, COUNTING, QUICK, SOON, Heard, ended, until_linked
from tests.transfer.test_hostile import HOSTILE_LINKS, HOSTILE_NAMES
from tests.transfer.trees import fingerprint, grow

pytestmark = pytest.mark.lab

MakeLab = Callable[..., Lab]

#: Debian's, for whatever processor.
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

#: libfaketime 0.9.10 refuses the sleeps of Python 3.11 and newer (to a moment of the monotonic clock) as invalid.
PYTHON_THAT_SLEEPS = """#!/bin/sh
[ "$1" = -I ] || exec /usr/bin/python3 "$@"
while [ "$1" = -I ] || [ "$1" = -S ]; do shift; done
exec /usr/bin/python3 -I -S -c '
import runpy, select, sys, time
time.sleep = lambda s: select.select((), (), (), s)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
' "$@"
"""


# ---------------------------------------------------------------- hosts that do not answer as they should


@contextlib.contextmanager
def rude_server(*, hangs_up: bool) -> Iterator[int]:
    """A port that takes connections and closes them at once, or says nothing for ever."""
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                if hangs_up:
                    connection.close()
                else:
                    kept.append(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for each in kept:
        each.close()


def is_refused_clearly(asker: Person, host: str, *told: bytes) -> None:
    """It ends with 255 before anybody loses patience, names the host, the reason and what to do, and leaves nothing."""
    asker.write("run.sh", "echo ran\n")
    done = asker.run("exec", host, "run.sh", timeout_s=60)
    assert (done.returncode, done.stdout) == (255, b""), done.stderr.decode()
    for each in (host.encode(), *told):
        assert each in done.stderr, (each, done.stderr.decode())
    assert b"Traceback" not in done.stderr
    assert sorted(path.name for path in asker.folder.iterdir()) == ["run.sh"]


def test_a_host_that_says_nothing_in_the_handshake_is_given_up(rough: Lab, asker: Person) -> None:
    with rude_server(hangs_up=False) as port:
        alias = rough.add_alias("mute", HostName="127.0.0.1", Port=port, ConnectTimeout=1)
        is_refused_clearly(asker, alias, b"accepted the connection", f"127.0.0.1:{port}".encode())


def test_a_host_that_hangs_up_at_once_is_given_up(rough: Lab, asker: Person) -> None:
    with rude_server(hangs_up=True) as port:
        alias = rough.add_alias("curt", HostName="127.0.0.1", Port=port, ConnectTimeout=1)
        is_refused_clearly(asker, alias, b"closed the connection", f"127.0.0.1:{port}".encode())


def test_a_host_without_sshd_and_one_without_an_address_are_told_apart(
    h1: Host, rough: Lab, asker: Person
) -> None:
    closed = rough.add_alias("closed", HostName=h1.address, Port=9)
    is_refused_clearly(asker, closed, b"refused the connection", h1.address.encode())
    is_refused_clearly(asker, "nowhere.invalid", b"does not resolve")


def test_a_host_without_bash_will_do(h1: Host, asker: Person) -> None:
    h1.bind("/bin/false", "/usr/bin/bash")
    try:
        # Root's login shell would be this bash.
        asker.write("run.sh", "echo made > made; echo hello; exit 4\n")
        done = asker.run("exec", "sue@h1", "run.sh")
        assert (done.returncode, done.stdout) == (4, b"hello\n"), done.stderr.decode()
        assert (asker.folder / "made").read_text() == "made\n"
        done = asker.run("exec", "h1", "run.sh")
        assert done.returncode == 255
        assert b"login" in done.stderr, done.stderr.decode()
    finally:
        h1.unbind("/usr/bin/bash")


# ---------------------------------------------------------------- links that die in silence


def established(host: Host) -> list[int]:
    """Ports of the clients that are connected to the host's sshd."""
    listed = host.in_network("ss", "-Htn", "state", "established", "sport", "=", ":22").stdout
    return [int(line.split()[3].rpartition(":")[2]) for line in listed.splitlines()]


def forget_connections(host: Host) -> None:
    """What a NAT does to a connection that was idle for long: nobody is told, its packets just do not arrive any more."""
    ports = established(host)
    assert ports
    for port in ports:
        for chain, mine, theirs in (("INPUT", "--dport", "--sport"), ("OUTPUT", "--sport", "--dport")):
            host.in_network(
                "iptables", "-I", chain, "-p", "tcp", mine, "22", theirs, str(port), "-j", "DROP"
            )  # fmt: skip


async def test_a_connection_that_a_nat_forgot_is_replaced_and_no_execution_minds(
    h1: Host, asker: Person
) -> None:
    async with liborch.open_host("h1", limits=QUICK, policy=SOON) as host:
        heard = Heard()
        counting = host.submit(COUNTING, on_output=heard)
        await heard.until(10)
        forget_connections(h1)
        # 0.3 s x (2 + 1), and room for a busy machine; the new one is let through.
        assert await until_linked(host, False) < 10
        assert await until_linked(host, True) < 15
        result = await ended(counting)
        assert (result.state, result.exit_code, result.attempts) == ("failed", 3, 1)
        assert heard.data == COUNTED
    assert {row["state"] for row in asker.executions()} == {"failed"}


@pytest.mark.soak
def test_a_forgotten_link_is_noticed_with_stock_settings_and_the_true_result_comes(
    h1: Host, asker: Person
) -> None:
    asker.write("run.sh", "echo first; while [ ! -e /tmp/nat-go ]; do sleep 0.1; done; echo last; exit 6\n")
    running = asker.start("exec", "h1", "run.sh")
    assert running.stdout is not None
    assert running.stdout.readline() == b"first\n"
    asker.wait_state("running")
    forget_connections(h1)
    h1.run("touch /tmp/nat-go")
    # It has ended by now, and nobody here can know: what is on record is that it runs.
    assert asker.executions()[0]["state"] == "running"
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (6, b"last\n"), err.decode()
    assert b"h1: " in err
    (row,) = asker.executions()
    assert (row["state"], row["exit_code"], row["attempt"]) == ("failed", 6, 1)


# ---------------------------------------------------------------- clocks


def use_clock(host: Host, **variables: object) -> None:
    """Let the host's sessions see another wall clock. Its monotonic one stays: no kernel lets that jump."""
    assert FAKETIME is not None, "apt-get install faketime"
    settings = {
        "LD_PRELOAD": FAKETIME,
        "DONT_FAKE_MONOTONIC": 1,
        "FAKETIME_DONT_FAKE_MONOTONIC": 1,
        **variables,
    }
    (host.sbin / "python3").write_text(PYTHON_THAT_SLEEPS)
    (host.sbin / "python3").chmod(0o755)
    host.stop_sshd(sessions=True)
    host.start_sshd(SetEnv=" ".join(f'"{name}={value}"' for name, value in settings.items()))


@pytest.mark.parametrize("offset", ["-2d", "+2d"])
def test_a_clock_two_days_off_decides_nothing_and_shows_only_in_doctor(
    make_lab: MakeLab, tmp_path: Path, offset: str
) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    use_clock(host, FAKETIME=offset)
    person = Person(tmp_path, lab.ssh_config)
    try:
        seen = person.run("doctor", "h1")
        clock = next(line for line in lines(seen.stdout) if " clock " in line)
        assert clock.startswith("warning"), seen.stdout.decode()
        assert ("behind" if offset == "-2d" else "ahead") in clock
        assert "2d" in clock or "1d23h" in clock
        asker_sees_true_times(person)
        walltime_is_kept(person)
        unchanged_files_are_known(person, host)
    finally:
        person.close()


def test_a_clock_that_is_set_meanwhile_ends_nothing_early_and_nothing_late(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    clock = host.home / "clock"
    clock.write_text("+0d\n")
    use_clock(host, FAKETIME_TIMESTAMP_FILE="/root/clock", FAKETIME_NO_CACHE=1)
    person = Person(tmp_path, lab.ssh_config)
    try:
        person.write("run.sh", "while [ ! -e /tmp/clock-go ]; do sleep 0.1; done; date +%s; exit 3\n")
        before = time.time()
        # One that nobody drives meanwhile, and whose lease and walltime are long; one whose walltime ends soon.
        left = person.run("exec", "--detach", "--time", "1h", "h1", "run.sh").stdout.decode().strip()
        for number, day in enumerate(("+2d", "-2d")):
            running = person.start("exec", "--time", "2s", "h1", "sleep", "--", "60")
            wait_until("its record", lambda n=number: len(person.executions()) == 2 + n)  # type: ignore[misc]
            person.wait_state("running", "failed")
            clock.write_text(day + "\n")
            assert abs(int(host_time(lab)) - time.time()) > 86400, "the host's clock was not set"
            running.communicate(timeout=60)
            assert running.returncode == 124
        host.run("touch /tmp/clock-go")
        done = person.run("attach", left)
        assert done.returncode == 3, done.stderr.decode()
        assert abs(int(done.stdout) - time.time()) > 86400
        after = time.time()
        for row in person.executions():
            assert before <= row["submitted_at"] <= row["started_at"] <= row["ended_at"] <= after, row
        assert [row["reason"] for row in person.executions()] == ["walltime", "walltime", "exit"]
    finally:
        person.close()


def host_time(lab: Lab) -> str:
    return lab.ssh("h1", "date +%s").stdout


def asker_sees_true_times(person: Person) -> None:
    person.write("run.sh", "date +%s; echo made > made\n")
    before = time.time()
    done = person.run("exec", "h1", "run.sh")
    after = time.time()
    assert done.returncode == 0, done.stderr.decode()
    assert abs(int(done.stdout) - before) > 86400, "the host's clock is right"
    (row,) = person.executions()
    assert before - 1 <= row["submitted_at"] <= row["started_at"] <= row["ended_at"] <= after + 1
    assert (person.folder / "made").read_text() == "made\n"
    # What ended just now is lately, and is not yet old enough to be cleaned.
    assert row["id"][:8] in person.run("ps").stdout.decode()
    assert b"nothing to remove" in person.run("clean", "--older", "1d", "--dry-run").stderr
    (person.folder / "made").unlink()


def walltime_is_kept(person: Person) -> None:
    began = time.monotonic()
    done = person.run("exec", "--time", "1s", "h1", "sleep", "--", "60")
    assert done.returncode == 124, done.stderr.decode()
    assert time.monotonic() - began < 30
    took = person.executions()[0]["duration_s"]
    assert 0.9 <= took <= 10


def unchanged_files_are_known(person: Person, host: Host) -> None:
    """Twice the same code: the second time nothing is sent, and nothing that was sent comes back."""
    person.write("data", "x" * 200_000)
    for again in (False, True):
        done = person.run("exec", "--leave", "code", "h1", "run.sh")
        assert done.returncode == 0, done.stderr.decode()
        assert (b"(0 B)" in done.stderr) == again, done.stderr.decode()
        assert b"fetching 1 files" in done.stderr
        (person.folder / "made").unlink()


# ---------------------------------------------------------------- what a person sees

#: Sets the title of a terminal, and could do worse.
TITLE = "\x1b]0;owned\x07\x9b2J"


def says(done: object, *, but: bytes = b"") -> bytes:
    """All that a command said; nothing in it steers a terminal, what the execution itself wrote (`but`) aside."""
    said: bytes = (done.stdout + done.stderr).replace(but, b"") if but else done.stdout + done.stderr  # type: ignore[attr-defined]
    assert b"Traceback" not in said, said.decode()
    for each in ("\x1b", "\x07", "\x9b"):
        assert each.encode() not in said, said
    assert b"\x9b" not in said.replace("\u009b".encode(), b""), said
    return said


def test_names_and_errors_that_would_steer_a_terminal_are_shown_harmless(
    h1: Host, rough: Lab, asker: Person
) -> None:
    script = f"run{TITLE}.sh"
    made = f"made{TITLE}"
    asker.write(script, f"printf '%s' '{TITLE}'; echo '{TITLE}' > '{made}'; exit 3\n")
    wrote = TITLE.encode()
    planned = says(asker.run("exec", "--dry-run", "h1", script, "--", TITLE))
    assert b"owned" in planned
    ran = asker.run("exec", "--verbose", "h1", script, "--", TITLE)
    assert (ran.returncode, ran.stdout) == (3, wrote)
    says(ran, but=wrote)
    assert (asker.folder / made).read_text() == TITLE + "\n"
    (row,) = asker.executions()
    for words in (
        ("ps",),
        ("ps", "--json", "--all"),
        ("show", "last"),
        ("show", "last", "--json"),
        ("explain", "last"),
        ("explain", "last", "--json"),
        ("fetch", row["id"], "--json"),
        ("clean", "--dry-run", row["id"]),
    ):
        assert b"owned" in says(asker.run(*words)) or words[0] in ("explain", "fetch", "clean"), words
    assert says(asker.run("logs", "last"), but=wrote) is not None
    mistakes: tuple[tuple[str, ...], ...] = (
        ("exec", "h1", f"missing{TITLE}.sh"),
        ("exec", TITLE, script),
        ("exec", "h1", script, "-o", f"x/${{RUNAWAY_{TITLE}}}"),
        ("exec", f"--{TITLE}", "h1", script),
        ("exec", "h1", script, "--time", TITLE),
        ("exec", "h1", script, "-r", f"/proc/{TITLE}/x"),
        ("exec", "h1", script, "-s", TITLE),
        ("show", TITLE),
        ("hosts", "show", TITLE),
        ("doctor", TITLE),
        (TITLE,),
    )
    for mistake in mistakes:
        done = asker.run(*mistake)
        assert done.returncode not in (0, 3), mistake
        assert b"owned" in says(done), mistake


def test_a_host_whose_answers_would_steer_a_terminal_is_quoted_harmless(
    h1: Host, rough: Lab, asker: Person
) -> None:
    alias = rough.add_alias("loud", HostName=h1.address, User="bob")
    (h1.home_of("bob") / ".bashrc").write_text(
        f"printf '%s\\n' '{TITLE}' >&2; printf '%s\\n' '{TITLE}'; exit 3\n"
    )
    try:
        asker.write("run.sh", "true\n")
        for words in (("exec", alias, "run.sh"), ("hosts", "check", alias), ("doctor", alias)):
            done = asker.run(*words)
            assert done.returncode == 255, words
            assert b"owned" in says(done), words
    finally:
        (h1.home_of("bob") / ".bashrc").unlink()


@pytest.mark.parametrize(
    "size", [20_000_000, pytest.param(100_000_000, marks=pytest.mark.soak)], ids=["20M", "100M"]
)
def test_bytes_arrive_as_they_were_written_whatever_they_are(h1: Host, asker: Person, size: int) -> None:
    asker.write(
        "run.py",
        "import hashlib, os, sys\n"
        "data = os.urandom(1 << 20) + b'\\0' * 1000 + b'\\xff\\xfe\\x1b]0;x\\x07' + b'x' * int(sys.argv[1]) + b'\\n'\n"
        "view = memoryview(data)\n"
        "while view: view = view[os.write(1, view):]\n"
        "os.write(2, hashlib.sha256(data).hexdigest().encode())\n",
    )
    done = asker.run("exec", "-S", "h1", "run.py", "--", str(size))
    assert done.returncode == 0
    assert len(done.stdout) == (1 << 20) + 1009 + size
    assert hashlib.sha256(done.stdout).hexdigest() == done.stderr.decode()
    # And once more, as it was kept.
    again = asker.run("logs", "last", "--stdout")
    assert hashlib.sha256(again.stdout).hexdigest() == done.stderr.decode()


# ---------------------------------------------------------------- nodes that lie, keys that change, links that hang

#: In the place of a node's own worker: honest, but for what it says that there is to fetch.
LIAR = """
import hashlib, os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import honest
ENTRIES = [(bytes.fromhex(name), bytes.fromhex(meta)) for name, meta in %r]
def fetch(link, head):
    link.send({"t": "list", "last": True}, b"".join(b"%%s\\0%%s\\0" %% entry for entry in ENTRIES))
    wanted, last = [], False
    while not last:
        head, body = link.receive()
        wanted += honest.numbers(body)
        last = head["last"]
    for k in wanted:
        link.send({"t": "small", "k": [k], "s": [4]}, hashlib.sha256(b"evil").digest() + b"evil")
    link.send({"t": "done"})
honest.SERVICES["fetch"] = fetch
sys.exit(honest.main(sys.argv))
"""

#: What no host may make here: devices, setuid files, and what is no description at all.
HOSTILE_KINDS = [
    (b"device", b"b m 0 0"),
    (b"tty", b"c m 0 0"),
    (b"root", b"s m 4 0"),
    (b"size", b"f m -1 0"),
    (b"odd", b""),
]


def test_what_a_lying_node_wants_written_elsewhere_is_refused_by_name(h1: Host, asker: Person) -> None:
    asker.write("run.sh", "exit 3\n")
    assert asker.run("exec", "h1", "run.sh").returncode == 3
    (agent,) = (h1.home / ".cache" / "orchestra").glob("agent-*")
    # Each under a name of its own: of a name listed twice, the second is refused for that.
    links = [
        (b"link%d" % n, to)
        for n, (_, to) in enumerate(HOSTILE_LINKS)
        if not to.startswith(b"d/") and b"x/" not in to
    ]
    entries = (
        [(name, b"f m 4 0") for name in HOSTILE_NAMES]
        + [(name, b"l m 0 0 " + to) for name, to in links]
        + HOSTILE_KINDS
    )
    good = [(b"good", b"f m 4 0"), (b"case", b"f m 4 0"), (b"CASE", b"f m 4 0")]
    (agent / "worker.py").rename(agent / "honest.py")
    lies = [(name.hex(), meta.hex()) for name, meta in entries + good]
    (agent / "worker.py").write_text(LIAR % (lies,))
    around = asker.root / "around"
    grow(
        around,
        {
            "canary": b"1",
            "outside/canary": b"2",
            "home/.bashrc": b"3",
            "home/work/canary": b"4",
            "home/work/target/mine": b"5",
            "home/work/target/door": ("l", b"../../../outside"),
            "home/work/target/file-door": ("l", b"../../../outside/canary"),
        },
    )
    target = around / "home/work/target"
    before = fingerprint(around)
    try:
        done = asker.run("exec", "--leave", "everything", "h1", "run.sh", "-o", str(target))
        # The execution's own end is what it is.
        assert done.returncode == 3, done.stderr.decode()
        again = asker.run("fetch", "last", "-o", str(target))
    finally:
        (agent / "honest.py").replace(agent / "worker.py")
    shown = asker.json("show", "last")
    assert (shown["state"], shown["exit_code"]) == ("failed", 3)
    refused = {path for path, _ in shown["refused"]}
    assert refused == {os.fsdecode(name) for name, _ in entries}
    for said in (says(done), says(again)):
        assert b"not fetched: ../canary: " in said
        assert said.count(b"not fetched: ") == len(entries)
    after = fingerprint(around)
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == {os.fsencode(target / name) for name in ("good", "case", "CASE")}


def test_a_changed_key_is_told_from_an_unknown_one_and_nothing_is_sent(
    h1: Host, rough: Lab, asker: Person
) -> None:
    asker.write("run.sh", "touch /tmp/never\n")
    h1.change_host_key()
    try:
        before = len(h1.sshd_log())
        done = asker.run("exec", "h1", "run.sh")
        assert done.returncode == 255
        said = done.stderr.decode()
        assert "HOST KEY CHANGED" in said
        assert len(set(re.findall(r"SHA256:\S+", said.replace(".", " ")))) == 2
        assert str(rough.known_hosts) in said
        # Nobody even tried to log in.
        assert "for root" not in h1.sshd_log()[before:]
        # Nor does --accept-new, which is for hosts never seen before.
        assert asker.run("exec", "--accept-new", "h1", "run.sh").returncode == 255
    finally:
        rough.trust()
    assert not h1.path("/tmp/never").exists()


def test_a_session_that_hangs_is_noticed_and_the_execution_ends_with_its_own_status(
    h1: Host, rough: Lab, asker: Person
) -> None:
    alias = rough.add_alias("watched", HostName=h1.address, ServerAliveInterval=1, ServerAliveCountMax=1)
    asker.write("run.sh", "echo first; while [ ! -e /tmp/hang-go ]; do sleep 0.1; done; echo last; exit 6\n")
    running = asker.start("exec", alias, "run.sh")
    assert running.stdout is not None
    assert running.stdout.readline() == b"first\n"
    asker.wait_state("running")
    stopped = [process.pid for process in h1.processes() if process.argv[0].startswith("sshd: root")]
    assert stopped
    for pid in stopped:
        h1.kill(pid, signal.SIGSTOP)
    try:
        h1.run("touch /tmp/hang-go")
        out, err = running.communicate(timeout=60)
    finally:
        for pid in stopped:
            h1.kill(pid, signal.SIGKILL)
    assert (running.returncode, out) == (6, b"last\n"), err.decode()
    assert f"{alias}: ".encode() in err
    assert asker.executions()[0]["attempt"] == 1
