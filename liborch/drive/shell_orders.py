"""Orders for a node that has only sh: a line for its keeper, and a script that becomes the execution's command."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from liborch.profiles.procedures import quote

VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def checked(name: Any) -> str:
    """A name that is one word of the fallback's lines and part of a file's name."""
    text = str(name)
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} cannot be the name of anything on a node without python3")
    return text


def head_of(x: str, attempt: int, owner: str, own: dict[str, Any]) -> str:
    """The words that the node's keeper needs of an order; times in hundredths of a second."""
    lease = "tty" if own.get("tty") else "hold" if own.get("hold") else str(own.get("lease") or "-")
    wall = own.get("wall")
    words = (
        x,
        attempt,
        owner,
        own.get("cpus") or 1,
        own.get("mem") or 0,
        own.get("gpus") or 0,
        round(wall * 100) if wall else "-",
        round(float(own.get("grace", 10.0)) * 100),
        lease,
        "keep" if own.get("keep") else "-",
        "outcome" if own.get("outcome") else "-",
    )
    return " ".join(str(word) for word in words)


def script_of(x: str, node: str, common: dict[str, Any], own: dict[str, Any]) -> str:
    """The order as a script: its variables, then its place, its folder and its command."""
    env = {**(common.get("env") or {}), **(own.get("env") or {})}
    lines = [f"export {name}={quote(value)}" for name, value in env.items() if _IDENTIFIER.fullmatch(name)]
    lines.append("orchestra_place")
    lines.append(f"export RUNAWAY_UUID={quote(x)}")
    lines.append(f"export RUNAWAY_NODE_ID={quote(str(own.get('node') or common.get('node') or node))}")
    if own.get("outcome"):
        lines.append("orchestra_outcome")
    cwd = own.get("cwd")
    lines.append(f"orchestra_enter {quote(cwd) if cwd else chr(34) + '${HOME:-/}' + chr(34)}")
    # sh has no way to export what it could not name itself.
    odd = [f"{name}={value}" for name, value in env.items() if not _IDENTIFIER.fullmatch(name)]
    argv = [*(("env", *odd) if odd else ()), *(own.get("argv") or ("true",))]
    lines.append("exec " + " ".join(quote(word) for word in argv))
    return "\n".join(lines)


def normal(text: str, home: str, values: dict[str, str]) -> str:
    """Fill variables into the name of a folder and make it absolute."""
    if text == "~" or text.startswith("~/"):
        text = home + text[1:]
    text = VARIABLE.sub(lambda match: values.get(match[1] or match[2], ""), text)
    return posixpath.normpath(posixpath.join(home, text))
