"""Holding an orchestration: its lock, its place in the journal, its connections, its driver, the socket others speak to it by.

What is done with the driver is for the caller: `liborch.host` for programs, `liborch.drive.adopt` for who takes over.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from liborch.core.machine import Policy
from liborch.drive.control import Control
from liborch.drive.driver import Driver
from liborch.drive.transfers import Snapshots
from liborch.journal import DriverLock, Journal, Writer
from liborch.places import Places
from liborch.specs import HostProfile
from liborch.ssh import Pool


@contextlib.asynccontextmanager
async def driving(
    orchestration: str,
    kind: str,
    title: str,
    folders: Places,
    *,
    details: str = "{}",
    policy: Policy | None = None,
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
        writer = Writer(Journal.open(folders.journal))
        if take_over:
            await writer.run(lambda journal: journal.take_over(orchestration))
        else:
            await writer.run(lambda journal: journal.begin(orchestration, kind, title, details))  # type: ignore[arg-type]
        config = str(folders.ssh_config) if folders.ssh_config is not None else None
        pool = Pool(config_file=config, accept_new=accept_new, debug=debug)
        driver = Driver(
            orchestration,
            writer,
            pool,
            folders.state,
            policy=policy,
            snapshots=snapshots or Snapshots(folders.cache),
            **options,
        )
        control = Control(driver, folders.state)
        try:
            await control.start()
            yield driver
        finally:
            await driver.close(cancel=not driver.detached)
            await control.close()
            left = driver.executions or driver.fatal is not None
            await writer.run(lambda journal: journal.end(orchestration, "left" if left else "ended"))
    finally:
        if pool is not None:
            await pool.close()
        if writer is not None:
            await writer.close()
        lock.release()


def details_of(profile: HostProfile, folders: Places, **more: Any) -> str:
    """What whoever takes over has to know about an orchestration: JSON for the journal."""
    config = str(folders.ssh_config) if folders.ssh_config is not None else None
    return json.dumps({"profile": msgspec.to_builtins(profile), "ssh_config": config, **more})
