"""One execution from the command line: prepare, submit, show, end with its status."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liborch import patterns
from liborch.core.policy import Policy
from liborch.drive.driver import Driver
from liborch.drive.execution import Execution
from liborch.drive.session import details_of, driving
from liborch.drive.transfers import Snapshots
from liborch.errors import HostUnreachable
from liborch.places import places
from liborch.profiles.find import find_host, near_hosts
from liborch.profiles.procedures import join_arguments
from liborch.quantities import format_size
from liborch.specs import ExecutionSpec, HostProfile, Leave, Transfer
from runaway.allocations import borrow
from runaway.messages import Messages
from runaway.preparing import REMOTE_FOLDER, BrokenOff, Sending, ignore_file, refuse_home
from runaway.records import SCHEMA_VERSION
from runaway.scripts import Script, find_script
from runaway.secrets import hide_words
from runaway.seeing import Output, left_as_dict, narrate, see_through
from runaway.wanted import resources_of

if TYPE_CHECKING:
    from liborch.transfer.listing import Listing

#: Links that never opened are tried so often before the host counts as unreachable.
FIRST_ATTEMPTS = 2


@dataclass(frozen=True)
class ExecOptions:
    """What `runaway exec` was told; the names are those of its options."""

    remote: str
    script: str
    arguments: tuple[str, ...]
    send_ignore: str | None
    fetch_ignore: str | None
    leave: Leave
    remote_folder: str | None
    output_folder: str
    stay: bool
    no_ecode: bool
    no_env_read: bool
    variables: tuple[tuple[str, str], ...]
    walltime: float | None
    cpus: int | None
    mem: int
    gpus: float | None
    alloc: str | None
    tty: bool
    detach: bool
    dry_run: bool
    as_json: bool
    accept_new: bool
    verbose: bool
    silent: bool
    debug_ssh: bool


async def run_exec(options: ExecOptions) -> int:
    """Do what `runaway exec` says; returns the exit status. Raises OrchestraError."""
    environment = dict(os.environ)
    messages = Messages(environment, quiet=options.silent, verbose=options.verbose)
    folders = places(environment)
    cwd = Path.cwd()
    messages.stage(f"loading host {options.remote}")
    profile = find_host(options.remote, folders.profiles, folders.ssh_config)
    script = find_script(options.script, cwd)
    own = patterns.caller_variables(environment, env_read=not options.no_env_read)
    send_ignore = fetch_ignore = None
    if script.folder is not None:
        refuse_home(script.folder, environment)
        messages.stage("reading ignore files")
        send_ignore = ignore_file(options.send_ignore, "--send-ignore", cwd)
        fetch_ignore = ignore_file(options.fetch_ignore, "--fetch-ignore", cwd)
    if options.alloc is not None:
        profile = await borrow(profile, options.alloc, folders, accept_new=options.accept_new)
    if options.dry_run:
        await _plan(options, profile, script, send_ignore)
        return 0
    x = str(uuid.uuid4())
    sending: Sending | None = None
    transfer: Transfer | None = None
    where = {
        "remote_folder": options.remote_folder or REMOTE_FOLDER,
        "output_folder": options.output_folder,
    }
    if script.folder is not None:
        sending = Sending(
            script.folder,
            script,
            profile.name,
            own,
            environment,
            not options.no_env_read,
            send_ignore,
            fetch_ignore,
            options.leave,
            options.stay,
        )
        # What is wrong with the patterns is told before anything starts, and so before there is a snapshot.
        transfer = sending.transfer(x, options.arguments, "", **where)
    snapshots = Snapshots(folders.cache)
    label = " ".join([options.script, *hide_words(options.arguments)])[:200]
    output = Output(options.as_json or options.detach)

    def listener(what: str, _x: str, fields: dict[str, Any]) -> None:
        narrate(messages, what, fields, sends=sending is not None)

    try:
        async with driving(
            x,
            "exec",
            label,
            folders,
            details=details_of([profile], folders, no_ecode=options.no_ecode),
            policy=Policy(first_attempts=FIRST_ATTEMPTS, backoff_base_s=0.5),
            accept_new=options.accept_new,
            debug=messages.error if options.debug_ssh else None,
            snapshots=snapshots,
            variables=own,
            listener=listener,
            progress=lambda what, _x: messages.progress(what),
        ) as driver:
            driver.add_host(profile)
            driver.connect()
            if sending is not None:
                snapshot = await sending.pack(snapshots, messages, folders)
                transfer = sending.transfer(x, options.arguments, snapshot.id, **where)
            spec = _spec(options, profile, script, own, transfer, label)
            messages.stage("acquiring")
            execution = driver.submit(x, spec, profile.name, on_output=output.write)
            if options.detach:
                return await _leave(driver, execution, as_json=options.as_json)
            return await see_through(
                driver, execution, messages, output, no_ecode=options.no_ecode, as_json=options.as_json
            )
    except HostUnreachable as error:
        near = near_hosts(options.remote, folders.profiles, folders.ssh_config)
        if near and isinstance(error.__cause__, socket.gaierror):
            messages.error(
                f"{options.remote} is no host that is known here; did you mean {' or '.join(near)}?"
            )
        raise
    except BrokenOff:
        # A thread may still be reading a large folder: it is not waited for.
        os._exit(130)


def _spec(
    options: ExecOptions,
    profile: HostProfile,
    script: Script,
    own: dict[str, str],
    transfer: Transfer | None,
    label: str,
) -> ExecutionSpec:
    env = {**own, **dict(options.variables)}
    if profile.execution:
        env["RUNAWAY_SCRIPT_PATH"] = script.path
        env["RUNAWAY_ARGUMENTS"] = join_arguments(options.arguments)
    return ExecutionSpec(
        argv=options.arguments if profile.execution else (*script.argv, *options.arguments),
        env=env,
        folder=options.remote_folder if transfer is None else None,
        procedure=profile.execution,
        resources=resources_of([profile], options.cpus, options.mem, options.gpus),
        walltime_s=options.walltime,
        retry_on=(),
        tty=_terminal_size() if options.tty else None,
        live=not options.as_json and not options.detach,
        transfer=transfer,
        label=label,
    )


async def _leave(driver: Driver, execution: Execution, *, as_json: bool) -> int:
    """Detach once the node has the order: from then on it needs nobody here."""
    await driver.wait_handed_over(execution)
    driver.detached = True
    print(json.dumps(left_as_dict(execution, 0)) if as_json else execution.id)
    return 0


def _terminal_size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(sys.stdin.fileno())
        return size.columns, size.lines
    except OSError:
        return 80, 24


async def _plan(options: ExecOptions, profile: HostProfile, script: Script, send_ignore: Path | None) -> None:
    """Say what would be sent and run."""
    from liborch.transfer.listing import list_folder

    listing: Listing | None = None
    if script.folder is not None:
        listing = await asyncio.to_thread(list_folder, script.folder, send_ignore=send_ignore, explain=True)
    argv = [*script.argv, *options.arguments]
    remote_folder = options.remote_folder or REMOTE_FOLDER
    if options.as_json:
        plan: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "host": profile.name,
            "argv": argv,
            "output_folder": options.output_folder,
            "remote_folder": remote_folder,
        }
        if listing is not None:
            plan["files"] = [
                {"path": os.fsdecode(f.path), "kind": f.kind, "bytes": f.status.st_size}
                for f in listing.found
            ]
            plan["left_out"] = [{"path": os.fsdecode(f.path), "reason": f.reason} for f in listing.left_out]
        print(json.dumps(plan))
        return
    from liborch.plain_text import neutral

    print(neutral(f"host     {profile.name}"))
    print(neutral(f"command  {' '.join(argv)}"))
    if listing is None:
        print("sends nothing: a command of the host")
        return
    print(neutral(f"folder   {script.folder} -> {remote_folder}"))
    print(neutral(f"results  {options.output_folder}"))
    for found in listing.found:
        print(neutral(f"  send   {os.fsdecode(found.path)}  {format_size(found.status.st_size)}"))
    for left in listing.left_out:
        print(neutral(f"  stays  {os.fsdecode(left.path)}  ({left.reason})"))
    print(f"{len(listing.found)} files, {format_size(listing.total_bytes)}")
