"""Whatever is at the other end of a link: it is read in bounded pieces, believed in nothing, and lost with a reason."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from liborch.agent import frames as _untyped
from liborch.drive.link import AgentEvent, FrameLink
from liborch.errors import AgentError, TransferError
from tests.drive.conftest import assert_quiet

frames: Any = _untyped

HELLO = {"t": "hello", "protocol": 1, "hash": "x", "state_id": "s", "clock": 0.0}


class FakePipe:
    """Bytes of the test's own choice."""

    def __init__(self) -> None:
        self.coming: asyncio.Queue[bytes] = asyncio.Queue()
        self.written = bytearray()
        self.is_open = True

    def say(self, head: dict[str, Any], stream: int = 0, body: bytes = b"") -> None:
        self.coming.put_nowait(frames.encode(stream, head, body))

    async def read(self, max_bytes: int = 1 << 18) -> bytes:
        return await self.coming.get() if self.is_open else b""

    async def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.is_open = False
        self.coming.put_nowait(b"")

    def stderr_tail(self) -> bytes:
        return b""

    async def wait(self) -> int | None:
        return 0


class Met:
    """A link that was greeted, and what it told."""

    def __init__(self) -> None:
        self.pipe = FakePipe()
        self.link = FrameLink("there", self.pipe)
        self.events: list[AgentEvent] = []
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def meet(self) -> Met:
        self.pipe.say(HELLO)
        await self.link.start()
        await self.link.attach("me", 0, {}, self.events.extend, self._attached, self.lost.set_result)
        return self

    def _attached(self, head: dict[str, Any]) -> None:
        head["room"]["cpus"]

    async def reason(self) -> str:
        async with asyncio.timeout(5):
            return await self.lost


@pytest.mark.parametrize(
    "said",
    [
        frames.encode(0, {"no": "kind"}),
        frames.encode(0, {"t": "events"}, b"no json"),
        frames.encode(0, {"t": "events"}, b'{"not": "a list"'),
        frames.encode(0, {"t": "attached"}),
        frames.encode(0, {"t": "attached", "room": []}),
        frames.encode(0, {"t": ["a", "list"]}),
        frames.encode(0, {"t": "error", "why": "so"}),
        frames.HEADER.pack(9, 0, 1, 1) + b"xx",
        frames.HEADER.pack(1, 0, 1 << 31, 0),
        frames.HEADER.pack(1, 0, 0, 1 << 30),
        frames.HEADER.pack(1, 0, 4, 0) + b"null",
        frames.HEADER.pack(1, 0, 2, 0) + b"\xff\xff",
    ],
)
async def test_nonsense_loses_the_link_with_a_reason(said: bytes) -> None:
    met = await Met().meet()
    asking = asyncio.ensure_future(met.link.ask("status"))
    await asyncio.sleep(0)
    met.pipe.coming.put_nowait(said)
    assert "broke the protocol" in await met.reason()
    with pytest.raises(AgentError, match="broke the protocol"):
        await asking
    with pytest.raises(AgentError):
        await met.link.ask("status")
    with pytest.raises(TransferError):
        await met.link.open_stream("transfer").receive()
    await met.link.close()
    await assert_quiet()


async def test_random_bytes_never_do_more_than_that() -> None:
    rng = random.Random(5)
    for _ in range(200):
        met = await Met().meet()
        head = json.dumps(rng.choice([[], {}, 1, "x", None, {"t": "events", "x": [None]}])).encode()
        met.pipe.coming.put_nowait(
            rng.choice([b"", frames.HEADER.pack(1, rng.randrange(3), len(head), 0) + head])
            + rng.randbytes(rng.randrange(1, 200))
        )
        met.pipe.close()
        assert await met.reason()
        await met.link.close()
    await assert_quiet()


async def test_answers_that_were_not_asked_for_and_streams_that_are_not_open_are_passed_over() -> None:
    met = await Met().meet()
    met.pipe.say({"t": "status"})
    met.pipe.say({"t": "data", "s": "out", "at": 0}, stream=77, body=b"x")
    met.pipe.say({"t": "events"}, body=b'[[1, "me", "started", "x", 1, {}]]')
    asking = asyncio.ensure_future(met.link.ask("ping"))
    await asyncio.sleep(0)
    met.pipe.say({"t": "pong"})
    await asking
    assert [event[2] for event in met.events] == ["started"]
    await met.link.close()
    await assert_quiet()


async def test_a_stream_that_was_closed_takes_no_place_on_the_link() -> None:
    met = await Met().meet()
    for _ in range(3):
        stream = met.link.open_stream("output")
        assert "1 streams" in repr(met.link)
        await stream.close()
    assert "0 streams" in repr(met.link)
    await met.link.close()
    await assert_quiet()


async def test_an_agent_of_another_protocol_is_an_error_that_says_what_to_do() -> None:
    pipe = FakePipe()
    pipe.say({**HELLO, "protocol": 99})
    with pytest.raises(AgentError, match="protocol 99"):
        await FrameLink("there", pipe).start()
    await assert_quiet()


async def test_a_greeting_that_never_comes_is_cancelled_without_a_trace() -> None:
    pipe = FakePipe()
    starting = asyncio.ensure_future(FrameLink("there", pipe).start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not pipe.is_open
    await assert_quiet()


async def test_orders_too_long_for_one_message_go_out_in_several() -> None:
    met = await Met().meet()
    met.link.order({}, [(f"x{n}", 1, {"argv": ["x" * 600_000]}) for n in range(40)])
    async with asyncio.timeout(10):
        while len(met.pipe.written) < 24_000_000:
            await asyncio.sleep(0)
    decoder = frames.Decoder()
    heads = [frames.parse_head(raw) for _stream, raw, _body, _size in decoder.feed(bytes(met.pipe.written))]
    assert [order[0] for head in heads for order in head.get("orders", [])] == [f"x{n}" for n in range(40)]
    await met.link.close()


@pytest.mark.parametrize("clock", [None, "noon", [], 10**400])
async def test_a_greeting_without_a_time_is_no_agents(clock: Any) -> None:
    pipe = FakePipe()
    pipe.say({**HELLO, "clock": clock})
    with pytest.raises(AgentError, match="no agent of ours"):
        await FrameLink("there", pipe).start()
    assert not pipe.is_open
