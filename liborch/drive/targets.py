"""One node as the driver reaches it: how to open its link, what it was told, what it answered."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from liborch.agent.pack import agent_hash
from liborch.drive import bootstrap
from liborch.drive.bootstrap import Pipe
from liborch.drive.holders import awaiting, grants_part
from liborch.drive.link import AgentLink, FrameLink
from liborch.errors import AgentError, OrchestraError, SpecError
from liborch.quantities import shares_of
from liborch.specs import HostProfile, SlotSpec
from liborch.ssh import Pool


@dataclass
class Target:
    """A node of a host."""

    name: str
    #: SSH alias or user@name:port; "local": this machine.
    ssh: str
    profile: HostProfile
    capacity: dict[str, int] = field(default_factory=dict)
    #: What of it may be used.
    slots: SlotSpec = field(default_factory=SlotSpec)
    link: AgentLink | None = None
    #: The host's directory, as it expanded it.
    directory: str = ""
    state_id: str = ""
    #: Wall-clock time from which on it could not be reached, through however many tries, and why; None: it can, or nobody tried.
    down_since: float | None = None
    down_why: str = ""
    #: Why it cannot be used, as the exception it was.
    error: OrchestraError | None = None
    #: The last of its events that is on record.
    acked: int = 0
    #: The last that the agent was told is on record, and when.
    told: int = 0
    told_at: float = 0.0
    #: The last that was received.
    received: int = 0
    #: Why the node is worked through plain sh; "": it has a python3, as far as is known.
    #: It stays so for this client: what runs there is known to the fallback alone.
    fallback: str = ""
    #: The state folder in which executions of ours are not over yet, by its id; "": none is.
    wanted: str = ""
    #: Whether the person was told what cannot be done there.
    told_limits: bool = False
    #: Not chosen any more: what runs there comes to its end, nothing new is given to it.
    closed: bool = False
    #: What its host calls it, for people and executions; "": its name.
    machine: str = ""
    #: The batch system's word for what granted it, which has an agent of its own there; "": the node's agent serves it.
    allocation: str = ""
    #: Makes of a command line for its shell one for the shell of `ssh`, which is its frontend; None: `ssh` is the node.
    enter: Callable[[str], str] | None = None
    #: sh that goes before what starts its agent.
    before_link: str = ""
    #: What has to be done on it before its agent is started.
    prepare: Callable[[], Awaitable[None]] | None = None
    #: What its slots are called, the variables that executions there begin with, and the folder; by a profile's procedures.
    handles: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    start_folder: str = ""

    def __repr__(self) -> str:
        return f"<Target {self.name}: {'linked' if self.link is not None else 'no link'}>"

    @property
    def is_behind(self) -> bool:
        """Whether it is reached by ssh through its host's frontend, unless the ssh configuration knows better."""
        return bool(self.machine) and self.enter is None and self.profile.ssh != "local"

    async def open(self, pool: Pool) -> AgentLink:
        """Open the link. Cancelled: nothing stays open.

        Raises:
            HostUnreachable, HostKeyUnknown, HostKeyChanged, AuthenticationRefused, AgentError, StorageError, ProcedureError.
        """
        if self.prepare is not None:
            await self.prepare()
        link = await self._open_once(pool)
        theirs = link.hello.get("hash")
        # The agent of an allocation was begun by its holder, and would be again: another cannot take its place.
        if theirs and theirs != agent_hash() and self.enter is None:
            # Another version serves this node. Idle, it makes room; with work, it is simply used: it speaks our protocol.
            try:
                reply = await link.ask("retire")
            except AgentError:
                reply = {}
            if reply.get("yes"):
                await link.close()
                link = await self._open_once(pool)
        return link

    async def _open_once(self, pool: Pool) -> AgentLink:
        if self.ssh == "local" and self.enter is None:
            from liborch.drive.local import open_local_pipe

            link = FrameLink(self.name, await open_local_pipe())
            await link.start()
            return link
        if not self.fallback:
            try:
                return await self._open_agent(pool)
            except bootstrap.NoPython as error:
                why = f"{error.why} ({error.detail})" if error.detail else error.why
                if self.enter is not None:
                    raise AgentError(
                        self.name, f"{why}; nodes that are not reached by ssh need one"
                    ) from error
            try:
                return await self._open_agent(pool, living=True)
            except bootstrap.NoPython:
                pass
            except bootstrap.AgentStuck:
                if self.wanted:
                    raise
            self.fallback = why
        from liborch.drive.shell import PoolShell
        from liborch.drive.shell_link import ShellLink

        shell = ShellLink(self.name, PoolShell(pool, self.ssh))
        await shell.start(self.fallback)
        return shell

    async def _open_line(self, pool: Pool, line: str) -> Pipe:
        if self.ssh != "local":
            return await pool.open_channel(self.ssh, line)
        from liborch.drive.local import open_local_command

        return await open_local_command(line)

    async def _open_agent(self, pool: Pool, *, living: bool = False) -> FrameLink:
        marker = bootstrap.new_marker()
        line = bootstrap.command(
            marker, self.wanted, living=living, allocation=self.allocation,
            is_part=bool(self.allocation) and grants_part(self.profile),
        )  # fmt: skip
        if self.enter is not None:
            line = self.enter(self.before_link + line)
        channel = await self._open_line(pool, line)
        try:
            first = await bootstrap.start(self.name, channel, marker)
        except BaseException:
            channel.close()
            raise
        link = FrameLink(self.name, channel)
        try:
            await link.start(first)
        except bootstrap.NoPython as error:
            if living:
                raise bootstrap.AgentStuck(
                    self.name, error.why, detail=error.detail, retriable=True
                ) from error
            raise
        return link


def room_of(target: Target, room: dict[str, Any]) -> tuple[int, int, int]:
    """What may be used of the room that a node's agent told of: (cores, bytes of memory, GPUs).

    Raises:
        SpecError: What was asked for by name is not there.
    """
    if target.closed:
        return 0, 0, 0
    slots = target.slots
    cpus, gpus = int(room["cpus"]), list(room["gpus"])
    if (slots.numa is not None or slots.gpu_ids) and target.fallback:
        raise SpecError(f"{target.name} has no python3, without which NUMA nodes and GPUs cannot be chosen")
    if slots.numa is not None:
        sizes = room.get("numa") or []
        if slots.numa >= len(sizes):
            raise SpecError(f"{target.name} has no NUMA node {slots.numa}; it has {len(sizes)}, from 0")
        if slots.count is None:
            cpus = min(cpus, sizes[slots.numa])
    if slots.gpu_ids:
        for each in slots.gpu_ids:
            if each not in gpus and not (each.isdigit() and int(each) < len(gpus)):
                raise SpecError(f"{target.name} has no GPU {each}; it has {', '.join(gpus) or 'none'}")
        gpus = list({gpus[int(each)] if each.isdigit() else each for each in slots.gpu_ids})
    return cpus, int(room["memory_bytes"]), len(gpus)


def gpus_of(slots: SlotSpec) -> int:
    """GPUs that the slots of a profile take together; 0: it does not say."""
    if not slots.count or not slots.gpus:
        return 0
    if slots.gpus >= 1:
        return slots.count * int(slots.gpus)
    return -(-slots.count // shares_of(slots.gpus))


def capacity_of(slots: SlotSpec) -> dict[str, int]:
    """What a profile says of a node's room, in the agent's terms; empty: what the node finds itself."""
    capacity: dict[str, int] = {}
    if slots.count is not None:
        capacity["cpus"] = slots.count * (slots.cpus or 1)
        if slots.memory_bytes:
            capacity["memory_bytes"] = slots.count * slots.memory_bytes
    return capacity


def targets_of(profile: HostProfile) -> list[Target]:
    """The nodes of a host without a batch system; those of another are granted by it, see `granted`."""
    if profile.batch_system != "none":
        return []
    if not profile.nodes:
        return [_target(profile.name, profile.ssh, profile, profile.slots)]
    return [_target(node.ssh, node.ssh, profile, node.slots or profile.slots) for node in profile.nodes]


def entries_of(profile: HostProfile) -> list[Target]:
    """Where people log in: the nodes, or the frontend of a batch system."""
    return targets_of(profile) or [_target(profile.name, profile.ssh, profile, profile.slots)]


def granted(
    name: str,
    machine: str,
    profile: HostProfile,
    allocation: str,
    room: tuple[int, int, int],
) -> Target:
    """A node that a batch system granted.

    Args:
        name: What the core calls it.
        machine: What the batch system calls it.
        allocation: The batch system's id of the allocation.
        room: Cores, bytes of memory and GPUs on it that are ours; 0: as the node itself finds.
    """
    capacity = capacity_of(profile.slots)
    if "cpus" not in capacity and room[0]:
        capacity["cpus"] = room[0]
        if room[1]:
            capacity["memory_bytes"] = room[1]
    if room[2]:
        capacity["gpus"] = room[2]
    target = Target(name, machine, profile, capacity, profile.slots, machine=machine)
    if profile.batch_system != "procedures":
        # The same in every word for it: "12;cluster" is 12 on its nodes.
        target.allocation = allocation.partition(";")[0]
    if profile.connect == "batch_system":
        from liborch.batch_systems.names import named

        system = named(profile.batch_system)
        target.ssh = profile.ssh
        target.enter = lambda line: shlex.join(system.enter(allocation, machine, ("/bin/sh", "-c", line)))
        target.before_link = awaiting(profile, allocation)
    return target


def _target(name: str, ssh: str, profile: HostProfile, slots: SlotSpec) -> Target:
    return Target(name, ssh, profile, capacity_of(slots), slots)
