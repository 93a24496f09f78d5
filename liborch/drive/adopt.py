"""Taking over an orchestration whose client is gone: killed, detached, or left on purpose.

The journal says everything that is needed: the events rebuild the core, the rows what the core does not know, the
details how to reach the host. From there on it is driven as if nothing had happened; the nodes say what they did meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from liborch.core import events as ev
from liborch.core.policy import Policy
from liborch.core.tables import EXECUTION_TRANSITIONS, FINAL
from liborch.drive.driver import Driver
from liborch.drive.execution import Execution
from liborch.drive.orders import spec_from_json
from liborch.drive.outputs import OnOutput, Sink
from liborch.drive.session import driving
from liborch.drive.targets import Target, granted, targets_of
from liborch.errors import JournalError, SpecError, UnknownName
from liborch.journal import ExecutionRow, Journal
from liborch.places import Places
from liborch.profiles.find import find_host
from liborch.specs import HostProfile

#: The journal's words for what the core knows and is not over.
_SUBMITTED = [state.lower() for state in EXECUTION_TRANSITIONS if state not in FINAL]
#: What runs somewhere is worth any number of tries to get there.
POLICY = Policy(first_attempts=1_000_000)


class Left(msgspec.Struct, frozen=True):
    """What a client left behind."""

    kind: str
    title: str
    state: str
    profiles: Sequence[HostProfile]
    #: Those it had before other ones were chosen.
    former: Sequence[HostProfile]
    ssh_config: str | None
    details: dict[str, Any]
    #: Payloads of its events, in order; empty when they were not asked for.
    groups: Sequence[bytes]
    #: Those that were submitted and are not final, in order of submission.
    rows: Sequence[ExecutionRow]
    #: Number of the first that is planned and not submitted; None: there is none.
    planned_from: int | None
    #: Highest number of an execution so far.
    count: int

    @property
    def targets(self) -> list[Target]:
        """The nodes of its hosts, and of those it had before: closed, since something may run there."""
        found = {target.name: target for profile in self.profiles for target in targets_of(profile)}
        for profile in self.former:
            for target in targets_of(profile):
                target.closed = target.name not in found
                found.setdefault(target.name, target)
        return list(found.values())

    def places(self, folders: Places) -> Places:
        """The person's files, with the ssh configuration that was in use at submission."""
        if self.ssh_config is None:
            return folders
        return folders._replace(ssh_config=Path(self.ssh_config))


@contextlib.asynccontextmanager
async def adopting(
    orchestration: str,
    folders: Places,
    *,
    on_output: Callable[[str], OnOutput | None] | None = None,
    profiles: Sequence[HostProfile] | None = None,
    **options: Any,
) -> AsyncIterator[Driver]:
    """Drive an orchestration again. Leaving lets what runs go on, unless `driver.detached` is set to False.

    Args:
        on_output: Says per execution who is given the output that is not in its outputs folder yet. Asked when the
            orchestration is ours and before anything moves, so what is in that folder can be printed first.
        profiles: Hosts to use from now on, instead of those it had; what runs on others comes to its end there.
        options: As for `driving`.

    Raises:
        Conflict: Another client drives it.
        UnknownName, JournalError, StorageError: It is not in the journal, or not as it should be.
    """
    known = await asyncio.to_thread(read_left, folders, orchestration, events=False)
    options = {"take_over": True, "policy": POLICY, **options}
    async with driving(orchestration, "", "", known.places(folders), **options) as driver:
        driver.detached = True
        driver.is_swept = known.state == "ended"
        if profiles is not None:
            await driver.ask_journal(lambda journal: _choose_anew(journal, orchestration, profiles))
        # Once more: only now nobody else writes there.
        left = await asyncio.to_thread(read_left, folders, orchestration)
        executions = [_execution(driver, row, folders, on_output) for row in left.rows]
        targets = left.targets
        driver.has_plan = left.planned_from is not None
        driver.targets.update({target.name: target for target in targets})
        for profile in (*left.former, *left.profiles):
            if profile.batch_system != "none":
                driver.know_frontend(profile)
        details = {row.id: json.loads(row.record) for row in left.rows if row.record}
        await driver.replay(left.groups, executions, details, left.count)
        for target in targets:
            driver.add(target)
        for profile in left.profiles:
            if profile.batch_system != "none":
                driver.add_host(profile)
        for item in list(driver.core.items.values()):
            if item.is_slot:
                # Whoever held it is gone, and with it the reason to keep the room.
                driver.post(ev.SlotAbandoned(item.x))
        yield driver


def read_left(folders: Places, orchestration: str, *, events: bool = True) -> Left:
    """Read what an orchestration's client left in the journal. Raises UnknownName, JournalError.

    Args:
        events: Also what rebuilds the core: of a large batch, seconds of reading.
    """
    with Journal.open(folders.journal, readonly=True) as journal:
        row = journal.orchestration(orchestration)
        if row is None:
            raise UnknownName("orchestration", orchestration)
        rows = journal.executions(orchestration, _SUBMITTED, live=True, newest_first=False)
        planned = journal.executions(orchestration, ["planned"], 1, live=True, newest_first=False)
        newest = journal.executions(orchestration, limit=1)
        details = _details(folders, row.details)
        return Left(
            kind=row.kind,
            state=row.state,
            title=row.title,
            profiles=_profiles(folders, details, rows[0].host if rows else ""),
            former=msgspec.convert(details.get("former", []), list[HostProfile]),
            ssh_config=details.get("ssh_config"),
            details=details,
            groups=[payload for _number, _at, payload in journal.groups(orchestration)] if events else [],
            rows=rows,
            planned_from=planned[0].number if planned else None,
            count=newest[0].number if newest else 0,
        )


def _choose_anew(journal: Journal, orchestration: str, profiles: Sequence[HostProfile]) -> None:
    """Note other hosts, before anything is given to them."""
    row = journal.orchestration(orchestration)
    if row is None:
        raise UnknownName("orchestration", orchestration)
    details = json.loads(row.details)
    chosen = msgspec.to_builtins(profiles)
    known = [*details.get("former", ()), *details.get("profiles", ())]
    former = [each for n, each in enumerate(known) if each not in chosen and each not in known[:n]]
    journal.describe(orchestration, json.dumps({**details, "profiles": chosen, "former": former}))


def _profiles(folders: Places, details: dict[str, Any], host: str) -> list[HostProfile]:
    """Those at submission. Raises UnknownName, ProfileError when they were not noted and are not there now."""
    noted = details.get("profiles")
    if noted:
        return msgspec.convert(noted, list[HostProfile])
    return [find_host(host, folders.profiles, folders.ssh_config)]


def target_of(left: Left, node: str | None) -> Target:
    """The node that an execution was on; the first one when that is not known.

    Raises SpecError: No node is known, since none was granted.
    """
    targets = left.targets
    found = next((target for target in targets if target.name == node), None)
    machine, _, allocation = (node or "").rpartition("/")
    clusters = [each for each in (*left.profiles, *left.former) if each.batch_system != "none"]
    if found is None and machine and clusters:
        return granted(node or "", machine, clusters[0], allocation, (0, 0, 0))
    if found is None and not targets:
        raise SpecError(f"it never was on a node of {clusters[0].name if clusters else 'its host'}")
    return found or targets[0]


def _execution(
    driver: Driver, row: ExecutionRow, folders: Places, on_output: Callable[[str], OnOutput | None] | None
) -> Execution:
    try:
        spec = spec_from_json(row.spec)
    except (msgspec.ValidationError, ValueError) as error:
        raise JournalError(
            str(folders.journal), f"the spec of {row.id} is of another version ({error})"
        ) from error
    execution = Execution(driver, row.id, row.host, spec)
    execution.submitted_at = row.submitted_at
    if row.started_at is not None:
        execution.began = (row.attempt or 1, row.started_at)
    told = on_output(row.id) if on_output is not None else None
    if spec.live or spec.tty or told is not None:
        execution.sink = Sink(folders.state / "outputs" / row.id, told)
    return execution


def _details(folders: Places, text: str) -> dict[str, Any]:
    try:
        details: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise JournalError(str(folders.journal), f"details that are no JSON ({error})") from error
    return details
