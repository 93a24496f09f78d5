"""`runaway exec` as a person types it: what is sent, run and brought back, and what it ends with."""

from __future__ import annotations

import json

import pytest

from tests.cli.person import Person, lines


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 130, 137, 143, 255])
def test_the_exit_status_is_the_executions_own(person: Person, code: int) -> None:
    done = person.run("exec", "local", "sh", "--", "-c", f"exit {code}")
    assert done.returncode == code, done.stderr


def test_a_signal_is_told_apart_from_its_exit_code(person: Person) -> None:
    done = person.run("exec", "--json", "local", "sh", "--", "-c", "kill -9 $$")
    result = json.loads(done.stdout)
    assert (done.returncode, result["reason"], result["signal"], result["exit_code"]) == (
        137,
        "signal",
        9,
        None,
    )


def test_results_go_where_the_exit_code_says(person: Person) -> None:
    person.write("run.sh", "echo x > made.txt; exit 3")
    done = person.run("exec", "-o", "batch/$RUNAWAY_ECODE/$RUNAWAY_UUID", "local", "run.sh")
    assert done.returncode == 3
    x = person.executions()[0]["id"]
    assert (person.folder / "batch" / "3" / x / "made.txt").read_text() == "x\n"


def test_variables_of_the_caller_name_folders_unless_they_may_not_be_read(person: Person) -> None:
    person.write("run.sh", "echo $RUNAWAY_TAG > tag.txt")
    assert person.run("exec", "-o", "out/$RUNAWAY_TAG", "local", "run.sh", RUNAWAY_TAG="x").returncode == 0
    assert (person.folder / "out" / "x" / "tag.txt").read_text() == "x\n"
    before = person.executions()
    done = person.run("exec", "--no-env-read", "-o", "out/$RUNAWAY_TAG", "local", "run.sh", RUNAWAY_TAG="x")
    assert done.returncode == 2
    assert b"RUNAWAY_TAG" in done.stderr
    assert person.executions() == before


def test_results_stay_where_they_were_made_and_can_be_fetched_later(person: Person) -> None:
    person.write("run.sh", "echo made > made.txt")
    assert person.run("exec", "--on-local", "local", "run.sh").returncode == 0
    assert not (person.folder / "made.txt").exists()
    fetched = person.run("fetch", "last", "-o", "later")
    assert fetched.returncode == 0, fetched.stderr
    assert (person.folder / "later" / "made.txt").read_text() == "made\n"
    kept = person.run("clean", "last", "--dry-run")
    assert b"would remove the folders of 1 executions" in kept.stdout
    assert any((person.home / "orchestra").glob("*/made.txt"))
    assert person.run("clean", "last").returncode == 0
    assert not any((person.home / "orchestra").glob("*-*"))
    assert person.executions() == []


def test_fetching_what_is_not_there_any_more_says_where_it_is(person: Person) -> None:
    person.write("run.sh", "echo made > made.txt")
    person.run("exec", "-o", "there", "local", "run.sh")
    done = person.run("fetch", "last")
    assert done.returncode == 2
    assert str(person.folder / "there") in done.stderr.decode()


def test_two_runs_at_once_from_one_folder_do_not_disturb_each_other(person: Person) -> None:
    person.write(
        "run.py", "import sys, time\ntime.sleep(0.3)\nopen(f'{sys.argv[1]}.txt', 'w').write(sys.argv[1])\n"
    )
    both = [person.start("exec", "local", "run.py", "--", name) for name in "ab"]
    for each in both:
        _, err = each.communicate(timeout=60)
        assert each.returncode == 0, err
    assert sorted(path.name for path in person.folder.iterdir()) == ["a.txt", "b.txt", "run.py"]


def test_arguments_arrive_byte_for_byte(person: Person) -> None:
    words = ["a b", 'c"d', "*", "$HOME", "it's;x", "", "-x", "--leave", "é\n"]
    person.write(
        "words.py", "import os, sys\nfor word in sys.argv[1:]: os.write(1, os.fsencode(word) + b'\\0')\n"
    )
    done = person.run("exec", "local", "words.py", "--", *words, b"\xff\xfe")
    assert done.stdout.split(b"\0")[:-1] == [*(word.encode() for word in words), b"\xff\xfe"]


def test_output_is_passed_on_byte_for_byte_and_nothing_is_added(person: Person) -> None:
    person.write(
        "out.py",
        "import sys\nsys.stdout.buffer.write(bytes(range(256)) * 4000); sys.stderr.write('no end')\n",
    )
    done = person.run("exec", "--silent", "local", "out.py")
    assert done.stdout == bytes(range(256)) * 4000
    assert done.stderr == b"no end"
    assert person.run("logs", "last").stdout == done.stdout
    assert person.run("logs", "--stderr", "last").stdout == b"no end"


def test_the_result_as_json_holds_the_whole_output(person: Person) -> None:
    done = person.run("exec", "--json", "local", "python3", "--", "-c", "print('x' * 100000)")
    result = json.loads(done.stdout)
    assert result["schema_version"] == 1
    assert result["stdout"] == "x" * 100000 + "\n"
    assert result["exit_status"] == 0


def test_more_time_than_was_asked_for_ends_it(person: Person) -> None:
    done = person.run("exec", "--time", "0.5s", "local", "sleep", "--", "60")
    assert done.returncode == 124
    assert b"walltime" in done.stderr


def test_a_host_that_is_not_there_is_named_and_nothing_waits(person: Person) -> None:
    done = person.run("exec", "no.such.host.invalid", "true", timeout_s=60)
    assert done.returncode == 255
    assert b"no.such.host.invalid" in done.stderr
    assert person.executions()[0]["state"] == "failed"


def test_secrets_are_given_to_the_execution_and_shown_to_nobody(person: Person) -> None:
    done = person.run(
        "exec", "-e", "API_TOKEN=hunter2", "local", "sh", "--", "-c", "echo $API_TOKEN", "--password=hunter2"
    )
    assert done.stdout == b"hunter2\n"
    for shown in (
        person.run("show", "last"),
        person.run("show", "--json", "last"),
        person.run("ps", "--json"),
    ):
        assert b"hunter2" not in shown.stdout + shown.stderr
    assert (person.state / "orchestra" / "journal.db").stat().st_mode & 0o077 == 0


def test_clean_ends_the_idle_agent_and_leaves_no_process(person: Person) -> None:
    person.run("exec", "local", "true")
    assert person.agents()
    done = person.run("clean", "local", "--all")
    assert done.returncode == 0, done.stderr
    assert person.agents() == []
    assert lines(person.run("ps", "--all", "--json").stdout) == []
