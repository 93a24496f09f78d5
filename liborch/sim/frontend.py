"""The driver's own `Frontend` in a simulated world: its questions travel through the world's time, and are answered late or not at all.

What is asked when, and what answers mean, is the real code (`liborch.drive.allocating`); commands go to a `SimCluster`. No
event loop: the coroutine is moved on by the world's clock, and dropped where it stands when its client is killed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Generator
from types import SimpleNamespace
from typing import Any, Protocol, cast

from liborch.batch_systems.base import Command, Output
from liborch.core import events as ev
from liborch.drive.allocating import Frontend
from liborch.sim.cluster import SimCluster, SimDialect
from liborch.specs import HostProfile
from liborch.ssh import Pool


class Air(Protocol):
    """What a frontend needs of its world."""

    now: float
    rng: random.Random

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """Call something after so many seconds."""

    def command_takes_s(self) -> tuple[float | None, float | None]:
        """How long a command is on its way, and its answer on the way back, in seconds; None: it never arrives."""


class SimFrontend(Frontend):
    """See the module's text.

    Args:
        world: Time and chance.
        cluster: What the commands go to.
        name: The cluster's, for the core.
        post: Takes events for the core.
    """

    def __init__(
        self, world: Air, cluster: SimCluster, name: str, post: Callable[[ev.AnyEvent], None]
    ) -> None:
        self.world = world
        self.cluster = cluster
        self.is_dead = False
        pool = cast(Pool, SimpleNamespace(rng=world.rng))
        super().__init__(
            HostProfile(name=name, ssh="big"),
            SimDialect(),
            pool,
            "simulated",
            lambda event: None if self.is_dead else post(event),
            lambda _what, **_fields: None,
            lambda: world.now,
        )
        #: What it does next, by number; an earlier one is outdated.
        self._turn = 0
        self._is_resting = False
        self._work: Coroutine[Any, Any, None] = self.serve()
        self._go_on(None)

    def die(self) -> None:
        """Its client is killed: nothing more is said or heard. A command on its way may still arrive."""
        self.is_dead = True

    def _hurry(self) -> None:
        super()._hurry()
        if self._is_resting:
            self._soon(0.0, None)

    async def _rest(self, seconds: float | None) -> bool:
        self._is_resting = True
        if not self._wake.is_set():
            await _Wish(seconds)
        self._is_resting = False
        return self._wake.is_set()

    async def _sleep(self, seconds: float) -> None:
        await _Wish(seconds)

    async def run(self, command: Command) -> Output:
        answer: Output = await _Wish(command)
        return answer

    # ------------------------------------------------------------------ in place of an event loop

    def _go_on(self, value: Output | None) -> None:
        wish = self._work.send(value)
        if self.is_dead:
            return
        if isinstance(wish, Command):
            self._carry(wish)
        elif wish is not None:
            self._soon(wish, None)

    def _soon(self, delay_s: float, value: Output | None) -> None:
        self._turn += 1
        turn = self._turn

        def now() -> None:
            if turn == self._turn and not self.is_dead:
                self._go_on(value)

        self.world.later(delay_s, now)

    def _carry(self, command: Command) -> None:
        there_s, back_s = self.world.command_takes_s()

        def arrive() -> None:
            output = self.cluster.run(command)
            if back_s is not None:
                self._soon(back_s, output)

        if there_s is not None:
            self.world.later(there_s, arrive)
        if there_s is None or back_s is None:
            self._soon(command.timeout_s, Output(None))


class _Wish:
    """Something that the one who moves the coroutine on is asked for."""

    def __init__(self, what: Command | float | None) -> None:
        self.what = what

    def __await__(self) -> Generator[Command | float | None, Any, Any]:
        return (yield self.what)
