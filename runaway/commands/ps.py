"""`runaway ps`: running and recent executions."""

from __future__ import annotations

import json
import time

import click

#: Ended executions are shown for so long, and so many of them, without --all.
RECENT_S = 86400.0
RECENT_MOST = 20


@click.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Every execution there is a record of.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value per execution, one per line.")
@click.option("--quiet", "-q", is_flag=True, help="Ids only.")
def command(everything: bool, as_json: bool, quiet: bool) -> int:
    """List executions: those that are under way, and those that ended lately."""
    from liborch.quantities import format_duration
    from runaway.records import FINAL, Lives, Records, state_text, view
    from runaway.tables import columns

    records = Records()
    rows = records.journal.executions(live=True)
    now = time.time()
    if everything:
        rows = records.journal.executions()
    else:
        known = {row.id for row in rows}
        recent = records.journal.executions(limit=RECENT_MOST)
        rows += [
            row
            for row in recent
            if row.id not in known and row.ended_at is not None and now - row.ended_at < RECENT_S
        ]
        rows.sort(key=lambda row: row.submitted_at, reverse=True)
    lives = Lives(records.folders)
    if as_json:
        for row in rows:
            click.echo(json.dumps(view(row, lives.describe(row))))
        return 0
    if quiet:
        for row in rows:
            click.echo(row.id)
        return 0
    if not rows:
        click.echo(
            "no executions" if everything else "no executions lately; --all lists older ones", err=True
        )
        return 0
    lines = []
    left = []
    for row in rows:
        life = lives.describe(row)
        if row.state not in FINAL and not life["driven"]:
            left.append(row.id)
        ended = row.ended_at if row.ended_at is not None else now
        took = format_duration(max(0.0, ended - row.started_at)) if row.started_at is not None else ""
        node = row.node if row.node and row.node != row.host else ""
        lines.append(
            [
                row.id[:8],
                state_text(row, life),
                row.host,
                node,
                format_duration(max(0.0, now - row.submitted_at)),
                took,
                row.label,
            ]
        )
    for line in columns(["ID", "STATE", "HOST", "NODE", "AGE", "TOOK", "WHAT"], lines):
        click.echo(line)
    for x in left[:3]:
        click.echo(f"{x[:8]} was left and goes on by itself: runaway attach {x[:8]}", err=True)
    return 0
