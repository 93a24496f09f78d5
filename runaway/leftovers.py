"""What ended executions leave: folders on hosts, records and outputs here. `fetch` brings it, `clean` removes it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from liborch.drive.link import AgentLink
from liborch.errors import Conflict, OrchestraError, SpecError, UnknownName
from liborch.journal import DriverLock, ExecutionRow, Journal
from liborch.plain_text import neutral
from liborch.specs import ExecutionSpec
from runaway.background import log_path
from runaway.messages import Messages
from runaway.records import FINAL, SCHEMA_VERSION, Records, detail_of

#: An agent that agreed to leave is gone after this, in seconds.
GONE_S = 10.0


def left_on_host(row: ExecutionRow) -> str:
    """What of an ended execution is still on its host: "results", "code" or ""."""
    spec = json.loads(row.spec)
    transfer = spec.get("transfer")
    if not transfer or row.node is None:
        return ""
    if transfer.get("leave") == "everything" or row.state == "lost" or detail_of(row).get("collect_error"):
        return "results"
    return "code" if transfer.get("leave") == "code" else ""


def was_fetched(row: ExecutionRow) -> bool:
    """Whether its results are on this machine."""
    return bool(detail_of(row).get("output_folder"))


def fetch(text: str, *, output_folder: str | None, as_json: bool, quiet: bool) -> int:
    """Fetch results; returns the exit status. Raises OrchestraError."""
    records = Records()
    messages = Messages(dict(os.environ), quiet=quiet)
    row = records.find(text)
    if row.state not in FINAL:
        raise SpecError(
            f"{row.id[:8]} has not ended ({row.state}): `runaway attach {row.id[:8]}` fetches when it has"
        )
    if left_on_host(row) != "results":
        detail = detail_of(row)
        here = f"; they are in {detail['output_folder']}" if detail.get("output_folder") else ""
        raise SpecError(f"nothing of the results of {row.id[:8]} is left on {row.host}{here}")
    folder = (
        os.path.abspath(output_folder)
        if output_folder is not None and "$" not in output_folder
        else output_folder
    )
    where, files, size, refused = asyncio.run(_fetch(records, row, folder, messages))
    if as_json:
        print(
            json.dumps(
                {
                    "schema_version": SCHEMA_VERSION,
                    "id": row.id,
                    "output_folder": where,
                    "files": files,
                    "bytes": size,
                    "refused": refused,
                }
            )
        )
    else:
        # A program that asked wants the name as it is.
        print(neutral(where) if sys.stdout.isatty() else where)
        messages.stage(f"{files} files")
    for path, why in refused:
        messages.error(f"not fetched: {path}: {why}")
    return 0


async def _fetch(
    records: Records, row: ExecutionRow, folder: str | None, messages: Messages
) -> tuple[str, int, int, list[tuple[str, str]]]:
    from liborch.drive.adopt import read_left, target_of
    from liborch.drive.peek import fetch_again, linked

    left = read_left(records.folders, row.orchestration, events=False)
    target = target_of(left, row.node)
    messages.stage(f"fetching from {target.name}")
    async with linked(target, left.places(records.folders)) as link:
        where, report = await fetch_again(
            link, target, _spec(row), detail_of(row), folder, messages.progress("fetching")
        )
    return str(where), report.files, report.bytes, [(str(path), str(why)) for path, why in report.refused]


def _spec(row: ExecutionRow) -> ExecutionSpec:
    from liborch.drive.orders import spec_from_json

    return spec_from_json(row.spec)


@dataclass
class Plan:
    """What is to be removed."""

    #: {(host, node): executions whose folder there goes}
    folders: dict[tuple[str, str], list[ExecutionRow]] = field(default_factory=dict)
    #: Executions whose record and output here go.
    records: dict[str, ExecutionRow] = field(default_factory=dict)
    #: Hosts whose agent is asked to end.
    agents: list[str] = field(default_factory=list)
    #: (execution, why it stays)
    kept: list[tuple[ExecutionRow, str]] = field(default_factory=list)


def clean(what: tuple[str, ...], *, older_s: float, everything: bool, dry_run: bool, as_json: bool) -> int:
    """Remove leftovers; returns the exit status. Raises OrchestraError."""
    records = Records()
    messages = Messages(dict(os.environ))
    plan = make_plan(records, what, older_s=older_s, everything=everything)
    status = 0
    removed = 0
    if not dry_run:
        removed, status = asyncio.run(_clean_hosts(records, plan, messages))
        _clean_here(records, plan)
    if as_json:
        print(
            json.dumps(
                {"schema_version": SCHEMA_VERSION, "dry_run": dry_run, **_as_dict(plan), "removed": removed}
            )
        )
        return status
    would = "would remove" if dry_run else "removed"
    for (host, node), rows in plan.folders.items():
        at = host if node == host else f"{host}, {node}"
        print(f"{would} the folders of {len(rows)} executions on {at}")
    if plan.records:
        print(f"{would} the records and outputs of {len(plan.records)} executions here")
    for host in plan.agents:
        print(f"{'would end' if dry_run else 'asked to end:'} the agent of {host}")
    for row, why in plan.kept:
        messages.stage(f"{row.id[:8]} stays: {why}")
    if not (plan.folders or plan.records or plan.agents):
        messages.stage("nothing to remove")
    return status


def make_plan(records: Records, what: tuple[str, ...], *, older_s: float, everything: bool) -> Plan:
    """Decide what goes. Raises UnknownName for a word that is neither a host nor an execution."""
    plan = Plan()
    ended = [row for row in records.journal.executions() if row.state in FINAL]
    if not what:
        limit = time.time() - (0.0 if everything else older_s)
        for row in ended:
            if row.ended_at is not None and row.ended_at <= limit:
                _plan_record(plan, row, everything=everything)
        return plan
    hosts = {row.host for row in ended} | {"local"}
    for word in what:
        if word in hosts or not records.journal.find(word):
            _plan_host(records, plan, word, ended, everything=everything)
            continue
        row = records.find(word)
        if row.state not in FINAL:
            raise SpecError(f"{row.id[:8]} has not ended ({row.state}): runaway kill {row.id[:8]}, or wait")
        _plan_folder(plan, row)
        plan.records[row.id] = row
    return plan


def _plan_host(
    records: Records, plan: Plan, host: str, ended: list[ExecutionRow], *, everything: bool
) -> None:
    from liborch.profiles.names import known_hosts_names

    mine = [row for row in ended if row.host == host]
    folders = records.folders
    if not mine and host not in known_hosts_names(folders.profiles, folders.ssh_config):
        raise UnknownName("host or execution", host, hint="no execution ran there")
    for row in mine:
        if left_on_host(row) == "results" and not was_fetched(row) and not everything:
            plan.kept.append((row, "its results were never fetched (runaway fetch; --all removes them, too)"))
            continue
        _plan_folder(plan, row)
        if everything:
            plan.records[row.id] = row
    plan.agents.append(host)


def _plan_folder(plan: Plan, row: ExecutionRow) -> None:
    if left_on_host(row) and row.node is not None:
        plan.folders.setdefault((row.host, row.node), []).append(row)


def _plan_record(plan: Plan, row: ExecutionRow, *, everything: bool) -> None:
    if left_on_host(row) and not everything:
        plan.kept.append((row, f"its folder is still on {row.host} (runaway clean {row.id[:8]})"))
    else:
        plan.records[row.id] = row


async def _clean_hosts(records: Records, plan: Plan, messages: Messages) -> tuple[int, int]:
    """Remove folders, then ask agents to end; returns entries removed and the exit status."""
    from liborch.drive.adopt import read_left, target_of
    from liborch.drive.peek import linked, remove_folder
    from runaway.patience import said_if_slow

    removed = 0
    status = 0
    for (_host, node), rows in plan.folders.items():
        left = read_left(records.folders, rows[0].orchestration, events=False)
        target = target_of(left, node)
        try:
            with said_if_slow(f"cleaning {target.name}"):
                async with linked(target, left.places(records.folders)) as link:
                    for row in rows:
                        removed += await remove_folder(link, target, _spec(row))
        except OrchestraError as error:
            messages.error(str(error))
            status = error.exit_status
            for row in rows:
                plan.records.pop(row.id, None)
    for host in plan.agents:
        try:
            await _retire_agents(records, host, messages)
        except OrchestraError as error:
            messages.error(str(error))
            status = error.exit_status
    return removed, status


async def _retire_agents(records: Records, host: str, messages: Messages) -> None:
    from liborch.drive.peek import linked, retire
    from liborch.drive.targets import targets_of
    from liborch.profiles.find import find_host
    from runaway.patience import asking, said_if_slow

    folders = records.folders
    profile = find_host(host, folders.profiles, folders.ssh_config)
    for target in targets_of(profile):
        with said_if_slow(asking([target.name])):
            async with linked(target, folders) as link:
                pids = await _agent_pids(link)
                is_retired = await retire(link)
        if not is_retired:
            messages.stage(f"the agent of {target.name} has work to do, and stays")
            continue
        if target.ssh == "local":
            await asyncio.to_thread(_wait_gone, pids)


async def _agent_pids(link: AgentLink) -> list[int]:
    status = await link.ask("status")
    return [int(pid) for pid in (link.hello.get("pid"), status.get("pid")) if pid]


def _wait_gone(pids: list[int]) -> None:
    """The agent of this machine is gone when its processes are; bounded."""
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline and any(os.path.exists(f"/proc/{pid}") for pid in pids):
        time.sleep(0.02)


def _clean_here(records: Records, plan: Plan) -> None:
    """Remove records and outputs; an orchestration goes when all of it is to go and nobody drives it."""
    by_orchestration: dict[str, set[str]] = {}
    for row in plan.records.values():
        by_orchestration.setdefault(row.orchestration, set()).add(row.id)
    with contextlib.ExitStack() as locks, Journal.open(records.folders.journal) as journal:
        whole = []
        for orchestration, ids in by_orchestration.items():
            for x in ids:
                shutil.rmtree(records.output_folder(x), ignore_errors=True)
            if {row.id for row in journal.executions(orchestration)} <= ids:
                with contextlib.suppress(Conflict):
                    locks.enter_context(DriverLock(records.folders.state, orchestration))
                    whole.append(orchestration)
        journal.forget(whole)
        for orchestration in whole:
            log_path(records.folders.state, orchestration).unlink(missing_ok=True)


def _as_dict(plan: Plan) -> dict[str, Any]:
    return {
        "folders": [
            {"host": host, "node": node, "executions": [row.id for row in rows]}
            for (host, node), rows in plan.folders.items()
        ],
        "records": list(plan.records),
        "agents": plan.agents,
        "kept": [{"id": row.id, "why": why} for row, why in plan.kept],
    }
