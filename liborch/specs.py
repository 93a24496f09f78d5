"""What a person asks for: resources, executions, host profiles. Frozen, validated when made, free of behaviour.

Text is `str`; bytes that are no UTF-8 (arguments, names) are carried as surrogate escapes, as Python does with
`sys.argv`, and arrive byte for byte. Durations are seconds, sizes bytes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from liborch.errors import QuantityError, SpecError

#: Linux's MAX_ARG_STRLEN: one argument or NAME=value longer than this cannot be handed to a program.
MAX_ARGUMENT_BYTES = 128 * 1024 - 1

Leave = Literal["nothing", "code", "everything"]
BatchSystem = Literal["none", "slurm", "oar", "pbs", "sge", "lsf", "procedures"]
#: Those through which nodes can be entered that accept no ssh.
ENTERED = ("slurm", "oar")


class Resources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Room that one execution takes on a node."""

    #: Cores; None: not asked for, counted as one and not enforced.
    cpus: int | None = None
    #: Bytes of memory, a limit; 0: not asked for, not enforced.
    memory_bytes: int = 0
    #: GPUs, given by UUID: whole ones, or a share of one below 1, which others may have the rest of.
    gpus: int | float = 0
    #: Bind to this NUMA node; None: any.
    numa: int | None = None

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise SpecError(f"cpus must be at least 1, not {self.cpus}")
        if self.memory_bytes < 0 or self.gpus < 0:
            raise SpecError("memory and gpus cannot be negative")
        if type(self.gpus) is not int:
            msgspec.structs.force_setattr(self, "gpus", _counted_gpus(self.gpus))

    @property
    def counted_cpus(self) -> int:
        """Cores as accounted for."""
        return 1 if self.cpus is None else self.cpus

    def describe(self) -> str:
        """`2 cores, 4 GiB, 1 GPU`, for messages."""
        from liborch.quantities import format_gpus, format_size

        parts = [f"{self.counted_cpus} core{'s' if self.counted_cpus > 1 else ''}"]
        if self.memory_bytes:
            parts.append(format_size(self.memory_bytes))
        if self.gpus:
            parts.append(format_gpus(self.gpus))
        if self.numa is not None:
            parts.append(f"NUMA node {self.numa}")
        return ", ".join(parts)


def _counted_gpus(gpus: float) -> float:
    from liborch.quantities import checked_gpus

    try:
        return checked_gpus(gpus)
    except QuantityError as error:
        raise SpecError(str(error)) from error


class Transfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What travels with an execution: a folder of this machine to the node, results back."""

    #: Absolute path of the folder that is sent.
    local_folder: str
    #: Where it goes on the host, and where the execution runs; $RUNAWAY_PATH and the host's variables are filled in there.
    remote_folder: str
    #: Where results go on this machine: a pattern, see `liborch.patterns`.
    output_folder: str
    #: Values of the pattern's names that are known before the execution.
    variables: dict[str, str] = {}
    send_ignore: str | None = None
    fetch_ignore: str | None = None
    #: Folders in `local_folder` that hold results of executions, by relative path: never sent.
    results: tuple[str, ...] = ()
    #: The snapshot that was taken at submission; "": nothing is sent.
    snapshot: str = ""
    leave: Leave = "nothing"
    #: Bring results back.
    fetch: bool = True
    #: More executions need the same snapshot: it stays on the host until the last of them is over (`Driver.sweep`).
    shared: bool = False


class ExecutionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One command to run on a node: code + arguments + place."""

    #: The command and its arguments. A command without a slash is looked up on the host's PATH.
    argv: tuple[str, ...]
    #: Added to the node's environment.
    env: dict[str, str] = {}
    #: Folder on the host to run in, after variables of the host are substituted; None: the execution's own folder when
    #: something is sent to it, else the home folder.
    folder: str | None = None
    #: Commands run by one bash instead of argv (a profile's `execution`); argv is then in RUNAWAY_ARGUMENTS.
    procedure: tuple[str, ...] = ()
    resources: Resources = Resources()
    #: Killed after so many seconds on the node's monotonic clock; None: no limit.
    walltime_s: float | None = None
    #: Between TERM and KILL, when cancelled or out of time.
    grace_s: float = 10.0
    #: Further attempts allowed after the first, for the reasons in `retry_on`.
    retries: int = 0
    #: Reasons (see `liborch.core.verdict`), or "exit:N".
    retry_on: tuple[str, ...] = ("lost",)
    #: Higher goes first.
    priority: int = 0
    #: Only on these nodes; empty: on any.
    nodes: tuple[str, ...] = ()
    #: Run on so many nodes at once, with `resources` on each: see RUNAWAY_RANK in docs/nodes.md.
    node_count: int = 1
    #: Run on a pseudo-terminal of (columns, rows).
    tty: tuple[int, int] | None = None
    #: Let processes that outlive the main one go on.
    keep_survivors: bool = False
    #: Its output is wanted while it is written.
    live: bool = False
    transfer: Transfer | None = None
    #: What `ps` shows.
    label: str = ""
    #: What a person varies, by name; recorded with the result, seen by nobody else.
    parameters: dict[str, str] = {}
    #: Where its outcome is written on this machine, a pattern (see `liborch.patterns`); "": nowhere.
    outcome_folder: str = ""
    #: Words of a command that is run on this machine when its results are here, before its verdict is on record; empty: none.
    post: tuple[str, ...] = ()
    #: Names its content (code, command, parameters, resources): what was done already is known by it. "": nobody asks.
    identity: str = ""

    def __post_init__(self) -> None:
        if not self.argv and not self.procedure:
            raise SpecError("an execution needs a command")
        for word in (*self.argv, *(f"{k}={v}" for k, v in self.env.items())):
            if "\0" in word:
                raise SpecError(f"{word[:60]!r} holds a NUL byte: no program can be given one")
            if (
                len(word) * 4 > MAX_ARGUMENT_BYTES
                and len(word.encode(errors="surrogateescape")) > MAX_ARGUMENT_BYTES
            ):
                raise SpecError(
                    f"{word[:40]!r}... is {len(word)} characters long; the most a program can be given is "
                    f"{MAX_ARGUMENT_BYTES} bytes each: send it as a file"
                )
        for name in self.env:
            if not name or "=" in name:
                raise SpecError(f"{name!r} is no name of a variable")
        if self.walltime_s is not None and self.walltime_s <= 0:
            raise SpecError(f"walltime must be positive, not {self.walltime_s}")
        if self.grace_s < 0 or self.retries < 0:
            raise SpecError("grace and retries cannot be negative")
        if self.node_count < 1:
            raise SpecError(f"it needs at least 1 node, not {self.node_count}")
        if self.node_count > 1 and (self.live or self.tty):
            raise SpecError(
                "what runs on several nodes has no terminal, and its output is collected at its end"
            )


class SlotSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a node is cut into slots. With nothing set: one slot per core, as the node itself counts them."""

    #: Slots per node.
    count: int | None = None
    #: Cores, GPUs and memory of each slot.
    cpus: int | None = None
    gpus: int | float | None = None
    memory_bytes: int | None = None
    #: Only the cores of this NUMA node, and bound to them; None: any.
    numa: int | None = None
    #: Only these GPUs: numbers, in the order of the node's own tool, or UUIDs; empty: any.
    gpu_ids: tuple[str, ...] = ()


class NodeSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node of a host without a batch system."""

    #: SSH alias, user@name:port, or `local`.
    ssh: str
    slots: SlotSpec | None = None


class AllocationSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to ask a batch system for."""

    #: Nodes of one allocation, at most; what waits may need fewer.
    nodes: int = 1
    #: And at least.
    least: int = 1
    walltime_s: float | None = None
    #: Allocations at a time, queued or active.
    most: int = 1
    #: Passed on to the batch system's submit command.
    options: tuple[str, ...] = ()


class Procedures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The 2020 runaway's shell procedures; each a list of bash commands run in one shell."""

    start_allocation: tuple[str, ...] = ()
    cancel_allocation: tuple[str, ...] = ()
    get_node_handles: tuple[str, ...] = ()
    node_proxycommand: str = ""
    #: After it slots of the allocation are no longer issued.
    allocation_duration_s: float | None = None


class Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An allocation that somebody asked for before."""

    #: The batch system's word for it, which it may give to another one later; and what makes its name unique for all time.
    id: str
    token: str


class HostProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A host as a person describes it in a profile, or as derived from an alias."""

    name: str
    #: How to reach the frontend; "local": this machine. A profile with `nodes` and no frontend has its first node here.
    ssh: str
    #: Where execution folders go (RUNAWAY_PATH); variables are expanded on the host.
    directory: str = "$HOME/orchestra"
    batch_system: BatchSystem = "none"
    allocation: AllocationSpec | None = None
    slots: SlotSpec = SlotSpec()
    connect: Literal["ssh", "batch_system"] = "ssh"
    #: Commands around each execution; empty: the script is run directly.
    execution: tuple[str, ...] = ()
    #: Nodes of a host without a batch system; empty: the frontend itself.
    nodes: tuple[NodeSpec, ...] = ()
    procedures: Procedures | None = None
    #: An allocation that is there already: its nodes are used and no others are asked for; None: they are asked for.
    held: Held | None = None
    #: File the profile came from, "" when derived from an alias.
    source: str = ""
