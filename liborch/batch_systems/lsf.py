"""IBM Spectrum LSF (10.1): bsub, bjobs, bkill.

bjobs tells everything of ours in one question: names may end in a `*`, columns are chosen with `-o`, and the form is JSON. Jobs
that are over are told for as long as the site keeps them (CLEAN_PERIOD, an hour by default).

Nodes cannot be entered: blaunch starts something on a node only from inside the job (it needs the job's own LSB_ variables
and its place among LSF's processes), lsrun knows no jobs and is switched off by default.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from liborch.batch_systems._reading import (
    NOT_UNDERSTOOD,
    checked_ids,
    excerpt,
    heard,
    is_node,
    keep_ours,
    not_understood,
    refusals,
    refused,
    shell,
    submission,
    text_of,
    unclear,
)
from liborch.batch_systems.base import (
    NAME_PREFIX,
    Accepted,
    Command,
    End,
    Limits,
    Output,
    Rejected,
    Request,
    Sight,
    State,
    Unclear,
    is_id,
    token_of,
)
from liborch.errors import SpecError

#: Every state of bjobs(1). What is suspended after its start (USUSP, SSUSP) has its nodes, and its processes stand still; of
#: UNKWN the daemon of its first node is not heard, which is no end.
STATES: Final[dict[str, State]] = {
    "PEND": "queued",
    "WAIT": "queued",
    "PROV": "queued",
    "PSUSP": "held",
    "RUN": "active",
    "USUSP": "active",
    "SSUSP": "active",
    "UNKWN": "active",
    "ZOMBI": "ending",
    "DONE": "ended",
    "EXIT": "ended",
}
#: Reasons of an end, from "termination reasons displayed by bacct, bhist and bjobs"; others are failures.
REASONS: Final[dict[str, End]] = {
    "TERM_RUNLIMIT": "timeout",
    "TERM_DEADLINE": "timeout",
    "TERM_WINDOW": "timeout",
    "TERM_CPULIMIT": "timeout",
    "TERM_MEMLIMIT": "memory",
    "TERM_SWAP": "memory",
    "TERM_OWNER": "cancelled",
    "TERM_FORCE_OWNER": "cancelled",
    "TERM_ADMIN": "cancelled",
    "TERM_FORCE_ADMIN": "cancelled",
    "TERM_BUCKET_KILL": "cancelled",
    "TERM_ORPHAN_SYSTEM": "cancelled",
    "TERM_PREEMPT": "preempted",
    "TERM_LOAD": "preempted",
    "TERM_RC_RECLAIM": "preempted",
    "TERM_REQUEUE_OWNER": "preempted",
    "TERM_REQUEUE_ADMIN": "preempted",
    "TERM_REQUEUE_RC": "preempted",
    "TERM_ZOMBIE": "node",
    "TERM_REMOVE_HUNG_JOB": "node",
    "TERM_EXTERNAL_SIGNAL": "node",
}
_COLUMNS: Final = "jobid job_name stat exec_host time_left pend_reason exit_code exit_reason"
_NAME: Final = "the name carries what an allocation is found again by"
_OURS: Final = {
    "-J": _NAME,
    "-W": "the walltime is said by `walltime`",
    "-nnodes": "how many nodes is said by `nodes`",
    "-I": "an allocation is held in the background",
    "-Ip": "an allocation is held in the background",
    "-Is": "an allocation is held in the background",
    "-IS": "an allocation is held in the background",
    "-K": "an allocation is held in the background",
    "-pack": "each allocation is asked for by itself",
    "-i": "what is submitted is no script of yours",
    "-L": "the script is ours",
    "-o": "where the output goes is ours to say",
    "-oo": "where the output goes is ours to say",
    "-e": "where the output goes is ours to say",
    "-eo": "where the output goes is ours to say",
    "-r": "whether to start again is decided here",
    "-Q": "whether to start again is decided here",
    "-h": "it submits nothing",
    "-V": "it submits nothing",
}
_REFUSALS = refusals(
    (r"Pending job threshold reached|MAX_PEND_JOBS|MAX_JOB_NUM|job limit reached|too many jobs", True),
    (r"LSF is down|Cannot connect to LSF|batch daemon is not available", True),
    (r"No such queue|User cannot use the queue|User permission denied|Queue .* closed", False),
    (r"Cannot exceed queue's hard limit|RUNLIMIT:|Bad resource requirement|Too many processors", False),
    (r"Request aborted by esub|Bad (project|host|user) name|Illegal option|^Usage: +bsub", False),
)
_GONE: Final = r"Job <[^>]*>: (Job has already finished|No matching job found)|No matching job found"


class Lsf:
    """IBM Spectrum LSF."""

    name = "lsf"
    can_enter = False

    def submit(self, request: Request) -> Command:
        """Render the submission; the script goes in through standard input.

        `-n` of the person says how many slots are taken of each node (default 1): `-n 20` with 3 nodes becomes
        `-n 60 -R span[ptile=20]`.

        Raises:
            SpecError: An option is ours.
        """
        options, slots = _without_slots(request.options)
        keep_ours("bsub", options, _OURS)
        if any("span[" in word for word in options):
            raise SpecError(
                "span[...] cannot be in the options of bsub: it says how many nodes, as `nodes` does"
            )
        words = ["bsub", "-J", request.name, "-n", str(request.nodes * slots), "-R", f"span[ptile={slots}]"]
        if request.walltime_s is not None:
            words += ["-W", str(max(1, -int(-request.walltime_s // 60)))]
        log = f"{request.log_folder.rstrip('/')}/{request.name}.log" if request.log_folder else "/dev/null"
        words += ["-oo", log, "-rn", "-L", "/bin/sh"]
        # bsub waits for ever where a limit is reached, unless it may try but once.
        return submission(
            ["env", "LSB_NTRIES=1", *words, *options],
            request.token,
            request.holder,
            patience_s=request.patience_s,
        )

    def parse_submit(self, output: Output) -> Accepted | Rejected | Unclear:
        """Read bsub's answer: `Job <1> is submitted to [default] queue <normal>.`, and nothing else."""
        told = heard(output)
        if told is None:
            return unclear("bsub", output)
        _, output = told
        if rejected := refused(output, _REFUSALS):
            return rejected
        pattern = r"Job <(\d+)> is submitted to (?:default )?queue <[\w.-]+>(?: on cluster <[\w.-]+>)?\.\n"
        match = re.fullmatch(pattern, text_of(output.stdout))
        said = text_of(output.stderr)
        if output.code == 0 and match and not re.search("error|denied|not submitted", said, re.I):
            return Accepted(match[1])
        return unclear("bsub", output)

    def query(self, ids: Sequence[str]) -> Command:
        """Ask for all jobs with a name of ours, over or not; `ids` are among them."""
        checked_ids(ids)
        return shell(f"bjobs -a -J '{NAME_PREFIX}*' -o '{_COLUMNS}' -json")

    def parse_query(self, output: Output) -> dict[str, Sight] | Unclear:
        """Read bjobs' JSON: {"COMMAND": "bjobs", "JOBS": n, "RECORDS": [{column: text}]}."""
        answer = heard(output)
        if answer is None:
            return unclear("bjobs", output)
        _, output = answer
        told, said = text_of(output.stdout), text_of(output.stderr).strip()
        nothing = r"No (unfinished )?job found|Job <orch-\*> is not found"
        if re.fullmatch(nothing, said) and not told.strip():
            return {}
        if output.code != 0 and not re.fullmatch(nothing, said):
            return unclear("bjobs", output)
        try:
            found = json.loads(told, strict=False)
            records = found["RECORDS"]
            if found["COMMAND"] != "bjobs" or int(found["JOBS"]) != len(records):
                raise ValueError("another count of jobs than there are")
            return {sight.id: sight for sight in map(_sight, records)}
        except NOT_UNDERSTOOD as error:
            return not_understood("bjobs", error, output)

    def cancel(self, ids: Sequence[str]) -> Command:
        """Kill jobs, pending or running."""
        return shell(shlex.join(["bkill", *checked_ids(ids)]))

    def parse_cancel(self, output: Output) -> Rejected | Unclear | None:
        """Read bkill's answer. Jobs that are over are fine."""
        told = heard(output)
        if told is None:
            return unclear("bkill", output)
        _, output = told
        lines = [*text_of(output.stdout).splitlines(), *text_of(output.stderr).splitlines()]
        lines = [line for line in lines if line.strip()]
        fine = rf"Job <[^>]*> is being (terminated|signaled)|{_GONE}"
        left = [line for line in lines if not re.fullmatch(fine, line.strip())]
        if any(re.search("permission denied|Operation not permitted", line, re.I) for line in left):
            return Rejected(excerpt(*(line.encode() for line in left)))
        return unclear("bkill", output) if left or not lines else None

    def limits(self, options: Sequence[str]) -> Command:
        """Ask the queue that the options name for its longest run; of the default queue nothing is known beforehand."""
        queue = _queue(options)
        return shell(f"bqueues -l {queue}" if queue else "true")

    def parse_limits(self, output: Output) -> Limits:
        """Read RUNLIMIT, `240.0 min of host1`; with two of them the last is the hard one."""
        answer = heard(output)
        if answer is None or answer[1].code != 0:
            return Limits()
        told = text_of(answer[1].stdout)
        queue = re.match(r"\s*QUEUE: ([\w.-]+)\n", told)
        section = re.search(r"^MAXIMUM LIMITS:\n(.*?)(?:^\S.*:\n|\Z)", told, re.MULTILINE | re.DOTALL)
        match = re.search(
            r"^ *RUNLIMIT *\n *(\d+(?:\.\d+)?) min", section[1] if section else told, re.MULTILINE
        )
        if not queue or not match:
            return Limits()
        return Limits(
            most_walltime_s=float(match[1]) * 60, sources={"most_walltime_s": f"queue {queue[1]}: RUNLIMIT"}
        )

    def enter(self, id: str, node: str, argv: Sequence[str]) -> tuple[str, ...]:
        """Raise SpecError: blaunch works from inside a job only."""
        raise SpecError("nodes of LSF cannot be entered through LSF; let the profile connect by ssh")


def _queue(options: Sequence[str]) -> str:
    words = list(options)
    name = words[words.index("-q") + 1] if "-q" in words[:-1] else ""
    return name if re.fullmatch(r"[\w.-]+", name) else ""


def _without_slots(options: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Return (options without -n, slots of each node)."""
    kept: list[str] = []
    slots = 1
    words = iter(options)
    for word in words:
        if word != "-n":
            kept.append(word)
            continue
        value = next(words, "")
        if not re.fullmatch(r"[1-9]\d{0,5}", value):
            raise SpecError(
                f"-n {value!r} in the options of bsub: expected the number of slots taken of each node"
            )
        slots = int(value)
    return tuple(kept), slots


def _sight(record: Mapping[str, Any]) -> Sight:
    """Read one record; raises ValueError, KeyError or TypeError for what is not understood."""
    told = {key: str(value).strip() for key, value in record.items()}
    id = told["JOBID"]
    if not id.isdecimal() or not is_id(id):
        raise ValueError("an id that is none")
    word = told["STAT"]
    state = STATES[word]
    rooms = _rooms(told["EXEC_HOST"]) if state in ("active", "ending") else {}
    end, why = _end(told) if state == "ended" else ("", word)
    if state in ("queued", "held") and told.get("PEND_REASON"):
        why = excerpt(told["PEND_REASON"].encode())
    return Sight(
        id=id,
        token=token_of(told["JOB_NAME"]),
        state=state,
        end=end,
        why=why,
        nodes=tuple(rooms),
        left_s=_left(told.get("TIME_LEFT", "")) if rooms else None,
        cpus=min(rooms.values()) if rooms else None,
    )


def _rooms(text: str) -> dict[str, int]:
    """`4*n1:4*n2`, `n1:n1:n2`, `n1` -> {node: slots}, in that order."""
    rooms: dict[str, int] = {}
    for part in text.split(":") if text and text != "-" else ():
        match = re.fullmatch(r"(?:(\d{1,6})\*)?([^*]+)", part)
        if match is None or not is_node(match[2]):
            raise ValueError("a node whose name is none")
        rooms[match[2]] = rooms.get(match[2], 0) + int(match[1] or 1)
    return rooms


def _left(text: str) -> float | None:
    """`1:59 L` is hours and minutes, `-` is no limit. The letter says what it is counted from; only L is the run limit."""
    match = re.fullmatch(r"(\d{1,6}):(\d{2})(?::(\d{2}))? ?L", text)
    return int(match[1]) * 3600.0 + int(match[2]) * 60 + int(match[3] or 0) if match else None


def _end(told: Mapping[str, str]) -> tuple[End, str]:
    reason = told.get("EXIT_REASON", "")
    if told["STAT"] == "DONE":
        return "done", "DONE"
    word = reason.partition(":")[0].strip()
    code = told.get("EXIT_CODE", "")
    why = excerpt(reason.encode()) if reason and reason != "-" else f"EXIT, exit code {code or 'unknown'}"
    return REASONS.get(word, "failed"), why
