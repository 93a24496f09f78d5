"""`attach`, `wait`, `kill`, `pause`, `resume` on executions of other clients: those that live, and those that are gone.
What names a batch is passed on to `runaway.batches.attending`.

Who drives is asked first. A living client is told what to do and the verdict is awaited in the journal; where nobody
drives any more this command takes over, does what was asked, and leaves again.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

from liborch.drive.ask import ask
from liborch.errors import Conflict, OrchestraError, SpecError, WorldError
from liborch.journal import ExecutionRow, OrchestrationRow
from runaway.messages import Messages
from runaway.outputs import Write, pass_on, to_descriptors, watch
from runaway.records import FINAL, SCHEMA_VERSION, Records, result_of_row

#: After it was asked to end, an execution is given its grace and this, in seconds.
KILL_S = 25.0


def attach(
    text: str,
    *,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    silent_output: bool = False,
    follow: bool = False,
) -> int:
    """Follow an execution to its end, from the beginning of its output, or a batch; returns its exit status. Raises OrchestraError.

    Args:
        silent_output: Wait only: its output is not wanted.
        follow: Of a batch, print what its executions write.
    """
    records = Records()
    row = records.find_any(text)
    messages = Messages(dict(os.environ), quiet=quiet, verbose=verbose)
    if isinstance(row, OrchestrationRow):
        from runaway.batches.attending import attach_batch

        return attach_batch(records, row, as_json=as_json, messages=messages, follow=follow)
    write = to_descriptors()
    swallow = as_json or silent_output
    offsets = {"out": 0, "err": 0}
    try:
        while row.state not in FINAL:
            try:
                status = asyncio.run(
                    _drive(records, row, messages, offsets, as_json=as_json, swallow=swallow)
                )
                if status is not None:
                    return status
                row = records.again(row)
            except Conflict:
                row = _look_on(records, row, messages, None if swallow else write, offsets)
        if not swallow:
            pass_on(records, row, write, offsets)
    except KeyboardInterrupt:
        messages.error(f"{row.id[:8]} is left as it is")
        return 130
    result = result_of_row(row)
    if as_json:
        from runaway.seeing import result_as_dict

        print(json.dumps(result_as_dict(result)))
    elif result.reason != "exit":
        messages.error(": ".join(dict.fromkeys(filter(None, (result.state, result.reason, result.why)))))
    if result.output_folder:
        messages.stage(f"results are in {result.output_folder}")
    return result.exit_status


def _look_on(
    records: Records, row: ExecutionRow, messages: Messages, write: Write | None, offsets: dict[str, int]
) -> ExecutionRow:
    """Another client drives it: watch."""
    messages.detail(f"{row.id[:8]} is driven by another command; watching")
    if write is not None:
        ask(records.folders.state, row.orchestration, {"do": "follow", "id": row.id})
    return watch(records, row, write, offsets)


async def _drive(
    records: Records,
    row: ExecutionRow,
    messages: Messages,
    offsets: dict[str, int],
    *,
    as_json: bool,
    swallow: bool,
) -> int | None:
    """Take it over and see it through. None: it had ended when we got the lock."""
    from liborch.drive.adopt import adopting
    from liborch.drive.outputs import OnOutput
    from runaway.batches.attending import caring
    from runaway.seeing import Output, narrate, see_through

    output = Output(swallow)

    def begin(x: str) -> OnOutput | None:
        if x != row.id or swallow:
            return None
        pass_on(records, row, output.write, offsets)
        return output.write

    def listener(what: str, x: str, fields: dict[str, Any]) -> None:
        if x in ("", row.id):
            narrate(messages, what, fields, sends=True)

    async with (
        caring(records, row.orchestration, messages) as options,
        adopting(
            row.orchestration,
            records.folders,
            on_output=begin,
            listener=listener,
            progress=lambda what, _x: messages.progress(what),
            **options,
        ) as driver,
    ):
        execution = driver.executions.get(row.id)
        if execution is None:
            return None
        messages.stage(f"attached to {row.id[:8]} on {row.node or row.host}: {execution.state}")
        return await see_through(driver, execution, messages, output, no_ecode=False, as_json=as_json)


def wait(texts: tuple[str, ...], *, as_json: bool) -> int:
    """Wait until executions and batches have ended; returns the status of the one, or 0 or 1 for several. Raises OrchestraError."""
    records = Records()
    rows = [records.find_any(text) for text in dict.fromkeys(texts)]
    worst = 0
    status = 0
    for row in rows:
        status = attach(row.id, as_json=as_json, quiet=True, verbose=False, silent_output=True)
        if status:
            worst = 1
        if status == 130 and (isinstance(row, OrchestrationRow) or records.again(row).state not in FINAL):
            return 130
    return status if len(rows) == 1 else worst


def kill(texts: tuple[str, ...], *, as_json: bool) -> int:
    """End executions and batches, and wait until they have; returns 0 when each is over. Raises OrchestraError."""
    records = Records()
    messages = Messages(dict(os.environ))
    named = [records.find_any(text) for text in dict.fromkeys(texts)]
    rows = [row for row in named if not isinstance(row, OrchestrationRow)]
    status = 0
    for batch in named:
        if isinstance(batch, OrchestrationRow):
            status = _kill_batch(records, batch, messages, as_json=as_json) or status
    by_orchestration: dict[str, list[ExecutionRow]] = {}
    for row in rows:
        if row.state in FINAL:
            messages.stage(f"{row.id[:8]} has ended already: {row.state}")
        else:
            by_orchestration.setdefault(row.orchestration, []).append(row)
    for orchestration, group in by_orchestration.items():
        try:
            _kill_group(records, orchestration, group)
        except OrchestraError as error:
            messages.error(str(error))
            status = error.exit_status
    for row in rows:
        now = records.again(row)
        if now.state not in FINAL:
            messages.error(
                f"{row.id[:8]} has not ended yet ({now.state}); it was asked to: runaway explain {row.id[:8]}"
            )
            status = status or 1
        if as_json:
            print(json.dumps({"schema_version": SCHEMA_VERSION, "id": row.id, "state": now.state}))
    return status


def _kill_batch(records: Records, row: OrchestrationRow, messages: Messages, *, as_json: bool) -> int:
    from runaway.batches.attending import kill_batch

    try:
        state = kill_batch(records, row, messages)
    except OrchestraError as error:
        messages.error(str(error))
        return error.exit_status
    if as_json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, "kind": "batch", "id": row.id, "state": state}))
    return 1 if state in ("left", "running") else 0


def _kill_group(records: Records, orchestration: str, rows: list[ExecutionRow]) -> None:
    """Have executions of one orchestration ended by whoever drives it, which may be we."""
    deadline = time.monotonic() + KILL_S + max(_grace_s(row) for row in rows)
    while True:
        reply = ask(records.folders.state, orchestration, {"do": "cancel", "ids": [row.id for row in rows]})
        if reply is not None:
            left = [watch(records, row, None, {"out": 0, "err": 0}, until=deadline) for row in rows]
            if time.monotonic() >= deadline or all(row.state in FINAL for row in left):
                return
            continue  # Its client died over it.
        try:
            asyncio.run(_kill_here(records, orchestration, rows, deadline - time.monotonic()))
            return
        except Conflict:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)  # It has the lock and does not listen yet, or not any more.


async def _kill_here(
    records: Records, orchestration: str, rows: list[ExecutionRow], patience_s: float
) -> None:
    from liborch.drive.adopt import adopting
    from runaway.batches.attending import caring

    messages = Messages(dict(os.environ))
    async with (
        caring(records, orchestration, messages) as options,
        adopting(orchestration, records.folders, **options) as driver,
    ):
        ends = []
        for row in rows:
            execution = driver.executions.get(row.id)
            if execution is not None:
                execution.cancel()
                ends.append(asyncio.ensure_future(execution.wait()))
        if not ends:
            return
        done, pending = await asyncio.wait(ends, timeout=patience_s)
        for future in pending:
            future.cancel()
        for future in done:
            future.result()


def set_pace(text: str, *, pause: bool, as_json: bool) -> int:
    """Pause or resume an execution; fine when it is so already. Raises OrchestraError."""
    records = Records()
    row = records.find(text)
    word = "pause" if pause else "resume"
    if row.state in FINAL:
        raise SpecError(f"{row.id[:8]} has ended ({row.state}): there is nothing to {word}")
    deadline = time.monotonic() + KILL_S
    while True:
        reply = ask(records.folders.state, row.orchestration, {"do": word, "id": row.id})
        if reply is None:
            try:
                reply = {"state": asyncio.run(_set_pace_here(records, row, pause=pause))}
            except Conflict:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)
                continue
        break
    if "error" in reply:
        kind = SpecError if reply.get("exit_status") == SpecError.exit_status else WorldError
        raise kind(reply["error"])
    if as_json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, "id": row.id, "state": reply["state"]}))
    else:
        print(f"{row.id[:8]} is {reply['state']}")
    return 0


async def _set_pace_here(records: Records, row: ExecutionRow, *, pause: bool) -> str:
    from liborch.drive.adopt import adopting
    from liborch.drive.control import set_pace as carry_out
    from runaway.batches.attending import caring

    messages = Messages(dict(os.environ))
    async with (
        caring(records, row.orchestration, messages) as options,
        adopting(row.orchestration, records.folders, **options) as driver,
    ):
        return await carry_out(driver, row.id, pause=pause)


def explain(text: str, *, as_json: bool) -> int:
    """Say why an execution or a batch is not further than it is, or how it ended. Raises OrchestraError."""
    records = Records()
    row = records.find_any(text)
    if isinstance(row, OrchestrationRow):
        from runaway.batches.attending import explain_batch

        lines, state = explain_batch(records, row)
    else:
        lines, state = explanation(records, row), row.state
    if as_json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, "id": row.id, "state": state, "lines": lines}))
        return 0
    from liborch.plain_text import neutral

    for line in lines:
        print(neutral(line))
    return 0


def explanation(records: Records, row: ExecutionRow) -> list[str]:
    """Lines for people, the most telling first."""
    from runaway.records import clock, how

    short = row.id[:8]
    reply = None
    if row.state not in FINAL:
        reply = ask(records.folders.state, row.orchestration, {"do": "explain", "id": row.id})
        if reply is not None and reply.get("lines"):
            return [f"{short} is {reply['state']}", *reply["lines"]]
        row = records.again(row)
    if row.state == "planned":
        return [
            f"{short} is planned: it is one of a batch that nobody goes on with, {row.orchestration[:8]}"
            if reply is None
            else f"{short} is planned: its batch, {row.orchestration[:8]}, submits a few thousand at a time",
            f"go on with the batch: runaway attach {row.orchestration[:8]}",
        ][: 2 if reply is None else 1]
    if row.state in FINAL:
        result = result_of_row(row)
        at = f" at {clock(row.ended_at)}" if row.ended_at is not None else ""
        lines = [f"{short} ended{at}: {row.state}{'' if row.state == how(row) else f' ({how(row)})'}"]
        if result.why and result.why not in (row.state, how(row)):
            lines.append(result.why)
        if result.attempts > 1:
            lines.append(f"it was attempt {result.attempts}")
        return lines
    where = f" on {row.node}" if row.node else ""
    return [
        f"{short} was {row.state}{where} when its client left or was killed",
        "nobody drives it now: what runs goes on, and its results wait for you",
        f"go on with it: runaway attach {short}; end it: runaway kill {short}",
    ]


def _grace_s(row: ExecutionRow) -> float:
    spec: dict[str, Any] = json.loads(row.spec)
    return float(spec.get("grace_s", 10.0))
