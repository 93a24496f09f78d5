"""Python functions on a host: what comes back of each kind of end, and what is sent, kept and told on the way."""

from __future__ import annotations

import ast
import glob
import io
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import pytest

from liborch import functions, functions_node
from liborch.drive.results import Result
from liborch.errors import FunctionDied, FunctionError, SpecError
from liborch.functions import BrokenFunction, RemoteTraceback
from tests.agent.harness import PATIENCE_S
from tests.executor.conftest import Here, Make


@pytest.fixture(autouse=True)
def by_value() -> Any:
    """A node does not have this file: what is defined here travels whole."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


class Point:
    """Something of our own that travels."""

    def __init__(self, x: int) -> None:
        self.x = x

    def moved(self, by: int) -> Point:
        return Point(self.x + by)


class Picky(Exception):
    """Can be pickled, and not be unpickled: the classic."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("picky")


class Carrier(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("carried")
        self.cargo = (n for n in ())


class Falsey(Exception):
    """An exception that counts as false."""

    def __len__(self) -> int:
        return 0


class OnlyThere:
    """Loads on the node, not here."""

    def __reduce__(self) -> Any:
        return (_load_in, (os.getpid(),))


def _load_in(pid: int) -> None:
    import os

    if os.getpid() != pid:
        raise LookupError("not here")


def _raise(error: Any) -> NoReturn:
    raise error  # the line that is told


def test_a_function_gives_what_it_returns(make: Make) -> None:
    with make() as executor:
        assert executor.submit(divmod, 17, 5).result(PATIENCE_S) == (3, 2)
        capture = executor.submit(lambda *args, **kwargs: (args, kwargs), 1, fn=2, self=3)
        assert capture.result(PATIENCE_S) == ((1,), {"fn": 2, "self": 3})
        moved = executor.submit(Point(3).moved, by=4).result(PATIENCE_S)
        assert (type(moved), moved.x) == (Point, 7)
        made = executor.submit(lambda: lambda x: x + 1).result(PATIENCE_S)
        assert made(1) == 2


def test_what_it_prints_is_its_output_and_nothing_else(make: Make) -> None:
    def talk() -> str:
        print("said")
        print("aside", file=sys.stderr)
        os.write(1, b"\x80raw\n")
        return "returned"

    with make() as executor:
        future: Any = executor.submit(talk)
        assert future.result(PATIENCE_S) == "returned"
        result: Result = future.execution_result
    assert set(result.stdout.splitlines()) == {b"said", b"\x80raw"}
    assert result.stderr == b"aside\n"


def test_an_exception_comes_with_the_traceback_there(make: Make) -> None:
    with make() as executor:
        error = executor.submit(_raise, KeyError("key")).exception(PATIENCE_S)
    assert isinstance(error, KeyError)
    assert error.args == ("key",)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "raise error  # the line that is told" in error.__cause__.tb
    assert "the line that is told" in "".join(traceback.format_exception(error))
    assert "functions_node" not in error.__cause__.tb


def test_any_exception_is_one(make: Make) -> None:
    with make() as executor:
        for error in (SystemExit(3), KeyboardInterrupt(), Falsey("empty")):
            raised = executor.submit(_raise, error).exception(PATIENCE_S)
            assert type(raised) is type(error)
            assert raised.args == error.args


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda: (n for n in ()), "returned a generator, which cannot be pickled"),
        (lambda: _raise(Carrier()), "raised .*Carrier: carried, which cannot be pickled"),
        (lambda: _raise(Picky(1, 2)), "raised .*Picky: picky, which cannot be loaded here: TypeError"),
        (OnlyThere, "returned a value, which cannot be loaded here: LookupError: not here"),
    ],
)
def test_what_cannot_travel_back_is_named(make: Make, function: Callable[[], Any], what: str) -> None:
    with make() as executor, pytest.raises(FunctionError, match=what) as told:
        executor.submit(function).result(PATIENCE_S)
    if "raised" in what:
        assert "Traceback" in str(told.value.__cause__)


def test_what_cannot_travel_there_fails_alone(make: Make) -> None:
    with make() as executor:
        bad, good = executor.submit(id, (n for n in ())), executor.submit(abs, -1)
        assert isinstance(bad.exception(PATIENCE_S), TypeError)
        assert not bad.cancelled()
        assert good.result(PATIENCE_S) == 1


def test_a_function_of_a_module_that_is_not_there_says_what_to_do(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def f(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    with make() as executor:
        with pytest.raises(FunctionError, match=r"No module named 'only_here'.*register_pickle_by_value"):
            executor.submit(only_here.f).result(PATIENCE_S)
        cloudpickle.register_pickle_by_value(only_here)
        assert executor.submit(only_here.f).result(PATIENCE_S) == 1


def test_a_function_that_ends_its_process_breaks_nothing_but_itself(make: Make) -> None:
    def end() -> None:
        os.write(2, b"last words\n")
        os._exit(3)

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with make() as executor:
        ended, killed, other = executor.submit(end), executor.submit(kill), executor.submit(abs, -1)
        error = ended.exception(PATIENCE_S)
        assert isinstance(error, FunctionDied)
        assert isinstance(error, BrokenExecutor)
        assert "exit code 3; the last it wrote: last words" in str(error)
        assert "signal 9" in str(killed.exception(PATIENCE_S))
        assert other.result(PATIENCE_S) == 1
        assert executor.submit(abs, -2).result(PATIENCE_S) == 2


def test_a_function_out_of_time_is_told_so(make: Make) -> None:
    with make(walltime_s=0.2, grace_s=0.1) as executor, pytest.raises(BrokenFunction, match="walltime"):
        executor.submit(_wait_for_ever).result(PATIENCE_S)


def _wait_for_ever() -> None:
    signal.pause()


def test_a_child_that_a_function_forks_and_forgets_leaves_no_outcome(make: Make) -> None:
    def fork() -> str:
        child = os.fork()
        if child == 0:
            return "child"
        os.waitpid(child, 0)
        return "parent"

    with make() as executor:
        assert executor.submit(fork).result(PATIENCE_S) == "parent"


def test_huge_arguments_and_results_travel_whole(make: Make, here: Here) -> None:
    with make() as executor:
        big = os.urandom(1 << 20) * 24
        assert executor.submit(lambda b: b[::-1], big).result(60) == big[::-1]


def test_a_call_is_no_secret_to_the_journal_and_leaves_nothing(make: Make, here: Here) -> None:
    secret = "correct horse battery"
    with make() as executor:
        assert executor.submit(len, secret).result(PATIENCE_S) == len(secret)
        assert [path for path in executor._calls._folder().iterdir() if path.is_dir()] == []
    for path in (path for path in here.state.rglob("*") if path.is_file()):
        assert secret.encode() not in path.read_bytes(), path
    directory = here.node.home / "orchestra"
    assert [path for path in directory.rglob("*") if path.is_file()] == []


def test_map_makes_many_calls_in_one_process(make: Make) -> None:
    with make() as executor:
        where = list(executor.map(lambda n: (n, os.getpid()), range(7), chunksize=3, timeout=PATIENCE_S))
        assert [n for n, _ in where] == list(range(7))
        pids = [pid for _, pid in where]
        assert [len(set(pids[at : at + 3])) for at in (0, 3, 6)] == [1, 1, 1]
        assert len(set(pids)) == 3
        assert list(executor.map(pow, [2, 3], [4, 5, 6], chunksize=100)) == [16, 243]
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(abs, [1], chunksize=0)


def test_of_a_chunk_the_first_exception_is_that_of_all(make: Make) -> None:
    with make() as executor:
        values = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5], chunksize=2)
        assert [next(values), next(values)] == [(0, 1), (0, 1)]
        with pytest.raises(ZeroDivisionError):
            next(values)


def test_an_interpreter_that_is_not_there_is_named(make: Make) -> None:
    with make(python="no-python") as executor, pytest.raises(FunctionError, match="there is no no-python"):
        executor.submit(abs, -1).result(PATIENCE_S)


def other_python() -> str | None:
    """An interpreter of this machine of another version than ours."""
    found = [shutil.which(f"python3.{minor}") for minor in range(6, 15)]
    found += sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python3")))
    probe = "import sys; print(sys.version_info[0], sys.version_info[1])"
    for path in filter(None, found):
        done = subprocess.run([path, "-c", probe], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.split() != [str(n) for n in sys.version_info[:2]]:
            return path
    return None


OTHER = other_python()


@pytest.mark.skipif(OTHER is None, reason="there is no other version of Python on this machine")
def test_another_version_of_python_is_refused_by_both_names(make: Make) -> None:
    with make(python=str(OTHER)) as executor, pytest.raises(FunctionError) as told:
        executor.submit(abs, -1).result(PATIENCE_S)
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"comes from Python {ours}" in str(told.value)
    assert re.search(r"there is Python 3\.\d+\.\d+", str(told.value))
    assert "python=" in str(told.value)


def test_the_nodes_half_can_be_read_by_old_pythons_and_imports_nothing_but_their_library() -> None:
    text = Path(functions_node.__file__).read_text()
    tree = ast.parse(text, feature_version=(3, 6))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported <= sys.stdlib_module_names | {"cloudpickle"}


def test_the_archive_is_the_same_whenever_it_is_made() -> None:
    first = functions._archive()
    functions._archive.cache_clear()
    assert functions._archive() == first
    names = zipfile.ZipFile(io.BytesIO(first)).namelist()
    assert "__main__.py" in names
    assert "cloudpickle/cloudpickle.pyc" in names


def test_without_cloudpickle_functions_say_what_to_install(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with make() as executor:
        with pytest.raises(SpecError, match=r"pip install 'orchestra-tools\[functions\]'"):
            executor.submit(abs, -1)
        assert executor.submit(["true"]).result(PATIENCE_S).ok


def _result(**fields: Any) -> Result:
    return Result("x", "succeeded", "exit", exit_code=0, node="n1", **fields)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"no json\n",
        b"[]\n",
        b'{"kind": 3}\n',
        b'{"kind": "value"}\n',
        b'{"kind": "value"}\n\x80garbage',
        b'{"kind": "raised", "why": "X"}\n' + pickle.dumps(3),
    ],
)
def test_an_outcome_that_is_none_is_an_error_of_its_call(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / functions_node.OUTCOME).write_bytes(content)
    value, error = functions.Call(tmp_path, "f", "python3").conclude(_result())
    assert value is None
    assert isinstance(error, FunctionError)
    assert "f on n1" in str(error)


def test_an_outcome_that_is_a_link_or_a_pipe_is_not_opened(tmp_path: Path) -> None:
    back = tmp_path / "back"
    back.mkdir()
    (tmp_path / "elsewhere").write_bytes(b'{"kind": "value"}\n' + pickle.dumps(3))
    for make_it in (lambda p: p.symlink_to(tmp_path / "elsewhere"), lambda p: os.mkfifo(p)):
        make_it(back / functions_node.OUTCOME)
        value, error = functions.Call(tmp_path, "f", "python3").conclude(_result())
        assert (value, type(error)) == (None, BrokenFunction)
        (back / functions_node.OUTCOME).unlink()
