"""The asyncio side of one orchestration, as its caller uses it: takes in nodes and executions, hands back futures, ends.

What happens then is in `rounds.py` and the files below it. The state of an execution is the core's; the driver keeps only
what cannot be decided on: links, tasks, bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.tables import AT_NODE
from liborch.core.things import Allocation, Cluster, lead_of
from liborch.drive.execution import Execution
from liborch.drive.ground import as_ours, unbroken
from liborch.drive.orders import remote_folder, spec_from_json, spec_to_json, submitted
from liborch.drive.outputs import OnOutput, Sink
from liborch.drive.ranks import open_details, spec_of
from liborch.drive.recording import NOTHING, decode
from liborch.drive.rounds import Rounds
from liborch.drive.targets import Target, capacity_of, gpus_of, targets_of
from liborch.drive.transfers import sweep, tidy
from liborch.errors import (
    AgentError,
    OrchestraError,
    SpecError,
    WorldError,
)
from liborch.journal import Change, ExecutionRow, Group, Journal, NewExecution
from liborch.specs import AllocationSpec, ExecutionSpec, Held, HostProfile

T = TypeVar("T")

#: The most that the specification of one execution may take, in bytes: far above what a program can be started with.
MOST_SPEC_BYTES = 3 << 20
#: Leaving waits so long for what was sent for nothing to be taken away again, in seconds.
TIDY_S = 10.0
#: Nodes out of reach at the end of a batch are waited for so long, to be tidied.
SWEEP_S = 15.0
SWEEP_AGAIN_S = 0.2
#: Allocations are seen out of their queues for so long.
GIVE_BACK_S = 30.0
#: What the core calls an allocation that a person asked for; it is part of the token.
HELD = "held"
#: And so long for a journal that takes nothing.
LAST_ROUND_S = 5.0


class Driver(Rounds):
    """Drives one orchestration.

    Args:
        orchestration: Its id: the owner's name at the agents.
        writer: The journal.
        pool: SSH connections.
        state_folder: For outputs.
        policy: The core's.
        snapshots: Shared between drivers of one client.
        listener: Told what happens.
        variables: RUNAWAY* variables of the caller, for a profile's procedures.
        waits_for_room: Results that find no room here are fetched when there is some; otherwise their execution is over without
            them, and they stay where they were made.
    """

    def __repr__(self) -> str:
        return f"<Driver {self.orchestration[:8]}: {len(self.executions)} live, {len(self.targets)} nodes>"

    # ------------------------------------------------------------------ the caller's side

    def add(self, target: Target) -> None:
        """Make a node known. Its link is opened when there is work."""
        self.targets[target.name] = target
        self.post(ev.NodeAdded(target.name, target.profile.name))

    def add_host(self, profile: HostProfile) -> None:
        """Make a host's nodes known, or the batch system that grants them. Raises UnknownName for a batch system."""
        if profile.batch_system == "none":
            for target in targets_of(profile):
                self.add(target)
            return
        self.know_frontend(profile)
        spec = profile.allocation or AllocationSpec()
        slots = profile.slots
        capacity = capacity_of(slots)
        cluster = ev.ClusterAdded(
            profile.name,
            spec.nodes,
            0 if profile.held else spec.most,
            min(spec.least, spec.nodes),
            None if profile.held else spec.walltime_s,
            capacity.get("cpus", 0),
            capacity.get("memory_bytes", 0),
            gpus_of(slots),
        )
        self.post(cluster)
        if profile.held:
            self._borrow(profile.held, cluster)

    def _borrow(self, held: Held, cluster: ev.ClusterAdded) -> None:
        """Use an allocation that another client holds. Whoever took over knows it already."""
        # The core knows it by its token: unlike the id, it is of this one for all time.
        if held.token in self.core.allocations:
            return
        self.post(ev.AllocationHeld(held.token, cluster.cluster, cluster.nodes, held.id))
        known = Allocation(held.token, Cluster(cluster), cluster.nodes, 0.0)
        known.id = held.id
        known.is_lent = True
        self.frontends[cluster.cluster].adopt(known)

    def hold_nodes(self, profile: HostProfile) -> str:
        """Ask for an allocation as the profile says, for a person to keep; returns the core's word for it.

        Leaving gives it back, unless `detached` is set.
        """
        spec = profile.allocation or AllocationSpec()
        self.post(ev.AllocationHeld(HELD, profile.name, spec.nodes))
        return HELD

    def know_frontend(self, profile: HostProfile) -> None:
        """Speak with a cluster's batch system of what was asked of it; nothing new is. Raises UnknownName."""
        if profile.name not in self.frontends:
            # Most hosts have no batch system: nobody waits for what speaks with one.
            from liborch.drive.allocating import Frontend
            from liborch.drive.procedures import system_of

            frontend = Frontend(
                profile,
                system_of(profile, self._variables),
                self._pool,
                self.orchestration,
                self.post,
                lambda what, **fields: self._tell(what, "", **fields),
            )
            self.frontends[profile.name] = frontend
            self._spawn(frontend.serve())

    def connect(self) -> None:
        """Open the links now: what is to be submitted is still being prepared."""
        self.post(ev.LinksWanted())

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

    async def plan(self, planned: Sequence[NewExecution]) -> None:
        """Enter executions into the journal that are to be submitted later (`submit_planned`). Their state is `planned`.

        Cancelling leaves all of them planned or none. Raises StorageError, JournalError.
        """
        await self._writer.commit(Group(self.orchestration, time.time(), 0, NOTHING, planned))
        self._count = max(self._count, max(each.number for each in planned))

    @property
    def count(self) -> int:
        """Highest number of an execution so far."""
        return self._count

    async def ask_journal(self, question: Callable[[Journal], T]) -> T:
        """Ask the journal something, behind everything that was written so far. Raises JournalError, StorageError."""
        return await self._writer.run(question)

    async def note(self, changes: Sequence[Change]) -> None:
        """Record what became of executions that the core does not know. Raises JournalError, StorageError."""
        if changes:
            await self._writer.commit(Group(self.orchestration, time.time(), 0, NOTHING, (), changes))

    async def planned(self, after: int, limit: int) -> list[ExecutionRow]:
        """The next executions that were planned and not submitted, in order of their numbers."""
        return await self._writer.run(
            lambda journal: journal.executions(
                self.orchestration, ["planned"], limit, newest_first=False, live=True, after=after
            )
        )

    def submit_planned(self, x: str, spec: ExecutionSpec, host: str, *, batch: str = "") -> Execution:
        """Take in an execution that is in the journal already. Raises what `submit` raises for a driver that has ended."""
        self._refuse_if_over()
        execution = Execution(self, x, host, spec)
        self.is_swept = False
        self.executions[x] = execution
        self._woken.append(Change(x, "waiting"))
        self.post(submitted(x, spec, batch, ""))
        return execution

    def _refuse_if_over(self) -> None:
        if self.fatal is not None:
            raise as_ours(self.fatal)
        if self._closing:
            raise SpecError("the host was closed: nothing can be given to it any more")

    def _text_of(self, spec: ExecutionSpec) -> str:
        self._refuse_if_over()
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

    async def wait_handed_over(self, execution: Execution) -> None:
        """Return when a node has the order, and nobody here is needed any more; or when the execution is over.

        Cancelled: nothing changes. Raises what `Execution.wait` raises.
        """
        over = asyncio.ensure_future(execution.wait())
        try:
            while not over.done() and not await self._is_handed_over(execution):
                turn = asyncio.ensure_future(self.turned())
                await asyncio.wait([over, turn], return_when=asyncio.FIRST_COMPLETED)
                turn.cancel()
            if over.done():
                over.result()
        finally:
            over.cancel()

    async def _is_handed_over(self, execution: Execution) -> bool:
        item = self.core.items.get(execution.id)
        if item is None or item.state in ("WAITING", "STAGING"):
            return False
        if item.state != "PLACED":
            return True
        ordered = execution.ordered
        if ordered is None or ordered[0] != item.attempt:
            return False
        # What was written to a link that is closed next may never arrive. Questions are answered in the order of things.
        with contextlib.suppress(AgentError):
            await ordered[1].ask("status")
            return execution.ordered == ordered
        return False

    @property
    def has_tried_all(self) -> bool:
        """Whether every node that is known has been reached, or has not at the first try."""
        return all(target.link is not None or target.error is not None for target in self.targets.values())

    @property
    def is_linked(self) -> bool:
        """Whether some node can be used now, or asked for. Raises what stands in the way when none can be, until a person acts."""
        if any(frontend.error is None for frontend in self.frontends.values()):
            return True
        targets = [target for target in self.targets.values() if not target.closed]
        nodes = [self.core.nodes[target.name] for target in targets if target.name in self.core.nodes]
        if any(node.is_usable for node in nodes):
            return True
        errors = [target.error for target in targets] + [each.error for each in self.frontends.values()]
        refused = [node.link == "REFUSED" for node in nodes]
        if errors and all(refused) and errors[0] is not None:
            raise errors[0]
        return False

    async def sweep(self) -> None:
        """Remove from the nodes what was sent to them and is not needed any more, and what lost attempts left. Best effort.

        Nodes that are out of reach are waited for, for a while; those that did not come back are in `untidy` then.
        """
        if self.is_swept:
            return
        text = await self.ask_journal(lambda journal: journal.common(self.orchestration))
        sent = bool(json.loads(text or "{}").get("transfer"))
        repeated = await self.ask_journal(lambda journal: journal.repeated(self.orchestration))
        if not sent and not repeated:
            return
        # What the last attempt wrote is fetched, or for people to look at.
        old = [(x, attempt) for x, attempts in repeated for attempt in range(1, attempts)]
        targets = [each for each in self.targets.values() if each.name in self._strays.nodes]
        targets = [each for each in targets if each.link is not None or not each.closed]
        self.untidy = {target.name for target in targets}
        self.connect()
        await asyncio.gather(*(self._sweep(target, old) for target in targets))

    async def _sweep(self, target: Target, old: list[tuple[str, int]]) -> None:
        until = self._clock() + SWEEP_S
        while self._clock() < until and not self._is_refused(target):
            try:
                async with asyncio.timeout_at(until):
                    await self._wait_link(target)
                await self._sweep_node(target, old)
                self.untidy.discard(target.name)
                return
            except (OrchestraError, TimeoutError):
                # A link that broke meanwhile is opened again; a node that refuses has nobody to tell.
                await asyncio.sleep(SWEEP_AGAIN_S)

    def _is_refused(self, target: Target) -> bool:
        node = self.core.nodes.get(target.name)
        return node is not None and node.link == "REFUSED"

    async def _sweep_node(self, target: Target, old: list[tuple[str, int]]) -> None:
        link = target.link
        if link is None:
            raise AgentError(target.name, "the link broke", retriable=True)
        if old and not await self._drop(target, old):
            raise AgentError(target.name, "the link broke", retriable=True)
        async with self._conversations.hold(link) as stream:
            for x in self._strays.on(target.name):
                lead, rank = lead_of(x)
                row = await self.ask_journal(lambda journal, x=lead: journal.execution(x))  # type: ignore[misc]
                transfer = spec_of(spec_from_json(row.spec), rank).transfer if row is not None else None
                if transfer is not None and transfer.leave != "everything":
                    reply = await link.ask("expand", texts=[remote_folder(transfer, target.directory)])
                    await tidy(stream, transfer, reply["texts"][0], target.directory, target.name)
            await sweep(stream, target.directory, target.name)

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
        open_details(self._details)
        self._count = count
        policy = self.core.policy
        last = 0.0
        for payload in groups:
            recorded = decode(payload)
            last = max(last, recorded.now)
            # Before what the events do: they may be the last ones of a node.
            for node, n in recorded.acks.items():
                if node in self.targets or node in self.core.nodes:
                    target = self._target(node)
                    target.acked = target.received = n
            for event in recorded.events:
                if isinstance(event, ev.LinkOpened) and event.node in self.core.nodes:
                    self._target(event.node).state_id = event.state_id
                actions = self.core.handle(event, recorded.now)
                self._strays.note(actions)
                for action in actions:
                    if isinstance(action, act.Forget):
                        self._forget_node(action.node)
        for name in [node.name for node in self.core.nodes.values() if node.is_granted]:
            self._target(name)
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
        for allocation in self.core.allocations.values():
            if allocation.id:
                self.frontends[allocation.cluster.name].adopt(allocation)
        self.post(ev.PolicyChosen(policy))
        self.post(ev.Restarted())

    @property
    def holds(self) -> bool:
        """Whether there is an allocation that a person asked for to keep."""
        return any(each.is_held and not each.is_lent for each in self.core.allocations.values())

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
            if self.frontends and (self.is_drained or not self.detached):
                await self._give_back()
            if self._tidying:
                await asyncio.wait(self._tidying, timeout=TIDY_S)
        finally:
            await unbroken(self._shut())

    async def _give_back(self) -> None:
        """See every allocation out of the queue, as far as the time allows; say which ones stay."""
        self.post(ev.AllocationsUnwanted())
        # A batch system that is slow has to answer at least once.
        within_s = GIVE_BACK_S * max(frontend.patience for frontend in self.frontends.values())
        with contextlib.suppress(TimeoutError, OrchestraError):
            async with asyncio.timeout(within_s):
                await self.turned()
                while any(not each.is_lent for each in self.core.allocations.values()):
                    await self.turned()
        for allocation in self.core.allocations.values():
            if allocation.is_lent:
                continue
            name = allocation.id or "one that may have been submitted just now"
            why = f"allocation {name} of {allocation.cluster.name} could not be given back in {within_s:.0f} s: cancel it by hand"
            self._tell("trouble", "", why=why)

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
            self._settle(execution, left)
        for grant in self._grants.values():
            if not grant.done():
                grant.set_exception(left)
