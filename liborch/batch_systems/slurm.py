"""Slurm: what is asked of sbatch, squeue, scancel, scontrol and srun, and what their answers say.

Every command but `enter`'s is a script between two marks, see `_reading.shell`.

One question about all allocations is one `squeue` for this person, three small requests to the controller at most, however
many there are; it tells finished ones as well for some minutes (MinJobAge). Lines of others are dropped on the frontend. The
accounting (`sacct`), which is another program's work, is asked only of ids that squeue does not know any more; it may be missing.

Walltimes are rounded up to Slurm's minutes. Slurm is not asked for a signal before the end: agents know the deadline
(`Sight.left_s`) and see to it themselves; the holder dies at once with the allocation, so that a cancel is quick.

Words are in `slurm_words`, lines in `slurm_rows`, limits in `slurm_limits`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from liborch.batch_systems import slurm_limits
from liborch.batch_systems._reading import (
    checked_ids,
    excerpt,
    heard,
    is_node,
    keep_ours,
    option_of,
    refused,
    shell,
    submission,
    text_of,
    unclear,
)
from liborch.batch_systems.base import Accepted, Command, Limits, Output, Rejected, Request, Sight, Unclear
from liborch.batch_systems.slurm_rows import (
    FORMAT,
    OLD_FORMAT,
    PAST_FORMAT,
    is_header,
    past_of,
    sight_of,
    token_at_end,
)
from liborch.batch_systems.slurm_words import (
    HARMLESS_CANCELS,
    OURS,
    OURS_ATTACHED,
    REFUSALS,
    SBATCH_VARIABLES,
    SHARES,
    SHARES_ATTACHED,
    SQUEUE_VARIABLES,
    UNHEARD,
    apart,
    stray,
)
from liborch.errors import SpecError

#: Seconds in a minute, Slurm's unit of walltimes.
_MINUTE: Final = 60

#: What `timeout` ends with, when it ended the command with TERM and with KILL.
_OUT_OF_TIME: Final = (124, 137)

_SUBMITTED = re.compile(r"(?:\A|\n)([0-9]{1,20}(?:;[A-Za-z0-9_.-]{1,64})?)\n\Z")
#: The ids that were asked for, what squeue said and ended with, what sacct said.
_ANSWERED = re.compile(
    r"orch-asked\|(?P<asked>[^\n]*)\n(?P<rows>.*)^orch-squeue\|(?P<code>[0-9]{1,3})\n(?P<past>.*)\Z",
    re.DOTALL | re.MULTILINE,
)


class Slurm:
    """Slurm, see the module. Versions from 18.08 on; `enter` needs 20.11."""

    name = "slurm"
    can_enter = True

    def submit(self, request: Request) -> Command:
        """Render sbatch with the holder as its script. Raises SpecError for options that are ours, and for scripts.

        Wherever the connection goes, the sbatch is over before the command's `timeout_s`: one that finds the queue full
        tries again for two minutes, and would be in the queue after its token was looked up and not found.
        """
        keep_ours("sbatch", apart(request.options), OURS, attached=OURS_ATTACHED)
        script = stray(request.options)
        if script is not None:
            raise SpecError(f"{script[:60]!r} in the options of sbatch is no option: write --name=value")
        words = [
            "sbatch",
            "--parsable",
            f"--job-name={request.name}",
            f"--nodes={request.nodes}",
            "--no-requeue",
        ]
        if request.nodes > 1:
            # One node that fails does not take the others with it.
            words.append("--no-kill")
        if not any(option_of(word, SHARES, attached=SHARES_ATTACHED) for word in apart(request.options)):
            words.append("--exclusive")
        if request.avoided and not any(
            option_of(word, ("--exclude", "-x"), attached="x") for word in apart(request.options)
        ):
            words.append(f"--exclude={','.join(request.avoided)}")
        if request.walltime_s is not None:
            words.append(f"--time={_time_of(request.walltime_s)}")
        # In the name of a file, Slurm fills in "%" and takes "\" as an escape.
        folder = request.log_folder.replace("\\", "\\\\").replace("%", "%%")
        words.append(f"--output={folder}/{request.name}.log" if folder else "--output=/dev/null")
        # What sbatch finds is what the holder gets, and its options may name a time of day.
        first = f"unset {SBATCH_VARIABLES} LC_ALL LANG TZ"
        return submission(
            [*words, *request.options], request.token, request.holder,
            script=request.script, first=[first], patience_s=request.patience_s,
        )  # fmt: skip

    def parse_submit(self, output: Output) -> Accepted | Rejected | Unclear:
        """Read the id. Banners before it and warnings beside it do no harm."""
        told = heard(output)
        if told is None:
            return unclear("sbatch", output)
        _, said = told
        submitted = _SUBMITTED.search(text_of(said.stdout))
        if said.code == 0 and submitted is not None:
            return Accepted(submitted[1])
        if said.code in _OUT_OF_TIME or UNHEARD.search(text_of(said.stderr)):
            return unclear("sbatch", said)
        return refused(said, REFUSALS) or unclear("sbatch", said)

    def query(self, ids: Sequence[str]) -> Command:
        """Render one squeue for all of this person's, and sacct for the `ids` that it does not know."""
        asked = checked_ids(ids)
        numbers = list(dict.fromkeys(_number(id) for id in asked))
        clusters = ",".join(sorted({_cluster(id) for id in asked} - {""}))
        # First what stands in the header's place, whatever it is; of the rest, only what can be ours.
        kept = ("1", "/^JOBID|/", "/^CLUSTER: /", "/|orch-[^|]*|$/", "/^orch-squeue|/")
        return shell(
            f"unset {SQUEUE_VARIABLES}",
            "SLURM_TIME_FORMAT=%s; export SLURM_TIME_FORMAT",
            *([f"SLURM_CLUSTERS=${{SLURM_CLUSTERS:-{clusters}}}; export SLURM_CLUSTERS"] if clusters else ()),
            f"echo 'orch-asked|{'|'.join(asked)}'",
            "ask() {",
            '{ squeue --all --noconvert --states=all --user="$(id -u)" "$@"; echo "orch-squeue|$?"; } |',
            f"sed -n '{'; '.join(f'{each}{{p;d;}}' for each in kept)}'",
            "}",
            f"told=$(ask -O '{FORMAT}')",
            "case $told in",
            "*'JOBID|STATE|'*) ;;",
            f"*'orch-squeue|0') told=$(ask -o '{OLD_FORMAT}') ;;",
            "esac",
            "printf '%s\n' \"$told\"",
            *_past(numbers),
        )

    def parse_query(self, output: Output) -> dict[str, Sight] | Unclear:
        """Read squeue's lines, and sacct's of those it does not know any more. One of ours not understood: nothing is."""
        told = heard(output)
        if told is None:
            return unclear("squeue", output)
        now, said = told
        parts = _ANSWERED.match(text_of(said.stdout))
        if parts is None:
            return unclear("squeue", said)
        asked, rows = parts["asked"].split("|"), parts["rows"].splitlines()
        if parts["code"] != "0" or not any(map(is_header, rows)):
            return unclear("squeue", Output(int(parts["code"]), parts["rows"].encode(), said.stderr))
        try:
            found = _sights(rows, asked, now)
        except ValueError as error:
            return Unclear(f"squeue said what is not understood: {error}")
        for line in parts["past"].splitlines():
            sight = past_of(line)
            if sight is not None and sight.token:
                id = _as_asked(sight.id, "", asked)
                found.setdefault(id, replace(sight, id=id))
        return found

    def cancel(self, ids: Sequence[str]) -> Command:
        """Render one scancel for all of a cluster."""
        asked = checked_ids(ids)
        lines = []
        for cluster in sorted({_cluster(id) for id in asked}):
            numbers = " ".join(dict.fromkeys(_number(id) for id in asked if _cluster(id) == cluster))
            lines.append(f"scancel {f'--clusters={cluster} ' if cluster else ''}{numbers} || code=$?")
        return shell("code=0", *lines, "exit $code")

    def parse_cancel(self, output: Output) -> Rejected | Unclear | None:
        """None: done. Those that are over, or that nobody knows, are fine."""
        told = heard(output)
        if told is None:
            return unclear("scancel", output)
        _, said = told
        words = text_of(said.stderr)
        wrong = [line for line in words.splitlines() if "error" in line and not HARMLESS_CANCELS.search(line)]
        if not wrong and (said.code == 0 or HARMLESS_CANCELS.search(words)):
            return None
        if wrong and "denied" in words and not UNHEARD.search(words):
            return Rejected(excerpt("\n".join(wrong).encode()))
        return unclear("scancel", said)

    def limits(self, options: Sequence[str]) -> Command:
        """Render the questions for the limits of the partition, and of the person where there is accounting."""
        return shell(*slurm_limits.script(options))

    def parse_limits(self, output: Output) -> Limits:
        """Read the limits; what is not understood is no limit."""
        told = heard(output)
        return Limits() if told is None else slurm_limits.read(text_of(told[1].stdout))

    def enter(self, id: str, node: str, argv: Sequence[str]) -> tuple[str, ...]:
        """Return the srun that runs `argv` beside the holder, on one node, taking nothing from what runs there.

        Its streams pass bytes at once, both ways, and its exit code is that of `argv`. What `argv` leaves in the
        background is killed at its end on most clusters: what is to stay has to be started by the holder. A connection
        that is torn ends nothing by itself; a killed srun ends `argv`.

        Raises ValueError for what is no id, or no name of one node.
        """
        (checked,) = checked_ids([id])
        if not is_node(node):
            raise ValueError(f"{node[:80]!r} is no name of a node")
        cluster = _cluster(checked)
        return (
            *("srun", f"--jobid={_number(checked)}", *((f"--clusters={cluster}",) if cluster else ())),
            *("--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}"),
            # All of the node's CPUs and memory that the allocation has, without taking them away from other steps.
            *("--cpu-bind=none", "--mem=0", "--kill-on-bad-exit=0", "--unbuffered", "--quiet", *argv),
        )


def _past(numbers: Sequence[str]) -> list[str]:
    """Lines of sh that ask sacct for those of which squeue, which answered, said nothing."""
    if not numbers:
        return []
    return [
        "past=",
        f"for id in {' '.join(numbers)}; do",
        'case "\n$told" in *"\n$id|"*) ;; *) past=$past,$id ;; esac',
        "done",
        "case $past:$told in ,*'orch-squeue|0')",
        # A question to a database that hangs must not take the answer of squeue with it.
        f'timeout 5 sacct -nPX --jobs="${{past#,}}" --format={PAST_FORMAT} 2>/dev/null ;;',
        "esac",
    ]


def _sights(rows: Iterable[str], asked: Sequence[str], now: float) -> dict[str, Sight]:
    """Read the lines of squeue that speak of ours, which their names say: a controller that lost its memory gives ids twice.

    Raises ValueError.
    """
    found: dict[str, Sight] = {}
    cluster = ""
    for row in rows:
        if row.startswith("CLUSTER: "):
            cluster = row.removeprefix("CLUSTER: ").strip()
        elif is_header(row) or not row:
            continue
        elif token_at_end(row):
            sight = sight_of(row, now)
            id = _as_asked(sight.id, cluster, asked)
            # In a federation the cluster that gave it away tells of it as well.
            if id not in found or found[id].why.startswith("REVOKED"):
                found[id] = replace(sight, id=id)
    return found


def _as_asked(number: str, cluster: str, asked: Sequence[str]) -> str:
    """The id as whoever asks knows it: with its cluster or without."""
    whole = f"{number};{cluster}" if cluster else number
    if whole in asked:
        return whole
    same = [id for id in asked if _number(id) == number and (not cluster or not _cluster(id))]
    return same[0] if len(same) == 1 else whole


def _number(id: str) -> str:
    return id.partition(";")[0]


def _cluster(id: str) -> str:
    return id.partition(";")[2]


def _time_of(seconds: float) -> str:
    """D-HH:MM:SS, rounded up to minutes."""
    minutes = max(1, -int(-seconds // _MINUTE))
    return f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00"
