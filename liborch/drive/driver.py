"""The asyncio side of one orchestration: feeds the core events, carries out its actions, hands back futures.

Order of things, always: events go through the core, then into the journal, then the actions they caused are carried
out, then agents get their acknowledgements. So whatever was handed over is on record, and whatever is
acknowledged is, too: a client killed between any two of these steps is continued by the next one.

State of an execution is the core's; this file keeps only what cannot be decided on: links, tasks, bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.machine import Orchestration
from liborch.core.tables import AT_NODE
from liborch.core.things import Policy
from liborch.drive.follow import follow
from liborch.drive.link import AgentEvent, AgentLink
from liborch.drive.orders import order_of, remote_folder, spec_to_json
from liborch.drive.outputs import OnOutput, Sink
from liborch.drive.results import Result, record_of, result_of
from liborch.drive.targets import Target
from liborch.drive.transfers import Snapshots, collect, stage, tidy, values_after
from liborch.errors import (
    AgentError,
    HostUnreachable,
    InvariantError,
    OrchestraError,
    SpecError,
    StorageError,
    TransferError,
    WorldError,
)
from liborch.journal import Change, Group, NewExecution, Writer
from liborch.specs import ExecutionSpec
from liborch.ssh import Pool

if TYPE_CHECKING:
    from liborch.transfer.send import Progress

#: So many bytes of each output are put into a Result; all of it is in a file.
RESULT_BYTES = 16 << 20
#: Output up to so many bytes is kept in the journal's record as well.
RECORD_BYTES = 8 << 10
#: The most that the specification of one execution may take, in bytes: far above what a program can be started with.
MOST_SPEC_BYTES = 3 << 20
#: Tries of a transfer that fails while its link is up.
TRANSFER_TRIES = 3
#: Leaving waits so long for what was sent for nothing to be taken away again, in seconds.
TIDY_S = 10.0
#: And so long for a journal that takes nothing.
LAST_ROUND_S = 5.0
#: After a verdict, output that is still under way is waited for so long without a link.
LAST_OUTPUT_S = 10.0
#: How often a disk of this machine that was full is tried again.
DISK_S = 1.0

#: An acknowledgement is sent after so many events, or so many seconds, or when nothing is left to do.
ACK_EVENTS = 500
ACK_S = 1.0
#: With more executions than this under way, rounds are so far apart, in seconds: fewer, larger messages and commits.
BUSY_EXECUTIONS = 64
PACE_S = 0.008

_encode = msgspec.msgpack.Encoder().encode


class Recorded(msgspec.Struct, array_like=True):
    """A group of events as the journal keeps it."""

    now: float
    events: list[ev.AnyEvent]
    acks: dict[str, int]


_decode = msgspec.msgpack.Decoder(Recorded).decode
#: A group without events.
NOTHING = _encode(Recorded(0.0, [], {}))

#: Told what happens: (what, execution, fields). For people's messages; decides nothing.
Listener = Callable[[str, str, dict[str, Any]], None]


class Execution:
    """An execution as its submitter holds it. Await it for the Result.

    Awaiting it twice is fine. Cancelling an await does not cancel the execution; `cancel()` does.
    """

    __slots__ = (
        "_driver",
        "_future",
        "attempt",
        "following",
        "host",
        "id",
        "lease",
        "node",
        "result",
        "sink",
        "spec",
        "state",
        "terminal",
        "verdict",
    )

    def __init__(self, driver: Driver, x: str, host: str, spec: ExecutionSpec, lease: str = "") -> None:
        self._driver = driver
        self._future: asyncio.Future[Result] | None = None
        self.id = x
        self.host = host
        self.spec = spec
        self.lease = lease
        self.state = "waiting"
        self.node = ""
        self.attempt = 1
        #: Set when all of it is here and on record; before that it is `verdict`.
        self.result: Result | None = None
        self.verdict: Result | None = None
        self.sink: Sink | None = None
        self.following: asyncio.Task[None] | None = None
        #: The stream to its pseudo-terminal, while there is one.
        self.terminal: Any = None

    def __repr__(self) -> str:
        return f"<Execution {self.id}: {self.state}{f' on {self.node}' if self.node else ''}>"

    def __await__(self) -> Generator[Any, None, Result]:
        return self.wait().__await__()

    async def wait(self) -> Result:
        """Return the Result when it is over. Cancelling leaves the execution as it is.

        Raises:
            WorldError: No node could be used (the error says why).
            SpecError: No node could ever run it.
        """
        if self.result is not None:
            return self.result
        return await asyncio.shield(self._get_future())

    def _get_future(self) -> asyncio.Future[Result]:
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        return self._future

    @property
    def is_done(self) -> bool:
        """Whether it is over."""
        return self.result is not None or (self._future is not None and self._future.done())

    def cancel(self) -> None:
        """Ask for its end; the Result then says `cancelled`. Fine at any time."""
        self._driver.post(ev.CancelAsked(self.id))

    def pause(self) -> None:
        """Stop its processes. Only what runs can be paused."""
        self._driver.post(ev.PauseAsked(self.id))

    def resume(self) -> None:
        """Let its processes go on."""
        self._driver.post(ev.ResumeAsked(self.id))

    def explain(self) -> list[str]:
        """Why it is not further than it is, condition by condition."""
        return self._driver.core.explain(self.id)


class Driver:
    """Drives one orchestration.

    Args:
        orchestration: Its id: the owner's name at the agents.
        writer: The journal.
        pool: SSH connections.
        state_folder: For outputs.
        policy: The core's.
        snapshots: Shared between drivers of one client.
        listener: Told what happens.
    """

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
    ) -> None:
        self.orchestration = orchestration
        self.core = Orchestration(policy, random.Random())
        self.executions: dict[str, Execution] = {}
        self.targets: dict[str, Target] = {}
        self.snapshots = snapshots or Snapshots(None)
        #: Set by a caller who leaves on purpose: what runs goes on.
        self.detached = False
        #: What made it impossible to go on.
        self.fatal: BaseException | None = None
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
        self._details: dict[str, dict[str, Any]] = {}
        self._grants: dict[str, asyncio.Future[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_execution: dict[str, asyncio.Task[None]] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._wake = asyncio.Event()
        self._linked = asyncio.Condition()
        self._idle = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._offset = -self._clock()
        self._count = 0
        self._turned: asyncio.Future[None] | None = None
        #: Tidying after what was cancelled while it was sent: `close` lets it finish, for a while.
        self._tidying: set[asyncio.Task[None]] = set()
        self._closing = False
        self._pump_task = asyncio.ensure_future(self._pump())

    def __repr__(self) -> str:
        return f"<Driver {self.orchestration[:8]}: {len(self.executions)} live, {len(self.targets)} nodes>"

    # ------------------------------------------------------------------ the caller's side

    def add(self, target: Target) -> None:
        """Make a node known. Its link is opened when there is work."""
        self.targets[target.name] = target
        self.post(ev.NodeAdded(target.name, target.profile.name))

    def submit(
        self,
        x: str,
        spec: ExecutionSpec,
        host: str,
        *,
        batch: str = "",
        lease: str = "",
        on_output: OnOutput | None = None,
        keep_output: bool = True,
    ) -> Execution:
        """Take in an execution. It is on record before anything of it starts.

        Raises:
            SpecError: Its arguments and variables are too much for any program.
            OrchestraError: The driver has ended, for this reason.
        """
        text = self._text_of(spec)
        execution = Execution(self, x, host, spec, lease)
        if spec.live or spec.tty:
            execution.sink = Sink(self._state_folder / "outputs" / x, on_output, keep=keep_output)
        self.executions[x] = execution
        self._count += 1
        self._new.append(NewExecution(x, self._count, spec.label, host, text))
        self.post(submitted(x, spec, batch, lease))
        return execution

    def _text_of(self, spec: ExecutionSpec) -> str:
        if self.fatal is not None:
            raise _as_ours(self.fatal)
        if self._closing:
            raise SpecError("the host was closed: nothing can be given to it any more")
        text = spec_to_json(spec)
        if len(text) > MOST_SPEC_BYTES:
            raise SpecError(
                f"the arguments and variables of {spec.argv[0][:60] if spec.argv else 'the procedure'!r} take "
                f"{len(text) >> 10} KiB, more than a program can be started with: send them as a file"
            )
        return text

    async def hold(self, x: str, spec: ExecutionSpec, host: str) -> str:
        """Ask for room; returns the node's name when it is held.

        Cancelled: the room is given back, also when the grant came in the same tick. Raises what `Execution.wait` raises.
        """
        text = self._text_of(spec)
        execution = Execution(self, x, host, spec)
        self.executions[x] = execution
        self._count += 1
        self._new.append(NewExecution(x, self._count, spec.label or "slot", host, text))
        grant: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._grants[x] = grant
        self.post(submitted(x, spec, "", "", is_slot=True))
        try:
            return await grant
        except asyncio.CancelledError:
            self.abandon(x)
            raise
        finally:
            self._grants.pop(x, None)

    def abandon(self, x: str) -> None:
        """A slot request is over, in whatever state."""
        self.post(ev.SlotAbandoned(x))

    async def wait_idle(self) -> None:
        """Return when nothing is left to do, or nothing can be done."""
        while (self.executions or self._finishing) and self.fatal is None:
            self._idle.clear()
            await self._idle.wait()

    def post(self, event: ev.AnyEvent) -> None:
        """Put an event on its way to the core."""
        self._inbox.append(event)
        self._wake.set()

    async def turned(self) -> None:
        """Return after the next round of events was recorded and acted upon."""
        if self._turned is None:
            self._turned = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._turned)

    def follow(self, x: str, on_output: OnOutput | None = None) -> None:
        """Have an execution's output collected while it is written, if it is not already; unknown ones are passed over."""
        execution = self.executions.get(x)
        if execution is None:
            return
        if execution.sink is None:
            execution.sink = Sink(self._state_folder / "outputs" / x, on_output)
        item = self.core.items.get(x)
        if execution.following is None and item is not None and item.state in AT_NODE:
            execution.following = self._spawn(self._follow(execution))

    async def replay(
        self,
        groups: Iterable[bytes],
        executions: Iterable[Execution],
        details: dict[str, dict[str, Any]],
        count: int,
    ) -> None:
        """Take over from a client that is gone: rebuild the core from its events, then go on.

        Args:
            groups: Payloads from the journal, in order.
            executions: Those that are not final.
            details: {id: what the agent said of its end}, of those whose results were being fetched.
            count: Highest number of an execution so far.
        """
        self._details.update(details)
        self._count = count
        last = 0.0
        for payload in groups:
            recorded = _decode(payload)
            last = max(last, recorded.now)
            for event in recorded.events:
                self.core.handle(event, recorded.now)
            for node, n in recorded.acks.items():
                if node in self.targets:
                    self.targets[node].acked = self.targets[node].received = n
        for target in self.targets.values():
            known = self.core.nodes.get(target.name)
            if known is not None:
                target.state_id = known.state_id
        self._offset = last - self._clock()
        for execution in executions:
            self.executions[execution.id] = execution
            item = self.core.items.get(execution.id)
            if item is not None:
                execution.attempt = item.attempt
                execution.state = item.state.lower()
                execution.node = item.node.name if item.node is not None else ""
                execution.lease = item.lease
            if execution.sink is not None:
                self.follow(execution.id)
        self.post(ev.Restarted())

    async def close(self, *, cancel: bool = False, timeout_s: float = 20.0) -> None:
        """Stop driving; what runs goes on, unless `cancel`: then everything is ended first, as far as `timeout_s` allows.

        Whoever still awaits an execution then is told that the host was closed. Cancelling makes it shorter, not incomplete.
        """
        try:
            if cancel:
                for x in list(self.executions):
                    self.post(ev.CancelAsked(x))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await self.wait_idle()
            if self._tidying:
                await asyncio.wait(self._tidying, timeout=TIDY_S)
        finally:
            await unbroken(self._shut())

    async def _shut(self) -> None:
        self._closing = True
        self._wake.set()
        await asyncio.wait([self._pump_task], timeout=LAST_ROUND_S)
        self._pump_task.cancel()
        await asyncio.gather(self._pump_task, return_exceptions=True)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for target in self.targets.values():
            if target.link is not None:
                if target.acked > target.told:
                    target.link.tell("ack", n=target.acked)
                link, target.link = target.link, None
                await link.close()
        left = WorldError("the host was closed before this was over")
        for execution in (*self.executions.values(), *self._finishing.values()):
            if execution.sink is not None:
                execution.sink.close()
            if execution._future is not None:
                self._settle(execution, left)
        for grant in self._grants.values():
            if not grant.done():
                grant.set_exception(left)

    def journal_stalled(self, error: StorageError | None) -> None:
        """The journal's disk refuses (None: no longer). Nothing new starts meanwhile; what runs goes on, and is kept by its node."""
        why = f"{error}; what runs goes on, nothing new starts until there is room" if error else ""
        self._tell("stalled" if error else "recovered", "", why=why)

    # ------------------------------------------------------------------ the pump

    def now(self) -> float:
        """Seconds on the core's clock."""
        return self._clock() + self._offset

    async def _pump(self) -> None:
        try:
            while True:
                await self._wait_for_events()
                if self._closing and not self._inbox:
                    return
                await self._turn()
        except BaseException as error:
            self.fatal = error
            self._fail_everybody(error)
            raise

    async def _wait_for_events(self) -> None:
        if len(self.executions) > BUSY_EXECUTIONS and not self._closing:
            await asyncio.sleep(PACE_S)
        # `close` may have asked while the last round was being written: clearing its wake-up would wait for ever.
        if self._inbox or self._closing:
            return
        self._wake.clear()
        deadline = self.core.next_deadline()
        if deadline is None:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(max(0.0, deadline - self.now())):
                await self._wake.wait()
        except TimeoutError:
            if not self._inbox:
                self._inbox.append(ev.Tick())

    async def _turn(self) -> None:
        """One round: decide, record, act, acknowledge."""
        events, self._inbox = self._inbox, []
        new, self._new = self._new, []
        received = {
            name: target.received for name, target in self.targets.items() if target.received > target.acked
        }
        now = self.now()
        actions: list[act.AnyAction] = []
        for event in events:
            actions += self.core.handle(event, now)
        changes = self._changes(events, actions)
        payload = _encode(Recorded(now, events, received))
        await self._writer.commit(Group(self.orchestration, time.time(), len(events), payload, new, changes))
        self._carry_out(actions)
        for name, n in received.items():
            target = self.targets[name]
            target.acked = n
            self._acknowledge(target, now)
        for event in events:
            if isinstance(event, ev.LinkRefused):
                self._stop_waiting(event.node)
        if self._turned is not None:
            self._turned.set_result(None)
            self._turned = None

    def _stop_waiting(self, node: str) -> None:
        """A node cannot be reached until a person acts: whoever awaits what is on it is told so. It is not over for that."""
        error = self.targets[node].error
        if error is None:
            return
        for x in self.core.nodes[node].items:
            execution = self.executions.get(x)
            if execution is not None:
                self._settle(execution, error)
            grant = self._grants.get(x)
            if grant is not None and not grant.done():
                grant.set_exception(error)

    def _acknowledge(self, target: Target, now: float) -> None:
        """Tell the agent what is on record; many at a time, since each is a line on its log."""
        due = target.acked - target.told >= ACK_EVENTS or now - target.told_at >= ACK_S or not self.executions
        if due and target.acked > target.told and target.link is not None:
            target.told = target.acked
            target.told_at = now
            target.link.tell("ack", n=target.acked)

    def _changes(self, events: list[ev.AnyEvent], actions: list[act.AnyAction]) -> list[Change]:
        """What the events and actions of a round mean for the journal's table of executions."""
        states: dict[str, str] = {}
        records: dict[str, str] = {}
        final: list[Change] = []
        for event in events:
            if isinstance(event, ev.Started):
                states[event.x] = "running"
            elif isinstance(event, ev.Paused):
                states[event.x] = "paused"
            elif isinstance(event, ev.Continued):
                states[event.x] = "running"
            elif isinstance(event, ev.Ended):
                item = self.core.items.get(event.x)
                if item is not None and item.state == "COLLECTING":
                    # It will be acknowledged, so whoever takes over has to find it here.
                    states[event.x] = "collecting"
                    records[event.x] = record_of(self._details.get(event.x, {}), {}).decode()
        for action in actions:
            if isinstance(action, act.Hand):
                self._moved(action.x, "placed", action.node)
                states.setdefault(action.x, "placed")
            elif isinstance(action, act.Stage):
                self._moved(action.x, "staging", action.node)
                states[action.x] = "staging"
            elif isinstance(action, act.Retry):
                states[action.x] = "waiting"
            elif isinstance(action, act.Finish):
                states.pop(action.x, None)
                final.append(self._final(action))
        changes = []
        for x, state in states.items():
            execution = self.executions.get(x)
            if execution is None or x not in self.core.items:
                continue
            execution.state = state
            detail = self._details.get(x, {})
            changes.append(
                Change(
                    x,
                    state,
                    node=execution.node or None,
                    attempt=execution.attempt,
                    started_at=detail.get("start"),
                    record=records.get(x),
                )
            )
        return changes + final

    def _moved(self, x: str, state: str, node: str) -> None:
        execution = self.executions.get(x)
        if execution is not None:
            execution.node = node
            item = self.core.items.get(x)
            if item is not None:
                execution.attempt = item.attempt

    def _final(self, action: act.Finish) -> Change:
        execution = self.executions.get(action.x)
        detail = self._details.pop(action.x, {})
        node = execution.node if execution is not None else ""
        host = execution.host if execution is not None else ""
        result = result_of(
            action.x,
            action.state,
            action.reason,
            action.code,
            action.why,
            action.attempts,
            host,
            node,
            detail,
        )
        if execution is not None:
            execution.state = result.state
            execution.verdict = result
        ended = (
            (result.started_at + (result.duration_s or 0.0)) if result.started_at is not None else time.time()
        )
        return Change(
            action.x,
            result.state,
            reason=result.reason,
            exit_code=result.exit_code,
            signal=result.signal,
            node=node or None,
            attempt=action.attempts,
            started_at=result.started_at,
            ended_at=ended,
            record=record_of(detail, {"why": result.why, "attempts": action.attempts}).decode(),
        )

    # ------------------------------------------------------------------ actions

    def _carry_out(self, actions: list[act.AnyAction]) -> None:
        hands: dict[str, list[act.Hand]] = {}
        told: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for action in actions:
            if isinstance(action, act.Hand):
                hands.setdefault(action.node, []).append(action)
            elif isinstance(action, act.Finish):
                self._finish(action)
            elif isinstance(action, act.Cancel):
                item = self.core.items.get(action.x)
                kind = "unhold" if item is not None and item.is_slot else "cancel"
                told.setdefault((action.node, kind), []).append((action.x, action.attempt))
            elif isinstance(action, act.Recall):
                told.setdefault((action.node, "recall"), []).append((action.x, action.attempt))
            elif isinstance(action, act.Pause):
                told.setdefault((action.node, "pause"), []).append((action.x, action.attempt))
            elif isinstance(action, act.Resume):
                told.setdefault((action.node, "resume"), []).append((action.x, action.attempt))
            elif isinstance(action, act.Connect):
                self._spawn(self._connect(self.targets[action.node], action.attempt))
            elif isinstance(action, act.Stage):
                self._spawn_for(action.x, self._stage(action.x, self.targets[action.node]))
            elif isinstance(action, act.Collect):
                self._spawn_for(action.x, self._collect(action.x, self.targets[action.node]))
            elif isinstance(action, act.Unstage):
                execution = self.executions.get(action.x)
                if execution is not None and execution.spec.transfer is not None:
                    staging = self._by_execution.pop(action.x, None)
                    if staging is not None:
                        staging.cancel()
                    folder = self._folders.get(action.x, {}).get(action.node)
                    tidying = self._spawn(
                        self._unstage(execution, self.targets[action.node], folder, staging)
                    )
                    self._tidying.add(tidying)
                    tidying.add_done_callback(self._tidying.discard)
            elif isinstance(action, act.Grant):
                grant = self._grants.get(action.x)
                if grant is not None and not grant.done():
                    grant.set_result(action.node)
            elif isinstance(action, act.Retry):
                self._begin_again(action.x)
                self._tell("retry", action.x, attempt=action.attempt, reason=action.reason)
        for node, group in hands.items():
            self._hand(self.targets[node], group)
        for (node, kind), ids in told.items():
            # After what was handed over: the order of an agent's messages is the order of things.
            link = self.targets[node].link
            if link is None:
                continue
            if kind == "unhold":
                for x, _attempt in ids:
                    link.tell("unhold", lease=x)
            else:
                link.tell(kind, ids=ids)

    def _begin_again(self, x: str) -> None:
        """What an attempt wrote is not mixed with what the next one writes."""
        execution = self.executions.get(x)
        if execution is None or execution.sink is None:
            return
        if execution.following is not None:
            execution.following.cancel()
            execution.following = None
        execution.sink.restart()

    def _hand(self, target: Target, hands: list[act.Hand]) -> None:
        link = target.link
        if link is None:
            return  # The core hands over again when the link is open.
        orders = []
        common = {
            "env": {
                "RUNAWAY_REMOTE": target.profile.name,
                "RUNAWAY_PATH": target.directory,
                "RUNAWAY_NODES": target.name,
            },
            "node": target.name,
        }
        for hand in hands:
            execution = self.executions.get(hand.x)
            if execution is None:
                continue
            item = self.core.items.get(hand.x)
            if item is not None and item.is_slot:
                resources = execution.spec.resources
                own: dict[str, Any] = {"hold": True, "gpus": resources.gpus, "mem": resources.memory_bytes}
                if resources.cpus is not None:
                    own["cpus"] = resources.cpus
            else:
                own = self._order(execution, target)
            orders.append((hand.x, hand.attempt, own))
            if execution.sink is not None and execution.following is None:
                execution.following = self._spawn(self._follow(execution))
        link.order(common, orders)

    def _order(self, execution: Execution, target: Target) -> dict[str, Any]:
        spec = execution.spec
        folder = spec.folder
        variables: dict[str, str] = {}
        if spec.transfer is not None:
            folder = self._folder(execution)
            variables = {**spec.transfer.variables, "RUNAWAY_PATH": target.directory, "RUNAWAY_PWD": folder}
        return order_of(spec, folder=folder, variables=variables, lease=execution.lease)

    def _folder(self, execution: Execution) -> str:
        """The execution's remote folder, as its host expanded it."""
        folder = self._folders.get(execution.id, {}).get(execution.node)
        if folder is None:
            raise InvariantError(f"{execution!r} is handed over before its folder is known")
        return folder

    def _finish(self, action: act.Finish) -> None:
        execution = self.executions.pop(action.x, None)
        if execution is None:
            return
        self._folders.pop(action.x, None)
        self._end(execution, action)
        self._tell("finished", action.x, state=action.state, reason=action.reason, why=action.why)
        self._look_idle()

    def _look_idle(self) -> None:
        if not self.executions and not self._finishing:
            self._idle.set()

    def _end(self, execution: Execution, action: act.Finish) -> None:
        error = self._errors.pop(action.x, None)
        if action.reason in ("refused", "staging") and error is None:
            error = self._error_for(action)
        grant = self._grants.get(execution.id)
        if grant is not None and not grant.done():
            grant.set_exception(error or WorldError(action.why or f"the slot request ended: {action.reason}"))
        if execution.sink is not None and error is None:
            self._finishing[execution.id] = execution
            self._spawn(self._finish_followed(execution))
            return
        if execution.sink is not None:
            execution.sink.close()
        self._settle(execution, error)

    async def _finish_followed(self, execution: Execution) -> None:
        """The verdict is here; the last of the output may still be on its way."""
        sink, verdict = execution.sink, execution.verdict
        assert sink is not None and verdict is not None
        if execution.following is not None:
            await asyncio.wait([execution.following], timeout=LAST_OUTPUT_S)
            execution.following.cancel()
            await asyncio.wait([execution.following])
        try:
            sink.write("out", 0, verdict.stdout)
            sink.write("err", 0, verdict.stderr)
        except StorageError as error:
            self._tell("trouble", execution.id, why=str(error))
        whole = len(verdict.stdout) == verdict.stdout_bytes and len(verdict.stderr) == verdict.stderr_bytes
        if whole and not execution.spec.tty:
            sink.discard()
        elif sink.keep and not execution.spec.tty:
            out, err = await asyncio.to_thread(
                lambda: (sink.read("out", RESULT_BYTES), sink.read("err", RESULT_BYTES))
            )
            execution.verdict = msgspec.structs.replace(verdict, stdout=out, stderr=err)
        sink.close()
        self._finishing.pop(execution.id, None)
        self._settle(execution, None)
        self._look_idle()

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

    def _error_for(self, action: act.Finish) -> OrchestraError:
        """What a refusal is to whoever asked: no node can be used, for this reason; or no node would ever do it."""
        errors = [target.error for target in self.targets.values() if target.error is not None]
        if errors and len(errors) == len(self.targets):
            return errors[0]
        return SpecError(action.why)

    def _fail_everybody(self, error: BaseException) -> None:
        """Nothing can go on: whoever waits for something hears of it."""
        ours = _as_ours(error)
        for execution in (*self.executions.values(), *self._finishing.values()):
            self._settle(execution, ours)
        for grant in self._grants.values():
            if not grant.done():
                grant.set_exception(ours)
        self._idle.set()

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

    # ------------------------------------------------------------------ links

    async def _connect(self, target: Target, attempt: int) -> None:
        self._tell("connecting", "", node=target.name, attempt=attempt)
        try:
            link = await target.open(self._pool)
        except (OrchestraError, OSError) as failure:
            error = failure
            if isinstance(error, OSError):
                # No descriptors or processes left here, for now.
                error = AgentError(target.name, f"cannot be connected to from here: {error}", retriable=True)
            target.error = error
            self._down(target, "unreachable", str(error))
            # What went wrong on a node that worked before may pass: its disk was full, it was just starting.
            passing = isinstance(error, AgentError | StorageError) and bool(target.state_id)
            again = isinstance(error, HostUnreachable | AgentError) and error.retriable
            if again or passing:
                self.post(ev.LinkLost(target.name, str(error)))
            else:
                self.post(ev.LinkRefused(target.name, str(error)))
            return
        target.error = None
        target.link = link
        state_id = str(link.hello.get("state_id", ""))
        if state_id != target.state_id:
            # Another state folder counts its events from one again.
            target.acked = target.received = target.told = 0
            target.state_id = state_id
        if link.hello.get("limits") and not target.told_limits:
            target.told_limits = True
            self._tell(
                "limited", "", node=target.name, why=link.hello.get("why", ""), limits=link.hello["limits"]
            )

        def attached(head: dict[str, Any]) -> None:
            self._on_attached(target, head)

        def lost(why: str) -> None:
            if target.link is link:
                target.link = None
                self._down(target, "lost", why)
                self.post(ev.LinkLost(target.name, why))

        await link.attach(
            self.orchestration,
            target.acked,
            target.capacity,
            lambda events: self._on_agent_events(target, events),
            attached,
            lost,
            expand=[target.profile.directory],
        )

    def _down(self, target: Target, what: str, why: str) -> None:
        if target.down_since is None:
            target.down_since = time.time()
        target.down_why = why
        self._tell(what, "", node=target.name, why=why)

    def _on_attached(self, target: Target, head: dict[str, Any]) -> None:
        room = head["room"]
        target.directory = head["expanded"][0] if head.get("expanded") else ""
        holding = tuple((str(x), int(attempt), str(state)) for x, attempt, state in head["holding"])
        target.down_since = None
        self._tell("linked", "", node=target.name)
        self.post(
            ev.LinkOpened(
                target.name,
                target.state_id,
                int(room["cpus"]),
                int(room["memory_bytes"]),
                len(room["gpus"]),
                holding,
            )
        )
        self._spawn(self._announce_link())

    async def _announce_link(self) -> None:
        async with self._linked:
            self._linked.notify_all()

    def _on_agent_events(self, target: Target, events: list[AgentEvent]) -> None:
        inbox = self._inbox
        for n, _owner, kind, x, attempt, detail in events:
            if n <= target.received:
                continue
            target.received = n
            if x in self.executions and kind in ("ended", "started", "held"):
                self._details[x] = detail
            if kind == "ended":
                left = bool(detail.get("files"))
                inbox.append(ev.Ended(x, attempt, detail["reason"], detail.get("code"), left))
                if "outcome" in detail:
                    self._read_outcome(detail)
            elif kind == "started":
                inbox.append(ev.Started(x, attempt))
                self._tell("started", x, node=target.name, slot=detail.get("slot"))
            elif kind == "held":
                inbox.append(ev.Started(x, attempt))
            elif kind == "unheld":
                inbox.append(ev.Ended(x, attempt, "exit", 0))
            elif kind == "recalled":
                inbox.append(ev.Recalled(x, attempt))
            elif kind == "refused":
                inbox.append(ev.Refused(x, attempt, str(detail.get("why", ""))))
            elif kind == "paused":
                inbox.append(ev.Paused(x, attempt))
            elif kind == "resumed":
                inbox.append(ev.Continued(x, attempt))
        self._wake.set()

    @staticmethod
    def _read_outcome(detail: dict[str, Any]) -> None:
        from liborch.profiles import procedures

        raw = detail.pop("outcome").encode("latin-1")
        try:
            detail["variables"] = procedures.parse_outcome(raw).variables
        except OrchestraError as error:
            detail["why"] = f"{detail.get('why', '')} {error}".strip()

    async def _wait_link(self, target: Target) -> None:
        async with self._linked:
            await self._linked.wait_for(lambda: target.link is not None and bool(target.directory))

    # ------------------------------------------------------------------ files and output

    async def _resolve(self, execution: Execution, target: Target, link: AgentLink) -> str:
        """Have the host expand the remote folder; remembered."""
        folders = self._folders.setdefault(execution.id, {})
        known = folders.get(target.name)
        if known is None:
            transfer = execution.spec.transfer
            assert transfer is not None
            reply = await link.ask("expand", texts=[remote_folder(transfer, target.directory)])
            known = folders[target.name] = str(reply["texts"][0])
        return known

    async def _stage(self, x: str, target: Target) -> None:
        execution = self.executions.get(x)
        if execution is None or target.link is None or execution.spec.transfer is None:
            return
        transfer = execution.spec.transfer
        try:
            snapshot = await self.snapshots.of(transfer)
        except OrchestraError as error:
            self._stage_failed(x, target, error)
            return
        lock = self._locks.setdefault((target.name, snapshot.id), asyncio.Lock())
        for attempt in range(1, TRANSFER_TRIES + 1):
            link = target.link
            if link is None:
                return  # Asked again when it is back.
            stream = None
            try:
                folder = await self._resolve(execution, target, link)
                async with lock:
                    stream = link.open_stream("transfer")
                    report = await stage(
                        stream,
                        transfer,
                        snapshot,
                        folder,
                        target.directory,
                        target.name,
                        self._progress("sending", x),
                    )
            except (TransferError, AgentError, StorageError) as error:
                if target.link is not link or target.link is None:
                    return
                if not error.retriable or attempt == TRANSFER_TRIES or isinstance(error, StorageError):
                    self._stage_failed(x, target, error)
                    return
                await asyncio.sleep(0.2 * attempt)
            else:
                self._tell(
                    "sent",
                    x,
                    node=target.name,
                    files=report.sent_files,
                    bytes=report.sent_bytes,
                    folder=folder,
                )
                self.post(ev.Staged(x, target.name))
                return
            finally:
                if stream is not None:
                    await stream.close()

    def _stage_failed(self, x: str, target: Target, error: OrchestraError) -> None:
        self._errors[x] = error
        self.post(ev.StageFailed(x, str(error), target.name))

    async def _unstage(
        self,
        execution: Execution,
        target: Target,
        folder: str | None,
        staging: asyncio.Task[None] | None,
    ) -> None:
        """Best effort: what was sent for nothing is taken away again, if the node can be reached."""
        if staging is not None:
            await asyncio.wait([staging])
        link, transfer = target.link, execution.spec.transfer
        if folder is None or link is None or transfer is None:
            return
        stream = link.open_stream("transfer")
        try:
            with contextlib.suppress(OrchestraError):
                await tidy(stream, transfer, folder, target.directory, target.name)
        finally:
            await stream.close()

    async def _collect(self, x: str, target: Target) -> None:
        """Bring home what an ended execution left: its output, then its results; then tidy up."""
        execution = self.executions.get(x)
        if execution is None or target.link is None:
            return
        detail = self._details.setdefault(x, {})
        why = ""
        for attempt in range(1, TRANSFER_TRIES + 1):
            link = target.link
            if link is None:
                return  # Asked again when it is back.
            try:
                if detail.get("files"):
                    await self._fetch_output(execution, target, detail)
                if execution.spec.transfer is not None:
                    await self._fetch_results(execution, target, link, detail)
            except (TransferError, AgentError) as error:
                if target.link is not link or target.link is None:
                    return
                if error.retriable and attempt < TRANSFER_TRIES:
                    await asyncio.sleep(0.2 * attempt)
                    continue
                why = str(error)
            except (StorageError, OrchestraError) as error:
                why = str(error)
            break
        if why:
            self._tell("trouble", x, why=why)
            detail["collect_error"] = why
        elif detail.get("files"):
            link = target.link
            if link is not None:
                link.tell("drop", ids=[(x, execution.attempt)])
        self.post(ev.Collected(x, why))

    async def _fetch_output(self, execution: Execution, target: Target, detail: dict[str, Any]) -> None:
        if execution.sink is None:
            execution.sink = Sink(self._state_folder / "outputs" / execution.id)
        sink = execution.sink
        if execution.following is None or execution.following.done():
            execution.following = self._spawn(self._follow(execution, detail))
        await asyncio.wait([execution.following])
        sizes = {"out": detail.get("out_size", 0), "err": detail.get("err_size", 0)}
        if not execution.spec.tty and any(sink.offsets[name] < sizes[name] for name in sizes):
            raise TransferError(f"{execution.id}: its output did not come whole", retriable=True)
        for name in ("out", "err"):
            if sizes[name] <= RECORD_BYTES and sink.keep:
                detail[name] = sink.read(name, sizes[name]).decode("latin-1")
        detail["kept"] = sink.keep

    async def _fetch_results(
        self, execution: Execution, target: Target, link: AgentLink, detail: dict[str, Any]
    ) -> None:
        transfer = execution.spec.transfer
        assert transfer is not None
        folder = await self._resolve(execution, target, link)
        if transfer.fetch and "output_folder" not in detail:
            stream = link.open_stream("transfer")
            try:
                values = values_after(detail, folder, target.name)
                where, report = await collect(
                    stream,
                    transfer,
                    folder,
                    target.directory,
                    target.name,
                    values,
                    self._progress("fetching", execution.id),
                )
            finally:
                await stream.close()
            detail["output_folder"] = str(where)
            detail["fetched_files"] = report.files
            detail["refused"] = report.refused
            self._tell(
                "fetched",
                execution.id,
                files=report.files,
                bytes=report.bytes,
                folder=str(where),
                refused=report.refused,
            )
            await self._note(execution, detail)
        if transfer.leave != "everything":
            stream = link.open_stream("transfer")
            try:
                await tidy(stream, transfer, folder, target.directory, target.name)
            finally:
                await stream.close()
            self._tell("tidied", execution.id, node=target.name)

    async def _note(self, execution: Execution, detail: dict[str, Any]) -> None:
        """Results are here, and what is on the node goes next: on record first, so that nobody fetches from there again."""
        change = Change(execution.id, "collecting", record=record_of(detail, {}).decode())
        await self._writer.commit(Group(self.orchestration, time.time(), 0, NOTHING, changed=[change]))

    async def _follow(self, execution: Execution, detail: dict[str, Any] | None = None) -> None:
        """Bring output home as it is written, over as many links as it takes."""
        assert execution.sink is not None
        told = False
        while True:
            target = self.targets[execution.node]
            await self._wait_link(target)
            link = target.link
            if link is None:
                continue
            if execution.verdict is not None and detail is None:
                return  # It was over before there was a link again: what is missing came with the verdict.
            ended = detail or self._details.get(execution.id)
            if ended is not None and "reason" in ended and not ended.get("files"):
                return  # The verdict itself carries what is still missing.
            final = None
            if ended is not None and ended.get("files") and not execution.spec.tty:
                final = {"out": ended.get("out_size", 0), "err": ended.get("err_size", 0)}
            try:
                if await follow(link, execution, final):
                    return
            except StorageError as error:
                # The node keeps it until there is room here.
                if not told:
                    self._tell("trouble", execution.id, why=f"{error}; goes on when there is room")
                told = True
                await asyncio.sleep(DISK_S)
            except (TransferError, AgentError) as error:
                if not error.retriable:
                    self._tell("trouble", execution.id, why=str(error))
                    return
                await asyncio.sleep(0.05)


def submitted(x: str, spec: ExecutionSpec, batch: str, lease: str, *, is_slot: bool = False) -> ev.Submitted:
    """The core's view of a spec."""
    resources = spec.resources
    transfer = spec.transfer
    return ev.Submitted(
        x,
        batch,
        resources.counted_cpus,
        resources.memory_bytes,
        resources.gpus,
        spec.priority,
        spec.walltime_s,
        spec.retries,
        spec.retry_on,
        staged=transfer is not None,
        collected=transfer is not None,
        lease=lease,
        is_slot=is_slot,
    )


def _as_ours(error: BaseException) -> OrchestraError:
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
