"""What came of an execution: the verdict as people and programs see it, made from what the agent said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from liborch.core.things import rank_id
from liborch.core.verdict import final_state


class Result(msgspec.Struct, frozen=True):
    """How an execution ended. Times in seconds; wall-clock times are by this machine's clock."""

    id: str
    #: succeeded, failed, cancelled or lost.
    state: str
    #: See `liborch.core.verdict`.
    reason: str
    exit_code: int | None = None
    #: Number of the signal that ended it.
    signal: int | None = None
    #: In words, where there is more to say.
    why: str = ""
    host: str = ""
    node: str = ""
    slot: int | None = None
    attempts: int = 1
    started_at: float | None = None
    duration_s: float | None = None
    cpu_s: float | None = None
    #: Most resident memory at once, in bytes; None: less than can be told.
    peak_memory_bytes: int | None = None
    #: How what was asked for was enforced, such as "memory:cgroup-v2".
    means: tuple[str, ...] = ()
    stdout: bytes = b""
    stderr: bytes = b""
    #: What the execution wrote in all; more than `stdout` holds when that was limited.
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    #: RUNAWAY* variables that its procedure left.
    variables: dict[str, str] = {}
    #: Where its results are on this machine; "" when none were fetched.
    output_folder: str = ""
    fetched_files: int = 0
    #: (path, why) of results that were not let in.
    refused: tuple[tuple[str, str], ...] = ()
    #: How the command ended that was run on this machine after it, as a shell says it; None: none was.
    post_status: int | None = None
    #: What ran on several nodes: how each rank ended, the first too. The rest of this is rank 0's, but for the verdict.
    ranks: tuple[Result, ...] = ()

    @property
    def ok(self) -> bool:
        """It ran and ended with 0."""
        return self.state == "succeeded"

    @property
    def exit_status(self) -> int:
        """What a shell would make of it: the exit code, 128+n for signal n, 124 out of time, 255 when nobody knows."""
        if self.exit_code is not None and self.reason in ("exit", "oom"):
            return self.exit_code
        if self.reason == "walltime":
            return 124
        if self.signal is not None:
            return 128 + self.signal
        if self.reason == "cancelled":
            return 130
        return 255


def record_of(detail: dict[str, Any], extra: dict[str, Any]) -> bytes:
    """Return what the journal keeps of an end: JSON. Output is carried as latin-1 text, one character a byte."""
    return msgspec.json.encode({**detail, **extra})


def result_of(
    x: str,
    state: str,
    reason: str,
    code: int | None,
    why: str,
    attempts: int,
    host: str,
    node: str,
    detail: dict[str, Any],
) -> Result:
    """Make the Result from the core's verdict and the agent's detail."""
    parts = [detail, *detail.get("ranks", {}).values()]
    return Result(
        id=x,
        state=state.lower(),
        reason=reason,
        exit_code=code if code is not None else detail.get("code"),
        signal=_cause(parts, reason, code).get("signal"),
        why=why or detail.get("why", ""),
        host=host,
        node=node,
        slot=detail.get("slot"),
        attempts=attempts,
        # Of several nodes, the first may have been the one that never started.
        started_at=next((part["start"] for part in parts if "start" in part), None),
        duration_s=detail.get("dur"),
        cpu_s=detail.get("cpu"),
        peak_memory_bytes=detail.get("rss") or None,
        means=tuple(detail.get("means", ())),
        stdout=detail.get("out", "").encode("latin-1"),
        stderr=detail.get("err", "").encode("latin-1"),
        stdout_bytes=detail.get("out_size", 0),
        stderr_bytes=detail.get("err_size", 0),
        variables=detail.get("variables", {}),
        output_folder=detail.get("output_folder", ""),
        fetched_files=detail.get("fetched_files", 0),
        refused=tuple((str(path), str(reason)) for path, reason in detail.get("refused", ())),
        post_status=detail.get("post_status"),
        ranks=tuple(_ranks(x, attempts, host, detail)) if "ranks" in detail else (),
    )


def _cause(parts: list[dict[str, Any]], reason: str, code: int | None) -> dict[str, Any]:
    """What the node said that the verdict is from; rank 0's where none said that."""
    said = (part for part in parts if (part.get("reason"), part.get("code")) == (reason, code))
    return next(said, parts[0])


def _ranks(x: str, attempts: int, host: str, detail: dict[str, Any]) -> Iterator[Result]:
    """How each rank ended, as far as its node could say."""
    first = {name: value for name, value in detail.items() if name != "ranks"}
    for rank, part in sorted(
        {0: first, **{int(rank): part for rank, part in detail["ranks"].items()}}.items()
    ):
        reason = part.get("reason", "")
        if reason:
            state = final_state(reason, part.get("code"))
            node = part.get("node", "")
            yield result_of(rank_id(x, rank), state, reason, None, "", attempts, host, node, part)
