"""`runaway plan` and `runaway batch --simulate`: how a batch would run, without starting anything or asking any host.

The batch is prepared as for running it, so what would be refused then is refused now. What is simulated is `liborch.sim.plan`'s;
here a profile becomes a model, and earlier executions of the script become durations.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

from liborch.drive.targets import gpus_of, targets_of
from liborch.errors import QuantityError, SpecError, StorageError
from liborch.journal import Journal
from liborch.places import Places, places
from liborch.plain_text import neutral
from liborch.quantities import format_duration, format_gpus, format_size, parse_duration
from liborch.sim import gantt
from liborch.sim.plan import Model, Outcome, Room, Times, Work, parse_times, simulate
from liborch.specs import AllocationSpec, HostProfile, SlotSpec
from runaway.batches.options import BatchOptions
from runaway.batches.run import Prepared, prepare
from runaway.messages import Messages
from runaway.tables import width

SCHEMA_VERSION = 1
#: So many earlier executions say how long one takes, and no batch before the last few is looked at.
SEEN_MOST = 5000
BATCHES_MOST = 5

_NODES = re.compile(r"([1-9][0-9]*)(?:x([1-9][0-9]*))?(?:x([0-9]+))?")


@dataclasses.dataclass(frozen=True)
class SimulationOptions:
    """What is told about the model; the names are those of the options."""

    duration: str | None = None
    queue_wait: str = "0"
    failures: str = "0"
    model_nodes: str | None = None
    model_seed: int = 0
    gantt: bool = False
    svg: str | None = None


def simulate_batch(options: BatchOptions, told: SimulationOptions) -> int:
    """Do what `runaway plan` says; returns the exit status. Raises OrchestraError."""
    if options.resume:
        raise SpecError("--resume and simulating at once: a plan is of a whole batch; leave --resume away")
    environment = dict(os.environ)
    messages = Messages(environment, quiet=options.silent, verbose=options.verbose)
    folders = places(environment)
    # Nothing is asked of anybody, and nothing begins.
    prepared = prepare(dataclasses.replace(options, dry_run=True), environment, folders, messages)
    model = model_of(prepared, told)
    takes, source = _takes(prepared, told, folders)
    work = work_of(prepared, takes)
    messages.stage("simulating")
    outcome = simulate(model, work, seed=told.model_seed)
    cpus = [room.cpus for room in model.nodes.values()]
    title = f"{work.count} x {prepared.title} on {model.name}"
    if told.svg is not None:
        _write(Path(told.svg), gantt.svg(outcome, title, cpus))
    if options.as_json:
        value = {
            "schema_version": SCHEMA_VERSION,
            "host": model.name,
            "duration_s": takes.expected_s,
            "duration_from": source,
        }
        print(json.dumps({**value, "nodes": len(model.nodes), **outcome.as_dict()}))
    else:
        for line in lines_of(model, work, outcome, source):
            print(neutral(line))
        if told.gantt:
            plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8" or environment.get(
                "TERM"
            ) == "dumb"
            print()
            print("\n".join(map(neutral, gantt.text(outcome, min(width(), 120), cpus, plain=plain))))
    return 0 if not outcome.failed else 1


# ---------------------------------------------------------------------- the model


def model_of(prepared: Prepared, told: SimulationOptions) -> Model:
    """What the hosts of a batch are simulated as. Raises SpecError where their room is not known."""
    if prepared.each:
        raise SpecError("--each runs once on every node: there is nothing to plan")
    queue_wait, failures = _times(told.queue_wait, "--queue-wait"), _rate(told.failures)
    clusters = [profile for profile in prepared.profiles if profile.batch_system != "none"]
    if clusters and len(prepared.profiles) > 1:
        raise SpecError(
            f"{prepared.hosts}: a cluster is planned alone; name {clusters[0].name}, or only hosts without a batch system"
        )
    if clusters:
        profile = clusters[0]
        spec = profile.allocation or AllocationSpec()
        count, room = _model_nodes(told, profile, spec.nodes * spec.most)
        nodes = {f"{profile.name}{number:0{len(str(count))}d}": room for number in range(1, count + 1)}
        return Model(profile.name, nodes, spec, queue_wait, failures)
    nodes = {}
    for profile in prepared.profiles:
        if told.model_nodes is not None:
            count, room = _model_nodes(told, profile, 1)
            nodes.update({f"{profile.name}{number}": room for number in range(1, count + 1)})
            continue
        for target in targets_of(profile):
            nodes[target.name] = _room(target.slots, profile, target.name)
    return Model(prepared.hosts, nodes, None, queue_wait, failures)


def _model_nodes(told: SimulationOptions, profile: HostProfile, count: int) -> tuple[int, Room]:
    if told.model_nodes is None:
        return count, _room(profile.slots, profile, profile.name)
    found = _NODES.fullmatch(told.model_nodes)
    if found is None:
        raise SpecError(
            f"--model-nodes {told.model_nodes}: expected NODES, NODESxCORES or NODESxCORESxGPUS, such as 4x64 or 4x64x2"
        )
    nodes, cores, gpus = found.groups()
    if cores is None:
        return int(nodes), _room(profile.slots, profile, profile.name)
    return int(nodes), Room(int(cores), 1 << 60, int(gpus or 0))


def _room(slots: SlotSpec, profile: HostProfile, name: str) -> Room:
    """What a profile says of a node's room; this machine's is known anyway."""
    if slots.count is not None:
        # Memory that nobody limits is enough for all.
        memory = slots.count * slots.memory_bytes if slots.memory_bytes else 1 << 60
        return Room(slots.count * (slots.cpus or 1), memory, gpus_of(slots))
    if profile.ssh == "local":
        return Room(os.cpu_count() or 1, 1 << 60, len(slots.gpu_ids))
    raise SpecError(
        f"{name}: how much room a node has is not known without asking it; say --slots N (executions at a time on each node), "
        "--model-nodes NODESxCORES, or give the profile `slots`"
    )


def _times(text: str, option: str) -> Times:
    try:
        return parse_times(text)
    except QuantityError as error:
        raise SpecError(f"{option}: {error}; or with a spread, such as 10m±2m") from error


def _rate(text: str) -> float:
    """`1%` or `0.01` of the nodes per hour."""
    number, percent, rest = text.strip().partition("%")
    try:
        found = float(number) / (100.0 if percent else 1.0)
    except ValueError:
        found = -1.0
    if rest or not 0.0 <= found < 1e6:
        raise SpecError(f"--failures {text}: expected failures of a node per hour, such as 0.01 or 1%")
    return found


# ---------------------------------------------------------------------- the work


def work_of(prepared: Prepared, takes: Times) -> Work:
    """The batch, as far as it matters for a plan."""
    options, resources = prepared.options, prepared.resources
    return Work(
        prepared.plan.count,
        takes,
        cpus=resources.counted_cpus,
        memory_bytes=resources.memory_bytes,
        gpus=resources.gpus,
        walltime_s=options.walltime,
        retries=options.retries,
        node_count=options.nodes,
    )


def _takes(prepared: Prepared, told: SimulationOptions, folders: Places) -> tuple[Times, str]:
    """How long executions take, and where that is from. Raises SpecError when nobody knows."""
    if told.duration is not None:
        path = Path(told.duration)
        if path.is_file():
            return _from_file(path), str(path)
        try:
            return _times(told.duration, "--duration"), "--duration"
        except SpecError as error:
            raise SpecError(f"{error}; or a file with one duration per line") from error
    seen = _from_history(prepared, folders)
    if not seen:
        raise SpecError(
            "how long an execution takes is not known: none of this script has succeeded in a batch from this folder; say "
            "--duration 10m, 10m±2m, or a file with one duration per line"
        )
    return Times(seen=tuple(seen)), f"{len(seen)} earlier executions"


def _from_file(path: Path) -> Times:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if line.strip():
            try:
                found.append(parse_duration(line))
            except QuantityError as error:
                raise SpecError(f"{path}, line {number}: {error}") from error
    if not found:
        raise SpecError(f"{path} is empty; expected one duration per line")
    return Times(seen=tuple(found))


def _from_history(prepared: Prepared, folders: Places) -> list[float]:
    """What executions of the last batches of this script took: those that know it best are asked first."""
    journal = Journal.open(folders.journal, readonly=True)
    rows = journal.orchestrations(kind="batch")
    for key in prepared.keys:
        found: list[float] = []
        same = [row for row in rows if key in json.loads(row.details).get("keys", ())]
        for row in same[:BATCHES_MOST]:
            for each in journal.executions(row.id, ("succeeded",), limit=SEEN_MOST - len(found)):
                if each.started_at is not None and each.ended_at is not None:
                    found.append(max(0.0, each.ended_at - each.started_at))
        if found:
            return found
    return []


# ---------------------------------------------------------------------- what is printed


def lines_of(model: Model, work: Work, outcome: Outcome, source: str) -> list[str]:
    """For people."""
    some = next(iter(model.nodes.values()))
    alike = all(room == some for room in model.nodes.values())
    where = f"{len(model.nodes)} nodes" + (f" x {some.cpus} cores" if alike else "")
    spec = model.allocation
    if spec is not None:
        lasting = f" for {format_duration(spec.walltime_s)}" if spec.walltime_s is not None else ""
        where += f", allocations of up to {spec.nodes}{lasting}, {spec.most} at a time"
    asks = [f"{work.cpus} cores"] if work.cpus > 1 else []
    asks += [format_size(work.memory_bytes)] if work.memory_bytes else []
    asks += [format_gpus(work.gpus)] if work.gpus else []
    asks += [f"{work.node_count} nodes"] if work.node_count > 1 else []
    found: list[tuple[str, str]] = [
        ("executions", f"{work.count}, {format_duration(work.takes.expected_s)} each ({source})" + "".join(f", {each}" for each in asks)),
        ("on", f"{model.name}: {where}"),
        ("makespan", format_duration(outcome.makespan_s)),
        ("utilisation", f"{outcome.utilisation:.1%}"),
        ("waiting", "mean {}, median {}, longest {}".format(*map(format_duration, (outcome.mean_wait_s, outcome.median_wait_s, outcome.longest_wait_s)))),
        ("node-hours", f"{outcome.node_hours:.3g}"),
    ]  # fmt: skip
    if spec is not None:
        found.insert(5, ("allocations", str(len(outcome.allocations))))
    if outcome.cut_off or outcome.lost:
        found.append(("again", f"{outcome.cut_off} attempts cut off, {outcome.lost} lost"))
    if outcome.node_failures:
        found.append(("failures", f"{outcome.node_failures} of nodes"))
    if outcome.failed:
        found.append(("failed", f"{outcome.failed}: {outcome.why}"))
    return [f"{what:<12} {text}" for what, text in found]


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise StorageError("here", str(path), error.errno or 0, "writing the drawing") from error
