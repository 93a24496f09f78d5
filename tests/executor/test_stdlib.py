"""The standard library's own tests of executors, run against ours. They are imported from where Python or Debian has them.

Where neither does, these are skipped; the same is told in our own words by the other files here. Debian has them in
libpython3.X-testsuite, of which unpacking is enough:

    apt-get download libpython3.11-testsuite && dpkg-deb -x libpython3.11-testsuite_*.deb build/testsuite

Left out of the standard library's classes is what asks for something that only threads or processes of this machine have.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest

import liborch
from liborch.functions import RemoteTraceback
from liborch.specs import HostProfile, SlotSpec
from tests.agent.harness import until
from tests.drive.conftest import Here

#: Why a test of theirs is none for us.
NOT_OURS = {
    "test_max_workers_negative": "room is the host's, and not given to the executor",
    "test_interpreter_shutdown": "starts a program with an executor of the standard library; see test_leaving.py",
    "test_submit_after_interpreter_shutdown": "the same",
    "test_hang_gh83386": "the same",
    # Of the later versions of Python.
    "test_hang_gh94440": "the same",
}


def find(*modules: str) -> ModuleType | None:
    """The first of these modules of `test.test_concurrent_futures` that there is; "" is itself."""
    import test

    place = f"usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/test"
    for folder in (Path("/") / place, Path(__file__).parents[2] / "build" / "testsuite" / place):
        if folder.is_dir() and str(folder) not in test.__path__:
            # Behind our own: only what is missing there is looked for in it.
            test.__path__.append(str(folder))
    for name in modules:
        full = ".".join(filter(None, ("test.test_concurrent_futures", name)))
        try:
            return importlib.import_module(full)
        except (ImportError, unittest.SkipTest):
            continue
    return None


def theirs(module: str, name: str) -> type[Any]:
    """A class of theirs that waits for an executor, or a skipped stand-in."""
    for found in (find(module), find("")):
        if found is not None and hasattr(found, name):
            cls: type[Any] = getattr(found, name)
            return cls
    return _Missing


class _Missing:
    @pytest.mark.skip(reason="the standard library's tests are not installed")
    def test_is_there(self) -> None:
        """Says that something is missing."""

    @pytest.mark.skip(reason="the standard library's tests are not installed")
    def test_cancel_futures(self) -> None:
        """For who adds something to it."""


def our_executor(max_workers: int = 2) -> liborch.Executor:
    """An executor on this machine, as wide as they ask for."""
    profile = HostProfile(name="local", ssh="local", slots=SlotSpec(count=max_workers))
    return liborch.Executor(profile, python=sys.executable)


class Ours(unittest.TestCase):
    """What their classes are mixed with: gives them `executor`, and takes it away."""

    executor_type = staticmethod(our_executor)
    worker_count = 5
    here: Here

    @pytest.fixture(autouse=True)
    def _place(self, here: Here) -> Iterator[None]:
        by_value = [
            module for name, module in sys.modules.items() if name.startswith("test.test_concurrent_")
        ]
        for module in by_value:
            # Hosts do not have it.
            cloudpickle.register_pickle_by_value(module)
        yield
        for module in by_value:
            cloudpickle.unregister_pickle_by_value(module)
        here.assert_bare()

    def setUp(self) -> None:
        name = self._testMethodName
        if name in NOT_OURS:
            self.skipTest(NOT_OURS[name])
        self.executor = our_executor(self.worker_count)

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)
        del self.executor


class TestTheirWait(theirs("test_wait", "WaitTests"), Ours):  # type: ignore[misc]
    """`futures.wait`."""


class TestTheirAsCompleted(theirs("test_as_completed", "AsCompletedTests"), Ours):  # type: ignore[misc]
    """`futures.as_completed`."""


class TestTheirExecutor(theirs("executor", "ExecutorTest"), Ours):  # type: ignore[misc]
    """`submit` and `map`."""


class TestTheirShutdown(theirs("test_shutdown", "ExecutorShutdownTest"), Ours):  # type: ignore[misc]
    """`shutdown`."""

    def test_cancel_futures(self) -> None:
        # Theirs takes for granted that some of what was submitted runs by now; a host takes a moment.
        shutdown = self.executor.shutdown

        def with_some_running(**options: Any) -> None:
            if options:
                until(
                    "a start", lambda: any(future.running() for future in list(self.executor._bridge._live))
                )
            shutdown(**options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.executor, "shutdown", with_some_running)
            super().test_cancel_futures()


def of_processes(name: str) -> Any:
    """One test of theirs for pools of processes, which ours can pass as well."""
    cls = theirs("test_process_pool", "ProcessPoolExecutorTest")
    return getattr(cls, name, unittest.skip("not in this version")(lambda self: None))


class TestTheirProcesses(Ours):
    """Of their tests for pools of processes those that ask for nothing but what an executor has."""

    test_map_chunksize = of_processes("test_map_chunksize")

    def test_traceback(self) -> None:
        from concurrent.futures import process

        # Theirs looks for the class that carries the traceback by its name.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "_RemoteTraceback", RemoteTraceback)
            of_processes("test_traceback")(self)

    @staticmethod
    def _test_traceback() -> None:
        # As theirs has it, to the letter.
        # fmt: off
        raise RuntimeError(123) # some comment
        # fmt: on
