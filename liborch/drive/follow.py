"""Read one execution's output from its node, from where we stopped last time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from liborch.drive.link import AgentLink
from liborch.drive.outputs import Sink
from liborch.errors import TransferError

#: How long a piece of output may take to be written when nobody waits for it any more, in seconds.
STUCK_S = 1.0

if TYPE_CHECKING:
    from liborch.drive.execution import Execution


async def follow(link: AgentLink, execution: Execution, final: dict[str, int] | None) -> bool:
    """Pass output on to the execution's sink until its end.

    Args:
        final: The sizes, when the execution has ended; None: it may still be running.

    Returns:
        True at the end of the output.

    Raises:
        TransferError: The link broke (retriable), or the output is not there any more.
        StorageError: It cannot be kept on this machine.
    """
    sink = execution.sink
    assert sink is not None
    fields: dict[str, object] = {"x": execution.id, "a": execution.attempt, **sink.offsets}
    if final is not None:
        fields["final"] = final
    stream = link.open_stream("tty" if execution.spec.tty else "output", **fields)
    execution.terminal = stream if execution.spec.tty else None
    try:
        while True:
            head, body = await stream.receive()
            if head["t"] == "data":
                if len(body) > 65536:
                    # Large pieces are written in a thread, so that a slow disk or reader holds up nobody else.
                    await _in_thread(sink, str(head["s"]), int(head["at"]), body)
                else:
                    sink.write(str(head["s"]), int(head["at"]), body)
            elif head["t"] == "end":
                return True
            elif head["t"] == "error":
                raise TransferError(str(head.get("why", "")), retriable=False)
    finally:
        execution.terminal = None
        await stream.close()


async def _in_thread(sink: Sink, name: str, at: int, body: bytes) -> None:
    """Cancelled: the piece is written all the same, unless its reader takes nothing: then it is left behind."""
    writing = asyncio.ensure_future(asyncio.to_thread(sink.write, name, at, body))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing], timeout=STUCK_S)
        raise
