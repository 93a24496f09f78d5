"""The asking end of a driver's socket: is anybody driving an orchestration, and what does it say? Blocking, and light.

The answering end is `liborch.drive.control`. A socket that nobody listens on means that nobody drives: sockets die with
their process, so this asks without touching the driver's lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liborch.errors import Conflict

#: A path longer than this cannot name a socket.
MOST_PATH_BYTES = 100
#: A driver that is alive answers within this; it may be busy, in seconds.
ANSWER_S = 30.0


def socket_path(state: Path, orchestration: str) -> Path:
    """Where a driver listens."""
    return state / "drivers" / f"{orchestration}.sock"


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of the socket that is short enough: below an open folder where its own is too long."""
    if len(os.fsencode(path)) <= MOST_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def is_driven(state: Path, orchestration: str) -> bool:
    """Whether a client drives it at this moment."""
    line = _connect(state, orchestration)
    if line is None:
        return False
    line.close()
    return True


def ask(
    state: Path, orchestration: str, message: dict[str, Any], timeout_s: float = ANSWER_S
) -> dict[str, Any] | None:
    """Ask the client that drives an orchestration; None: nobody does, or it ended before it answered.

    Raises:
        Conflict: It is there and does not answer.
    """
    line = _connect(state, orchestration)
    if line is None:
        return None
    try:
        line.settimeout(timeout_s)
        line.sendall(json.dumps(message).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            piece = line.recv(1 << 16)
            if not piece:
                return None
            answer += piece
    except TimeoutError:
        raise Conflict(
            f"the client that drives {orchestration} has not answered in {timeout_s:.0f} s; is it stopped (Ctrl-Z)?"
        ) from None
    except OSError:
        return None
    finally:
        line.close()
    reply: dict[str, Any] = json.loads(answer)
    return reply


def _connect(state: Path, orchestration: str) -> socket.socket | None:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_name(socket_path(state, orchestration)) as name:
            line.connect(name)
    except OSError:
        line.close()
        return None
    return line
