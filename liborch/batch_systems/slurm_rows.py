"""A line of squeue's, or of sacct's, and the allocation it speaks of. Which lines there are is `slurm`'s."""

from __future__ import annotations

import re
from typing import Final

from liborch.batch_systems._reading import bytes_of, seconds_of
from liborch.batch_systems.base import Sight, token_of
from liborch.batch_systems.node_names import expand
from liborch.batch_systems.slurm_words import ENDS, STATES, is_held, is_hopeless

#: What squeue is asked to print of each, "|" behind every field, free text last. Versions before 20.02 know no separators
#: in their `-O` (there is no header then that fits), and no restarts in their `-o`.
FORMAT: Final = (
    "JobID:|,State:|,NumNodes:|,NumCPUs:|,tres-alloc:|,tres-per-node:|,TimeLeft:|,StartTime:|,EndTime:|,PreemptTime:|,"
    "RestartCnt:|,NodeList:|,Reason:|,Name:|"
)
OLD_FORMAT: Final = "%i|%T|%D|%C||%b|%L|%S|%e|||%N|%r|%j|"
#: What sacct is asked for.
PAST_FORMAT: Final = "JobIDRaw,State,JobName"

_HEADER = re.compile(r"JOBID\|STATE\|(?:[^|]*\|){12}\Z")
_ROW = re.compile(
    r"(?P<id>[0-9]{1,20})\|(?P<state>[A-Z_]{1,40})\|(?P<nodes>[0-9]{0,9})(?:-[0-9]*)?\|(?P<cpus>[0-9]{0,12})\|"
    r"(?P<tres>[^|]*)\|(?P<gres>[^|]*)\|(?P<left>[^|]*)\|(?P<start>[^|]*)\|(?P<end>[^|]*)\|(?P<preempted>[^|]*)\|(?P<restarts>[0-9]{0,9})\|"
    r"(?P<list>[^|]*)\|(?P<reason>[^|]*)\|(?P<name>[^|]*)\|\Z"
)
_PAST = re.compile(r"(?P<id>[0-9]{1,20})\|(?P<state>[A-Z_]{1,40})(?P<by> by [^|]{1,64})?\|(?P<name>[^|]*)\Z")
#: "gpu:2", "gpu:a100:2", "gres/gpu=2", "gres:gpu:2(S:0)".
_GPUS = re.compile(r"(?:gres[:/])?gpu(?:[:/][A-Za-z][A-Za-z0-9_.-]*)?[:=]([0-9]{1,6})(?:\([^)]*\))?\Z")
_NO_NODES: Final = frozenset({"", "(null)", "N/A", "n/a", "None assigned"})
_NO_REASON: Final = frozenset({"", "None", "(null)"})


def is_header(line: str) -> bool:
    """Whether this is the first line of an answer to one of our questions."""
    return _HEADER.match(line) is not None


def token_at_end(line: str) -> str:
    """The token of the name that ends a line, whatever else is on it; "": it is no name of ours."""
    return token_of(line.removesuffix("|").rpartition("|")[2])


def sight_of(line: str, now: float) -> Sight:
    """Read a line of squeue's. `now` is the host's clock, in seconds of its epoch, as squeue's times are.

    Raises ValueError for a line that is not understood, be it only its state: a state that is not known says nothing.
    """
    row = _ROW.match(line)
    if row is None:
        raise ValueError(f"no line of squeue: {line[:160]!r}")
    if row["state"] not in STATES:
        raise ValueError(f"state {row['state']} of {row['id']} is not known")
    state, end = STATES[row["state"]]
    reason = "" if row["reason"] in _NO_REASON else row["reason"]
    if row["state"] == "PENDING" and is_held(reason):
        state = "held"
    if state == "ending":
        end = "preempted" if _instant(row["preempted"]) is not None else ENDS.get(reason, "")
    has_nodes = state in ("active", "ending")
    names = expand(row["list"]) if has_nodes and row["list"] not in _NO_NODES else ()
    start = _instant(row["start"])
    return Sight(
        id=row["id"],
        token=token_of(row["name"]),
        state=state,
        end=end,
        why=_why(row["state"], reason),
        nodes=names,
        left_s=_left(row["left"], _instant(row["end"]), now) if state == "active" else None,
        restarts=int(row["restarts"] or 0),
        cpus=_each(int(row["cpus"] or 0) or None, row["nodes"]) if has_nodes else None,
        memory_bytes=_each(_memory(row["tres"]), row["nodes"]) if has_nodes else None,
        gpus=_gpus(row["tres"], row["gres"], row["nodes"]) if has_nodes else None,
        starts_in_s=max(0.0, start - now) if start is not None and state == "queued" else None,
        is_hopeless=state == "held" and is_hopeless(reason),
    )


def past_of(line: str) -> Sight | None:
    """Read a line of sacct's about one that squeue does not know any more; None: it does not say that it is over."""
    row = _PAST.match(line)
    if row is None:
        return None
    state, end = STATES.get(row["state"], ("queued", ""))
    if state != "ended":
        return None
    why = row["state"] + (row["by"] or "")
    return Sight(id=row["id"], token=token_of(row["name"]), state=state, end=end, why=why)


def _why(state: str, reason: str) -> str:
    if state == "PENDING":
        return reason or state
    if state == "RUNNING":
        return ""
    # A cancelled one still has the reason for which it waited.
    return f"{state} ({reason})" if reason and state != "CANCELLED" else state


def _instant(text: str) -> float | None:
    """Seconds of the epoch; None for what is no time: N/A, Unknown, NONE."""
    return float(text) if re.match(r"[0-9]{1,12}\Z", text) and int(text) else None


def _left(text: str, end: float | None, now: float) -> float | None:
    """Seconds left of the walltime; less when Slurm has set an earlier end, as it does before it preempts."""
    if text == "INVALID":
        # It is over its time already, and about to be ended.
        return 0.0
    left = seconds_of(text)
    if left is not None and end is not None:
        left = min(left, max(0.0, end - now))
    return left


def _each(total: int | None, nodes: str) -> int | None:
    """A node's part of what the whole allocation has; the least any can have where it is not spread evenly."""
    return total // int(nodes) if total is not None and nodes and int(nodes) else None


def _memory(tres: str) -> int | None:
    """Bytes of memory in `cpu=8,mem=16G,node=2`; None where memory is not counted."""
    found = re.search(r"(?:\A|,)mem=([^,]+)", tres)
    return (bytes_of(found[1], default="m") or None) if found else None


def _gpus(tres: str, gres: str, nodes: str) -> int | None:
    """GPUs of a node: from what was given, where GPUs are counted, else from what was asked for; None: not told."""
    given = [
        int(found[1]) for word in tres.split(",") if (found := re.match(r"gres/gpu=([0-9]{1,6})\Z", word))
    ]
    if given:
        return _each(sum(given), nodes)
    asked = [int(found[1]) for word in gres.split(",") if (found := _GPUS.match(word))]
    return sum(asked) if asked else None
