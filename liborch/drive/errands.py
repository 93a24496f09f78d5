"""A driver's errands: files to a node before an execution, output and results home, tidying up behind.

Each may be broken off by a torn link at any point; the core asks for it again when the link is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import msgspec

from liborch.core import events as ev
from liborch.core import verdict
from liborch.core.things import lead_of
from liborch.drive.execution import Execution
from liborch.drive.follow import follow
from liborch.drive.link import AgentLink
from liborch.drive.links import Links
from liborch.drive.orders import remote_folder
from liborch.drive.outputs import Sink
from liborch.drive.recording import NOTHING
from liborch.drive.results import record_of, result_of
from liborch.drive.targets import Target
from liborch.drive.transfers import collect, stage, tidy, values_after
from liborch.errors import (
    AgentError,
    OrchestraError,
    StorageError,
    TransferError,
)
from liborch.journal import Change, Group
from liborch.specs import Transfer

#: Output up to so many bytes is kept in the journal's record as well.
RECORD_BYTES = 8 << 10
#: Tries of a transfer that fails while its link is up.
TRANSFER_TRIES = 3
#: How often a disk of this machine that was full is tried again.
DISK_S = 1.0
#: After a verdict, output that is still under way is waited for so long without a link.
LAST_OUTPUT_S = 10.0
#: So many bytes of each output are put into a Result; all of it is in a file.
RESULT_BYTES = 16 << 20


class Errands(Links):
    """See the module's text."""

    async def _resolve(self, execution: Execution, target: Target, link: AgentLink) -> str:
        """Have the host expand the remote folder; remembered."""
        folders = self._folders.setdefault(execution.id, {})
        known = folders.get(target.name)
        if known is None:
            transfer = execution.spec.transfer
            assert transfer is not None
            reply = await link.ask("expand", texts=[remote_folder(transfer, target.directory)])
            known = folders[target.name] = str(reply["texts"][0])
        return known

    async def _stage(self, x: str, target: Target) -> None:
        execution = self._find(x)
        if execution is None or target.link is None or execution.spec.transfer is None:
            return
        transfer = execution.spec.transfer
        number = execution.attempt
        tidying = self._tidying_of.get(x)
        if tidying is not None:
            await asyncio.wait([tidying])
        try:
            snapshot = await self.snapshots.of(transfer)
        except OrchestraError as error:
            self._stage_failed(x, target, number, error)
            return
        there = (target.name, snapshot.id)
        # The first one sends, and those who come meanwhile find it there.
        first = self._locks.setdefault(there, asyncio.Lock())
        for attempt in range(1, TRANSFER_TRIES + 1):
            link = target.link
            if link is None:
                return  # Asked again when it is back.
            try:
                folder = await self._resolve(execution, target, link)
                async with (
                    contextlib.nullcontext() if there in self._sent else first,
                    self._alone_in(execution, target),
                    self._conversations.hold(link) as stream,
                ):
                    report = await stage(
                        stream,
                        transfer,
                        snapshot,
                        folder,
                        target.directory,
                        target.name,
                        self._progress("sending", x),
                    )
            except OrchestraError as error:
                if target.link is not link or target.link is None:
                    return
                passing = isinstance(error, TransferError | AgentError) and error.retriable
                if not passing or attempt == TRANSFER_TRIES:
                    self._stage_failed(x, target, number, error)
                    return
                await asyncio.sleep(0.2 * attempt)
            else:
                self._sent.add(there)
                self._tell(
                    "sent",
                    x,
                    node=target.name,
                    files=report.sent_files,
                    bytes=report.sent_bytes,
                    folder=folder,
                )
                self.post(ev.Staged(x, target.name, number))
                return

    def _stage_failed(self, x: str, target: Target, attempt: int, error: OrchestraError) -> None:
        self._errors[lead_of(x)[0]] = error
        self.post(ev.StageFailed(x, str(error), target.name, attempt))

    async def _unstage(
        self,
        execution: Execution,
        target: Target,
        folder: str | None,
        staging: asyncio.Task[None] | None,
    ) -> None:
        """Best effort: what was sent for nothing is taken away again, if the node can be reached."""
        if staging is not None:
            await asyncio.wait([staging])
        link, transfer = target.link, execution.spec.transfer
        if folder is None or link is None or transfer is None:
            return
        with contextlib.suppress(OrchestraError):
            await self._tidy(execution, target, link, folder)

    def _alone_in(self, execution: Execution, target: Target) -> contextlib.AbstractAsyncContextManager[None]:
        """Where folders are shared, nothing is sent to one while it is tidied."""
        transfer = execution.spec.transfer
        if transfer is None or _has_own_folder(execution, transfer):
            return contextlib.nullcontext()
        return self._folder_locks.setdefault((target.name, transfer.remote_folder), asyncio.Lock())

    def _is_shared(self, execution: Execution, target: Target) -> bool:
        """Whether another execution that is not over has the same folder on a node."""
        transfer, node = execution.spec.transfer, self.core.nodes.get(target.name)
        if transfer is None or node is None or _has_own_folder(execution, transfer):
            return False
        others = [self._find(x) for x in node.items if x != execution.id and x not in self._done_there]
        specs = [other.spec.transfer for other in others if other is not None]
        return any(spec is not None and spec.remote_folder == transfer.remote_folder for spec in specs)

    async def _tidy(self, execution: Execution, target: Target, link: AgentLink, folder: str) -> None:
        """Leave on a node what is to stay there. A folder that executions share is tidied by the last of them."""
        transfer = execution.spec.transfer
        assert transfer is not None
        async with self._alone_in(execution, target), self._conversations.hold(link) as stream:
            is_shared = self._is_shared(execution, target)
            item = self.core.items.get(execution.id)
            if is_shared and item is not None and item.state == "COLLECTING":
                self._done_there = {x for x in self._done_there if x in self.core.items} | {execution.id}
            if not is_shared:
                await tidy(stream, transfer, folder, target.directory, target.name)

    async def _collect(self, x: str, target: Target) -> None:
        """Bring home what an ended execution left: its output, then its results; then tidy up."""
        execution = self._find(x)
        if execution is None or target.link is None:
            return
        detail = self._details.setdefault(x, {})
        why = ""
        attempt = 0
        told = False
        while True:
            link = target.link
            if link is None:
                return  # Asked again when it is back.
            attempt += 1
            try:
                if detail.get("files") and not detail.get("is_here"):
                    await self._fetch_output(execution, target, detail)
                    detail["is_here"] = True
                    await self._note(execution, detail)
                if execution.spec.transfer is not None:
                    await self._fetch_results(execution, target, link, detail)
            except (TransferError, AgentError) as error:
                if target.link is not link or target.link is None:
                    return
                if error.retriable and attempt < TRANSFER_TRIES:
                    await asyncio.sleep(0.2 * attempt)
                    continue
                why = str(error)
            except StorageError as error:
                if error.is_full and self._waits_for_room:
                    # The node keeps it until there is.
                    if not told:
                        self._tell("trouble", x, why=f"{error}; goes on when there is room")
                    told = True
                    attempt -= 1
                    await asyncio.sleep(DISK_S)
                    continue
                why = str(error)
            except OrchestraError as error:
                why = str(error)
            break
        if why:
            self._tell("trouble", x, why=why)
            detail["collect_error"] = why
        elif not await self._see_to(execution, target, detail):
            return  # The next client does.
        elif detail.get("files") and not await self._drop(target, [(x, execution.attempt)]):
            return  # Asked again when the link is back.
        self.post(ev.Collected(x, why))

    async def _drop(self, target: Target, ids: list[tuple[str, int]]) -> bool:
        """Have a node remove output of its that nobody needs there any more; whether it has. Repeating it is harmless."""
        link = target.link
        if link is None:
            return False
        link.tell("drop", ids=ids)
        try:
            # Questions are answered in the order of things.
            await link.ask("status")
        except AgentError:
            return False
        return True

    async def _see_to(self, execution: Execution, target: Target, detail: dict[str, Any]) -> bool:
        """Have the post command of an execution run, if it has one; whether that is over."""
        item = self.core.items.get(execution.id)
        if not execution.spec.post or self._afterwards is None or item is None or item.ended is None:
            return True
        reason, code = item.ended
        while item.gang is not None and item.gang.awaited != {item.x}:
            # It is told of an execution of which everything is here.
            await self.turned()
        if item.gang is not None and item.gang.verdict is not None:
            reason, code, _why = item.gang.verdict
        state = verdict.final_state(reason, code)
        where = (execution.host, target.name)
        result = result_of(execution.id, state, reason, code, "", item.attempt, *where, detail)
        values = {
            "RUNAWAY_REMOTE": target.profile.name,
            "RUNAWAY_PATH": target.directory,
            "RUNAWAY_PWD": self._folders.get(execution.id, {}).get(target.name, ""),
        }
        told = False
        while True:
            try:
                more = await self._afterwards(execution, result, values)
                detail.update(more or {})
                return more is not None
            except StorageError as error:
                if not told:
                    self._tell("trouble", execution.id, why=f"{error}; goes on when there is room")
                told = True
                await asyncio.sleep(DISK_S)

    async def _fetch_output(self, execution: Execution, target: Target, detail: dict[str, Any]) -> None:
        if execution.sink is None:
            execution.sink = Sink(self._state_folder / "outputs" / execution.id)
        sink = execution.sink
        if execution.following is None or execution.following.done():
            execution.following = self._spawn(self._follow(execution, detail))
        await asyncio.wait([execution.following])
        sizes = {"out": detail.get("out_size", 0), "err": detail.get("err_size", 0)}
        if not execution.spec.tty and any(sink.offsets[name] < sizes[name] for name in sizes):
            raise TransferError(f"{execution.id}: its output did not come whole", retriable=True)
        for name in ("out", "err"):
            if sizes[name] <= RECORD_BYTES and sink.keep:
                detail[name] = sink.read(name, sizes[name]).decode("latin-1")
        detail["kept"] = sink.keep

    async def _fetch_results(
        self, execution: Execution, target: Target, link: AgentLink, detail: dict[str, Any]
    ) -> None:
        transfer = execution.spec.transfer
        assert transfer is not None
        folder = await self._resolve(execution, target, link)
        if transfer.fetch and "output_folder" not in detail:
            values = values_after(detail, folder, target.name)
            async with self._conversations.hold(link) as stream:
                where, report = await collect(
                    stream,
                    transfer,
                    folder,
                    target.directory,
                    target.name,
                    values,
                    self._progress("fetching", execution.id),
                )
            detail["output_folder"] = str(where)
            detail["fetched_files"] = report.files
            detail["refused"] = report.refused
            self._tell(
                "fetched",
                execution.id,
                files=report.files,
                bytes=report.bytes,
                folder=str(where),
                refused=report.refused,
            )
            await self._note(execution, detail)
        if transfer.leave != "everything":
            await self._tidy(execution, target, link, folder)
            self._tell("tidied", execution.id, node=target.name)

    async def _note(self, execution: Execution, detail: dict[str, Any]) -> None:
        """Results are here, and what is on the node goes next: on record first, so that nobody fetches from there again."""
        if execution.lead:
            detail = self._details[execution.lead]
        change = Change(execution.lead or execution.id, "collecting", record=record_of(detail, {}).decode())
        await self._writer.commit(Group(self.orchestration, time.time(), 0, NOTHING, changed=[change]))

    async def _follow(self, execution: Execution, detail: dict[str, Any] | None = None) -> None:
        """Bring output home as it is written, over as many links as it takes."""
        assert execution.sink is not None
        told = False
        while True:
            target = self.targets.get(execution.node)
            if target is None:
                return  # The node is gone for good, and what it had not told with it.
            await self._wait_link(target)
            link = target.link
            if link is None:
                continue
            if execution.verdict is not None and detail is None:
                return  # It was over before there was a link again: what is missing came with the verdict.
            ended = detail or self._details.get(execution.id)
            if ended is not None and "reason" in ended and not ended.get("files"):
                return  # The verdict itself carries what is still missing.
            final = None
            if ended is not None and ended.get("files") and not execution.spec.tty:
                final = {"out": ended.get("out_size", 0), "err": ended.get("err_size", 0)}
            try:
                if await follow(link, execution, final):
                    return
            except StorageError as error:
                # The node keeps it until there is room here.
                if not told:
                    self._tell("trouble", execution.id, why=f"{error}; goes on when there is room")
                told = True
                await asyncio.sleep(DISK_S)
            except (TransferError, AgentError) as error:
                if not error.retriable:
                    self._tell("trouble", execution.id, why=str(error))
                    return
                await asyncio.sleep(0.05)

    async def _finish_followed(self, execution: Execution) -> None:
        """The verdict is here; the last of the output may still be on its way."""
        sink, verdict = execution.sink, execution.verdict
        assert sink is not None and verdict is not None
        if execution.following is not None:
            await asyncio.wait([execution.following], timeout=LAST_OUTPUT_S)
            execution.following.cancel()
            await asyncio.wait([execution.following])
        try:
            sink.write("out", 0, verdict.stdout)
            sink.write("err", 0, verdict.stderr)
        except StorageError as error:
            self._tell("trouble", execution.id, why=str(error))
        whole = len(verdict.stdout) == verdict.stdout_bytes and len(verdict.stderr) == verdict.stderr_bytes
        if whole and not execution.spec.tty:
            sink.discard()
        elif sink.keep and not execution.spec.tty:
            out, err = await asyncio.to_thread(
                lambda: (sink.read("out", RESULT_BYTES), sink.read("err", RESULT_BYTES))
            )
            execution.verdict = msgspec.structs.replace(verdict, stdout=out, stderr=err)
        sink.close()
        self._finishing.pop(execution.id, None)
        self._settle(execution, None)
        self._look_idle()


def _has_own_folder(execution: Execution, transfer: Transfer) -> bool:
    """Whether no other execution can have the same folder on a node: its id is part of the name."""
    return (execution.lead or execution.id) in transfer.remote_folder
