"""One authenticated connection of an Endpoint: socket or proxy command or tunnel, host key, login.

Every way this can fail ends in one of our errors, in bounded time; `Crowded` is the one that means "again, soon".
Cancelling closes the socket and ends the proxy command. How often and when to try is the affair of `pool`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from liborch.errors import AuthenticationRefused, HostUnreachable
from liborch.ssh.gathering import spare_empty_packets, speak_over
from liborch.ssh.host_keys import Judge
from liborch.ssh.limits import Limits
from liborch.ssh.resolve import Endpoint

if TYPE_CHECKING:
    import asyncssh

#: Preferred among the ciphers the person's configuration allows: measured on a local link, in this order.
_FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com")


class Crowded(Exception):
    """The server broke the handshake off before the login: MaxStartups, most likely."""


class _NoKeys(list[Any]):
    """An empty list of keys that counts as given: asyncssh replaces a falsy one by the default keys."""

    def __bool__(self) -> bool:
        return True


class Client:
    """asyncssh's view of us: judges host keys, notices that the connection ended."""

    def __init__(self, judge: Judge, accept_new: bool, lost: Callable[[Exception | None], None]) -> None:
        self._judge = judge
        self._accept_new = accept_new
        self._lost = lost
        self.connection: asyncssh.SSHClientConnection | None = None

    def __getattr__(self, name: str) -> Any:
        # asyncssh asks for optional callbacks (banners, passwords); its own class answers for those we have not.
        import asyncssh

        return getattr(asyncssh.SSHClient, name).__get__(self)

    def connection_made(self, connection: asyncssh.SSHClientConnection) -> None:
        """The transport stands."""
        self.connection = connection

    def connection_lost(self, error: Exception | None) -> None:
        """The connection ended, for whatever reason."""
        self._lost(error)

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Called for a key that is not among the recorded ones."""
        self._judge.shown = (key.algorithm.decode(), base64.b64encode(key.public_data).decode())
        return self._accept_new and self._judge.may_accept


@dataclass
class Opened:
    """A connection that is logged in."""

    connection: asyncssh.SSHClientConnection
    #: Done when the connection has ended; the reason, "" when we closed it.
    lost: asyncio.Future[str]


async def open_connection(
    endpoint: Endpoint,
    limits: Limits,
    *,
    tunnel: asyncssh.SSHClientConnection | None = None,
    accept_new: bool = False,
    debug: Callable[[str], None] | None = None,
) -> Opened:
    """Connect and log in.

    Raises:
        HostUnreachable, HostKeyUnknown, HostKeyChanged, AuthenticationRefused: For good, as far as this try goes.
        Crowded: The server hung up before the login; worth another try in a moment.
    """
    timeout_s = endpoint.connect_timeout_s or limits.connect_timeout_s
    note = debug or (lambda line: None)
    # Importing takes longer than a round trip: let the server's greeting travel meanwhile.
    importing = asyncio.create_task(asyncio.to_thread(_import_asyncssh))
    attempt = _Attempt()
    try:
        async with asyncio.timeout(timeout_s):
            if tunnel is None and endpoint.proxy_command is not None:
                attempt.proxy = await _Proxy.start(endpoint.proxy_command)
                attempt.sock = attempt.proxy.socket
            elif tunnel is None:
                attempt.sock = await _connect_socket(endpoint, timeout_s)
            await importing
            attempt.phase = "greeting"
            opened = await _log_in(endpoint, limits, attempt.sock, tunnel, accept_new, note)
    except TimeoutError:
        why = {
            "connect": f"gave no answer in {timeout_s:g} s",
            "greeting": f"accepted the connection but did not finish the SSH handshake in {timeout_s:g} s",
        }[attempt.phase]
        error = _unreachable(endpoint, why, attempt.proxy)
        attempt.release()
        raise error from None
    except _HungUp as hung_up:
        crowded: Exception = Crowded(str(hung_up))
        if attempt.proxy is not None:
            crowded = _unreachable(endpoint, str(hung_up), attempt.proxy)
        attempt.release()
        raise crowded from hung_up
    except BaseException:
        attempt.release()
        raise
    finally:
        importing.cancel()
    if attempt.proxy is not None:
        opened.lost.add_done_callback(attempt.proxy.end)
    return opened


@dataclass
class _Attempt:
    """What one attempt holds until it succeeds."""

    sock: socket.socket | None = None
    proxy: _Proxy | None = None
    phase: str = "connect"

    def release(self) -> None:
        if self.sock is not None:
            self.sock.close()
        if self.proxy is not None:
            self.proxy.end()


class _Socket:
    """A connected socket, for asyncssh to speak over."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def create_connection(self, factory: Any, _host: str, _port: int) -> Any:
        return await speak_over(self._sock, factory)


class _Tunnel:
    """A jump host's connection, for asyncssh to open a channel to the next host through."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection
        self.logger = connection.logger

    async def create_connection(self, factory: Any, host: str, port: int) -> Any:
        # asyncssh forgets a channel whose opening is cancelled, and it would stay open on the jump host.
        opening = asyncio.ensure_future(self._connection.create_connection(factory, host, port))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_abort_channel)
            raise


def _abort_channel(opening: asyncio.Future[Any]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].abort()


class _HungUp(Exception):
    """The other side closed the connection before the login."""


def _import_asyncssh() -> None:
    """Import asyncssh without its search for two optional libraries, which runs ldconfig and gcc: 110 ms become 75."""
    if "asyncssh" in sys.modules:
        return
    import ctypes.util

    search = ctypes.util.find_library
    ctypes.util.find_library = lambda name: (
        None if name.removeprefix("lib") in ("oqs", "nettle") else search(name)
    )
    try:
        import asyncssh  # noqa: F401
    finally:
        ctypes.util.find_library = search


def _unreachable(
    endpoint: Endpoint, why: str, proxy: _Proxy | None = None, *, retriable: bool = True
) -> HostUnreachable:
    told = proxy.told() if proxy is not None else ""
    return HostUnreachable(
        endpoint.name,
        endpoint.address,
        f"{why}; its proxy command said: {told}" if told else why,
        retriable=retriable,
    )


async def _connect_socket(endpoint: Endpoint, timeout_s: float) -> socket.socket:
    """A connected TCP socket to the first address that answers."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            endpoint.host,
            endpoint.port,
            family=endpoint.family,
            type=socket.SOCK_STREAM,
            flags=socket.AI_ADDRCONFIG,
        )
    except socket.gaierror as error:
        temporary = error.errno == socket.EAI_AGAIN
        why = f"has a name that does not resolve ({error.strerror})"
        raise _unreachable(endpoint, why, retriable=temporary) from error
    except UnicodeError as error:
        raise _unreachable(endpoint, "has a name that is no host name", retriable=False) from error
    failure: OSError | None = None
    for i, (family, kind, protocol, _, address) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            if endpoint.bind_address is not None:
                sock.bind((endpoint.bind_address, 0))
            # The last address may take all the time that is left, those before it a fair share.
            share_s = None if i == len(found) - 1 else timeout_s / len(found)
            async with asyncio.timeout(share_s):
                await loop.sock_connect(sock, address)
            return sock
        except (OSError, TimeoutError) as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    assert failure is not None
    if isinstance(failure, ConnectionRefusedError):
        raise _unreachable(endpoint, "refused the connection: no sshd listens there") from failure
    # Not `strerror`: asyncio puts its own words there, and a tuple.
    why = f"cannot be reached: {os.strerror(failure.errno)}" if failure.errno else "gave no answer"
    raise _unreachable(endpoint, why) from failure


async def _log_in(
    endpoint: Endpoint,
    limits: Limits,
    sock: socket.socket | None,
    tunnel: asyncssh.SSHClientConnection | None,
    accept_new: bool,
    note: Callable[[str], None],
) -> Opened:
    import asyncssh

    judge = Judge.of(endpoint)
    accept = accept_new or endpoint.accepts_new_keys
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def ended(error: Exception | None) -> None:
        if not lost.done():
            lost.set_result("" if error is None else str(error) or type(error).__name__)

    keys, locked = _load_keys(endpoint, note)
    # asyncssh's word for "somebody else makes the connection" is tunnel, whatever it leads through.
    way: _Socket | _Tunnel
    if tunnel is not None:
        way = _Tunnel(tunnel)
    else:
        assert sock is not None
        way = _Socket(sock)
    clients: list[Client] = []

    def make_client() -> Any:
        clients.append(Client(judge, accept, ended))
        return clients[0]

    try:
        connection = await asyncssh.connect(
            endpoint.host,
            endpoint.port,
            tunnel=way,
            client_factory=make_client,
            **_options(endpoint, limits, judge, keys),
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise judge.error(str(error)) from error
    except asyncssh.PermissionDenied as error:
        raise AuthenticationRefused(
            endpoint.name, endpoint.address, endpoint.user, _tried(keys, locked)
        ) from error
    except asyncssh.ChannelOpenError as error:
        raise _unreachable(endpoint, f"cannot be reached from the jump host: {error.reason}") from error
    except (asyncssh.ConnectionLost, ConnectionError) as error:
        raise _HungUp("closed the connection during the SSH handshake") from error
    except asyncssh.DisconnectError as error:
        if "authentication failures" in error.reason:
            why = f"{error.reason} ({_tried(keys, locked)})"
            raise AuthenticationRefused(endpoint.name, endpoint.address, endpoint.user, why) from error
        if isinstance(
            error, (asyncssh.ProtocolError, asyncssh.KeyExchangeFailed, asyncssh.ProtocolNotSupported)
        ):
            why = f"answers, but the SSH handshake failed: {error.reason}"
            raise _unreachable(endpoint, why, retriable=False) from error
        raise _HungUp(f"ended the SSH handshake: {error.reason}") from error
    except OSError as error:
        raise _HungUp(f"broke the connection off: {error.strerror or error}") from error
    if judge.shown is not None and accept:
        try:
            judge.record()
            note(f"{endpoint.name}: recorded its new host key in {endpoint.user_known_hosts[:1]}")
        except OSError as error:
            note(f"{endpoint.name}: its new host key was not recorded: {error}")
    spare_empty_packets(connection)
    return Opened(connection, lost)


def _options(endpoint: Endpoint, limits: Limits, judge: Judge, keys: list[Any]) -> dict[str, Any]:
    """asyncssh's options: everything is said, so that it reads no configuration and tries nothing else."""
    from asyncssh.encryption import get_encryption_algs
    from asyncssh.kex import get_default_kex_algs
    from asyncssh.mac import get_mac_algs
    from asyncssh.public_key import get_default_certificate_algs, get_default_public_key_algs

    def choose(known: list[bytes], allowed: tuple[str, ...], first: tuple[str, ...] = ()) -> list[str]:
        names = [name.decode() for name in known]
        wanted = [name for name in allowed if name in names] if allowed else names
        return [name for name in first if name in wanted] + [name for name in wanted if name not in first]

    host_keys = choose(
        get_default_certificate_algs() + get_default_public_key_algs(), endpoint.host_key_algorithms
    )
    interval_s, count = keepalive(endpoint, limits)
    identities = _identities(endpoint, keys) if endpoint.identities_only else None
    agent: Any = () if endpoint.identity_agent is None else endpoint.identity_agent
    if identities == []:
        # No identity the agent may be asked for; asyncssh would read an empty list as "any".
        agent, identities = "", None
    options: dict[str, Any] = {
        "config": None,
        "username": endpoint.user,
        "known_hosts": (judge.keys(""), judge.keys("@cert-authority"), judge.keys("@revoked")),
        "host_key_alias": endpoint.host_key_alias or endpoint.host,
        "server_host_key_algs": judge.algorithms(host_keys),
        "encryption_algs": choose(get_encryption_algs(), endpoint.ciphers, _FAST_CIPHERS),
        "kex_algs": choose(get_default_kex_algs(), endpoint.kex),
        "mac_algs": choose(get_mac_algs(), endpoint.macs),
        "compression_algs": "zlib@openssh.com,none" if endpoint.compression else "none",
        "client_keys": keys,
        "agent_path": agent,
        "agent_identities": identities,
        "agent_forwarding": False,
        "preferred_auth": "publickey",
        "password_auth": False,
        "kbdint_auth": False,
        "host_based_auth": False,
        "gss_host": None,
        "gss_kex": False,
        "gss_auth": False,
        "x509_trusted_certs": None,
        "x509_trusted_cert_paths": None,
        "env": dict(endpoint.set_env),
        "send_env": list(endpoint.send_env),
        "keepalive_interval": interval_s,
        "keepalive_count_max": count,
        "connect_timeout": None,
        "login_timeout": 0,
    }
    return options


def keepalive(endpoint: Endpoint, limits: Limits) -> tuple[float, int]:
    """Interval in seconds and count: the configuration's when a dead link is noticed sooner with it, else ours.

    A longer one is not the person's wish as a rule: Debian's ssh sets 300 s whenever BatchMode is on, and NAT boxes
    are the reason for most others, who are as happy with ours.
    """
    ours = limits.keepalive_interval_s, limits.keepalive_count
    if endpoint.keepalive_interval_s is None:
        return ours
    theirs = endpoint.keepalive_interval_s, endpoint.keepalive_count or 3
    return min(ours, theirs, key=lambda each: each[0] * (each[1] + 1))


def _identities(endpoint: Endpoint, keys: list[Any]) -> list[bytes]:
    """Public keys that the key agent may be asked to use when IdentitiesOnly is set: those of the identity files."""
    import asyncssh

    found = [pair.public_data for pair in keys]
    for file in endpoint.identity_files:
        for name in (file, f"{file}.pub"):
            try:
                found.append(asyncssh.read_public_key(name).public_data)
                break
            except (OSError, asyncssh.KeyImportError):
                continue
    return found


def _load_keys(endpoint: Endpoint, note: Callable[[str], None]) -> tuple[list[Any], list[str]]:
    """Key pairs of the endpoint's identity files, and the files skipped because they need a passphrase."""
    import asyncssh

    pairs: list[Any] = _NoKeys()
    locked = []
    certificates = [file for file in endpoint.certificate_files if os.path.exists(file)]
    for file in endpoint.identity_files:
        if not os.path.exists(file):
            continue
        try:
            pairs += asyncssh.load_keypairs([file], certlist=certificates)
        except asyncssh.KeyEncryptionError:
            locked.append(file)
        except (asyncssh.KeyImportError, OSError) as error:
            if "passphrase" in str(error).lower():
                locked.append(file)
            else:
                note(f"{endpoint.name}: identity {file} is left out: {error}")
    return pairs, locked


def _tried(keys: list[Any], locked: list[str]) -> str:
    tried = f"{len(keys)} key{'s' if len(keys) != 1 else ''} from files, and the key agent if there is one"
    if locked:
        tried += f"; {', '.join(locked)} needs its passphrase: load it with ssh-add"
    return tried


class _Proxy:
    """A ProxyCommand, talking to us over a socket pair, in a session of its own so that all of it can be ended."""

    def __init__(self, process: asyncio.subprocess.Process, ours: socket.socket, errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors
        self.socket = ours

    @classmethod
    async def start(cls, command: str) -> _Proxy:
        """Start the command. Cancelling ends it."""
        import tempfile

        ours, theirs = socket.socketpair()
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        try:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                f"exec {command}",
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=errors,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            errors.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(process, ours, errors)

    def told(self) -> str:
        """The last line of the command's stderr."""
        if self._errors.closed:
            return ""
        self._errors.seek(0)
        lines = self._errors.read(1 << 16).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def end(self, *_: object) -> None:
        """End the command and what it started."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGTERM)
        self._errors.close()
