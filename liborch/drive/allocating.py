"""Asks a batch system for allocations, and keeps an eye on them: the hands of the core's `Allocate` and `Release`.

One `Frontend` per cluster runs the commands that its dialect (`liborch.batch_systems`) renders, over SSH or on this machine, and
tells the core what the answers mean. There is one question at a time, about everything of ours, however many allocations there
are; the longer nothing changes, the rarer it is asked.

===============  =====================================================================================================
an allocation    how it stands with the batch system
===============  =====================================================================================================
wanted           the submit command is to be run
unclear          it was run, and nobody knows what it did: the token is looked for before it is run again
known            its id is known; what it does is told by the answers
===============  =====================================================================================================

A batch system that is slow is given more time for each command (`patience`), up to some minutes.

A question that is not answered says nothing; an answer in which an allocation is missing twice says that it is over. What
is found in the queue under a token of this orchestration and is not known here is ended: it was submitted twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from liborch.batch_systems.base import (
    PATIENCE_S,
    Accepted,
    BatchSystem,
    Command,
    Output,
    Rejected,
    Request,
    Sight,
    Unclear,
    is_id,
)
from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.things import Allocation
from liborch.drive.frontend_commands import run_on_frontend
from liborch.drive.holders import holder_script
from liborch.drive.quota import Quota
from liborch.errors import HostUnreachable, OrchestraError, ProcedureError, SpecError
from liborch.specs import HostProfile
from liborch.ssh import Pool

#: Seconds between two questions, right after something changed and when nothing has for long: with something queued, without.
SOON_S = 0.5
QUEUED_S = 10.0
ACTIVE_S = 30.0
SLOWER = 1.4
#: A submission that was unclear is made again when the token was looked for so often, and so long, in vain.
LOOKS = 2
LOOKED_FOR_S = 8.0
#: An allocation is over when it is missing in so many answers.
MISSED = 2
#: How far its end may be off before the core is told anew, in seconds.
DRIFT_S = 3.0
#: One that was not done in time is given so much more the next time, and how much at most.
MORE_PATIENCE = 3.0
PATIENCE_MOST = 9.0
#: Longest wait after a frontend or batch system that did not answer.
SILENT_MOST_S = 60.0


@dataclass
class _Kept:
    """One allocation, as the batch system sees it."""

    name: str
    token: str
    request: Request
    #: "": not known.
    id: str = ""
    #: The submit command was run and what it did is not known; since then, on this machine's monotonic clock.
    unclear_since: float | None = None
    looks: int = 0
    missed: int = 0
    #: The core was told that it is queued, or active, with so many restarts, until then.
    told: str = ""
    why: str = ""
    restarts: int = 0
    nodes: tuple[str, ...] = ()
    ends_at: float | None = None
    is_releasing: bool = False
    #: Another client asked for it.
    is_lent: bool = False
    #: It was asked to end so often.
    cancels: int = 0
    #: Why it can never begin; "": it may.
    hopeless: str = ""


class Frontend:
    """See the module's text.

    Args:
        profile: The cluster's.
        system: Its dialect.
        pool: SSH connections.
        orchestration: Whose allocations these are.
        post: Takes events for the core.
        tell: Takes what people are told: (what, fields).
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        profile: HostProfile,
        system: BatchSystem,
        pool: Pool,
        orchestration: str,
        post: Callable[[ev.AnyEvent], None],
        tell: Callable[..., None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.profile = profile
        self.system = system
        #: Why no allocation can be had, as the exception it was.
        self.error: OrchestraError | None = None
        #: Why the last node that was left could not be used; None: it could.
        self.node_error: OrchestraError | None = None
        #: How many times their usual time commands are given.
        self.patience = 1.0
        self._pool = pool
        #: What tokens of this orchestration begin with.
        self._prefix = hashlib.sha256(orchestration.encode()).hexdigest()[:12]
        self._post = post
        self._tell = tell
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._quota = Quota(system.name)
        #: Why it said no last.
        self._refusal = ""
        self._wake = asyncio.Event()
        self._pause_s = SOON_S
        self._silent = 0

    def __repr__(self) -> str:
        return f"<Frontend {self.profile.name}: {len(self._kept)} allocations>"

    # ------------------------------------------------------------------ what the core wants

    def allocate(self, action: act.Allocate) -> None:
        """Ask for nodes. Where another client may have done so already, the token is looked for first."""
        spec = self.profile.allocation
        options = spec.options if spec is not None else ()
        token = f"{self._prefix}{action.a}"
        script = holder_script(self.profile)
        request = Request(
            token, action.nodes, action.walltime_s, options, script=script, avoided=action.avoided
        )
        kept = _Kept(action.a, token, request)
        if action.is_repeated:
            kept.unclear_since = self._clock() - LOOKED_FOR_S
        self._kept.setdefault(action.a, kept)
        self._hurry()

    def release(self, name: str) -> None:
        """Give an allocation back, wherever it stands."""
        kept = self._kept.get(name)
        if kept is not None:
            kept.is_releasing = True
            self._hurry()

    def adopt(self, allocation: Allocation) -> None:
        """Go on with one that another client asked for."""
        token = allocation.name if allocation.is_lent else f"{self._prefix}{allocation.name}"
        told = "active" if allocation.state in ("ACTIVE", "DRAINING") else "queued"
        self._kept[allocation.name] = _Kept(
            allocation.name,
            token,
            Request(token, allocation.node_count),
            allocation.id,
            told=told,
            is_lent=allocation.is_lent,
        )
        self._hurry()

    def _hurry(self) -> None:
        self._pause_s = SOON_S
        self._wake.set()

    # ------------------------------------------------------------------ the loop

    async def serve(self) -> None:
        """See to everything; cancel it to stop. What is in the queue stays there."""
        while True:
            self._wake.clear()
            if not self._kept:
                await self._rest(None)
                continue
            try:
                await self._submit_wanted()
                await self._cancel_unwanted()
                pause = self._pause_s if not self._is_urgent() else 0.0
                if self._kept and pause and await self._rest(pause):
                    continue
                if self._kept:
                    await self._ask()
                self._silent = 0
            except _Silent as error:
                self._silent += 1
                pause = min(SILENT_MOST_S, 2.0 ** min(self._silent, 10)) * self._pool.rng.uniform(0.5, 1.0)
                self._tell("frontend", why=f"{self.profile.name}: {error}; asking again in {pause:.0f} s")
                await self._sleep(pause)

    async def _rest(self, seconds: float | None) -> bool:
        """Do nothing until something is wanted, or so many seconds; whether something is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        return self._wake.is_set()

    async def _sleep(self, seconds: float) -> None:
        """Do nothing for so many seconds, whatever is wanted."""
        await asyncio.sleep(seconds)

    def _is_urgent(self) -> bool:
        """Whether something was just given back, or has to be looked for before anything else can be done."""
        return any(
            kept.unclear_since is not None
            and not kept.looks
            and self._clock() - kept.unclear_since >= LOOKED_FOR_S * self.patience
            for kept in self._kept.values()
        )

    async def _submit_wanted(self) -> None:
        for kept in list(self._kept.values()):
            if kept.id or kept.unclear_since is not None:
                continue
            if kept.is_releasing:
                self._over(kept, "cancelled", "before it was asked for")
                continue
            if not await self._has_room(kept.request):
                continue
            try:
                command = self.system.submit(replace(kept.request, patience_s=PATIENCE_S * self.patience))
            except (SpecError, ValueError) as error:
                self._refused(kept, Rejected(str(error)), error if isinstance(error, SpecError) else None)
                continue
            try:
                output = await self._run(command)
            except OrchestraError as error:
                if isinstance(error, HostUnreachable) and error.retriable:
                    raise _Silent(str(error)) from error
                self._refused(kept, Rejected(str(error)), error)
                continue
            match self.system.parse_submit(output):
                case Accepted(id=id):
                    self._found(kept, id)
                case Rejected() as rejected:
                    self._refused(kept, rejected, None)
                case Unclear(why=why):
                    kept.unclear_since = self._clock()
                    kept.looks = 0
                    self._tell(
                        "frontend", why=f"{self.profile.name}: {why}; looking whether it is in the queue"
                    )

    def _refused(self, kept: _Kept, rejected: Rejected, error: OrchestraError | None) -> None:
        del self._kept[kept.name]
        if not rejected.is_retriable:
            self.error = error or SpecError(f"{self.profile.name}: {rejected.why}")
        if rejected.why != self._refusal:
            # It is asked for again, and refused again, for as long as it takes: said once.
            self._tell("refused", host=self.profile.name, why=rejected.why, again=rejected.is_retriable)
        self._refusal = rejected.why
        self._post(ev.AllocationRefused(kept.name, rejected.why, rejected.is_retriable))

    def _found(self, kept: _Kept, id: str) -> None:
        kept.id = id
        kept.unclear_since = None
        self._refusal = ""
        kept.told = "queued"
        self._pause_s = SOON_S
        self._tell(
            "allocation", host=self.profile.name, id=id, state="queued", nodes=kept.request.nodes, why=""
        )
        self._post(ev.AllocationQueued(kept.name, id))

    async def _cancel_unwanted(self) -> None:
        due = [kept for kept in self._kept.values() if kept.is_releasing and kept.id and kept.cancels == 0]
        if due:
            await self._cancel(due)

    async def _cancel(self, due: list[_Kept]) -> None:
        # Whatever it says: the next answers tell whether they are gone, and it is asked again when they are not.
        said = self.system.parse_cancel(
            await self._run_patiently(self.system.cancel([kept.id for kept in due]))
        )
        for kept in due:
            kept.cancels += 1
        self._pause_s = SOON_S
        if said is not None:
            self._tell("frontend", why=f"{self.profile.name}: {said.why}")

    # ------------------------------------------------------------------ asking, and what the answers mean

    async def _ask(self) -> None:
        command = self.system.query([kept.id for kept in self._kept.values() if kept.id])
        asked = {kept.name for kept in self._kept.values()}
        asked_at = self._clock()
        answer = self.system.parse_query(await self._run_patiently(command))
        if isinstance(answer, Unclear):
            raise _Silent(answer.why)
        by_token: dict[str, list[Sight]] = {}
        for each in answer.values():
            by_token.setdefault(each.token, []).append(each)
        changed = False
        for kept in list(self._kept.values()):
            if kept.name not in asked:
                continue
            sight: Sight | None = answer.get(kept.id) if kept.id else None
            if sight is None and not kept.id:
                sight = next((one for one in by_token.get(kept.token, ()) if one.state != "ended"), None)
                if sight is not None:
                    self._found(kept, sight.id)
            if sight is not None and kept.token and sight.token and sight.token != kept.token:
                # Systems give ids again: this one is another's.
                sight = None
            changed |= self._missing(kept) if sight is None else self._seen(kept, sight, asked_at)
        await self._give_up_hopeless()
        await self._end_twins(answer)
        again = [kept for kept in self._kept.values() if kept.is_releasing and kept.id and kept.missed == 0]
        if again and self._pause_s > 2 * SOON_S:
            await self._cancel(again)
        most = ACTIVE_S if all(kept.told == "active" for kept in self._kept.values()) else QUEUED_S
        self._pause_s = SOON_S if changed else min(self._pause_s * SLOWER, most)

    def _seen(self, kept: _Kept, sight: Sight, asked_at: float) -> bool:
        """Tell the core what is new; whether anything was."""
        kept.missed = 0
        if sight.state == "ended":
            self._over(kept, sight.end or "done", sight.why)
            return True
        if sight.state == "ending":
            if kept.is_releasing or kept.told == "active":
                self._over(kept, sight.end or ("cancelled" if kept.is_releasing else "done"), sight.why)
                return True
            return False
        if sight.state == "active":
            return self._active(kept, sight, asked_at)
        if sight.is_hopeless and not (kept.is_lent or kept.is_releasing):
            kept.hopeless = sight.why
        new = (kept.told, kept.why) != ("queued", sight.why)
        if new:
            kept.told, kept.why = "queued", sight.why
            kept.ends_at = None
            self._tell(
                "allocation", host=self.profile.name, id=kept.id, state=sight.state,
                nodes=kept.request.nodes, why=sight.why,
            )  # fmt: skip
            self._post(ev.AllocationQueued(kept.name, kept.id, sight.why))
        return new

    def _active(self, kept: _Kept, sight: Sight, asked_at: float) -> bool:
        # Nobody knows when within a slow answer the time was told.
        left_s = None if sight.left_s is None else max(0.0, sight.left_s - (self._clock() - asked_at))
        ends_at = None if left_s is None else self._clock() + left_s
        if kept.told == "active" and sight.restarts > kept.restarts:
            # It was put back and has begun again between two answers.
            self._post(ev.AllocationQueued(kept.name, kept.id, "it was started again"))
            kept.told = "queued"
        is_new = kept.told != "active"
        drifted = (ends_at is None) != (kept.ends_at is None) or (
            ends_at is not None and kept.ends_at is not None and abs(ends_at - kept.ends_at) > DRIFT_S
        )
        if not is_new and not drifted and kept.nodes == sight.nodes:
            return False
        kept.told, kept.restarts, kept.ends_at = "active", sight.restarts, ends_at
        kept.nodes = sight.nodes
        if is_new:
            self._tell(
                "allocation",
                host=self.profile.name,
                id=kept.id,
                state="used" if kept.is_lent else "active",
                nodes=len(sight.nodes),
                why="",
            )
        self._post(
            ev.AllocationActive(
                kept.name,
                kept.id,
                sight.nodes,
                left_s,
                sight.cpus or 0,
                sight.memory_bytes or 0,
                sight.gpus or 0,
                self.profile.batch_system == "procedures",
            )
        )
        return is_new

    def _missing(self, kept: _Kept) -> bool:
        """The answer does not know it; whether that means something."""
        if kept.id:
            kept.missed += 1
            if kept.missed >= MISSED or kept.is_releasing:
                why = "" if kept.is_releasing else f"{self.system.name} does not know it any more"
                self._over(kept, "cancelled" if kept.is_releasing else "done", why)
            return True
        if kept.unclear_since is None:
            return False
        kept.looks += 1
        if kept.looks >= LOOKS and self._clock() - kept.unclear_since >= LOOKED_FOR_S * self.patience:
            # It never arrived.
            kept.unclear_since = None
            kept.looks = 0
            if kept.is_releasing:
                self._over(kept, "cancelled", "before it was in the queue")
        return True

    def _over(self, kept: _Kept, end: str, why: str) -> None:
        if self.profile.batch_system == "procedures" and end == "failed" and kept.told != "active":
            # start_allocation would fail again.
            said = why.removeprefix("start_allocation: ")
            self._refused(kept, Rejected(why), ProcedureError("start_allocation", said))
            return
        if kept.hopeless:
            self._refused(kept, Rejected(f"allocation {kept.id} could never begin: {kept.hopeless}"), None)
            return
        del self._kept[kept.name]
        self._tell(
            "allocation", host=self.profile.name, id=kept.id, state="ended", end=end, why=why,
            released=kept.is_releasing, nodes=kept.request.nodes,
        )  # fmt: skip
        self._post(ev.AllocationEnded(kept.name, end, why))

    async def _give_up_hopeless(self) -> None:
        """Take out of the queue what can never begin. The core is told when it is gone, and then asks for no other."""
        for kept in list(self._kept.values()):
            if kept.hopeless and not kept.is_releasing:
                kept.is_releasing = True
                await self._learn_limits(kept.request)
                kept.hopeless += self._quota.exceeded_by(kept.request)

    async def _learn_limits(self, request: Request) -> None:
        if self._quota.limits is None:
            answer = await self._run_patiently(self.system.limits(request.options))
            self._quota.limits = self.system.parse_limits(answer)

    async def _has_room(self, request: Request) -> bool:
        """Whether another one may be in the queue; people are told, once, when none may."""
        queued = sum(1 for each in self._kept.values() if each.id or each.unclear_since is not None)
        if not queued:
            return True
        await self._learn_limits(request)
        if self._quota.has_room_beside(queued):
            return True
        if why := self._quota.news():
            self._tell("frontend", why=f"{self.profile.name}: {why}")
        return False

    async def _end_twins(self, answer: dict[str, Sight]) -> None:
        """End what is ours by its token and nobody knows: it was submitted twice, or is over for the core."""
        known = {kept.id for kept in self._kept.values()}
        waited_for = {kept.token for kept in self._kept.values() if not kept.id}
        strays = [
            sight.id
            for sight in answer.values()
            if sight.token.startswith(self._prefix)
            and sight.state in ("queued", "held", "active")
            and sight.id not in known
            and sight.token not in waited_for
            and is_id(sight.id)
        ]
        if strays:
            await self._run_patiently(self.system.cancel(strays))

    # ------------------------------------------------------------------ running commands

    async def _run_patiently(self, command: Command) -> Output:
        """Raises _Silent when the frontend cannot be reached now."""
        try:
            return await self._run(command)
        except OrchestraError as error:
            raise _Silent(str(error)) from error

    async def _run(self, command: Command) -> Output:
        """Run a command in its time, and give the next more when that was too little. Raises OrchestraError as `run`."""
        given_s = PATIENCE_S * self.patience
        began = self._clock()
        output = await self.run(replace(command, timeout_s=command.timeout_s * self.patience))
        if self._clock() - began >= given_s:
            self.patience = min(self.patience * MORE_PATIENCE, PATIENCE_MOST)
        return output

    async def run(self, command: Command) -> Output:
        """Run a command on the frontend. Raises OrchestraError when it cannot be reached."""
        return await run_on_frontend(self.profile, self._pool, command)


class _Silent(Exception):
    """The frontend or its batch system gave no answer."""
