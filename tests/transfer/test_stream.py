"""Frames flow within the window, whoever is slow, and a lost link is told once what came is read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from liborch.agent import frames as untyped
from liborch.errors import TransferError
from liborch.transfer.stream import FrameStream

frames: Any = untyped


class Wire:
    """What a stream wrote, cut into frames."""

    def __init__(self) -> None:
        self.decoder = frames.Decoder()
        self.frames: list[tuple[dict[str, Any], bytes, int]] = []

    async def write(self, data: bytes) -> None:
        for number, raw, body, length in self.decoder.feed(data):
            assert number == 5
            self.frames.append((frames.parse_head(raw), body, length))


def feed(stream: FrameStream, head: dict[str, Any], body: bytes = b"") -> None:
    for _, raw, content, length in frames.Decoder().feed(frames.encode(5, head, body)):
        stream.feed(raw, content, length)


async def test_sender_stops_at_the_window_and_goes_on_with_credit() -> None:
    wire = Wire()
    stream = FrameStream(5, wire.write)

    async def send_all() -> None:
        for _ in range(40):
            await stream.send({"t": "x"}, bytes(frames.CHUNK))

    sending = asyncio.create_task(send_all())
    for _ in range(100):
        await asyncio.sleep(0)
    under_way = sum(length for _, _, length in wire.frames)
    assert not sending.done()
    assert frames.WINDOW <= under_way < frames.WINDOW + 2 * frames.CHUNK
    feed(stream, {"t": "credit", "n": 40 * frames.CHUNK})
    await sending
    assert len(wire.frames) == 40


async def test_receiver_hands_back_what_it_consumed() -> None:
    wire = Wire()
    stream = FrameStream(5, wire.write)
    for _ in range(16):
        feed(stream, {"t": "x"}, bytes(frames.CHUNK))
    for _ in range(16):
        await stream.receive()
    assert all(head["t"] == "credit" for head, _, _ in wire.frames)
    credited = sum(head["n"] for head, _, _ in wire.frames)
    assert frames.WINDOW // 2 <= credited <= 17 * frames.CHUNK


async def test_lost_link_wakes_both_directions_after_what_came() -> None:
    stream = FrameStream(5, Wire().write)
    await stream.send({"t": "x"}, bytes(1 << 20))
    for _ in range(4):
        await stream.send({"t": "x"}, bytes(1 << 20)) if stream._window.left > 0 else None
    sending = asyncio.create_task(stream.send({"t": "x"}))
    await asyncio.sleep(0)
    feed(stream, {"t": "last"})
    stream.lose("gone")
    assert (await stream.receive())[0] == {"t": "last"}
    with pytest.raises(TransferError, match="gone") as caught:
        await stream.receive()
    assert caught.value.retriable
    with pytest.raises(TransferError, match="gone"):
        await sending


async def test_cancelled_receive_loses_no_frame() -> None:
    stream = FrameStream(5, Wire().write)
    waiting = asyncio.create_task(stream.receive())
    await asyncio.sleep(0)
    feed(stream, {"t": "x"})
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await stream.receive())[0] == {"t": "x"}


async def test_closing_twice_says_so_once() -> None:
    wire = Wire()
    stream = FrameStream(5, wire.write)
    await stream.close()
    await stream.close()
    assert [head for head, _, _ in wire.frames] == [{"t": "close"}]
