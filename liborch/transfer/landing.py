"""Writes what comes from a node into a folder of this machine, trusting none of its names.

Its job: `Landing` puts files and links below one folder and nowhere else. Every part of a path is opened from its
parent's descriptor without following links, so no name, and no link made by an earlier entry, leads outside. A file is
written under a hidden name and renamed when it is whole. Which entries are wanted, and their hashes, are `fetch.py`'s.

The hidden folder `.orchestra-fetch-HASH` in the target holds what has not landed yet; it stays when a fetch is
interrupted, so that the next one continues, and goes at the end.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections import OrderedDict
from pathlib import Path

from liborch.errors import StorageError

#: Open folders kept at a time.
_OPEN_FOLDERS = 64
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: What file systems hold: a part of a path, and a path the system takes.
_MOST_PART_BYTES = 255
_MOST_PATH_BYTES = 4000
#: Modification times a file system surely takes: 1970 to 2262.
_MOST_TIME_NS = (1 << 63) - 1
#: Names that would change what this machine does or sends later; they are left out, which is no offence.
_STEERING = frozenset({b".gitignore", b".sendignore", b".fetchignore", b".orchestra"})
#: errnos that concern one entry; every other one means that the disk refuses, whatever the entry.
_OF_ENTRY = frozenset(
    {errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
    | {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTEMPTY}
)


class Refused(Exception):
    """One entry that is not let in, and why."""


def why_not(path: bytes) -> str | None:
    """Return why a path from a node is refused; None: it stays inside its folder."""
    if not path or len(path) > _MOST_PATH_BYTES:
        return "no name" if not path else "the name is too long"
    if b"\0" in path:
        return "the name holds a NUL byte"
    if path[:1] == b"/":
        return "an absolute path"
    for part in path.split(b"/"):
        if part in (b"", b".", b".."):
            return f"{os.fsdecode(part)!r} as part of the path"
        if len(part) > _MOST_PART_BYTES:
            return "a part of the path is too long"
        if part.lower() == b".git":
            return "git would run or trust what lies in .git"
    return None


def is_steering(path: bytes) -> bool:
    """Whether an entry would steer what is sent or fetched next time, or is ours."""
    return any(part in _STEERING or part.startswith(b".orchestra-fetch-") for part in path.split(b"/"))


def why_not_link(path: bytes, target: bytes) -> str | None:
    """Return why a link is refused; None: it leads to somewhere inside the folder.

    `..` is allowed only in front, where it climbs real folders; after a name, which may itself be a link, one could
    climb out of wherever that leads.
    """
    if not target or b"\0" in target:
        return "a link to nothing"
    if target[:1] == b"/":
        return "a link to an absolute path"
    depth = path.count(b"/")
    named = False
    for part in target.split(b"/"):
        if part == b"..":
            depth -= 1
            if named:
                return "a link that climbs after a name"
            if depth < 0:
                return "a link that leaves the folder"
        elif part not in (b"", b"."):
            named = True
            if part.lower() == b".git":
                return "a link into .git"
    return None


class Landing:
    """Puts entries below a folder. Use as a context manager; all of it blocks.

    Args:
        target: The folder, made when absent.
        source: Names what is fetched: an interrupted fetch of the same source is continued.

    Raises:
        StorageError: The target cannot be made or written.
    """

    def __init__(self, target: Path, source: str) -> None:
        self.target = target
        self._hidden = (
            f".orchestra-fetch-{hashlib.sha256(source.encode(errors='surrogateescape')).hexdigest()[:16]}"
        )
        #: Folders by path: (descriptor, whether we made it just now).
        self._folders: OrderedDict[bytes, int] = OrderedDict()
        #: Folders made by us: nothing can be in the way there.
        self._new: set[bytes] = set()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._count = 0
        self._root = self._temporary = -1
        try:
            target.mkdir(parents=True, exist_ok=True)
            self._root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.mkdir(self._hidden, 0o700, dir_fd=self._root)
                self.continued = False
            except FileExistsError:
                #: Whether an earlier fetch of the same source was interrupted.
                self.continued = True
            self._temporary = os.open(self._hidden, _FOLDER_FLAGS, dir_fd=self._root)
            self._device = os.fstat(self._root).st_dev
            if self.continued:
                for name in os.listdir(self._temporary):
                    if not name.startswith("part-"):
                        os.unlink(name, dir_fd=self._temporary)
        except OSError as error:
            self.close()
            raise self._failed(error, b"") from error

    def __enter__(self) -> Landing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor; what has not landed stays hidden."""
        for descriptor in (*self._folders.values(), self._temporary, self._root):
            if descriptor >= 0:
                os.close(descriptor)
        self._folders.clear()
        self._temporary = self._root = -1

    def finish(self) -> None:
        """Remove the hidden folder: everything landed."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._temporary):
                os.unlink(name, dir_fd=self._temporary)
            os.rmdir(self._hidden, dir_fd=self._root)

    def _failed(self, error: OSError, path: bytes) -> StorageError:
        where = os.path.join(self.target, os.fsdecode(path)) if path else str(self.target)
        return StorageError("this machine", where, error.errno or errno.EIO, "writing what was fetched")

    @contextlib.contextmanager
    def _guard(self, path: bytes):  # type: ignore[no-untyped-def]
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise Refused("a file or link stands where a folder is needed") from error
            if error.errno in _OF_ENTRY:
                raise Refused((error.strerror or "cannot be written").lower()) from error
            raise self._failed(error, path) from error

    def _folder(self, path: bytes) -> int:
        """Return a descriptor of a folder below the target, made where absent, reached through real folders only."""
        if not path:
            return self._root
        descriptor = self._folders.get(path)
        if descriptor is not None:
            self._folders.move_to_end(path)
            return descriptor
        at = path.rfind(b"/")
        above = self._folder(path[:at] if at > 0 else b"")
        name = path[at + 1 :]
        try:
            descriptor = os.open(name, _FOLDER_FLAGS, dir_fd=above)
        except FileNotFoundError:
            os.mkdir(name, dir_fd=above)
            self._new.add(path)
            descriptor = os.open(name, _FOLDER_FLAGS, dir_fd=above)
        self._folders[path] = descriptor
        if len(self._folders) > _OPEN_FOLDERS:
            _, oldest = self._folders.popitem(last=False)
            os.close(oldest)
        return descriptor

    def has(self, path: bytes, size: int, mtime_ns: int) -> bool:
        """Whether a file landed already, as told by its size and time. Only to be trusted when `continued`."""
        try:
            status = self._existing(path)
        except OSError:
            return False
        return status is not None and (status.st_mode, status.st_size, status.st_mtime_ns) == (
            stat.S_IFREG | stat.S_IMODE(status.st_mode),
            size,
            mtime_ns,
        )

    def _existing(self, path: bytes) -> os.stat_result | None:
        """Look at what has a name, through real folders only, making nothing."""
        at = path.rfind(b"/")
        descriptor = self._root
        opened: list[int] = []
        try:
            for part in path[:at].split(b"/") if at > 0 else ():
                descriptor = os.open(part, _FOLDER_FLAGS, dir_fd=descriptor)
                opened.append(descriptor)
            return os.stat(path[at + 1 :], dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        finally:
            for each in opened:
                os.close(each)

    def exists(self, path: bytes) -> bool:
        """Whether the target has anything of that name."""
        try:
            return self._existing(path) is not None
        except OSError:
            return True

    def put_folder(self, path: bytes) -> None:
        """Make an empty folder. Raises Refused or StorageError."""
        with self._guard(path):
            self._folder(path)

    def put_link(self, path: bytes, target: bytes) -> None:
        """Make a link, in place of a link or file of that name. Raises Refused or StorageError."""
        with self._guard(path):
            name = self._next_name()
            os.symlink(target, name, dir_fd=self._temporary)
            self._land(name, path, replaces_link=True)

    def put_file(self, path: bytes, data: bytes, executable: bool, mtime_ns: int) -> None:
        """Write a whole file. Raises Refused or StorageError."""
        with self._guard(path):
            name = self._next_name()
            descriptor = os.open(name, _NEW_FLAGS, 0o777 if executable else 0o666, dir_fd=self._temporary)
            try:
                _write_all(descriptor, data)
                _set_time(descriptor, mtime_ns)
            finally:
                os.close(descriptor)
            self._land(name, path)

    def _next_name(self) -> str:
        self._count += 1
        return f"new-{self._count}"

    def _land(self, name: str, path: bytes, replaces_link: bool = False) -> None:
        """Rename a finished file to its place; on refusal nothing of it stays."""
        try:
            at = path.rfind(b"/")
            inside = path[:at] if at > 0 else b""
            folder = self._folder(inside)
            last = path[at + 1 :]
            if inside not in self._new:
                self._check_way(folder, last, replaces_link)
            try:
                os.rename(name, last, src_dir_fd=self._temporary, dst_dir_fd=folder)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._cross(name, folder, last)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._temporary)
            raise

    def _check_way(self, folder: int, name: bytes, replaces_link: bool) -> None:
        try:
            there = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(there.st_mode):
            raise Refused("a folder of that name is in the way")
        if stat.S_ISLNK(there.st_mode) and not replaces_link:
            raise Refused("a link of that name is in the way")
        if not stat.S_ISREG(there.st_mode) and not stat.S_ISLNK(there.st_mode):
            raise Refused("something of that name, no file, is in the way")

    def _cross(self, name: str, folder: int, last: bytes) -> None:
        """Land in a folder of another file system: copy to a hidden name there, then rename."""
        status = os.stat(name, dir_fd=self._temporary, follow_symlinks=False)
        hidden = f".orchestra-fetch-{self._hidden[-8:]}-{self._count}"
        try:
            if stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(name, dir_fd=self._temporary), hidden, dir_fd=folder)
            else:
                source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._temporary)
                try:
                    copy = os.open(hidden, _NEW_FLAGS, stat.S_IMODE(status.st_mode), dir_fd=folder)
                    try:
                        while piece := os.read(source, 1 << 20):
                            _write_all(copy, piece)
                        _set_time(copy, status.st_mtime_ns)
                    finally:
                        os.close(copy)
                finally:
                    os.close(source)
            os.rename(hidden, last, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(hidden, dir_fd=folder)
            raise
        os.unlink(name, dir_fd=self._temporary)

    # -- large files, which arrive in pieces ------------------------------------------------------------------------

    def part(self, path: bytes) -> Part:
        """Return the beginning of a large file: empty, or what an interrupted fetch left. Raises StorageError."""
        name = f"part-{hashlib.sha256(path).hexdigest()[:32]}"
        try:
            descriptor = os.open(
                name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._temporary
            )
        except OSError as error:
            raise self._failed(error, path) from error
        return Part(self, path, name, descriptor)

    def put_part(self, part: Part, executable: bool, mtime_ns: int) -> None:
        """Put a large file that is whole into place. Raises Refused or StorageError."""
        with self._guard(part.path):
            os.fchmod(part.descriptor, (0o777 if executable else 0o666) & ~self._umask)
            _set_time(part.descriptor, mtime_ns)
            self._land(part.name, part.path)

    def drop_part(self, part: Part) -> None:
        """Delete the beginning of a large file."""
        part.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part.name, dir_fd=self._temporary)


class Part:
    """A large file on its way in: how many bytes are there, and their hash."""

    def __init__(self, landing: Landing, path: bytes, name: str, descriptor: int) -> None:
        self._landing = landing
        self.path = path
        self.name = name
        self.descriptor = descriptor
        self.hash = hashlib.sha256()
        self.size = 0
        while piece := os.read(descriptor, 1 << 20):
            self.hash.update(piece)
            self.size += len(piece)

    def restart(self) -> None:
        """Forget what is there."""
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        self.hash = hashlib.sha256()
        self.size = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes. Raises StorageError."""
        try:
            _write_all(self.descriptor, data)
        except OSError as error:
            raise self._landing._failed(error, self.path) from error
        self.hash.update(data)
        self.size += len(data)

    def close(self) -> None:
        """Stop here; what is there stays."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _write_all(descriptor: int, data: bytes) -> None:
    done = os.write(descriptor, data) if data else 0
    while done < len(data):
        done += os.write(descriptor, memoryview(data)[done:])


def _set_time(descriptor: int, mtime_ns: int) -> None:
    """Keep the time the node gave the file; one no file system takes is left as it is."""
    if 0 <= mtime_ns <= _MOST_TIME_NS:
        with contextlib.suppress(OSError, OverflowError):
            os.utime(descriptor, ns=(mtime_ns, mtime_ns))
