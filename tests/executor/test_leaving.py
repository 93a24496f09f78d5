"""How an executor ends: by its block, without a word, with its interpreter, by Ctrl-C, and what a forked child has of it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from pathlib import Path
from typing import Any

import pytest

import liborch
from liborch.journal import DriverLock
from tests.agent.harness import PATIENCE_S, alive, until
from tests.executor.conftest import Here, Make
from tests.executor.test_commands import held, pipe

PREFACE = """
import os, sys, time
import liborch
executor = liborch.Executor("local")
"""


def program(text: str, folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A Python program of a person's own, in the environment of the test."""
    return subprocess.Popen(
        [sys.executable, "-c", PREFACE + text],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def said(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """How a program ended, and what it said."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


def test_nothing_is_taken_after_shutdown(make: Make) -> None:
    executor = make()
    executor.shutdown()
    executor.shutdown()
    for what in (["true"], abs):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(what, "1")


def test_shutdown_waits_for_what_was_submitted(make: Make) -> None:
    executor = make()
    futures = [executor.submit(["sleep", "0.1"]) for _ in range(6)]
    executor.shutdown()
    assert all(future.done() and future.result().ok for future in futures)


def test_shutdown_without_waiting_lets_everything_end(make: Make, tmp_path: Path) -> None:
    go = pipe(tmp_path)
    executor = make()
    future = held(executor, go)
    executor.shutdown(wait=False)
    assert not future.done()
    go.write_text("on\n")
    assert future.result(PATIENCE_S).ok


def test_shutdown_cancels_what_waits_and_lets_end_what_runs(make: Make, tmp_path: Path) -> None:
    go = pipe(tmp_path)
    executor = make(slots=1)
    first = held(executor, go)
    others = [executor.submit(["true"]) for _ in range(20)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in others)
    go.write_text("on\n")
    executor.shutdown()
    assert first.result().ok
    with pytest.raises(CancelledError):
        others[0].result()


def test_an_executor_that_is_dropped_finishes_and_goes(make: Make, here: Here, temporary: Path) -> None:
    executor = liborch.Executor("local")
    values = executor.map(abs, range(-3, 3))
    thread = executor._bridge._thread
    del executor
    gc.collect()
    assert list(values) == [3, 2, 1, 0, 1, 2]
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_what_the_host_was_not_given_yet_is_run_in_turn_or_cancelled(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liborch.bridge.WINDOW", 2)
    go = pipe(tmp_path)
    with make(slots=1) as executor:
        first = held(executor, go)
        later: list[Any] = [executor.submit(["true"]) for _ in range(6)]
        assert later[4].cancel()
        # Told to who waits, though its turn has not come.
        assert wait(later, PATIENCE_S, FIRST_COMPLETED).done == {later[4]}
        assert [future.execution_id for future in later[1:]] == [""] * 5
        go.write_text("on\n")
    assert first.result().ok
    assert [future.cancelled() for future in later] == [False, False, False, False, True, False]
    assert all(future.result().ok for future in later if not future.cancelled())


def test_many_threads_submit_at_once(make: Make) -> None:
    with make() as executor:
        futures: list[Future[Any]] = []

        def submit() -> None:
            for _ in range(20):
                futures.append(executor.submit(["true"]))

        threads = [threading.Thread(target=submit) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(futures) == 100
    assert all(future.result().ok for future in futures)


def test_the_end_of_the_interpreter_waits_and_leaves_nothing(here: Here, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    text = """
executor.submit(["sh", "-c", "sleep 0.3; echo done > command.txt"], folder=os.getcwd())
executor.submit(os.mkdir, os.path.abspath("made"))
"""
    assert said(program(text, folder)) == (0, "", "")
    assert sorted(path.name for path in folder.iterdir()) == ["command.txt", "made"]
    here.assert_bare()


def test_the_end_of_the_interpreter_by_an_error_says_the_error_alone(here: Here, tmp_path: Path) -> None:
    status, out, err = said(program("executor.submit(['true'])\nraise SystemExit('mistake')", tmp_path))
    assert (status, out, err) == (1, "", "mistake\n")
    here.assert_bare()


def test_nothing_is_taken_while_the_interpreter_ends(here: Here, tmp_path: Path) -> None:
    text = """
import atexit
def late():
    try:
        executor.submit(["true"])
    except RuntimeError as error:
        print(error)
atexit.register(late)
"""
    assert said(program(text, tmp_path)) == (0, "cannot schedule new futures after shutdown\n", "")


def test_ctrl_c_while_it_waits_ends_what_runs(here: Here, tmp_path: Path) -> None:
    text = """
import signal, threading, traceback

def interrupt():
    main = threading.main_thread().ident
    while "join" not in [each.name for each in traceback.extract_stack(sys._current_frames()[main])]:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

with executor:
    future = executor.submit(["sleep", "1000"], grace_s=0.1)
    while not future.running():
        time.sleep(0.01)
    threading.Thread(target=interrupt, daemon=True).start()
"""
    status, out, err = said(program(text, tmp_path))
    assert (status, out) == (-signal.SIGINT, "")
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert not here.status()["runs"]
    here.assert_bare()


def test_a_forked_child_cannot_submit_and_harms_nothing(make: Make, here: Here, tmp_path: Path) -> None:
    text = """
executor.submit(["true"]).result()
pid = os.fork()
if pid == 0:
    try:
        executor.submit(["true"])
    except RuntimeError as error:
        print("child:", error, flush=True)
    executor.shutdown()
    del executor
    sys.exit(0)
print("child ended", os.waitpid(pid, 0)[1], flush=True)
print("parent:", executor.submit(["echo", "-n", "fine"]).result().stdout, flush=True)
print("parent:", executor.submit(abs, -1).result(), flush=True)
executor.shutdown()
"""
    status, out, err = said(program(text, tmp_path))
    assert (status, err) == (0, ""), err
    lines = out.splitlines()
    assert "make another here" in lines[0]
    assert lines[1:] == ["child ended 0", "parent: b'fine'", "parent: 1"]


def test_a_forked_child_that_lives_on_holds_nothing_of_a_parent_that_is_killed(
    here: Here, tmp_path: Path
) -> None:
    text = """
future = executor.submit(["sleep", "1000"], grace_s=0.1)
while not future.running():
    time.sleep(0.01)
driver = executor._bridge._host._driver
if os.fork() == 0:
    print(driver.orchestration, os.getpid(), driver.targets["local"].link._pipe._process.pid, flush=True)
time.sleep(1000)
"""
    process = program(text, tmp_path)
    assert process.stdout is not None
    orchestration, *pids = process.stdout.readline().decode().split()
    child, relay = map(int, pids)
    try:
        process.kill()
        process.wait()
        lock = DriverLock(here.state, orchestration)
        lock.acquire_nowait()
        lock.release()
        until("the end of its relay", lambda: not alive(relay))
        # What ran is left to whoever takes over.
        assert here.status()["runs"]
    finally:
        os.kill(child, signal.SIGKILL)
        process.kill()
        process.communicate()


def test_an_import_of_the_library_does_not_load_it() -> None:
    code = (
        "import sys, liborch; print('liborch.executor' in sys.modules, 'concurrent.futures' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
