"""`attach`, `wait`, `kill`, `explain` on a whole batch, whoever began it.

Nobody drives it: we take over, and see it through as the client that began it would have. Somebody does: we look on, from the
journal, until it ends or that client is gone; then it is ours to take over.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from liborch.drive.ask import ask, is_driven
from liborch.drive.feeding import Feeder
from liborch.errors import Conflict
from liborch.journal import OrchestrationRow
from liborch.quantities import format_duration
from runaway.batches.drive import ENDING_S, GIVE_UP_S, Batch
from runaway.batches.following import Follower, Watch
from runaway.batches.picture import NodeUse, Picture, Rate, screen
from runaway.batches.progress import left_words
from runaway.batches.summary import (
    Failure,
    Summary,
    as_dict,
    details_of_row,
    failure_of,
    status_of,
    summarise,
)
from runaway.messages import Messages
from runaway.records import FINAL, Records

#: Looking on: between two pictures on a terminal, and between two lines elsewhere, in seconds. Counting may take part of it.
LOOK_S = 0.5
LINES_S = 10.0
#: At most this part of the time is spent counting.
SHARE = 0.2
#: Failures drawn, and told at the end.
FAILURES = 6


def attach_batch(
    records: Records, row: OrchestrationRow, *, as_json: bool, messages: Messages, follow: bool = False
) -> int:
    """Go on with a batch, or look on, until it is over; returns its exit status. Raises OrchestraError.

    Args:
        follow: Print what its executions write.
    """
    try:
        while True:
            row = records.journal.orchestration(row.id) or row
            summary = summarise(records, row)
            if summary.has_ended and (summary.is_driven or not _is_untidy(summary)):
                return _tell_end(records, summary, messages, as_json=as_json)
            try:
                return asyncio.run(_drive(records, row, summary, messages, as_json=as_json, follow=follow))
            except Conflict:
                messages.detail(f"{row.id[:8]} is driven by another command; looking on")
                _look_on(records, row, messages, follow=follow)
    except KeyboardInterrupt:
        messages.error(_describe_leaving(records, row))
        return 130


def _is_untidy(summary: Summary) -> bool:
    """Whether its client ended, or was killed, before all its nodes were tidied."""
    return summary.row.state != "ended" and bool(summary.details.get("profiles"))


def _describe_leaving(records: Records, row: OrchestrationRow) -> str:
    """What becomes of a batch when nobody looks at it any more."""
    short = row.id[:8]
    if not is_driven(records.folders.state, row.id):
        return f"{short} is left as it is"
    now = records.journal.orchestration(row.id) or row
    who = f"process {now.client_pid} on {now.client_host} drives it"
    return f"{short} goes on without this command: {who}; to end it: runaway kill {short}"


async def _drive(
    records: Records,
    row: OrchestrationRow,
    summary: Summary,
    messages: Messages,
    *,
    as_json: bool = False,
    kill: bool = False,
    follow: bool = False,
) -> int:
    from liborch.drive.adopt import adopting

    details = summary.details
    batch = Batch(
        row.id,
        messages,
        records.folders,
        Path(details.get("cwd") or "/"),
        count=summary.total,
        max_failures=None if kill else details.get("max_failures"),
        halt=details.get("halt", "soon"),
        give_up_s=details.get("give_up_s", GIVE_UP_S),
        post_s=details.get("post_s"),
        as_json=as_json,
        title=row.title,
        follow=follow,
    )
    async with adopting(row.id, records.folders, **batch.options_for_driver()) as driver:
        # Counted once more: only now nobody else changes it.
        known = await driver.ask_journal(lambda journal: journal.counts(row.id))
        batch.progress.total = sum(known.values())
        batch.progress.before.update({state: count for state, count in known.items() if state in FINAL})
        left = batch.progress.total - batch.progress.before.total()
        if not kill:
            messages.stage(f"going on with {row.id[:8]}: {left_words(left, batch.progress.total)}")
        driver.detached = False
        return await batch.see_through(driver, _nothing_to_enter, kill=kill)


async def _nothing_to_enter(feeder: Feeder) -> None:
    feeder.grown(whole=True)


def _look_on(records: Records, row: OrchestrationRow, messages: Messages, *, follow: bool) -> None:
    """Show how far it is while another client drives it; returns when it is over or nobody does."""
    rate: Rate | None = None
    draws = messages.shows_bars and not follow
    follower = Follower(dict(os.environ), records.folders.state / "outputs") if follow else None
    watch = Watch(records, row, follower) if follower is not None else None
    with screen(messages) if draws else nullcontext() as shown:
        told_at = time.monotonic()
        while True:
            began = time.monotonic()
            summary = summarise(records, row)
            if watch is not None:
                watch.look()
            if summary.has_ended or not summary.is_driven:
                if follower is not None:
                    follower.close()
                return
            rate = rate or Rate(summary.ended)
            speed = rate.note(summary.ended)
            if shown is not None:
                shown.show(_picture(records, summary, speed))
            elif began - told_at >= LINES_S:
                told_at = began
                messages.stage(_picture(records, summary, speed).in_a_line())
            time.sleep(max(LOOK_S, (time.monotonic() - began) / SHARE))


def _picture(records: Records, summary: Summary, speed: float) -> Picture:
    failures: list[Failure] = []
    if summary.failed:
        failures = [failure_of(row) for row in records.journal.last_failures(summary.id, FAILURES)]
    status = status_of(records, summary)
    longest = status.get("longest_post")
    return Picture(
        summary.total,
        summary.counts,
        speed,
        [
            NodeUse(
                node["name"],
                node.get("busy", 0),
                node.get("slots", 0),
                "" if node["link"] == "open" else node["why"] or node["link"],
            )
            for node in status["nodes"]
        ],
        failures[::-1],
        posts=status.get("posts", 0),
        title=summary.row.title,
        longest_post=(longest[0], longest[1]) if longest else None,
    )


def _tell_end(records: Records, summary: Summary, messages: Messages, *, as_json: bool) -> int:
    last = []
    if summary.failed:
        last = [failure_of(row) for row in records.journal.last_failures(summary.id, FAILURES)]
    if as_json:
        print(json.dumps(as_dict(summary, last)))
        return summary.exit_status
    messages.stage(f"{summary.id[:8]} has ended: {summary.describe_counts() or 'nothing ran'}")
    for failure in last:
        said = f": {failure.lines[-1]}" if failure.lines else ""
        messages.error(f"{failure.id[:8]} failed: {failure.how}{said}")
    return summary.exit_status


def kill_batch(records: Records, row: OrchestrationRow, messages: Messages) -> str:
    """End a batch and wait until it has; returns its state then, `left` when it has not in time. Raises OrchestraError."""
    summary = summarise(records, row)
    if summary.has_ended:
        messages.stage(f"{row.id[:8]} has ended already: {summary.describe_counts() or 'nothing ran'}")
        return summary.state
    deadline = time.monotonic() + 2 * ENDING_S
    while not summary.has_ended and time.monotonic() < deadline:
        if ask(records.folders.state, row.id, {"do": "end"}) is None:
            try:
                asyncio.run(_drive(records, row, summary, _quiet(messages), kill=True))
                summary = summarise(records, row)
                break
            except Conflict:
                pass  # It has the lock and does not listen yet, or not any more.
        time.sleep(0.1)
        summary = summarise(records, row)
    if not summary.has_ended:
        messages.error(
            f"{row.id[:8]} has not ended yet ({summary.describe_counts()}); what runs was asked to"
        )
    return summary.state


def _quiet(messages: Messages) -> Messages:
    """What is said while it is ended by us is of no interest, but trouble is."""
    return Messages(dict(os.environ), quiet=True, verbose=messages.verbose)


def explain_batch(records: Records, row: OrchestrationRow) -> tuple[list[str], str]:
    """Lines for people: how far it is, and why what waits does. And its state."""
    summary = summarise(records, row)
    short = row.id[:8]
    lines = [f"{short} is {summary.state}: {summary.describe_counts() or 'nothing is in it'}"]
    if summary.state == "left":
        lines += [
            "nobody drives it now: what runs goes on, and its results wait for you; nothing new starts",
            f"go on with it: runaway attach {short}; end it: runaway kill {short}",
        ]
    if summary.state != "running":
        return lines, summary.state
    for node in status_of(records, summary)["nodes"]:
        if node["link"] == "open":
            lines.append(f"{node['name']}: {node.get('busy', 0)} of {node.get('slots', 0)} slots in use")
        else:
            since = node["down_since"]
            ago = f" for {format_duration(max(0.0, time.time() - since))}" if since is not None else ""
            lines.append(f"{node['name']}: {node['link']}{ago}{': ' + node['why'] if node['why'] else ''}")
    first = records.journal.waiting(row.id, 1)
    if first:
        reply = ask(records.folders.state, row.id, {"do": "explain", "id": first[0].id}) or {}
        if reply.get("state") == "waiting":
            lines.append(f"the first that waits, {first[0].id[:8]}:")
            lines += [f"  {line}" for line in reply.get("lines", ())]
    return lines, summary.state


@asynccontextmanager
async def caring(records: Records, orchestration: str, messages: Messages) -> AsyncIterator[dict[str, Any]]:
    """Options for whoever takes over an orchestration for a moment: what of a batch ends meanwhile gets what a batch's ends get."""
    row = records.journal.orchestration(orchestration)
    if row is None or row.kind != "batch":
        yield {}
        return
    details = details_of_row(records, row)
    batch = Batch(row.id, messages, records.folders, Path(details.get("cwd") or "/"), count=0)
    options = batch.options_for_driver()
    try:
        yield {name: options[name] for name in ("before_record", "afterwards", "waits_for_room")}
    finally:
        await batch.close()
