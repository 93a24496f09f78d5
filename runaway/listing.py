"""What `runaway ps` prints: executions one by one, batches summed up, however many executions they hold."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import click

from liborch.journal import ExecutionRow, OrchestrationRow
from liborch.plain_text import neutral
from liborch.quantities import format_duration
from runaway.records import FINAL, Lives, Records, state_text, view
from runaway.tables import columns

#: Ended executions and batches are shown for so long, and so many of them, without --all.
RECENT_S = 86400.0
RECENT_MOST = 20
#: Of one batch, so many that are under way are listed without --all.
UNDER_WAY_MOST = 50
#: Failures shown below a batch.
FAILURES = 3

HEAD = ["ID", "STATE", "HOST", "NODE", "AGE", "TOOK", "WHAT"]


def list_recent(*, everything: bool, as_json: bool, quiet: bool) -> int:
    """Executions that are under way or ended lately, and batches. `everything`: every execution there is."""
    records = Records()
    if everything:
        return _print_each(_every(records), records, as_json=as_json, quiet=quiet)
    now = time.time()
    rows = records.journal.live_outside("batch")
    known = {row.id for row in rows}
    rows += [
        row
        for row in records.journal.newest_outside("batch", RECENT_MOST)
        if row.id not in known and row.ended_at is not None and now - row.ended_at < RECENT_S
    ]
    batches = _recent_batches(records, now)
    if not rows and not batches and not as_json and not quiet:
        click.echo("no executions lately; --all lists older ones", err=True)
        return 0
    if batches:
        _print_batches(records, batches, as_json=as_json, quiet=quiet)
    if rows:
        if batches and not as_json and not quiet:
            click.echo("")
        rows.sort(key=lambda row: row.submitted_at, reverse=True)
        _print_rows(rows, records, as_json=as_json, quiet=quiet)
    return 0


def list_batches(*, everything: bool, as_json: bool, quiet: bool) -> int:
    """Batches, newest first."""
    records = Records()
    rows = (
        records.journal.orchestrations(kind="batch") if everything else _recent_batches(records, time.time())
    )
    if not rows and not as_json and not quiet:
        click.echo("no batches" if everything else "no batches lately; --all lists older ones", err=True)
        return 0
    _print_batches(records, rows, as_json=as_json, quiet=quiet)
    return 0


def list_batch(text: str, *, everything: bool, as_json: bool, quiet: bool) -> int:
    """One batch: its line, and those of its executions that are under way or failed lately. Raises UnknownName."""
    records = Records()
    batch = records.find_batch(text)
    journal = records.journal
    if everything:
        return _print_each(
            journal.each_result(batch.id, replaced=True), records, as_json=as_json, quiet=quiet
        )
    under_way = journal.under_way(batch.id, UNDER_WAY_MOST)
    rows = [*under_way, *journal.last_failures(batch.id, RECENT_MOST)]
    if not as_json and not quiet:
        _print_batches(records, [batch], failures=0)
        if rows:
            click.echo("")
    if rows:
        _print_rows(rows, records, as_json=as_json, quiet=quiet, advise=False)
    if not as_json and not quiet:
        click.echo(f"--all lists every one; how each ended: runaway results {batch.id[:8]}", err=True)
    return 0


def _recent_batches(records: Records, now: float) -> list[OrchestrationRow]:
    """Those that are not over, and the newest of the others."""
    return [
        row
        for at, row in enumerate(records.journal.orchestrations(kind="batch"))
        if row.state != "ended" or (at < RECENT_MOST and now - row.created_at < RECENT_S)
    ]


def _every(records: Records) -> Iterator[ExecutionRow]:
    """Every execution, the latest orchestration first; read piece by piece."""
    for orchestration in records.journal.orchestrations():
        if orchestration.kind == "batch":
            yield from records.journal.each_result(orchestration.id, replaced=True)
        else:
            yield from records.journal.executions(orchestration.id)


def _print_batches(
    records: Records,
    rows: Iterable[OrchestrationRow],
    *,
    as_json: bool = False,
    quiet: bool = False,
    failures: int = FAILURES,
) -> None:
    from runaway.batches.summary import as_dict, failure_of, summarise

    now = time.time()
    lines = []
    below: list[str] = []
    left = []
    for row in rows:
        if quiet:
            click.echo(row.id)
            continue
        summary = summarise(records, row)
        last = []
        if summary.failed and failures:
            last = [failure_of(each) for each in records.journal.last_failures(row.id, failures)]
        if as_json:
            click.echo(json.dumps(as_dict(summary, last)))
            continue
        if summary.state == "left":
            left.append(row.id[:8])
        lines.append(
            [
                row.id[:8],
                summary.state,
                ",".join(summary.hosts),
                summary.describe_counts(),
                format_duration(max(0.0, now - row.created_at)),
                row.title,
            ]
        )
        for failure in last:
            said = f": {failure.lines[-1]}" if failure.lines else ""
            below.append(f"{row.id[:8]}: {failure.id[:8]} failed: {failure.how}{said}")
    if lines:
        for line in columns(["BATCH", "STATE", "HOSTS", "EXECUTIONS", "AGE", "WHAT"], lines):
            click.echo(line)
    for text in below:
        click.echo(neutral(text))
    for short in left[:3]:
        click.echo(f"{short} was left; go on with it: runaway attach {short}", err=True)


def _print_each(rows: Iterable[ExecutionRow], records: Records, *, as_json: bool, quiet: bool) -> int:
    """All of them: a page at a time, since there may be a million."""
    page: list[ExecutionRow] = []
    lives = Lives(records.folders)
    head: list[str] = HEAD
    found = False
    for row in rows:
        found = True
        page.append(row)
        if len(page) == 1000:
            _print_rows(page, records, as_json=as_json, quiet=quiet, lives=lives, head=head, advise=False)
            page = []
            head = []
    if page:
        _print_rows(page, records, as_json=as_json, quiet=quiet, lives=lives, head=head, advise=False)
    if not found and not as_json and not quiet:
        click.echo("no executions", err=True)
    return 0


def _print_rows(
    rows: list[ExecutionRow],
    records: Records,
    *,
    as_json: bool,
    quiet: bool,
    lives: Lives | None = None,
    head: list[str] = HEAD,
    advise: bool = True,
) -> None:
    lives = lives or Lives(records.folders)
    if as_json:
        for row in rows:
            click.echo(json.dumps(view(row, lives.describe(row))))
        return
    if quiet:
        for row in rows:
            click.echo(row.id)
        return
    now = time.time()
    left = []
    lines = []
    for row in rows:
        life: dict[str, Any] = lives.describe(row)
        if row.state not in FINAL and not life["driven"]:
            left.append(row.id)
        ended = row.ended_at if row.ended_at is not None else now
        took = format_duration(max(0.0, ended - row.started_at)) if row.started_at is not None else ""
        node = row.node if row.node and row.node != row.host else ""
        age = format_duration(max(0.0, now - row.submitted_at))
        lines.append([row.id[:8], state_text(row, life), row.host, node, age, took, row.label])
    for line in columns(head or HEAD, lines)[0 if head else 1 :]:
        click.echo(line)
    for x in left[:3] if advise else ():
        click.echo(f"{x[:8]} was left and goes on by itself: runaway attach {x[:8]}", err=True)
