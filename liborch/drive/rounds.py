"""A driver's rounds: have the core decide, record, act, acknowledge.

Order of things, always: events go through the core, then into the journal, then the actions they caused are carried
out, then agents get their acknowledgements. So whatever was handed over is on record, and whatever is
acknowledged is, too: a client killed between any two of these steps is continued by the next one.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.things import Item, lead_of
from liborch.drive.errands import DISK_S, Errands
from liborch.drive.execution import Execution
from liborch.drive.orders import order_of
from liborch.drive.ranks import environment, part_ids
from liborch.drive.recording import Recorded, encode
from liborch.drive.results import record_of, result_of
from liborch.drive.targets import Target
from liborch.errors import InvariantError, OrchestraError, SpecError, StorageError, WorldError
from liborch.journal import Change, Group, Writer
from liborch.ssh import Pool

#: An acknowledgement is sent after so many events, or so many seconds, or when nothing is left to do.
ACK_EVENTS = 500
ACK_S = 1.0
#: With more executions than this under way, rounds are so far apart, in seconds: fewer, larger messages and commits.
BUSY_EXECUTIONS = 64
PACE_S = 0.008
#: Beside slow rounds (a busy machine, a slow disk) they are so many times as far apart, up to so many seconds: what a round
#: costs whatever it holds stays a small part of all work. No slot waits for it: nodes hold orders for longer.
PACE_ROUNDS = 3
PACE_MOST_S = 0.05


class Rounds(Errands):
    """See the module's text. Its arguments are the driver's."""

    def __init__(
        self, orchestration: str, writer: Writer, pool: Pool, state_folder: Path, **options: Any
    ) -> None:
        super().__init__(orchestration, writer, pool, state_folder, **options)
        #: How long the last round took, in seconds.
        self._round_s = 0.0
        self._pump_task = asyncio.ensure_future(self._pump())

    async def _pump(self) -> None:
        try:
            while True:
                await self._wait_for_events()
                if self._closing and not self._inbox:
                    return
                began = self.now()
                await self._turn()
                self._round_s = self.now() - began
        except asyncio.CancelledError:
            raise  # By `_shut`, which tells everybody.
        except BaseException as error:
            self.fatal = error
            self._fail_everybody(error)
            raise

    async def _wait_for_events(self) -> None:
        if len(self.executions) > BUSY_EXECUTIONS and not self._closing:
            await asyncio.sleep(min(max(PACE_S, PACE_ROUNDS * self._round_s), PACE_MOST_S))
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
        woken, self._woken = self._woken, []
        received = {
            name: target.received for name, target in self.targets.items() if target.received > target.acked
        }
        now = self.now()
        actions: list[act.AnyAction] = []
        for event in events:
            actions += self.core.handle(event, now)
        self._strays.note(actions)
        changes = woken + self._changes(events, actions)
        if self._before_record is not None:
            await self._finish_before(changes)
        payload = encode(Recorded(now, events, received))
        await self._writer.commit(Group(self.orchestration, time.time(), len(events), payload, new, changes))
        self._carry_out(actions)
        for name, n in received.items():
            target = self.targets.get(name)
            if target is not None:
                target.acked = n
                self._acknowledge(target, now)
        for event in events:
            if isinstance(event, ev.LinkRefused) and event.node in self.core.nodes:
                self._stop_waiting(event.node)
        if self._turned is not None:
            self._turned.set_result(None)
            self._turned = None

    async def _finish_before(self, changes: list[Change]) -> None:
        """Let the caller see to what is over, before it is on record: a client killed between sees it again."""
        assert self._before_record is not None
        results = []
        for change in changes:
            execution = self.executions.get(change.id) if change.ended_at is not None else None
            if execution is not None and execution.verdict is not None:
                results.append((execution, execution.verdict))
        told = False
        while results:
            try:
                await self._before_record(results)
                break
            except StorageError as error:
                # As with the journal: nothing new is decided until there is room; what runs goes on.
                if not told:
                    self.stalled(error)
                told = True
                await asyncio.sleep(DISK_S)
        if told:
            self.stalled(None)

    def stalled(self, error: StorageError | None) -> None:
        """This machine's disk refuses (None: no longer). Nothing new starts meanwhile; what runs goes on, and is kept by its node."""
        why = f"{error}; what runs goes on, nothing new starts until there is room" if error else ""
        self._tell("stalled" if error else "recovered", "", why=why)

    def _stop_waiting(self, node: str) -> None:
        """A node cannot be reached until a person acts: whoever awaits what is on it is told so. It is not over for that."""
        error = self.targets[node].error
        if error is None:
            return
        for x in self.core.nodes[node].items:
            execution = self.executions.get(lead_of(x)[0])
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
            elif isinstance(event, ev.Recalled | ev.Staged):
                item = self.core.items.get(event.x)
                if item is not None and item.state == "WAITING":
                    states[event.x] = "waiting"
            elif isinstance(event, ev.Ended):
                item = self.core.items.get(event.x)
                if item is not None and item.state == "COLLECTING":
                    # It will be acknowledged, so whoever takes over has to find it here.
                    x = event.x if item.gang is None else item.gang.members[0].x
                    states[x] = "collecting" if item.gang is None or item.gang.is_over else "running"
                    records[x] = record_of(self._details.get(x, {}), {}).decode()
        for action in actions:
            if isinstance(action, act.Hand):
                self._moved(action.x, "placed", action.node)
                states.setdefault(action.x, "placed")
            elif isinstance(action, act.Stage):
                self._moved(action.x, "staging", action.node)
                states[action.x] = "staging"
            elif isinstance(action, act.Retry):
                states[action.x] = "waiting"
                self._details.get(action.x, {}).pop("ranks", None)
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
        execution = self._find(x)
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
                self._spawn(self._connect(self._target(action.node), action.attempt))
            elif isinstance(action, act.Allocate):
                self.frontends[action.cluster].allocate(action)
            elif isinstance(action, act.Release):
                self.frontends[action.cluster].release(action.a)
            elif isinstance(action, act.Forget):
                self._forget_node(action.node)
            elif isinstance(action, act.Stage):
                self._spawn_for(action.x, self._stage(action.x, self.targets[action.node]))
            elif isinstance(action, act.Collect):
                self._spawn_for(action.x, self._collect(action.x, self.targets[action.node]))
            elif isinstance(action, act.Unstage):
                execution = self._find(action.x)
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
                    self._tidying_of[action.x] = tidying
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
            known = self.targets.get(node)
            link = known.link if known is not None else None
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
        common: dict[str, Any] = {
            "env": {
                "RUNAWAY_REMOTE": target.profile.name,
                "RUNAWAY_PATH": target.directory,
                "RUNAWAY_NODES": target.machine or target.name,
            },
            "node": target.machine or target.name,
        }
        if target.variables:
            common["env"] = {**target.variables, **common["env"]}
        if target.handles:
            common["handles"] = list(target.handles)
        if target.slots.numa is not None:
            common["numa"] = target.slots.numa
        if target.slots.gpu_ids:
            common["gpu_ids"] = list(target.slots.gpu_ids)
        for hand in hands:
            execution = self._find(hand.x)
            if execution is None:
                continue
            item = self.core.items.get(hand.x)
            if item is not None and item.is_slot:
                resources = execution.spec.resources
                own: dict[str, Any] = {"hold": True, "gpus": resources.gpus, "mem": resources.memory_bytes}
                if resources.cpus is not None:
                    own["cpus"] = resources.cpus
            else:
                own = self._order(execution, target, item)
            orders.append((hand.x, hand.attempt, own))
            execution.ordered = (hand.attempt, link)
            if execution.sink is not None and execution.following is None:
                execution.following = self._spawn(self._follow(execution))
        link.order(common, orders)

    def _order(self, execution: Execution, target: Target, item: Item | None) -> dict[str, Any]:
        spec = execution.spec
        folder = spec.folder or target.start_folder or None
        variables: dict[str, str] = {}
        if spec.transfer is not None:
            folder = self._folder(execution)
            variables = {**spec.transfer.variables, "RUNAWAY_PATH": target.directory, "RUNAWAY_PWD": folder}
        if item is not None and item.gang is not None:
            variables |= environment(item, item.gang, self.targets, self._pool)
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
        self._forget(action.x)
        for x in part_ids(action.x, execution.spec.node_count):
            self._ranks.pop(x, None)
            self._details.pop(x, None)
            self._forget(x)
        self._end(execution, action)
        self._tell("finished", action.x, state=action.state, reason=action.reason, why=action.why)
        self._look_idle()

    def _forget_node(self, node: str) -> None:
        """It is gone for good."""
        target = self.targets.pop(node, None)
        if target is None:
            return
        frontend = self.frontends.get(target.profile.name)
        if frontend is not None:
            frontend.node_error = target.error
        # The same agent may serve us again, in another allocation.
        self._left_off[target.state_id] = target.received
        if target.link is not None:
            link, target.link = target.link, None
            link.tell("ack", n=target.received)
            self._spawn(link.close())

    def _forget(self, x: str) -> None:
        self._folders.pop(x, None)
        self._tidying_of.pop(x, None)

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

    def _error_for(self, action: act.Finish) -> OrchestraError:
        """What a refusal is to whoever asked: no node can be used, for this reason; or no node would ever do it."""
        errors = [each.error for each in self.targets.values()] + [
            each.error or each.node_error for each in self.frontends.values()
        ]
        known = [error for error in errors if error is not None]
        if known and len(known) == len(errors):
            return known[0]
        return SpecError(action.why)
