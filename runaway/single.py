"""One execution from the command line: prepare, submit, show, end with its status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liborch import patterns
from liborch.core.things import Policy
from liborch.drive.driver import Driver
from liborch.drive.execution import Execution
from liborch.drive.session import details_of, driving
from liborch.drive.targets import targets_of
from liborch.drive.transfers import Snapshots
from liborch.errors import SpecError
from liborch.places import places
from liborch.profiles.find import find_host
from liborch.profiles.procedures import join_arguments
from liborch.quantities import format_size
from liborch.specs import ExecutionSpec, HostProfile, Resources, Transfer
from runaway.messages import Messages
from runaway.records import SCHEMA_VERSION
from runaway.scripts import Script, find_script
from runaway.secrets import hide_words
from runaway.seeing import Output, narrate, see_through

if TYPE_CHECKING:
    from liborch.transfer.listing import Listing
    from liborch.transfer.snapshot import Snapshot

#: Links that never opened are tried so often before the host counts as unreachable.
FIRST_ATTEMPTS = 2


async def run_exec(
    *,
    remote: str,
    script: str,
    arguments: tuple[str, ...],
    send_ignore: str | None,
    fetch_ignore: str | None,
    leave: str,
    remote_folder: str | None,
    output_folder: str,
    stay: bool,
    no_ecode: bool,
    no_env_read: bool,
    variables: tuple[tuple[str, str], ...],
    walltime: float | None,
    cpus: int | None,
    mem: int,
    gpus: int,
    tty: bool,
    detach: bool,
    dry_run: bool,
    as_json: bool,
    accept_new: bool,
    verbose: bool,
    silent: bool,
    debug_ssh: bool,
) -> int:
    """Do what `runaway exec` says; returns the exit status. Raises OrchestraError."""
    environment = dict(os.environ)
    messages = Messages(environment, quiet=silent, verbose=verbose)
    folders = places(environment)
    cwd = Path.cwd()
    messages.stage(f"loading host {remote}")
    profile = find_host(remote, folders.profiles, folders.ssh_config)
    found = find_script(script, cwd)
    x = str(uuid.uuid4())
    own = patterns.caller_variables(environment, env_read=not no_env_read)
    snapshot: Snapshot | None = None
    transfer: Transfer | None = None
    snapshots = Snapshots(folders.cache)
    if found.folder is not None:
        _refuse_home(found.folder, environment)
        given = _ignore_file(send_ignore, "--send-ignore", cwd)
        _ignore_file(fetch_ignore, "--fetch-ignore", cwd)
        messages.stage("reading ignore files")
        if dry_run:
            from liborch.transfer.listing import list_folder

            listing = await asyncio.to_thread(list_folder, found.folder, send_ignore=given, explain=True)
            _show_plan(listing, profile, found, arguments, remote_folder, output_folder, as_json)
            return 0
        from liborch.transfer.snapshot import take_snapshot

        messages.stage("packing")
        with _nothing_begun():
            snapshot = await asyncio.to_thread(
                take_snapshot, found.folder, send_ignore=given, cache=folders.cache
            )
        transfer = _transfer(
            x,
            profile,
            found,
            snapshot,
            arguments,
            own,
            environment,
            send_ignore=given,
            fetch_ignore=_ignore_file(fetch_ignore, "--fetch-ignore", cwd),
            leave="everything" if stay and leave == "nothing" else leave,
            remote_folder=remote_folder or "$RUNAWAY_PATH/$RUNAWAY_UUID",
            output_folder=output_folder,
            stay=stay,
            env_read=not no_env_read,
        )
        snapshots.put(transfer.local_folder, transfer.send_ignore, snapshot)
        if snapshot.left_out and verbose:
            for left in snapshot.left_out:
                messages.detail(f"not sent: {os.fsdecode(left.path)}: {left.reason}")
    elif dry_run:
        _show_plan(None, profile, found, arguments, remote_folder, output_folder, as_json)
        return 0
    env = {**own, **dict(variables)}
    spec = ExecutionSpec(
        argv=arguments if profile.execution else (*found.argv, *arguments),
        env={**env, "RUNAWAY_SCRIPT_PATH": found.path, "RUNAWAY_ARGUMENTS": join_arguments(arguments)}
        if profile.execution
        else env,
        folder=remote_folder if transfer is None else None,
        procedure=profile.execution,
        resources=Resources(cpus, mem, gpus),
        walltime_s=walltime,
        retry_on=(),
        tty=_terminal_size() if tty else None,
        live=not as_json and not detach,
        transfer=transfer,
        label=" ".join([script, *hide_words(arguments)])[:200],
    )
    output = Output(as_json or detach)
    messages.stage("acquiring")

    def listener(what: str, _x: str, fields: dict[str, Any]) -> None:
        narrate(messages, what, fields, sends=snapshot is not None)

    async with driving(
        x,
        "exec",
        spec.label,
        folders,
        details=details_of(profile, folders, no_ecode=no_ecode),
        policy=Policy(first_attempts=FIRST_ATTEMPTS, backoff_base_s=0.5),
        accept_new=accept_new,
        debug=messages.error if debug_ssh else None,
        snapshots=snapshots,
        listener=listener,
        progress=lambda what, _x: messages.progress(what),
    ) as driver:
        for target in targets_of(profile):
            driver.add(target)
        execution = driver.submit(x, spec, profile.name, on_output=output.write)
        if detach:
            return await _leave(driver, execution)
        return await see_through(driver, execution, messages, output, no_ecode=no_ecode, as_json=as_json)


@contextlib.contextmanager
def _nothing_begun() -> Iterator[None]:
    """Nothing is on record yet: Ctrl-C ends the command at once, also while a thread reads a large folder."""
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, os._exit, 130)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)


async def _leave(driver: Driver, execution: Execution) -> int:
    """Detach once the node has the order: from then on it needs nobody here."""
    waiting = asyncio.ensure_future(execution.wait())
    while execution.state in ("waiting", "staging") and not waiting.done():
        turn = asyncio.ensure_future(driver.turned())
        await asyncio.wait([waiting, turn], return_when=asyncio.FIRST_COMPLETED)
        turn.cancel()
    if waiting.done():
        await waiting
    else:
        waiting.cancel()
    driver.detached = True
    print(execution.id)
    return 0


def _terminal_size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(sys.stdin.fileno())
        return size.columns, size.lines
    except OSError:
        return 80, 24


def _transfer(
    x: str,
    profile: HostProfile,
    script: Script,
    snapshot: Snapshot,
    arguments: tuple[str, ...],
    own: dict[str, str],
    environment: dict[str, str],
    *,
    send_ignore: Path | None,
    fetch_ignore: Path | None,
    leave: str,
    remote_folder: str,
    output_folder: str,
    stay: bool,
    env_read: bool,
) -> Transfer:
    assert script.folder is not None
    known = {
        **own,
        "RUNAWAY_UUID": x,
        "RUNAWAY_REMOTE": profile.name,
        "RUNAWAY_LEAVE": leave,
        "RUNAWAY_SCRIPT_PATH": script.path,
        "RUNAWAY_LOCAL_FOLDER": str(script.folder),
        "RUNAWAY_SEND_HASH": snapshot.id,
        "RUNAWAY_ARGUMENTS": join_arguments(arguments),
    }
    # The host's own folder is not known yet: its name stays, and is filled in when it is.
    where = patterns.parse_remote(remote_folder, environment, env_read=env_read).fill(
        {**known, "RUNAWAY_PATH": "${RUNAWAY_PATH}"}
    )
    output = patterns.parse_output(output_folder, environment, env_read=env_read)
    output.check({**known, "RUNAWAY_PATH": "/"})
    return Transfer(
        local_folder=str(script.folder),
        remote_folder=where,
        output_folder=os.path.join(str(Path.cwd()), output_folder)
        if "$" not in output_folder
        else output_folder,
        variables=known,
        send_ignore=str(send_ignore) if send_ignore else None,
        fetch_ignore=str(fetch_ignore) if fetch_ignore else None,
        snapshot=snapshot.id,
        leave=leave,  # type: ignore[arg-type]
        fetch=not stay,
    )


def _refuse_home(folder: Path, environment: dict[str, str]) -> None:
    if folder in (Path("/"), Path(environment.get("HOME", "/"))) and not (folder / ".sendignore").exists():
        raise SpecError(
            f"this would send all of {folder}: go to the folder of the script, or write a .sendignore that says what stays"
        )


def _ignore_file(text: str | None, option: str, cwd: Path) -> Path | None:
    if text is None:
        return None
    path = Path(os.path.abspath(cwd / text))
    if not path.is_file():
        raise SpecError(f"{option}: there is no file {text}")
    return path


def _show_plan(
    listing: Listing | None,
    profile: HostProfile,
    script: Script,
    arguments: tuple[str, ...],
    remote_folder: str | None,
    output_folder: str,
    as_json: bool,
) -> None:
    argv = [*script.argv, *arguments]
    if as_json:
        plan: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "host": profile.name,
            "argv": argv,
            "output_folder": output_folder,
        }
        plan["remote_folder"] = remote_folder or "$RUNAWAY_PATH/$RUNAWAY_UUID"
        if listing is not None:
            plan["files"] = [
                {"path": os.fsdecode(f.path), "kind": f.kind, "bytes": f.status.st_size}
                for f in listing.found
            ]
            plan["left_out"] = [{"path": os.fsdecode(f.path), "reason": f.reason} for f in listing.left_out]
        print(json.dumps(plan))
        return
    from runaway.messages import neutral

    print(f"host     {profile.name}")
    print(neutral(f"command  {' '.join(argv)}"))
    if listing is None:
        print("sends nothing: a command of the host")
        return
    print(f"folder   {script.folder} -> {remote_folder or '$RUNAWAY_PATH/$RUNAWAY_UUID'}")
    print(f"results  {output_folder}")
    for found in listing.found:
        print(neutral(f"  send   {os.fsdecode(found.path)}  {format_size(found.status.st_size)}"))
    for left in listing.left_out:
        print(neutral(f"  stays  {os.fsdecode(left.path)}  ({left.reason})"))
    print(f"{len(listing.found)} files, {format_size(listing.total_bytes)}")
