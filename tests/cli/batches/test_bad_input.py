"""What a person may give a batch by mistake, and scripts that behave badly: each is told clearly, or works, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.cli.person import Person, wait_until
from tests.cli.test_interrupts import Terminal

TEN = "{0;1;2;3;4;5;6;7;8;9}"
TEN_MILLION = "+".join([TEN] * 7)


def marked(person: Person) -> list[int]:
    """Processes of executions of this person that live."""
    mark = f"ORCHESTRA_AGENT_STATE={person.environment['ORCHESTRA_AGENT_STATE']}".encode()
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
            state = Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if mark in words and state not in "ZX" and any(w.startswith(b"ORCHESTRA_EXECUTION=") for w in words):
            found.append(int(name))
    return found


def ends(person: Person, top: str = "batch") -> list[tuple[str, str]]:
    """(ecode, stdout) of each execution."""
    folders = (person.folder / top).iterdir()
    return sorted(((each / "ecode").read_text().strip(), (each / "stdout").read_text()) for each in folders)


def test_plans_with_nothing_in_them_or_that_clash_are_told_with_what_to_do(person: Person) -> None:
    person.write("out/1/old", "of another batch\n")
    person.write("two", "x\ny\n")
    person.write("none", "")
    for words, *texts in (
        (("-A", "none"), b"none", b"nothing to execute"),
        (("--grid", "n="), b"--grid 'n='"),
        (
            ("-o", "out/{1;2}", "--", "{a;b}"),
            b"out/1 of execution 1 (a) exists and is not empty",
            b"--into-existing",
        ),
        (("-o", "out/{3;3}", "--", "{a;b}"), b"execution 1 (a) and execution 2 (b)", b"out/3"),
        (("-O", "two", "--", "{a;b;c}"), b"two: 2 folders for 3 executions"),
        (("-R", "two", "--", "{a;b;c}"), b"two: 2 folders for 3 executions"),
        (("--", TEN_MILLION), b"10,000,000 executions", b"--yes"),
        (("--retry-on", "lots,oom"), b"--retry-on lots: did you mean lost?", b"walltime"),
        (("--retry-on", "exit:three"), b"--retry-on exit:three: Expected"),
        (("--retry-on", "oom:3"), b"--retry-on oom:3: Expected"),
        (("--on", "locl"), b"no host or node of this batch 'locl'; did you mean local?; it has local"),
    ):
        done = person.run("batch", "local", "true", *words)
        assert done.returncode == 2, done.stderr.decode()
        for text in texts:
            assert text in done.stderr, done.stderr.decode()
    assert not person.state.exists()


def test_ten_million_are_asked_about_and_ctrl_c_is_an_answer(person: Person) -> None:
    for keys, status in ((b"n\n", 2), (b"\x03", 130)):
        terminal = Terminal(person, "batch", "local", "true", "--", TEN_MILLION)
        terminal.expect(b"10,000,000 executions. Go on?")
        terminal.type(keys)
        assert terminal.end() == status
    assert not person.state.exists()


def test_hosts_that_are_to_run_it_differently_are_both_named(person: Person) -> None:
    for name, module in (("one", "gcc"), ("two", "clang")):
        person.write(
            f"../config/orchestra/hosts/{name}.yaml",
            f"name: {name}\nssh: local\nexecution: ['echo {module}', './$RUNAWAY_SCRIPT_PATH $RUNAWAY_ARGUMENTS']\n",
        )
    done = person.run("batch", "one,two", "true")
    assert done.returncode == 2
    assert b"the profiles of one and two say `execution` differently" in done.stderr


def test_what_daemonises_or_forks_many_is_over_with_its_script(person: Person) -> None:
    # A hard count, and few enough for any limit of processes.
    fork = "i=0; while [ $i -lt 200 ]; do sleep 600 & i=$((i+1)); done\n"
    hide = "(setsid sh -c 'trap \"\" HUP TERM; sleep 600' >/dev/null 2>&1 &)\n"
    person.write(
        "run.sh", f"if [ $1 = fork ]; then {fork.strip()}; else {hide.strip()}; fi; echo $1; exit 3\n"
    )
    done = person.run("batch", "local", "run.sh", "--", "{fork;hide}")
    assert done.returncode == 1, done.stderr.decode()
    assert ends(person) == [("3", "fork\n"), ("3", "hide\n")]
    wait_until("nothing is left of them", lambda: not marked(person))


def test_what_ignores_term_is_ended_by_its_time(person: Person) -> None:
    person.write("run.sh", "trap '' TERM INT HUP; echo up; while :; do sleep 0.1; done\n")
    done = person.run("batch", "local", "run.sh", "--time", "1s", "-x", "2")
    assert done.returncode == 1
    assert b"2 x walltime: over its walltime of 1 s" in done.stderr
    assert ends(person) == [("124", "up\n")] * 2
    assert not marked(person)


def test_what_deletes_its_own_folder_hurts_itself_alone(person: Person) -> None:
    person.write("run.sh", 'echo "$1" > made; [ "$1" != bad ] || rm -rf "$PWD"; echo "$1"\n')
    done = person.run("batch", "local", "run.sh", "--", "{bad;good}")
    assert done.returncode == 1
    assert b"No such file or directory" in done.stderr
    assert ends(person) == [("0", "bad\n"), ("0", "good\n")]
    assert [path.read_text() for path in person.folder.glob("batch/*/made")] == ["good\n"]


def test_much_output_comes_home_whole(person: Person) -> None:
    person.write("run.sh", "head -c 30000000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero >&2\n")
    assert person.run("batch", "local", "run.sh", "-x", "2").returncode == 0
    for name, size in (("stdout", 30_000_000), ("stderr", 3_000_000)):
        assert [path.stat().st_size for path in person.folder.glob(f"batch/*/{name}")] == [size] * 2


def test_who_says_that_all_is_well_though_it_was_out_of_memory_is_told_of(person: Person) -> None:
    person.write("run.sh", f"{sys.executable} -S -c 'x = bytearray(300 << 20)'; echo went on; exit 0\n")
    done = person.run("batch", "local", "run.sh", "--mem", "60M", "--json")
    [line] = [json.loads(line) for line in done.stdout.splitlines()]
    if not any("cgroup" in each for each in line["means"]):
        pytest.skip("no control groups can be made here: then all of it is ended, and that is told")
    assert (line["state"], line["exit_code"]) == ("succeeded", 0)
    assert "a process of it was killed" in line["why"]
    assert b"a process of it was killed: over its 62914560 bytes of memory" in done.stderr


def test_two_clients_never_drive_one_batch(person: Person) -> None:
    person.write(
        "run.sh", f'echo "$1" >> {person.root}/ran; while [ ! -e {person.root}/go ]; do sleep 0.05; done\n'
    )
    command = ("batch", "local", "run.sh", "--slots", "1")
    first = person.start(*command, "--", "{1;2;3}")
    wait_until("one runs", (person.root / "ran").exists)
    began = time.monotonic()
    second = person.run(*command, "--resume", "--", "{1;2;3}")
    assert second.returncode == 75
    assert f"driven by process {first.pid} on".encode() in second.stderr
    assert b"runaway attach" in second.stderr
    assert time.monotonic() - began < 20
    (person.root / "go").touch()
    assert first.wait(30) == 0
    assert sorted((person.root / "ran").read_text().split()) == ["1", "2", "3"]


def test_the_id_of_a_batch_behind_resume_is_not_given_to_its_script(person: Person) -> None:
    person.write("run.sh", 'echo "$1" >> "$RUNAWAY_LOCAL_FOLDER/ran"\n')
    assert person.run("batch", "local", "run.sh", "--", "{a;b}").returncode == 0
    (batch,) = (json.loads(line) for line in person.run("ps", "--batches", "--json").stdout.splitlines())
    for word in (batch["id"][:8], batch["id"], "last"):
        done = person.run("batch", "local", "run.sh", "--resume", word)
        assert done.returncode == 2, done.stderr.decode()
        assert f"say --resume --batch {word}" in done.stderr.decode()
    assert sorted((person.folder / "ran").read_text().split()) == ["a", "b"]
