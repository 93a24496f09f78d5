"""Start the agent at the other end of a channel, whatever the login shell is and whatever it prints.

The command is one line that sh, bash, csh and fish read the same: no single quote, backslash, exclamation mark or newline
inside. It prints a random marker and one word, `have` or `need`; everything before the marker is the login's
noise. After `need` it reads the packed agent from stdin: its size on a line, then its bytes. Then the relay takes over with frames.
"""

from __future__ import annotations

import secrets
from typing import Protocol

from liborch.agent.pack import agent_hash, packed
from liborch.errors import AgentError

#: What a login may print before the marker, in bytes.
MAX_NOISE = 64 << 10


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


def command(marker: str) -> str:
    """Return the command line to run on the host."""
    code_hash = agent_hash()
    script = (
        f"h={code_hash}; b=${{XDG_CACHE_HOME:-$HOME/.cache}}/orchestra; d=$b/agent-$h; "
        f"command -v python3 >/dev/null 2>&1 || {{ echo {marker}nopython; exit 0; }}; "
        f"if [ -f $d/entry.py ]; then echo {marker}have; exec python3 -I -S $d/entry.py $h; fi; "
        f"mkdir -p $b || {{ echo {marker}nowrite; exit 0; }}; "
        f"echo {marker}need; f=$b/.agent-$h.$$; read n; "
        f"head -c $n >$f || {{ rm -f $f; echo {marker}nowrite; exit 0; }}; "
        f"exec python3 -I -S $f $d $h"
    )
    return f"exec /bin/sh -c '{script}'"


async def start(host: str, pipe: Pipe, marker: str) -> bytes:
    """See the bootstrap through; return the first bytes of the relay's frames.

    Raises:
        AgentError: There is no python3 (`NoPython`), the disk refuses, or the login never comes to the marker.
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
        detail = pipe.stderr_tail().decode("utf-8", "replace").strip().splitlines()
        raise AgentError(
            host, "the agent cannot be put into the home folder", detail=detail[-1] if detail else ""
        )


class NoPython(AgentError):
    """No usable python3 there: the fallback may do."""


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
