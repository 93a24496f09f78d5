"""`alloc`, `allocs` and `release`: asking for nodes to keep, listing what there is, giving it back.

An allocation that `alloc` asked for is an orchestration of its own (kind "alloc"), so a submission that nobody knows the outcome
of is looked up before it is made again. After that the batch system alone holds it; `allocations.py` finds it there.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import msgspec

from liborch import patterns
from liborch.batch_systems.base import Request
from liborch.core.things import Allocation
from liborch.drive.driver import HELD, Driver
from liborch.drive.holders import holder_script
from liborch.drive.queues import end, system_of
from liborch.drive.session import details_of, driving
from liborch.errors import SpecError, UnknownName, WorldError
from liborch.journal import Journal, OrchestrationRow
from liborch.names import nearest
from liborch.places import Places, places
from liborch.plain_text import neutral
from liborch.profiles.find import find_host
from liborch.quantities import format_duration
from liborch.specs import AllocationSpec, HostProfile
from runaway.allocations import HEAD, Answers, Found, ask_all, clusters, pick, pooled
from runaway.messages import Messages
from runaway.patience import said_if_slow
from runaway.records import SCHEMA_VERSION, Records
from runaway.seeing import narrate_cluster
from runaway.tables import columns

#: What the script of an allocation may carry; nobody wants to read it.
_AGENT = re.compile(r"(?<=<<'orch-agent'\n)[A-Za-z0-9+/=\n]+(?=\norch-agent\n)")


@dataclass(frozen=True)
class Wish:
    """What `runaway alloc` was told; the names are those of its options."""

    host: str
    nodes: int | None
    walltime: float | None
    options: tuple[str, ...]
    detach: bool
    dry_run: bool
    as_json: bool
    accept_new: bool
    verbose: bool
    silent: bool


async def allocate(wish: Wish) -> int:
    """Do what `runaway alloc` says; returns the exit status. Cancelled: the allocation is given back. Raises OrchestraError."""
    task = asyncio.current_task()
    assert task is not None
    # Also where whoever started us had it ignored, as scripts do with what they put into the background.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
    environment = dict(os.environ)
    folders = places(environment)
    profile = _as_wished(find_host(wish.host, folders.profiles, folders.ssh_config), wish)
    _refuse_misspelt(profile, folders)
    system = system_of(profile)
    spec = profile.allocation
    assert spec is not None
    if wish.dry_run:
        token = f"{'0' * 12}{HELD}"
        script = holder_script(profile)
        command = system.submit(Request(token, spec.nodes, spec.walltime_s, spec.options, script=script))
        _show_command(profile, command.argv, command.stdin, as_json=wish.as_json)
        return 0
    messages = Messages(environment, quiet=wish.silent, verbose=wish.verbose)
    orchestration = str(uuid.uuid4())
    refused: list[str] = []

    def listener(what: str, _x: str, fields: dict[str, Any]) -> None:
        if what != "refused":
            narrate_cluster(messages, what, fields)
        elif fields["why"] not in refused:
            # It is asked for again, and refused again, for as long as it takes: said once.
            refused.append(fields["why"])
            narrate_cluster(messages, what, fields)

    lasts = f" for {format_duration(spec.walltime_s)}" if spec.walltime_s is not None else ""
    title = f"{spec.nodes} node{'s' if spec.nodes > 1 else ''} of {profile.name}{lasts}"
    async with driving(
        orchestration, "alloc", title, folders, details=details_of([profile], folders),
        accept_new=wish.accept_new, listener=listener,
        variables=patterns.caller_variables(environment, env_read=True),
    ) as driver:  # fmt: skip
        driver.add_host(profile)
        driver.hold_nodes(profile)
        allocation = await _come(driver, profile, {"QUEUED", "ACTIVE"})
        await _note(driver, profile, folders, allocation)
        if not wish.detach:
            allocation = await _come(driver, profile, {"ACTIVE"})
        driver.detached = True
        _show(profile, orchestration, allocation, driver.now(), as_json=wish.as_json)
        if allocation.state == "ACTIVE":
            messages.stage(f"use it: runaway exec --alloc {allocation.id} {profile.name} ...")
        messages.stage(f"give it back: runaway release {allocation.id}")
    return 0


def _refuse_misspelt(profile: HostProfile, folders: Places) -> None:
    """Any word may be a host of ssh's: one that is almost the name of a cluster is not meant so. Raises UnknownName."""
    if profile.batch_system == "none" and not profile.source:
        near = nearest(profile.name, [each.name for each in clusters(folders)])
        if near:
            raise UnknownName("host with a batch system", profile.name, near)


def _as_wished(profile: HostProfile, wish: Wish) -> HostProfile:
    """The profile with the allocation that is wished for. Raises SpecError where it is not the profile's to say."""
    if profile.batch_system == "procedures" and (wish.nodes or wish.walltime or wish.options):
        raise SpecError(
            f"{profile.name}: its start_allocation alone says what is asked for; leave -N, -t and options behind -- away"
        )
    spec = profile.allocation or AllocationSpec()
    nodes = wish.nodes or spec.nodes
    spec = msgspec.structs.replace(
        spec,
        nodes=nodes,
        least=nodes,
        walltime_s=wish.walltime or spec.walltime_s,
        options=(*spec.options, *wish.options),
    )
    return msgspec.structs.replace(profile, allocation=spec)


async def _come(driver: Driver, profile: HostProfile, states: set[str]) -> Allocation:
    """The allocation, once it is in one of these states. Raises SpecError, WorldError when it never will be."""
    began = False
    while True:
        await driver.turned()
        allocation = driver.core.allocations.get(HELD)
        if allocation is not None:
            began = True
            if allocation.state in states and allocation.id:
                return allocation
            continue
        cluster = driver.core.clusters.get(profile.name)
        if cluster is None or HELD in driver.core.held_later:
            continue
        if began or cluster.is_refused:
            error = driver.frontends[profile.name].error
            if error is not None:
                raise error
            raise WorldError(cluster.why or f"{profile.name}: the allocation was over before it began")


async def _note(driver: Driver, profile: HostProfile, folders: Places, allocation: Allocation) -> None:
    """Write down what later commands know it by."""
    noted = {"id": allocation.id, "nodes": allocation.node_count, "walltime_s": allocation.walltime_s}
    details = details_of([profile], folders, allocation=noted)
    await driver.ask_journal(lambda journal: journal.describe(driver.orchestration, details))


def _show(
    profile: HostProfile, orchestration: str, allocation: Allocation, now: float, *, as_json: bool
) -> None:
    if not as_json:
        click.echo(allocation.id)
        return
    is_active = allocation.state == "ACTIVE"
    value = {
        "schema_version": SCHEMA_VERSION,
        "host": profile.name,
        "id": allocation.id,
        "state": allocation.state.lower(),
        "why": allocation.why or None,
        "nodes": [node.machine for node in allocation.nodes],
        "node_count": allocation.node_count,
        "left_s": allocation.deadline - now if is_active and allocation.deadline < float("inf") else None,
        "orchestration": orchestration,
    }
    click.echo(json.dumps(value))


def _show_command(profile: HostProfile, argv: Sequence[str], stdin: bytes, *, as_json: bool) -> None:
    script = _AGENT.sub("... the agent ...", stdin.decode("utf-8", "replace"))
    if as_json:
        value = {
            "schema_version": SCHEMA_VERSION,
            "host": profile.name,
            "frontend": profile.ssh,
            "argv": list(argv),
            "stdin": script,
        }
        click.echo(json.dumps(value))
        return
    click.echo(neutral(f"on {profile.ssh}: {' '.join(argv)}"))
    for line in script.splitlines():
        click.echo(neutral(f"  {line}"))


# ---------------------------------------------------------------------- listing and releasing


async def list_allocations(hosts: Sequence[str], *, as_json: bool, accept_new: bool) -> int:
    """Print what batch systems tell; returns the exit status, 255 when one of them did not answer. Raises OrchestraError."""
    folders = places(dict(os.environ))
    profiles = _profiles(hosts, folders)
    async with pooled(folders, accept_new=accept_new) as pool:
        records = Records(folders)
        answers = await ask_all(profiles, pool, records)
    _note_gone(folders, records, profiles, answers)
    if as_json:
        for each in answers.found:
            click.echo(json.dumps(each.as_dict()))
    elif answers.found:
        for line in columns(HEAD, [each.as_row() for each in answers.found]):
            click.echo(line)
    elif not answers.errors:
        names = ", ".join(profile.name for profile in profiles)
        click.echo(neutral(f"no allocations of yours on {names}" if names else _NO_CLUSTER), err=True)
    return _say_errors(answers, profiles)


_NO_CLUSTER = (
    "no profile has a batch system: say `batch_system: slurm` (or another) in one, see docs/clusters.md"
)


def _profiles(hosts: Sequence[str], folders: Places) -> list[HostProfile]:
    if not hosts:
        return clusters(folders)
    found = [find_host(name, folders.profiles, folders.ssh_config) for name in dict.fromkeys(hosts)]
    for profile in found:
        system_of(profile)
    return found


def _say_errors(answers: Answers, profiles: Sequence[HostProfile]) -> int:
    if answers.errors and len(profiles) == 1:
        raise answers.errors[0]
    for error in answers.errors:
        click.echo(neutral(f"{type(error).__name__}: {error}"), err=True)
    return 255 if answers.errors else 0


async def release(
    texts: Sequence[str], hosts: Sequence[str], *, dry_run: bool, as_json: bool, accept_new: bool
) -> int:
    """End allocations, all of ours when none is named; returns the exit status. Raises OrchestraError."""
    folders = places(dict(os.environ))
    profiles = _profiles(hosts, folders)
    records = Records(folders)
    status = 0
    async with pooled(folders, accept_new=accept_new) as pool:
        answers = await ask_all(profiles, pool, records)
        if not texts or not answers.found:
            status = _say_errors(answers, profiles)
        if texts and not profiles:
            raise SpecError(_NO_CLUSTER)
        chosen = (
            list({id(each): each for each in (pick(text, answers.found) for text in texts)}.values())
            if texts
            else answers.found
        )
        if not chosen and not as_json:
            click.echo("no allocations of yours: nothing to give back", err=True)
        for profile in profiles:
            mine = [each for each in chosen if each.profile is profile]
            if not mine:
                continue
            with said_if_slow(f"waiting until they are over on {profile.name}"):
                left = [] if dry_run else await end(profile, pool, [each.id for each in mine])
            for each in mine:
                status = max(status, 255 if each.id in left else 0)
                _say_released(each, is_left=each.id in left, dry_run=dry_run, as_json=as_json)
            if not dry_run:
                _note_ends(folders, [each for each in mine if each.id not in left])
    return status


def _say_released(found: Found, *, is_left: bool, dry_run: bool, as_json: bool) -> None:
    if as_json:
        click.echo(
            json.dumps({**found.as_dict(), "released": not is_left and not dry_run, "at": time.time()})
        )
        return
    name = f"allocation {found.id} of {found.profile.name}"
    users = f", used by {', '.join(each[:8] for each in found.users)}" if found.users else ""
    if dry_run:
        click.echo(neutral(f"would end {name} ({found.sight.state}, {found.purpose}{users})"))
    elif is_left:
        text = f"{name} was asked to end and is still there: look with `runaway allocs {found.profile.name}`"
        click.echo(neutral(text), err=True)
    else:
        click.echo(neutral(f"{name} is over"))


def _note_ends(folders: Places, ended: Sequence[Found]) -> None:
    """What was held is not any more. Who drives one that is still asked for notes it itself."""
    held = [each.maker.id for each in ended if each.is_held and each.maker is not None and not each.is_driven]
    if held:
        with Journal.open(folders.journal) as journal:
            for orchestration in held:
                journal.end(orchestration, "ended")


def _note_gone(folders: Places, records: Records, profiles: Sequence[HostProfile], answers: Answers) -> None:
    """What was held and is not there any more is over: its time was, or somebody ended it elsewhere."""
    if answers.errors:
        return
    asked = {profile.name for profile in profiles}
    there = {each.maker.id for each in answers.found if each.maker is not None}
    gone = [
        row.id
        for row in records.journal.orchestrations(kind="alloc")
        if row.state == "left" and row.id not in there and set(_hosts_of(row)) <= asked
    ]
    if gone:
        with Journal.open(folders.journal) as journal:
            for orchestration in gone:
                journal.end(orchestration, "ended")


def _hosts_of(row: OrchestrationRow) -> list[str]:
    return [each["name"] for each in json.loads(row.details).get("profiles", ())]
