"""Post commands: what a person has run on this machine for each execution of a batch that ended (`-p`, `-P`).

It runs when the execution's results and its `ecode`, `stdout` and `stderr` are in the output folder, in that folder, and before the
verdict is on record: the execution is COLLECTING meanwhile, its slot is somebody else's already. So a client that is killed leaves it
to the next one, which runs it again: at least once, never two at a time for one execution (the one that goes on after its client
was killed holds a lock on `post.out`). What it prints goes into that file.

It is run for what succeeded or failed, not for what was cancelled or lost: nothing of that came to its end. How it ended
changes no verdict. What is common to a batch's executions is told by `run`; the state an execution is in meanwhile is the core's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

from liborch.drive.execution import Execution
from liborch.drive.results import Result
from liborch.errors import SpecError, StorageError
from liborch.profiles.procedures import join_arguments
from liborch.quantities import format_duration
from runaway.batches.outcomes import Outcomes, variables_of
from runaway.scripts import how_to_run

#: Output up to so many bytes is in RUNAWAY_STDOUT and RUNAWAY_STDERR; more than that is in the files alone. The system's limit
#: for one variable is 128 KiB.
VARIABLE_BYTES = 64 << 10
#: Between TERM and KILL when the batch ends, in seconds.
GRACE_S = 2.0
#: How often one that a killed client left is looked at, in seconds.
LOOK_S = 0.2
#: One that runs for longer than this is told of, in seconds.
LONG_S = 60.0
#: The status of one that took too long, as timeout(1) has it.
OUT_OF_TIME = 124
#: The status of one that was ended for good, with its batch: as by TERM.
ENDED = 128 + signal.SIGTERM
#: What is told of a failing one: the end of its output, in bytes.
TAIL_BYTES = 2000


def post_words(command: str | None, script: str | None, cwd: Path) -> tuple[str, ...]:
    """Return what to run for `--post-command` or `--post-script`; empty for neither.

    Raises:
        SpecError: Both were given; there is no such script, or nothing says how to run it.
    """
    if command is not None and script is not None:
        raise SpecError("--post-command and --post-script: give one of them")
    if command is not None:
        return (which("bash") or "/bin/sh", "-c", command)
    if script is None:
        return ()
    path = Path(os.path.abspath(cwd / script))
    if not path.is_file():
        raise SpecError(f"--post-script: there is no file {script}")
    return (*how_to_run(path, path.name)[:-1], str(path))


@dataclass(frozen=True)
class Post:
    """How a post command ended."""

    #: As a shell says it: 128+n for signal n, 127 when there is no such program.
    status: int
    #: The end of what it printed.
    tail: str


class PostCommands:
    """Runs post commands, as many at a time as there are cores, in order of ends.

    Args:
        outcomes: Writes what they look at.
        here: What relative output folders are relative to.
        tell: Told of each end, by the event loop's thread.
        most_s: One that takes longer is ended, in seconds; None: never.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        here: Path,
        tell: Callable[[Execution, Post], None],
        most_s: float | None = None,
    ) -> None:
        self._outcomes = outcomes
        self._here = here
        self._tell = tell
        self._at_once = len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(self._at_once, "post")
        #: {execution: how it will have ended}; None: not in this life. Kept until somebody took it: who asked first may be gone.
        self._pending: dict[str, asyncio.Future[Post | None]] = {}
        #: Executions whose post command was not run to its end.
        self.abandoned: set[str] = set()
        #: Process groups that were started and not waited for.
        self._groups: set[int] = set()
        #: {execution: when its post command was started, or was found running}
        self._began: dict[str, float] = {}
        self._most_s = most_s
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._for_good = False

    def __repr__(self) -> str:
        return f"<PostCommands: {len(self._groups)} running, {self.under_way} under way>"

    @property
    def under_way(self) -> int:
        """How many run or wait for their turn."""
        return sum(not each.done() for each in self._pending.values())

    def running(self) -> list[tuple[str, float]]:
        """(execution, for how many seconds) of those that run, the longest first."""
        now = time.monotonic()
        with self._lock:
            return [(x, now - began) for x, began in self._began.items()]

    def describe(self) -> dict[str, Any]:
        """For those who look on: how many are under way, and the one that has run longest, if that is long."""
        long = self.long()
        return {"posts": self.under_way, "longest_post": list(long[0]) if long else None}

    def long(self) -> list[tuple[str, float]]:
        """Those of `running` that have run for long."""
        return [(x, took) for x, took in self.running() if took > LONG_S]

    async def __call__(
        self, execution: Execution, result: Result, values: dict[str, str]
    ) -> dict[str, Any] | None:
        """Run the post command of an execution. Returns what its record says of it; None: not run to its end, so that it is run again.

        Asked again for one that runs, waits for that one. Cancelling leaves it running.

        Args:
            values: RUNAWAY_* variables that only the driver knows.

        Raises:
            StorageError: What it is to look at cannot be written.
        """
        if result.started_at is None or result.state not in ("succeeded", "failed"):
            return {}
        pending = self._pending.get(execution.id)
        if pending is None:
            if self._over.is_set():
                if self._for_good:
                    await asyncio.to_thread(self._end_others, execution, result)
                return self._given_up(execution)
            loop = asyncio.get_running_loop()
            pending = loop.run_in_executor(self._threads, self._run, execution, result, values)
            self._pending[execution.id] = pending
            pending.add_done_callback(lambda done: self._ended(execution, done))
        try:
            post = await asyncio.shield(pending)
        except asyncio.CancelledError:
            if not pending.cancelled():
                raise  # Whoever asks again takes it.
            post = None  # It waited for its turn when the batch ended.
        except StorageError:
            self._pending.pop(execution.id, None)
            raise
        self._pending.pop(execution.id, None)
        return self._given_up(execution) if post is None else {"post_status": post.status}

    def _given_up(self, execution: Execution) -> dict[str, Any] | None:
        if self._for_good:
            return {"post_status": ENDED}
        self.abandoned.add(execution.id)
        return None

    def _ended(self, execution: Execution, done: asyncio.Future[Post | None]) -> None:
        with self._lock:
            self._began.pop(execution.id, None)
        if not done.cancelled() and done.exception() is not None:
            return
        post = None if done.cancelled() else done.result()
        if post is not None:
            self._tell(execution, post)
        else:
            self._given_up(execution)

    async def close(self, *, for_good: bool = False) -> None:
        """End those that run: TERM, a grace, KILL. Those that wait are not run. The next client runs them all again.

        Args:
            for_good: It does not: the batch itself is to end, and they are over with it.
        """
        self._for_good = self._for_good or for_good
        self._over.set()
        self._signal(signal.SIGTERM)
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._pending:
            await asyncio.wait(self._pending.values(), timeout=GRACE_S)
        self._signal(signal.SIGKILL)
        if self._pending:
            await asyncio.wait(self._pending.values(), timeout=GRACE_S)

    def _signal(self, number: int) -> None:
        with self._lock:
            for group in self._groups:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, number)

    # ------------------------------------------------------------------ in a thread

    def _run(self, execution: Execution, result: Result, values: dict[str, str]) -> Post | None:
        folder = os.path.abspath(self._outcomes.write(execution, result))
        path = f"{folder}/post.out"
        try:
            environment = self._environment(execution, result, values, folder)
            return self._run_into(path, execution, folder, environment)
        except OSError as error:
            raise StorageError(
                "this machine", error.filename or path, error.errno or 0, "running a post command"
            ) from error

    def _run_into(
        self, path: str, execution: Execution, folder: str, environment: dict[str, str]
    ) -> Post | None:
        with open(path, "ab") as output:
            if not self._is_alone(output.fileno(), execution.id):
                return None
            output.truncate(0)
            status = self._run_in(execution, folder, environment, output.fileno())
            if status is None:
                return None
            if status == OUT_OF_TIME and self._most_s is not None:
                output.write(f"ended after {format_duration(self._most_s)} (--post-time)\n".encode())
            size = output.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):
            if not size:
                os.unlink(path)
                return Post(status, "")
            with open(path, "rb") as written:
                written.seek(max(0, size - TAIL_BYTES))
                return Post(status, written.read(TAIL_BYTES).decode("utf-8", "replace").strip())
        return Post(status, "")

    def _is_alone(self, output: int, x: str) -> bool:
        """Wait until no post command that a killed client left is at it, for its time at most. False: the batch ended before."""
        began = time.monotonic()
        with self._lock:
            self._began[x] = began
        while not self._over.is_set():
            try:
                fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                took = time.monotonic() - began
                if self._most_s is not None and took > self._most_s:
                    late = took > self._most_s + GRACE_S
                    _signal_writers(output, x, signal.SIGKILL if late else signal.SIGTERM)
                self._over.wait(LOOK_S)
            except OSError:
                return True  # A file system without locks.
            else:
                return True
        if self._for_good:
            _signal_writers(output, x, signal.SIGKILL)
        return False

    def _run_in(self, execution: Execution, folder: str, env: dict[str, str], output: int) -> int | None:
        """Run it to its end; None: it was ended with the batch."""
        words = execution.spec.post
        with self._lock:
            if self._over.is_set():
                return None
            try:
                process = subprocess.Popen(
                    words,
                    cwd=folder,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            except OSError as error:
                os.write(output, f"{words[0]}: {error.strerror}\n".encode())
                return 127
            self._groups.add(process.pid)
            self._began[execution.id] = time.monotonic()
        expired: list[int] = []
        with self._limited(process.pid, expired):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            # What it left running is in its group, and its number is nobody else's before it is waited for.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            self._groups.discard(process.pid)
            code = process.wait()
        if expired:
            return OUT_OF_TIME
        if code < 0 and self._over.is_set():
            return None
        return code if code >= 0 else 128 - code

    def _end_others(self, execution: Execution, result: Result) -> None:
        """End what a client that was killed left of its post command."""
        with (
            contextlib.suppress(OSError),
            open(f"{self._outcomes.folder(execution, result)}/post.out", "rb") as output,
        ):
            _signal_writers(output.fileno(), execution.id, signal.SIGKILL)

    @contextlib.contextmanager
    def _limited(self, group: int, expired: list[int]) -> Iterator[None]:
        """End a process group that takes too long, and note that: TERM, a grace, KILL."""
        if self._most_s is None:
            yield
            return

        def end(number: int) -> None:
            with self._lock:
                if group in self._groups:
                    expired.append(number)
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(group, number)

        timers = [
            threading.Timer(self._most_s, end, [signal.SIGTERM]),
            threading.Timer(self._most_s + GRACE_S, end, [signal.SIGKILL]),
        ]
        for timer in timers:
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()

    def _environment(
        self, execution: Execution, result: Result, values: dict[str, str], folder: str
    ) -> dict[str, str]:
        """The caller's, with the RUNAWAY_* variables of this execution and no others."""
        spec = execution.spec
        ours = {
            "RUNAWAY_SCRIPT_PATH": spec.argv[0] if spec.argv else "",
            "RUNAWAY_LOCAL_FOLDER": str(self._here),
            "RUNAWAY_ARGUMENTS": join_arguments(spec.argv[1:]),
            **values,
            **variables_of(execution, result),
            "RUNAWAY_OUTPUT_FOLDER": folder,
        }
        for name in ("stdout", "stderr"):
            variable = f"RUNAWAY_{name.upper()}"
            file = ours[f"{variable}_FILE"] = f"{folder}/{name}"
            text = _text_of(file)
            if text is None:
                ours.pop(variable, None)
            else:
                ours[variable] = text
        mine = {name: value for name, value in os.environ.items() if not name.startswith("RUNAWAY")}
        return {**mine, **{name: value for name, value in ours.items() if name.startswith("RUNAWAY")}}


def _signal_writers(output: int, x: str, number: int) -> None:
    """Signal what a post command of this execution that another client started is made of: it writes there, and carries its id."""
    there = os.fstat(output)
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            writes = os.stat(f"/proc/{name}/fd/1")
            if (writes.st_dev, writes.st_ino) == (there.st_dev, there.st_ino):
                words = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                if f"RUNAWAY_UUID={x}".encode() in words:
                    os.kill(int(name), number)


def _text_of(path: str) -> str | None:
    """What is in a file, as a variable can hold it; None: it cannot."""
    with open(path, "rb") as file:
        data = file.read(VARIABLE_BYTES + 1)
    return None if len(data) > VARIABLE_BYTES or b"\0" in data else os.fsdecode(data)
