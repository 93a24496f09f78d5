"""What `ssh` accepts as a destination: `alias`, `user@name`, `name:port`, `ssh://user@name:port`, `user@[::1]:22`.

A destination ends up on a command line (`ssh -G`) and in ProxyCommand's `%h`, so whatever could be read as an option
or by a shell is refused here, as OpenSSH itself does since 9.6. Resolving an alias is left to `liborch.ssh`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from liborch.errors import SpecError

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f'\"`$\\;&<>|(){}*?!,#]")


@dataclass(frozen=True, slots=True)
class Target:
    """A destination, taken apart."""

    host: str
    #: None: as the ssh configuration says.
    user: str | None = None
    port: int | None = None


def parse_target(text: str) -> Target:
    """Take a destination apart.

    Raises:
        SpecError: Not a destination, or one that could be taken for an option or shell code.
    """

    def refuse(why: str) -> SpecError:
        return SpecError(
            f"{text[:80]!r} is no ssh destination: {why}; write an alias, user@name or user@name:port"
        )

    rest = text.removeprefix("ssh://").removesuffix("/") if text.startswith("ssh://") else text
    user: str | None = None
    if "@" in rest:
        user, rest = rest.rsplit("@", 1)
        if not user or user.startswith("-") or _FORBIDDEN.search(user) or ":" in user:
            raise refuse(f"the user name {user!r}")
    port_text: str | None = None
    if rest.startswith("["):
        found = re.fullmatch(r"\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\](?::(.*))?", rest)
        if not found:
            raise refuse("the address in brackets")
        host, port_text = found.groups()
    elif rest.count(":") == 1:
        host, port_text = rest.split(":")
    else:
        host = rest
    if not host:
        raise refuse("it has no host name")
    if host.startswith("-"):
        raise refuse("it begins with a dash, as options do")
    bad = _FORBIDDEN.search(host)
    if bad or "/" in host or len(host) > 255:
        raise refuse(
            f"it holds {bad.group()!r}" if bad else "a host name has no slash and 255 characters at most"
        )
    if port_text is None:
        return Target(host, user)
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not 0 < int(port_text) < 65536:
        raise refuse(f"the port {port_text!r}")
    return Target(host, user, int(port_text))
