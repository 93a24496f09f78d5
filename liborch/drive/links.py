"""A driver's links to its nodes: opening them, what their agents say, what is told when they are down."""

from __future__ import annotations

import math
import time
from typing import Any

from liborch.core import events as ev
from liborch.drive.execution import Execution
from liborch.drive.ground import Ground
from liborch.drive.link import AgentEvent, AgentLink
from liborch.drive.orders import remote_folder
from liborch.drive.ranks import keep_detail
from liborch.drive.targets import Target, room_of
from liborch.errors import (
    AgentError,
    HostUnreachable,
    OrchestraError,
    SpecError,
    StorageError,
)

#: What people are told of a node that ends what a login leaves behind.
ENDS_WITH_LOGIN = (
    "what a login starts is ended with it there (KillUserProcesses of systemd-logind): executions do not outlive their connection; "
    "`loginctl enable-linger`, once on that host, changes that"
)


class Links(Ground):
    """See the module's text."""

    async def _connect(self, target: Target, attempt: int) -> None:
        self._tell("connecting", "", node=target.name, attempt=attempt)
        await self._wait_for_former(target)
        target.wanted = self._state_of(target)
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
        state_id = str(link.hello.get("state_id", ""))
        twin = self._twin_of(target, state_id)
        if twin is not None:
            # One agent serves both names, and its slots are counted once.
            await link.close()
            target.error = AgentError(
                target.name, f"is the same node as {twin.name}; one of the two names is enough"
            )
            self._down(target, "unreachable", str(target.error))
            self.post(ev.LinkRefused(target.name, str(target.error)))
            return
        target.error = None
        target.link = link
        if state_id != target.state_id:
            # Another state folder counts its events from one again.
            target.acked = target.received = target.told = self._left_off.get(state_id, 0)
            target.state_id = state_id
        if link.hello.get("limits") and not target.told_limits:
            target.told_limits = True
            self._tell(
                "limited", "", node=target.name, why=link.hello.get("why", ""), limits=link.hello["limits"]
            )

        if link.hello.get("ends_with_login") and not target.told_limits:
            target.told_limits = True
            self._tell("trouble", "", why=f"{target.name}: {ENDS_WITH_LOGIN}")

        def attached(head: dict[str, Any]) -> None:
            for x, folder in zip(unknown, head.get("expanded", ())[1:], strict=False):
                self._folders.setdefault(x, {})[target.name] = str(folder)
            self._on_attached(target, head)

        def lost(why: str) -> None:
            if target.link is link:
                target.link = None
                self._down(target, "lost", why)
                self.post(ev.LinkLost(target.name, why))

        unknown = self._without_folder(target)
        await link.attach(
            self.orchestration,
            target.acked,
            target.capacity,
            lambda events: self._on_agent_events(target, link.clock_skew_s, events),
            attached,
            lost,
            expand=[target.profile.directory, *unknown.values()],
        )
        self._tell_departure(target, link)

    def _tell_departure(self, target: Target, link: AgentLink) -> None:
        """Say how long a node is ours, for the time when nobody is here to see to its end."""
        node = self.core.nodes.get(target.name)
        allocation = node.allocation if node is not None else None
        if allocation is None:
            return
        policy = self.core.policy
        gone_by = allocation.until(policy.cut_margin_s)
        if gone_by < math.inf:
            link.tell("depart", left=round(gone_by - self.now(), 3), grace=policy.cut_grace_s)

    async def _wait_for_former(self, target: Target) -> None:
        """A machine that came with another allocation before is left first, where both have one agent: it speaks with us once."""
        while target.machine and any(
            other is not target and other.machine == target.machine and other.profile.name == target.profile.name
            and other.link is not None and (other.fallback or not other.allocation)
            for other in self.targets.values()
        ):  # fmt: skip
            await self.turned()

    def _without_folder(self, target: Target) -> dict[str, str]:
        """{execution: its remote folder, for the host to expand} of those placed there by a client that is gone.

        Their files are there, their orders perhaps not. Handing over does not wait, so the folders come with the greeting.
        """
        node = self.core.nodes.get(target.name)
        found = {}
        for x in node.items if node is not None else ():
            execution = self._find(x)
            transfer = execution.spec.transfer if execution is not None else None
            placed = self.core.items[x].state == "PLACED"
            if placed and transfer is not None and target.name not in self._folders.get(x, {}):
                found[x] = remote_folder(transfer, target.profile.directory)
        return found

    def _state_of(self, target: Target) -> str:
        """The state folder that executions of ours there were handed to; "": none is there."""
        node = self.core.nodes.get(target.name)
        items = node.items.values() if node is not None else ()
        return next((item.state_id for item in items if item.state_id), "")

    def _twin_of(self, target: Target, state_id: str) -> Target | None:
        for other in self.targets.values():
            if other is not target and other.link is not None and state_id and other.state_id == state_id:
                return other
        return None

    def _down(self, target: Target, what: str, why: str) -> None:
        if target.down_since is None:
            target.down_since = time.time()
        target.down_why = why
        node = self.core.nodes.get(target.name)
        if node is None or not node.is_leaving or node.items:
            self._tell(what, "", node=target.name, why=why)

    def _on_attached(self, target: Target, head: dict[str, Any]) -> None:
        room = head["room"]
        target.directory = head["expanded"][0] if head.get("expanded") else ""
        holding = tuple((str(x), int(attempt), str(state)) for x, attempt, state in head["holding"])
        try:
            cpus, memory_bytes, gpus = room_of(target, room)
        except SpecError as error:
            target.error = error
            self._down(target, "unreachable", str(error))
            self.post(ev.LinkRefused(target.name, str(error)))
            link, target.link = target.link, None
            if link is not None:
                self._spawn(link.close())
            return
        target.down_since = None
        self._tell("linked", "", node=target.name)
        self.post(ev.LinkOpened(target.name, target.state_id, cpus, memory_bytes, gpus, holding))
        self._spawn(self._announce_link())

    async def _announce_link(self) -> None:
        async with self._linked:
            self._linked.notify_all()

    def _on_agent_events(self, target: Target, skew_s: float, events: list[AgentEvent]) -> None:
        inbox = self._inbox
        for n, _owner, kind, x, attempt, detail in events:
            if n <= target.received:
                continue
            target.received = n
            execution = self._find(x) if kind in ("ended", "started", "held") else None
            if execution is not None:
                _use_our_clock(execution, attempt, detail, skew_s)
                keep_detail(self._details, execution, target.name, detail)
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


def _use_our_clock(execution: Execution, attempt: int, detail: dict[str, Any], skew_s: float) -> None:
    """Tell by this machine's clock when an attempt began: by the node's, which may be days off, nothing can be compared.

    What was told first stays, also when the node's clock is set meanwhile; nothing begins before it was asked for, and
    nothing ends in the future.
    """
    if "start" not in detail:
        return
    began = execution.began
    told = began[1] if began is not None and began[0] == attempt else float(detail["start"]) + skew_s
    latest = time.time() - float(detail.get("dur") or 0.0)
    detail["start"] = max(execution.submitted_at, min(told, latest))
    execution.began = (attempt, detail["start"])
