"""Executions as the journal knows them, for commands that read. Neither asyncio nor anything that connects is imported."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from liborch.drive.ask import ask
from liborch.drive.results import Result, result_of
from liborch.errors import Conflict, UnknownName
from liborch.journal import ExecutionRow, Journal, OrchestrationRow
from liborch.journal.counting import FINAL_STATES
from liborch.names import resolve_prefix
from liborch.places import Places, places
from runaway.secrets import hide_values, hide_words

SCHEMA_VERSION = 1
#: Stands for the host's `directory` in a remote folder on record.
OURS = "${RUNAWAY_PATH}"
#: States that never change.
FINAL = frozenset(FINAL_STATES)
#: A driver that is busy is not waited for when executions are only listed, in seconds.
STATUS_S = 2.0


class Records:
    """The person's journal, opened for reading."""

    def __init__(self, folders: Places | None = None) -> None:
        self.folders = folders or places(dict(os.environ))
        self.journal = Journal.open(self.folders.journal, readonly=True)

    def find(self, text: str) -> ExecutionRow:
        """Return the execution that `text` names: a unique prefix of its id, or `last`. Raises UnknownName."""
        found = self.journal.find(text)
        if not found:
            batches = self.journal.find_batches(text)
            hint = (
                f"the batch {batches[0][:8]} begins so" if batches else "`runaway ps --all` lists every one"
            )
            raise UnknownName("execution", text, hint=hint)
        row = self.journal.execution(found[0] if text == "last" else resolve_prefix(text, found))
        if row is None:
            raise UnknownName("execution", text, hint="it was removed just now")
        return row

    def find_batch(self, text: str) -> OrchestrationRow:
        """Return the batch that `text` names: a unique prefix of its id, or `last`, the newest one. Raises UnknownName."""
        if text == "last":
            found = [row.id for row in self.journal.orchestrations(1, kind="batch")]
        else:
            found = self.journal.find_batches(text)
        if not found:
            raise UnknownName("batch", text, hint="`runaway ps --batches` lists every one")
        row = self.journal.orchestration(found[0] if text == "last" else resolve_prefix(text, found, "batch"))
        if row is None:
            raise UnknownName("batch", text, hint="it was removed just now")
        return row

    def find_any(self, text: str) -> ExecutionRow | OrchestrationRow:
        """Return the execution or the batch that `text` names; `last` is the one begun last. Raises UnknownName."""
        batches = self.journal.find_batches(text)
        if not batches:
            return self.find(text)
        executions = [] if text == "last" else self.journal.find(text)
        if executions and text not in batches:
            raise UnknownName(
                "execution or batch",
                text,
                hint=f"the batch {batches[0]} and the execution {executions[0]} begin so; write more of it",
            )
        return self.find_batch(text)

    def again(self, row: ExecutionRow) -> ExecutionRow:
        """The same execution as it is now."""
        return self.journal.execution(row.id) or row

    def directory(self, row: ExecutionRow) -> str:
        """The `directory` of its host as it was at submission, with the host's variables in it as they were written."""
        held = self.journal.orchestration(row.orchestration)
        details: dict[str, Any] = json.loads(held.details) if held is not None else {}
        profiles = details.get("profiles") or [{}]
        return str(profiles[0].get("directory", OURS))

    def output_folder(self, x: str) -> Path:
        """Where output is collected on this machine while it is written, or when it is large."""
        return self.folders.state / "outputs" / x


def detail_of(row: ExecutionRow) -> dict[str, Any]:
    """What is on record of its end; empty while there is none."""
    if not row.record:
        return {}
    detail: dict[str, Any] = json.loads(row.record)
    return detail


def result_of_row(row: ExecutionRow) -> Result:
    """The Result of a finished execution."""
    detail = detail_of(row)
    return result_of(
        row.id,
        row.state,
        row.reason or "",
        row.exit_code,
        detail.get("why", ""),
        row.attempt or 1,
        row.host,
        row.node or "",
        detail,
    )


class Lives:
    """Who drives what just now, asked once per orchestration."""

    def __init__(self, folders: Places) -> None:
        self._state = folders.state
        self._known: dict[str, dict[str, Any] | None] = {}

    def status(self, row: ExecutionRow) -> dict[str, Any] | None:
        """What the driving client says; None: nobody drives it."""
        if row.orchestration not in self._known:
            try:
                found = ask(self._state, row.orchestration, {"do": "status"}, STATUS_S)
            except Conflict:
                found = {"nodes": [], "executions": {}}
            self._known[row.orchestration] = found
        return self._known[row.orchestration]

    def describe(self, row: ExecutionRow) -> dict[str, Any]:
        """`driven`, and since when its node is out of reach, for an execution that is not final."""
        if row.state in FINAL:
            return {"driven": False, "unreachable_since": None, "why": None}
        status = self.status(row)
        if status is None:
            return {"driven": False, "unreachable_since": None, "why": None}
        for node in status["nodes"]:
            if node["name"] == row.node and node["down_since"] is not None:
                return {"driven": True, "unreachable_since": node["down_since"], "why": node["why"]}
        return {"driven": True, "unreachable_since": None, "why": None}


def view(row: ExecutionRow, life: dict[str, Any]) -> dict[str, Any]:
    """The JSON form of a line of `ps`."""
    final = row.state in FINAL
    duration = None
    if row.started_at is not None:
        duration = max(0.0, (row.ended_at if row.ended_at is not None else time.time()) - row.started_at)
    return {
        "schema_version": SCHEMA_VERSION,
        "id": row.id,
        "state": row.state,
        "reason": row.reason,
        "exit_code": row.exit_code,
        "signal": row.signal,
        "exit_status": result_of_row(row).exit_status if final else None,
        "host": row.host,
        "node": row.node,
        "attempt": row.attempt,
        "label": row.label,
        "submitted_at": row.submitted_at,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "duration_s": duration,
        **{key: value for key, value in life.items() if key != "why"},
    }


def full_view(row: ExecutionRow, life: dict[str, Any]) -> dict[str, Any]:
    """The JSON form of `show`: everything that is known, without secrets."""
    detail = detail_of(row)
    spec: dict[str, Any] = json.loads(row.spec)
    spec["argv"] = hide_words(spec.get("argv", ()))
    spec["env"] = hide_values(spec.get("env", {}))
    spec["post"] = hide_words(spec.get("post", ()))
    transfer = spec.get("transfer")
    if transfer:
        transfer["variables"] = hide_values(transfer.get("variables", {}))
        arguments = transfer["variables"].get("RUNAWAY_ARGUMENTS")
        if arguments is not None:
            transfer["variables"]["RUNAWAY_ARGUMENTS"] = " ".join(hide_words(arguments.split(" ")))
    return {
        **view(row, life),
        "orchestration": row.orchestration,
        "unreachable_why": life.get("why"),
        "why": detail.get("why") or None,
        "slot": detail.get("slot"),
        "cpu_s": detail.get("cpu"),
        "peak_memory_bytes": detail.get("rss") or None,
        "means": list(detail.get("means", ())),
        "stdout_bytes": detail.get("out_size", 0),
        "stderr_bytes": detail.get("err_size", 0),
        "output_folder": detail.get("output_folder"),
        "fetched_files": detail.get("fetched_files"),
        "refused": detail.get("refused", []),
        "collect_error": detail.get("collect_error"),
        "post_status": detail.get("post_status"),
        "variables": hide_values(detail.get("variables", {})),
        "ranks": [
            {
                "node": each.node,
                "state": each.state,
                "reason": each.reason,
                "exit_code": each.exit_code,
                "signal": each.signal,
                "duration_s": each.duration_s,
                "peak_memory_bytes": each.peak_memory_bytes,
            }
            for each in result_of_row(row).ranks
        ],
        "spec": spec,
    }


def state_text(row: ExecutionRow, life: dict[str, Any]) -> str:
    """`failed (exit 3)`, `running, unreachable since 10:21`, `running, left`: for people."""
    if row.state in FINAL:
        why = how(row)
        return row.state if row.state in ("succeeded", why) else f"{row.state} ({why})"
    if not life["driven"]:
        return f"{row.state}, left"
    if life["unreachable_since"] is not None:
        return f"{row.state}, unreachable since {clock(life['unreachable_since'])}"
    return row.state


def how(row: ExecutionRow) -> str:
    """`exit 3`, `signal 9`, `walltime`: why a finished execution ended, in a word or two."""
    if row.reason == "exit":
        return f"exit {row.exit_code}"
    if row.reason == "signal" and row.signal is not None:
        return f"signal {row.signal}"
    return row.reason or "unknown"


def clock(at: float) -> str:
    """The time of day here, with the date when that is another day."""
    then = time.localtime(at)
    same = time.strftime("%Y%m%d", then) == time.strftime("%Y%m%d")
    return time.strftime("%H:%M:%S" if same else "%Y-%m-%d %H:%M", then)


def utc(at: float | None) -> str:
    """`2026-05-01 10:21:03 UTC`."""
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
