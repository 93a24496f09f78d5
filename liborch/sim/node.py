"""A node's agent in memory: the keeper's rules without processes, files or sockets.

The real one is `liborch.agent.keeper`; room and queues are its own code. What is kept of it: orders wait first come, first
served within an owner; a claim comes before a start; ends are told until they are acknowledged; what ran when the keeper
was killed is lost and what waited goes on; a cancel of something never heard of is an end, and whatever still
comes for it never starts. While its disk is full ends are told and nothing starts; of a keeper that is killed then, the
next one knows what was on record before.

Time and the carrying of messages are the owner's: see `world.py` (a heap) and `agents.py` (an event loop).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from liborch.agent import slots as _untyped
from liborch.errors import InvariantError

_slots: Any = _untyped

#: An execution still running after this is announced as started; shorter ones say it with their end.
ANNOUNCE_S = 0.1

#: Numbers of events that a killed keeper may have used, and nobody after it uses again.
UNRECORDED = 1 << 32

Key = tuple[str, int]
#: [number, owner, kind, id, attempt, detail]
NodeEvent = list[Any]
Later = Callable[[float, Callable[[], None]], None]


class Plan(NamedTuple):
    """What an execution will do."""

    duration_s: float
    reason: str = "exit"
    code: int | None = 0
    #: How long it takes to end once asked to, in seconds.
    grace_s: float = 0.0
    #: Leaves output on the node that is fetched afterwards.
    left: bool = False
    #: What an end tells besides.
    detail: Mapping[str, Any] = MappingProxyType({})


class Run:
    """One running execution."""

    def __init__(self, order: dict[str, Any], plan: Plan, until: float) -> None:
        self.order = order
        self.plan = plan
        #: Seconds left when paused, None while it runs.
        self.left_s: float | None = None
        self.until = until
        #: Timers of an earlier turn are outdated.
        self.turn = 0
        self.announced = False
        self.ending = False
        self.slot: int | None = None
        self.gpus: list[str] = []


class SimNode:
    """One node.

    Args:
        name: Its name.
        cpus, memory_bytes, gpus: Its room.
        clock: Tells the time, in seconds.
        later: Calls something after so many seconds.
        plan: What an execution will do: (id, attempt, order) -> Plan.
        on_events: Called when there is something new to tell.
        on_start: Called with (id, attempt) when an execution starts: the ledger of a world.
    """

    def __init__(
        self,
        name: str,
        cpus: int,
        memory_bytes: int = 0,
        gpus: int = 0,
        *,
        clock: Callable[[], float],
        later: Later,
        plan: Callable[[str, int, dict[str, Any]], Plan],
        on_events: Callable[[], None] = lambda: None,
        on_start: Callable[[str, int], None] = lambda _x, _attempt: None,
    ) -> None:
        self.name = name
        self.room = _slots.Room(cpus, memory_bytes, [f"GPU-{number}" for number in range(gpus)])
        self._clock = clock
        self._later = later
        self._plan = plan
        self._on_events = on_events
        self._on_start = on_start
        self._generation = 0
        #: No keeper runs.
        self._is_down = False
        #: Attempts of which an end may have been told that the next keeper knew nothing of.
        self.forgotten: set[Key] = set()
        self._begin()

    def _begin(self) -> None:
        self._generation += 1
        self.state_id = f"{self.name}-{self._generation}"
        self.number = 0
        #: What was not acknowledged yet, by owner.
        self.events: dict[str, list[NodeEvent]] = {}
        self.queues = _slots.Queues()
        #: Orders not ended, in order of arrival.
        self.open: dict[Key, dict[str, Any]] = {}
        self.runs: dict[Key, Run] = {}
        #: {slot request: (order, slot number, GPUs)}
        self.holds: dict[str, tuple[dict[str, Any], int, list[str]]] = {}
        self.claimed: set[Key] = set()
        self._leaving: set[str] = set()
        #: What is on record while the disk takes nothing more: (last event, orders, keys claimed and not ended); None: all is.
        self._record: tuple[int, dict[Key, dict[str, Any]], set[Key]] | None = None
        #: Recalls and cancels that wait for the disk.
        self._put_off: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<SimNode {self.name}: {len(self.runs)} run, {len(self.queues)} wait, {len(self.holds)} held>"

    # ------------------------------------------------------------------ what a client says

    def wake(self) -> None:
        """Start a keeper, where there is none: what waits goes on."""
        if self._is_down:
            self._is_down = False
            self._fill()

    def attach(self, owner: str, ack: int) -> tuple[list[NodeEvent], list[tuple[str, int, str]]]:
        """Return what the owner has not acknowledged, and what is held for it."""
        self.wake()
        self.ack(owner, ack)
        holding: list[tuple[str, int, str]] = []
        for key in self.queues.keys_of(owner):
            order = self.queues.get(key)
            holding.append((*key, "hold" if order.get("hold") else "queued"))
        for key, run in self.runs.items():
            if run.order["o"] == owner:
                holding.append((*key, "paused" if run.left_s is not None else "running"))
        holding += [(x, 1, "held") for x, (order, _slot, _gpus) in self.holds.items() if order["o"] == owner]
        return list(self.events.get(owner, ())), holding

    def ack(self, owner: str, number: int) -> None:
        """Forget what the owner has on record."""
        events = self.events.get(owner, [])
        while events and events[0][0] <= number:
            event = events.pop(0)
            if event[2] == "ended":
                self.claimed.discard((event[3], event[4]))

    def order(self, owner: str, orders: list[tuple[str, int, dict[str, Any]]]) -> None:
        """Take orders in; known ones are dropped."""
        for x, attempt, own in orders:
            key = (x, attempt)
            if key in self.claimed or key in self.open:
                continue
            order = {**own, "x": x, "a": attempt, "o": owner}
            self.open[key] = order
            lease = order.get("lease")
            if lease and lease not in self.holds:
                self._refuse(key, f"the slot {lease} is not held any more")
            elif lease:
                self._start(key, order)
            elif not self.room.could_ever(*_needs(order)):
                self._refuse(key, f"asks for more than {self.name} has")
            else:
                self.queues.add(owner, key, order)
        self._fill()

    def recall(self, ids: list[Key]) -> None:
        """Give orders back that have not started."""
        for key in ids:
            if self._must_wait(key):
                self._put_off.append(partial(self.recall, [key]))
                continue
            order = self.queues.remove(key)
            if order is not None:
                del self.open[key]
                self._say(order["o"], "recalled", key, {})
        self._fill()

    def cancel(self, owner: str, ids: list[Key]) -> None:
        """End executions, queued, running, or still to come; a slot is given back."""
        for key in ids:
            if self._must_wait(key):
                self._put_off.append(partial(self.cancel, owner, [key]))
                continue
            order = self.queues.remove(key)
            run = self.runs.get(key)
            if order is not None:
                del self.open[key]
                self.claimed.add(key)
                self._end_event(owner, key, "cancelled", None, {"why": "before it started"})
            elif key[0] in self.holds:
                self.unhold(owner, key[0])
            elif run is None and key not in self.claimed:
                self.claimed.add(key)
                self._end_event(owner, key, "cancelled", None, {"why": "before it came"})
            elif run is not None:
                self._stop(key, run)
        self._fill()

    def unhold(self, owner: str, lease: str) -> None:
        """Give the room of a slot back; what runs in it is ended first."""
        if lease not in self.holds:
            for key in self.queues.keys_of(owner):
                if key[0] == lease:
                    self.queues.remove(key)
                    del self.open[key]
            self._say(owner, "unheld", (lease, 1), {})
            return
        self._leaving.add(lease)
        for key, run in list(self.runs.items()):
            if run.order.get("lease") == lease:
                self._stop(key, run)
        self._release_when_empty(lease)

    def pause(self, ids: list[Key]) -> None:
        """Stop what runs."""
        for key in ids:
            run = self.runs.get(key)
            if run is not None and run.left_s is None and not run.ending:
                run.left_s = max(0.0, run.until - self._clock())
                run.turn += 1
                self._say(run.order["o"], "paused", key, {})

    def resume(self, ids: list[Key]) -> None:
        """Let it go on."""
        for key in ids:
            run = self.runs.get(key)
            if run is not None and run.left_s is not None:
                self._go(key, run, run.left_s)
                self._say(run.order["o"], "resumed", key, {})

    # ------------------------------------------------------------------ what happens to it

    def fill_disk(self) -> None:
        """Nothing can be put on record any more."""
        if self._record is None:
            self._record = (self.number, dict(self.open), set(self.runs))

    def free_disk(self) -> None:
        """There is room again: all of it is on record."""
        self._record = None
        put_off, self._put_off = self._put_off, []
        for again in put_off:
            again()
        self._fill()

    def _must_wait(self, key: Key) -> bool:
        return (
            self._record is not None and key in self._record[1] and key in self.open and key not in self.runs
        )

    def kill_keeper(
        self, why: str = "keeper: its keeper process was killed while it ran", *, rises: bool = True
    ) -> None:
        """What runs is lost, what waits goes on; slots are asked for again. A full disk is mended by who looks after it.

        `rises` false: there is nobody to start another keeper until somebody attaches.
        """
        self._is_down = not rises
        lost = {key: run.order for key, run in self.runs.items()}
        self._clear_room()
        if self._record is not None:
            number, self.open, claimed = self._record
            lost = {key: order for key, order in self.open.items() if key in claimed}
            for owner, events in self.events.items():
                self.events[owner] = [event for event in events if event[0] <= number]
            self.number = number + UNRECORDED
            self._record, self._put_off = None, []
            self.forgotten.update(lost)
        for key, order in lost.items():
            self._end_event(order["o"], key, "lost", None, {"why": why})
            self.open.pop(key, None)
        self.queues = _slots.Queues()
        for key, order in self.open.items():
            self.queues.add(order["o"], key, order)
        self._fill()

    def lose_state(self) -> None:
        """Its state folder is gone, and what ran with it: it begins anew, under another state id."""
        self._clear_room()
        self._begin()

    def _clear_room(self) -> None:
        for key in list(self.runs):
            self._take_out(key)
        for order, slot, gpus in self.holds.values():
            self.room.give_back(slot, *_needs(order), gpus)
        self.holds.clear()
        self._leaving.clear()

    # ------------------------------------------------------------------ inside

    def _fill(self) -> None:
        room = self.room
        while self.queues and self._record is None and not self._is_down:
            order = self.queues.pop_fitting(lambda waiting: room.fits(*_needs(waiting)))
            if order is None:
                return
            key = (order["x"], order["a"])
            if order.get("hold"):
                slot, gpus = room.take(*_needs(order))
                self.holds[order["x"]] = (order, slot, gpus)
                self._say(order["o"], "held", key, {"slot": slot})
            else:
                self._start(key, order)

    def _start(self, key: Key, order: dict[str, Any]) -> None:
        plan = self._plan(key[0], key[1], order)
        run = self.runs[key] = Run(order, plan, 0.0)
        if not order.get("lease"):
            run.slot, run.gpus = self.room.take(*_needs(order))
            if self.room.used_cpus > self.room.cpus or self.room.used_memory > self.room.memory_bytes:
                raise InvariantError(f"{self.name} runs more than it has room for")
        self.claimed.add(key)
        self._on_start(*key)
        wall_s = order.get("wall")
        if wall_s is not None and wall_s < plan.duration_s:
            run.plan = plan = plan._replace(duration_s=wall_s, reason="walltime", code=None)
        if plan.duration_s >= ANNOUNCE_S:
            self._later(ANNOUNCE_S, lambda: self._announce(key, run))
        self._go(key, run, plan.duration_s)

    def _go(self, key: Key, run: Run, left_s: float) -> None:
        run.left_s = None
        run.until = self._clock() + left_s
        run.turn += 1
        turn = run.turn

        def over() -> None:
            if self.runs.get(key) is run and run.turn == turn:
                self._ended(key, run, run.plan.reason, run.plan.code)

        self._later(left_s, over)

    def _announce(self, key: Key, run: Run) -> None:
        if self.runs.get(key) is run:
            run.announced = True
            self._say(run.order["o"], "started", key, {"slot": run.slot})

    def _stop(self, key: Key, run: Run) -> None:
        if not run.ending:
            run.ending = True
            run.plan = run.plan._replace(reason="cancelled", code=None)
            left_s = run.until - self._clock() if run.left_s is None else run.plan.grace_s
            self._go(key, run, max(0.0, min(left_s, run.plan.grace_s)))

    def _ended(self, key: Key, run: Run, reason: str, code: int | None) -> None:
        self._take_out(key)
        self.open.pop(key, None)
        detail = dict(run.plan.detail)
        if run.plan.left:
            detail["files"] = ["out", "err"]
        self._end_event(run.order["o"], key, reason, code, detail)
        lease = run.order.get("lease")
        if lease:
            self._release_when_empty(lease)
        self._fill()

    def _take_out(self, key: Key) -> None:
        run = self.runs.pop(key)
        if run.slot is not None:
            self.room.give_back(run.slot, *_needs(run.order), run.gpus)

    def _release_when_empty(self, lease: str) -> None:
        if lease not in self._leaving or any(run.order.get("lease") == lease for run in self.runs.values()):
            return
        self._leaving.discard(lease)
        order, slot, gpus = self.holds.pop(lease)
        self.room.give_back(slot, *_needs(order), gpus)
        self.open.pop((lease, 1), None)
        self._say(order["o"], "unheld", (lease, 1), {})
        self._fill()

    def _refuse(self, key: Key, why: str) -> None:
        order = self.open.pop(key)
        self._say(order["o"], "refused", key, {"why": why})

    def _end_event(self, owner: str, key: Key, reason: str, code: int | None, detail: dict[str, Any]) -> None:
        self._say(owner, "ended", key, {"code": code, "reason": reason, **detail})

    def _say(self, owner: str, kind: str, key: Key, detail: dict[str, Any]) -> None:
        self.number += 1
        self.events.setdefault(owner, []).append([self.number, owner, kind, *key, detail])
        self._on_events()


def _needs(order: dict[str, Any]) -> tuple[int, int, float]:
    return (order.get("cpus") or 1, order.get("mem") or 0, order.get("gpus") or 0)
