"""What the journal needs to know about the disk below it: private files, kinds of file systems, errors as ours.

Never opens the database file itself: closing any descriptor of it would drop SQLite's locks of this whole process.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from liborch.errors import JournalError, OrchestraError, StorageError

#: File systems that several machines mount: memory mapped there is not shared, so WAL is not safe.
# fmt: off
NETWORK_TYPES = frozenset((
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "9p", "virtiofs", "lustre", "gpfs", "mmfs",
    "beegfs", "ceph", "glusterfs", "pvfs2", "orangefs", "panfs", "wekafs", "gfs2", "ocfs2",
))
# fmt: on
#: FUSE file systems that live on this machine's own disk; every other `fuse.*` counts as a network.
LOCAL_FUSE = frozenset(
    ("fuse.fuse-overlayfs", "fuse.mergerfs", "fuse.gocryptfs", "fuse.encfs", "fuse.bindfs")
)

_FULL = sqlite3.SQLITE_FULL
_UNREADABLE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_REFUSED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)

REBUILD = "keep the file and run `runaway doctor --rebuild-journal`: it saves a copy first"


def make_private_folder(folder: Path) -> None:
    """Make a folder and its missing parents, each 0700 from its first instant. Raises StorageError."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        if folder.parent == folder:
            break
        folder = folder.parent
    for each in reversed(missing):
        try:
            each.mkdir(mode=0o700)
        except FileExistsError:
            if not each.is_dir():
                raise StorageError("this machine", str(each), errno.ENOTDIR, "making a folder") from None
        except OSError as error:
            raise StorageError(
                "this machine", str(each), error.errno or errno.EIO, "making a folder"
            ) from error


def network_type(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that holds a path; None on a local one or where nobody can tell.

    Args:
        mounts: Lines of /proc/self/mountinfo; read from there when None.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return None
    real = os.path.realpath(path)
    best, best_type = "", ""
    for line in mounts.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = (
            fields[4]
            .replace("\\040", " ")
            .replace("\\011", "\t")
            .replace("\\012", "\n")
            .replace("\\134", "\\")
        )
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # A later mount on the same point hides the earlier one.
        if inside and len(point) >= len(best):
            best, best_type = point, right.split(" ", 1)[0]
    if best_type in NETWORK_TYPES or (best_type.startswith("fuse.") and best_type not in LOCAL_FUSE):
        return best_type
    return None


def translate(error: sqlite3.Error, path: Path, doing: str) -> OrchestraError:
    """SQLite's error as one of ours: StorageError when the disk or its rights refuse, else JournalError."""
    # Errors that Python's own binding raises (text that is no UTF-8) carry no code: the content is to blame.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    primary = code & 0xFF
    where = "this machine"
    if primary == _FULL:
        return StorageError(where, str(path), errno.ENOSPC, doing)
    if primary in _BUSY:
        return StorageError(
            where, str(path), errno.EAGAIN, f"{doing} (another process has been writing all the time)"
        )
    if primary == sqlite3.SQLITE_NOMEM:
        return StorageError(where, str(path), errno.ENOMEM, doing)
    if primary in _REFUSED or primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
        return StorageError(where, str(path), _why_refused(path, primary), doing)
    if primary == sqlite3.SQLITE_NOTADB:
        return JournalError(
            str(path), "is no journal: not an SQLite file, or its first page is damaged", REBUILD
        )
    if primary in _UNREADABLE:
        return JournalError(str(path), f"is damaged ({error})", REBUILD)
    return JournalError(str(path), f"cannot be used ({error}) while {doing}", "see `runaway doctor`")


def _why_refused(path: Path, primary: int) -> int:
    """The errno that SQLite kept to itself, from what the file system says now."""
    try:
        disk = os.statvfs(path.parent)
    except OSError as error:
        return error.errno or errno.EIO
    if disk.f_flag & os.ST_RDONLY:
        return errno.EROFS
    if path.is_dir():
        return errno.EISDIR
    existing = [p for p in (path, path.parent) if p.exists()]
    if not all(os.access(p, os.R_OK | os.W_OK) for p in existing):
        return errno.EACCES
    if disk.f_bavail == 0 or (disk.f_files and disk.f_favail == 0):
        return errno.ENOSPC
    return errno.EACCES if primary in _REFUSED else errno.EIO
