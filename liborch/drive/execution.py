"""An execution as its submitter holds it: something to await, cancel, pause and ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from liborch.core import events as ev
from liborch.drive.outputs import Sink
from liborch.drive.results import Result
from liborch.specs import ExecutionSpec

if TYPE_CHECKING:
    from liborch.drive.driver import Driver
    from liborch.drive.link import AgentLink


class Execution:
    """An execution as its submitter holds it. Await it for the Result.

    Awaiting it twice is fine. Cancelling an await does not cancel the execution; `cancel()` does.
    """

    __slots__ = (
        "_driver",
        "_future",
        "attempt",
        "began",
        "following",
        "host",
        "id",
        "lead",
        "lease",
        "node",
        "ordered",
        "result",
        "sink",
        "spec",
        "state",
        "submitted_at",
        "terminal",
        "verdict",
    )

    def __init__(self, driver: Driver, x: str, host: str, spec: ExecutionSpec, lease: str = "") -> None:
        self._driver = driver
        self._future: asyncio.Future[Result] | None = None
        self.id = x
        self.host = host
        self.spec = spec
        self.lease = lease
        #: The execution this is a rank of; "": it is one itself.
        self.lead = ""
        self.state = "waiting"
        self.node = ""
        self.attempt = 1
        self.submitted_at = time.time()
        #: The attempt that was seen to start, and when, both by this machine's clock; None: none was.
        self.began: tuple[int, float] | None = None
        #: Set when all of it is here and on record; before that it is `verdict`.
        self.result: Result | None = None
        self.verdict: Result | None = None
        self.sink: Sink | None = None
        self.following: asyncio.Task[None] | None = None
        #: The attempt whose order was put on its way, and on which link; None: none was.
        self.ordered: tuple[int, AgentLink] | None = None
        #: The stream to its pseudo-terminal, while there is one.
        self.terminal: Any = None

    def __repr__(self) -> str:
        return f"<Execution {self.id}: {self.state}{f' on {self.node}' if self.node else ''}>"

    def __await__(self) -> Generator[Any, None, Result]:
        return self.wait().__await__()

    async def wait(self) -> Result:
        """Return the Result when it is over. Cancelling leaves the execution as it is.

        Raises:
            WorldError: No node could be used (the error says why).
            SpecError: No node could ever run it.
        """
        if self.result is not None:
            return self.result
        return await asyncio.shield(self._get_future())

    def _get_future(self) -> asyncio.Future[Result]:
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        return self._future

    @property
    def is_done(self) -> bool:
        """Whether it is over."""
        return self.result is not None or (self._future is not None and self._future.done())

    def cancel(self) -> None:
        """Ask for its end; the Result then says `cancelled`. Fine at any time."""
        self._driver.post(ev.CancelAsked(self.id))

    def pause(self) -> None:
        """Stop its processes. Only what runs can be paused."""
        self._driver.post(ev.PauseAsked(self.id))

    def resume(self) -> None:
        """Let its processes go on."""
        self._driver.post(ev.ResumeAsked(self.id))

    def explain(self) -> list[str]:
        """Why it is not further than it is, condition by condition."""
        return self._driver.core.explain(self.id, self._driver.now())
