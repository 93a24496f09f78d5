"""`runaway batch`: prepare, plan, drive, end with a status. What is executed is told by `sources` and `folders`; driving is `drive`'s."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from liborch import patterns
from liborch.drive.driver import Driver
from liborch.drive.feeding import Feeder
from liborch.drive.orders import own_part
from liborch.drive.session import details_of, driving
from liborch.drive.targets import targets_of
from liborch.drive.transfers import Snapshots
from liborch.errors import SpecError
from liborch.journal import NewExecution
from liborch.places import Places, places
from liborch.profiles.find import find_host
from liborch.profiles.procedures import join_arguments
from liborch.specs import AllocationSpec, ExecutionSpec, HostProfile, Resources, SlotSpec, Transfer
from runaway.allocations import borrow
from runaway.asking import ask_person
from runaway.background import Background
from runaway.batches.drive import Batch
from runaway.batches.folders import Folders, make_folders
from runaway.batches.identity import identities
from runaway.batches.options import BatchOptions
from runaway.batches.places import choose
from runaway.batches.post import post_words
from runaway.batches.sources import Plan, Planned, make_plan
from runaway.messages import Messages
from runaway.preparing import BrokenOff, Sending, ignore_file, refuse_home
from runaway.scripts import Script, find_script
from runaway.secrets import hide_words
from runaway.wanted import resources_of

#: More executions than this are asked about first.
ASK_ABOVE = 2_000_000
#: Executions that enter the journal together: the first few at once, so that work begins.
FIRST_CHUNK = 200
CHUNK = 2000
#: For so long the rest of a plan waits for links to be opened, in seconds.
WAY_S = 1.0


@dataclass(frozen=True)
class Prepared:
    """A batch that may begin: everything that can be wrong has been looked at."""

    options: BatchOptions
    profiles: list[HostProfile]
    script: Script
    plan: Plan
    folders: Folders
    sending: Sending | None
    own: dict[str, str]
    cwd: Path
    #: Words of the post command.
    post: tuple[str, ...] = ()
    #: With `--each`: where each repetition runs.
    each: tuple[str, ...] = ()

    @property
    def resources(self) -> Resources:
        """What each execution asks for."""
        options = self.options
        return resources_of(self.profiles, options.cpus, options.mem, options.gpus)

    @property
    def keys(self) -> list[str]:
        """What `--resume` knows a batch again by, the first that fits: script, arguments and hosts; script and arguments; script. All
        in this folder, and in their words: what is in files may have changed."""
        o = self.options
        script = [str(self.cwd), o.script]
        source = [*script, o.template, o.arguments_file, o.grids, o.csv, o.jsonl, o.repeats]
        whole = [*source, o.remotes, o.output_folder, o.outputs_file]
        return [
            hashlib.sha256(json.dumps(each).encode("ascii")).hexdigest()[:32]
            for each in (whole, source, script)
        ]

    @property
    def title(self) -> str:
        """What `ps` shows."""
        return " ".join([self.options.script, *hide_words(self.options.template)])[:200]

    @property
    def hosts(self) -> str:
        """All of them, as one name."""
        return ",".join(profile.name for profile in self.profiles)

    def common(self, snapshot: str) -> ExecutionSpec:
        """What all executions have in common."""
        options = self.options
        procedure = self.profiles[0].execution
        env = {**self.own, **dict(options.variables)}
        if procedure:
            env["RUNAWAY_SCRIPT_PATH"] = self.script.path
        transfer = None
        if self.sending is not None:
            transfer = Transfer(
                local_folder=str(self.sending.folder),
                remote_folder="",
                output_folder="",
                variables=self._known(snapshot),
                send_ignore=str(self.sending.send_ignore) if self.sending.send_ignore else None,
                fetch_ignore=str(self.sending.fetch_ignore) if self.sending.fetch_ignore else None,
                results=self.sending.results,
                snapshot=snapshot,
                leave=self._leave,
                fetch=not options.stay,
                shared=True,
            )
        return ExecutionSpec(
            argv=self.script.argv,
            env=env,
            procedure=procedure,
            resources=self.resources,
            walltime_s=options.walltime,
            retries=options.retries,
            retry_on=options.retry_on,
            node_count=options.nodes,
            transfer=transfer,
            post=self.post,
        )

    @property
    def _leave(self) -> Any:
        stays = self.options.stay and self.options.leave == "nothing"
        return "everything" if stays else self.options.leave

    def _known(self, snapshot: str) -> dict[str, str]:
        return {
            **self.own,
            "RUNAWAY_REMOTE": self.hosts,
            "RUNAWAY_LEAVE": self._leave,
            "RUNAWAY_SCRIPT_PATH": self.script.path,
            "RUNAWAY_LOCAL_FOLDER": str(self.script.folder or self.cwd),
            "RUNAWAY_SEND_HASH": snapshot,
        }

    def spec(
        self, common: ExecutionSpec, snapshot: str, x: str, name: str, planned: Planned
    ) -> ExecutionSpec:
        """One execution's."""
        words = planned.arguments
        varying = {**planned.variables, "RUNAWAY_UUID": x}
        arguments = join_arguments(words)
        output = self.folders.output(planned).text
        transfer = common.transfer
        if transfer is not None:
            values = self.folders.values(planned, **{**self._known(snapshot), "RUNAWAY_UUID": x})
            remote = self.folders.remote(planned).fill({**values, "RUNAWAY_PATH": "${RUNAWAY_PATH}"})
            transfer = msgspec.structs.replace(
                transfer,
                remote_folder=remote,
                output_folder=os.path.join(self.cwd, output) if "$" not in output else output,
                variables={**transfer.variables, **varying, "RUNAWAY_ARGUMENTS": arguments},
            )
        env = {**common.env, **varying}
        if common.procedure:
            env["RUNAWAY_ARGUMENTS"] = arguments
        return msgspec.structs.replace(
            common,
            argv=words if common.procedure else (*self.script.argv, *words),
            env=env,
            transfer=transfer,
            label=" ".join([self.options.script, *hide_words(words)])[:200],
            parameters=planned.parameters,
            outcome_folder=output,
            identity=name,
            nodes=(self.each[planned.repetition],) if self.each else (),
        )


def prepare(
    options: BatchOptions,
    environment: dict[str, str],
    folders: Places,
    messages: Messages,
    lent: HostProfile | None = None,
) -> Prepared:
    """Look at everything that can be wrong before anything starts. Raises OrchestraError.

    Args:
        lent: One of the hosts, of which only an allocation that is there already is used.
    """
    cwd = Path.cwd()
    names = [name.strip() for name in options.remotes.split(",") if name.strip()]
    if not names:
        raise SpecError("REMOTE is empty: name a host, or several with commas")
    profiles = []
    for name in dict.fromkeys(names):
        messages.stage(f"loading host {name}")
        profile = (
            lent if lent and lent.name == name else find_host(name, folders.profiles, folders.ssh_config)
        )
        if options.slots is not None:
            profile = msgspec.structs.replace(profile, slots=SlotSpec(count=options.slots), nodes=tuple(
                msgspec.structs.replace(node, slots=None) for node in profile.nodes
            ))  # fmt: skip
        profiles.append(profile)
    profiles = choose(profiles, options.on, options.exclude)
    each: tuple[str, ...] = ()
    if options.each:
        if options.repeats > 1:
            raise SpecError("--each and --repeats at once; expected one of them")
        for profile in profiles:
            if profile.batch_system != "none":
                raise SpecError(
                    f"--each: which nodes {profile.batch_system} will grant on {profile.name} is not known in advance"
                )
        each = tuple(target.name for profile in profiles for target in targets_of(profile))
    _check_nodes(options, profiles)
    for other in profiles[1:]:
        if other.execution != profiles[0].execution:
            one = profiles[0] if profiles[0].execution else other
            raise SpecError(
                f"the profiles of {profiles[0].name} and {other.name} say `execution` differently ({one.name}: {one.execution[0]!r}, ...): "
                "a batch runs one and the same. Begin a batch for each, or give both profiles the same `execution`"
            )
    script = find_script(options.script, cwd)
    post = post_words(options.post_command, options.post_script, cwd)
    own = patterns.caller_variables(environment, env_read=not options.no_env_read)
    plan = make_plan(
        options.template,
        arguments_file=options.arguments_file,
        grids=options.grids,
        csv=options.csv,
        jsonl=options.jsonl,
        repeats=len(each) or options.repeats,
        shuffle=options.shuffle,
        seed=options.seed,
        stdin=sys.stdin.buffer,
    )
    # Before each of them is looked at, which takes its time.
    asks = plan.count > ASK_ABOVE and not options.yes and not options.dry_run
    if asks and ask_person(f"{plan.count:,} executions. Go on? [y/N]") not in ("y", "yes"):
        raise SpecError(f"these are {plan.count:,} executions; say --yes if that is meant")
    where = make_folders(
        plan,
        output_folder=options.output_folder,
        outputs_file=options.outputs_file,
        remote_folder=options.remote_folder,
        remotes_file=options.remotes_file,
        environment=environment,
        env_read=not options.no_env_read,
        common={"RUNAWAY_SCRIPT_PATH": script.path, "RUNAWAY_LOCAL_FOLDER": str(script.folder or cwd)},
        stdin=sys.stdin.buffer,
    )
    sending = None
    if script.folder is not None:
        refuse_home(script.folder, environment)
        messages.stage("reading ignore files")
        sending = Sending(
            script.folder,
            script,
            ",".join(names),
            own,
            environment,
            not options.no_env_read,
            ignore_file(options.send_ignore, "--send-ignore", cwd),
            ignore_file(options.fetch_ignore, "--fetch-ignore", cwd),
            options.leave,
            options.stay,
            shared=True,
            results=where.results_in(str(script.folder), str(cwd)),
        )
    if not options.into_existing and not options.resume:
        where.check_unused(plan, str(cwd))
    return Prepared(options, profiles, script, plan, where, sending, own, cwd, post, each)


def _check_nodes(options: BatchOptions, profiles: list[HostProfile]) -> None:
    """Raises SpecError when there are fewer nodes than an execution is to run on."""
    if options.nodes == 1:
        return
    if options.each:
        raise SpecError("--each and --nodes at once; expected one of them")
    if options.follow:
        raise SpecError("--follow and --nodes at once: output of several nodes is collected at its end")
    clusters = [each for each in profiles if each.batch_system != "none"]
    largest = max(((each.allocation or AllocationSpec()).nodes for each in clusters), default=0)
    if largest >= options.nodes:
        return
    if largest and len(clusters) == len(profiles):
        raise SpecError(
            f"--nodes {options.nodes}: an allocation of {options.remotes} has at most {largest}; "
            "ask for a larger one with --alloc, or in the profile's `allocation`"
        )
    known = [target.name for profile in profiles for target in targets_of(profile)]
    if len(known) < options.nodes:
        raise SpecError(
            f"--nodes {options.nodes}: {options.remotes} has {len(known)}, {', '.join(known)}; name more hosts, or a profile with `nodes`"
        )


async def run_batch(
    options: BatchOptions,
    background: Background | None = None,
    began: Callable[[str], object] = lambda _batch: None,
) -> int:
    """Do what `runaway batch` says; returns the exit status. Raises OrchestraError.

    Args:
        background: Go there when it is on its way.
        began: Told the batch's id once it is on record.
    """
    environment = dict(os.environ)
    messages = Messages(environment, quiet=options.silent, verbose=options.verbose)
    folders = places(environment)
    prepared = prepare(options, environment, folders, messages, await _borrow(options, folders))
    if options.dry_run:
        show_plan(prepared)
        return 0
    if options.resume:
        from runaway.batches.resume import resume_batch

        return await resume_batch(prepared, messages, folders, background, began)
    return await begin_batch(prepared, messages, folders, background, began)


async def _borrow(options: BatchOptions, folders: Places) -> HostProfile | None:
    """With `--alloc`: the host that it is an allocation of. Raises what `borrow` raises."""
    if options.alloc is None:
        return None
    names = [name.strip() for name in options.remotes.split(",") if name.strip()]
    profiles = [find_host(name, folders.profiles, folders.ssh_config) for name in dict.fromkeys(names)]
    clusters = [profile for profile in profiles if profile.batch_system != "none"]
    if len(clusters) > 1:
        raise SpecError(
            f"--alloc {options.alloc}: {len(clusters)} of the hosts have a batch system; name one"
        )
    return await borrow((clusters or profiles)[0], options.alloc, folders, accept_new=options.accept_new)


def batch_of(
    id: str, prepared: Prepared, messages: Messages, folders: Places, background: Background | None
) -> Batch:
    """What sees a batch through as its command line says; whether it is a new one or gone on with."""
    options = prepared.options
    return Batch(
        id,
        messages,
        folders,
        prepared.cwd,
        count=prepared.plan.count,
        max_failures=options.max_failures,
        halt=options.halt,
        give_up_s=options.give_up,
        post_s=options.post_time,
        as_json=options.as_json,
        title=prepared.title,
        follow=options.follow,
        background=background,
    )


async def begin_batch(
    prepared: Prepared,
    messages: Messages,
    folders: Places,
    background: Background | None = None,
    began: Callable[[str], object] = lambda _batch: None,
) -> int:
    """Begin a new batch, and see it through. Raises OrchestraError."""
    options = prepared.options
    batch_id = str(uuid.uuid4())
    snapshots = Snapshots(folders.cache)
    snapshot = ""
    try:
        if prepared.sending is not None:
            snapshot = (await prepared.sending.pack(snapshots, messages, folders)).id
    except BrokenOff:
        os._exit(130)
    common = prepared.common(snapshot)
    shared = msgspec.to_builtins(common)
    batch = batch_of(batch_id, prepared, messages, folders, background)
    details = details_of(
        prepared.profiles,
        folders,
        keys=prepared.keys,
        snapshots=[snapshot],
        cwd=str(prepared.cwd),
        max_failures=options.max_failures,
        halt=options.halt,
        give_up_s=options.give_up,
        post_s=options.post_time,
    )
    async with driving(
        batch_id,
        "batch",
        prepared.title,
        folders,
        details=details,
        common=json.dumps(shared, separators=(",", ":")),
        accept_new=options.accept_new,
        debug=messages.error if options.debug_ssh else None,
        snapshots=snapshots,
        variables=prepared.own,
        **batch.options_for_driver(),
    ) as driver:
        began(batch_id)
        for profile in prepared.profiles:
            driver.add_host(profile)
        driver.connect()
        planned = identities(
            prepared.plan,
            snapshot,
            prepared.script.argv,
            prepared.resources,
            prepared.each,
            prepared.options.nodes,
        )
        rows = new_rows(prepared, common, shared, snapshot, planned, first=1)
        return await batch.see_through(driver, lambda feeder: enter(driver, rows, feeder))


def new_rows(
    prepared: Prepared,
    common: ExecutionSpec,
    shared: dict[str, Any],
    snapshot: str,
    planned: Iterator[tuple[str, Planned]],
    first: int,
) -> Iterator[NewExecution]:
    """Rows of the journal for what is planned, numbered from `first`; made one by one as they are asked for."""
    for number, (name, each) in enumerate(planned, start=first):
        x = str(uuid.uuid4())
        spec = prepared.spec(common, snapshot, x, name, each)
        yield NewExecution(x, number, spec.label, prepared.hosts, own_part(spec, shared), "planned")


async def enter(driver: Driver, rows: Iterator[NewExecution], feeder: Feeder) -> None:
    """Write a plan into the journal, piece by piece, while what is written runs already."""

    def take(count: int) -> list[NewExecution]:
        return [row for _, row in zip(range(count), rows, strict=False)]

    size = FIRST_CHUNK
    while chunk := await asyncio.to_thread(take, size):
        await driver.plan(chunk)
        feeder.grown()
        if size == FIRST_CHUNK:
            await _give_way(driver)
        size = CHUNK
    feeder.grown(whole=True)


async def _give_way(driver: Driver) -> None:
    """Wait while links are being opened, for a moment: making rows beside it takes the processor from it, and from the first executions."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAY_S):
            while not driver.has_tried_all:
                await driver.turned()


def show_plan(prepared: Prepared) -> None:
    """Print every resolved command, folder and count."""
    from liborch.plain_text import neutral

    options = prepared.options
    plan = prepared.plan
    for planned in plan:
        words = [*prepared.script.argv, *planned.arguments]
        folder = prepared.folders.output(planned).text
        where = f"{prepared.each[planned.repetition]}: " if prepared.each else ""
        if options.as_json:
            line = {"argv": words, "parameters": planned.parameters, "output_folder": folder}
            print(json.dumps({"schema_version": 1, **line}))
        else:
            print(neutral(f"{where}{join_arguments(tuple(words))}  -> {folder}"))
    if not options.as_json:
        print(f"{plan.count} executions on {prepared.hosts}")
        if prepared.post:
            print(neutral(f"after each: {options.post_command or join_arguments(prepared.post)}"))
