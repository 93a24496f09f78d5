"""Cases of a session on a node, through `runaway exec` and a real sshd: codes, bytes, shells, environments, leavings."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.person import RUNAWAY, Person
from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.lab


def say(asker: Person, script: str, *words: str | bytes, host: str = "h1", status: int | None = 0) -> bytes:
    """Run a script on the host; returns its stdout."""
    asker.write("run.sh", script)
    done = asker.run("exec", "-S", host, "run.sh", *(["--", *words] if words else []))
    assert status is None or done.returncode == status, (done.returncode, done.stderr.decode())
    return done.stdout


def test_codes_come_back_exactly(h1: Host, asker: Person) -> None:
    asker.write("run.sh", "exit $1\n")
    for code in (1, 2, 126, 127, 137, 255):
        assert asker.run("exec", "-S", "h1", "run.sh", "--", str(code)).returncode == code
    killed = asker.run("exec", "h1", "sh", "--json", "--", "-c", "kill -9 $$")
    result = json.loads(killed.stdout)
    assert (killed.returncode, result["signal"], result["exit_code"], result["reason"]) == (
        137,
        9,
        None,
        "signal",
    )


def test_output_is_what_was_written(h1: Host, asker: Person) -> None:
    assert say(asker, "printf foo") == b"foo"
    assert say(asker, 'echo "   x   "') == b"   x   \n"
    assert say(asker, "echo 'RUNAWAY_ECODE: 0'; exit 3", status=3) == b"RUNAWAY_ECODE: 0\n"
    assert say(asker, "seq 100000") == b"".join(b"%d\n" % n for n in range(1, 100001))


def test_arguments_arrive_byte_for_byte(h1: Host, asker: Person) -> None:
    odd = ["a b", 'c"d', "*", "$HOME", "it's;x", "", "-x", "--", "new\nline", "\\", b"\xff\xfe"]
    asker.write(
        "run.py", "import json, os, sys\nprint(json.dumps([os.fsencode(a).hex() for a in sys.argv[1:]]))\n"
    )
    done = asker.run("exec", "-S", "h1", "run.py", "--", *odd)
    assert [bytes.fromhex(word) for word in json.loads(done.stdout)] == [os.fsencode(word) for word in odd]


def test_five_hundred_random_arguments_and_nothing_of_them_on_the_ssh_command_line(
    h1: Host, asker: Person
) -> None:
    stream = hashlib.shake_256(b"arguments").digest(500 * 24)
    words = [stream[24 * n : 24 * n + 1 + stream[24 * n] % 23].replace(b"\0", b"'") for n in range(500)]
    canary = b"$(touch /tmp/canary)`touch /tmp/canary`;touch /tmp/canary"
    asker.write(
        "run.py",
        "import json, os, sys, glob\n"
        "shells = [open(p, 'rb').read() for p in glob.glob('/proc/[0-9]*/cmdline') if p.split('/')[2] != str(os.getpid())]\n"
        "print(json.dumps([os.fsencode(a).hex() for a in sys.argv[1:]]))\n"
        "print(sum(b'touch /tmp/canary' in line for line in shells))\n"
        "print(os.environb[b'ODD'].hex())\n",
    )
    done = asker.run("exec", "-S", "h1", "run.py", "--env", "ODD=a=b'\"\n$x", "--", canary, *words)
    argv, seen, odd = done.stdout.splitlines()
    assert [bytes.fromhex(word) for word in json.loads(argv)] == [canary, *words]
    assert (seen, bytes.fromhex(odd.decode())) == (b"0", b"a=b'\"\n$x")
    assert not h1.path("/tmp/canary").exists()


def test_an_argument_that_no_program_can_be_given_is_refused_before_anything_starts(
    h1: Host, asker: Person
) -> None:
    asker.write("run.sh", "echo ran\n")
    # The kernel takes no argument of this length for runaway itself, so it is given by a program.
    code = "import asyncio, liborch\nasync def main():\n  async with liborch.open_host('h1') as host: host.submit(['true', 'x' * 200_000])\nasyncio.run(main())"
    done = subprocess.run(
        [Path(RUNAWAY).with_name("python"), "-c", code],
        env=asker.environment,
        capture_output=True,
        check=False,
    )
    assert b"SpecError" in done.stderr
    assert b"131071" in done.stderr
    assert "h1" not in [each["host"] for each in asker.executions()]


def test_a_child_that_outlives_its_script_is_gone_unless_it_may_stay(h1: Host, asker: Person) -> None:
    began = time.monotonic()
    assert say(asker, "sleep 61 & echo done") == b"done\n"
    assert time.monotonic() - began < 8
    assert h1.pids_matching("sleep 61") == []


def test_daemons_and_terms_ignored_do_not_survive_a_cancel(h1: Host, asker: Person) -> None:
    asker.write(
        "run.sh",
        "trap '' TERM INT HUP; setsid sleep 62 & (setsid sh -c 'trap \"\" TERM; sleep 63' &) ; echo up; while :; do sleep 0.2; done\n",
    )
    running = asker.start("exec", "h1", "run.sh")
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    row = asker.wait_state("running")
    began = time.monotonic()
    killed = asker.run("kill", row["id"])
    assert killed.returncode in (0, 1, 130), killed.stderr.decode()
    running.communicate(timeout=30)
    assert running.returncode == 137, "it took a KILL"
    assert time.monotonic() - began < 20
    assert h1.pids_matching("sleep 62") == h1.pids_matching("sleep 63") == []


def test_time_is_kept_by_the_node(h1: Host, asker: Person) -> None:
    asker.write("run.sh", "echo begun; sleep 60\n")
    began = time.monotonic()
    done = asker.run("exec", "h1", "run.sh", "--time", "2s")
    assert (done.returncode, done.stdout) == (124, b"begun\n"), done.stderr.decode()
    assert 2 <= time.monotonic() - began < 12


@pytest.mark.parametrize("account", ["sue", "bob", "kim", "finn"])
def test_every_login_shell_will_do(h1: Host, rough: Lab, asker: Person, account: str) -> None:
    alias = rough.add_alias(f"as-{account}", HostName=h1.address, User=account)
    home = h1.home_of(account)
    noisy = {"bob": ".bashrc", "sue": ".profile", "kim": ".cshrc"}.get(account)
    if noisy:
        (home / noisy).write_text("echo welcome; echo to this host >&2\n")
    assert (
        say(asker, "printf '%s|' \"$@\"; id -un", "a b", "$x", host=alias) == f"a b|$x|{account}\n".encode()
    )


def test_an_account_that_may_not_log_in_is_named(h1: Host, rough: Lab, asker: Person) -> None:
    alias = rough.add_alias("as-nora", HostName=h1.address, User="nora")
    asker.write("run.sh", "true\n")
    done = asker.run("exec", alias, "run.sh")
    assert done.returncode == 255
    assert alias.encode() in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_login_that_hangs_up_prints_for_ever_or_is_full_is_said_clearly(
    h1: Host, rough: Lab, asker: Person
) -> None:
    alias = rough.add_alias("as-bob", HostName=h1.address, User="bob")
    asker.write("run.sh", "true\n")
    for startup in ("exit 3", "head -c 1000000 /dev/zero"):
        (h1.home_of("bob") / ".bashrc").write_text(startup + "\n")
        done = asker.run("exec", alias, "run.sh")
        assert done.returncode == 255, (startup, done.stderr.decode())
        assert b"login" in done.stderr
        assert b"Traceback" not in done.stderr
    (h1.home_of("bob") / ".bashrc").unlink()


def test_a_full_or_read_only_home_is_an_error_with_its_path(h1: Host, asker: Person) -> None:
    asker.write("big.bin", "x" * 3_000_000)
    asker.write("run.sh", "true\n")
    h1.fill_disk("/root/full", "1m")
    done = asker.run("exec", "h1", "run.sh", "-r", "/root/full/here")
    assert done.returncode == 255
    assert b"/root/full" in done.stderr
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr
    done = asker.run("exec", "h1", "run.sh", "-r", "/proc/here")
    assert done.returncode == 255
    assert b"/proc" in done.stderr


def test_other_hosts_that_cannot_be_used_are_named_with_the_reason(
    h1: Host, rough: Lab, asker: Person
) -> None:
    asker.write("run.sh", "true\n")
    hosts = {
        "no-such-host.invalid": b"no-such-host.invalid",
        rough.add_alias("refusing", HostName=h1.address, Port=9): b"refused",
        rough.add_alias("gone", HostName="10.213.255.77", ConnectTimeout=1): b"10.213.255.77",
    }
    for host, word in hosts.items():
        done = asker.run("exec", host, "run.sh")
        assert done.returncode == 255, (host, done.stderr.decode())
        assert word in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "size", [128 << 20, pytest.param(1 << 30, marks=pytest.mark.soak)], ids=["128M", "1G"]
)
def test_much_of_both_outputs_at_once_arrives_whole_in_little_memory(
    h1: Host, asker: Person, size: int
) -> None:
    asker.write(
        "run.py",
        f"import os, threading\nblock = bytes(range(256)) * 1024\n"
        f"def pour(fd):\n    for _ in range({size} // len(block)): os.write(fd, block)\n"
        "threads = [threading.Thread(target=pour, args=(fd,)) for fd in (1, 2)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n",
    )
    wanted = hashlib.sha256()
    for _ in range(size >> 18):
        wanted.update(bytes(range(256)) * 1024)
    little, _ = _memory_of(asker, asker.root / "none", "true")
    much, status = _memory_of(asker, asker.root / "much", "run.py")
    assert status == 0
    for name in ("out", "err"):
        with (asker.root / f"much.{name}").open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == wanted.hexdigest()
    assert much - little <= 64 << 20


def _memory_of(asker: Person, to: Path, script: str) -> tuple[int, int]:
    """Run a script; returns the most memory that runaway used, in bytes, and its status."""
    with Path(f"{to}.out").open("wb") as out, Path(f"{to}.err").open("wb") as err:
        running = asker.start("exec", "-S", "h1", script, stdout=out, stderr=err)
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss << 10, running.returncode
