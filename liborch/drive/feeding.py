"""Keeping a driver supplied with what was planned: a window of a batch is submitted, the rest lies in the journal.

So a batch of a million takes the memory of a few thousand. What was planned and not yet submitted has the state `planned`;
the next client finds it there. Writing the plan may still go on meanwhile.
"""

from __future__ import annotations

import asyncio

from liborch.drive.driver import Driver
from liborch.drive.orders import spec_from_json

#: Executions that are with the core at once, waiting and running: more than nodes of a batch start within a second.
WINDOW = 4000
#: How many are submitted together.
PAGE = 500


class Feeder:
    """Submits what is planned, in order, a window at a time.

    Args:
        driver: Of the orchestration whose plan it is.
        batch: Batches share nodes fairly by this name.
        first: The number of the first that is not submitted yet.
    """

    def __init__(self, driver: Driver, batch: str, first: int = 1, window: int = WINDOW) -> None:
        self._driver = driver
        self._batch = batch
        self._after = first - 1
        self._window = window
        self._page = min(PAGE, window)
        self._stopped = False
        #: Set whenever more was planned, or all is, or nothing more is wanted.
        self._news = asyncio.Event()
        self._is_whole = False
        self._is_done = False
        #: How many were submitted.
        self.submitted = 0

    def __repr__(self) -> str:
        state = "stopped" if self._stopped else "whole" if self._is_whole else "growing"
        return f"<Feeder after {self._after}: {self.submitted} submitted, the plan is {state}>"

    @property
    def is_done(self) -> bool:
        """Everything that was planned is submitted."""
        return self._is_done

    def grown(self, *, whole: bool = False) -> None:
        """Say that more was planned; `whole`: that it is all."""
        self._is_whole = self._is_whole or whole
        self._news.set()

    def stop(self) -> None:
        """Submit nothing more: what is planned stays planned."""
        self._stopped = True
        self._news.set()

    async def _has_somewhere_to_go(self) -> bool:
        """Wait for the first node: a host that is down must not fail what waits for it. False: stopped meanwhile."""
        driver = self._driver
        if not self.submitted:
            driver.connect()
            while not self._stopped and not driver.is_linked:
                await driver.turned()
        return not self._stopped

    async def run(self) -> None:
        """Submit everything that is planned. Returns when all is, or after `stop`. Cancelling leaves the rest planned.

        Raises:
            OrchestraError: No node can be used, before the first one could; the driver has ended; the journal cannot be read.
        """
        driver = self._driver
        while not self._stopped:
            if len(driver.executions) > self._window - self._page:
                await driver.turned()
                continue
            self._news.clear()
            whole = self._is_whole
            rows = await driver.planned(self._after, self._page)
            if not rows:
                if whole:
                    self._is_done = True
                    return
                await self._news.wait()
                continue
            if not await self._has_somewhere_to_go():
                return
            for row in rows:
                driver.submit_planned(row.id, spec_from_json(row.spec), row.host, batch=self._batch)
            self._after = rows[-1].number
            self.submitted += len(rows)
            await driver.turned()
