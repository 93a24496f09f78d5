"""`runaway show ID`: everything that is known of an execution or a batch, without secrets."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command()
@click.argument("execution", metavar="EXECUTION|BATCH")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def command(execution: str, as_json: bool) -> int:
    """Show everything that is known of EXECUTION or BATCH (a prefix of its id, or `last`)."""
    from liborch.journal import OrchestrationRow
    from liborch.plain_text import neutral
    from runaway.records import Lives, Records, full_view, state_text

    records = Records()
    row = records.find_any(execution)
    if isinstance(row, OrchestrationRow):
        from runaway.batches.showing import batch_lines, batch_view

        shown = batch_view(records, row)
        if as_json:
            click.echo(json.dumps(shown))
            return 0
        for name, text in batch_lines(shown):
            if text:
                click.echo(f"{name:<12}{neutral(text)}")
        return 0
    life = Lives(records.folders).describe(row)
    fields = full_view(row, life)
    if as_json:
        click.echo(json.dumps(fields))
        return 0
    for name, text in _lines(fields, state_text(row, life), records.directory(row)):
        if text:
            click.echo(f"{name:<12}{neutral(text)}")
    return 0


def _lines(fields: dict[str, Any], state: str, directory: str) -> list[tuple[str, str]]:
    import shlex

    from liborch.quantities import format_duration, format_gpus, format_size
    from runaway.records import OURS, utc

    spec = fields["spec"]
    transfer = spec.get("transfer") or {}
    resources = spec.get("resources") or {}
    asked = [
        f"{resources['cpus']} cores" if resources.get("cpus") else "",
        format_size(resources["memory_bytes"]) if resources.get("memory_bytes") else "",
        format_gpus(resources["gpus"]) if resources.get("gpus") else "",
        f"at most {format_duration(spec['walltime_s'])}" if spec.get("walltime_s") else "",
        f"on {spec['node_count']} nodes" if spec.get("node_count", 1) > 1 else "",
    ]
    where = (
        fields["host"] if fields["node"] in (None, fields["host"]) else f"{fields['host']}, {fields['node']}"
    )
    if fields["slot"] is not None:
        where += f", slot {fields['slot']}"
    lines = [
        ("id", fields["id"]),
        ("state", state),
        ("why", fields["why"] or fields["unreachable_why"] or ""),
        ("what", fields["label"]),
        ("command", shlex.join(spec["argv"])),
        ("variables", " ".join(f"{name}={shlex.quote(value)}" for name, value in spec["env"].items())),
        ("where", where),
        ("asked", ", ".join(part for part in asked if part)),
        ("enforced by", ", ".join(fields["means"])),
        ("attempts", str(fields["attempt"]) if (fields["attempt"] or 1) > 1 else ""),
        ("submitted", utc(fields["submitted_at"])),
        ("started", utc(fields["started_at"])),
        ("ended", utc(fields["ended_at"])),
        ("took", format_duration(fields["duration_s"]) if fields["duration_s"] is not None else ""),
        ("cpu time", format_duration(fields["cpu_s"]) if fields["cpu_s"] else ""),
        ("memory", format_size(fields["peak_memory_bytes"]) if fields["peak_memory_bytes"] else ""),
        ("stdout", format_size(fields["stdout_bytes"]) if fields["ended_at"] else ""),
        ("stderr", format_size(fields["stderr_bytes"]) if fields["ended_at"] else ""),
        ("sent from", transfer.get("local_folder", "")),
        ("ran in", (transfer.get("remote_folder") or spec.get("folder") or "").replace(OURS, directory)),
        ("left there", transfer.get("leave", "")),
        ("results", _results(fields)),
        ("trouble", fields["collect_error"] or ""),
    ]
    for number, rank in enumerate(fields["ranks"]):
        code = f" (exit {rank['exit_code']})" if rank["exit_code"] else ""
        took = f", took {format_duration(rank['duration_s'])}" if rank["duration_s"] is not None else ""
        lines.append((f"rank {number}", f"{rank['node']}: {rank['state']}{code}{took}"))
    lines += [("not let in", f"{path}: {why}") for path, why in fields["refused"]]
    lines += [("left set", f"{name}={value}") for name, value in fields["variables"].items()]
    return lines


def _results(fields: dict[str, Any]) -> str:
    if not fields["output_folder"]:
        return ""
    return f"{fields['fetched_files'] or 0} files in {fields['output_folder']}"
