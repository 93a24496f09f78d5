"""The client's end of a conversation with one agent: control messages, events, streams. Knows frames, decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from liborch.agent import frames as _untyped
from liborch.drive.bootstrap import NoPython, Pipe
from liborch.errors import AgentError, HostUnreachable, StorageError, TransferError
from liborch.transfer.stream import FrameStream, Stream

frames: Any = _untyped

#: Versions of the conversation on stream 0 that this client speaks.
PROTOCOLS = (1,)
#: How long the agent may take to greet and to answer a question, in seconds.
GREETING_S = 30.0
#: Orders in one message, at most.
ORDERS = 250
#: Bytes waiting to be written above which streams wait.
HIGH_WATER = 4 << 20

#: [number, owner, kind, id, attempt, detail]
AgentEvent = list[Any]


class AgentLink(Protocol):
    """What the driver needs of a node's agent; the shell fallback and the simulated agent are others."""

    hello: dict[str, Any]
    #: This machine's wall clock minus the node's, in seconds, as of the greeting.
    clock_skew_s: float

    async def attach(
        self,
        owner: str,
        ack: int,
        capacity: dict[str, int],
        on_events: Callable[[list[AgentEvent]], None],
        on_attached: Callable[[dict[str, Any]], None],
        on_lost: Callable[[str], None],
        expand: Sequence[str] = (),
    ) -> None:
        """Take part: missed events first, then `on_attached`, then events as they come, `on_lost` at the end."""

    def order(self, common: dict[str, Any], orders: Sequence[tuple[str, int, dict[str, Any]]]) -> None:
        """Hand over."""

    def tell(self, kind: str, **fields: Any) -> None:
        """recall, cancel, pause, resume, ack, drop, unhold, signal, forget, depart. What an agent cannot do it leaves out."""

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """status, retire, expand: the reply. Raises AgentError when the link breaks."""

    def open_stream(self, kind: str, **fields: Any) -> Stream:
        """Begin a conversation beside the control stream."""

    async def close(self) -> None:
        """Hang up; executions go on."""


def _events(body: bytes) -> list[AgentEvent]:
    try:
        events: list[AgentEvent] = msgspec.json.decode(body)
    except msgspec.DecodeError:
        # A file name that is no UTF-8, in an error text: only the standard library takes its surrogates.
        events = json.loads(body.decode("ascii"))
    return events


class FrameLink:
    """AgentLink over a pipe to a relay."""

    def __init__(self, host: str, pipe: Pipe) -> None:
        self.host = host
        self.hello: dict[str, Any] = {}
        #: Client's wall clock minus the node's, in seconds, as of the greeting.
        self.clock_skew_s = 0.0
        self._pipe = pipe
        self._decoder = frames.Decoder()
        self._streams: dict[int, FrameStream] = {}
        self._numbers = itertools.count(1)
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        self._out_wake = asyncio.Event()
        self._out_room = asyncio.Event()
        self._out_room.set()
        self._replies: dict[str, deque[asyncio.Future[dict[str, Any]]]] = {}
        self._greeted: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._on_events: Callable[[list[AgentEvent]], None] | None = None
        self._on_attached: Callable[[dict[str, Any]], None] | None = None
        self._on_lost: Callable[[str], None] | None = None
        self._lost: str | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<FrameLink {self.host}: {self._lost or 'open'}, {len(self._streams)} streams>"

    async def start(self, first: bytes = b"") -> None:
        """Wait for the greeting. Cancelled or failed: the pipe is closed.

        Raises:
            AgentError, HostUnreachable, StorageError.
        """
        self._tasks = [asyncio.ensure_future(self._read(first)), asyncio.ensure_future(self._write())]
        try:
            async with asyncio.timeout(GREETING_S):
                self.hello = await self._greeted
        except TimeoutError:
            await self.close()
            raise AgentError(
                self.host, f"the agent gave no answer in {GREETING_S:.0f} s", retriable=True
            ) from None
        except BaseException:
            await self.close()
            raise
        if self.hello.get("protocol") not in PROTOCOLS:
            await self.close()
            raise AgentError(
                self.host,
                f"an agent with protocol {self.hello.get('protocol')} runs there, this program speaks {PROTOCOLS}",
                detail="wait for its executions to end, or use the program that started them",
            )
        try:
            self.clock_skew_s = time.time() - float(self.hello["clock"])
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            await self.close()
            raise AgentError(
                self.host, "what answered there is no agent of ours", detail=f"its greeting: {error!r}"
            ) from error

    # -- reading

    async def _read(self, first: bytes) -> None:
        why = "the connection was closed"
        try:
            data = first
            while True:
                if data:
                    for stream, raw, body, length in self._decoder.feed(data):
                        if stream:
                            other = self._streams.get(stream)
                            if other is not None:
                                other.feed(raw, body, length)
                        else:
                            self._on_control(frames.parse_head(raw), body)
                data = await self._pipe.read(1 << 18)
                if not data:
                    break
        except OSError as error:
            why = str(error)
        except (frames.FrameError, TransferError) as error:
            why = f"the agent broke the protocol: {error}"
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            # Fields that are missing, or are something else: whatever is at the other end, it is no agent of ours.
            why = f"the agent broke the protocol: {error!r}"
        finally:
            await self._lose(why)

    def _on_control(self, head: dict[str, Any], body: bytes) -> None:
        kind = head["t"]
        if kind == "events":
            if self._on_events is not None:
                self._on_events(_events(body))
        elif kind == "attached":
            if self._on_attached is not None:
                self._on_attached(head)
        elif kind == "hello":
            if not self._greeted.done():
                self._greeted.set_result(head)
        elif kind == "failed":
            if not self._greeted.done():
                self._greeted.set_exception(self._failed(head))
        elif kind == "error":
            raise frames.FrameError(f"the agent complained: {head.get('why')}")
        else:
            waiting = self._replies.get(kind)
            if waiting:
                future = waiting.popleft()
                if not future.done():
                    future.set_result(head)

    def _failed(self, head: dict[str, Any]) -> Exception:
        if head.get("errno"):
            return StorageError(
                self.host, str(head.get("path", "")), int(head["errno"]), "starting the agent"
            )
        return AgentError(self.host, "the agent could not start", detail=str(head.get("why", "")))

    async def _lose(self, why: str) -> None:
        if self._lost is not None:
            return
        if not self._greeted.done():
            tail = self._pipe.stderr_tail().decode("utf-8", "replace").strip().splitlines()
            status: int | None = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    status = await self._pipe.wait()
            if status is None:
                error: Exception = HostUnreachable(
                    self.host, self.host, "hung up while the agent was started"
                )
            else:
                error = NoPython(
                    self.host,
                    f"python3 there ended with status {status} before the agent spoke",
                    detail=tail[-1][:200] if tail else "",
                )
            if not self._greeted.done():
                self._greeted.set_exception(error)
                self._greeted.exception()
        self._lost = why
        for stream in list(self._streams.values()):
            stream.lose(why)
        self._streams.clear()
        for waiting in self._replies.values():
            for future in waiting:
                if not future.done():
                    future.set_exception(AgentError(self.host, why, retriable=True))
        self._out_wake.set()
        self._out_room.set()
        self._pipe.close()
        if self._on_lost is not None:
            on_lost, self._on_lost = self._on_lost, None
            on_lost(why)

    # -- writing

    def _post(self, data: bytes) -> None:
        if self._lost is not None:
            return
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > HIGH_WATER:
            self._out_room.clear()
        self._out_wake.set()

    async def _write(self) -> None:
        try:
            while self._lost is None:
                await self._out_wake.wait()
                self._out_wake.clear()
                while self._out:
                    # Small control messages travel together, bulk frames one by one.
                    if len(self._out) > 1 and len(self._out[0]) < 16384:
                        data = b"".join(itertools.islice(self._out, 64))
                        for _ in range(min(64, len(self._out))):
                            self._out.popleft()
                    else:
                        data = self._out.popleft()
                    await self._pipe.write(data)
                    self._out_bytes -= len(data)
                    if self._out_bytes < HIGH_WATER // 2:
                        self._out_room.set()
        except OSError as error:
            await self._lose(str(error) or "the connection broke")

    # -- the driver's side

    async def attach(
        self,
        owner: str,
        ack: int,
        capacity: dict[str, int],
        on_events: Callable[[list[AgentEvent]], None],
        on_attached: Callable[[dict[str, Any]], None],
        on_lost: Callable[[str], None],
        expand: Sequence[str] = (),
    ) -> None:
        """See AgentLink."""
        self._on_events = on_events
        self._on_attached = on_attached
        if self._lost is not None:
            on_lost(self._lost)
            return
        self._on_lost = on_lost
        self._post(
            frames.encode(
                0, {"t": "attach", "owner": owner, "ack": ack, "capacity": capacity, "expand": list(expand)}
            )
        )

    def order(self, common: dict[str, Any], orders: Sequence[tuple[str, int, dict[str, Any]]]) -> None:
        """See AgentLink."""
        for at in range(0, len(orders), ORDERS):
            self._post_orders(common, orders[at : at + ORDERS])

    def _post_orders(self, common: dict[str, Any], orders: Sequence[tuple[str, int, dict[str, Any]]]) -> None:
        try:
            self._post(frames.encode(0, {"t": "order", "common": common, "orders": orders}))
        except frames.FrameError:
            # Long arguments: in halves, then. One alone always fits, see `Driver.submit`.
            middle = len(orders) // 2
            if not middle:
                raise
            self._post_orders(common, orders[:middle])
            self._post_orders(common, orders[middle:])

    def tell(self, kind: str, **fields: Any) -> None:
        """See AgentLink."""
        self._post(frames.encode(0, {"t": kind, **fields}))

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """See AgentLink."""
        if self._lost is not None:
            raise AgentError(self.host, self._lost, retriable=True)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        replies = {"retire": "retiring", "ping": "pong", "expand": "expanded"}
        self._replies.setdefault(replies.get(kind, kind), deque()).append(future)
        self._post(frames.encode(0, {"t": kind, **fields}))
        try:
            async with asyncio.timeout(GREETING_S):
                return await future
        except TimeoutError:
            await self._lose(f"the agent gave no answer to {kind!r} in {GREETING_S:.0f} s")
            raise AgentError(self.host, self._lost or "", retriable=True) from None

    def open_stream(self, kind: str, **fields: Any) -> FrameStream:
        """See AgentLink."""
        number = next(self._numbers)

        async def write(data: bytes) -> None:
            if self._lost is not None:
                raise BrokenPipeError(self._lost)
            self._post(data)
            await self._out_room.wait()

        stream = FrameStream(number, write, lambda number: self._streams.pop(number, None))
        if self._lost is not None:
            stream.lose(self._lost)
            return stream
        self._streams[number] = stream
        self._post(frames.encode(0, {"t": "open", "stream": number, "kind": kind, **fields}))
        return stream

    async def close(self) -> None:
        """Hang up; executions go on. Never raises."""
        self._on_lost = None
        # What was told last (an acknowledgement, a cancel) still goes out, if the link takes it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while self._out_bytes > 0 and self._lost is None:  # noqa: ASYNC110 - a matter of milliseconds
                    await asyncio.sleep(0.001)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._lose("it was closed")

    async def wait_closed(self) -> None:
        """Return when the process at this end of the pipe is gone, too; bounded. After `close`, where the loop ends next."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._pipe.wait()


__all__ = ["AgentEvent", "AgentLink", "FrameLink", "TransferError"]
