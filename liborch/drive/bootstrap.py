"""Start the agent at the other end of a channel, whatever the login shell is and whatever it prints.

The command is one line that sh, bash, csh and fish read the same: no single quote, backslash, exclamation mark or newline
inside. It prints a random marker and one word, `have` or `need`; everything before the marker is the login's
noise. After `need` it reads the packed agent from stdin: its size on a line, then its bytes. Then the relay takes over with frames.

Which program serves a node, the agent or the fallback for nodes without python3, is decided here, too: a python3 that was
mended, or broke, while something runs does not make the other one step in, which would know nothing of it.
"""

from __future__ import annotations

import re
import secrets
from typing import Protocol

from liborch.agent.pack import agent_hash, packed
from liborch.errors import AgentError

#: What a login may print before the marker, in bytes.
MAX_NOISE = 64 << 10

_ID = re.compile(r"[A-Za-z0-9.-]+")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class Pipe(Protocol):
    """Bytes to and from a process at the other end; `liborch.ssh.Channel` is one."""

    async def read(self, max_bytes: int = ...) -> bytes:
        """Return some bytes, b"" at the end."""

    async def write(self, data: bytes) -> None:
        """Send bytes. Raises OSError when the other end is gone."""

    def close(self) -> None:
        """Let go at once."""

    def stderr_tail(self) -> bytes:
        """The last it wrote to stderr."""

    async def wait(self) -> int | None:
        """Its exit status; None: not known."""


#: Sets `u` where the fallback for nodes without python3 has what we come for: a state folder that is named, or work that
#: goes on in one. Two programs that each count all of a node's slots must not both use them.
_LOOK = (
    "n=${{XDG_STATE_HOME:-$HOME/.local/state}}/orchestra/nodes; u=; b=; read b </proc/sys/kernel/random/boot_id; "
    'for s in "${{ORCHESTRA_AGENT_STATE:-$n/}}"*-sh; do [ -f "$s/id" ] || continue; '
    'if [ -n "{wanted}" ]; then read i <"$s/id"; [ "$i" = "{wanted}" ] && u=1; continue; fi; '
    'k=; [ -f "$s/lock" ] && read k i <"$s/lock"; [ "$k" = "$b" ] || continue; '
    'for r in "$s"/runs/*; do [ -e "$r/said" ] || [ -e "$r/freed" ] || {{ [ -d "$r" ] && u=1; }}; done; done; '
)
#: Sets `p` to the interpreter of an agent that lives: it can be started again whatever became of the python3 on the PATH.
_LIVING = (
    'p=; for s in "${{ORCHESTRA_AGENT_STATE:-$n/}}"*; do [ -f "$s/keeper.lock" ] || continue; k=; c=; '
    'read k <"$s/keeper.lock"; [ -n "$k" ] && [ -r /proc/$k/comm ] && read c </proc/$k/comm; '
    '[ "$c" = orch-keeper ] && [ -x /proc/$k/exe ] && p=/proc/$k/exe; done; '
    '[ -z "$u" ] && [ -n "$p" ] || {{ echo {marker}nopython; exit 0; }}; '
    '[ "$($p -I -S -c "print(6 * 7)" </dev/null)" = 42 ] || {{ echo {marker}stuck; exit 0; }}; '
)
_PATH = (
    "p=python3; command -v $p >/dev/null 2>&1 || {{ echo {marker}nopython; exit 0; }}; "
    '[ -n "$u" ] && [ "$($p -I -S -c "print(6 * 7)" </dev/null 2>/dev/null)" = 42 ] && {{ echo {marker}shell; exit 0; }}; '
)


def command(
    marker: str, wanted: str = "", *, living: bool = False, allocation: str = "", is_part: bool = False
) -> str:
    """Return the command line to run on the host.

    Args:
        wanted: The state folder in which our executions are, by its id; "": none is.
        living: Start the agent with the interpreter of one that lives there, instead of the python3 on the PATH.
        allocation: The batch system's word for what the node is a part of; "": none. Each has an agent of its own there.
        is_part: It has a part of the node, and a process of it there knows which.
    """
    if not _ID.fullmatch(wanted):
        wanted = ""  # The node itself said so once; no agent of ours did.
    code_hash = agent_hash()
    served = ""
    if allocation:
        served = f"ORCHESTRA_ALLOCATION={_UNSAFE.sub('-', allocation)}; export ORCHESTRA_ALLOCATION; "
        served += "ORCHESTRA_AWAITS_GRANT=1; export ORCHESTRA_AWAITS_GRANT; " if is_part else ""
    script = (
        f"{served}h={code_hash}; b=; d=${{XDG_CACHE_HOME:-$HOME/.cache}}/orchestra; f=$d/.agent-$h.$(uname -n).$$; "
        f"{(_LOOK + (_LIVING if living else _PATH)).format(marker=marker, wanted=wanted)}"
        f"if [ -f $d/agent-$h/entry.py ]; then echo {marker}have; exec $p -I -S $d/agent-$h/entry.py $h; fi; "
        # Nothing is brought for one that does not work.
        f'$p -I -S -c "" </dev/null; s=$?; [ $s = 0 ] || {{ echo {marker}broken$s; exit 0; }}; '
        f"mkdir -p $d || {{ echo {marker}nowrite; exit 0; }}; "
        f"echo {marker}need; read n; "
        f"head -c $n >$f || {{ rm -f $f; echo {marker}nowrite; exit 0; }}; "
        f"exec $p -I -S $f $d/agent-$h $h"
    )
    return f"exec /bin/sh -c '{script}'"


async def start(host: str, pipe: Pipe, marker: str) -> bytes:
    """See the bootstrap through; return the first bytes of the relay's frames.

    Raises:
        AgentError: There is no python3 (`NoPython`), none that the living agent can be reached with (`AgentStuck`), the disk
            refuses, or the login never comes to the marker.
    """
    wanted = marker.encode()
    seen = b""
    while True:
        data = await pipe.read(65536)
        if not data:
            await _fail(host, pipe, seen, wanted)
        seen += data
        at = seen.find(wanted)
        if at < 0:
            if len(seen) > MAX_NOISE:
                raise AgentError(
                    host, f"its login printed more than {MAX_NOISE >> 10} KiB before it let a command run"
                )
            continue
        end = seen.find(b"\n", at)
        if end < 0:
            continue
        word = seen[at + len(wanted) : end].decode("ascii", "replace").strip()
        rest = seen[end + 1 :]
        if word == "have":
            return rest
        if word == "need":
            data = packed()[1]
            await pipe.write(b"%d\n%b" % (len(data), data))
            return rest
        if word == "nopython":
            raise NoPython(host, "has no python3 on its PATH")
        if word == "shell":
            raise NoPython(host, "has executions that were begun while its python3 did not work")
        if word == "stuck":
            raise AgentStuck(
                host,
                "an agent works there, but its python3 is gone and nobody can speak to it",
                detail="it works on; mend python3 there to hear of it",
                retriable=True,
            )
        if word.startswith("broken"):
            raise NoPython(host, f"python3 there ended with status {word[6:]}", detail=_last_line(pipe))
        raise AgentError(host, "the agent cannot be put into the home folder", detail=_last_line(pipe))


def _last_line(pipe: Pipe) -> str:
    lines = pipe.stderr_tail().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


class NoPython(AgentError):
    """No usable python3 there, or nothing for it to do: the fallback may do."""


class AgentStuck(AgentError):
    """An agent lives there and cannot be reached: what it runs is neither lost nor ours to start again."""


async def _fail(host: str, pipe: Pipe, seen: bytes, marker: bytes) -> None:
    status = await pipe.wait()
    tail = pipe.stderr_tail().decode("utf-8", "replace").strip()
    shown = (tail or seen.decode("utf-8", "replace").strip()).splitlines()
    detail = shown[-1][:200] if shown else ""
    if status is None:
        raise AgentError(
            host, "the connection broke while the agent was started", detail=detail, retriable=True
        )
    raise AgentError(
        host,
        f"the login ended with status {status} before it ran our command; is the account allowed to run commands?",
        detail=detail,
    )


def new_marker() -> str:
    """A word that no login prints by chance."""
    return f"orchestra-{secrets.token_hex(8)}-"
