"""Notices that this machine was asleep: then no link may be trusted, and each is asked at once whether it still stands.

While a laptop is closed the clock of timers stands still, so a link that died meanwhile would be noticed only after the keepalive's
whole patience. The wall clock goes on; so does it for a process that was stopped and goes on.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from liborch.ssh.connections import Connection
    from liborch.ssh.pool import Pool

#: How often the clocks are compared, in seconds.
LOOK_S = 2.0
#: A link that is in doubt is asked every second, and given up after so many that it leaves unanswered.
DOUBT_S = 1.0
DOUBT_COUNT = 4


async def watch(pool: Pool) -> None:
    """Ask every link of a pool when more time has passed than can be, until cancelled.

    A wall clock that was set has the same effect, which does no harm.
    """
    limits = pool.limits
    seen = time.time()
    while True:
        await asyncio.sleep(LOOK_S)
        away_s = time.time() - seen - LOOK_S
        seen = time.time()
        if away_s <= limits.away_s:
            continue
        pool.note(f"this machine was away for {away_s:.0f} s: asking every link whether it still stands")
        for connection in pool.connections():
            pool.spawn(_doubt(connection, pool))


async def _doubt(connection: Connection, pool: Pool) -> None:
    # Here and not above: it loads asyncssh.
    from liborch.ssh.handshake import keepalive

    raw = connection.raw
    raw.set_keepalive(DOUBT_S, DOUBT_COUNT)
    await asyncio.sleep(DOUBT_S * (DOUBT_COUNT + 2))
    if connection.is_open:
        raw.set_keepalive(*keepalive(connection.endpoint, pool.limits))
