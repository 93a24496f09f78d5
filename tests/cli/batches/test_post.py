"""Post commands of a batch: what they see, where, how often, and what a failing one does to others: nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from liborch.drive.results import Result
from liborch.specs import ExecutionSpec
from runaway.batches.outcomes import Outcomes
from runaway.batches.picture import Picture
from runaway.batches.post import Post, PostCommands
from runaway.batches.progress import Progress
from runaway.messages import Messages
from tests.cli.person import Person, wait_until


def folders(person: Person) -> list[Path]:
    return sorted((person.folder / "batch").iterdir())


def gone(path: Path) -> bool:
    """Whether the process whose pid is in a file is no more."""
    pid = path.read_text().strip()
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def wait_begun(batch: subprocess.Popen[bytes], path: Path) -> None:
    """Return when a post command has written to a file."""

    def written() -> bool:
        assert batch.poll() is None, batch.communicate()[1].decode()
        return path.exists() and bool(path.read_text())

    wait_until("a post command", written)


def test_a_post_command_sees_the_results_and_every_variable_of_its_execution(person: Person) -> None:
    person.write("run.sh", 'echo "out $1"; echo err >&2; echo made > made; exit "$1"\n')
    post = (
        'cat ecode stdout made > seen; echo "$RUNAWAY_ECODE|$RUNAWAY_STDOUT|$RUNAWAY_STDERR|$RUNAWAY_ARGUMENTS|'
        '$RUNAWAY_PARAM_CODE|$RUNAWAY_TAG|$RUNAWAY_REMOTE|$RUNAWAY_NODE_ID|$RUNAWAY_SCRIPT_PATH" >> seen; '
        '[ "$PWD" = "$RUNAWAY_OUTPUT_FOLDER" ] && cmp "$RUNAWAY_STDOUT_FILE" stdout && echo fine'
    )
    command = ("batch", "local", "run.sh", "--grid", "code=0,3", "-p", post, "--", "{code}")
    done = person.run(*command, RUNAWAY_TAG="mine", RUNAWAY_ECODE="not mine")
    assert done.returncode == 1, done.stderr.decode()
    assert b"post command" not in done.stderr
    seen = {(folder / "seen").read_text() for folder in folders(person)}
    assert seen == {
        f"{code}\nout {code}\nmade\n{code}|out {code}\n|err\n|{code}|{code}|mine|local|local|run.sh\n"
        for code in ("0", "3")
    }
    assert {(folder / "post.out").read_text() for folder in folders(person)} == {"fine\n"}


def test_what_a_post_command_made_of_the_outcome_stays_so(person: Person) -> None:
    script = person.write("../after.sh", '#!/bin/sh\nmv stdout "said-$RUNAWAY_UUID"; rm stderr ecode\n')
    done = person.run("batch", "local", "echo", "-x", "3", "-P", str(script), "--", "hello")
    assert done.returncode == 0, done.stderr.decode()
    assert [[path.name for path in folder.iterdir()] for folder in folders(person)] == [
        [f"said-{folder.name}"] for folder in folders(person)
    ]


def test_a_failing_post_command_is_reported_and_hurts_no_verdict(person: Person) -> None:
    post = 'case $RUNAWAY_STDOUT in 2*) echo "no such table" >&2; exit 7;; esac'
    done = person.run("batch", "local", "echo", "-p", post, "--json", "--", "{1;2;3}")
    assert done.returncode == 1
    ended = {line["stdout"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert {said: (line["state"], line["post_status"]) for said, line in ended.items()} == {
        "1\n": ("succeeded", 0),
        "2\n": ("succeeded", 7),
        "3\n": ("succeeded", 0),
    }
    assert b"1 x post command: exit 7: no such table" in done.stderr
    assert b"3 succeeded" in done.stderr
    assert (person.folder / "batch" / ended["2\n"]["id"] / "post.out").read_text() == "no such table\n"


def test_output_too_long_or_binary_is_in_the_files_and_in_no_variable(person: Person) -> None:
    post = 'echo "${RUNAWAY_STDOUT-none} ${RUNAWAY_STDERR-none}"; wc -c < "$RUNAWAY_STDOUT_FILE"'
    person.write("run.sh", 'head -c 300000 /dev/zero | tr "\\0" x; printf "a\\0b" >&2\n')
    assert person.run("batch", "local", "run.sh", "-p", post).returncode == 0
    (folder,) = folders(person)
    assert (folder / "post.out").read_text().split() == ["none", "none", "300000"]


def test_post_commands_hold_up_no_slot(person: Person) -> None:
    """With one slot, the last execution runs while the post command of the first one still does."""
    person.write("run.sh", f'[ "$1" != 9 ] || touch {person.root}/last\n')
    post = f"until [ -e {person.root}/last ]; do sleep 0.02; done"
    done = person.run("batch", "local", "run.sh", "--slots", "1", "-p", post, "--", "{1;2;3;4;5;6;7;8;9}")
    assert done.returncode == 0, done.stderr.decode()


def test_a_killed_client_leaves_post_commands_to_the_next_and_two_never_run_at_once(person: Person) -> None:
    post = (
        f"mkdir {person.root}/busy || echo twice >> {person.root}/twice; echo x >> {person.root}/began; "
        f"until [ -e {person.root}/go ]; do sleep 0.02; done; rmdir {person.root}/busy; echo x >> {person.root}/ended"
    )
    person.write("run.sh", f"echo x >> {person.root}/ran\n")
    command = ("batch", "local", "run.sh", "-p", post)
    first = person.start(*command)
    wait_begun(first, person.root / "began")
    first.kill()
    first.communicate()
    second = person.start(*command, "--resume")
    assert second.stderr is not None
    while b"going on with" not in (line := second.stderr.readline()):
        assert line
    (person.root / "go").touch()
    _, told = second.communicate(timeout=30)
    assert second.returncode == 0, told.decode()
    for name, count in (("ran", 1), ("began", 2), ("ended", 2)):
        assert len((person.root / name).read_text().split()) == count
    assert not (person.root / "twice").exists()


def test_the_second_ctrl_c_ends_post_commands_and_the_next_client_runs_them_again(person: Person) -> None:
    post = f"echo $$ > {person.root}/pid; trap '' TERM; [ -e {person.root}/go ] || exec sleep 600"
    command = ("batch", "local", "true", "-p", post)
    first = person.start(*command)
    wait_begun(first, person.root / "pid")
    assert first.stderr is not None
    os.kill(first.pid, signal.SIGINT)
    while b"nothing new is started" not in (line := first.stderr.readline()):
        assert line
    os.kill(first.pid, signal.SIGINT)
    _, told = first.communicate(timeout=20)
    assert first.returncode == 130
    assert b"1 of 1 is left" in told
    assert gone(person.root / "pid")
    (person.root / "go").touch()
    again = person.run(*command, "--resume")
    assert again.returncode == 0, again.stderr.decode()


def test_a_post_command_that_hangs_is_ended_after_its_time_and_told(person: Person) -> None:
    post = f"echo $$ > {person.root}/pid; echo thinking; trap '' TERM; while :; do sleep 0.1; done"
    done = person.run("batch", "local", "true", "-p", post, "--post-time", "1s")
    assert done.returncode == 1, done.stderr.decode()
    assert b"1 x post command: exit 124: ended after 1s (--post-time)" in done.stderr
    assert b"1 succeeded" in done.stderr
    assert gone(person.root / "pid")
    (folder,) = folders(person)
    assert (folder / "post.out").read_text() == "thinking\nended after 1s (--post-time)\n"


def test_who_takes_over_keeps_the_time_of_post_commands(person: Person) -> None:
    post = f"echo x >> {person.root}/began; while [ ! -e {person.root}/never ]; do sleep 0.1; done"
    first = person.start("batch", "local", "true", "-p", post, "--post-time", "2s")
    wait_begun(first, person.root / "began")
    first.kill()
    first.communicate()
    done = person.run("attach", "last", timeout_s=30)
    assert done.returncode == 1, done.stderr.decode()
    assert b"--post-time" in done.stderr


def test_a_batch_that_is_killed_ends_what_a_killed_client_left_of_its_post_commands(person: Person) -> None:
    first = person.start("batch", "local", "true", "-p", f"echo $$ > {person.root}/pid; exec sleep 600")
    wait_begun(first, person.root / "pid")
    first.kill()
    first.communicate()
    assert not gone(person.root / "pid")
    assert person.run("kill", "last").returncode == 0
    wait_until("its end", lambda: gone(person.root / "pid"))


async def test_a_post_command_that_runs_for_long_is_named_in_the_picture(tmp_path: Path) -> None:
    progress = Progress(1, Messages({}))
    posts = PostCommands(Outcomes(tmp_path / "outputs", tmp_path), tmp_path, progress.count_post)
    progress.posts = posts
    posts._began["abcdef0123"] = time.monotonic() - 300
    line = progress.picture(
        SimpleNamespace(core=SimpleNamespace(counts={}, nodes={}, draining=False), targets={})
    ).longest_post  # type: ignore[arg-type]
    assert line is not None
    assert (line[0], int(line[1]) // 10) == ("abcdef0123", 30)
    assert posts.describe()["longest_post"][0] == "abcdef0123"
    assert Picture(1, {}, posts=2, longest_post=line).post_words == "post commands (abcdef01 for 5m)"
    await posts.close()


def test_a_post_script_that_is_not_there_is_told_before_anything_starts(person: Person) -> None:
    for words, text in ((("-P", "nowhere.sh"), b"nowhere.sh"), (("-p", "a", "-P", "b"), b"give one of them")):
        done = person.run("batch", "local", "true", *words)
        assert done.returncode == 2
        assert text in done.stderr
    assert not person.state.exists()


def test_a_batch_that_is_killed_ends_its_post_commands_for_good(person: Person) -> None:
    command = ("batch", "local", "true", "-p", f"echo $$ > {person.root}/pid; exec sleep 600")
    first = person.start(*command)
    wait_begun(first, person.root / "pid")
    listed = person.run("ps", "--batches", "--json").stdout
    killed = person.run("kill", json.loads(listed)["id"])
    assert killed.returncode == 0, killed.stderr.decode()
    first.communicate(timeout=20)
    assert gone(person.root / "pid")
    (execution,) = person.executions()
    assert execution["state"] == "succeeded"
    assert person.json("show", execution["id"])["post_status"] == 143


async def test_one_that_ended_while_nobody_asked_is_not_run_again(tmp_path: Path) -> None:
    """A torn link takes away who asked; who asks again when it is back may come after the end."""
    ended: list[Post] = []
    posts = PostCommands(Outcomes(tmp_path, tmp_path), tmp_path, lambda _execution, post: ended.append(post))
    words = ("sh", "-c", f"echo x >> {tmp_path}/ran; until [ -e {tmp_path}/go ]; do sleep 0.02; done; exit 4")
    spec = ExecutionSpec(argv=("true",), post=words, outcome_folder="out")
    execution: Any = SimpleNamespace(id="a", spec=spec)
    result = Result("a", "succeeded", "exit", 0, started_at=1.0)
    first = asyncio.ensure_future(posts(execution, result, {}))
    while not (tmp_path / "ran").exists():
        await asyncio.sleep(0.02)
    first.cancel()
    await asyncio.wait([first])
    (tmp_path / "go").touch()
    while not ended:
        await asyncio.sleep(0.02)
    assert await posts(execution, result, {}) == {"post_status": 4}
    assert (tmp_path / "ran").read_text() == "x\n"
    assert posts.under_way == 0
    await posts.close()
