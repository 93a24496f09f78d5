"""`runaway batch ... --resume`: go on with a batch, doing only what has no verdict yet.

What is done is known by its content (`identity`), never by its place: lines may be added to the arguments file, removed or
moved. What is still planned and no longer wanted is withdrawn; what runs goes on in any case.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from liborch.drive.adopt import adopting
from liborch.drive.driver import Driver
from liborch.drive.transfers import Snapshots
from liborch.errors import SpecError, UnknownName
from liborch.journal import Change, Journal, OrchestrationRow
from liborch.names import resolve_prefix
from liborch.places import Places
from runaway.asking import ask_person
from runaway.background import Background
from runaway.batches.identity import identities
from runaway.batches.run import Prepared, batch_of, enter, new_rows
from runaway.batches.sources import Planned
from runaway.messages import Messages
from runaway.preparing import BrokenOff

#: Verdicts that are kept; what was cancelled or lost never had one of its own.
VERDICTS = ("succeeded", "failed")
#: Reasons of a failure that is no verdict on the execution: it never started.
NEVER_RAN = ("refused", "staging")
NOT_STARTED = ("planned", "waiting")


@dataclass
class Rest:
    """What remains of a batch, seen from a plan."""

    #: What is to enter.
    new: list[tuple[str, Planned]] = field(default_factory=list)
    #: For each of those the execution it is instead of: it did not do well, or never started.
    instead_of: list[str | None] = field(default_factory=list)
    #: Ids of what has not started and is not wanted any more, or runs with code whose verdicts do not count.
    withdrawn: list[str] = field(default_factory=list)
    #: {state: executions of the plan that keep their verdict}
    kept: dict[str, int] = field(default_factory=dict)


async def resume_batch(
    prepared: Prepared,
    messages: Messages,
    folders: Places,
    background: Background | None = None,
    began: Callable[[str], object] = lambda _batch: None,
) -> int:
    """Go on with the batch that the options mean; returns the exit status.

    Raises:
        UnknownName: There is no such batch.
        SpecError: The code has changed, and nobody says what that means.
        OrchestraError: As for a new one.
    """
    options = prepared.options
    with Journal.open(folders.journal, readonly=True) as journal:
        row = find_batch(journal, prepared, options.batch)
    details = json.loads(row.details)
    snapshots = Snapshots(folders.cache)
    snapshot = ""
    try:
        if prepared.sending is not None:
            snapshot = (await prepared.sending.pack(snapshots, messages, folders)).id
    except BrokenOff:
        os._exit(130)
    codes: list[str] = details.get("snapshots", [""])
    old: list[str] = details.get("former_snapshots", [])
    if snapshot not in codes:
        keep = _keeps_verdicts(options.code_changed, row, prepared)
        old = [code for code in dict.fromkeys(old if keep else [*old, *codes]) if code != snapshot]
        codes = [*codes, snapshot] if keep else [snapshot]
    batch = batch_of(row.id, prepared, messages, folders, background)
    async with adopting(
        row.id,
        folders,
        profiles=prepared.profiles,
        accept_new=options.accept_new,
        debug=messages.error if options.debug_ssh else None,
        snapshots=snapshots,
        **batch.options_for_driver(),
    ) as driver:
        began(row.id)
        known = await driver.ask_journal(lambda journal: journal.identities(row.id))
        text = await driver.ask_journal(lambda journal: journal.common(row.id))
        shared = json.loads(text or "{}")
        rest = await asyncio.to_thread(
            compare, prepared, codes, snapshot, known, old=old, retry_failed=options.retry_failed
        )
        noted = {
            "keys": prepared.keys,
            "snapshots": codes,
            "former_snapshots": old,
            "max_failures": options.max_failures,
            "halt": options.halt,
            "give_up_s": options.give_up,
            "post_s": options.post_time,
        }
        await driver.ask_journal(lambda journal: _note(journal, row.id, noted))
        batch.disregard(rest.withdrawn)
        await withdraw(driver, rest.withdrawn)
        batch.progress.before.update(rest.kept)
        kept = sum(rest.kept.values())
        left = prepared.plan.count - kept
        messages.stage(
            f"going on with {row.id[:8]}: {kept} of {prepared.plan.count} have a verdict, {left} to go"
        )
        common = prepared.common(snapshot)
        first = driver.count + 1
        rows = (
            msgspec.structs.replace(new, replaces=former)
            for new, former in zip(
                new_rows(prepared, common, shared, snapshot, iter(rest.new), first),
                rest.instead_of,
                strict=True,
            )
        )
        driver.detached = False
        return await batch.see_through(driver, lambda feeder: enter(driver, rows, feeder))


def _note(journal: Journal, batch: str, changed: dict[str, Any]) -> None:
    """Change what whoever goes on next has to know."""
    row = journal.orchestration(batch)
    if row is not None:
        journal.describe(batch, json.dumps({**json.loads(row.details), **changed}))


def _refuse_id_as_arguments(journal: Journal, prepared: Prepared) -> None:
    """`--resume 4711abcd` without --batch: nobody means to give a script the id of its batch. Raises SpecError."""
    words = prepared.options.template
    if len(words) != 1 or not re.fullmatch(r"last|[0-9a-f]{6,8}|[0-9a-f]{8}-[0-9a-f-]*", words[0]):
        return
    if words[0] == "last" or journal.find_orchestrations(words[0]):
        raise SpecError(
            f"{words[0]} is taken for the script's arguments, and no batch of this command line had such; "
            f"to go on with that batch, say --resume --batch {words[0]}, with the arguments it had"
        )


def find_batch(journal: Journal, prepared: Prepared, text: str | None) -> OrchestrationRow:
    """The batch that is meant: by a prefix of its id, or the last one of this command line, else of this script. Raises UnknownName."""
    if text is not None:
        found = journal.find_orchestrations(text)
        row = journal.orchestration(found[0] if text == "last" and found else resolve_prefix(text, found))
        if row is None or row.kind != "batch":
            raise UnknownName("batch", text, hint="runaway ps --batches lists them")
        return row
    rows = journal.orchestrations(kind="batch")
    known = [json.loads(row.details).get("keys", ()) for row in rows]
    for at, key in enumerate(prepared.keys):
        if at == 2:
            _refuse_id_as_arguments(journal, prepared)
        for row, keys in zip(rows, known, strict=True):
            if key in keys:
                return row
    raise UnknownName(
        "batch",
        prepared.options.script,
        hint=f"no batch of it was begun in {prepared.cwd}; leave --resume away to begin one",
    )


def compare(
    prepared: Prepared,
    codes: list[str],
    snapshot: str,
    known: list[tuple[str, str, str | None, str]],
    *,
    retry_failed: bool,
    old: Sequence[str] = (),
) -> Rest:
    """What of a plan is new, kept, or no longer wanted.

    Args:
        codes: Snapshots whose verdicts count, `snapshot` among them.
        known: (identity, state, reason, id) of every execution of the batch.
        old: Snapshots whose verdicts were given up: what is done again with `snapshot` is instead of those.
    """
    verdicts: dict[str, str] = {}
    live: dict[str, tuple[str, str]] = {}
    former: dict[str, str] = {}
    latest: dict[str, str] = {}
    for name, state, reason, x in known:
        if state in VERDICTS and reason not in NEVER_RAN:
            if verdicts.get(name) != "succeeded":
                verdicts[name] = state
        elif state not in ("failed", "cancelled", "lost"):
            live[name] = (state, x)
        latest[name] = x
        if state != "succeeded":
            former[name] = x
    rest = Rest()
    wanted: set[str] = set()
    given_up: set[str] = set()
    for names, planned in _named(prepared, [*codes, *old]):
        before = [names.pop(code) for code in old]
        given_up.update(before)
        new_name = names[snapshot]
        verdict = next((verdicts[name] for name in names.values() if name in verdicts), None)
        if verdict == "succeeded" or (verdict is not None and not retry_failed):
            rest.kept[verdict] = rest.kept.get(verdict, 0) + 1
            continue
        going = next(
            (name for name in names.values() if name in live and live[name][0] not in NOT_STARTED), None
        )
        if going is None and new_name in live:
            going = new_name
        if going is not None:
            wanted.add(going)
        else:
            rest.new.append((new_name, planned))
            again = [former[name] for name in names.values() if name in former]
            again += [latest[name] for name in before if name in latest]
            rest.instead_of.append(next(iter(again), None))
    rest.withdrawn = [
        x
        for name, (state, x) in live.items()
        if name not in wanted and (state in NOT_STARTED or name in given_up)
    ]
    return rest


def _named(prepared: Prepared, codes: list[str]) -> Iterator[tuple[dict[str, str], Planned]]:
    """Each execution of the plan, with its identity under each code."""
    what = (prepared.script.argv, prepared.resources, prepared.each, prepared.options.nodes)
    lists = [identities(prepared.plan, code, *what) for code in codes]
    for several in zip(*lists, strict=True):
        yield {code: name for code, (name, _) in zip(codes, several, strict=True)}, several[0][1]


async def withdraw(driver: Driver, ids: list[str]) -> None:
    """End what is no longer wanted: in the core where it is there, else in the journal. It counts no more."""
    now = time.time()
    record = json.dumps({"why": "no longer in the plan"})
    changes = []
    for x in ids:
        execution = driver.executions.get(x)
        if execution is not None:
            execution.cancel()
        else:
            changes.append(Change(x, "cancelled", reason="cancelled", ended_at=now, record=record))
    await driver.note(changes)
    await driver.ask_journal(lambda journal: journal.discount(ids))


def _keeps_verdicts(choice: str | None, row: OrchestrationRow, prepared: Prepared) -> bool:
    if choice is None:
        answer = ask_person(
            f"The code in {prepared.cwd} has changed since batch {row.id[:8]}. [k]eep its verdicts and go on with the new code, "
            "or [r]un everything again?"
        )
        choice = {"k": "keep", "r": "rerun"}.get((answer or "")[:1])
    if choice is None:
        raise SpecError(
            f"the code in {prepared.cwd} has changed since batch {row.id[:8]}: say --code-changed keep (what has a verdict keeps "
            "it, the rest runs with the new code) or --code-changed rerun (everything runs again)"
        )
    return choice == "keep"
