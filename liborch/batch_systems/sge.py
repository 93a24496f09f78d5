"""Grid Engine: qsub, qstat, qdel, qacct. Written against Son of Grid Engine 8.1.9; Univa's and Altair's print the same.

Grid Engine knows slots, not nodes. How slots spread over nodes is what a parallel environment is for, and its name is the
site's; so more than one node needs `-pe NAME SLOTS` in the options. SLOTS counts for each node, and the environment has to be one
that gives as many on each (its `allocation_rule` is that number, or nodes have no more).

`qstat -g t` tells a row for each slot, from which nodes are counted. A job that is over vanishes from qstat at once; how it
ended is asked of `qacct`, for the ids that vanished only, and where that cannot be had (or not yet: it is written every
15 s) the id is just not told of.

Nodes cannot be entered: `qrsh -inherit` is for the inside of a job. From a frontend, with the job's variables set by hand, it reaches
the node and is cut off there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final
from xml.etree import ElementTree

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
    seconds_of,
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

#: Letters of a state (sge_status(5)), which stand together as in `hqw`, `dr`, `Eqw`; the first of these that is in it holds.
#: An error (E) waits for a person. What is suspended (s, S, T; P: preempted) has its nodes, and its processes stand still.
STATES: Final[tuple[tuple[str, State], ...]] = (
    ("z", "ended"),
    ("d", "ending"),
    ("E", "held"),
    ("h", "held"),
    ("q", "queued"),
    ("t", "queued"),
    ("r", "active"),
    ("s", "active"),
    ("S", "active"),
    ("T", "active"),
    ("P", "active"),
)
#: Codes of `failed` (sge_status(5)) and what they mean; others above 0 are failures. 17 and 100 are signals: somebody's qdel.
FAILED: Final[dict[int, End]] = {
    17: "cancelled",
    18: "node",
    19: "node",
    20: "node",
    21: "node",
    24: "preempted",
    25: "preempted",
    37: "timeout",
    100: "cancelled",
}

_NAME: Final = "the name carries what an allocation is found again by"
_ALONE: Final = "each allocation is asked for by itself; say how many with `most`"
_OUTPUT: Final = "where the output goes is ours to say"
_OURS: Final = {
    "-N": _NAME,
    "-terse": "the answer has to be the usual one",
    "-verify": "it submits nothing",
    "-help": "it submits nothing",
    "-t": _ALONE,
    "-tc": _ALONE,
    "-sync": "an allocation is held in the background",
    "-now": "an allocation is held in the background",
    "-b": "the script is ours",
    "-S": "the script is ours",
    "-shell": "the script is ours",
    "-@": "write the options here, one by one",
    "-o": _OUTPUT,
    "-e": _OUTPUT,
    "-j": _OUTPUT,
}
_REFUSALS = refusals(
    (r"only \d+ jobs are allowed|denied: .*quota|job limit", True),
    (r"unable to send message to qmaster|unable to contact qmaster|\(Connection refused\)", True),
    (r"job rejected:|Job was rejected|unknown resource|no suitable queues|invalid option argument", False),
    (r"denied: |does not exist|Unknown option|JSV .*reject", False),
)
_QUERY = r"""
told=$(qstat -u "$(id -un)" -g t -r -xml) || exit
# Others of this person are many, perhaps; only ours are sent.
printf '%s\n' "$told" | awk '
    /<job_list/ { within = 1; part = ""; ours = 0 }
    within { part = part $0 "\n"; if ($0 ~ /<JB_name>PREFIX/) ours = 1 }
    !within { print }
    /<\/job_list>/ { within = 0; if (ours) printf "%s", part }'
for id in "$@"; do
    case $told in *"<JB_job_number>$id</JB_job_number>"*) ;; *) timeout 10 qacct -j "$id" 2>/dev/null ;; esac
done
exit 0
""".replace("PREFIX", NAME_PREFIX)


class Sge:
    """Grid Engine."""

    name = "sge"
    can_enter = False

    def submit(self, request: Request) -> Command:
        """Render the submission; the script goes in through standard input.

        Raises:
            SpecError: An option is ours, or there is no parallel environment for several nodes.
        """
        options, environment = _without_environment(request.options)
        keep_ours("qsub", options, _OURS)
        if any(re.search(r"(^|,)[hs]_rt=", word) for word in options):
            raise SpecError("h_rt cannot be in the options of qsub: the walltime is said by `walltime`")
        words = ["qsub", "-terse", "-N", request.name, "-S", "/bin/sh"]
        log = f"{request.log_folder.rstrip('/')}/{request.name}.log" if request.log_folder else "/dev/null"
        words += ["-j", "y", "-o", log]
        if request.walltime_s is not None:
            words += ["-l", f"h_rt={max(1, -int(-request.walltime_s // 1))}"]
        if environment:
            words += ["-pe", environment[0], str(environment[1] * request.nodes)]
        elif request.nodes > 1:
            raise SpecError(
                f"{request.nodes} nodes of Grid Engine need a parallel environment: "
                "options: [-pe, NAME, SLOTS], with the slots taken of each node; `qconf -spl` lists the names"
            )
        if "-r" not in options:
            # Whether to start again is decided here, not by the qmaster.
            words += ["-r", "n"]
        return submission([*words, *options], request.token, request.holder, patience_s=request.patience_s)

    def parse_submit(self, output: Output) -> Accepted | Rejected | Unclear:
        """Read `qsub -terse`'s answer: an id, and nothing else."""
        told = heard(output)
        if told is None:
            return unclear("qsub", output)
        _, output = told
        if rejected := refused(output, _REFUSALS):
            return rejected
        # The line end is part of it: without, it may be the beginning of a longer one.
        match = re.fullmatch(r"(\d{1,18})\n", text_of(output.stdout))
        said = re.search("error|denied|unable to", text_of(output.stderr), re.IGNORECASE)
        if output.code == 0 and match and not said:
            return Accepted(match[1])
        return unclear("qsub", output)

    def query(self, ids: Sequence[str]) -> Command:
        """Ask for jobs with a name of ours, and for the end of those of `ids` that are not among them."""
        return shell(f"set -- {' '.join(checked_ids(ids))}", _QUERY)

    def parse_query(self, output: Output) -> dict[str, Sight] | Unclear:
        """Read qstat's XML, then records of qacct's."""
        told = heard(output)
        if told is None:
            return unclear("qstat", output)
        now, output = told
        match = re.fullmatch(r"(.*</job_info>\n)(.*)", text_of(output.stdout), re.DOTALL)
        if output.code != 0 or match is None:
            return unclear("qstat", output)
        try:
            over = {sight.id: sight for sight in map(_ended, _records(match[2]))}
            return over | _sights(match[1], now)
        except (*NOT_UNDERSTOOD, ElementTree.ParseError) as error:
            return not_understood("qstat", error, output)

    def cancel(self, ids: Sequence[str]) -> Command:
        """Delete jobs, pending or running."""
        return shell(shlex.join(["qdel", *checked_ids(ids)]))

    def parse_cancel(self, output: Output) -> Rejected | Unclear | None:
        """Read qdel's answer, a line for each job. Jobs that are over are fine."""
        told = heard(output)
        if told is None:
            return unclear("qdel", output)
        _, output = told
        lines = [*text_of(output.stdout).splitlines(), *text_of(output.stderr).splitlines()]
        lines = [line.strip() for line in lines if line.strip()]
        fine = (
            r"\S+ has deleted job \d+|\S+ has registered the job \d+ for deletion|"
            r'job \d+ is already in deletion|denied: job "\d+" does not exist'
        )
        if not lines:
            return unclear("qdel", output)
        left = [line for line in lines if not re.fullmatch(fine, line)]
        if any("necessary privileges" in line for line in left):
            return Rejected(excerpt("\n".join(left).encode()))
        return unclear("qdel", output) if left else None

    def limits(self, options: Sequence[str]) -> Command:
        """Ask for the settings of the cluster, of its scheduler, and of the queue that the options name."""
        words = list(options)
        name = words[words.index("-q") + 1].partition("@")[0] if "-q" in words[:-1] else ""
        name = name if re.fullmatch(r"[\w.-]+", name) else ""
        return shell("qconf -sconf; qconf -ssconf", f"qconf -sq {name}" if name else "true")

    def parse_limits(self, output: Output) -> Limits:
        """Read max_u_jobs, maxujobs (0: none) and the queue's h_rt."""
        answer = heard(output)
        if answer is None:
            return Limits()
        told = dict(re.findall(r"^(\w+) +(\S+)", text_of(answer[1].stdout), re.MULTILINE))
        submitted, active = (
            int(told[key]) if re.fullmatch(r"[1-9]\d{0,8}", told.get(key, "")) else None
            for key in ("max_u_jobs", "maxujobs")
        )
        longest = seconds_of(told.get("h_rt", ""))
        found = {"most_submitted": submitted, "most_active": active, "most_walltime_s": longest}
        names = {
            "most_submitted": "max_u_jobs of the cluster",
            "most_active": "maxujobs of the scheduler",
            "most_walltime_s": f"h_rt of queue {told.get('qname', '')}",
        }
        return Limits(
            most_submitted=submitted,
            most_active=active,
            most_walltime_s=longest,
            sources={field: names[field] for field, value in found.items() if value is not None},
        )

    def enter(self, id: str, node: str, argv: Sequence[str]) -> tuple[str, ...]:
        """Raise SpecError: `qrsh -inherit` works from inside a job only."""
        raise SpecError("nodes of Grid Engine cannot be entered through it; let the profile connect by ssh")


def _without_environment(options: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, int] | None]:
    """Return (options without -pe, (its name, slots of each node))."""
    kept: list[str] = []
    found: tuple[str, int] | None = None
    words = iter(options)
    for word in words:
        if word != "-pe":
            kept.append(word)
            continue
        name, slots = next(words, ""), next(words, "")
        if found or not re.fullmatch(r"[\w.*-]+", name) or not re.fullmatch(r"[1-9]\d{0,5}", slots):
            raise SpecError(
                f"-pe {name} {slots} in the options of qsub: expected, once, -pe NAME SLOTS "
                "with the number of slots taken of each node"
            )
        found = (name, int(slots))
    return tuple(kept), found


def _sights(told: str, now: int) -> dict[str, Sight]:
    """Read qstat's XML; raises ParseError, ValueError, KeyError or TypeError for what is not understood."""
    if "<!" in told:
        raise ValueError("XML with declarations, which qstat's has not")
    root = ElementTree.fromstring(told)
    if root.tag != "job_info":
        raise ValueError("XML that is not qstat's")
    rows: dict[str, list[ElementTree.Element]] = {}
    for row in root.iter("job_list"):
        rows.setdefault(row.findtext("JB_job_number", ""), []).append(row)
    return {id: _sight(id, each, now) for id, each in rows.items()}


def _sight(id: str, rows: list[ElementTree.Element], now: int) -> Sight:
    if not id.isdecimal() or not is_id(id):
        raise ValueError("an id that is none")
    first = rows[0]
    word = first.findtext("state", "")
    if not re.fullmatch(r"[qwhRrtsSTEdzP]+", word):
        raise ValueError(f"an unknown state {word!r}")
    state = next(state for letter, state in STATES if letter in word)
    rooms = _rooms(rows) if state in ("active", "ending") else {}
    return Sight(
        id=id,
        token=token_of(first.findtext("JB_name", "")),
        state=state,
        end="done" if state == "ended" else "",
        why=word,
        nodes=tuple(rooms),
        left_s=_left(first, now) if rooms else None,
        restarts=1 if "R" in word else 0,
        cpus=min(rooms.values()) if rooms else None,
    )


def _rooms(rows: list[ElementTree.Element]) -> dict[str, int]:
    """A row for each slot -> {node: slots}, the master's first. The master's own row is one more, unless it is a slot itself."""
    rooms: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row.findtext("master") != "MASTER"):
        node = row.findtext("queue_name", "").rpartition("@")[2]
        if not node:
            # Its deletion was faster than its start.
            continue
        if not is_node(node):
            raise ValueError("a node whose name is none")
        rooms[node] = rooms.get(node, 0) + 1
    granted = int(rows[0].findtext("granted_pe") or 1)
    if sum(rooms.values()) == granted + 1:
        rooms[next(iter(rooms))] -= 1
    return {node: max(1, slots) for node, slots in rooms.items()}


def _left(row: ElementTree.Element, now: int) -> float | None:
    requests = (each.text for each in row.iter("hard_request") if each.get("name") == "h_rt")
    walltime = seconds_of(next(requests, None) or "")
    started = row.findtext("JAT_start_time", "")
    if walltime is None or not re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", started):
        return None
    # In UTC, as qstat was told.
    began = datetime.fromisoformat(started[:19]).replace(tzinfo=UTC).timestamp()
    return max(0.0, walltime - max(0.0, now - began))


def _records(told: str) -> Iterator[dict[str, str]]:
    """Yield what qacct printed, {field: text} for each job."""
    for block in re.split(r"^={20,}\n", told, flags=re.MULTILINE):
        pairs = (line.partition(" ") for line in block.splitlines())
        record = {key: value.strip() for key, _, value in pairs}
        if {"jobnumber", "jobname", "failed", "exit_status"} <= record.keys():
            yield record


def _ended(record: dict[str, str]) -> Sight:
    id, told = record["jobnumber"], record["failed"]
    failed, code = (re.match(r"\d{1,4}", text) for text in (told, record["exit_status"]))
    if not id.isdecimal() or failed is None or code is None:
        raise ValueError("a record of qacct that is none")
    end: End
    if int(failed[0]):
        end, why = FAILED.get(int(failed[0]), "failed"), excerpt(told.encode())
    elif int(code[0]):
        end, why = "failed", f"exit_status {code[0]}"
    else:
        end, why = "done", "exit_status 0"
    return Sight(id=id, token=token_of(record["jobname"]), state="ended", end=end, why=why)
