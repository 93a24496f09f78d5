"""Writes of one turn of the loop leave together.

asyncssh writes every packet by itself, and an empty one before each that carries data: two system calls for 32 KiB, each with
a walk through the network stack and a wake-up of the server. Gathered, a large transfer takes a tenth less time, and a small
message one packet less. Nothing waits longer than the turn in which it was written.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

#: Bytes that leave at once, without waiting for the turn's end: as many as one send takes well.
GATHER_MOST = 256 << 10


class GatheringTransport:
    """What asyncssh uses of a transport; `write` gathers, the rest is the transport's own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0
        self._due = False

    def write(self, data: bytes) -> None:
        """Take bytes; they are on their way before the loop turns to anything that comes in later."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= GATHER_MOST:
            self._flush()
        elif not self._due:
            self._due = True
            self._loop.call_soon(self._on_turn)

    def _on_turn(self) -> None:
        self._due = False
        self._flush()

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            self._transport.writelines(parts)

    def close(self) -> None:
        """Send what was written, then close."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once; what the socket does not take immediately is dropped. The farewell just written is not."""
        self._flush()
        self._transport.abort()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Introduction(asyncio.Protocol):
    """Gives the protocol its transport, and is out of the way from then on."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_protocol(self._protocol)
        gathering: Any = GatheringTransport(transport, asyncio.get_running_loop())
        self._protocol.connection_made(gathering)


async def speak_over(sock: socket.socket, factory: Callable[[], Any]) -> tuple[Any, Any]:
    """Return (transport, protocol) over a connected socket, as `loop.create_connection` does, with gathered writes."""
    protocol = factory()
    transport, _ = await asyncio.get_running_loop().create_connection(
        lambda: _Introduction(protocol), sock=sock
    )
    return transport, protocol


#: SSH_MSG_IGNORE of RFC 4253, and an empty string as its only field.
_IGNORE, _EMPTY = 2, (b"\0\0\0\0",)


def spare_empty_packets(connection: Any) -> None:
    """Have a connection of asyncssh send data without an empty packet before it, where none is needed.

    They guard ciphers in CBC mode, whose next initial vector an eavesdropper knows (RFC 4251, 9.3.1); authenticated ones
    number their packets. Each costs as much as one of 32 KiB: half of the packets of a large transfer.
    """
    cipher = str(connection.get_extra_info("send_cipher") or "")
    if "gcm" not in cipher and "poly1305" not in cipher:
        return
    send_packet = connection.send_packet

    def send(pkttype: int, *args: bytes, **more: Any) -> None:
        if pkttype != _IGNORE or args != _EMPTY:
            send_packet(pkttype, *args, **more)

    connection.send_packet = send
