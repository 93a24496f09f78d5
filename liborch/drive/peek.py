"""Looking at a host without driving anything there: an execution's output, its folder, the agent itself.

Each call opens its own link and closes it again. The owner of an execution is not disturbed, and need not be there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from liborch.drive.link import AgentLink, FrameLink
from liborch.drive.orders import remote_folder
from liborch.drive.outputs import OnOutput
from liborch.drive.procedures import proxies_of
from liborch.drive.targets import Target
from liborch.drive.transfers import collect, tidy, values_after
from liborch.errors import AgentError, SpecError, TransferError
from liborch.places import Places
from liborch.specs import ExecutionSpec, Transfer
from liborch.ssh import Pool
from liborch.transfer.fetch import FetchReport
from liborch.transfer.send import Progress

#: An agent that was asked to leave is gone after this, in seconds, or does not go.
LEAVE_S = 10.0


@contextlib.asynccontextmanager
async def linked(target: Target, folders: Places, *, accept_new: bool = False) -> AsyncIterator[AgentLink]:
    """Hold a link to a node's agent, which is started where there is none.

    Raises:
        HostUnreachable, HostKeyUnknown, HostKeyChanged, AuthenticationRefused, AgentError, StorageError.
    """
    config = str(folders.ssh_config) if folders.ssh_config is not None else None
    pool = Pool(config_file=config, accept_new=accept_new)
    if target.is_behind:
        pool.behind[target.ssh] = target.profile.ssh
        pool.proxies.update(proxies_of(target))
    try:
        link = await target.open(pool)
        try:
            reply = await link.ask("expand", texts=[target.profile.directory])
            target.directory = str(reply["texts"][0])
            yield link
        finally:
            await link.close()
            if isinstance(link, FrameLink):
                await link.wait_closed()
    finally:
        await pool.close()


async def read_output(
    link: AgentLink,
    owner: str,
    x: str,
    attempt: int,
    offsets: dict[str, int],
    on_output: OnOutput,
    *,
    wait: bool,
) -> None:
    """Pass an execution's output on, from `offsets`: what there is, or with `wait` all there will be.

    Raises:
        TransferError: The link broke, or the output is not there any more.
    """
    stream = link.open_stream("output", x=x, a=attempt, owner=owner, now=not wait, **offsets)
    try:
        while True:
            head, body = await stream.receive()
            if head["t"] == "data":
                # In a thread: who reads slowly, or from a pipe, may hold up itself only.
                await asyncio.to_thread(on_output, str(head["s"]), body)
                offsets[str(head["s"])] = int(head["at"]) + len(body)
            elif head["t"] == "error":
                raise TransferError(str(head.get("why", "")))
            elif head["t"] == "end":
                return
    finally:
        await stream.close()


async def fetch_again(
    link: AgentLink,
    target: Target,
    spec: ExecutionSpec,
    detail: dict[str, Any],
    output_folder: str | None,
    progress: Progress | None,
) -> tuple[Path, FetchReport]:
    """Bring what an execution left in its folder on the host; nothing is removed there.

    Args:
        output_folder: Instead of the one given at submission.

    Raises:
        SpecError: It has no folder. TransferError: Nothing is there any more, or the link broke.
    """
    transfer = _transfer(spec)
    if output_folder is not None:
        transfer = _into(transfer, output_folder)
    folder = await folder_of(link, target, transfer)
    stream = link.open_stream("transfer")
    try:
        values = values_after(detail, folder, target.name)
        return await collect(stream, transfer, folder, target.directory, target.name, values, progress)
    finally:
        await stream.close()


async def remove_folder(link: AgentLink, target: Target, spec: ExecutionSpec) -> int:
    """Take away what an execution left in its folder on the host; returns how many entries. Others' files stay.

    Raises:
        SpecError: It has no folder. TransferError, StorageError.
    """
    transfer = _transfer(spec)
    folder = await folder_of(link, target, transfer)
    stream = link.open_stream("transfer")
    try:
        report = await tidy(stream, _leave_nothing(transfer), folder, target.directory, target.name)
    finally:
        await stream.close()
    return report.removed


async def folder_of(link: AgentLink, target: Target, transfer: Transfer) -> str:
    """An execution's folder on the host, as the host expands it."""
    reply = await link.ask("expand", texts=[remote_folder(transfer, target.directory)])
    return str(reply["texts"][0])


async def retire(link: AgentLink) -> bool:
    """Ask the agent to end; returns whether it does: it has nothing to do. On return its processes let go of us."""
    try:
        reply = await link.ask("retire")
    except AgentError:
        return True  # It went before it said so.
    return bool(reply.get("yes"))


def _transfer(spec: ExecutionSpec) -> Transfer:
    if spec.transfer is None:
        raise SpecError("nothing was sent with it, so it left no folder on the host")
    return spec.transfer


def _into(transfer: Transfer, folder: str) -> Transfer:
    return msgspec.structs.replace(transfer, output_folder=folder)


def _leave_nothing(transfer: Transfer) -> Transfer:
    return msgspec.structs.replace(transfer, leave="nothing")
