"""`runaway show BATCH`: everything that is known of a batch as a whole, without secrets."""

from __future__ import annotations

import json
import shlex
from typing import Any

from liborch.journal import OrchestrationRow
from liborch.quantities import format_duration, format_gpus, format_size
from runaway.batches.summary import as_dict, failure_of, summarise
from runaway.records import OURS, Records, utc
from runaway.secrets import hide_values, hide_words

#: Failures that are shown.
FAILURES = 5


def batch_view(records: Records, row: OrchestrationRow) -> dict[str, Any]:
    """The JSON form."""
    summary = summarise(records, row)
    common: dict[str, Any] = json.loads(records.journal.common(row.id) or "{}")
    transfer = common.get("transfer") or {}
    first = records.journal.executions(row.id, limit=1, newest_first=False)
    spec: dict[str, Any] = json.loads(first[0].spec) if first else {}
    last = []
    if summary.failed:
        last = [failure_of(each) for each in records.journal.last_failures(row.id, FAILURES)]
    profiles = summary.details.get("profiles", ())
    return {
        **as_dict(summary, last),
        "argv": hide_words(common.get("argv", ())),
        "variables": hide_values(common.get("env", {})),
        "resources": common.get("resources", {}),
        "walltime_s": common.get("walltime_s"),
        "retries": common.get("retries", 0),
        "retry_on": list(common.get("retry_on", ("lost",))),
        "parameters": sorted(spec.get("parameters", {})),
        "post": hide_words(common.get("post", ())),
        "local_folder": transfer.get("local_folder"),
        "snapshots": [each for each in summary.details.get("snapshots", ()) if each],
        "directories": {str(profile["name"]): profile.get("directory", OURS) for profile in profiles},
        "leave": transfer.get("leave"),
        "cwd": summary.details.get("cwd"),
        # That of the first: they differ in what is filled in.
        "output_folder": spec.get("outcome_folder"),
        "max_failures": summary.details.get("max_failures"),
        "halt": summary.details.get("halt"),
        "client_host": row.client_host,
        "client_pid": row.client_pid,
    }


def batch_lines(shown: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, text) for people; what has no text is left out by who prints."""
    resources = shown["resources"] or {}
    asked = [
        f"{resources['cpus']} cores" if resources.get("cpus") else "",
        format_size(resources["memory_bytes"]) if resources.get("memory_bytes") else "",
        format_gpus(resources["gpus"]) if resources.get("gpus") else "",
        f"at most {format_duration(shown['walltime_s'])}" if shown["walltime_s"] else "",
    ]
    counts = ", ".join(f"{count} {state}" for state, count in shown["counts"].items())
    snapshots = shown["snapshots"]
    lines = [
        ("id", shown["id"]),
        ("state", shown["state"]),
        ("executions", f"{shown['executions']}: {counts}" if counts else "none"),
        ("what", shown["label"]),
        ("command", shlex.join(shown["argv"])),
        ("parameters", ", ".join(shown["parameters"])),
        ("variables", " ".join(f"{name}={shlex.quote(text)}" for name, text in shown["variables"].items())),
        ("hosts", ", ".join(shown["hosts"])),
        ("asked", ", ".join(part for part in asked if part)),
        ("retries", f"{shown['retries']}, after {', '.join(shown['retry_on'])}" if shown["retries"] else ""),
        ("after each", shlex.join(shown["post"])),
        ("begun", utc(shown["submitted_at"])),
        ("driven by", f"pid {shown['client_pid']} on {shown['client_host']}" if shown["driven"] else ""),
        ("sent from", shown["local_folder"] or ""),
        (
            "code",
            snapshots[-1][:16] + (f" ({len(snapshots)} versions)" if len(snapshots) > 1 else "")
            if snapshots
            else "",
        ),
        ("left there", shown["leave"] or ""),
        ("begun in", shown["cwd"] or ""),
        ("results", f"{shown['output_folder']}, and so on" if shown["output_folder"] else ""),
        ("stops at", f"{shown['max_failures']} failures ({shown['halt']})" if shown["max_failures"] else ""),
    ]
    for failure in shown["last_failures"]:
        said = f": {failure['stderr'][-1]}" if failure["stderr"] else ""
        lines.append(("failed", f"{failure['id'][:8]} {failure['how']}{said}"))
    return lines
