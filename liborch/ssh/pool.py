"""Connections held open, and channels handed out over them, within what a server allows.

A server's "open failed" is waited out, never reported. Handshakes pass a gate per address and one per jump host. What
is known of one host, and the queue for its channels, is in `connections`. When to connect to whom, and what to run, is
decided elsewhere (the core).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

from liborch.errors import HostUnreachable
from liborch.ssh.channel import Channel
from liborch.ssh.connections import Connection, HostConnections
from liborch.ssh.limits import Completed, Counters, Limits
from liborch.ssh.pacing import Gate, full_jitter
from liborch.ssh.resolve import Endpoint
from liborch.ssh.waking import watch

_T = TypeVar("_T")

#: Seconds that `Pool.close` gives servers to say goodbye.
_GOODBYE_S = 2.0


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
        #: {node: frontend} of those that are reached through another host unless their configuration says otherwise.
        self.behind: dict[str, str] = {}
        #: {node: command for ssh's ProxyCommand}, overruling its configuration.
        self.proxies: dict[str, str] = {}
        self._hosts: dict[tuple[str, tuple[str, ...]], HostConnections] = {}
        self._gates: dict[object, Gate] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watch: asyncio.Task[None] | None = None

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
        deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
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
            async with asyncio.timeout_at(deadline):
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
            raws += [connection.raw for connection in host.connections]
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

    def connections(self) -> list[Connection]:
        """Those that were alive when last heard of."""
        return [each for host in self._hosts.values() for each in host.connections if each.is_open]

    def watch(self) -> None:
        """Have links asked after this machine was asleep. Fine more than once."""
        if self._watch is None:
            self._watch = self.spawn(watch(self))

    def host(self, name: str, via: tuple[str, ...] = ()) -> HostConnections:
        """The state of a host, reached through the jump hosts `via` instead of those of its configuration, if any."""
        key = (name, via)
        if key not in self._hosts:
            self._hosts[key] = HostConnections(self, name, via)
        return self._hosts[key]

    def gate(self, endpoint: Endpoint, jump: HostConnections | None) -> Gate:
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


class _Refused(Exception):
    """The server opens no further channel on this connection now."""


class _LostBefore(Exception):
    """The link died before the command was asked for: nothing was started."""


class _StartUnknown(Exception):
    """The link died after the command was asked for and before the answer."""


async def _open_on(
    state: HostConnections, connection: Connection, command: str, lasting: bool, stderr_limit: int | None
) -> Channel:
    """Open a channel on a connection with room and start the command. The channel gives the room back when it closes."""
    import asyncssh

    opened: list[Channel] = []

    def make() -> Any:
        channel = Channel(
            state.name,
            lambda given_up: state.release(connection, lasting, given_up),
            lambda: state.abandon(connection, lasting),
        )
        if stderr_limit is not None:
            channel.stderr_limit = stderr_limit
        opened.append(channel)
        return channel

    try:
        await connection.raw.create_session(
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
