"""Connections to one host: who waits for a channel, who gets one, when a further connection is made, when the next try is due.

Knows the host's endpoint once resolved, its circuit breaker, and how many channels its server really carries. Limits,
chance, gates and the other hosts (jumps) are the pool's, see `pool`; how one connection comes about is in `handshake`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from liborch.errors import HostUnreachable, InvariantError, OrchestraError, SpecError, WorldError
from liborch.ssh.handshake import Crowded, open_connection
from liborch.ssh.limits import Counters
from liborch.ssh.pacing import Breaker, full_jitter
from liborch.ssh.resolve import Endpoint, resolve_host

if TYPE_CHECKING:
    import asyncssh

    from liborch.ssh.pool import Pool

#: Longest chain of jump hosts; a longer one is a loop in the configuration.
_MOST_JUMPS = 8
#: Channels granted without a refusal after which a connection is thought to carry one more.
_TRY_WIDER_AFTER = 50


class Connection:
    """One authenticated connection. Held open by the pool until it dies or the pool is closed."""

    def __init__(
        self, endpoint: Endpoint, raw: asyncssh.SSHClientConnection, lost: asyncio.Future[str]
    ) -> None:
        self.endpoint = endpoint
        #: asyncssh's own; for this package.
        self.raw = raw
        self._lost = lost
        #: Channels given out over it.
        self.busy = 0
        #: Those of them meant to stay, and wanted still.
        self.lasting = 0
        #: Those that we closed while their command still ran: the server keeps their room until it ends.
        self.abandoned = 0

    def __repr__(self) -> str:
        return f"<Connection {self.endpoint.name}: {self.busy} channels{'' if self.is_open else ', lost: ' + self.why}>"

    @property
    def is_open(self) -> bool:
        """Whether the link was alive when last heard of."""
        return not self._lost.done()

    @property
    def why(self) -> str:
        """Why it ended; "" while open or when we closed it."""
        return self._lost.result() if self._lost.done() else ""

    async def wait_closed(self) -> str:
        """Wait until the connection has ended; why. Cancelling changes nothing."""
        return await asyncio.shield(self._lost)


@dataclass
class _Request:
    """Somebody waiting for a channel (or, with `channel` off, for a connection)."""

    future: asyncio.Future[Connection]
    channel: bool
    lasting: bool
    since: float


class HostConnections:
    """All of the pool's state for one host."""

    def __init__(self, pool: Pool, name: str, via: tuple[str, ...]) -> None:
        self.pool = pool
        self.name = name
        #: Jump hosts to go through; None in `endpoint` until resolved.
        self.via = via
        self.endpoint: Endpoint | None = None
        self.connections: list[Connection] = []
        self.connecting = 0
        self.requests: deque[_Request] = deque()
        self.breaker = Breaker(pool.limits, pool.rng)
        #: Channels a connection of this host carries, as far as we know.
        self.capacity = pool.limits.channels
        self.counters = Counters()
        #: Channels granted since the server last refused one, and when one last came back.
        self._granted = 0
        self._returned_at = 0.0
        self._growth: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        busy = sum(connection.busy for connection in self.connections)
        return f"<Host {self.name}: {len(self.connections)} open ({busy} channels), {len(self.requests)} waiting>"

    def count(self, **changes: int | str) -> None:
        """Add to counters; text replaces."""
        old = self.counters
        new = {
            name: value if isinstance(value, str) else getattr(old, name) + value
            for name, value in changes.items()
        }
        self.counters = replace(old, **new)  # type: ignore[arg-type]

    async def acquire(self, *, channel: bool, lasting: bool = False, first: bool = False) -> Connection:
        """Wait for a connection with room for a channel. Cancelled, also in the tick of the grant: gives it back."""
        loop = asyncio.get_running_loop()
        request = _Request(loop.create_future(), channel, lasting, loop.time())
        (self.requests.appendleft if first else self.requests.append)(request)
        self.pump()
        if channel and not request.future.done():
            self.count(waited=1)
        try:
            return await request.future
        except asyncio.CancelledError:
            if request in self.requests:
                self.requests.remove(request)
            elif (
                channel
                and request.future.done()
                and not request.future.cancelled()
                and not request.future.exception()
            ):
                self.release(request.future.result(), lasting)
            self.pump()
            raise

    def release(self, connection: Connection, lasting: bool, given_up: bool = False) -> None:
        """Take a channel back."""
        connection.busy -= 1
        if given_up:
            connection.abandoned -= 1
        else:
            connection.lasting -= lasting
        self._returned_at = asyncio.get_running_loop().time()
        self.count(channels=-1)
        self.pump()
        if not connection.busy:
            self._close_idle_later()

    def abandon(self, connection: Connection, lasting: bool) -> None:
        """We closed a channel whose command still ran: it comes back when the server has ended that, mostly at once."""
        connection.lasting -= lasting
        connection.abandoned += 1
        self._returned_at = asyncio.get_running_loop().time()
        self.pump()

    def refused(self, connection: Connection) -> None:
        """The server refused a channel on this connection: it carries no more than it does now."""
        self.count(channels_refused=1)
        self.capacity = max(1, min(self.capacity, connection.busy - 1))
        self._granted = 0

    def pump(self) -> None:
        """Grant what can be granted; see to it that the rest will be."""
        if self.pool.closed:
            return
        while self.requests:
            request = self.requests[0]
            if request.future.done():
                self.requests.popleft()
                continue
            connection = self._with_room(request)
            if connection is None:
                break
            self.requests.popleft()
            if request.channel:
                connection.busy += 1
                connection.lasting += request.lasting
                self._count_channel(connection)
            request.future.set_result(connection)
        if self.requests:
            self._grow()

    def fail(self, error: OrchestraError) -> None:
        """Answer everybody who waits with the error."""
        while self.requests:
            request = self.requests.popleft()
            if not request.future.done():
                request.future.set_exception(_twin(error))

    def _with_room(self, request: _Request) -> Connection | None:
        alive = [connection for connection in self.connections if connection.is_open]
        if not request.channel:
            return alive[0] if alive else None
        return next((connection for connection in alive if connection.busy < self.capacity), None)

    def _count_channel(self, connection: Connection) -> None:
        self.count(channels=1, channels_total=1)
        self._granted += 1
        if self._granted % _TRY_WIDER_AFTER == 0:
            # A stock server refuses one now and then since it frees late; that is no reason to stay narrow.
            self.capacity = min(self.pool.limits.channels, self.capacity + 1)
        now = self.counters
        self.counters = replace(
            now,
            channels_peak=max(now.channels_peak, now.channels),
            channels_peak_on_one=max(now.channels_peak_on_one, connection.busy),
        )

    def _grow(self) -> None:
        alive = [connection for connection in self.connections if connection.is_open]
        if self.connecting:
            return
        if not alive:
            self._start_connecting()
            return
        # Channels that stay will not come back: do not wait for them. As long as others do, one connection is enough.
        stuck = all(each.lasting >= self.capacity for each in alive)
        loop = asyncio.get_running_loop()
        idle_since = max(self.requests[0].since, self._returned_at)
        due = 0.0 if stuck else idle_since + self.pool.limits.grow_after_s
        if due > loop.time():
            if self._growth is None:
                self._growth = loop.call_at(due, self._grow_now)
        elif len(alive) < self.pool.limits.connections:
            self._start_connecting()
        else:
            useless = [each for each in alive if each.busy == each.abandoned >= self.capacity]
            if useless:
                # Nobody listens to any of its commands any more: only its end frees the room on the server.
                useless[0].raw.close()

    def _start_connecting(self) -> None:
        # Counted here, not in the task: it starts a turn later, and until then others would start one as well.
        self.connecting += 1
        self.pool.spawn(self._connect())

    def _grow_now(self) -> None:
        self._growth = None
        self.pump()

    def _close_idle_later(self) -> None:
        if self._idle is None and len(self.connections) > 1 and not self.pool.closed:
            self._idle = asyncio.get_running_loop().call_later(self.pool.limits.idle_s, self._close_idle)

    def _close_idle(self) -> None:
        self._idle = None
        for connection in self.connections[1:]:
            if not connection.busy and connection.is_open and not self.requests:
                connection.raw.close()

    async def _connect(self) -> None:
        """Make one connection, then grant; on failure answer those who wait, unless another connection serves them."""
        loop = asyncio.get_running_loop()
        try:
            refusal = self.breaker.refusal(loop.time())
            if refusal is not None:
                raise refusal
            if self.breaker.wait_s(loop.time()):
                self.pool.note(f"{self.name}: next attempt in {self.breaker.wait_s(loop.time()):.1f} s")
                await asyncio.sleep(self.breaker.wait_s(loop.time()))
            connection = await self._handshake()
        except OrchestraError as error:
            self.connecting -= 1
            self.count(failures=1, last_error=str(error))
            self.pool.note(str(error))
            if isinstance(error, WorldError) and self.breaker.refusal(loop.time()) is None:
                self.breaker.failed(error, loop.time())
            if not any(each.is_open for each in self.connections):
                self.fail(error)
            return
        except BaseException as error:
            self.connecting -= 1
            # Not the world's doing: nobody may wait for ever because of it.
            self.fail(InvariantError(f"{self.name}: connecting failed with {error!r}"))
            raise
        self.connecting -= 1
        self.breaker.succeeded()
        self.connections.append(connection)
        self.pool.watch()
        self.count(connections=1, connections_total=1)
        connection._lost.add_done_callback(lambda _: self._lose(connection))
        self.pool.note(
            f"{self.name}: connected to {connection.endpoint.address} as {connection.endpoint.user}"
        )
        self.pump()

    def _lose(self, connection: Connection) -> None:
        self.connections.remove(connection)
        self.count(connections=-1)
        if connection.why and not self.pool.closed:
            self.count(failures=1, last_error=connection.why)
            self.pool.note(f"{self.name}: connection lost: {connection.why}")
        self.pump()

    async def _handshake(self) -> Connection:
        pool, limits = self.pool, self.pool.limits
        if self.endpoint is None:
            self.endpoint = await self._resolve()
        endpoint = self.endpoint
        jump = pool.host(endpoint.jumps[-1], endpoint.jumps[:-1]) if endpoint.jumps else None
        gate = pool.gate(endpoint, jump)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + 2 * (endpoint.connect_timeout_s or limits.connect_timeout_s)
        for attempt in range(1, limits.handshake_tries + 1):
            try:
                tunnel = None if jump is None else await jump.acquire(channel=False)
                async with gate.enter():
                    self.count(handshakes=1, handshakes_in_flight=1)
                    try:
                        opened = await open_connection(
                            endpoint, limits, tunnel=None if tunnel is None else tunnel.raw,
                            accept_new=pool.accept_new, debug=pool.note,
                        )  # fmt: skip
                    finally:
                        self.count(handshakes_in_flight=-1)
                    gate.eased()
                    return Connection(endpoint, opened.connection, opened.lost)
            except Crowded as error:
                gate.crowded()
                wait_s = full_jitter(pool.rng, limits.backoff_base_s / 2, 4.0, attempt)
                if attempt == limits.handshake_tries or loop.time() + wait_s > give_up_at:
                    why = f"{error}, {attempt} times in a row"
                    raise HostUnreachable(self.name, endpoint.address, why) from error
                pool.note(f"{self.name}: {error}; again in {wait_s:.1f} s")
                await asyncio.sleep(wait_s)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _resolve(self) -> Endpoint:
        endpoint = await resolve_host(self.name, self.pool.config_file)
        if self.via:
            # As `ssh -J a,b`: what b's own configuration says about jumping is overruled by a.
            endpoint = replace(endpoint, jumps=self.via, proxy_command=None)
        elif endpoint.jumps and endpoint.jumps[0] in (self.name, endpoint.host):
            # As ssh does when a `Host *` sends the jump host through itself.
            endpoint = replace(endpoint, jumps=())
        elif self.name in self.pool.proxies:
            endpoint = replace(endpoint, jumps=(), proxy_command=self.pool.proxies[self.name])
        elif not endpoint.jumps and endpoint.proxy_command is None and self.name in self.pool.behind:
            endpoint = replace(endpoint, jumps=(self.pool.behind[self.name],))
        if len(endpoint.jumps) > _MOST_JUMPS:
            raise SpecError(
                f"{self.name}: more than {_MOST_JUMPS} jump hosts in a row; look for a loop in ProxyJump"
            )
        return endpoint


def _twin(error: OrchestraError) -> OrchestraError:
    """The same error once more: an exception that several tasks raise would collect all their tracebacks."""
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error.__cause__
    return twin
