"""What every part of a driver stands on: the core, the executions, the nodes, the tasks, and how failing is told.

`links.py`, `errands.py`, `rounds.py` and `driver.py` build on it, in this order; the driver is the one to make.
"""

from __future__ import annotations

import asyncio
import functools
import random
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liborch.core import events as ev
from liborch.core.machine import Orchestration
from liborch.core.policy import Policy
from liborch.core.things import lead_of
from liborch.drive.conversations import Conversations
from liborch.drive.execution import Execution
from liborch.drive.ranks import part_of
from liborch.drive.results import Result
from liborch.drive.strays import Strays
from liborch.drive.targets import Target, granted
from liborch.drive.transfers import Snapshots
from liborch.errors import (
    InvariantError,
    OrchestraError,
)
from liborch.journal import Change, NewExecution, Writer
from liborch.ssh import Pool

if TYPE_CHECKING:
    from liborch.drive.allocating import Frontend
    from liborch.transfer.send import Progress

#: Told what happens: (what, execution, fields). For people's messages; decides nothing.
Listener = Callable[[str, str, dict[str, Any]], None]
#: Called with those that are over, before that is on record; it may be called again with them by the next client.
BeforeRecord = Callable[[list[tuple[Execution, Result]]], Awaitable[None]]
#: Called with what ended and has a post command, when its results are home; with RUNAWAY_* variables that only the driver knows. It may
#: take its time: others are not held up. It may be called again. Returns what the record says of it; None: it was not done.
Afterwards = Callable[[Execution, Result, dict[str, str]], Awaitable[dict[str, Any] | None]]


class Ground:
    """State shared by the parts of a driver. Its arguments are the driver's."""

    def __init__(
        self,
        orchestration: str,
        writer: Writer,
        pool: Pool,
        state_folder: Path,
        *,
        policy: Policy | None = None,
        snapshots: Snapshots | None = None,
        listener: Listener | None = None,
        progress: Callable[[str, str], Progress | None] | None = None,
        before_record: BeforeRecord | None = None,
        afterwards: Afterwards | None = None,
        waits_for_room: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.orchestration = orchestration
        # Whoever takes over draws the same lots: a link that was tried again is tried again when the events are told again.
        self.core = Orchestration(policy, random.Random(orchestration))
        self.executions: dict[str, Execution] = {}
        self.targets: dict[str, Target] = {}
        #: {cluster: who asks its batch system}
        self.frontends: dict[str, Frontend] = {}
        self.snapshots = snapshots or Snapshots(None)
        #: Set by a caller who leaves on purpose: what runs goes on.
        self.detached = False
        #: Set by one who leaves when nothing runs any more: allocations are given back nevertheless.
        self.is_drained = False
        #: There are executions that are planned and not submitted.
        self.has_plan = False
        #: Ends everything, what is planned as well; None: there is nothing but `executions`.
        self.end_all: Callable[[], None] | None = None
        #: What whoever drives has to say of itself besides, for those who look on.
        self.describe_more: Callable[[], dict[str, Any]] = dict
        #: The last client saw to its end, and nothing was submitted since.
        self.is_swept = False
        #: Nodes that could not be tidied at the end.
        self.untidy: set[str] = set()
        #: What made it impossible to go on.
        self.fatal: BaseException | None = None
        #: Ranks of executions on several nodes, beside the first.
        self._ranks: dict[str, Execution] = {}
        #: {execution: {node: its folder there}}
        self._folders: dict[str, dict[str, str]] = {}
        #: {execution: why it could not be brought to its node}
        self._errors: dict[str, OrchestraError] = {}
        #: Over for the core; the last of their output is on its way.
        self._finishing: dict[str, Execution] = {}
        self._writer = writer
        self._pool = pool
        self._state_folder = state_folder
        self._listener = listener
        self._progress = progress or (lambda _what, _x: None)
        self._inbox: list[ev.AnyEvent] = []
        self._new: list[NewExecution] = []
        #: What was planned and is now submitted.
        self._woken: list[Change] = []
        self._before_record = before_record
        self._afterwards = afterwards
        self._waits_for_room = waits_for_room
        #: RUNAWAY* variables of the caller, for a profile's procedures.
        self._variables = dict(variables or {})
        self._details: dict[str, dict[str, Any]] = {}
        self._grants: dict[str, asyncio.Future[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_execution: dict[str, asyncio.Task[None]] = {}
        #: By (node, snapshot): who sends it first, and where it was sent.
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._sent: set[tuple[str, str]] = set()
        #: By (node, remote folder), of those that executions may share; gone with who holds them.
        self._folder_locks: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )
        #: Those in a folder they share that need nothing of it any more, and are not on record as over yet.
        self._done_there: set[str] = set()
        #: {state folder: the last event of it that is on record} of machines that were left.
        self._left_off: dict[str, int] = {}
        self._conversations = Conversations(self._spawn)
        self._strays = Strays()
        self._wake = asyncio.Event()
        self._linked = asyncio.Condition()
        self._idle = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._offset = -self._clock()
        self._count = 0
        self._turned: asyncio.Future[None] | None = None
        #: Tidying after what was cancelled while it was sent: `close` lets it finish, for a while.
        self._tidying: set[asyncio.Task[None]] = set()
        #: {execution: the tidying of what was sent for it}: what is sent next waits for that.
        self._tidying_of: dict[str, asyncio.Task[None]] = {}
        self._closing = False

    def __repr__(self) -> str:
        return f"<Driver {self.orchestration[:8]}: {len(self.executions)} live, {len(self.targets)} nodes>"

    def _target(self, node: str) -> Target:
        """What is known here of a node; of one that was granted, from now on."""
        target = self.targets.get(node)
        if target is None:
            known = self.core.nodes[node]
            profile = self.frontends[known.host].profile
            allocation = known.allocation
            target = granted(
                node,
                known.machine,
                profile,
                allocation.id if allocation is not None else "",
                allocation.room if allocation is not None else (0, 0, 0),
            )
            if target.enter is None and profile.ssh != "local":
                self._pool.behind[known.machine] = profile.ssh
            if profile.batch_system == "procedures":
                self._by_procedures(target, self.frontends[known.host], allocation.id if allocation else "")
            self.targets[node] = target
        return target

    def _by_procedures(self, target: Target, frontend: Frontend, allocation: str) -> None:
        from liborch.drive.procedures import prepare, proxies_of

        target.prepare = functools.partial(prepare, target, frontend, allocation, self._pool)
        self._pool.proxies.update(proxies_of(target))

    def now(self) -> float:
        """Seconds on the core's clock."""
        return self._clock() + self._offset

    def post(self, event: ev.AnyEvent) -> None:
        """Put an event on its way to the core."""
        self._inbox.append(event)
        self._wake.set()

    async def turned(self) -> None:
        """Return after the next round of events was recorded and acted upon. Raises OrchestraError when none will be."""
        if self.fatal is not None:
            raise as_ours(self.fatal)
        if self._turned is None:
            self._turned = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._turned)

    def _find(self, x: str) -> Execution | None:
        """An execution that is not over, or a rank of one."""
        found = self.executions.get(x) or self._ranks.get(x)
        if found is None:
            lead_id, rank = lead_of(x)
            lead = self.executions.get(lead_id) if rank else None
            if lead is not None:
                found = self._ranks[x] = part_of(lead, rank)
                item = self.core.items.get(x)
                if item is not None and item.node is not None:
                    found.node, found.attempt = item.node.name, item.attempt
        return found

    def _settle(self, execution: Execution, error: OrchestraError | None) -> None:
        """Tell whoever awaits it."""
        if error is None:
            execution.result = execution.verdict
        future = execution._get_future() if error is not None else execution._future
        if future is None or future.done():
            return
        if error is not None:
            future.set_exception(error)
            # Not everybody awaits.
            future.exception()
        elif execution.result is not None:
            future.set_result(execution.result)

    def _look_idle(self) -> None:
        if not self.executions and not self._finishing:
            self._idle.set()

    def _fail_everybody(self, error: BaseException) -> None:
        """Nothing can go on: whoever waits for something hears of it."""
        ours = as_ours(error)
        for execution in (*self.executions.values(), *self._finishing.values()):
            self._settle(execution, ours)
        for grant in self._grants.values():
            if not grant.done():
                grant.set_exception(ours)
        self._idle.set()
        if self._turned is not None:
            self._turned.set_exception(ours)
            self._turned.exception()  # Not everybody awaits.
            self._turned = None

    def _tell(self, what: str, x: str, **fields: Any) -> None:
        if self._listener is not None:
            self._listener(what, x, fields)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _spawn_for(self, x: str, work: Any) -> None:
        """One task at a time per execution: asking again replaces what a torn link left hanging."""
        old = self._by_execution.pop(x, None)
        if old is not None:
            old.cancel()
        task = self._spawn(work)
        self._by_execution[x] = task

        def gone(_task: asyncio.Task[None]) -> None:
            if self._by_execution.get(x) is task:
                del self._by_execution[x]

        task.add_done_callback(gone)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self.fatal is None:
            self.fatal = task.exception()
            self._fail_everybody(task.exception() or InvariantError("a task ended"))


def as_ours(error: BaseException) -> OrchestraError:
    """What those who wait are told when the driver cannot go on."""
    if isinstance(error, OrchestraError):
        return error
    ours = InvariantError(f"the driver ended: {error!r}")
    ours.__cause__ = error
    return ours


async def unbroken(work: Coroutine[Any, Any, None]) -> None:
    """See a bounded clean-up through to its end, however often the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:
            break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    await task
