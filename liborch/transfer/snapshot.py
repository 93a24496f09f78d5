"""The state of a folder at one moment, addressed by content: what `send.py` brings to a host.

Its job: read every file that goes out once, and name the whole by the sha256 over (path, kind, mode, size, hash), so that
touching a file changes nothing. Hashes of files that have not changed since are taken from a cache. Which files go out
is `listing.py`'s.

A snapshot keeps the contents of small files it has read, up to `KEEP_BYTES`. What it did not keep is read again when it
is sent; should the file have changed by then, the host notices by the hash and the send fails, naming the file.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from liborch.errors import SpecError, StorageError, TransferError
from liborch.transfer.listing import Found, LeftOut, Listing, list_folder

#: Contents of files up to this many bytes travel many to a frame.
SMALL_BYTES = 128 << 10
#: Bytes of small files kept in memory between hashing and sending.
KEEP_BYTES = 96 << 20
#: A file modified so shortly before it was hashed may be modified again without its times showing it.
RACY_NS = 2_000_000_000
_PIECE = 1 << 20

#: size, mtime_ns, ctime_ns, inode, sha256
_Known = tuple[int, int, int, int, bytes]


class Entry(msgspec.Struct, frozen=True):
    """One entry of a snapshot."""

    #: Relative, the file system's bytes.
    path: bytes
    #: "f" file, "x" executable file, "l" link, "d" empty folder.
    kind: str
    size: int = 0
    #: sha256 of a file's content.
    digest: bytes = b""
    #: What a link says.
    target: bytes = b""

    @property
    def name(self) -> str:
        """The path as text, as Python writes names that are no UTF-8."""
        return os.fsdecode(self.path)


@dataclass(frozen=True)
class Snapshot:
    """The state of a folder at one moment."""

    folder: Path
    #: Sorted by path.
    entries: tuple[Entry, ...]
    #: What hosts know it by: the sha256, in hex, of the manifest.
    id: str
    manifest: bytes = field(repr=False)
    left_out: tuple[LeftOut, ...] = field(default=(), repr=False)
    #: {sha256: content} of small files that were read when the snapshot was taken.
    kept: dict[bytes, bytes] = field(default_factory=dict, repr=False)

    @property
    def total_bytes(self) -> int:
        """Bytes in all its files."""
        return sum(entry.size for entry in self.entries)

    @property
    def files(self) -> int:
        """How many files it has."""
        return sum(1 for entry in self.entries if entry.kind in "fx")


class HashCache:
    """Hashes of files that have not changed: a file in the person's cache folder, which may vanish at any time.

    Args:
        folder: Usually `$XDG_CACHE_HOME/orchestra`. One file in it for each folder that is sent.
    """

    def __init__(self, folder: Path, tree: Path) -> None:
        self.file = folder / "hashes" / hashlib.sha256(os.fsencode(tree.resolve())).hexdigest()[:32]
        self.known: dict[bytes, _Known] = {}

    def load(self) -> None:
        """Read it. One that is missing, cut or foreign counts as empty."""
        try:
            self.known = msgspec.msgpack.decode(self.file.read_bytes(), type=dict[bytes, _Known])
        except (OSError, msgspec.MsgspecError, ValueError):
            self.known = {}

    def save(self, known: dict[bytes, _Known]) -> None:
        """Write it in one step, 0600. A cache that cannot be written is done without."""
        temporary = self.file.with_name(f"{self.file.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as opened:
                opened.write(msgspec.msgpack.encode(known))
            os.replace(temporary, self.file)
        except OSError:
            temporary.unlink(missing_ok=True)


def take_snapshot(
    folder: Path,
    *,
    send_ignore: Path | None = None,
    cache: Path | None = None,
    listing: Listing | None = None,
    results: Collection[str] = (),
) -> Snapshot:
    """Read the state of a folder. Blocking; call it in a thread.

    Args:
        folder: The folder to send.
        send_ignore: Patterns that count in place of every `.sendignore`.
        cache: Where hashes of unchanged files are kept, usually `$XDG_CACHE_HOME/orchestra`; None: nowhere.
        listing: What goes out, when it is known already.
        results: As for `list_folder`.

    Raises:
        SpecError: The folder or `send_ignore` cannot be read.
        StorageError: A file that goes out cannot be read.
    """
    if listing is None:
        listing = list_folder(folder, send_ignore=send_ignore, results=results)
    known: HashCache | None = None
    if cache is not None:
        known = HashCache(cache, folder)
        known.load()
    hashing = _Hashing(os.fsencode(folder), known.known if known is not None else {})
    entries = hashing.run(listing.found)
    if known is not None and hashing.fresh != known.known:
        known.save(hashing.fresh)
    manifest = b"".join(_record(entry) for entry in entries)
    return Snapshot(
        folder,
        tuple(entries),
        hashlib.sha256(manifest).hexdigest(),
        manifest,
        tuple(listing.left_out),
        hashing.kept,
    )


def empty_snapshot(folder: Path) -> Snapshot:
    """Return the snapshot of nothing: sending it makes a folder whose every file is then one the execution made."""
    return Snapshot(folder, (), hashlib.sha256(b"").hexdigest(), b"")


def _record(entry: Entry) -> bytes:
    if entry.kind == "l":
        return b"%b\0l %b\0" % (entry.path, entry.target)
    if entry.kind == "d":
        return b"%b\0d\0" % entry.path
    return b"%b\0%b %d %b\0" % (entry.path, entry.kind.encode(), entry.size, entry.digest.hex().encode())


class _Hashing:
    def __init__(self, root: bytes, known: dict[bytes, _Known]) -> None:
        self._root = root
        self._known = known
        self._keeping = 0
        self.kept: dict[bytes, bytes] = {}
        self.fresh: dict[bytes, _Known] = {}

    def run(self, found: list[Found]) -> list[Entry]:
        entries: list[Entry | None] = []
        large: list[tuple[int, Found]] = []
        known = self._known
        now = time.time_ns()
        for each in found:
            status = each.status
            if each.kind == "file":
                remembered = known.get(each.path)
                if remembered is not None and remembered[:4] == (
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                    status.st_ino,
                ):
                    self.fresh[each.path] = remembered
                    kind = "x" if status.st_mode & 0o100 else "f"
                    entries.append(Entry(each.path, kind, status.st_size, remembered[4]))
                elif status.st_size > SMALL_BYTES:
                    large.append((len(entries), each))
                    entries.append(None)
                else:
                    entries.append(self._read_small(each, now))
            elif each.kind == "link":
                try:
                    entries.append(
                        Entry(each.path, "l", target=os.readlink(os.path.join(self._root, each.path)))
                    )
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise self._failed(each.path, error) from error
            else:
                entries.append(Entry(each.path, "d"))
        if large:
            # Hashing lets other threads run: two at a time, one per core of a small machine.
            with ThreadPoolExecutor(2) as threads:
                for (at, _), entry in zip(
                    large, threads.map(lambda item: self._read_large(item[1], now), large), strict=True
                ):
                    entries[at] = entry
        return [entry for entry in entries if entry is not None]

    def _read_small(self, each: Found, now: int) -> Entry | None:
        path = self._root + b"/" + each.path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                data = os.read(descriptor, SMALL_BYTES + 1)
                if len(data) != each.status.st_size:
                    # It changed since it was listed.
                    return self._again(each, descriptor, now)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed(each.path, error) from error
        digest = hashlib.sha256(data).digest()
        if self._keeping + len(data) <= KEEP_BYTES and digest not in self.kept:
            self.kept[digest] = data
            self._keeping += len(data)
        self._remember(each.path, each.status, digest, now)
        return Entry(each.path, "x" if each.status.st_mode & 0o100 else "f", len(data), digest)

    def _read_large(self, each: Found, now: int) -> Entry | None:
        path = self._root + b"/" + each.path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return self._again(each, descriptor, now)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed(each.path, error) from error

    def _again(self, each: Found, descriptor: int, now: int) -> Entry:
        """Hash an open file until it is the same before and after."""
        for _ in range(5):
            status = os.fstat(descriptor)
            os.lseek(descriptor, 0, os.SEEK_SET)
            running = hashlib.sha256()
            size = 0
            while piece := os.read(descriptor, _PIECE):
                running.update(piece)
                size += len(piece)
            after = os.fstat(descriptor)
            if size == after.st_size and (status.st_mtime_ns, status.st_ctime_ns) == (
                after.st_mtime_ns,
                after.st_ctime_ns,
            ):
                self._remember(each.path, after, running.digest(), now)
                return Entry(each.path, "x" if after.st_mode & 0o100 else "f", size, running.digest())
        raise TransferError(
            "keeps changing while it is read; wait until whoever writes it is done, or add it to .sendignore",
            path=os.fsdecode(each.path),
            retriable=True,
        )

    def _remember(self, path: bytes, status: os.stat_result, digest: bytes, now: int) -> None:
        if max(status.st_mtime_ns, status.st_ctime_ns) < now - RACY_NS:
            self.fresh[path] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, digest)

    def _failed(self, path: bytes, error: OSError) -> StorageError | SpecError:
        return StorageError(
            "this machine",
            os.fsdecode(os.path.join(self._root, path)),
            error.errno or 0,
            "reading what is sent",
        )
