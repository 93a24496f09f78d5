"""Whose host keys are trusted: known_hosts files read as `ssh` reads them, with file and line for every answer.

A key is looked for under the host's name (or its HostKeyAlias), `[name]:port` first when the port is not 22; hashed names,
patterns, `@cert-authority` and `@revoked` count. The signature itself is checked by asyncssh during the handshake.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from liborch.errors import HostKeyChanged, HostKeyUnknown
from liborch.ssh.resolve import Endpoint


@dataclass(frozen=True)
class Entry:
    """One line of a known_hosts file that speaks of a host."""

    file: str
    line: int
    #: "", "@cert-authority" or "@revoked".
    marker: str
    key_type: str
    #: Base64 as written.
    key: str

    @property
    def fingerprint(self) -> str:
        """`SHA256:...`, as `ssh-keygen -l` prints it."""
        return fingerprint(self.key)


def fingerprint(key: str) -> str:
    """SHA256 fingerprint of a base64 key blob."""
    digest = hashlib.sha256(base64.b64decode(key)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def lookup(files: Iterable[str], name: str) -> list[Entry]:
    """Lines that speak of `name` ("host" or "[host]:port"), in order. Files that cannot be read hold none."""
    found = []
    wanted = name.lower()
    for file in files:
        try:
            with open(file, encoding="utf-8", errors="replace") as stream:
                lines = stream.readlines()
        except OSError:
            continue
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            marker = words.pop(0) if words[0].startswith("@") else ""
            if len(words) < 3 or not _names_match(words[0], wanted) or not _is_key(words[1], words[2]):
                continue
            found.append(Entry(file, number, marker, words[1], words[2]))
    return found


def _names_match(names: str, wanted: str) -> bool:
    if names.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part) for part in names[3:].split("|"))
        except (ValueError, binascii.Error):
            return False
        return hmac.compare_digest(hmac.digest(salt, wanted.encode(), "sha1"), digest)
    matched = False
    for pattern in names.lower().split(","):
        negated = pattern.startswith("!")
        if _pattern_matches(pattern[negated:], wanted):
            if negated:
                return False
            matched = True
    return matched


def _pattern_matches(pattern: str, wanted: str) -> bool:
    if "*" not in pattern and "?" not in pattern:
        return pattern == wanted
    # Brackets are part of "[host]:port" here, not a set of characters.
    return re.fullmatch(fnmatch.translate(pattern.replace("[", "[[]")), wanted) is not None


def _is_key(key_type: str, key: str) -> bool:
    """Whether the blob is base64 and begins with its own type's name."""
    try:
        blob = base64.b64decode(key, validate=True)
    except (ValueError, binascii.Error):
        return False
    return blob[4 : 4 + len(key_type)] == key_type.encode()


@dataclass
class Judge:
    """What known_hosts says about one endpoint, and the verdict on the key its server shows."""

    endpoint: Endpoint
    entries: list[Entry] = field(default_factory=list)
    #: The key the server showed, when it was not on record: (type, base64).
    shown: tuple[str, str] | None = None

    @classmethod
    def of(cls, endpoint: Endpoint) -> Judge:
        """Read the endpoint's known_hosts files."""
        judge = cls(endpoint)
        judge.entries = lookup(judge.files, judge.name)
        if (
            endpoint.port != 22
            and endpoint.host_key_alias is None
            and not any(not e.marker for e in judge.entries)
        ):
            # As ssh does: a key recorded without the port is good enough, a revoked one bad enough.
            judge.entries += lookup(judge.files, endpoint.host)
        return judge

    @property
    def files(self) -> tuple[str, ...]:
        """Every file consulted."""
        return self.endpoint.user_known_hosts + self.endpoint.global_known_hosts

    @property
    def name(self) -> str:
        """The name keys are recorded under."""
        endpoint = self.endpoint
        if endpoint.host_key_alias is not None:
            return endpoint.host_key_alias
        return endpoint.host if endpoint.port == 22 else f"[{endpoint.host}]:{endpoint.port}"

    def keys(self, marker: str) -> list[bytes]:
        """Recorded keys with that marker, as OpenSSH public key lines."""
        return [f"{entry.key_type} {entry.key}".encode() for entry in self.entries if entry.marker == marker]

    def algorithms(self, allowed: Sequence[str]) -> list[str]:
        """`allowed` host key algorithms with those first for which a key is on record.

        So a server with several keys shows the one we know. The others stay, so that a server that lost that key is
        told apart from one that speaks no SSH.
        """
        types = {entry.key_type for entry in self.entries if not entry.marker}
        has_authority = bool(self.keys("@cert-authority"))

        def rank(name: str) -> int:
            if "-cert-" in name:
                return 0 if has_authority else 3
            base = "ssh-rsa" if name.startswith("rsa-sha2") else name
            return 1 if base in types else 2

        return sorted(allowed, key=rank)

    def error(self, reason: str = "") -> HostKeyUnknown | HostKeyChanged:
        """The error for the key `shown` (or for a certificate asyncssh refused with `reason`)."""
        endpoint = self.endpoint
        seen = fingerprint(self.shown[1]) if self.shown else f"({reason})"
        recorded = [entry for entry in self.entries if not entry.marker]
        if "revoked" in reason:
            recorded = [entry for entry in self.entries if entry.marker == "@revoked"] or recorded
        if not recorded:
            return HostKeyUnknown(endpoint.name, endpoint.address, seen, self.files)
        # The line of the same type is the one that ought to have matched.
        same = [entry for entry in recorded if self.shown and entry.key_type == self.shown[0]]
        entry = (same or recorded)[0]
        kept = f"{entry.fingerprint}{' (revoked)' if entry.marker == '@revoked' else ''}"
        return HostKeyChanged(endpoint.name, endpoint.address, seen, kept, entry.file, entry.line)

    @property
    def may_accept(self) -> bool:
        """Whether no key at all is on record: only then a new one may be accepted."""
        return not self.entries

    def record(self) -> None:
        """Append the key `shown` to the person's first known_hosts file, readable by them alone when made here.

        Raises:
            OSError: The file or its folder cannot be written.
        """
        if self.shown is None or not self.endpoint.user_known_hosts:
            return
        file = self.endpoint.user_known_hosts[0]
        if file == os.devnull:
            return
        os.makedirs(os.path.dirname(file) or ".", mode=0o700, exist_ok=True)
        name = self.name.lower()
        if self.endpoint.hash_known_hosts:
            salt = os.urandom(20)
            parts = (
                base64.b64encode(part).decode() for part in (salt, hmac.digest(salt, name.encode(), "sha1"))
            )
            name = "|1|" + "|".join(parts)
        with open(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
            torn = False
            if size:
                stream.seek(size - 1)
                torn = stream.read(1) != b"\n"
            stream.write(b"\n" * torn + f"{name} {self.shown[0]} {self.shown[1]}\n".encode())
