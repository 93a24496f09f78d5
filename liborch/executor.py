"""Hosts for programs that are not asyncio: `Executor` is a `concurrent.futures.Executor` whose room is a host.

::

    with liborch.Executor("gpu1") as executor:
        future = executor.submit(["./train", "--lr", "0.1"], cpus=2)   # a command: its future has a Result
        print(future.result().exit_code)
        squares = executor.map(pow, range(100), [2] * 100, chunksize=10)   # a function: needs cloudpickle

What it runs are executions as any other: `runaway ps` lists them. The thread and its event loop are `bridge.py`'s, what is
pickled is `functions.py`'s.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, ParamSpec, TypeVar, overload

import msgspec

from liborch.bridge import Bridge, ExecutionFuture, Work
from liborch.drive.results import Result
from liborch.errors import SpecError, UnknownName
from liborch.functions import Calls, CallSnapshots
from liborch.names import nearest
from liborch.places import Places, places
from liborch.specs import ExecutionSpec, HostProfile, Resources

P = ParamSpec("P")
T = TypeVar("T")
Command = Sequence[str | os.PathLike[str]] | ExecutionSpec

_RESOURCES = tuple(field.name for field in msgspec.structs.fields(Resources))
_OPTIONS = tuple(field.name for field in msgspec.structs.fields(ExecutionSpec) if field.name != "argv")


class Executor(futures.Executor):
    """Runs commands and Python functions on a host; as many at a time as it has room for.

    Leaving its `with` block, or `shutdown`, waits for all that was submitted. So does the end of the interpreter, as with
    the executors of the standard library. Ctrl-C while it waits ends what runs. An executor made before a fork is of no
    use in the child: `submit` raises RuntimeError there.

    A function is pickled with cloudpickle when it is submitted, and called by a Python of the host of the same major.minor
    version, in a process and an empty folder of its own. What it returns or raises is pickled there and loaded here: calling
    functions on a host means to trust it as much as this machine. For commands nothing is ever loaded. What a function
    prints is its output, as a command's: `future.execution_result.stdout`, or `runaway logs`.

    Args:
        host: `local`, an SSH alias, user@name:port, a profile's name, or a profile.
        python: The interpreter on the host that calls functions: a name on its PATH, or a path. None: `python3`, and on
            `local` the one that runs this.
        environment, where, policy, limits, accept_new, title: As for `open_host`.
        options: Of every execution, where `submit` does not say otherwise: `cpus`, `memory_bytes`, `gpus`, `numa`, and the
            fields of ExecutionSpec.

    Raises:
        SpecError: Options that cannot be.
        UnknownName, ProfileError: No such host.
        JournalError, StorageError: The journal cannot be used.
    """

    def __init__(
        self,
        host: str | HostProfile,
        *,
        python: str | None = None,
        environment: dict[str, str] | None = None,
        where: Places | None = None,
        policy: Any = None,
        limits: Any = None,
        accept_new: bool = False,
        title: str = "",
        **options: Any,
    ) -> None:
        self._options = options
        self._plain = _spec(("true",), options)
        self._calls = Calls(python or (sys.executable if host == "local" else "python3"))
        self._bridge = Bridge(
            host,
            where=where or places(environment),
            policy=policy,
            limits=limits,
            accept_new=accept_new,
            title=title or "executor",
            snapshots=CallSnapshots(),
            at_end=self._calls.close,
        )
        # Whoever drops it without a word leaves a thread that ends when all is done.
        weakref.finalize(self, self._bridge.close).atexit = False

    def __repr__(self) -> str:
        return f"<Executor: {self._bridge!r}>"

    @overload
    def submit(
        self, fn: Command, /, *words: str | os.PathLike[str], **options: Any
    ) -> futures.Future[Result]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]: ...
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        """Have a command run, or a function called. Returns at once with an `ExecutionFuture`.

        A command is a list of words, followed by `args`; `kwargs` are options as the executor's own. Its future has a
        Result however it ended, also with another exit code than 0, killed, out of time or lost: look at `Result.ok`.
        Exceptions are what kept it from running: WorldError when no node could be used, SpecError when none ever could.

        A function gets `args` and `kwargs`; its future has what it returned or raised, the traceback there as
        `__cause__`. Beyond those of commands, there are

        - FunctionError: the versions of Python differ (both are named); the function could not be loaded there; what it
          returned or raised could not be pickled there or loaded here. The traceback there, if any, is its `__cause__`.
        - FunctionDied, which is a BrokenExecutor as well: its process ended without an outcome: killed, `os._exit`, out
          of memory or time. Other calls go on.
        - whatever pickling the call raised here.

        Raises:
            RuntimeError: After `shutdown`, or in a forked child.
            SpecError: What cannot be run: no words, no function, no cloudpickle here.
        """
        future = ExecutionFuture(self._bridge)
        if isinstance(fn, ExecutionSpec):
            if args or kwargs:
                raise SpecError("words and options go into the ExecutionSpec")
            self._bridge.give(Work(future, fn, _as_it_is))
        elif isinstance(fn, _Chunks):
            self._call(future, fn.function, args[0], many=True)
        elif callable(fn):
            self._call(future, fn, (args, kwargs))
        else:
            spec = _spec(_words(fn, args), {**self._options, **kwargs})
            self._bridge.give(Work(future, spec, _as_it_is))
        return future

    def _call(
        self, future: ExecutionFuture, fn: Callable[..., Any], calls: Any, *, many: bool = False
    ) -> None:
        self._bridge.check()
        try:
            call = self._calls.pack(fn, calls, many=many)
        except SpecError:
            raise
        except Exception as error:
            # As for the processes of the standard library: of a thousand calls one that cannot travel fails alone.
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return
        try:
            self._bridge.give(Work(future, call.spec(self._plain), call.conclude, call.forget))
        except BaseException:
            call.forget()
            raise

    def map(
        self, fn: Any, *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """Submit for each tuple of the iterables, and return an iterator over what comes of it, in their order.

        Args:
            fn: A function; or a command, to which the tuple's words are added.
            timeout: Seconds from now until TimeoutError.
            chunksize: So many calls of a function are made by one process, one after another; the first exception among
                them is that of all. Each process costs some tens of milliseconds. For commands it changes nothing.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1 or not callable(fn):
            return super().map(fn, *iterables, timeout=timeout)
        tuples = zip(*iterables, strict=False)
        many: Any = _Chunks(fn)
        whole: Any = super().map(many, _chunks(tuples, chunksize), timeout=timeout)
        return _one_by_one(whole)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more in. Fine more than once.

        Args:
            wait: Return when all is over and nothing is left. Ctrl-C meanwhile ends what runs.
            cancel_futures: Cancel what has not started.

        Raises:
            OrchestraError: With `wait`, what went wrong when the host was left; everything submitted has its outcome.
            RuntimeError: Waiting in one of its own threads: in a callback.
        """
        self._bridge.close()
        if cancel_futures:
            self._bridge.cancel_waiting()
        if wait:
            self._bridge.join()


class _Chunks:
    """A function to be called for each of many tuples by one process."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


def _chunks(tuples: Iterable[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    left = iter(tuples)
    while chunk := list(itertools.islice(left, size)):
        yield chunk


def _one_by_one(chunks: Generator[list[Any], None, None]) -> Iterator[Any]:
    """What the chunks hold; keeps nothing that was handed out. Closed early, it cancels what has not started."""
    with contextlib.closing(chunks):
        for chunk in chunks:
            values = deque(chunk)
            del chunk
            while values:
                yield values.popleft()


def _as_it_is(result: Result) -> tuple[Any, BaseException | None]:
    return result, None


def _words(command: Any, more: Iterable[Any]) -> tuple[str, ...]:
    """The words of a command. Raises SpecError for what is none."""
    if isinstance(command, str | bytes) or not isinstance(command, Sequence):
        raise SpecError(
            f"neither a function nor a command: {command!r}; a command is a list of words, for a shell ['sh', '-c', ...]"
        )
    words = tuple(os.fspath(word) if isinstance(word, os.PathLike) else word for word in (*command, *more))
    for word in words:
        if not isinstance(word, str):
            raise SpecError(f"the words of a command are text, not {word!r}")
    return words


def _spec(words: tuple[str, ...], options: dict[str, Any]) -> ExecutionSpec:
    """Make a specification of words and options. Raises SpecError for an option there is none of, or that cannot be."""
    mine = {name: options[name] for name in _RESOURCES if name in options}
    rest = {name: value for name, value in options.items() if name not in mine}
    if mine:
        if "resources" in rest:
            raise SpecError(f"{', '.join(mine)} and resources say the same thing: give one of them")
        rest["resources"] = Resources(**mine)
    unknown = [name for name in rest if name not in _OPTIONS]
    if unknown:
        raise UnknownName("option of an execution", unknown[0], nearest(unknown[0], (*_OPTIONS, *_RESOURCES)))
    return ExecutionSpec(argv=words, **rest)
