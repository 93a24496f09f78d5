"""A batch seen from another terminal, or by whoever comes after its client: attach, wait, kill, explain, ps."""

from __future__ import annotations

import json
import subprocess
from collections import Counter

import pytest

from liborch.errors import UnknownName
from liborch.journal import Change, Group, Journal, NewExecution
from liborch.places import places
from runaway.records import Records
from tests.cli.batches.test_batch import count_lines
from tests.cli.person import Person, wait_until

WAITS = 'echo "$1" >> {root}/ran; while [ ! -e {root}/go ]; do sleep 0.05; done; exit "$2"\n'


def begin(person: Person, *words: str) -> subprocess.Popen[bytes]:
    """A batch on two slots, both of which are taken until `go` is there."""
    person.write("run.sh", WAITS.format(root=person.root))
    client = person.start("batch", "local", "run.sh", "--slots", "2", "--", *words)
    # On record, too: who is killed before it was cannot have told anybody.
    wait_until("two run", lambda: [b for b in batches(person) if b["counts"].get("running") == 2] != [])
    assert count_lines(person.root / "ran") == 2
    return client


def batches(person: Person) -> list[dict]:
    """The lines of `ps --batches`."""
    return [json.loads(line) for line in person.run("ps", "--batches", "--json").stdout.splitlines()]


def batch(person: Person) -> dict:
    """The only one."""
    [line] = batches(person)
    return line


def begin_and_kill(person: Person, *words: str) -> str:
    """A batch whose client is gone; returns its id."""
    client = begin(person, *words)
    client.kill()
    client.communicate()
    return str(batch(person)["id"])


def test_who_attaches_to_a_batch_that_nobody_drives_goes_on_with_it(person: Person) -> None:
    left = begin_and_kill(person, "{1;2;3;4;5;6} 0")
    found = batch(person)
    assert (found["state"], found["executions"], found["counts"]) == ("left", 6, {"running": 2, "waiting": 4})
    (person.root / "go").touch()
    done = person.run("attach", left[:6])
    assert done.returncode == 0, done.stderr.decode()
    assert b"6 of 6 are left" in done.stderr
    assert b"6 succeeded" in done.stderr
    assert sorted((person.root / "ran").read_text().split()) == list("123456")
    assert len(list(person.folder.glob("batch/*/ecode"))) == 6
    assert batch(person)["state"] == "succeeded"
    again = person.run("attach", left)
    assert again.returncode == 0
    assert b"has ended: 6 succeeded" in again.stderr


def test_who_attaches_to_a_batch_that_is_driven_looks_on_and_ends_with_it(person: Person) -> None:
    client = begin(person, "{1;2;3;4} {0;3}")
    id = str(batch(person)["id"])
    onlooker = person.start("attach", "-V", id)
    waiter = person.start("wait", "last")
    assert onlooker.stderr is not None
    while b"looking on" not in (line := onlooker.stderr.readline()):
        assert line
    (person.root / "go").touch()
    assert client.wait(30) == onlooker.wait(30) == waiter.wait(30) == 1
    assert b"4 failed, 4 succeeded" not in onlooker.stderr.read()
    assert batch(person)["counts"] == {"failed": 4, "succeeded": 4}


def test_an_onlooker_takes_over_when_the_client_is_killed(person: Person) -> None:
    client = begin(person, "{1;2;3;4} 0")
    onlooker = person.start("attach", "-V", "last")
    assert onlooker.stderr is not None
    while b"looking on" not in (line := onlooker.stderr.readline()):
        assert line
    client.kill()
    while b"going on" not in (line := onlooker.stderr.readline()):
        assert line
    (person.root / "go").touch()
    assert onlooker.wait(30) == 0
    assert sorted((person.root / "ran").read_text().split()) == list("1234")


def test_a_reader_that_goes_away_leaves_the_batch_to_go_on_with(person: Person) -> None:
    person.write("run.sh", f'echo "$1" >> {person.root}/ran; echo "line $1"; [ "$1" = 1 ] || sleep 0.5\n')
    for how in ("--json", "--follow"):
        client = person.start("batch", "local", "run.sh", "--slots", "1", how, "--", "{1;2;3;4}")
        assert client.stdout is not None
        assert client.stderr is not None
        assert client.stdout.readline()
        client.stdout.close()
        said = client.stderr.read()
        assert client.wait(30) == 141, said.decode()
        assert b"stdout was closed" in said
        assert b"go on: the same command with --resume" in said
        assert b"Traceback" not in said
        assert person.run("attach", "last").returncode == 0
    assert sorted((person.root / "ran").read_text().split()) == sorted("1234" * 2)


def test_nobody_has_to_read_what_is_said_about_it(person: Person) -> None:
    person.write("run.sh", "sleep 0.3\n")
    client = person.start("batch", "local", "run.sh", "-V", "--slots", "1", "-x", "3")
    assert client.stderr is not None
    client.stderr.readline()
    client.stderr.close()
    assert client.wait(30) == 0
    assert batch(person)["counts"] == {"succeeded": 3}


def test_killing_a_batch_ends_what_runs_and_starts_nothing_more(person: Person) -> None:
    client = begin(person, "{1;2;3;4;5} 0")
    id = str(batch(person)["id"])
    done = person.run("kill", id[:8], "--json")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["state"] == "cancelled"
    assert client.wait(30) == 1
    assert batch(person)["counts"] == {"cancelled": 5}
    assert count_lines(person.root / "ran") == 2
    again = person.run("kill", id)
    assert again.returncode == 0
    assert b"has ended already: 5 cancelled" in again.stderr


def test_killing_a_batch_that_nobody_drives_ends_it_too(person: Person) -> None:
    left = begin_and_kill(person, "{1;2;3;4;5} 0")
    done = person.run("kill", left)
    assert done.returncode == 0, done.stderr.decode()
    assert batch(person)["counts"] == {"cancelled": 5}
    assert batch(person)["state"] == "cancelled"
    assert count_lines(person.root / "ran") == 2


def test_killing_one_execution_of_a_left_batch_leaves_the_rest_to_go_on_with(person: Person) -> None:
    left = begin_and_kill(person, "{1;2;3} 0")
    [first, *_] = person.run("ps", "--batch", left, "-q").stdout.decode().split()
    assert person.run("kill", first).returncode == 0
    found = batch(person)
    assert (found["state"], found["executions"], found["counts"]["cancelled"]) == ("left", 3, 1)
    (person.root / "go").touch()
    assert person.run("attach", left).returncode == 1
    assert batch(person)["counts"] == {"cancelled": 1, "succeeded": 2}
    assert len(list(person.folder.glob("batch/*/ecode"))) == 3


def test_explain_says_how_far_a_batch_is_and_why_the_rest_waits(person: Person) -> None:
    client = begin(person, "{1;2;3;4} 0")
    id = str(batch(person)["id"])
    said = person.run("explain", id[:8]).stdout.decode()
    assert f"{id[:8]} is running: 2 running" in said
    assert "local: 2 of 2 slots in use" in said
    client.kill()
    client.communicate()
    assert f"runaway attach {id[:8]}" in person.run("explain", id).stdout.decode()
    person.run("kill", id)


def test_ps_sums_a_batch_up_with_its_last_failures(person: Person) -> None:
    person.write("run.sh", 'echo "bad seed $1" >&2; exit 7\n')
    person.run("batch", "local", "run.sh", "--", "{1;2}")
    said = person.run("ps").stdout.decode()
    assert "2 failed" in said.splitlines()[1]
    assert said.count("failed: exit 7: bad seed") == 2
    assert len(person.run("ps", "--all", "-q").stdout.split()) == 2


def entered(person: Person, batch_id: str, execution_id: str) -> Records:
    folders = places(person.environment)
    with Journal.open(folders.journal) as journal:
        journal.begin("e0000000", "exec", "one")
        journal.commit([Group("e0000000", 1.0, 0, b"", [NewExecution(execution_id, 1, "", "local", "{}")])])
        journal.begin(batch_id, "batch", "many", "{}", "{}")
        new = [NewExecution(f"x{n}", n, "", "local", "{}", "planned") for n in range(1, 5)]
        journal.commit([Group(batch_id, 1.0, 0, b"", new)])
    return Records(folders)


def test_a_prefix_of_an_execution_and_of_a_batch_is_told(person: Person) -> None:
    records = entered(person, "abc1", "abc2")
    with pytest.raises(UnknownName, match="the batch abc1 and the execution abc2 begin so"):
        records.find_any("abc")
    assert records.find_any("abc1").id == records.find_any("last").id == "abc1"
    assert records.find_any("abc2").id == "abc2"
    with pytest.raises(UnknownName, match="the batch abc1 begins so"):
        records.find("abc1")


def test_counts_know_what_is_planned_what_ended_and_what_was_done_again(person: Person) -> None:
    records = entered(person, "b", "e")
    with Journal.open(records.folders.journal) as journal:
        ends = [Change("x1", "failed", ended_at=2.0), Change("x2", "lost", ended_at=3.0)]
        journal.commit([Group("b", 1.0, 0, b"", (), [*ends, Change("x3", "running")])])
        assert journal.counts("b") == {"failed": 1, "lost": 1, "running": 1, "planned": 1}
        assert [row.id for row in journal.last_failures("b", 5)] == ["x2", "x1"]
        again = NewExecution("y", 5, "", "local", "{}", "planned", replaces="x1")
        journal.commit([Group("b", 1.0, 0, b"", [again])])
        assert journal.counts("b") == {"lost": 1, "running": 1, "planned": 2}
        assert [row.id for row in journal.each_result("b")] == ["x2", "x3", "x4", "y"]
        assert journal.withdraw("b", 9.0) == 2
        assert journal.withdraw("b", 9.0) == 0
        assert journal.counts("b") == {"lost": 1, "running": 1, "cancelled": 2}


def test_counts_are_those_of_looking_at_each_whatever_was_withdrawn_and_added(person: Person) -> None:
    """Counting relies on what is planned coming behind what was submitted: also after a kill, and with another plan."""

    def check() -> int:
        records = Records(places(person.environment))
        [row] = records.journal.orchestrations(kind="batch")
        each = Counter(execution.state for execution in records.journal.each_result(row.id))
        assert records.journal.counts(row.id) == dict(each)
        return sum(each[state] for state in ("succeeded", "failed", "lost"))

    def run_until(ended: int, *words: str) -> None:
        client = person.start("batch", "local", "true", "-A", "../lines", *words)
        wait_until(
            "some have ended", lambda: sum(x["counts"].get("succeeded", 0) for x in batches(person)) >= ended
        )
        client.kill()
        client.communicate()

    lines = person.write("../lines", "".join(f"{n}\n" for n in range(6000)))
    run_until(20)
    done = check()
    lines.write_text("".join(f"{n}\n" for n in range(7000, 0, -2)))
    run_until(done + 50, "--resume")
    assert check() > done
    assert person.run("kill", "last").returncode == 0
    check()
    assert batch(person)["driven"] is False


def test_followed_lines_say_whose_they_are_and_stay_whole(person: Person) -> None:
    # One is over at once, the others are seen to run.
    person.write("run.sh", 'echo "a $1"; [ "$1" = 1 ] || sleep 0.6; echo "e $1" >&2; printf "b $1"\n')
    done = person.run("batch", "local", "run.sh", "--follow", "--", "{1;2;3}")
    assert done.returncode == 0, done.stderr.decode()
    shorts = {folder.name[:8] for folder in person.folder.glob("batch/*")}
    said = [line.split(" ", 1) for line in done.stdout.decode().splitlines()]
    assert sorted(words for _, words in said) == ["a 1", "a 2", "a 3", "b 1", "b 2", "b 3"]
    assert {short for short, _ in said} == shorts
    assert {line[9:] for line in done.stderr.decode().splitlines() if line[:8] in shorts} == {
        "e 1",
        "e 2",
        "e 3",
    }
    assert {path.read_bytes()[:2] for path in person.folder.glob("batch/*/stdout")} == {b"a "}
    coloured = person.run("batch", "local", "run.sh", "--follow", "--", "4", FORCE_COLOR="1")
    assert b"\x1b[36m" in coloured.stdout
