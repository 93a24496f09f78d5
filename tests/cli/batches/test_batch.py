"""`runaway batch` on this machine: what is left of each execution, going on after an interruption, ends and statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.person import Person


def outcomes(person: Person, top: str = "batch") -> dict[str, tuple[str, bytes]]:
    """{stdout's first line: (ecode, stderr)} of every output folder."""
    found = {}
    for folder in (person.folder / top).iterdir():
        said = (folder / "stdout").read_bytes()
        found[said.decode(errors="replace").split("\n")[0]] = (
            (folder / "ecode").read_text().strip(),
            (folder / "stderr").read_bytes(),
        )
    return found


def count_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def resumed(command: tuple[str, ...], *more: str) -> tuple[str, ...]:
    """The same command with --resume; options end at `--`."""
    at = command.index("--") if "--" in command else len(command)
    return (*command[:at], *more, *command[at:])


def test_each_execution_leaves_its_code_its_output_and_what_it_made(person: Person) -> None:
    person.write("run.sh", 'printf "%s" "$1"; printf "no \\377" >&2; echo "$1" > made; exit "$1"\n')
    done = person.run("batch", "local", "run.sh", "--", "{0;3;7}")
    assert done.returncode == 1, done.stderr.decode()
    assert outcomes(person) == {code: (code, b"no \xff") for code in ("0", "3", "7")}
    assert {path.read_text() for path in person.folder.glob("batch/*/made")} == {"0\n", "3\n", "7\n"}
    assert b"2 failed, 1 succeeded" in done.stderr
    assert done.stdout == b""
    assert not (person.home / "orchestra").exists()


def test_a_command_of_the_host_and_parameters_by_name(person: Person) -> None:
    done = person.run(
        "batch", "local", "sh", "--grid", "lr=0.1,0.01", "-o", "out/$RUNAWAY_PARAM_LR", "--json",
        "--", "-c", "echo {lr} $RUNAWAY_PARAM_LR",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted((line["parameters"]["lr"], line["stdout"]) for line in lines) == [
        ("0.01", "0.01 0.01\n"),
        ("0.1", "0.1 0.1\n"),
    ]
    assert (person.folder / "out/0.1/stdout").read_text() == "0.1 0.1\n"


def test_a_batch_that_succeeded_is_0_and_resuming_it_runs_nothing(person: Person) -> None:
    person.write("run.sh", f"echo x >> {person.root}/ran\n")
    command = ("batch", "local", "run.sh", "-x", "5")
    assert person.run(*command).returncode == 0
    again = person.run(*resumed(command, "--resume"))
    assert again.returncode == 0, again.stderr.decode()
    assert b"5 of 5 have a verdict, 0 to go" in again.stderr
    assert count_lines(person.root / "ran") == 5


def test_resume_finds_the_batch_of_its_own_command_line_behind_others_of_the_script(person: Person) -> None:
    person.write("run.sh", "exit 0\n")
    command = ("batch", "local", "run.sh", "--grid", "n=1..4")
    assert person.run(*command).returncode == 0
    assert person.run("batch", "local", "run.sh", "--grid", "n=7").returncode == 0
    # Mistyped, with no such host.
    assert person.run("batch", "nowhere.invalid", "run.sh", "--grid", "n=1..4").returncode == 255
    assert b"4 of 4 have a verdict, 0 to go" in person.run(*command, "--resume").stderr
    # With another grid the last one of the script is meant; from then on it is known by that.
    more = (*command[:-1], "n=7..8", "--resume")
    assert (
        b"0 of 2 have a verdict"
        in person.run("batch", "local", "run.sh", "--grid", "n=7..8", "--resume").stderr
    )
    assert b"2 of 2 have a verdict" in person.run(*more).stderr


def test_lines_that_were_added_run_and_lines_that_moved_do_not(person: Person) -> None:
    person.write("run.sh", f'echo "$1" >> {person.root}/ran\n')
    arguments = person.write("lines", "a\nb\nc\n")
    command = ("batch", "local", "run.sh", "-A", "../lines")
    arguments.rename(person.root / "lines")
    assert person.run(*command).returncode == 0
    (person.root / "lines").write_text("c\nnew\na\n")
    assert person.run(*resumed(command, "--resume")).returncode == 0
    assert sorted((person.root / "ran").read_text().split()) == ["a", "b", "c", "new"]


def test_lines_that_were_removed_before_they_ran_count_no_more(person: Person) -> None:
    person.write(
        "run.sh", f'echo "$1" >> {person.root}/ran; while [ ! -e {person.root}/go ]; do sleep 0.05; done\n'
    )
    with person.start("batch", "local", "run.sh", "--slots", "1", "--", "{a;b;c;d}") as first:
        until = time.monotonic() + 30
        while not count_lines(person.root / "ran"):
            assert time.monotonic() < until
            time.sleep(0.05)
        first.kill()
        first.communicate()
    (person.root / "go").touch()
    done = person.run("batch", "local", "run.sh", "--slots", "1", "--resume", "--", "{a;d}")
    assert done.returncode == 0, done.stderr.decode()
    assert b"cancelled" not in done.stderr
    # What was on the node already may have run.
    ran = (person.root / "ran").read_text().split()
    assert {"a", "d"} <= set(ran)
    [line] = person.run("ps", "--batches", "--json").stdout.splitlines()
    found = json.loads(line)
    assert (found["state"], list(found["counts"])) == ("succeeded", ["succeeded"])
    assert found["executions"] <= len(ran) < 4


def test_what_failed_runs_again_when_it_is_asked_for(person: Person) -> None:
    person.write("run.sh", f'echo "$1" >> {person.root}/ran; [ -e {person.root}/mended ] || exit "$1"\n')
    command = ("batch", "local", "run.sh", "--", "{0;4}")
    assert person.run(*command).returncode == 1
    (person.root / "mended").touch()
    assert person.run(*resumed(command, "--resume")).returncode == 1
    assert person.run(*resumed(command, "--resume", "--retry-failed")).returncode == 0
    assert sorted((person.root / "ran").read_text().split()) == ["0", "4", "4"]


def test_when_the_code_has_changed_it_asks_which_is_meant(person: Person) -> None:
    person.write("run.sh", f'echo "old $1" >> {person.root}/ran; exit "$1"\n')
    assert person.run("batch", "local", "run.sh", "--", "{0;1}").returncode == 1
    person.write("run.sh", f'echo "new $1" >> {person.root}/ran\n')
    unclear = person.run("batch", "local", "run.sh", "--resume", "--", "{0;1;2}")
    assert unclear.returncode == 2
    assert b"--code-changed keep" in unclear.stderr
    kept = person.run("batch", "local", "run.sh", "--resume", "--code-changed", "keep", "--", "{0;1;2}")
    assert kept.returncode == 1, kept.stderr.decode()
    assert sorted((person.root / "ran").read_text().splitlines()) == ["new 2", "old 0", "old 1"]


def test_when_all_is_run_again_with_other_code_old_verdicts_count_no_more(person: Person) -> None:
    person.write("run.sh", f'echo "old $1" >> {person.root}/ran; exit "$1"\n')
    assert person.run("batch", "local", "run.sh", "--", "{0;1}").returncode == 1
    for code in ("new", "newer"):
        person.write("run.sh", f'echo "{code} $1" >> {person.root}/ran\n')
        again = ("batch", "local", "run.sh", "--resume", "--code-changed", "rerun", "--", "{0;1}")
        assert person.run(*again).returncode == 0
        [line] = person.run("ps", "--batches", "--json").stdout.splitlines()
        assert json.loads(line)["counts"] == {"succeeded": 2}
    rows = person.run("results", "last", "--format", "jsonl").stdout.splitlines()
    assert len(rows) == 2
    # Back to the first code, what it did before was given up.
    person.write("run.sh", f'echo "old $1" >> {person.root}/ran; exit "$1"\n')
    assert person.run(*again).returncode == 1
    ran = (person.root / "ran").read_text().splitlines()
    assert sorted(ran) == sorted([f"{code} {n}" for code in ("old", "new", "newer", "old") for n in (0, 1)])


def test_what_runs_with_code_that_was_given_up_is_ended(person: Person) -> None:
    person.write("run.sh", f"echo old >> {person.root}/ran; exec sleep 600\n")
    with person.start("batch", "local", "run.sh", "-x", "1") as first:
        until = time.monotonic() + 30
        while not count_lines(person.root / "ran"):
            assert time.monotonic() < until
            time.sleep(0.05)
        first.kill()
        first.communicate()
    person.write("run.sh", f"echo new >> {person.root}/ran\n")
    again = person.run("batch", "local", "run.sh", "-x", "1", "--resume", "--code-changed", "rerun")
    assert again.returncode == 0, again.stderr.decode()
    [line] = person.run("ps", "--batches", "--json").stdout.splitlines()
    assert json.loads(line)["counts"] == {"succeeded": 1}
    assert (person.root / "ran").read_text() == "old\nnew\n"


def test_other_slots_hold_from_the_next_resume_on(person: Person) -> None:
    script = (
        "n=$(mktemp -d {root}/now.XXXX); ls -d {root}/now.* | wc -l >> {root}/most; sleep 0.3; rmdir $n\n"
    )
    person.write("run.sh", script.format(root=person.root))
    command = ("batch", "local", "run.sh", "--max-failures", "1", "-x", "6", "--slots")
    with person.start(*command, "1") as first:
        until = time.monotonic() + 30
        while not count_lines(person.root / "most"):
            assert time.monotonic() < until
            time.sleep(0.05)
        first.kill()
        first.communicate()
    again = person.run(*command, "3", "--resume")
    assert again.returncode == 0, again.stderr.decode()
    assert max(map(int, (person.root / "most").read_text().split())) == 3


def test_killed_half_way_only_the_rest_runs_and_what_ran_meanwhile_counts(person: Person) -> None:
    person.write("run.sh", f'echo "$1" >> {person.root}/ran; [ "$1" -lt 3 ] || sleep 1\n')
    command = ("batch", "local", "run.sh", "--slots", "2", "--", "{1;2;3;4;5;6}")
    with person.start(*command) as first:
        until = time.monotonic() + 30
        while count_lines(person.root / "ran") < 4:
            assert time.monotonic() < until
            time.sleep(0.05)
        first.kill()
        first.communicate()
    again = person.run(*resumed(command, "--resume"))
    assert again.returncode == 0, again.stderr.decode()
    assert sorted((person.root / "ran").read_text().split()) == list("123456")
    assert {code for code, _ in outcomes_by_folder(person)} == {"0"}
    assert len(outcomes_by_folder(person)) == 6


def outcomes_by_folder(person: Person) -> list[tuple[str, Path]]:
    return [
        ((folder / "ecode").read_text().strip(), folder) for folder in (person.folder / "batch").iterdir()
    ]


def test_the_first_ctrl_c_starts_nothing_new_and_lets_what_runs_finish(person: Person) -> None:
    person.write(
        "run.sh", f'echo "$1" >> {person.root}/ran; while [ ! -e {person.root}/go ]; do sleep 0.05; done\n'
    )
    command = ("batch", "local", "run.sh", "--slots", "2", "--", "{1;2;3;4;5;6}")
    with person.start(*command) as first:
        until = time.monotonic() + 30
        while count_lines(person.root / "ran") < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGINT)
        assert first.stderr is not None
        while b"nothing new is started" not in (line := first.stderr.readline()):
            assert line
        (person.root / "go").touch()
        _, told = first.communicate(timeout=30)
    assert first.returncode == 130
    assert b"4 of 6 are left" in told
    assert count_lines(person.root / "ran") == 2
    again = person.run(*resumed(command, "--resume"))
    assert again.returncode == 0, again.stderr.decode()
    assert sorted((person.root / "ran").read_text().split()) == list("123456")


def test_the_second_ctrl_c_ends_what_runs(person: Person) -> None:
    person.write("run.sh", f'echo "$1" >> {person.root}/ran; exec sleep 600\n')
    with person.start("batch", "local", "run.sh", "--slots", "2", "--", "{1;2;3}") as first:
        until = time.monotonic() + 30
        while count_lines(person.root / "ran") < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert first.stderr is not None
        os.kill(first.pid, signal.SIGINT)
        while b"nothing new is started" not in (line := first.stderr.readline()):
            assert line
        os.kill(first.pid, signal.SIGINT)
        _, told = first.communicate(timeout=40)
    assert first.returncode == 130
    assert b" cancelled in " in told
    assert count_lines(person.root / "ran") == 2


def test_too_many_failures_stop_it(person: Person) -> None:
    person.write("run.sh", f'echo "$1" >> {person.root}/ran; exit 5\n')
    done = person.run("batch", "local", "run.sh", "--slots", "1", "--max-failures", "3", "-x", "200")
    assert done.returncode == 1
    assert b"have failed: stopping" in done.stderr
    assert 3 <= count_lines(person.root / "ran") < 200


def test_what_cannot_be_meant_is_told_before_anything_starts(person: Person) -> None:
    person.write("run.sh", "exit 0\n")
    person.write("folders", "a\nb\n")
    for words, text in (
        (("-O", "folders", "--", "{1;2;3}"), b"2 folders for 3 executions"),
        (("-o", "same", "--", "{1;2}"), b"both have the output folder"),
        (("-A", "missing"), b"missing"),
        (("--", "{1;2"), b"never closed"),
    ):
        done = person.run("batch", "local", "run.sh", *words)
        assert done.returncode == 2, done.stderr.decode()
        assert text in done.stderr
    assert not (person.folder / "batch").exists()


def test_a_dry_run_prints_every_command_and_does_nothing(person: Person) -> None:
    person.write("run.sh", "exit 0\n")
    done = person.run("batch", "local", "run.sh", "-n", "--", "{a;b}+{c;d}")
    assert done.stdout.decode().splitlines() == [
        *(f"sh run.sh {words}  -> batch/$RUNAWAY_UUID" for words in ("ac", "ad", "bc", "bd")),
        "4 executions on local",
    ]
    assert not person.state.exists()


def test_a_host_that_cannot_be_reached_fails_nothing(person: Person) -> None:
    """Its executions are there for --resume, when it is back."""
    config = person.write("../ssh_config", "Host gone\n  HostName 127.0.0.1\n  Port 1\n")
    person.environment["ORCHESTRA_SSH_CONFIG"] = str(config)
    person.write("run.sh", "exit 0\n")
    done = person.run("batch", "gone", "run.sh", "-x", "3")
    assert done.returncode == 255
    assert b"gone" in done.stderr
    assert b"3 of 3 are left" in done.stderr


def test_an_output_folder_that_cannot_be_written_is_told_and_holds_up_nobody(person: Person) -> None:
    person.write("blocked", "a file, no folder\n")
    done = person.run(
        "batch", "local", "echo", "--into-existing", "-o", "$RUNAWAY_PARAM_WHERE", "--grid", "where=blocked,free", "--", "hello"
    )  # fmt: skip
    assert done.returncode == 1
    assert b"2 succeeded" in done.stderr
    assert b"blocked: Not a directory" in done.stderr or b"blocked: File exists" in done.stderr
    assert (person.folder / "free/ecode").read_text() == "0\n"


def test_a_full_disk_here_is_waited_for_and_nothing_is_lost(person: Person) -> None:
    if os.getuid():
        pytest.skip("only root mounts a small disk")
    small = person.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], check=True)
    try:
        (small / "ballast").write_bytes(b"x" * (60 << 10))
        command = (
            "batch",
            "local",
            "sh",
            "-o",
            "small/$RUNAWAY_UUID",
            "-x",
            "3",
            "--",
            "-c",
            "head -c 4000 /dev/zero",
        )
        with person.start(*command) as batch:
            assert batch.stderr is not None
            while b"nothing new starts until there is room" not in (line := batch.stderr.readline()):
                assert line
            (small / "ballast").unlink()
            _, told = batch.communicate(timeout=60)
        assert batch.returncode == 0, told.decode()
        assert [(folder / "stdout").stat().st_size for folder in small.iterdir()] == [4000] * 3
    finally:
        subprocess.run(["umount", small], check=True)
