"""Connections held open, and channels handed out over them, within what a server allows.

Per host: a few connections, a queue of requests for a channel in order of arrival, a circuit breaker. A server's "open
failed" is waited out, never reported: the pool learns how many channels a connection really carries. Handshakes pass
a gate per address and one per jump host. When to connect to whom, and what to run, is decided elsewhere (the core).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from liborch.errors import HostUnreachable, InvariantError, OrchestraError, SpecError, WorldError
from liborch.ssh.channel import Channel
from liborch.ssh.handshake import Crowded, open_connection
from liborch.ssh.limits import Completed, Counters, Limits
from liborch.ssh.pacing import Breaker, Gate, full_jitter
from liborch.ssh.resolve import Endpoint, resolve_host

if TYPE_CHECKING:
    import asyncssh

_T = TypeVar("_T")

#: Longest chain of jump hosts; a longer one is a loop in the configuration.
_MOST_JUMPS = 8
#: Channels granted without a refusal after which a connection is thought to carry one more.
_TRY_WIDER_AFTER = 50
#: Seconds that `Pool.close` gives servers to say goodbye.
_GOODBYE_S = 2.0


class Connection:
    """One authenticated connection. Held open by the pool until it dies or the pool is closed."""

    def __init__(
        self, endpoint: Endpoint, raw: asyncssh.SSHClientConnection, lost: asyncio.Future[str]
    ) -> None:
        self.endpoint = endpoint
        self._raw = raw
        self._lost = lost
        #: Channels given out over it, and those of them meant to stay.
        self.busy = 0
        self.lasting = 0
        #: Channels we closed at a time when their command still ran: the server keeps their room until it ends.
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

    def give_up_on_one(self) -> None:
        """A channel was closed by us; the server may take its time."""
        self.abandoned += 1

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


class _Host:
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
        connection.lasting -= lasting
        connection.abandoned -= given_up
        self._returned_at = asyncio.get_running_loop().time()
        self.count(channels=-1)
        self.pump()
        if not connection.busy:
            self._close_idle_later()

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
        if len(alive) >= self.pool.limits.connections:
            useless = [each for each in alive if each.busy == each.abandoned >= self.capacity]
            if useless:
                # Nobody listens to any of its commands any more: only its end frees the room on the server.
                useless[0]._raw.close()
            return
        # Channels that stay will not come back: do not wait for them. As long as others do, one connection is enough.
        stuck = all(each.lasting + each.abandoned >= self.capacity for each in alive)
        loop = asyncio.get_running_loop()
        idle_since = max(self.requests[0].since, self._returned_at)
        due = 0.0 if stuck else idle_since + self.pool.limits.grow_after_s
        if due <= loop.time():
            self._start_connecting()
        elif self._growth is None:
            self._growth = loop.call_at(due, self._grow_now)

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
                connection._raw.close()

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
                            endpoint, limits, tunnel=None if tunnel is None else tunnel._raw,
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
        if len(endpoint.jumps) > _MOST_JUMPS:
            raise SpecError(
                f"{self.name}: more than {_MOST_JUMPS} jump hosts in a row; look for a loop in ProxyJump"
            )
        return endpoint


class Pool:
    """SSH to many hosts. Use with `async with`, or `close` it.

    Args:
        limits: What is asked of servers at most.
        rng: Chance, for back-off.
        config_file: In place of the person's ssh configuration.
        accept_new: Record keys of hosts never seen before instead of raising HostKeyUnknown.
        debug: Gets one line for each thing that happens.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        rng: Random | None = None,
        config_file: str | None = None,
        accept_new: bool = False,
        debug: Callable[[str], None] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.rng = rng or Random()
        self.config_file = config_file
        self.accept_new = accept_new
        self.closed = False
        self._debug = debug
        self._hosts: dict[tuple[str, tuple[str, ...]], _Host] = {}
        self._gates: dict[object, Gate] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<Pool {', '.join(repr(host) for host in self._hosts.values())}>"

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self, host: str) -> Connection:
        """Return the host's connection, made now if there is none. Cancelling leaves the attempt to others or the pool.

        Raises:
            HostUnreachable, HostKeyUnknown, HostKeyChanged, AuthenticationRefused: What the attempt ended with; after
                a failure the next one first waits for its back-off.
            SpecError: The name is no host's, or ssh's configuration cannot be read.
        """
        return await self.host(host).acquire(channel=False)

    async def run(
        self, host: str, command: str, *, input: bytes = b"", timeout_s: float | None = None
    ) -> Completed:
        """Run a command in the person's login shell on the host and return how it ended.

        When the link dies after the command was sent, or `timeout_s` passes, the outcome is UNKNOWN
        (`exit_status` None, `unknown` says why): it may have run, may still run. A link that dies before is replaced.
        Cancelling closes the channel; the command may go on on the host.

        Raises:
            As `connect`.
        """
        output = self.limits.run_output_bytes
        try:
            async with asyncio.timeout(timeout_s):
                channel = await self._open(host, command, lasting=False, stderr_limit=output)
        except TimeoutError:
            return Completed(
                None, None, b"", b"", f"no channel within {timeout_s:g} s; the command may not have started"
            )
        except _StartUnknown as error:
            return Completed(None, None, b"", b"", str(error))
        chunks: list[bytes] = []
        kept, truncated, unknown = 0, False, ""

        async def feed() -> None:
            try:
                if input:
                    await channel.write(input)
                channel.write_eof()
            except BrokenPipeError:
                pass  # It ended without reading all: its affair, as in a shell's pipe.

        feeder = self.spawn(feed())
        try:
            async with asyncio.timeout(timeout_s):
                while data := await channel.read():
                    room = output - kept
                    truncated = truncated or len(data) > room
                    chunks.append(data[:room])
                    kept += len(chunks[-1])
                await channel.wait_closed()
        except TimeoutError:
            unknown = f"no end within {timeout_s:g} s"
        finally:
            feeder.cancel()
            if channel.is_open:
                channel.ask_to_end()
                channel.close()
        if not unknown and channel.exit_status is None and channel.signal is None:
            unknown = "the connection was lost while the command ran"
        status = None if unknown else channel.exit_status
        truncated = truncated or channel.stderr_truncated
        return Completed(status, channel.signal, b"".join(chunks), channel.stderr_tail(), unknown, truncated)

    async def open_channel(self, host: str, command: str) -> Channel:
        """Start a command and return the channel to it, for as long as the caller likes: the agent's link.

        Cancelling closes what was opened. Raises as `connect`; HostUnreachable as well when the link dies in the moment
        the command is asked for.
        """
        try:
            return await self._open(host, command, lasting=True)
        except _StartUnknown as error:
            state = self.host(host)
            address = state.endpoint.address if state.endpoint else "?"
            raise HostUnreachable(host, address, str(error)) from error

    def counters(self, host: str) -> Counters:
        """What was done for a host so far."""
        state = self.host(host)
        gate = None
        if state.endpoint is not None:
            jumps = state.endpoint.jumps
            gate = self.gate(state.endpoint, self.host(jumps[-1], jumps[:-1]) if jumps else None)
        waiting = sum(not request.future.done() for request in state.requests)
        return replace(state.counters, waiting=waiting, handshakes_peak=gate.peak if gate else 0)

    async def close(self) -> None:
        """Close every connection and channel; those who wait get HostUnreachable. Takes 2 s at most."""
        self.closed = True
        raws = []
        for host in self._hosts.values():
            address = host.endpoint.address if host.endpoint else "not resolved"
            host.fail(HostUnreachable(host.name, address, "the pool was closed", retriable=False))
            raws += [connection._raw for connection in host.connections]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Inner connections before the jump hosts that carry them.
        for raw in reversed(raws):
            raw.close()
        try:
            async with asyncio.timeout(_GOODBYE_S):
                for raw in raws:
                    await raw.wait_closed()
        except TimeoutError:
            for raw in raws:
                raw.abort()

    # For this package.

    def host(self, name: str, via: tuple[str, ...] = ()) -> _Host:
        """The state of a host, reached through the jump hosts `via` instead of those of its configuration, if any."""
        key = (name, via)
        if key not in self._hosts:
            self._hosts[key] = _Host(self, name, via)
        return self._hosts[key]

    def gate(self, endpoint: Endpoint, jump: _Host | None) -> Gate:
        """The gate for handshakes with that address, or through that jump host."""
        key: object = jump if jump is not None else (endpoint.host, endpoint.port)
        if key not in self._gates:
            most = self.limits.handshakes if jump is None else self.limits.handshakes_through_jump
            self._gates[key] = Gate(most)
        return self._gates[key]

    def note(self, line: str) -> None:
        """Tell the debug callback."""
        if self._debug is not None:
            self._debug(line)

    def spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run a coroutine as a task that the pool owns."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _open(
        self, host: str, command: str, *, lasting: bool, stderr_limit: int | None = None
    ) -> Channel:
        state = self.host(host)
        loop = asyncio.get_running_loop()
        refusals, retry = 0, False
        first_refusal_at = 0.0
        while True:
            if self.closed:
                raise HostUnreachable(host, "not connected", "the pool was closed", retriable=False)
            connection = await state.acquire(channel=True, lasting=lasting, first=retry)
            opening = self.spawn(_open_on(state, connection, command, lasting, stderr_limit))
            try:
                channel = await asyncio.shield(opening)
            except asyncio.CancelledError:
                # Not left half-open: the server would count it. The task finishes, then it is closed.
                opening.add_done_callback(_close_unwanted)
                if self.closed and opening.cancelled():
                    raise HostUnreachable(
                        host, "not connected", "the pool was closed", retriable=False
                    ) from None
                raise
            except _Refused as error:
                state.refused(connection)
                state.release(connection, lasting)
                first_refusal_at = first_refusal_at or loop.time()
                if (
                    state.counters.channels == 0
                    and loop.time() - first_refusal_at > self.limits.connect_timeout_s
                ):
                    why = f"lets us log in but opens no session ({error})"
                    raise HostUnreachable(host, connection.endpoint.address, why) from error
                refusals += 1
                retry = True
                await asyncio.sleep(full_jitter(self.rng, 0.01, 1.0, refusals))
            except _LostBefore:
                state.release(connection, lasting)
                retry = True
            else:
                return channel


def _twin(error: OrchestraError) -> OrchestraError:
    """The same error once more: an exception that several tasks raise would collect all their tracebacks."""
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error.__cause__
    return twin


class _Refused(Exception):
    """The server opens no further channel on this connection now."""


class _LostBefore(Exception):
    """The link died before the command was asked for: nothing was started."""


class _StartUnknown(Exception):
    """The link died after the command was asked for and before the answer."""


async def _open_on(
    state: _Host, connection: Connection, command: str, lasting: bool, stderr_limit: int | None
) -> Channel:
    """Open a channel on a connection with room and start the command. The channel gives the room back when it closes."""
    import asyncssh

    opened: list[Channel] = []

    def make() -> Any:
        channel = Channel(
            state.name,
            lambda given_up: state.release(connection, lasting, given_up),
            connection.give_up_on_one,
        )
        if stderr_limit is not None:
            channel.stderr_limit = stderr_limit
        opened.append(channel)
        return channel

    try:
        await connection._raw.create_session(
            make, command, encoding=None, window=state.pool.limits.window_bytes
        )
    except (asyncssh.Error, OSError) as error:
        if opened:
            # The channel stood: asyncssh closes it, and it gives the room back by itself.
            raise _StartUnknown("the connection was lost while the command was started") from error
        if connection.is_open and isinstance(error, asyncssh.ChannelOpenError):
            raise _Refused(error.reason) from error
        raise _LostBefore from error
    return opened[0]


def _close_unwanted(opening: asyncio.Task[Channel]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
