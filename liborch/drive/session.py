"""Holding an orchestration: its lock, its place in the journal, its connections, its driver, the socket others speak to it by.

What is done with the driver is for the caller: `liborch.host` for programs, `liborch.drive.adopt` for who takes over.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from liborch.core import events as ev
from liborch.core.policy import Policy
from liborch.drive.control import Control
from liborch.drive.driver import Driver
from liborch.drive.ground import unbroken
from liborch.drive.transfers import Snapshots
from liborch.errors import StorageError
from liborch.journal import DriverLock, Journal, Writer
from liborch.places import Places
from liborch.specs import HostProfile
from liborch.ssh import Limits, Pool


@contextlib.asynccontextmanager
async def driving(
    orchestration: str,
    kind: str,
    title: str,
    folders: Places,
    *,
    details: str = "{}",
    common: str | None = None,
    policy: Policy | None = None,
    limits: Limits | None = None,
    accept_new: bool = False,
    take_over: bool = False,
    debug: Callable[[str], None] | None = None,
    snapshots: Snapshots | None = None,
    **options: Any,
) -> AsyncIterator[Driver]:
    """Hold an orchestration. Leaving cancels what still runs, unless `driver.detached` was set.

    Raises:
        Conflict: Another client drives it.
        JournalError, StorageError: The journal cannot be used.
    """
    lock = DriverLock(folders.state, orchestration)
    lock.acquire_nowait()
    writer = None
    pool = None
    try:
        told: list[Driver] = []

        def stalled(error: StorageError | None = None) -> None:
            for each in told:
                each.stalled(error)

        writer = Writer(Journal.open(folders.journal), on_stall=stalled, on_recover=stalled)
        if take_over:
            await writer.run(lambda journal: journal.take_over(orchestration))
        else:
            await writer.run(lambda journal: journal.begin(orchestration, kind, title, details, common))  # type: ignore[arg-type]
        config = str(folders.ssh_config) if folders.ssh_config is not None else None
        pool = Pool(limits, config_file=config, accept_new=accept_new, debug=debug)
        driver = Driver(
            orchestration,
            writer,
            pool,
            folders.state,
            policy=policy,
            snapshots=snapshots or Snapshots(folders.cache),
            **options,
        )
        if not take_over:
            driver.post(ev.PolicyChosen(driver.core.policy))
        told.append(driver)
        control = Control(driver, folders.state)
        try:
            await control.start()
            yield driver
        finally:
            try:
                await driver.close(cancel=not driver.detached)
            finally:
                await unbroken(_end(orchestration, driver, control, writer))
    finally:
        try:
            await unbroken(_let_go(pool, writer))
        finally:
            lock.release()


async def _end(orchestration: str, driver: Driver, control: Control, writer: Writer) -> None:
    await control.close()
    left = driver.executions or driver.has_plan or driver.untidy or driver.holds or driver.fatal is not None
    if writer.stalled is None:
        # Where nothing can be written, whoever takes over finds it as after a kill.
        await writer.run(lambda journal: journal.end(orchestration, "left" if left else "ended"))


async def _let_go(pool: Pool | None, writer: Writer | None) -> None:
    if pool is not None:
        await pool.close()
    if writer is not None:
        await writer.close()


def details_of(profiles: Sequence[HostProfile], folders: Places, **more: Any) -> str:
    """What whoever takes over has to know about an orchestration: JSON for the journal."""
    config = str(folders.ssh_config) if folders.ssh_config is not None else None
    return json.dumps({"profiles": msgspec.to_builtins(profiles), "ssh_config": config, **more})
