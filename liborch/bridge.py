"""Between threads and the asyncio side: a host opened in a thread of its own, whose executions settle `concurrent.futures`.

Three kinds of threads: whoever submits; one that runs the event loop, and nothing of the person's; and a few hands, which
conclude what is over (unpickle it, say) and so run the callbacks of futures, without the loop waiting for any of it. What an
execution is, and what its Result means, comes in as `Work`; `executor.py` is the public side.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from liborch.drive.execution import Execution
from liborch.drive.ground import as_ours
from liborch.drive.link import FrameLink
from liborch.drive.results import Result
from liborch.errors import OrchestraError, WorldError
from liborch.host import Host, open_host
from liborch.specs import ExecutionSpec

#: Executions that are with the host at once: more than it starts within a second. Others take less than half the memory, and
#: begin in the order of their submission, whatever their priority.
WINDOW = 4000
#: Threads that conclude what is over.
HANDS = 4
#: How long an interpreter that was told to go by Ctrl-C waits for what runs to be ended, in seconds.
LEAVE_S = 30.0

Conclude = Callable[[Result], tuple[Any, BaseException | None]]


class ExecutionFuture(Future[Any]):
    """The Future of an execution. `running` from the moment its node says that it started; until then `cancel` succeeds.

    Cancelling may cross with the start: then the process is ended again, and the future stays cancelled.
    """

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge
        #: What `runaway show` and `logs` know it by; "" until the host has it.
        self.execution_id = ""
        #: The whole Result, also of a function, once it is over: when and where it ran, what it printed.
        self.execution_result: Result | None = None

    def cancel(self) -> bool:
        """Give it up if it has not started."""
        if not super().cancel():
            return False
        self._bridge.post(self._bridge.withdraw, self)
        return True


class Work:
    """An execution to be: what is run, how its Result becomes the future's, what is to be removed when it is over."""

    __slots__ = ("conclude", "execution", "forget", "future", "is_announced", "is_begun", "spec")

    def __init__(
        self,
        future: ExecutionFuture,
        spec: ExecutionSpec,
        conclude: Conclude,
        forget: Callable[[], None] | None = None,
    ) -> None:
        self.future = future
        self.spec = spec
        self.conclude = conclude
        self.forget = forget
        self.execution: Execution | None = None
        #: Whether somebody sees it through: it is on its way to the host.
        self.is_begun = False
        #: Whether the future was told that it runs, or that its cancellation was noticed: it takes that once.
        self.is_announced = False

    def announce(self) -> None:
        """Tell the future that it runs; where it was cancelled before, have the execution end."""
        if self.is_announced:
            return
        self.is_announced = True
        if not self.future.set_running_or_notify_cancel() and self.execution is not None:
            self.execution.cancel()


class Bridge:
    """Opens a host in a thread of its own, and ends by itself once it was closed and nothing is left to do.

    Args:
        host: As for `open_host`, whose options the others are.
        at_end: Called when all is over, in the thread.

    Raises:
        OrchestraError: What opening the host raises.
    """

    def __init__(self, host: Any, *, at_end: Callable[[], None], **options: Any) -> None:
        self._at_end = at_end
        self._name = host if isinstance(host, str) else host.name
        self._pid = os.getpid()
        # The collector may close an executor in the middle of anything that this thread does.
        self._lock = threading.RLock()
        self._is_closed = False
        self._own_threads: set[int] = set()
        #: By the future: whatever is not over.
        self._live: dict[ExecutionFuture, Work] = {}
        #: What the host was not given yet, in order; what was cancelled meanwhile is passed over.
        self._waiting: deque[Work] = deque()
        self._by_id: dict[str, Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._host: Host | None = None
        self._error: BaseException | None = None
        #: The thread is done. `Thread.join` will not do: where Ctrl-C interrupts it, Python 3.11 takes the thread for ended
        #: from then on (bpo-45274), and an interpreter would go without waiting for what is being ended.
        self._done = threading.Event()
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(opened, host, options), name=f"orchestra {self._name}", daemon=True
        )
        _living.add(self)
        self._thread.start()
        try:
            opened.result()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<Bridge to {self._name}: {state}, {len(self._live)} not over>"

    # ------------------------------------------------------------------ any thread

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that it was made in: a forked child has the object and not its thread."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raises RuntimeError after `close`, and in a forked child."""
        if not self.is_ours:
            raise RuntimeError(
                f"this Executor belongs to process {self._pid}, which forked this one: make another here"
            )
        if self._is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def give(self, work: Work) -> None:
        """Hand in an execution. Raises RuntimeError after `close`, and in a forked child."""
        self.check()
        with self._lock:
            self.check()
            self._live[work.future] = work
            self.post(self._take, work)

    def post(self, call: Callable[..., None], *arguments: Any) -> None:
        """Have the loop's thread call something. Nothing happens once it is gone."""
        loop = self._loop
        if loop is not None and self.is_ours:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(call, *arguments)

    def close(self) -> None:
        """Take nothing more in; go when all is over. Fine at any time, from anywhere."""
        if not self.is_ours:
            return
        with self._lock:
            self._is_closed = True
            self.post(self._look_over)

    def cancel_waiting(self) -> None:
        """Cancel all that has not started."""
        if self.is_ours:
            with self._lock:
                waiting = list(self._live)
            # The last first: what is next in line is not started because of it.
            for future in reversed(waiting):
                future.cancel()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for the end. Interrupted by Ctrl-C, all that runs is ended, which takes a bounded time, in the background.

        Raises:
            RuntimeError: This is one of its own threads: it would wait for itself.
            OrchestraError: What went wrong when the host was left; told once.
        """
        if not self.is_ours:
            return
        if threading.get_ident() in self._own_threads:
            raise RuntimeError("a callback cannot wait for the executor that runs it: shutdown(wait=False)")
        try:
            self._done.wait(timeout_s)
        except KeyboardInterrupt:
            self.close()
            self.post(self._leave)
            raise
        if self._done.is_set():
            self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    # ------------------------------------------------------------------ the loop's thread

    def _run(self, opened: Future[None], host: Any, options: dict[str, Any]) -> None:
        self._own_threads.add(threading.get_ident())
        try:
            asyncio.run(self._drive(opened, host, options))
        except BaseException as error:
            if opened.done():
                self._error = error
            else:
                opened.set_exception(error)
        finally:
            # All is told by now, unless the host could not even be left in order.
            for work in list(self._live.values()):
                self._settle(work, None, WorldError("the executor ended before this was over"))
            try:
                self._at_end()
            finally:
                self._done.set()

    async def _drive(self, opened: Future[None], host: Any, options: dict[str, Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        own = self._own_threads
        with ThreadPoolExecutor(
            HANDS, f"orchestra {self._name} hand", lambda: own.add(threading.get_ident())
        ) as self._hands:
            async with open_host(host, listener=self._hear, **options) as self._host:
                opened.set_result(None)
                await self._over.wait()
                links = [target.link for target in self._host._driver.targets.values()]
            for link in links:
                if isinstance(link, FrameLink):
                    # A thread of asyncio's waits for the relay of a local node, and would outlive the loop.
                    await link.wait_closed()
            # Leaving has settled whatever was not over.
            while self._tasks:
                await asyncio.wait(self._tasks)

    def _hear(self, what: str, x: str, _fields: dict[str, Any]) -> None:
        if what == "started" and x in self._by_id:
            self._by_id[x].announce()

    def _take(self, work: Work) -> None:
        self._waiting.append(work)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._tasks) < WINDOW:
            work = self._waiting.popleft()
            if work.future.cancelled():
                self._drop(work)
                continue
            task = asyncio.ensure_future(self._see_through(work))
            work.is_begun = True
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _see_through(self, work: Work) -> None:
        result: Result | None = None
        error: OrchestraError | None = None
        assert self._host is not None
        try:
            execution = work.execution = self._host.submit(work.spec)
            self._by_id[execution.id] = work
            work.future.execution_id = execution.id
            if work.future.cancelled():
                execution.cancel()
            result = await execution
        except Exception as failure:
            error = as_ours(failure)
        if work.execution is not None:
            self._by_id.pop(work.execution.id, None)
        work.announce()
        await asyncio.get_running_loop().run_in_executor(self._hands, self._settle, work, result, error)
        self._tasks.discard(asyncio.current_task())
        self._fill()
        self._look_over()

    def withdraw(self, future: ExecutionFuture) -> None:
        """A future was cancelled: its execution ends, or never begins."""
        work = self._live.get(future)
        if work is not None and work.is_begun:
            work.announce()
        elif work is not None:
            self._drop(work)

    def _drop(self, work: Work) -> None:
        if work.future in self._live:
            work.announce()
            self._settle(work, None, None)
            self._look_over()

    def _look_over(self) -> None:
        if self._is_closed and not self._live:
            self._over.set()

    def _leave(self) -> None:
        self._over.set()

    # ------------------------------------------------------------------ a hand

    def _settle(self, work: Work, result: Result | None, error: BaseException | None) -> None:
        """Tell the future, unless it was cancelled: then only tidy up."""
        future = work.future
        value: Any = None
        is_wanted = not future.cancelled()
        try:
            if is_wanted and error is None and result is not None:
                value, error = work.conclude(result)
        except BaseException as failure:
            error = failure
        finally:
            if work.forget is not None:
                work.forget()
        # Before it is told: whoever hears of it may shut down, or look for what is left.
        with self._lock:
            self._live.pop(future, None)
        if is_wanted:
            work.announce()
            future.execution_result = result
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)
        # An exception knows its frames, and this one would know the future that knows the exception.
        del future, work, error, value, result


#: Bridges whose threads may run.
_living: weakref.WeakSet[Bridge] = weakref.WeakSet()


def _finish_all() -> None:
    """What the interpreter does before it ends, as for the executors of the standard library: all that was submitted is done.

    Ctrl-C meanwhile: what runs is ended, in bounded time.
    """
    bridges = [bridge for bridge in _living if bridge.is_ours]
    for bridge in bridges:
        bridge.close()
    try:
        for bridge in bridges:
            bridge.join()
    except KeyboardInterrupt:
        for bridge in bridges:
            bridge.post(bridge._leave)
        for bridge in bridges:
            bridge.join(LEAVE_S)
        raise


def _in_child() -> None:
    """In a forked child: let go of what only the parent's loop may use, so that it is closed when the parent closes it, or dies.

    The descriptors stay, leading nowhere: closed, they would be given to others while objects here still hold their numbers.
    """
    for bridge in _living:
        selector: Any = getattr(bridge._loop, "_selector", None)
        watched = selector.get_map() if selector is not None else None
        if watched is None:
            continue
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in (*watched, selector.fileno()):
            os.dup2(nowhere, descriptor, inheritable=False)
        os.close(nowhere)


os.register_at_fork(after_in_child=_in_child)
# Not `atexit`: that comes after the threads of `asyncio.to_thread` refuse work, which the loop needs to the end. These run
# the last first, and `concurrent.futures.thread`, imported above, has registered itself for that.
_register: Callable[[Callable[[], None]], None] = getattr(threading, "_register_atexit")  # noqa: B009
_register(_finish_all)
