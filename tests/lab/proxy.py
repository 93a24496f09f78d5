"""A TCP proxy that delays bytes both ways, for kernels without netem. Run as a process of its own.

`python proxy.py ADDRESS PORT DELAY_S RATE` prints its own port and serves 127.0.0.1 until its stdin closes.
RATE is bytes per second each way and connection, 0 for no limit. Order and half-closes are kept; at most 8 MiB
are under way per direction, beyond which the sender is held back.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

MOST_UNDER_WAY = 8 << 20


async def pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float, rate: float
) -> None:
    """Pass bytes on `delay_s` after they came, no faster than `rate`."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MOST_UNDER_WAY // 65536)

    async def take() -> None:
        while True:
            try:
                data = await reader.read(65536)
            except OSError:
                data = b""
            await queue.put((loop.time() + delay_s, data))
            if not data:
                return

    taker = asyncio.create_task(take())
    line_free_at = 0.0
    try:
        while True:
            due, data = await queue.get()
            if rate:
                line_free_at = max(line_free_at, due) + len(data) / rate
                due = line_free_at
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
    except OSError:
        writer.transport.abort()
    finally:
        taker.cancel()


async def serve(address: str, port: int, delay_s: float, rate: float) -> None:
    """Serve until stdin closes."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(address, port, limit=1 << 20)
        except OSError:
            writer.transport.abort()
            return
        with suppress(OSError):
            await asyncio.gather(
                pump(reader, far_writer, delay_s, rate), pump(far_reader, writer, delay_s, rate)
            )
        for each in (writer, far_writer):
            each.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
