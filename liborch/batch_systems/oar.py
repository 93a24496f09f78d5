"""OAR (2.5): oarsub, oarstat, oardel, and oarsh to enter a node.

An allocation is a job whose command is the holder; its name carries the token. Everything of ours is asked for with one SQL
condition (`oarstat --sql`), since `oarstat -u` forgets a job the moment it is over and `-j` knows no names. OAR's clock is
the frontend's: what is left is counted from there.

What OAR does not tell: limits (quotas and admission rules are files of the server; a refusal says which rule it was), and
the room on a node. A job whose nodes turn out to be down before it began is submitted again by OAR itself, with the same
name and another id.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any, Final

from liborch.batch_systems._reading import (
    NOT_UNDERSTOOD,
    checked_ids,
    clock_of,
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

#: Every state of OAR's documentation. A suspended job has its nodes, and its processes stand still.
STATES: Final[dict[str, State]] = {
    "Waiting": "queued",
    "toAckReservation": "queued",
    "toLaunch": "queued",
    "Launching": "queued",
    "Hold": "held",
    "Running": "active",
    "Suspended": "active",
    "Resuming": "active",
    "toError": "ending",
    "Finishing": "ending",
    "Terminated": "ended",
    "Error": "ended",
}
#: Kinds of events, the most telling first, and what they mean for a job that is over.
EVENTS: Final[tuple[tuple[str, End], ...]] = (
    (r"BESTEFFORT_KILL$", "preempted"),
    (r"(EXTERMINATE|SUSPECTED|PING_CHECKER|CPUSET|PROLOGUE|EPILOGUE|BIPBIP|OAREXEC|LOST|TIMEOUT)", "node"),
    (r"(WALLTIME|SET_WALLTIME)", "timeout"),
    (r"FRAG_JOB_REQUEST$", "cancelled"),
)

_OURS: Final = {
    "-n": "the name carries what an allocation is found again by",
    "--name": "the name carries what an allocation is found again by",
    "-I": "an allocation is held in the background",
    "--interactive": "an allocation is held in the background",
    "-C": "it connects to a job, and starts none",
    "--connect": "it connects to a job, and starts none",
    "--array": "each allocation is asked for by itself; say how many with `most`",
    "--array-param-file": "each allocation is asked for by itself; say how many with `most`",
    "--resubmit": "it submits another job again",
    "-S": "what is submitted is no script of yours",
    "--scanscript": "what is submitted is no script of yours",
    "-X": "the answer has to be the usual one",
    "--xml": "the answer has to be the usual one",
    "-Y": "the answer has to be the usual one",
    "--yaml": "the answer has to be the usual one",
    "-J": "the answer has to be the usual one",
    "--json": "the answer has to be the usual one",
    "-D": "the answer has to be the usual one",
    "--dumper": "the answer has to be the usual one",
    "-h": "it submits nothing",
    "--help": "it submits nothing",
    "-V": "it submits nothing",
    "--version": "it submits nothing",
}
_REFUSALS = refusals(
    # Quotas of a person, by admission rule.
    (r"\[ADMISSION RULE\].*\b(quota|too many|maximum number|more than \d+ \w*jobs?)\b", True),
    (r"\[ADMISSION RULE\].*(error|not allowed|only member)", False),
    (r"There are not enough resources for your request|Bad resource request", False),
    (r"Cannot recognize the (resource|walltime)|The queue \S+ does not exist|^Unknown option: ", False),
    (r"Oarsub failed, please verify your request syntax", False),
)
_ANSWER = re.compile(r"OAR_JOB_ID=(\S+) ?\n")
#: What oarsub says besides: admission rules (2.5) and remarks (2.5.10 and later).
_REMARK = re.compile(r"\[ADMISSION RULE\] .*|# (?!Error).*|Generate a job key\.*|Import job key .*")


class Oar:
    """OAR."""

    name = "oar"
    can_enter = True

    def submit(self, request: Request) -> Command:
        """Render the submission.

        `-l` of the person says what is taken of each node (`-l gpu=2` with 3 nodes: `-l /nodes=3/gpu=2`); without it, all.

        Raises:
            SpecError: An option is ours.
        """
        options, parts = _without_resources(request.options)
        keep_ours("oarsub", options, _OURS, attached="nCSh")
        wanted = _resources(request, parts)
        log = "/dev/null"
        if request.log_folder:
            log = f"{request.log_folder.rstrip('/')}/{request.name}.log"
        words = ("-n", request.name, "-l", wanted, "-O", log, "-E", log, *options)
        # The holder is one word: OAR hands it to the person's shell.
        return submission(
            ["oarsub", *words, shlex.join(request.holder)], request.token, patience_s=request.patience_s
        )

    def parse_submit(self, output: Output) -> Accepted | Rejected | Unclear:
        """Read oarsub's answer: one `OAR_JOB_ID=N` among remarks, and nothing else."""
        told = heard(output)
        if told is None:
            return unclear("oarsub", output)
        _, output = told
        if rejected := refused(output, _REFUSALS):
            return rejected
        found: list[str] = []
        for line in text_of(output.stdout).splitlines(keepends=True):
            if match := _ANSWER.fullmatch(line):
                found.append(match[1])
            elif line.strip() and not _REMARK.fullmatch(line.rstrip("\n")):
                return unclear("oarsub", output)
        if output.code == 0 and len(found) == 1 and found[0].isdecimal():
            if re.search("error", text_of(output.stderr), re.IGNORECASE):
                return unclear("oarsub", output)
            return Accepted(found[0])
        return unclear("oarsub", output)

    def query(self, ids: Sequence[str]) -> Command:
        """Ask for jobs of ours that are not over, by name, and for those of `ids`, over or not."""
        condition = f"job_name LIKE '{NAME_PREFIX}%' AND state NOT IN ('Terminated','Error')"
        if ids:
            condition = f"({condition}) OR job_id IN ({','.join(checked_ids(ids))})"
        return shell(f"""oarstat -f -J --sql "job_user = '$(id -un)' AND ({condition})\"""")

    def parse_query(self, output: Output) -> dict[str, Sight] | Unclear:
        """Read oarstat's JSON: {id: {...}}. For no job at all it prints nothing; some versions `null`."""
        told = heard(output)
        if told is None:
            return unclear("oarstat", output)
        now, output = told
        if output.code != 0 or (output.stderr.strip() and not output.stdout.strip()):
            return unclear("oarstat", output)
        try:
            found = json.loads(text_of(output.stdout).strip() or "null") or {}
            return {id: _sight(id, each, now) for id, each in found.items()}
        except NOT_UNDERSTOOD as error:
            return not_understood("oarstat", error, output)

    def cancel(self, ids: Sequence[str]) -> Command:
        """Delete jobs, waiting or running."""
        return shell(shlex.join(["oardel", *checked_ids(ids)]))

    def parse_cancel(self, output: Output) -> Rejected | Unclear | None:
        """Read oardel's answer. A job that was killed already, or is over, is fine."""
        told = heard(output)
        if told is None:
            return unclear("oardel", output)
        _, output = told
        left = []
        for line in text_of(output.stderr).splitlines():
            if re.search(r"You are not the right user", line):
                return Rejected(excerpt(line.encode()))
            if line.strip() and not re.search(r"already killed|already (finished|over)|does not exist", line):
                left.append(line)
        # 6: a job was killed already.
        if (
            left
            or output.code not in (0, 6)
            or not re.search(r"^Deleting the job = \d+", text_of(output.stdout))
        ):
            return unclear("oardel", output)
        return None

    def limits(self, options: Sequence[str]) -> Command:
        """OAR tells none: nothing is asked."""
        return Command(("true",))

    def parse_limits(self, output: Output) -> Limits:
        """No limits."""
        return Limits()

    def enter(self, id: str, node: str, argv: Sequence[str]) -> tuple[str, ...]:
        """Return the command that runs `argv` on a node, inside the job's cpuset. oarsh is an ssh: it joins words by blanks."""
        (id,) = checked_ids([id])
        if not is_node(node):
            raise ValueError(f"{node[:80]!r} is no name of a node")
        return ("env", f"OAR_JOB_ID={id}", "oarsh", node, shlex.join(argv))


def _without_resources(options: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return (options without -l, the values of -l)."""
    kept: list[str] = []
    parts: list[str] = []
    words = iter(options)
    for word in words:
        if word in ("-l", "--resource"):
            parts.append(next(words, ""))
        elif word.startswith("--resource="):
            parts.append(word.partition("=")[2])
        elif word.startswith("-l") and len(word) > 2:
            parts.append(word[2:])
        else:
            kept.append(word)
    return tuple(kept), parts


def _resources(request: Request, parts: Sequence[str]) -> str:
    """Return the value of -l: nodes, what is taken of each, walltime."""
    if len(parts) > 1:
        raise SpecError("several -l in the options of oarsub are alternatives; an allocation has one shape")
    part = parts[0].strip() if parts else ""
    if re.search(r"\b(nodes|host|network_address|walltime)\s*=|\+", part):
        raise SpecError(
            f"-l {part!r} in the options of oarsub: nodes and walltime are said by `nodes` and `walltime`; "
            "write only what is taken of each node, as in -l gpu=2"
        )
    match = re.fullmatch(r"(\{[^{}]*\})?/?([\w=/]*)", part)
    if match is None:
        raise SpecError(f"-l {part!r} in the options of oarsub: expected {{properties}}resource=count/...")
    wanted = f"{match[1] or ''}/nodes={request.nodes}" + (f"/{match[2]}" if match[2] else "")
    if request.walltime_s is not None:
        wanted += f",walltime={clock_of(request.walltime_s)}"
    return wanted


def _sight(id: str, told: dict[str, Any], now: int) -> Sight:
    """Read one job; raises ValueError, KeyError or TypeError for what is not understood."""
    if not id.isdecimal() or not is_id(id) or str(told["Job_Id"]) != id:
        raise ValueError("an id that is none")
    word = told["state"]
    state = STATES[word]
    started = int(told.get("startTime") or 0)
    walltime = told.get("walltime")
    left = None
    if state in ("active", "ending") and started and walltime:
        left = max(0.0, float(started + int(walltime) - now))
    nodes: tuple[str, ...] = ()
    if state in ("active", "ending"):
        nodes = tuple(dict.fromkeys(told["assigned_network_address"]))
        if not all(is_node(node) for node in nodes):
            raise ValueError("a node whose name is none")
    end: End
    end, why = _end(told) if state == "ended" else ("", word)
    starts_in = None
    scheduled = told.get("scheduledStart")
    if state == "queued" and scheduled and re.fullmatch(r"\d{9,11}", str(scheduled)):
        starts_in = max(0.0, float(int(scheduled) - now))
    if state == "queued" and told.get("message"):
        why = excerpt(str(told["message"]).encode())
    return Sight(
        id=id,
        token=token_of(told.get("name") or ""),
        state=state,
        end=end,
        why=why,
        nodes=nodes,
        left_s=left,
        starts_in_s=starts_in,
    )


def _end(told: dict[str, Any]) -> tuple[End, str]:
    """Return how a job ended and the words for it."""
    kinds = [str(event.get("type", "")) for event in told.get("events") or ()]
    for pattern, end in EVENTS:
        if kind := next((kind for kind in kinds if re.search(pattern, kind)), ""):
            return end, kind
    code = told.get("exit_code")
    if told["state"] == "Terminated" and not (code and int(code)):
        return "done", "Terminated"
    # As of wait(2): the code in the upper byte.
    return "failed", f"{told['state']}, exit code {int(code) >> 8}" if code else str(told["state"])
