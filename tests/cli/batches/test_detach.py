"""`runaway batch --detach`: what is still told to who began it, who drives afterwards, and what other commands can do with it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

from tests.cli.batches.test_attending import WAITS, batch
from tests.cli.batches.test_batch import count_lines
from tests.cli.person import RUNAWAY, Person, wait_until


def detach(person: Person, *words: str) -> str:
    """A batch in the background on two slots, which are taken until `go` is there; returns its id."""
    person.write("run.sh", WAITS.format(root=person.root))
    done = person.run("batch", "local", "run.sh", "--slots", "2", "--detach", "--", *words)
    assert done.returncode == 0, done.stderr.decode()
    id = done.stdout.decode().strip()
    assert batch(person)["id"] == id
    return id


def driver_of(person: Person, id: str) -> int:
    """The process that drives a batch."""
    return int(person.json("show", id)["client_pid"])


def end_driver(person: Person, id: str) -> None:
    """Kill whoever drives a batch, if anybody still does."""
    if batch(person)["driven"]:
        os.kill(driver_of(person, id), signal.SIGKILL)
        wait_until("its end", lambda: not batch(person)["driven"])


def test_it_is_seen_to_the_end_without_anybody_and_leaves_what_every_batch_leaves(person: Person) -> None:
    id = detach(person, "{1;2;3;4} 0")
    wait_until("two run", lambda: count_lines(person.root / "ran") == 2)
    pid = driver_of(person, id)
    assert os.getsid(pid) == pid
    assert {os.readlink(f"/proc/{pid}/fd/{n}") for n in (1, 2)} == {str(log(person, id))}
    (person.root / "go").touch()
    waited = person.run("wait", id)
    assert waited.returncode == 0, waited.stderr.decode()
    assert batch(person)["counts"] == {"succeeded": 4}
    assert len(list(person.folder.glob("batch/*/ecode"))) == 4
    wait_until("its last words", lambda: "4 succeeded" in log(person, id).read_text())
    assert log(person, id).stat().st_mode & 0o777 == 0o600


def log(person: Person, id: str) -> Path:
    return person.state / "orchestra/drivers" / f"{id}.log"


def test_the_end_of_the_terminal_does_not_reach_it(person: Person) -> None:
    person.write("run.sh", WAITS.format(root=person.root))
    words = [RUNAWAY, "batch", "local", "run.sh", "--slots", "2", "--detach", "--", "{1;2;3} 0"]
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(person.folder)
        # The shell of that terminal is there until it is closed.
        os.execvpe("sh", ["sh", "-c", '"$@"; cat', "sh", *words], person.environment)
    try:
        wait_until("two run", lambda: count_lines(person.root / "ran") == 2)
        wait_until("it is left", lambda: os.getsid(driver_of(person, "last")) != pid)
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    assert batch(person)["driven"]
    (person.root / "go").touch()
    assert person.run("wait", "last").returncode == 0
    assert batch(person)["counts"] == {"succeeded": 3}


def test_killed_in_the_background_whoever_attaches_goes_on(person: Person) -> None:
    id = detach(person, "{1;2;3;4;5;6} 0")
    wait_until("two run", lambda: count_lines(person.root / "ran") == 2)
    end_driver(person, id)
    assert batch(person)["state"] == "left"
    (person.root / "go").touch()
    done = person.run("attach", id)
    assert done.returncode == 0, done.stderr.decode()
    assert sorted((person.root / "ran").read_text().split()) == list("123456")


def test_ctrl_c_of_who_attached_leaves_it_running_and_says_so(person: Person) -> None:
    id = detach(person, "{1;2;3} 0")
    onlooker = person.start("attach", "-V", id)
    assert onlooker.stderr is not None
    while b"looking on" not in (line := onlooker.stderr.readline()):
        assert line
    os.kill(onlooker.pid, signal.SIGINT)
    _, said = onlooker.communicate(timeout=30)
    assert onlooker.returncode == 130
    assert f"{id[:8]} goes on without this command".encode() in said
    assert batch(person)["driven"]
    assert person.run("kill", id).returncode == 0
    assert batch(person)["state"] == "cancelled"
    assert count_lines(person.root / "ran") <= 2


def test_what_is_wrong_is_told_before_it_leaves(person: Person) -> None:
    person.write("run.sh", "exit 0\n")
    for host, words, status, text in (
        ("local", ("--", "{1;2"), 2, b"never closed"),
        ("local", ("--follow", "-x", "2"), 2, b"--follow"),
        ("nowhere.invalid", ("-x", "3"), 255, b"3 of 3 are left"),
    ):
        done = person.run("batch", host, "run.sh", "--detach", *words)
        assert (done.returncode, done.stdout) == (status, b""), done.stderr.decode()
        assert text in done.stderr


def test_ctrl_c_before_it_stands_is_that_of_any_batch(person: Person) -> None:
    key = person.root / "asked"
    config = person.write("../ssh_config", f"Host slow\n  ProxyCommand sh -c 'touch {key}; exec sleep 60'\n")
    person.environment["ORCHESTRA_SSH_CONFIG"] = str(config)
    command = person.start("batch", "slow", "true", "--detach", "-x", "3")
    wait_until("a connection is tried", key.exists)
    os.kill(command.pid, signal.SIGINT)
    out, said = command.communicate(timeout=30)
    assert (command.returncode, out) == (130, b""), said.decode()
    assert b"3 of 3 are left" in said
    assert not batch(person)["driven"]


def test_its_arguments_may_come_from_a_pipe_and_its_id_as_json(person: Person) -> None:
    line = f"seq 3 | {RUNAWAY} batch local echo --detach --json -A -"
    done = subprocess.run(
        ["sh", "-c", line], cwd=person.folder, env=person.environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert (said["kind"], said["log"]) == ("batch", str(log(person, said["id"])))
    assert person.run("wait", said["id"]).returncode == 0
    assert sorted(path.read_text() for path in person.folder.glob("batch/*/stdout")) == ["1\n", "2\n", "3\n"]


def test_a_resumed_batch_goes_to_the_background_too_and_one_that_is_done_ends(person: Person) -> None:
    id = detach(person, "{1;2;3} 0")
    end_driver(person, id)
    (person.root / "go").touch()
    for _ in range(2):
        done = person.run(
            "batch", "local", "run.sh", "--slots", "2", "--detach", "--resume", "--", "{1;2;3} 0"
        )
        assert (done.returncode, done.stdout.decode()) == (0, f"{id}\n"), done.stderr.decode()
        assert person.run("wait", id).returncode == 0
        # It sweeps for a moment after its last execution is on record.
        wait_until("its end", lambda: not batch(person)["driven"])
    assert sorted((person.root / "ran").read_text().split()) == list("123")


def test_who_follows_from_another_terminal_sees_what_runs_and_what_was_over_at_once(person: Person) -> None:
    person.write(
        "slow.sh", f'echo "a $1"; while [ ! -e {person.root}/go$1 ]; do sleep 0.05; done; printf "b $1"\n'
    )
    done = person.run("batch", "local", "slow.sh", "--slots", "1", "--detach", "--", "{1;2;3}")
    id = done.stdout.decode().strip()
    wait_until("one runs", lambda: batch(person)["counts"].get("running") == 1)
    onlooker = person.start("attach", "--follow", id)
    assert onlooker.stdout is not None
    # From its beginning, though it ran before anybody looked on.
    assert onlooker.stdout.readline().endswith(b" a 1\n")
    for n in (2, 3, 1):
        (person.root / f"go{n}").touch()
    out, said = onlooker.communicate(timeout=30)
    assert onlooker.returncode == 0, said.decode()
    lines = [line.split(" ", 1) for line in out.decode().splitlines()]
    assert [words for _, words in lines] == ["b 1", "a 2", "b 2", "a 3", "b 3"]
    folders = {folder.name[:8] for folder in person.folder.glob("batch/*")}
    assert {short for short, _ in lines} == folders
    wait_until("its last words", lambda: "3 succeeded" in person.run("logs", id).stdout.decode())
    assert person.run("logs", "-f", id).returncode == 2
    assert person.run("clean", "--all").returncode == 0
    assert not log(person, id).exists()


def test_who_follows_and_takes_over_prints_no_line_twice(person: Person) -> None:
    id = detach(person, "{1;2} 0")
    end_driver(person, id)
    follower = person.start("attach", "--follow", id)
    assert follower.stderr is not None
    while b"going on with" not in (line := follower.stderr.readline()):
        assert line
    (person.root / "go").touch()
    out, said = follower.communicate(timeout=30)
    assert (follower.returncode, out) == (0, b""), said.decode()
