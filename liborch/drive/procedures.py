"""Nodes that a profile's own shell procedures granted: made ready before their link is opened.

What start_allocation left on the frontend (variables, working directory) goes to each node, where get_node_handles says
how many slots there are and what they are called; what that leaves goes on to the executions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from liborch.batch_systems.base import BatchSystem, Unclear
from liborch.batch_systems.names import named
from liborch.batch_systems.procedures import Procedures
from liborch.drive.frontend_commands import run_over_ssh
from liborch.errors import AgentError
from liborch.specs import HostProfile
from liborch.specs import Procedures as Commands
from liborch.ssh import Pool

if TYPE_CHECKING:
    from liborch.drive.allocating import Frontend
    from liborch.drive.targets import Target


def system_of(profile: HostProfile, variables: Mapping[str, str]) -> BatchSystem:
    """The batch system of a profile.

    Args:
        variables: RUNAWAY* variables of the caller, for start_allocation.

    Raises:
        UnknownName: There is none of that name.
        SpecError: A variable cannot travel.
    """
    if profile.batch_system != "procedures":
        return named(profile.batch_system)
    own = {"RUNAWAY_REMOTE": profile.name, **variables}
    return Procedures(profile.procedures or Commands(), own)


def proxies_of(target: Target) -> dict[str, str]:
    """{machine: command for ssh's ProxyCommand}; empty: it is reached as any other. Raises ProcedureError for a name that is none."""
    profile = target.profile
    if profile.batch_system != "procedures" or not target.machine:
        return {}
    proxy = Procedures(profile.procedures or Commands(), {}).proxycommand(target.machine)
    return {target.machine: proxy} if proxy else {}


async def prepare(target: Target, frontend: Frontend, allocation: str, pool: Pool) -> None:
    """Run get_node_handles on a node, and note its slots, variables and folder.

    Raises:
        HostUnreachable, ...: As any connection.
        ProcedureError: It failed, or set no RUNAWAY_HANDLES.
        AgentError: What it said is not understood, or the frontend did not say what start_allocation left; retriable.
    """
    system = frontend.system
    assert isinstance(system, Procedures)
    left = system.parse_outcome(await frontend.run(system.outcome(allocation)))
    if isinstance(left, Unclear):
        raise AgentError(target.name, left.why, retriable=True)
    said = await run_over_ssh(target.ssh, pool, system.handles(left, target.machine))
    handles = system.parse_handles(said)
    if isinstance(handles, Unclear):
        raise AgentError(target.name, handles.why, retriable=True)
    target.handles = handles.words
    target.capacity = {**target.capacity, "cpus": len(handles.words)}
    target.variables = handles.outcome.variables
    target.start_folder = handles.outcome.folder
