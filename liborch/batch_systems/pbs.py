"""PBS Professional, OpenPBS and Torque: qsub, qstat, qdel.

One dialect for all of them. The question goes in two steps, in one command: `qstat -u` says which jobs bear a name of ours (its
columns are the same everywhere, and short), then `qstat -f` tells all of those and of the ids that were asked for. Where
`qstat --version` is that of PBS the form is JSON, with jobs that are over if the server keeps a history; Torque's is text,
which wraps long lines. Both become the same attributes here.

A name may have 15 characters in Torque and in PBS Professional before 14, so tokens of 10 characters are for everywhere.

Nodes cannot be entered: pbs_tmrsh, pbsdsh and pbs_attach speak to the node's own PBS daemon from inside a job, none of them
from a frontend. Most sites let people ssh to the nodes of their jobs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Final

from liborch.batch_systems import _pbs_jobs
from liborch.batch_systems._reading import (
    NOT_UNDERSTOOD,
    checked_ids,
    clock_of,
    excerpt,
    heard,
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
    Limits,
    Output,
    Rejected,
    Request,
    Sight,
    Unclear,
    is_id,
)
from liborch.errors import SpecError

_NAME: Final = "the name carries what an allocation is found again by"
_OURS: Final = {
    "-N": _NAME,
    "-I": "an allocation is held in the background",
    "-J": "each allocation is asked for by itself; say how many with `most`",
    "-t": "each allocation is asked for by itself; say how many with `most`",
    "-z": "without its id an allocation is lost sight of",
    "-S": "the script is ours",
    "-o": "where the output goes is ours to say",
    "-e": "where the output goes is ours to say",
    "-j": "where the output goes is ours to say",
    "--": "what is submitted is no program of yours",
    "--version": "it submits nothing",
}
_REFUSALS = refusals(
    (r"would exceed .* limit|Maximum number of (running )?jobs already", True),
    (r"currently too busy|Queue is not enabled|Queue is not started", True),
    (r"cannot connect to (default )?server|Connection refused|could not connect to", True),
    (r"Unknown queue|Access to queue is denied|Bad UID for job execution|Bad GID for job execution", False),
    (r"Job violates queue and/or server resource limits|Job exceeds queue resource limits", False),
    (r"Illegal attribute or resource value|Unknown resource|cannot be requested|Invalid Account", False),
    (r"Unauthorized Request|illegal -\w value|invalid option -|^usage: qsub", False),
    (r"Job rejected by (all possible destinations|.*hook)|request rejected", False),
)
#: What qstat and qdel say of jobs that are over or forgotten: no failure.
_GONE = re.compile(
    r"q(stat|del): (Unknown Job I[dD]|Job has finished|Job already in exit state|"
    r"(Invalid request MSG=|Request invalid for state of job).*)"
)
_QUERY = r"""
list=$(qstat -u "$(id -un)") || exit
for id in $(printf '%s\n' "$list" | awk '$4 ~ /^PREFIX/ { sub(/[.].*/, "", $1); print $1 }'); do
    case " $* " in *" $id "* | *" $id."*) ;; *) set -- "$@" "$id" ;; esac
done
[ $# -gt 0 ] || exit 0
if qstat --version 2>&1 | grep -q pbs_version; then
    # Without a history, and when it knows none of them, it prints no jobs; the plain question says which.
    told=$(qstat -x -f -F json "$@" 2>/dev/null)
    case $told in *'"Jobs"'*) printf '%s\n' "$told"; exit 0 ;; esac
    exec qstat -f -F json "$@"
fi
exec qstat -f "$@"
""".replace("PREFIX", NAME_PREFIX)


class Pbs:
    """PBS Professional, OpenPBS, Torque."""

    name = "pbs"
    can_enter = False

    def submit(self, request: Request) -> Command:
        """Render the submission; the script goes in through standard input.

        The person says what is taken of each node, `-l select=ncpus=4:ngpus=1` (PBS) or `-l nodes=ppn=4` (Torque); how many
        nodes is ours. Where nothing is said PBS is asked for whole nodes, and Torque for a core of each: it knows no better.

        Raises:
            SpecError: An option is ours.
        """
        options, chunk = _without_nodes(request.options)
        keep_ours("qsub", options, _OURS, attached="NIJtzSoej")
        if any(re.search(r"\bblock=", word) for word in options):
            raise SpecError(
                "-W block cannot be in the options of qsub: an allocation is held in the background"
            )
        words = ["qsub", "-N", request.name, "-S", "/bin/sh"]
        is_placed = any("place=" in word for word in options)
        first: tuple[str, ...] = ()
        if chunk:
            key, _, what = chunk.partition("=")
            words += ["-l", f"{key}={request.nodes}:{what}"]
            if key == "select" and not is_placed:
                words += ["-l", "place=scatter"]
        else:
            place = "" if is_placed else " -l place=scatter:excl"
            first = (
                f"set -- -l nodes={request.nodes}",
                f"! qsub --version 2>&1 | grep -q pbs_version || set -- -l select={request.nodes}{place}",
            )
        if request.walltime_s is not None:
            words += ["-l", f"walltime={clock_of(request.walltime_s)}"]
        log = f"{request.log_folder.rstrip('/')}/{request.name}.log" if request.log_folder else "/dev/null"
        words += ["-j", "oe", "-o", log]
        if not any(word.startswith("-r") for word in options):
            # Whether to start again is decided here, not by the server.
            words += ["-r", "n"]
        return submission(
            [*words, *options], request.token, request.holder, first=first, patience_s=request.patience_s
        )

    def parse_submit(self, output: Output) -> Accepted | Rejected | Unclear:
        """Read qsub's answer: an id on a line of its own, and nothing else."""
        told = heard(output)
        if told is None:
            return unclear("qsub", output)
        _, output = told
        if rejected := refused(output, _REFUSALS):
            return rejected
        # The line end is part of it: without, it may be the beginning of a longer one.
        match = re.fullmatch(r"(\d+(?:\.[A-Za-z0-9._-]+)?)\n", text_of(output.stdout))
        said = re.search("error|denied", text_of(output.stderr), re.IGNORECASE)
        if output.code == 0 and match and is_id(match[1]) and not said:
            return Accepted(match[1])
        return unclear("qsub", output)

    def query(self, ids: Sequence[str]) -> Command:
        """Ask for jobs of ours in the queue, by name, and for those of `ids`."""
        return shell(f"set -- {' '.join(checked_ids(ids))}", _QUERY)

    def parse_query(self, output: Output) -> dict[str, Sight] | Unclear:
        """Read what `qstat -f` printed. Jobs that the server forgot are not in it."""
        told = heard(output)
        if told is None:
            return unclear("qstat", output)
        now, output = told
        said = [line for line in text_of(output.stderr).splitlines() if line.strip()]
        if not all(_GONE.match(line) for line in said) or (output.code != 0 and not said):
            return unclear("qstat", output)
        try:
            return _pbs_jobs.sights(text_of(output.stdout), now)
        except NOT_UNDERSTOOD as error:
            return not_understood("qstat", error, output)

    def cancel(self, ids: Sequence[str]) -> Command:
        """Delete jobs, queued or running."""
        return shell(shlex.join(["qdel", *checked_ids(ids)]))

    def parse_cancel(self, output: Output) -> Rejected | Unclear | None:
        """Read qdel's answer: it says nothing when all went well. Jobs that are over are fine."""
        told = heard(output)
        if told is None or told[1].stdout.strip():
            return unclear("qdel", told[1] if told else output)
        _, output = told
        said = [line for line in text_of(output.stderr).splitlines() if line.strip()]
        left = [line for line in said if not _GONE.match(line)]
        if any("Unauthorized Request" in line for line in left):
            return Rejected(excerpt(output.stderr))
        if left or (output.code != 0 and not said):
            return unclear("qdel", output)
        return None

    def limits(self, options: Sequence[str]) -> Command:
        """Ask the server, and all its queues, for their settings."""
        return shell(f"echo 'Asked: {_queue(options)}'; qstat -B -f; qstat -Q -f")

    def parse_limits(self, output: Output) -> Limits:
        """Read what the server and the queue allow; the tighter one holds."""
        answer = heard(output)
        if answer is None:
            return Limits()
        _, output = answer
        blocks = list(_pbs_jobs.blocks(text_of(output.stdout)))
        server = next((settings for kind, _, settings in blocks if kind == "Server"), {})
        asked = re.match(r"Asked: ([\w.-]+)", text_of(output.stdout))
        queue = asked[1] if asked else server.get("default_queue", "")
        settings = next((s for kind, name, s in blocks if kind == "Queue" and name == queue), {})
        places = [(f"queue {queue}", settings), ("server", server)]
        sources: dict[str, str] = {}
        found: dict[str, float] = {}
        for field, keys in _LIMITS.items():
            for place, told in places:
                for key in keys:
                    value = _limit(field, told.get(key, ""))
                    if value is not None and value < found.get(field, float("inf")):
                        found[field] = value
                        sources[field] = f"{place}: {key}"
        whole = {field: int(value) for field, value in found.items() if field != "most_walltime_s"}
        return Limits(**whole, most_walltime_s=found.get("most_walltime_s"), sources=sources)

    def enter(self, id: str, node: str, argv: Sequence[str]) -> tuple[str, ...]:
        """Raise SpecError: no program of PBS starts something on a node from a frontend."""
        raise SpecError("nodes of PBS cannot be entered through PBS; let the profile connect by ssh")


#: {field: settings of a queue or the server}
_LIMITS: Final = {
    "most_walltime_s": ("resources_max.walltime",),
    "most_nodes": ("resources_max.nodect", "resources_max.nodes"),
    "most_submitted": ("max_queued", "max_user_queuable"),
    "most_active": ("max_run", "max_user_run"),
}


def _limit(field: str, value: str) -> float | None:
    """Read a setting: a duration, a number, or PBS's `[u:PBS_GENERIC=10]`, where only what holds for every person is known."""
    if field == "most_walltime_s":
        return seconds_of(value)
    match = re.fullmatch(r"\d{1,9}", value) or re.search(r"u:PBS_GENERIC=(\d{1,9})\b", value)
    return float(match[match.lastindex or 0]) if match else None


def _queue(options: Sequence[str]) -> str:
    """The queue that the options name; "": none, or not a name."""
    words = iter(options)
    for word in words:
        value = next(words, "") if word == "-q" else word[2:] if word.startswith("-q") else ""
        name = value.partition("@")[0]
        if re.fullmatch(r"[\w.-]+", name):
            return name
    return ""


def _resource_lists(options: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield (word or value of -l, whether it is one)."""
    words = iter(options)
    for word in words:
        if word == "-l":
            yield next(words, ""), True
        elif word.startswith("-l"):
            yield word[2:], True
        else:
            yield word, False


def _without_nodes(options: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return (options without what a node has to give, that: `select=ncpus=4`, `nodes=ppn=4` or "")."""
    kept: list[str] = []
    chunk = ""
    for value, is_list in _resource_lists(options):
        if not is_list:
            kept.append(value)
            continue
        rest = []
        for item in value.split(","):
            key, _, what = item.partition("=")
            if key == "walltime":
                raise SpecError(f"-l {item!r} in the options of qsub: the walltime is said by `walltime`")
            if key not in ("select", "nodes"):
                rest.append(item)
                continue
            # `1:` is how people write what each node has to give.
            what = what.removeprefix("1:")
            if chunk or "+" in what or re.match(r"\d+(:|\Z)", what) or not re.fullmatch(r"[\w=:.-]+", what):
                raise SpecError(
                    f"-l {item!r} in the options of qsub: how many nodes is said by `nodes`; write only what is "
                    "taken of each, as in -l select=ncpus=4:ngpus=1 or, in Torque, -l nodes=ppn=4"
                )
            chunk = f"{key}={what}"
        if rest:
            kept += ["-l", ",".join(rest)]
    return tuple(kept), chunk
