"""The asyncio side of the journal: a thread of its own that writes while the event loop goes on.

Group commits: what arrives while one transaction is under way goes into the next, together. When the disk refuses,
everything is kept, told, and tried again until there is room; who hands over more than fits into memory waits.
Checkpoints happen here as well, when nothing is to be written or the log has grown.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from liborch.errors import InvariantError, JournalError, OrchestraError, StorageError
from liborch.journal.rows import Group
from liborch.journal.store import Journal

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

#: Seconds between attempts while the disk refuses: doubled from the first to the last.
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 2.0
#: Seconds without work after which the log is moved into the file.
IDLE_S = 1.0
#: An event loop that is never idle gives way to the thread this often, for this long, while commits wait
#: and none is answered.
GIVE_WAY_EVERY_S = 0.005
GIVE_WAY_S = 0.0002
#: Groups in one transaction at most, so that one commit stays short after a stall.
GROUPS_AT_ONCE = 200


class _Item:
    """Something to do in the thread, and who waits for it."""

    __slots__ = ("call", "future", "group", "size_bytes")

    def __init__(
        self,
        group: Group | None,
        call: Callable[[Journal], Any] | None,
        size_bytes: int,
        future: asyncio.Future[Any],
    ) -> None:
        self.group = group
        self.call = call
        self.size_bytes = size_bytes
        self.future = future


class Writer:
    """Writes a journal from a thread; belongs to the event loop it was made in.

    The journal is the thread's from then on: ask it through `run`, or open another one read-only.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        on_stall: Callable[[StorageError], object] | None = None,
        on_recover: Callable[[], object] | None = None,
        most_bytes: int = 64 << 20,
    ) -> None:
        """Start the thread.

        Args:
            on_stall: Called in the event loop when the disk begins to refuse (and when it does so for another reason).
            on_recover: Called in the event loop when everything kept back is written.
            most_bytes: Groups kept in memory, roughly; beyond it `commit` waits before it takes one.
        """
        # Here and not above: commands that only read a journal start without asyncio.
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._journal = journal
        self._on_stall = on_stall
        self._on_recover = on_recover
        self._most_bytes = most_bytes
        #: Why nothing can be written just now; None when all is well.
        self.stalled: StorageError | None = None
        self._broken: OrchestraError | None = None
        self._pending_bytes = 0
        #: Items answered, in all and when the loop last looked whether it keeps the thread from its work.
        self._settled = self._was_settled = 0
        self._giving_way: asyncio.TimerHandle | None = None
        #: Waits for room in memory, in order of arrival.
        self._line: deque[_Item] = deque()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        # Shared with the thread, guarded by `_wake`.
        self._items: deque[_Item] = deque()
        self._wake = threading.Condition()
        self._closing = threading.Event()
        self._is_dirty = True
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        state = "stalled" if self.stalled else "closed" if self._closing.is_set() else "open"
        return f"<Writer {self._journal.path}: {state}, {len(self._items)} waiting>"

    # -- in the event loop

    async def commit(self, group: Group) -> None:
        """Write a group; returns when a kill of this process cannot lose it any more.

        Groups are written in the order of the calls. Cancelling leaves the group written or not, never half: it is
        taken back only while it still waits for room in memory.

        Raises:
            InvariantError: It names what the journal does not know, or enters something twice; not written.
            JournalError: The journal is damaged or gone; nothing can be written any more.
            StorageError: Closed while the disk refused; not written.
        """
        await self._hand_over(_Item(group, None, group.size_bytes(), self._loop.create_future()))

    async def run(self, call: Callable[[Journal], T]) -> T:
        """Call something with the journal in the writing thread, after all commits so far; returns what it returns.

        For `begin`, `take_over`, `end` and questions. Its errors are raised, StorageError too: nothing is retried.
        Cancelling does not stop it.
        """
        result: T = await self._hand_over(_Item(None, call, 0, self._loop.create_future()))
        return result

    async def close(self) -> None:
        """Write what waits, end the thread, close the journal. Fine when closed already.

        Cancelling stops the waiting, not the closing.

        Raises:
            StorageError: The disk refuses to the last: what waited is not in the journal, and each `commit` was told.
        """
        import asyncio

        if not self._closing.is_set():
            with self._wake:
                # What waits for room is in memory anyhow.
                self._items.extend(self._line)
                self._pending_bytes += sum(item.size_bytes for item in self._line)
                self._line.clear()
                self._closing.set()
                self._wake.notify()
        await asyncio.shield(self._ended)
        self._thread.join()
        if isinstance(self._broken, StorageError):
            raise self._broken

    def _hand_over(self, item: _Item) -> asyncio.Future[Any]:
        if self._broken is not None:
            raise self._broken
        if self._closing.is_set():
            raise InvariantError(f"{self._journal.path}: written to after it was closed")
        if self._line or self._pending_bytes >= self._most_bytes:
            self._line.append(item)
        else:
            self._pending_bytes += item.size_bytes
            with self._wake:
                self._items.append(item)
                self._wake.notify()
        if self._giving_way is None:
            self._giving_way = self._loop.call_later(GIVE_WAY_EVERY_S, self._give_way)
        return item.future

    def _give_way(self) -> None:
        """Let the thread have Python's global lock. In the event loop, as long as commits wait.

        A loop that runs callbacks of a few milliseconds without a pause releases the lock at each `select` and has it
        back before the thread has woken up; since it was released, the thread's own request for it never falls due
        (`sys.setswitchinterval`). The thread then waits for seconds, and with it whoever commits.
        """
        if self._pending_bytes == 0 or self.stalled is not None:
            self._giving_way = None
            return
        if self._was_settled == self._settled:
            time.sleep(GIVE_WAY_S)
        self._was_settled = self._settled
        self._giving_way = self._loop.call_later(GIVE_WAY_EVERY_S, self._give_way)

    def _settle(self, items: Sequence[_Item], error: BaseException | None, result: object = None) -> None:
        """Tell those who wait, and let the next ones in. In the event loop."""
        self._settled += len(items)
        for item in items:
            self._pending_bytes -= item.size_bytes
            if item.future.done():
                continue  # Cancelled meanwhile.
            if error is None:
                item.future.set_result(result)
            else:
                item.future.set_exception(error)
        let_in = []
        while self._line and self._pending_bytes < self._most_bytes:
            item = self._line.popleft()
            if not item.future.done():
                self._pending_bytes += item.size_bytes
                let_in.append(item)
        if let_in:
            with self._wake:
                self._items.extend(let_in)
                self._wake.notify()

    def _stall(self, error: StorageError | None) -> None:
        """Tell that the disk refuses, or no longer does. In the event loop."""
        self.stalled = error
        if error is not None and self._on_stall is not None:
            self._on_stall(error)
        elif error is None and self._on_recover is not None:
            self._on_recover()

    def _finish(self, failure: OrchestraError | None) -> None:
        """The thread has ended: nobody may be left waiting. In the event loop."""
        self._broken = failure
        with self._wake:
            left = [*self._items, *self._line]
            self._items.clear()
        self._pending_bytes += sum(item.size_bytes for item in self._line)
        self._line.clear()
        self._settle(left, failure or InvariantError(f"{self._journal.path}: closed before it was written"))
        if not self._ended.done():
            self._ended.set_result(None)

    # -- in the thread

    def _work(self) -> None:
        failure: OrchestraError | None = None
        try:
            while failure is None and (items := self._next()) is not None:
                if items:
                    failure = self._carry_out(items)
                self._checkpoint(idle=not items)
        except BaseException as error:  # A defect of ours: whoever waits must hear of it, not hang.
            failure = InvariantError(f"{self._journal.path}: the writing thread ended: {error!r}")
            failure.__cause__ = error
        finally:
            with contextlib.suppress(OrchestraError):
                self._journal.close()
            self._tell(self._finish, failure)

    def _next(self) -> list[_Item] | None:
        """What to do next: commits, or one call. Empty: time for a checkpoint. None: closed, and all is done."""
        with self._wake:
            if not self._items and not self._closing.is_set():
                self._wake.wait(IDLE_S if self._is_dirty else None)
            if not self._items:
                return None if self._closing.is_set() else []
            items = [self._items.popleft()]
            if items[0].group is not None:
                while self._items and self._items[0].group is not None and len(items) < GROUPS_AT_ONCE:
                    items.append(self._items.popleft())
            return items

    def _carry_out(self, items: list[_Item]) -> OrchestraError | None:
        """Do it and tell who waits. Returns what makes it pointless to go on."""
        self._is_dirty = True
        call = items[0].call
        if call is not None:
            try:
                result = call(self._journal)
            except Exception as error:
                self._tell(self._settle, items, error)
            else:
                self._tell(self._settle, items, None, result)
            return None
        try:
            self._insist([item.group for item in items if item.group is not None])
        except InvariantError as error:
            if len(items) == 1:
                self._tell(self._settle, items, error)
                return None
            # One of them is wrong; the others must not pay for it.
            for item in items:
                failure = self._carry_out([item])
                if failure is not None:
                    return failure
        except (StorageError, JournalError) as error:
            self._tell(self._settle, items, error)
            return error
        else:
            self._tell(self._settle, items, None)
        return None

    def _insist(self, groups: list[Group]) -> None:
        """Commit, for as long as it takes the disk to take it. Raises StorageError only when closing."""
        delay = FIRST_RETRY_S
        told: StorageError | None = None
        while True:
            try:
                self._journal.commit(groups)
                break
            except StorageError as error:
                if told is None or told.code != error.code:
                    told = error
                    self._tell(self._stall, error)
                if self._closing.wait(delay):
                    # Once more, then the person decides.
                    self._journal.commit(groups)
                    break
                delay = min(2 * delay, LAST_RETRY_S)
        if told is not None:
            self._tell(self._stall, None)

    def _checkpoint(self, *, idle: bool) -> None:
        if not (self._is_dirty if idle else self._journal.wants_checkpoint()):
            return
        # On a full disk the log keeps everything; the next idle moment tries again.
        with contextlib.suppress(StorageError):
            self._journal.checkpoint()
            self._is_dirty = not idle

    def _tell(self, call: Callable[..., None], *values: object) -> None:
        # A loop that was closed under us has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *values)
