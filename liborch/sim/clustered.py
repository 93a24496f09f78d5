"""The part of a simulated world that has a batch system: machines that come and go, and everything that goes wrong with that.

Base of `World` (`world.py`), whose clock, chance and client it uses. What is in the queue is told by `cluster.py`, what the client
asks by `frontend.py`; here is what happens to both, and the part of the ledger that is about allocations.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.sim.client import Client
from liborch.sim.cluster import Entry, SimCluster
from liborch.sim.frontend import SimFrontend
from liborch.sim.node import SimNode
from liborch.sim.weather import Weather

GIB = 1 << 30
#: What the core calls the cluster.
BIG = "big"


class Clustered:
    """See the module's text."""

    now: float
    rng: random.Random
    weather: Weather
    client: Client

    def __init__(self) -> None:
        #: The machines of a cluster, what grants them, who asks for them, and what these may ask for.
        self.machines: dict[str, SimNode] = {}
        self.cluster: SimCluster | None = None
        self.frontend: SimFrontend | None = None
        self.most = 0
        #: Machines can be reached though nothing is granted on them, and what runs there goes on.
        self.is_lax = False
        #: Names of allocations asked for, ids of those the core knows to be over.
        self.asked: set[str] = set()
        self.known_over: set[str] = set()
        #: What waits where nobody is, or was taken for lost with its allocation: (execution, attempt). It may start still.
        self.left_behind: set[tuple[str, int]] = set()
        self._silent_until = 0.0

    # ------------------------------------------------------------------ what the world does

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """Call something after so many seconds."""
        raise NotImplementedError

    def chance(self, name: str) -> bool:
        """Whether a misfortune of that name strikes."""
        raise NotImplementedError

    def latency_s(self, node: str) -> float:
        """One way, just now."""
        raise NotImplementedError

    def _node(self, name: str, cpus: int, memory_bytes: int, gpus: int) -> SimNode:
        raise NotImplementedError

    # ------------------------------------------------------------------ the machines

    def _build_cluster(self, count: int) -> None:
        rng = self.rng
        cpus, memory_bytes, gpus = rng.choice((2, 4, 8)), rng.choice((8, 64)) * GIB, rng.choice((0, 2))
        for number in range(count):
            self.machines[f"c{number}"] = self._node(f"c{number}", cpus, memory_bytes, gpus)
        mean_s = rng.choice((0.5, 5.0, 40.0))
        self.is_lax = rng.random() < 0.3
        self.cluster = SimCluster(
            list(self.machines),
            cpus,
            memory_bytes,
            gpus,
            clock=lambda: self.now,
            later=self.later,
            wait_s=lambda: rng.expovariate(1 / mean_s),
            known_s=lambda: rng.choice((0.0, 10.0, 300.0)),
            on_end=self._on_over,
        )
        self.frontend = SimFrontend(self, self.cluster, BIG, self._from_frontend)
        self.client.on_crash = self._on_crash
        self.most = rng.choice((1, 2, 3))
        told = rng.random() < 0.5
        self.client.post(
            ev.ClusterAdded(
                BIG,
                nodes=rng.choice((1, 2, 3)),
                most=self.most,
                walltime_s=rng.choice((45.0, 90.0, 300.0)),
                cpus=cpus if told else 0,
                memory_bytes=memory_bytes if told else 0,
                gpus=gpus if told else 0,
            )
        )

    def _brewed_for_clusters(self) -> list[tuple[Callable[[], None], int]]:
        if self.cluster is None:
            return []
        weather = self.weather
        return [
            (self._preempt, weather.preemptions),
            (self._fail_machine, weather.failures),
            (self._fall_silent, weather.silences),
            (self._refuse, weather.refusals),
        ]

    # ------------------------------------------------------------------ what the client asks

    def allocate(self, action: act.Allocate) -> None:
        """Have the batch system asked for nodes."""
        assert self.frontend is not None
        self.asked.add(action.a)
        self.frontend.allocate(action)

    def release(self, action: act.Release) -> None:
        """Have an allocation given back."""
        assert self.frontend is not None
        assert action.a in self.asked, f"{action}, which was never asked for"
        self.frontend.release(action.a)

    def _on_crash(self) -> None:
        if self.frontend is not None:
            self.frontend.die()

    def on_rise(self) -> None:
        """The next client goes on with the allocations of the one before."""
        if self.cluster is not None:
            self.frontend = SimFrontend(self, self.cluster, BIG, self._from_frontend)
            for allocation in self.client.machine.allocations.values():
                if allocation.id:
                    self.frontend.adopt(allocation)

    def command_takes_s(self) -> tuple[float | None, float | None]:
        """How long a command of the batch system is on its way there, and its answer back."""
        there_s, back_s = self.latency_s("frontend"), self.latency_s("frontend")
        if self.now < self._silent_until or self.chance("unanswered"):
            return (there_s, None) if self.rng.random() < 0.5 else (None, None)
        return there_s, (back_s + 20.0 if self.chance("answered_late") else back_s)

    def _from_frontend(self, event: ev.AnyEvent) -> None:
        if isinstance(event, ev.AllocationEnded):
            allocation = self.client.machine.allocations.get(event.a)
            if allocation is not None:
                self.known_over.add(allocation.id)
        elif isinstance(event, ev.AllocationQueued) and self.chance("never_begins"):
            assert self.cluster is not None
            self.cluster.end(event.id, "cancelled", "by root")
        self.client.post(event)
        if self.cluster is not None:
            live = {entry.token for entry in self.cluster.entries.values() if entry.is_live}
            assert len(live) <= self.most, f"{sorted(live)} are in the queue, {self.most} are allowed"

    def _on_over(self, entry: Entry) -> None:
        """Its machines are not ours any more: what runs there is killed, unless they are lax."""
        for name in entry.machines:
            node = self.machines[name]
            if not self.is_lax:
                self.left_behind.update(node.open)
                node.kill_keeper("the batch system ended it", rises=False)
                for known in list(self.client.reaches):
                    if known.partition("/")[0] == name:
                        self.client.tear(known)

    # ------------------------------------------------------------------ misfortune

    def _some_active(self) -> Entry | None:
        assert self.cluster is not None
        active = [entry for entry in self.cluster.entries.values() if entry.state == "active"]
        return self.rng.choice(active) if active else None

    def _preempt(self) -> None:
        entry = self._some_active()
        if entry is not None and self.cluster is not None:
            self.cluster.preempt(entry.id, requeue=self.rng.random() < 0.5)

    def _fail_machine(self) -> None:
        entry = self._some_active()
        if entry is not None and self.cluster is not None:
            machine = self.rng.choice(entry.machines)
            self.cluster.fail(machine, requeue=self.rng.random() < 0.5)
            self.later(60.0, lambda: self.cluster.mend(machine) if self.cluster is not None else None)

    def _fall_silent(self) -> None:
        self._silent_until = self.now + self.rng.choice((5.0, 60.0, 600.0))

    def _refuse(self) -> None:
        """Mostly for a while; a person who is asked for something that never can be does not mend it."""
        assert self.cluster is not None
        cluster, is_retriable = self.cluster, self.rng.random() < 0.9
        cluster.refusal = ("QOSMaxSubmitJobPerUserLimit" if is_retriable else "invalid account", is_retriable)

        def take_again() -> None:
            cluster.refusal = None

        self.later(self.rng.uniform(30.0, 120.0), take_again)
