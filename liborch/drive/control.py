"""The socket by which other commands of the same person speak to the client that drives an orchestration.

`<state>/drivers/<orchestration>.sock`, JSON lines, one answer per question::

    {"do": "status"}                   -> {"nodes": [{name, link, slots, busy, down_since, why}], "executions": {id: state}}
    {"do": "nodes"}                    -> {"nodes": [...]} as above, and of a batch its post commands: {"posts": n, "longest_post": [id, s]}
    {"do": "explain", "id": x}         -> {"state": s, "lines": [...]}
    {"do": "cancel", "ids": [x, ...]}  -> {"ok": true}; the verdicts come into the journal
    {"do": "end"}                      -> {"ok": true}; all of it ends, what is only planned too
    {"do": "pause" | "resume", "id": x} -> {"state": s}, once it is so
    {"do": "follow", "id": x}          -> {"ok": true}; from now on outputs/<x>/ holds its output as it is written

What cannot be done is `{"error": text}`. The asking end, light enough for `ps`, is `liborch.drive.ask`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from liborch.core import events as ev
from liborch.drive.ask import short_name, socket_path
from liborch.drive.driver import Driver
from liborch.errors import OrchestraError, SpecError, StorageError, WorldError
from liborch.journal.storage import make_private_folder

#: A node may take so long to stop or continue an execution, in seconds.
PACE_S = 15.0
#: Asked again meanwhile: an order that is just being started cannot be paused yet.
AGAIN_S = 0.3


class Control:
    """Answers for one driver. Made by who holds the driver's lock: an old socket there is nobody's."""

    def __init__(self, driver: Driver, state: Path) -> None:
        self._driver = driver
        self._path = socket_path(state, driver.orchestration)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to listen. Raises StorageError."""
        make_private_folder(self._path.parent)
        try:
            self._path.unlink(missing_ok=True)
            with short_name(self._path) as name:
                self._server = await asyncio.start_unix_server(self._serve, name)
                os.chmod(name, 0o600)
        except OSError as error:
            raise StorageError(
                "this machine", str(self._path), error.errno or errno.EIO, "listening for other commands"
            ) from error

    async def close(self) -> None:
        """Stop listening; who waits for an answer gets none."""
        if self._server is not None:
            self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError, asyncio.CancelledError):
            pass  # The asker went away, or we do; nothing depends on it.
        finally:
            self._open.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
            what = message["do"]
            if what == "status":
                return status(self._driver)
            if what == "nodes":
                return {"nodes": nodes(self._driver), **self._driver.describe_more()}
            if what == "explain":
                return explain(self._driver, message["id"])
            if what == "cancel":
                for x in message["ids"]:
                    self._driver.post(ev.CancelAsked(x))
                return {"ok": True}
            if what == "end":
                if self._driver.end_all is not None:
                    self._driver.end_all()
                else:
                    for x in list(self._driver.executions):
                        self._driver.post(ev.CancelAsked(x))
                return {"ok": True}
            if what == "follow":
                self._driver.follow(message["id"])
                return {"ok": True}
            if what in ("pause", "resume"):
                return {"state": await set_pace(self._driver, message["id"], pause=what == "pause")}
            return {"error": f"{what!r} is not understood"}
        except OrchestraError as error:
            return {"error": str(error), "exit_status": error.exit_status}
        except (KeyError, TypeError, ValueError) as error:
            return {"error": f"not understood: {error!r}"}


def status(driver: Driver) -> dict[str, Any]:
    """How the driver's nodes and executions are."""
    return {
        "nodes": nodes(driver),
        "executions": {item.x: item.state.lower() for item in driver.core.items.values()},
    }


def nodes(driver: Driver) -> list[dict[str, Any]]:
    """How its nodes are."""
    return [
        {
            "name": node.name,
            "link": node.link.lower(),
            "slots": node.cpus,
            "busy": node.cpus - node.free_cpus,
            "down_since": driver.targets[node.name].down_since,
            "why": driver.targets[node.name].down_why,
        }
        for node in driver.core.nodes.values()
        if node.name in driver.targets and (node.items or not driver.targets[node.name].closed)
    ]


def explain(driver: Driver, x: str) -> dict[str, Any]:
    """Why an execution is not further than it is."""
    item = driver.core.items.get(x)
    return {
        "state": item.state.lower() if item is not None else "ended",
        "lines": driver.core.explain(x, driver.now()),
    }


async def set_pace(driver: Driver, x: str, *, pause: bool) -> str:
    """Pause or resume an execution; returns its state once the node says so. Fine when it is so already.

    Raises:
        SpecError: It does not run: it waits, or it ended.
        WorldError: The node has not answered in PACE_S.
    """
    wanted = "PAUSED" if pause else "RUNNING"
    deadline = driver.now() + PACE_S
    asked_at = -PACE_S
    while True:
        item = driver.core.items.get(x)
        if item is None:
            raise SpecError(f"{x[:8]} has ended: there is nothing to {'pause' if pause else 'resume'}")
        if item.state == wanted:
            return wanted.lower()
        if item.state not in ("PLACED", "RUNNING", "PAUSED"):
            raise SpecError(f"{x[:8]} is {item.state.lower()}: only what runs can be paused and resumed")
        now = driver.now()
        if now >= deadline:
            # The wish would stay, and come true at some later time.
            driver.post(ev.ResumeAsked(x) if pause else ev.PauseAsked(x))
            why = "; ".join(driver.core.explain(x, now))
            raise WorldError(f"{x[:8]} is not {wanted.lower()} after {PACE_S:.0f} s: {why}")
        if now - asked_at >= AGAIN_S:
            asked_at = now
            driver.post(ev.PauseAsked(x) if pause else ev.ResumeAsked(x))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_S):
                await driver.turned()
