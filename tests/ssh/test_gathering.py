"""Writes of one turn of the loop leave together, in order, and nothing written is left behind."""

from __future__ import annotations

import asyncio
from typing import Any

from liborch.ssh.gathering import GATHER_MOST, GatheringTransport, spare_empty_packets


class Counted:
    """Remembers what it was told, in order."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def writelines(self, parts: list[bytes]) -> None:
        self.calls.append(b"".join(parts))

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def get_extra_info(self, name: str) -> str:
        return f"the transport's {name}"


def gathering() -> tuple[Counted, GatheringTransport]:
    counted = Counted()
    given: Any = counted
    return counted, GatheringTransport(given, asyncio.get_running_loop())


async def test_what_is_written_in_one_turn_leaves_as_one() -> None:
    counted, transport = gathering()
    for part in (b"a", b"b", b"c"):
        transport.write(part)
    assert counted.calls == []
    await asyncio.sleep(0)
    transport.write(b"d")
    await asyncio.sleep(0)
    assert counted.calls == [b"abc", b"d"]


async def test_much_does_not_wait_for_the_turn_to_end() -> None:
    counted, transport = gathering()
    for _ in range(5):
        transport.write(b"x" * (GATHER_MOST // 2))
    assert [len(call) for call in counted.calls] == [GATHER_MOST, GATHER_MOST]
    await asyncio.sleep(0)
    assert [len(call) for call in counted.calls] == [GATHER_MOST, GATHER_MOST, GATHER_MOST // 2]


async def test_the_last_words_are_sent_before_it_closes() -> None:
    for how in ("close", "abort"):
        counted, transport = gathering()
        transport.write(b"farewell")
        getattr(transport, how)()
        await asyncio.sleep(0)
        assert counted.calls == [b"farewell", how]


async def test_everything_else_is_the_transports_own() -> None:
    _, transport = gathering()
    assert transport.get_extra_info("peername") == "the transport's peername"


class Connection:
    """As much of asyncssh's as matters: before each packet with data it sends an empty one."""

    def __init__(self, cipher: str) -> None:
        self.cipher = cipher
        self.sent: list[tuple[int, bytes]] = []

    def get_extra_info(self, _name: str) -> str:
        return self.cipher

    def send_packet(self, pkttype: int, *args: bytes, handler: object = None) -> None:
        if pkttype > 49:
            self.send_packet(2, b"\0\0\0\0")
        self.sent.append((pkttype, b"".join(args)))


def test_empty_packets_are_spared_where_the_cipher_needs_none() -> None:
    for cipher in ("aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"):
        connection = Connection(cipher)
        spare_empty_packets(connection)
        connection.send_packet(94, b"data", handler=None)
        connection.send_packet(2, b"\0\0\0\3abc")
        assert connection.sent == [(94, b"data"), (2, b"\0\0\0\3abc")]


def test_empty_packets_stay_where_they_guard_something() -> None:
    connection = Connection("aes256-cbc")
    spare_empty_packets(connection)
    connection.send_packet(94, b"data")
    assert connection.sent == [(2, b"\0\0\0\0"), (94, b"data")]
