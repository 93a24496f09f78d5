"""`shell`: a terminal on a host, on a node of an allocation, or beside a running execution.

It is `ssh` itself, with the person's own configuration, that becomes the command: keys, window sizes, escapes and the exit status
are its work and as everybody knows them. Beside an execution a few lines of python on the node take folder, environment and cores
from its process. The shell is not counted as part of it: it takes no slot, may outlive it, and is not in its control group, where it
would be ended with it and share its memory limit.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from liborch.core.things import lead_of
from liborch.drive.adopt import read_left, target_of
from liborch.drive.peek import linked
from liborch.drive.procedures import proxies_of
from liborch.drive.targets import Target, entries_of, granted
from liborch.errors import SpecError, UnknownName
from liborch.names import nearest
from liborch.places import Places, places
from liborch.profiles.find import find_host
from liborch.profiles.targets import parse_target
from liborch.ssh.resolve import resolve_host
from runaway.allocations import ask_all, pick, pooled
from runaway.patience import asking, said_if_slow
from runaway.records import SCHEMA_VERSION, Records

#: What processes of an execution carry: its id, attempt and agent. See the agent's `processes`.
_MARK = "ORCHESTRA_EXECUTION"
#: What the node runs for a shell beside a process: its pid, the mark that says that it is still the same, the words.
_BESIDE = f"""
import os, sys
pid, mark, words = int(sys.argv[2]), sys.argv[3].encode(), sys.argv[4:]
here = "/proc/%d/" % pid
try:
    with open(here + "environ", "rb") as file:
        pairs = [pair.split(b"=", 1) for pair in file.read().split(b"\\0") if b"=" in pair]
    os.chdir(here + "cwd")
except OSError as error:
    sys.exit("it has ended, or cannot be looked at: %s" % error)
env = dict(pairs)
if not env.pop(b"{_MARK}", b"").startswith(mark):
    sys.exit("it has ended")
try:
    os.sched_setaffinity(0, os.sched_getaffinity(pid))
except OSError:
    pass
env[b"PWD"] = os.fsencode(os.getcwd())
for name in (b"TERM", b"SSH_TTY", b"SSH_AUTH_SOCK"):
    if os.environb.get(name):
        env[name] = os.environb[name]
shell = os.fsdecode(env.get(b"SHELL") or b"/bin/sh")
words = words or [shell]
try:
    os.execvpe(words[0], words, env)
except OSError as error:
    sys.exit("%s: %s" % (words[0], error.strerror))
"""


@dataclass(frozen=True)
class Wish:
    """What `runaway shell` was told; the names are those of its options."""

    host: str | None
    words: tuple[str, ...]
    alloc: str | None
    node: str | None
    execution: str | None
    dry_run: bool
    as_json: bool
    accept_new: bool


@dataclass(frozen=True)
class Place:
    """Where a shell is to be, and how it begins."""

    target: Target
    #: For the login shell there; "": just log in.
    line: str = ""
    #: ssh's own words for how to get there.
    route: tuple[str, ...] = field(default=())


def open_shell(wish: Wish) -> int:
    """Do what `runaway shell` says: this process becomes the shell's. With --json its end is printed. Raises OrchestraError."""
    folders = places(dict(os.environ))
    place = asyncio.run(_find(wish, folders))
    argv = _argv(place, folders, accept_new=wish.accept_new)
    host, node = place.target.profile.name, place.target.machine or place.target.name
    if wish.dry_run:
        if wish.as_json:
            value = {"schema_version": SCHEMA_VERSION, "host": host, "node": node, "argv": argv}
            click.echo(json.dumps(value))
        else:
            click.echo(shlex.join(argv))
        return 0
    if not wish.as_json:
        sys.stdout.flush()
        os.execvp(argv[0], argv)
    done = subprocess.run(argv, capture_output=True, check=False)
    status = done.returncode if done.returncode >= 0 else 128 - done.returncode
    value = {
        "schema_version": SCHEMA_VERSION,
        "host": host,
        "node": node,
        "exit_status": status,
        "stdout": done.stdout.decode("utf-8", "backslashreplace"),
        "stderr": done.stderr.decode("utf-8", "backslashreplace"),
    }
    click.echo(json.dumps(value))
    return status


async def _find(wish: Wish, folders: Places) -> Place:
    if wish.execution is not None:
        place = await _beside(wish, wish.execution, folders)
    else:
        if wish.host is None:
            raise click.UsageError("name a HOST, or an execution with --exec")
        line = shlex.join(wish.words)
        if wish.alloc is not None:
            place = Place(await _allocated(wish, wish.host, wish.alloc, folders), line)
        else:
            place = Place(_entry(wish, wish.host, folders), line)
    return Place(place.target, place.line, await _route(place.target, folders))


def _entry(wish: Wish, host: str, folders: Places) -> Target:
    """The host itself, or the node of it that was named."""
    targets = entries_of(find_host(host, folders.profiles, folders.ssh_config))
    if wish.node is None:
        return targets[0]
    return _named(wish.node, targets, host)


def _named(node: str, targets: Sequence[Target], where: str) -> Target:
    found = [target for target in targets if node in (target.name, target.machine)]
    if not found:
        names = [target.machine or target.name for target in targets]
        raise UnknownName(
            f"node of {where}", node, nearest(node, names), hint=f"there are {', '.join(names)}"
        )
    return found[0]


async def _allocated(wish: Wish, host: str, text: str, folders: Places) -> Target:
    profile = find_host(host, folders.profiles, folders.ssh_config)
    async with pooled(folders, accept_new=wish.accept_new) as pool:
        answers = await ask_all([profile], pool, Records(folders))
    if answers.errors:
        raise answers.errors[0]
    found = pick(text, answers.found, host=profile.name)
    if found.sight.state != "active":
        why = f": {found.sight.why}" if found.sight.why else ""
        raise SpecError(
            f"allocation {found.id} of {profile.name} is {found.sight.state}{why}; it has no nodes yet"
        )
    targets = [
        granted(f"{machine}/{found.id}", machine, profile, found.id, (0, 0, 0))
        for machine in found.sight.nodes
    ]
    return _named(wish.node, targets, f"allocation {found.id}") if wish.node is not None else targets[0]


async def _beside(wish: Wish, text: str, folders: Places) -> Place:
    records = Records(folders)
    row = records.find(text)
    if wish.host is not None and wish.host != row.host:
        raise SpecError(f"{row.id[:8]} is on {row.host}, not on {wish.host}; leave HOST away")
    if row.ended_at is not None:
        raise SpecError(f"{row.id[:8]} has ended ({row.state}); only what runs has a place to look at")
    left = read_left(folders, row.orchestration, events=False)
    target = target_of(left, row.node)
    with said_if_slow(asking([target.name])):
        async with linked(target, left.places(folders), accept_new=wish.accept_new) as link:
            status = await link.ask("status")
    runs = [run for run in status["runs"] if lead_of(run["x"])[0] == row.id]
    if not runs:
        raise SpecError(
            f"{row.id[:8]} does not run on {target.name} ({row.state}): runaway explain {row.id[:8]}"
        )
    program = base64.b64encode(_BESIDE.encode()).decode()
    mark = f"{runs[0]['x']}.{runs[0]['a']}@"
    words = [program, str(runs[0]["pid"]), mark, *wish.words]
    # Any login shell reads this the same.
    start = "import base64,sys;exec(base64.b64decode(sys.argv[1]))"
    return Place(target, f'python3 -I -c "{start}" {shlex.join(words)}')


async def _route(target: Target, folders: Places) -> tuple[str, ...]:
    """A node of an allocation is behind its frontend, unless the person's configuration knows better."""
    if not target.is_behind:
        return ()
    for proxy in proxies_of(target).values():
        return ("-o", f"ProxyCommand={proxy}")
    config = str(folders.ssh_config) if folders.ssh_config is not None else None
    endpoint = await resolve_host(target.ssh, config)
    return () if endpoint.jumps or endpoint.proxy_command else ("-J", target.profile.ssh)


def _argv(place: Place, folders: Places, *, accept_new: bool) -> list[str]:
    """The command that this one becomes."""
    target = place.target
    line = place.line
    on_terminal = sys.stdin.isatty()
    if target.enter is not None:
        line = target.enter(line or 'exec "${SHELL:-/bin/sh}"')
        if on_terminal and line.startswith("srun "):
            line = line.replace("srun ", "srun --pty ", 1).replace(" --unbuffered", "", 1)
    if target.ssh == "local":
        shell = os.environ.get("SHELL") or "/bin/sh"
        return [shell, "-c", line] if line else [shell]
    ssh = shutil.which("ssh")
    if ssh is None:
        raise SpecError("a shell needs the program ssh, which is not on the PATH: install OpenSSH's client")
    argv = [ssh, *_configuration(folders.ssh_config), "-o", _strictness(accept_new), *place.route]
    argv.append("-t" if on_terminal else "-T")
    return [*argv, "--", _destination(target.ssh), *([line] if line else [])]


def _configuration(path: Path | None) -> list[str]:
    return ["-F", str(path)] if path is not None else []


def _strictness(accept_new: bool) -> str:
    return f"StrictHostKeyChecking={'accept-new' if accept_new else 'yes'}"


def _destination(text: str) -> str:
    """As ssh takes it: `name:port` only as a URL."""
    parsed = parse_target(text)
    if parsed.port is None:
        return text
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    return f"ssh://{f'{parsed.user}@' if parsed.user else ''}{host}:{parsed.port}"
