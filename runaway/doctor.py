"""`doctor HOST`: each step that an execution depends on, tried by itself, with what to do where it fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from liborch.drive.links import ENDS_WITH_LOGIN
from liborch.drive.peek import linked
from liborch.drive.targets import Target, entries_of
from liborch.errors import HostKeyChanged, HostKeyUnknown, OrchestraError
from liborch.journal import Journal
from liborch.places import Places, places
from liborch.plain_text import neutral
from liborch.profiles.find import find_host, near_hosts
from liborch.quantities import format_duration, format_size
from liborch.specs import HostProfile
from liborch.ssh import Pool
from runaway.patience import said_if_slow
from runaway.records import SCHEMA_VERSION

Verdict = Literal["ok", "warning", "failed"]

#: What one step may take, in seconds.
STEP_S = 20.0
#: Clocks further apart than this are worth a word, in seconds.
SKEW_S = 5.0
#: Less room than this is worth a word.
LOW_BYTES = 1 << 30
LOW_INODES = 10_000

#: One line that every login shell reads the same; the answers come as NAME=value.
_PROBE = (
    "exec /bin/sh -c 'echo ORCH_shell=$SHELL; echo ORCH_home=$HOME; echo ORCH_user=$(id -un); "
    'echo ORCH_python=$(python3 -c "import platform; print(platform.python_version())" 2>&1 | tail -n 1); '
    "echo ORCH_sessions=$(sshd -T 2>/dev/null | sed -n s/^maxsessions.//p); "
    "echo ORCH_where=$(command -v python3); "
    "if [ -w $HOME ]; then echo ORCH_writable=yes; else echo ORCH_writable=no; fi'"
)


class CannotGoOn(Exception):
    """A step failed that every later one stands on."""


class Examination:
    """Says each step as it is made, and remembers the worst."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.failed = False

    def say(self, what: str, verdict: Verdict, seen: str, todo: str = "") -> None:
        """One step."""
        self.failed = self.failed or verdict == "failed"
        if self._as_json:
            fields = {
                "schema_version": SCHEMA_VERSION,
                "step": what,
                "verdict": verdict,
                "seen": seen,
                "todo": todo,
            }
            print(json.dumps(fields), flush=True)
            return
        print(neutral(f"{verdict:<8}{what:<12}{seen}"), flush=True)
        if todo:
            print(neutral(f"{'':<20}-> {todo}"), flush=True)

    def stop(self, what: str, seen: str, todo: str = "") -> None:
        """A step failed that every later one stands on. Raises CannotGoOn."""
        self.say(what, "failed", seen, todo)
        raise CannotGoOn


def examine(host: str, *, accept_new: bool, as_json: bool) -> int:
    """Examine every node of a host; returns the exit status. Raises UnknownName, ProfileError."""
    folders = places(dict(os.environ))
    profile = find_host(host, folders.profiles, folders.ssh_config)
    examination = Examination(as_json)
    examination.say("profile", "ok", profile.source or "none: taken as ssh would")
    status = 0
    for target in entries_of(profile):
        try:
            asyncio.run(_examine(target, folders, examination, accept_new))
        except CannotGoOn:
            status = 255
    if profile.batch_system != "none" and status == 0:
        try:
            asyncio.run(_examine_queue(profile, folders, examination, accept_new))
        except CannotGoOn:
            status = 255
    return status or int(examination.failed)


async def _examine(target: Target, folders: Places, tell: Examination, accept_new: bool) -> None:
    if target.ssh != "local":
        config = str(folders.ssh_config) if folders.ssh_config is not None else None
        async with _pool(config, accept_new) as pool:
            with said_if_slow(f"trying to reach {target.name}"):
                await _reach(target, folders, tell, pool, config)
                await _look_around(target, tell, pool)
    try:
        async with linked(target, folders) as link:
            began = time.monotonic()
            await link.ask("ping", at=0)
            latency_s = time.monotonic() - began
            status = await link.ask("status")
            probe = await link.ask("probe", path=target.directory)
            hello = link.hello
            skew_s = time.time() - float(hello.get("clock", 0.0)) - (time.monotonic() - began)
    except OrchestraError as error:
        tell.stop("agent", str(error), "see the error file in ~/.local/state/orchestra/nodes on the host")
        return
    _judge_agent(tell, hello, latency_s)
    _judge_clock(tell, skew_s)
    _judge_directory(tell, target.directory, probe)
    _judge_record(tell, status)
    _judge_room(tell, status, limited=bool(hello.get("limits")))


async def _examine_queue(profile: HostProfile, folders: Places, tell: Examination, accept_new: bool) -> None:
    """Ask the batch system what is ours. What else is wrong with the frontend is said by the other steps."""
    from liborch.drive.queues import LIVE, look

    config = str(folders.ssh_config) if folders.ssh_config is not None else None
    began = time.monotonic()
    try:
        async with _pool(config, accept_new) as pool:
            told = await look(profile, pool)
    except OrchestraError as error:
        tell.stop("queue", f"{profile.batch_system}: {error}", "is it the batch system of this frontend?")
        return
    took_s = time.monotonic() - began
    states = [sight.state for sight in told.values() if sight.state in LIVE]
    ours = ", ".join(f"{states.count(state)} {state}" for state in LIVE if state in states) or "none"
    tell.say("queue", "ok", f"{profile.batch_system} answers in {took_s:.1f} s; allocations of yours: {ours}")


@contextlib.asynccontextmanager
async def _pool(config: str | None, accept_new: bool) -> AsyncIterator[Pool]:
    pool = Pool(config_file=config, accept_new=accept_new)
    try:
        yield pool
    finally:
        await pool.close()


async def _reach(target: Target, folders: Places, tell: Examination, pool: Pool, config: str | None) -> None:
    """Name, TCP, host key, login."""
    from liborch.ssh.resolve import resolve_host

    try:
        endpoint = await resolve_host(target.ssh, config)
    except OrchestraError as error:
        tell.stop("ssh config", str(error))
        return
    if endpoint.jumps or endpoint.proxy_command:
        by = ", ".join(endpoint.jumps) or endpoint.proxy_command
        tell.say("route", "ok", f"{endpoint.user}@{endpoint.address} through {by}")
    else:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(STEP_S):
                found = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            near = near_hosts(target.ssh, folders.profiles, folders.ssh_config)
            todo = f"did you mean {' or '.join(near)}?" if near else "check the name, or your network and DNS"
            tell.stop("name", f"{endpoint.host} does not resolve: {_why(error)}", todo)
            return
        address = str(found[0][4][0])
        tell.say("name", "ok", f"{endpoint.host} is {address}")
        began = time.monotonic()
        try:
            async with asyncio.timeout(STEP_S):
                _reader, writer = await asyncio.open_connection(address, endpoint.port)
            writer.close()
        except (OSError, TimeoutError) as error:
            tell.stop(
                "tcp",
                f"{endpoint.address}: {_why(error)}",
                "is it up, is sshd running, is a firewall or VPN in between?",
            )
        tell.say("tcp", "ok", f"port {endpoint.port} answers in {(time.monotonic() - began) * 1000:.0f} ms")
    began = time.monotonic()
    try:
        await pool.connect(target.ssh)
    except (HostKeyUnknown, HostKeyChanged) as error:
        tell.stop("host key", str(error))
    except OrchestraError as error:
        tell.stop("login", str(error), f"try `ssh -v {target.ssh}`")
    tell.say("host key", "ok", "known and unchanged")
    tell.say("login", "ok", f"as {endpoint.user}, in {(time.monotonic() - began) * 1000:.0f} ms")


async def _look_around(target: Target, tell: Examination, pool: Pool) -> None:
    """Shell, python3, home folder, MaxSessions, as a plain command sees them."""
    began = time.monotonic()
    done = await pool.run(target.ssh, _PROBE, timeout_s=STEP_S)
    took_s = time.monotonic() - began
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    seen = dict(line[5:].partition("=")[::2] for line in lines if line.startswith("ORCH_"))
    if "shell" not in seen:
        last = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        tell.stop(
            "shell",
            last[-1] if last else done.unknown or "no answer",
            "is the account allowed to run commands?",
        )
    noise = sum(1 for line in lines if not line.startswith("ORCH_"))
    text = f"{seen['shell']} starts in {took_s * 1000:.0f} ms"
    if noise:
        tell.say(
            "shell",
            "warning",
            f"{text} and prints {noise} lines",
            "harmless; other tools may stumble: let .bashrc print only when interactive",
        )
    else:
        tell.say("shell", "ok", text)
    _judge_python(tell, seen.get("python", ""), seen.get("where", ""))
    if seen.get("writable") == "yes":
        tell.say("home", "ok", seen.get("home", ""))
    else:
        tell.say(
            "home",
            "failed",
            f"{seen.get('home')} cannot be written",
            "the agent keeps its program and records there: free space or quota?",
        )
    sessions = seen.get("sessions", "")
    if sessions.isdigit() and int(sessions) < 4:
        tell.say("sessions", "warning", f"MaxSessions {sessions}", "works, transfers take turns")


def _why(error: OSError) -> str:
    """In the system's words: asyncio's text of a failed connection is `Connect call failed` and a tuple."""
    if error.errno is None:
        return f"no answer in {STEP_S:.0f} s"
    return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)


def _judge_python(tell: Examination, version: str, where: str) -> None:
    """What a login's python3 says of itself; without one that works a fallback does, so it is no failure."""
    todo = "a slower fallback works without it; `module load python` in the profile may help"
    parts = version.split(".")
    if not where:
        tell.say("python3", "warning", "none", todo)
    elif len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        tell.say("python3", "warning", f"{where} does not run: {version or 'it says nothing'}", todo)
    elif (int(parts[0]), int(parts[1])) < (3, 6):
        tell.say("python3", "warning", f"{where} is {version}; 3.6 or newer is needed", todo)
    else:
        tell.say("python3", "ok", version)


def _judge_agent(tell: Examination, hello: dict[str, Any], latency_s: float) -> None:
    answers = f"answers in {latency_s * 1000:.0f} ms"
    limits = hello.get("limits", [])
    if hello.get("ends_with_login"):
        seen, _, todo = ENDS_WITH_LOGIN.partition("; ")
        tell.say("login", "warning", seen, todo)
    if not limits:
        tell.say(
            "agent",
            "ok",
            f"version {str(hello.get('hash', ''))[:8]}, python {hello.get('python')}, {answers}",
        )
        return
    tell.say(
        "agent",
        "warning",
        f"works through plain sh, {answers}: the node {hello.get('why')}",
        "a python3 of 3.6 or newer on the PATH of a login lifts these limits",
    )
    for limit in limits:
        tell.say("limits", "warning", limit)


def _judge_clock(tell: Examination, skew_s: float) -> None:
    if abs(skew_s) > SKEW_S:
        way = "behind" if skew_s > 0 else "ahead of"
        tell.say(
            "clock",
            "warning",
            f"{format_duration(abs(skew_s))} {way} of this machine's",
            "nothing of ours depends on it; the times of files made there will look odd",
        )
    else:
        tell.say("clock", "ok", "agrees with this machine's")


def _judge_directory(tell: Examination, directory: str, probe: dict[str, Any]) -> None:
    if probe.get("error"):
        tell.say(
            "directory", "failed", f"{directory}: {probe['error']}", "give another `directory` in the profile"
        )
        return
    free, inodes = int(probe.get("free_bytes", 0)), int(probe.get("free_inodes", 0))
    text = f"{directory}: {format_size(free)} free" if free >= 0 else f"{directory}: can be written"
    if 0 <= free < LOW_BYTES:
        tell.say(
            "directory", "warning", text, "little room: clean up, or give another `directory` in the profile"
        )
    elif 0 < inodes < LOW_INODES:
        tell.say(
            "directory", "warning", f"{text}, room for {inodes} files", "little room for files: clean up"
        )
    else:
        tell.say("directory", "ok", text)


def _judge_record(tell: Examination, status: dict[str, Any]) -> None:
    """Say so where the node cannot put on record what it starts and how that ended."""
    if status.get("stuck"):
        tell.say(
            "record", "failed", status["stuck"], "nothing is started there until it can be written again"
        )
    elif status.get("sync_error"):
        todo = "look at that disk: a power cut could make the node forget what ran"
        tell.say("record", "warning", str(status["sync_error"]), todo)


def _judge_room(tell: Examination, status: dict[str, Any], *, limited: bool) -> None:
    room = status["room"]
    if not limited:
        _judge_means(tell, room.get("means", {}))
    gpus = f", {len(room['gpus'])} GPUs" if room.get("gpus") else ""
    tell.say(
        "slots",
        "ok",
        f"{room['cpus'] - room['used_cpus']} of {room['cpus']} free, {format_size(room['memory_bytes'])}{gpus}; {status.get('queued', 0)} wait",
    )
    for run in status.get("runs", []):
        tell.say("in use", "ok", f"slot {run['slot']}: {run['x'][:8]}, for {format_duration(run['seconds'])}")


def _judge_means(tell: Examination, means: dict[str, str]) -> None:
    weak = means.get("memory") == "watching"
    tell.say(
        "limits",
        "warning" if weak else "ok",
        ", ".join(f"{what} by {how}" for what, how in means.items()),
        "memory is watched, not fenced: no cgroup can be written there" if weak else "",
    )


def rebuild(*, as_json: bool) -> int:
    """Rebuild a damaged journal; returns the exit status. Raises JournalError, StorageError, Conflict."""
    from liborch.journal.rebuild import rebuild as salvage

    folders = places(dict(os.environ))
    found = salvage(folders.journal)
    with Journal.open(folders.journal, readonly=True):
        pass  # It can be read again, or this says why not.
    if as_json:
        print(
            json.dumps(
                {
                    "schema_version": SCHEMA_VERSION,
                    "copy": found.copy,
                    "rows": found.rows,
                    "holes": found.holes,
                }
            )
        )
    else:
        rows = ", ".join(f"{count} {table}" for table, count in found.rows.items())
        print(f"{folders.journal}: kept {rows}; the damaged one is {found.copy}")
        for table, holes in found.holes.items():
            if holes:
                print(f"{table}: {holes} places could not be read")
    return 1 if any(found.holes.values()) else 0
