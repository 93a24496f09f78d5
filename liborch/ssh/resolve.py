"""What a host's name means, exactly as `ssh` would understand it: an Endpoint.

Where the `ssh` binary exists, `ssh -G` answers (Include, Match, canonicalisation, defaults of the machine, everything);
elsewhere asyncssh's own parser of ssh_config does, which knows less. Nothing is connected to here and nothing is cached;
name lookup, keys and jumps are the affair of `handshake` and `pool`.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from liborch.errors import SpecError

#: `ssh -G` may run the person's own `Match exec` commands; longer than this is a hang, in seconds.
RESOLVE_TIMEOUT_S = 15.0

_DEFAULT_IDENTITIES = ("~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519")


@dataclass(frozen=True)
class Endpoint:
    """Where and how to connect. Paths are absolute, tokens (%h) are expanded."""

    #: As the person wrote it.
    name: str
    host: str
    port: int
    user: str
    #: ProxyJump hops in order, each as written; each is resolved by itself.
    jumps: tuple[str, ...] = ()
    proxy_command: str | None = None
    identity_files: tuple[str, ...] = ()
    certificate_files: tuple[str, ...] = ()
    identities_only: bool = False
    #: Socket of the key agent; None: the one of the environment; "": none.
    identity_agent: str | None = None
    #: Name to look up in known_hosts, when another than `host`.
    host_key_alias: str | None = None
    user_known_hosts: tuple[str, ...] = ()
    global_known_hosts: tuple[str, ...] = ()
    #: The person's own ssh configuration accepts keys never seen before (StrictHostKeyChecking accept-new, no or off).
    accepts_new_keys: bool = False
    hash_known_hosts: bool = False
    #: None: not configured.
    connect_timeout_s: float | None = None
    keepalive_interval_s: float | None = None
    keepalive_count: int | None = None
    send_env: tuple[str, ...] = ()
    set_env: Mapping[str, str] = field(default_factory=dict)
    #: Names allowed, best first; empty: no opinion.
    ciphers: tuple[str, ...] = ()
    kex: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    host_key_algorithms: tuple[str, ...] = ()
    family: int = socket.AF_UNSPEC
    bind_address: str | None = None
    compression: bool = False

    @property
    def address(self) -> str:
        """`host:port`, for messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Written:
    """A host as written: [user@]name[:port] or ssh://[user@]name[:port]."""

    name: str
    user: str | None = None
    port: int | None = None


def parse_name(text: str) -> Written:
    """Take a written host apart.

    Raises:
        SpecError: Empty, starts with a dash (ssh would take it for an option), or has a port that is none.
    """
    rest = text
    uri = text.lower().startswith("ssh://")
    if uri:
        rest = text[6:].rstrip("/")
    user: str | None = None
    if "@" in rest:
        user, _, rest = rest.rpartition("@")
        if uri:
            from urllib.parse import unquote

            user = unquote(user.partition(";")[0])
    port_text = ""
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::(.*))?", rest)
    if bracketed:
        rest, port_text = bracketed[1], bracketed[2] or ""
    elif rest.count(":") == 1:
        rest, _, port_text = rest.partition(":")
    if (
        not rest
        or rest.startswith("-")
        or user == ""
        or (user or "").startswith("-")
        or re.search(r"[\s\0/]", rest)
    ):
        raise SpecError(f"{text!r} is no host; expected a profile, an ssh alias, or user@name:port")
    if port_text and not (port_text.isdecimal() and 0 < int(port_text) < 65536):
        raise SpecError(f"{text!r}: {port_text!r} is no port; expected a number from 1 to 65535")
    return Written(rest, user, int(port_text) if port_text else None)


async def resolve_host(host: str, config_file: str | None = None) -> Endpoint:
    """Resolve a written host with the person's ssh configuration (or `config_file` in its place).

    Cancelling kills the `ssh -G` it started.

    Raises:
        SpecError: `host` cannot be a host, or ssh cannot read its configuration (file and line are in the message).
    """
    written = parse_name(host)
    binary = shutil.which("ssh")
    if binary is None:
        return await asyncio.to_thread(_resolve_without_ssh, host, written, config_file)
    argv = [binary, "-G"]
    if config_file is not None:
        argv += ["-F", config_file]
    if written.user is not None:
        argv += ["-l", written.user]
    if written.port is not None:
        argv += ["-p", str(written.port)]
    process = await asyncio.create_subprocess_exec(
        *argv, "--", written.name, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            out, err = await process.communicate()
    except TimeoutError:
        raise SpecError(
            f"{host}: `ssh -G {written.name}` did not end in {RESOLVE_TIMEOUT_S:.0f} s; "
            f"look for a hanging `Match exec` in the ssh configuration"
        ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if process.returncode:
        why = " ".join(err.decode(errors="replace").split())
        raise SpecError(f"{host}: ssh cannot read its configuration: {why}; try `ssh -G {written.name}`")
    return parse_dump(host, written.name, out.decode(errors="surrogateescape"))


def parse_dump(host: str, name: str, dump: str) -> Endpoint:
    """Make an Endpoint of what `ssh -G` printed. `name` is the host part of `host`."""
    options: dict[str, list[str]] = {}
    for line in dump.splitlines():
        key, _, value = line.partition(" ")
        options.setdefault(key.lower(), []).append(value)

    def one(key: str, default: str = "") -> str:
        return options.get(key, [default])[0]

    def words(key: str) -> tuple[str, ...]:
        return tuple(word for word in one(key).split(",") if word)

    endpoint_host, port, user = one("hostname", name), int(one("port", "22")), one("user")
    jump = one("proxyjump")
    command = one("proxycommand")
    tokens = _tokens(name, endpoint_host, port, user)
    return Endpoint(
        name=host,
        host=endpoint_host,
        port=port,
        user=user,
        jumps=() if jump in ("", "none") else tuple(hop.strip() for hop in jump.split(",")),
        proxy_command=None if command in ("", "none") else expand_tokens(command, tokens),
        identity_files=_paths(options.get("identityfile", []), tokens),
        certificate_files=_paths(options.get("certificatefile", []), tokens),
        identities_only=one("identitiesonly") == "yes",
        identity_agent=_agent(one("identityagent"), tokens),
        host_key_alias=one("hostkeyalias") or None,
        user_known_hosts=_paths(_split_files(one("userknownhostsfile")), tokens),
        global_known_hosts=_paths(_split_files(one("globalknownhostsfile")), tokens),
        accepts_new_keys=one("stricthostkeychecking") in ("accept-new", "no", "off", "false"),
        hash_known_hosts=one("hashknownhosts") == "yes",
        connect_timeout_s=_seconds(one("connecttimeout")),
        keepalive_interval_s=_seconds(one("serveraliveinterval")),
        keepalive_count=int(one("serveralivecountmax", "3"))
        if _seconds(one("serveraliveinterval"))
        else None,
        send_env=tuple(word for line in options.get("sendenv", []) for word in line.split()),
        set_env=dict(line.split("=", 1) for line in options.get("setenv", []) if "=" in line),
        ciphers=words("ciphers"),
        kex=words("kexalgorithms"),
        macs=words("macs"),
        host_key_algorithms=words("hostkeyalgorithms"),
        family={"inet": socket.AF_INET, "inet6": socket.AF_INET6}.get(one("addressfamily"), socket.AF_UNSPEC),
        bind_address=one("bindaddress") or None,
        compression=one("compression") == "yes",
    )


def expand_tokens(text: str, tokens: Mapping[str, str]) -> str:
    """Expand %h and its like. Raises SpecError for a token that is not known."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in tokens:
            raise SpecError(f"{text!r} in the ssh configuration: token %{match[1]} is not known here")
        return tokens[match[1]]

    return re.sub(r"%(.?)", value, text)


def _tokens(name: str, host: str, port: int, user: str) -> dict[str, str]:
    local = socket.gethostname()
    return {
        "%": "%", "h": host, "n": name, "p": str(port), "r": user, "k": name, "d": os.path.expanduser("~"),
        "i": str(os.getuid()), "u": getpass.getuser(), "l": local, "L": local.partition(".")[0],
    }  # fmt: skip


def _paths(texts: Sequence[str], tokens: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        expand_tokens(os.path.expandvars(os.path.expanduser(text.strip('"'))), tokens)
        for text in texts
        if text and text != "none"
    )


def _split_files(text: str) -> list[str]:
    # `ssh -G` prints a list of files without quotes: a blank before something that starts a path separates.
    return re.split(r" (?=[/~%$])", text) if text else []


def _agent(text: str, tokens: Mapping[str, str]) -> str | None:
    if text in ("", "SSH_AUTH_SOCK"):
        return None
    return "" if text == "none" else _paths([text], tokens)[0]


def _seconds(text: str) -> float | None:
    """Seconds of an ssh time ("15", "2m"); None for none or 0."""
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    total = sum(int(n) * units[unit] for n, unit in re.findall(r"(\d+)([smhdw]?)", text.lower()))
    return float(total) or None


def _resolve_without_ssh(host: str, written: Written, config_file: str | None) -> Endpoint:
    from asyncssh import ConfigParseError
    from asyncssh.config import SSHClientConfig

    user = getpass.getuser()
    files = [config_file] if config_file else [os.path.expanduser("~/.ssh/config"), "/etc/ssh/ssh_config"]
    try:
        config: Any = SSHClientConfig.load(
            None, [file for file in files if os.access(file, os.R_OK)], False, False, False, user,
            written.user or (), written.name, written.port or (),
        )  # fmt: skip
    except (ConfigParseError, OSError) as error:
        raise SpecError(f"{host}: the ssh configuration cannot be read: {error}") from error
    target = str(config.get("Hostname", written.name))
    port = int(written.port or config.get("Port", 22))
    login = str(written.user or config.get("User", user))
    tokens = _tokens(written.name, target, port, login)
    jump = str(config.get("ProxyJump") or "")
    command = config.get("ProxyCommand")
    environment = config.get("SetEnv") or ()
    return Endpoint(
        name=host,
        host=target,
        port=port,
        user=login,
        jumps=() if jump in ("", "none") else tuple(jump.split(",")),
        proxy_command=str(command) if command else None,
        identity_files=_paths(config.get("IdentityFile") or _DEFAULT_IDENTITIES, tokens),
        certificate_files=_paths(config.get("CertificateFile") or (), tokens),
        identities_only=bool(config.get("IdentitiesOnly")),
        identity_agent=_agent(str(config.get("IdentityAgent") or ""), tokens),
        host_key_alias=config.get("HostKeyAlias"),
        user_known_hosts=_paths(config.get("UserKnownHostsFile") or ["~/.ssh/known_hosts"], tokens),
        global_known_hosts=_paths(config.get("GlobalKnownHostsFile") or ["/etc/ssh/ssh_known_hosts"], tokens),
        connect_timeout_s=_seconds(str(config.get("ConnectTimeout") or "")),
        keepalive_interval_s=_seconds(str(config.get("ServerAliveInterval") or "")),
        keepalive_count=config.get("ServerAliveCountMax"),
        send_env=tuple(config.get("SendEnv") or ()),
        set_env=dict(pair.split("=", 1) for pair in environment),
        family=int(config.get("AddressFamily") or socket.AF_UNSPEC),
    )
