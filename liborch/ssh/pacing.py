"""When to try and how many at a time: back-off, a circuit breaker, a gate that narrows when a server is crowded.

No IO. Time comes in as `now`, chance as `rng`; only `Gate` waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from liborch.errors import AuthenticationRefused, WorldError
from liborch.ssh.limits import Limits


def full_jitter(rng: Random, base_s: float, cap_s: float, failures: int) -> float:
    """Seconds to wait after so many failures in a row (from 1): anything from 0 to min(cap, base * 2**failures)."""
    return rng.uniform(0.0, min(cap_s, base_s * 2.0 ** min(failures, 30)))


class Breaker:
    """Remembers a host's failures in a row and when it may be tried again."""

    def __init__(self, limits: Limits, rng: Random) -> None:
        self._limits = limits
        self._rng = rng
        self.failures = 0
        self.not_before = 0.0
        self._refused: AuthenticationRefused | None = None

    def failed(self, error: WorldError, now: float) -> None:
        """Count a failed attempt."""
        self.failures += 1
        limits = self._limits
        wait_s = full_jitter(self._rng, limits.backoff_base_s, limits.backoff_cap_s, self.failures)
        self._refused = error if isinstance(error, AuthenticationRefused) else None
        self.not_before = now + (limits.auth_retry_s if self._refused else wait_s)

    def succeeded(self) -> None:
        """Forget all failures."""
        self.failures, self.not_before, self._refused = 0, 0.0, None

    def refusal(self, now: float) -> AuthenticationRefused | None:
        """The refused login that forbids an attempt now; None when one may be made (after `wait_s`)."""
        return self._refused if now < self.not_before else None

    def wait_s(self, now: float) -> float:
        """Seconds until the next attempt."""
        return max(0.0, self.not_before - now)


class Gate:
    """At most `most` at a time, in order of arrival; fewer for a while after the server broke off one of them.

    It halves when told `crowded` and widens by about one for each round without: a server whose MaxStartups is lower
    than we assume is then served at its own pace.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._width = float(most)
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.inside = 0
        self.peak = 0
        self.total = 0

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Hold one place. Cancelling while waiting, or in the tick of the grant, gives it back."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._leave()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise
        try:
            yield
        finally:
            self._leave()

    def crowded(self) -> None:
        """The server broke off a handshake: be fewer."""
        self._width = max(1.0, self._width / 2)

    def eased(self) -> None:
        """A handshake went well: be a little more."""
        self._width = min(float(self._most), self._width + 1 / self._width)

    def _leave(self) -> None:
        self.inside -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiters and self.inside < int(self._width):
            waiter = self._waiters.popleft()
            if waiter.done():
                continue  # Cancelled, and about to learn it.
            self.inside += 1
            self.total += 1
            self.peak = max(self.peak, self.inside)
            waiter.set_result(None)
