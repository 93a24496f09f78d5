"""Executions outlive the command that started them; another one goes on with them, exactly once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.cli.person import Person, lines, wait_until

#: Says a line, waits for a file of that name to appear in the home folder, says another, leaves a result, ends with 3.
WAITS = """
import os, sys, time
print("first", flush=True)
with open(os.path.expanduser("~/starts"), "a") as log:
    log.write("start\\n")
while not os.path.exists(os.path.expanduser("~/go")):
    time.sleep(0.02)
print("second", flush=True)
print("trouble", file=sys.stderr)
open("result.txt", "w").write("result")
sys.exit(3)
"""


def go(person: Person) -> None:
    (person.home / "go").touch()


def starts(person: Person) -> int:
    return len((person.home / "starts").read_text().splitlines())


def test_a_detached_execution_is_attached_to_and_ends_with_its_own_status(person: Person) -> None:
    person.write("waits.py", WAITS)
    detached = person.run("exec", "--detach", "local", "waits.py")
    assert detached.returncode == 0
    x = lines(detached.stdout)[0]
    wait_until("its start", (person.home / "starts").exists)
    listed = person.run("ps")
    assert f"{x[:8]} was left" in listed.stderr.decode()
    go(person)
    attached = person.run("attach", x[:8])
    assert attached.returncode == 3, attached.stderr
    assert lines(attached.stdout) == ["first", "second"]
    assert "trouble" in lines(attached.stderr)
    assert (person.folder / "result.txt").read_text() == "result"
    assert starts(person) == 1


def test_attaching_to_a_finished_one_prints_its_output_and_ends_with_its_status(person: Person) -> None:
    person.write("ends.sh", "echo out; echo err >&2; exit 4")
    assert person.run("exec", "local", "ends.sh").returncode == 4
    for _ in range(2):
        attached = person.run("attach", "--silent", "last")
        assert (attached.returncode, attached.stdout, attached.stderr) == (4, b"out\n", b"err\n")


def test_a_client_killed_while_it_runs_is_continued_without_a_byte_twice(person: Person) -> None:
    person.write("waits.py", WAITS)
    client = person.start("exec", "local", "waits.py")
    assert client.stdout is not None
    assert client.stdout.readline() == b"first\n"
    client.kill()
    client.wait()
    go(person)
    attached = person.run("attach", "last")
    assert attached.returncode == 3
    assert lines(attached.stdout) == ["first", "second"]
    assert (person.folder / "result.txt").read_text() == "result"
    assert starts(person) == 1
    assert [row["state"] for row in person.executions()] == ["failed"]
    left = (
        [entry.name for entry in (person.home / "orchestra").glob("*")]
        if (person.home / "orchestra").exists()
        else []
    )
    assert left == []


def test_what_ended_while_nobody_was_there_is_brought_home_later(person: Person) -> None:
    person.write("waits.py", WAITS)
    client = person.start("exec", "local", "waits.py")
    assert client.stdout is not None
    client.stdout.readline()
    client.kill()
    client.wait()
    go(person)
    wait_until("its result on the host", lambda: any((person.home / "orchestra").glob("*/result.txt")))
    assert person.run("wait", "last").returncode == 3
    assert (person.folder / "result.txt").read_text() == "result"
    assert person.run("logs", "last").stdout == b"first\nsecond\n"


def test_two_who_attach_both_see_all_of_it(person: Person) -> None:
    person.write("waits.py", WAITS)
    person.run("exec", "--detach", "local", "waits.py")
    both = [person.start("attach", "last") for _ in range(2)]
    for each in both:
        assert each.stdout is not None
        assert each.stdout.readline() == b"first\n"
    go(person)
    for each in both:
        out, _ = each.communicate(timeout=30)
        assert (each.returncode, out) == (3, b"second\n")
    assert starts(person) == 1


def test_an_execution_whose_client_lives_is_paused_resumed_and_killed_from_elsewhere(person: Person) -> None:
    ticks = person.write(
        "ticks.py",
        "import os, time\nwhile True:\n    open(os.path.expanduser('~/ticks'), 'a').write('x')\n    time.sleep(0.01)\n",
    )
    client = person.start("exec", "local", ticks.name)
    counted = person.home / "ticks"
    wait_until("ticks", counted.exists)
    assert person.run("pause", "last").stdout.endswith(b"is paused\n")
    before = counted.stat().st_size
    assert person.run("pause", "last").returncode == 0
    assert person.executions()[0]["state"] == "paused"
    assert counted.stat().st_size == before
    assert person.run("resume", "last").stdout.endswith(b"is running\n")
    wait_until("more ticks", lambda: counted.stat().st_size > before)
    assert b"runs on local" in person.run("explain", "last").stdout
    assert person.run("kill", "last").returncode == 0
    client.communicate(timeout=30)
    assert client.returncode != 0
    assert person.executions()[0]["state"] == "cancelled"
    assert person.run("pause", "last").returncode == 2
    assert b"cancelled" in person.run("explain", "last").stdout


def test_one_that_nobody_drives_is_killed_and_nothing_of_it_is_left(person: Person) -> None:
    person.write("stays.sh", "sleep 300 &\necho $$ > ~/pid\nwhile :; do sleep 0.1; done\n")
    person.run("exec", "--detach", "local", "stays.sh")
    pid = person.home / "pid"
    wait_until("its start", lambda: pid.exists() and bool(pid.read_text().strip()))
    group = int(pid.read_text())
    spent = person.run("kill", "last", "--json")
    assert b'"cancelled"' in spent.stdout, spent.stderr
    assert not Path(f"/proc/{group}").exists()
    assert not any((person.home / "orchestra").glob("*-*"))


def test_the_last_words_of_a_killed_driver_do_not_keep_others_out(person: Person) -> None:
    person.write("waits.py", WAITS)
    client = person.start("exec", "local", "waits.py")
    assert client.stdout is not None
    client.stdout.readline()
    first = person.start("attach", "last")
    assert first.stdout is not None
    assert first.stdout.readline() == b"first\n"
    os.kill(client.pid, signal.SIGKILL)
    go(person)
    out, err = first.communicate(timeout=30)
    assert (first.returncode, out) == (3, b"second\n"), err
    assert starts(person) == 1


def test_waiting_for_several_says_whether_all_succeeded(person: Person) -> None:
    ids = [
        lines(person.run("exec", "--detach", "local", "sh", "--", "-c", f"exit {code}").stdout)[0]
        for code in (0, 0, 7)
    ]
    assert person.run("wait", *ids[:2]).returncode == 0
    assert person.run("wait", *ids).returncode == 1
    assert person.run("wait", ids[2]).returncode == 7


def test_an_unknown_id_is_an_error_that_names_it(person: Person) -> None:
    done = person.run("attach", "zzzz")
    assert done.returncode == 2
    assert b"no execution 'zzzz'" in done.stderr
