"""Slurm's words and what they mean in ours: states, reasons, refusals, and the options of sbatch that are not the person's.

Slurm's own lists, from 17.11 to 25.05: `job_state_string`, `job_state_reason_string` and `slurm_strerror` in its sources.
How they are asked for and read is `slurm`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from liborch.batch_systems._reading import refusals
from liborch.batch_systems.base import End, State

#: Slurm's state -> ours and how it ended. PENDING is "held" for some reasons, see `is_held`.
STATES: Final[dict[str, tuple[State, End]]] = {
    "PENDING": ("queued", ""),
    # Its nodes are being booted or cleaned: they are named already, but cannot be used.
    "CONFIGURING": ("queued", ""),
    "POWER_UP_NODE": ("queued", ""),
    "REQUEUED": ("queued", ""),
    "REQUEUE_FED": ("queued", ""),
    "REQUEUE_HOLD": ("held", ""),
    "SPECIAL_EXIT": ("held", ""),
    "RESV_DEL_HOLD": ("held", ""),
    "RUNNING": ("active", ""),
    "EXPEDITING": ("active", ""),
    "RESIZING": ("active", ""),
    "SIGNALING": ("active", ""),
    "UPDATE_DB": ("active", ""),
    # Frozen, but not over: what runs there goes on when it is resumed.
    "SUSPENDED": ("active", ""),
    "STOPPED": ("active", ""),
    "COMPLETING": ("ending", ""),
    "STAGE_OUT": ("ending", ""),
    "LAUNCH_FAILED": ("ending", ""),
    "RECONFIG_FAIL": ("ending", ""),
    # Another cluster of the federation has it; this one cannot say more.
    "REVOKED": ("ending", ""),
    "COMPLETED": ("ended", "done"),
    "FAILED": ("ended", "failed"),
    "CANCELLED": ("ended", "cancelled"),
    "TIMEOUT": ("ended", "timeout"),
    "DEADLINE": ("ended", "timeout"),
    "PREEMPTED": ("ended", "preempted"),
    "NODE_FAIL": ("ended", "node"),
    "BOOT_FAIL": ("ended", "node"),
    "OUT_OF_MEMORY": ("ended", "memory"),
}

#: How one that is being taken down will have ended, where the reason says it already.
ENDS: Final[dict[str, End]] = {
    "TimeLimit": "timeout",
    "DeadLine": "timeout",
    "NodeDown": "node",
    "NodeFail": "node",
    "BootFail": "node",
    "OutOfMemory": "memory",
    "NonZeroExitCode": "failed",
    "RaisedSignal": "failed",
    "JobLaunchFailure": "failed",
}

#: Reasons of a pending one that asks for what it can never have.
_HOPELESS: Final = frozenset(
    {
        *("InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed", "MaxMemPerLimit"),
        *("PartitionTimeLimit", "QOSTimeLimit", "AssociationTimeLimit", "InvalidBBRequest"),
        *("QOSMinCpuNotSatisfied", "QOSMinGRES", "QOSMinMemory", "QOSMinNode"),
    }
)
#: And of one that no time will mend, but somebody: who holds it, or who sees to nodes (PartitionNodeLimit is told as well while
#: too many of them are down).
_HELD: Final = _HOPELESS | frozenset(
    {
        *("JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue", "DependencyNeverSatisfied", "BadConstraints"),
        *("PartitionNodeLimit", "PartitionConfig", "ReservationDeleted", "ReservationInvalid", "FedJobLock"),
        *("launch_failed_requeued_held", "launch failed requeued held", "job requeued in held state"),
    }
)
#: Limits on one allocation, or on what it takes of a node: QOSMaxNodePerJobLimit, AssocMaxWallDurationPerJobLimit...
#: Limits on what a person or an account has at a time pass as others end.
_HELD_LIMIT = re.compile(r"(?:QOS|Assoc)Max\w*Per(?:Job|Node)(?:Limit)?\Z")


def is_held(reason: str) -> bool:
    """Whether one that is pending for this reason waits for a person, not for nodes."""
    return reason in _HELD or _HELD_LIMIT.match(reason) is not None


def is_hopeless(reason: str) -> bool:
    """Whether one that is pending for this reason can never begin, so that only another request will do."""
    return reason in _HOPELESS or _HELD_LIMIT.match(reason) is not None


#: What says that nobody knows whether the controller took the submission: the answer was lost, not the question.
UNHEARD: Final = re.compile(
    r"timed out|contact slurm controller|zero bytes|message (?:receive|send)|connection (?:failure|refused|reset|rejected)"
    r"|unexpected (?:message|missing)|insane message|header lengths|broken pipe|not connected|authentication"
    r"|no route to host|network is unreachable|interrupted system call|shutting down|missing socket|standby"
    r"|bad file descriptor|input/output error|i/o error|communication",
    re.IGNORECASE,
)

#: What Slurm says when it refuses for certain, and whether asking later may help. The first that fits holds.
REFUSALS: Final = refusals(
    # Slurm 20.11 and newer name the limit on a line of its own.
    (r"(?:QOS|Assoc)(?:Max|Grp)Submit\w*Limit", True),
    (r"MaxJobCount|job queue full|temporarily (?:unable|unavailable|disabled)|rate limit exceeded", True),
    # A maintenance passes.
    (r"required (?:node|partition) not available|nodes are busy|presently disabled", True),
    (
        r"invalid (?:partition|account|qos|wckey|feature|generic resource|license|node|job array|time|user)",
        False,
    ),
    (r"requested (?:time limit|node|partition|reservation|operation|account)", False),
    (r"job violates accounting|access/permission denied|access denied|burst buffer", False),
    (r"(?:node count|cpu count|task count|task distribution) specification", False),
    (r"more processors requested|memory (?:required|specification)|no partition specified", False),
    (r"user's group not permitted|job dependency|circular", False),
    (r"unrecognized option|invalid option|requires an argument|option .* is ambiguous|doesn't allow", False),
    (r"sbatch: (?:error|fatal): .*(?:specification|invalid|unable to process conf)", False),
    # A site's own checks answer so, with their words on the lines before.
    (r"batch job submission failed: unspecified error", False),
    (r"sbatch.*(?:not found|no such file)", False),
)

_BATCH: Final = "how many allocations there are is the profile's: allocation: {most: ...}"
_STEP: Final = "it makes sbatch do something else than ask for nodes"
_NAME: Final = "an allocation is found again by its name, which is ours"
_NODES: Final = "nodes are the profile's: allocation: {nodes: ...}"
_TIME: Final = "walltime is the profile's: allocation: {walltime: ...}"
_WAIT: Final = "who waits for nodes is not sbatch"
_CLUSTERS: Final = "which cluster is asked has to be known to every question about it as well: set SLURM_CLUSTERS on the host"

#: Options of sbatch that the person cannot set, and what to do instead.
OURS: Final = {
    **dict.fromkeys(("--job-name", "-J"), _NAME),
    **dict.fromkeys(("--nodes", "-N"), _NODES),
    **dict.fromkeys(("--time", "-t"), _TIME),
    **dict.fromkeys(("--array", "-a"), _BATCH),
    **dict.fromkeys(("--wait", "-W"), _WAIT),
    **dict.fromkeys(("--clusters", "--cluster", "-M"), _CLUSTERS),
    **dict.fromkeys(
        ("--parsable", "--wrap", "--test-only", "--help", "-h", "--usage", "--version", "-V", "--"), _STEP
    ),
}
#: One-letter options of those whose value may follow at once, and those that have none.
OURS_ATTACHED: Final = "JNtaMWhV"

#: Options of sbatch that say how much of each node is wanted; without one, all of it is.
SHARES: Final = (
    *("--exclusive", "--oversubscribe", "-s", "--overcommit", "-O", "--share"),
    *("--ntasks", "-n", "--ntasks-per-node", "--ntasks-per-socket", "--ntasks-per-core", "--tasks-per-node"),
    *(
        "--cpus-per-task",
        "-c",
        "--cpus-per-gpu",
        "--mincpus",
        "--cores-per-socket",
        "--extra-node-info",
        "-B",
    ),
)
SHARES_ATTACHED: Final = "ncB"

#: Options of sbatch that take no value of a word of its own; one after them would be a script to run.
_FLAGS: Final = frozenset(
    {
        *("-h", "-H", "-I", "-k", "-O", "-Q", "-s", "-v", "-W"),
        *(
            "--hold",
            "--contiguous",
            "--exclusive",
            "--get-user-env",
            "--ignore-pbs",
            "--no-kill",
            "--no-requeue",
        ),
        *(
            "--overcommit",
            "--oversubscribe",
            "--share",
            "--propagate",
            "--quiet",
            "--reboot",
            "--requeue",
            "--nice",
        ),
        *(
            "--spread-job",
            "--use-min-nodes",
            "--verbose",
            "--immediate",
            "--kill-on-invalid-dep",
            "--parsable",
        ),
    }
)


def apart(options: Sequence[str]) -> list[str]:
    """The same with one-letter options apart from each other: `-HN2` is `-H`, `-N2`."""
    found: list[str] = []
    for word in options:
        while len(word) > 2 and word[0] == "-" != word[1] and word[:2] in _FLAGS:
            found.append(word[:2])
            word = "-" + word[2:]
        found.append(word)
    return found


def stray(options: Sequence[str]) -> str | None:
    """The first word that is neither an option nor one's value: sbatch would run it as its script, instead of ours."""
    takes_one = False
    for word in options:
        if word.startswith("-") and word != "-":
            takes_one = "=" not in word and word not in _FLAGS and (word.startswith("--") or len(word) == 2)
        elif takes_one:
            takes_one = False
        else:
            return word
    return None


#: What scancel says of those that are over already, or that nobody knows.
HARMLESS_CANCELS: Final = re.compile(
    r"invalid job id|already completing or completed|job has already finished|no matching jobs", re.IGNORECASE
)

#: Variables that change what a command of Slurm does, as options would.
SBATCH_VARIABLES: Final = "SBATCH_ARRAY_INX SBATCH_CLUSTERS SBATCH_JOB_NAME SBATCH_TEST_ONLY SBATCH_TIMELIMIT SBATCH_WAIT SBATCH_HOLD"
SQUEUE_VARIABLES: Final = (
    "SQUEUE_ACCOUNT SQUEUE_ALL SQUEUE_ARRAY SQUEUE_ARRAY_UNIQUE SQUEUE_FEDERATION SQUEUE_FORMAT SQUEUE_FORMAT2 "
    "SQUEUE_LICENSES SQUEUE_LOCAL SQUEUE_NAMES SQUEUE_PARTITION SQUEUE_PRIORITY SQUEUE_QOS SQUEUE_SIBLING SQUEUE_SORT "
    "SQUEUE_STATES SQUEUE_USERS"
)
