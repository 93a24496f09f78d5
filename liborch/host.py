"""Hosts as awaitables: the public API for programs that embed the library.

::

    async with liborch.open_host("gpu1") as host:
        async with host.slot(cpus=2) as slot:
            result = await slot.run(["python3", "train.py", "--lr", "0.1"])
        executions = [host.submit(["./evaluate", str(seed)]) for seed in range(100)]
        async for result in liborch.as_completed(executions):
            print(result.exit_code)

Everything goes through one orchestration per `open_host`: core, journal, agent. Leaving the block ends what still runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from liborch.core.policy import Policy
from liborch.drive.driver import Driver
from liborch.drive.execution import Execution
from liborch.drive.outputs import OnOutput
from liborch.drive.results import Result
from liborch.drive.session import details_of, driving
from liborch.errors import SpecError
from liborch.places import Places, places
from liborch.profiles.find import find_host
from liborch.specs import ExecutionSpec, HostProfile, Resources
from liborch.ssh import Limits


class Slot:
    """Room on a node, held until the `async with` block ends. Commands run in it one after the other or together."""

    def __init__(self, host: Host, x: str, node: str, resources: Resources) -> None:
        self._host = host
        self._id = x
        self.node = node
        self.resources = resources

    def __repr__(self) -> str:
        return f"<Slot on {self.node}: {self.resources.describe()}>"

    def submit(self, argv: Sequence[str], **options: Any) -> Execution:
        """Start a command in this slot; the options are those of `ExecutionSpec`."""
        spec = ExecutionSpec(argv=tuple(argv), **options)
        return self._host._driver.submit(str(uuid.uuid4()), spec, self._host.name, lease=self._id)

    async def run(self, argv: Sequence[str], **options: Any) -> Result:
        """Run a command here and return its Result; a failing command is a Result, not an exception.

        Cancelling ends the command: TERM, grace, KILL, on the node.

        Raises:
            WorldError: The slot was lost.
        """
        execution = self.submit(argv, **options)
        try:
            return await execution
        except asyncio.CancelledError:
            execution.cancel()
            raise


class Host:
    """A host that executions can be given to."""

    def __init__(self, name: str, profile: HostProfile, driver: Driver) -> None:
        self.name = name
        self.profile = profile
        self._driver = driver

    def __repr__(self) -> str:
        return f"<Host {self.name}: {len(self._driver.executions)} executions>"

    def submit(
        self,
        spec: ExecutionSpec | Sequence[str],
        *,
        on_output: OnOutput | None = None,
        batch: str = "",
        **options: Any,
    ) -> Execution:
        """Give an execution to the host; returns at once. Await the Execution for its Result.

        Args:
            spec: An ExecutionSpec, or just the command and its arguments.
            on_output: Called with ("out" or "err", bytes) as output is written; asks for `live`.
            batch: Batches share the host fairly.
            options: Fields of ExecutionSpec, with a plain command.
        """
        if not isinstance(spec, ExecutionSpec):
            if isinstance(spec, str | bytes):
                raise SpecError(f"a command is a list of words, not {spec!r}; for a shell: ['sh', '-c', ...]")
            if on_output is not None:
                options["live"] = True
            spec = ExecutionSpec(argv=tuple(spec), **options)
        elif options:
            raise SpecError("options go into the ExecutionSpec")
        return self._driver.submit(str(uuid.uuid4()), spec, self.name, batch=batch, on_output=on_output)

    @contextlib.asynccontextmanager
    async def slot(
        self, cpus: int | None = None, *, memory_bytes: int = 0, gpus: float = 0, numa: int | None = None
    ) -> AsyncIterator[Slot]:
        """Wait for room on a node and hold it. Cancelling the wait, at any moment, gives it back.

        Raises:
            SpecError: More than any node has.
            WorldError: The host cannot be used.
        """
        resources = Resources(cpus, memory_bytes, gpus, numa)
        x = str(uuid.uuid4())
        spec = ExecutionSpec(argv=("slot",), resources=resources)
        node = await self._driver.hold(x, spec, self.name)
        try:
            yield Slot(self, x, node, resources)
        finally:
            self._driver.abandon(x)

    def explain(self, execution: Execution) -> list[str]:
        """Why an execution waits, condition by condition."""
        return execution.explain()


@contextlib.asynccontextmanager
async def open_host(
    name: str | HostProfile,
    *,
    environment: Mapping[str, str] | None = None,
    where: Places | None = None,
    policy: Policy | None = None,
    limits: Limits | None = None,
    accept_new: bool = False,
    title: str = "",
    **options: Any,
) -> AsyncIterator[Host]:
    """Open a host: `local`, an SSH alias, user@name:port, or a profile's name.

    The link is opened with the first request. Leaving the block, also by an exception or a cancellation, ends what still runs.

    Args:
        environment: Instead of os.environ, for finding profiles and files.
        where: The same, ready-made.
        policy: Retries of links and so on.
        limits: What is asked of SSH servers at most, and how soon a silent link is given up.
        accept_new: Take an unknown host key on trust and remember it.
        options: Of the driver, such as a listener.

    Raises:
        UnknownName, ProfileError: No such host.
        JournalError, StorageError: The journal cannot be used.
    """
    folders = where or places(environment)
    profile = name if isinstance(name, HostProfile) else find_host(name, folders.profiles, folders.ssh_config)
    orchestration = str(uuid.uuid4())
    async with driving(
        orchestration,
        "api",
        title or f"host {profile.name}",
        folders,
        details=details_of([profile], folders),
        policy=policy,
        limits=limits,
        accept_new=accept_new,
        **options,
    ) as driver:
        driver.add_host(profile)
        yield Host(profile.name, profile, driver)


async def as_completed(executions: Iterable[Execution]) -> AsyncIterator[Result]:
    """Yield Results as executions end, the first to end first. Cancelling, or leaving the loop, leaves the others running.

    Raises:
        WorldError, SpecError: As `Execution.wait`, in place of the Result of one that could not be run at all.
    """
    waiting = {asyncio.ensure_future(execution.wait()) for execution in executions}
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
