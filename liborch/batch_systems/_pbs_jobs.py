"""What `qstat -f` prints, as JSON (PBS) or as text (Torque, older PBS) -> sights. Commands are left to `pbs`.

Everything here raises ValueError, KeyError or TypeError for what is not understood; `pbs` makes that one unclear answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from liborch.batch_systems._reading import bytes_of, excerpt, is_node, seconds_of
from liborch.batch_systems.base import End, Sight, State, is_id, token_of

#: Every letter of qstat(1B), of PBS and of Torque. What is suspended (S, U) has its nodes, and its processes stand still;
#: what was moved (M) waits or runs at another server, which nobody asked.
STATES: Final[dict[str, State]] = {
    "B": "active",
    "C": "ended",
    "E": "ending",
    "F": "ended",
    "H": "held",
    "M": "queued",
    "Q": "queued",
    "R": "active",
    "S": "active",
    "T": "queued",
    "U": "active",
    "W": "queued",
    "X": "ended",
}
#: Exit status below zero, where PBS itself ended the job (its pbs_job.h) ...
EXITS: Final[dict[int, End]] = {-18: "node", -26: "memory", -27: "memory", -29: "timeout"}
#: ... and where Torque did (its job.h).
TORQUE_EXITS: Final[dict[int, End]] = {-3: "node", -10: "memory", -11: "timeout"}
#: Seconds by which a clock may differ from what was counted before it is not believed.
_TRUST_S: Final = 900.0
_KEY = re.compile(r"    ([A-Za-z][\w.-]*) = (.*)")


def sights(told: str, now: int) -> dict[str, Sight]:
    """Return {id: sight}; `now` is the frontend's clock."""
    if not told.strip():
        return {}
    if told.lstrip().startswith("{"):
        found = json.loads(told, strict=False)
        if not isinstance(found, dict) or "pbs_version" not in found:
            raise ValueError("JSON that is not qstat's")
        stamp = int(found.get("timestamp") or now)
        return {id: _sight(id, _flat(each), stamp, EXITS) for id, each in found.get("Jobs", {}).items()}
    jobs = {id: attributes for kind, id, attributes in blocks(told) if kind == "Job Id"}
    if not jobs:
        raise ValueError("no job in it")
    return {id: _sight(id, each, now, TORQUE_EXITS) for id, each in jobs.items()}


def blocks(told: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (kind, name, attributes) of each block that begins `Job Id: 1.server`, `Queue: batch` or `Server: name`.

    Lines that were wrapped, which begin with a tab (or eight blanks), are one again. The first of two attributes of one name
    holds, and an attribute begins with four blanks exactly: a value with a line end in it cannot change another.
    """
    head: tuple[str, str] | None = None
    attributes: dict[str, str] = {}
    key = ""
    for line in told.splitlines():
        if match := re.fullmatch(r"(Job Id|Queue|Server): (\S+)", line):
            if head:
                yield (*head, attributes)
            head, attributes, key = (match[1], match[2]), {}, ""
        elif head and (match := _KEY.fullmatch(line)):
            key = match[1] if match[1] not in attributes else ""
            if key:
                attributes[key] = match[2]
        elif key and re.match(r"\t|        ", line):
            attributes[key] += line.strip()
    if head:
        yield (*head, attributes)


def _flat(job: Mapping[str, Any]) -> dict[str, str]:
    """`{"Resource_List": {"walltime": ...}}` -> `{"Resource_List.walltime": ...}`."""
    flat: dict[str, str] = {}
    for key, value in job.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": str(each) for name, each in value.items()}
        elif value is not None:
            flat[key] = str(value)
    return flat


def _sight(id: str, job: Mapping[str, str], now: int, exits: Mapping[int, End]) -> Sight:
    if not is_id(id):
        raise ValueError("an id that is none")
    letter = job["job_state"]
    state = STATES[letter]
    has_nodes = state in ("active", "ending")
    rooms = _rooms(job.get("exec_host", "")) if has_nodes else {}
    # Of a node that nobody else gets all is ours, whatever was counted.
    is_whole = "excl" in job.get("Resource_List.place", "")
    chunks = _chunks(job.get("exec_vnode", "")) if has_nodes and not is_whole else []
    starts = int(job.get("run_count") or job.get("start_count") or 0)
    end, why = _end(job, exits) if state == "ended" else ("", _words(job) or letter)
    return Sight(
        id=id,
        token=token_of(job.get("Job_Name", "")),
        state=state,
        end=end,
        why=why,
        nodes=tuple(rooms),
        left_s=_left(job, now) if has_nodes else None,
        restarts=max(0, starts - 1 if has_nodes or state == "ended" else starts),
        cpus=_least(chunks, "ncpus") or (min(rooms.values()) if rooms and not is_whole else None),
        memory_bytes=_least(chunks, "mem"),
        gpus=_least(chunks, "ngpus"),
        starts_in_s=_starts_in(job, now) if state == "queued" else None,
    )


def _rooms(text: str) -> dict[str, int]:
    """`n1/0*4+n2/0*4` (PBS), `n1/1+n1/0+n2/0` or `n1/0-3,5` (Torque) -> {node: cores}, in that order."""
    rooms: dict[str, int] = {}
    for part in text.split("+") if text else ():
        node, slash, where = part.partition("/")
        if not slash or not is_node(node):
            raise ValueError("a node whose name is none")
        if match := re.fullmatch(r"\d+\*(\d{1,6})", where):
            cores = int(match[1])
        elif re.fullmatch(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*", where):
            spans = [span.partition("-") for span in where.split(",")]
            cores = sum(int(last or first) - int(first) + 1 for first, _, last in spans)
        else:
            raise ValueError("cores of a node that are none")
        rooms[node] = rooms.get(node, 0) + cores
    return rooms


def _chunks(text: str) -> list[dict[str, int]]:
    """`(n1:ncpus=2:mem=4194304kb)+(n2:...)` -> what is taken of each node, its own parts (`n1[0]`) added up."""
    taken: dict[str, dict[str, int]] = {}
    for name, what in re.findall(r"\(?([\w.-]+)(?:\[\d+\])?:([^()+]+)\)?", text):
        room = taken.setdefault(name, {})
        for item in what.split(":"):
            key, _, value = item.partition("=")
            amount = bytes_of(value) if key == "mem" else int(value) if value.isdecimal() else None
            if amount is not None:
                room[key] = room.get(key, 0) + amount
    return list(taken.values())


def _least(chunks: list[dict[str, int]], key: str) -> int | None:
    """What every node has at least; None: some do not say."""
    return min(chunk[key] for chunk in chunks) if chunks and all(key in chunk for chunk in chunks) else None


def _left(job: Mapping[str, str], now: int) -> float | None:
    """Seconds until the walltime is over: Torque counts itself; PBS counts what was used, some minutes late, and says the start."""
    if re.fullmatch(r"\d{1,9}", remaining := job.get("Walltime.Remaining", "")):
        return float(remaining)
    walltime = seconds_of(job.get("Resource_List.walltime", ""))
    if walltime is None:
        return None
    used = seconds_of(job.get("resources_used.walltime", "")) or 0.0
    started = _moment(job.get("stime") or job.get("start_time") or "")
    if started is not None and used <= now - started <= used + _TRUST_S:
        used = now - started
    return max(0.0, walltime - used)


def _starts_in(job: Mapping[str, str], now: int) -> float | None:
    start = _moment(job.get("estimated.start_time", ""))
    return None if start is None or start < now else start - now


def _moment(text: str) -> float | None:
    """`Wed Apr 14 23:34:19 2021`, in UTC as qstat was told, -> seconds since 1970."""
    try:
        return datetime.strptime(text, "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _words(job: Mapping[str, str]) -> str:
    """What PBS says of a job, fit for a message; "": nothing."""
    comment = job.get("comment", "")
    return excerpt(comment.encode()) if comment.strip() else ""


def _end(job: Mapping[str, str], exits: Mapping[int, End]) -> tuple[End, str]:
    """How a job ended, and the words for it."""
    told = job.get("Exit_status") or job.get("exit_status") or ""
    why = _words(job) or (f"Exit_status {told}" if re.fullmatch(r"-?\d+", told) else "no Exit_status")
    if not re.fullmatch(r"-?\d{1,6}", told):
        # Deleted before it began, or a history without it.
        return ("cancelled" if job.get("substate") in ("91", None) else "done"), why
    code = int(told)
    if code == 0:
        return "done", why
    # MOM's own words, where a site passes them on.
    if match := re.search(r"\b(walltime|p?v?mem|memory)\b.* exceeded", why):
        return ("timeout" if match[1] == "walltime" else "memory"), why
    if code < 0:
        return exits.get(code, "failed"), why
    used = seconds_of(job.get("resources_used.walltime", ""))
    walltime = seconds_of(job.get("Resource_List.walltime", ""))
    if code > 256 and used is not None and walltime is not None and used >= walltime:
        return "timeout", why
    if code in (256 + 15, 256 + 9):
        # TERM, then KILL, is how qdel ends a job.
        return "cancelled", why
    return "failed", why
