"""Commands through `concurrent.futures`: what a future of one says, from its submission to its end."""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, as_completed, wait
from concurrent.futures import TimeoutError as Timeout
from pathlib import Path
from typing import Any

import pytest

import liborch
from liborch.core.policy import Policy
from liborch.errors import HostUnreachable, OrchestraError, SpecError, TooLarge, UnknownName, WorldError
from liborch.specs import ExecutionSpec
from tests.agent.harness import PATIENCE_S, until
from tests.executor.conftest import Here, Make


def pipe(folder: Path) -> Path:
    """A way for a command to wait for its test: `read x < PIPE` goes on when the test opens it to write."""
    os.mkfifo(folder / "go")
    return folder / "go"


def held(executor: liborch.Executor, go: Path) -> Future[Any]:
    """A command that has started and waits until somebody writes to `go`."""
    future = executor.submit(["sh", "-c", f"read x < {go}; echo $x"])
    until("its start", future.running)
    return future


def test_a_command_gives_a_result_whatever_its_exit_code(make: Make) -> None:
    with make() as executor:
        result = executor.submit(["sh", "-c", "echo out; echo err >&2; exit 3"]).result(PATIENCE_S)
        assert (result.exit_code, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
        assert executor.submit(["no-such-command"]).result(PATIENCE_S).exit_code == 127


def test_words_options_and_specs_say_what_is_run(make: Make) -> None:
    with make(env={"A": "own", "B": "own"}) as executor:
        told = ["sh", "-c", 'echo "$A $B" "$@"', "sh"]
        assert executor.submit(told, "a b", Path("c")).result(PATIENCE_S).stdout == b"own own a b c\n"
        assert executor.submit(told, env={"A": "new"}).result(PATIENCE_S).stdout == b"new \n"
        spec = ExecutionSpec(argv=("echo", "spec"))
        assert executor.submit(spec).result(PATIENCE_S).stdout == b"spec\n"
        assert (
            executor.submit(["sleep", "60"], walltime_s=0.1, grace_s=0.1).result(PATIENCE_S).reason
            == "walltime"
        )


@pytest.mark.parametrize("what", ["echo hi", b"echo", 3, None, [], ["echo", 3]])
def test_what_is_no_command_is_refused_at_once(make: Make, what: Any) -> None:
    with make() as executor, pytest.raises(SpecError):
        executor.submit(what)


def test_an_unknown_option_names_the_nearest(make: Make) -> None:
    with pytest.raises(UnknownName, match="walltime_s"):
        make(walltime=3)
    with make() as executor:
        with pytest.raises(UnknownName, match="cpus"):
            executor.submit(["true"], cpu=3)
        with pytest.raises(SpecError, match="options go into"):
            executor.submit(ExecutionSpec(argv=("true",)), cpus=3)


def test_an_error_of_the_world_is_the_futures_exception(make: Make) -> None:
    with liborch.Executor("nobody@127.0.0.1:1", policy=Policy(first_attempts=1)) as executor:
        first, second = executor.submit(["true"]), executor.submit(pow, 2, 3)
        assert isinstance(first.exception(60), WorldError)
        assert isinstance(second.exception(60), HostUnreachable)


def test_more_than_any_node_has_is_the_futures_exception(make: Make) -> None:
    with make() as executor:
        error = executor.submit(["true"], cpus=10_000).exception(PATIENCE_S)
        assert isinstance(error, TooLarge | SpecError)
        assert "10000" in str(error)


def test_no_such_host_is_an_error_at_once(make: Make) -> None:
    before = threading.active_count()
    with pytest.raises(OrchestraError):
        liborch.Executor("")
    assert threading.active_count() == before


def test_a_future_runs_from_the_moment_its_node_says_so(make: Make, tmp_path: Path) -> None:
    go = pipe(tmp_path)
    with make(slots=1) as executor:
        first = held(executor, go)
        second = executor.submit(["true"])
        assert (first.running(), first.done(), first.cancel()) == (True, False, False)
        assert not second.running()
        with pytest.raises(Timeout):
            first.result(0)
        go.write_text("on\n")
        assert first.result(PATIENCE_S).stdout == b"on\n"
        assert second.result(PATIENCE_S).ok


def test_what_is_cancelled_while_it_waits_never_starts(make: Make, here: Here, tmp_path: Path) -> None:
    go = pipe(tmp_path)
    with make(slots=1) as executor:
        first = held(executor, go)
        waiting = executor.submit(["touch", str(tmp_path / "started")])
        heard: list[Future[Any]] = []
        waiting.add_done_callback(heard.append)
        assert waiting.cancel()
        assert waiting.cancel()
        assert (waiting.cancelled(), heard) == (True, [waiting])
        with pytest.raises(CancelledError):
            waiting.result(PATIENCE_S)
        assert wait([first, waiting], PATIENCE_S, FIRST_COMPLETED).done == {waiting}
        until("the end of its wait there", lambda: here.status()["queued"] == 0)
        go.write_text("on\n")
    assert first.result().ok
    assert not (tmp_path / "started").exists()


def test_futures_are_taken_as_they_complete(make: Make, tmp_path: Path) -> None:
    go = pipe(tmp_path)
    with make(slots=2) as executor:
        late, early = held(executor, go), executor.submit(["true"])
        order = as_completed([late, early], PATIENCE_S)
        assert next(order) is early
        go.write_text("on\n")
        assert next(order) is late


def test_map_adds_words_and_keeps_the_order(make: Make) -> None:
    with make() as executor:
        results = executor.map(["echo", "-n"], "abcdef", "ABCDEF", timeout=PATIENCE_S, chunksize=4)
        assert [result.stdout for result in results] == [f"{a} {a.upper()}".encode() for a in "abcdef"]


def test_map_gives_up_when_its_time_is_over_and_cancels_what_waits(
    make: Make, here: Here, tmp_path: Path
) -> None:
    go = pipe(tmp_path)
    with make(slots=1) as executor:
        first = held(executor, go)
        results = executor.map(["touch"], [str(tmp_path / "started")], timeout=0.01)
        with pytest.raises(Timeout):
            next(results)
        until("the end of its wait there", lambda: here.status()["queued"] == 0)
        go.write_text("on\n")
    assert first.result().ok
    assert not (tmp_path / "started").exists()


def test_a_callback_may_submit_and_wait_for_more(make: Make) -> None:
    answer: Future[bytes] = Future()
    with make() as executor:

        def go_on(future: Future[Any]) -> None:
            answer.set_result(executor.submit(["echo", "more"]).result(PATIENCE_S).stdout)

        executor.submit(["true"]).add_done_callback(go_on)
        assert answer.result(PATIENCE_S) == b"more\n"


def test_a_callback_that_would_wait_for_itself_is_told_so(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    answer: Future[BaseException] = Future()
    with make() as executor:

        def end(_future: Future[Any]) -> None:
            try:
                executor.shutdown()
            except RuntimeError as error:
                answer.set_result(error)

        executor.submit(["true"]).add_done_callback(end)
        assert "wait=False" in str(answer.result(PATIENCE_S))


def test_a_future_knows_its_execution(make: Make, tmp_path: Path) -> None:
    go = pipe(tmp_path)
    with make() as executor:
        future: Any = held(executor, go)
        assert future.execution_id
        assert future.execution_result is None
        go.write_text("on\n")
        assert future.result(PATIENCE_S) is future.execution_result
        assert future.execution_result.id == future.execution_id
