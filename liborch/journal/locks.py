"""Locks that die with their process: who drives an orchestration, and who has the journal open.

Both are flock(2) on a descriptor, so a kill -9 releases them at once and nothing stale is ever left to judge. A forked child
is another process: it lets go of the descriptors it came by, or it would hold the lock of a parent that is gone.
Between machines that share a home folder only the file system's own locks help; where it has none, that is an error.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

from liborch.errors import Conflict, InvariantError, StorageError
from liborch.journal.storage import make_private_folder

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_TAKEN = (errno.EAGAIN, errno.EACCES)


class DriverLock:
    """The right to drive one orchestration, held through `<state folder>/locks/<orchestration>`.

    The file holds the process id and the machine of the holder, for messages only: the lock is what counts.
    """

    def __init__(self, state_folder: str | os.PathLike[str], orchestration: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", orchestration):
            raise InvariantError(
                f"{orchestration!r} is no id of an orchestration: it cannot name a lock's file"
            )
        self.orchestration = orchestration
        self.path = Path(state_folder) / "locks" / orchestration
        self._fd = -1
        _made.add(self)

    def __repr__(self) -> str:
        return f"<DriverLock {self.orchestration}: {'held' if self.is_held else 'not held'}>"

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd >= 0

    def acquire_nowait(self) -> None:
        """Take the lock or say who has it.

        Raises:
            Conflict: Another client drives the orchestration; names its process and machine.
            StorageError: The folder cannot be written, or the file system has no locks.
        """
        if self.is_held:
            return
        make_private_folder(self.path.parent)
        while True:
            try:
                fd = os.open(self.path, _FLAGS, 0o600)
            except OSError as error:
                raise self._storage_error(error) from error
            try:
                if self._take(fd):
                    self._fd = fd
                    return
            finally:
                if self._fd != fd:
                    os.close(fd)

    def _take(self, fd: int) -> bool:
        """Lock and sign an open file. False: its holder removed it in between, open it anew."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise self._storage_error(error) from error
            if not _is_at(fd, self.path):
                return False
            raise self._conflict(fd) from None
        # The last holder removes the file while it holds the lock: ours may be the one that is gone.
        if not _is_at(fd, self.path):
            return False
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {os.uname().nodename}\n".encode(), 0)
        except OSError as error:
            # A full disk loses the signature, not the lock.
            refused = self._storage_error(error)
            if not refused.is_full:
                raise refused from error
        return True

    def release(self) -> None:
        """Give the lock back and remove its file. Fine when not held."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            # Removed while still locked: whoever opened it meanwhile sees that it is gone, and opens anew.
            self.path.unlink(missing_ok=True)
        except OSError:
            pass  # A folder that turned read-only: the empty file does no harm.
        finally:
            os.close(fd)

    def _conflict(self, fd: int) -> Conflict:
        try:
            words = os.pread(fd, 512, 0).decode(errors="replace").split()
        except OSError:
            words = []
        # Between its lock and its signature a holder is nameless for an instant.
        holder = f"process {words[0]} on {words[1]}" if len(words) == 2 else "another process"
        return Conflict(
            f"{self.orchestration} is being driven by {holder}; `runaway attach {self.orchestration[:8]}` looks on, or end that process first"
        )

    def _storage_error(self, error: OSError) -> StorageError:
        return StorageError(
            "this machine", str(self.path), error.errno or errno.EIO, "locking an orchestration"
        )

    def __enter__(self) -> Self:
        self.acquire_nowait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class OpenLock:
    """Who has a journal open for writing: shared by all who do, exclusive to create, check, migrate or rebuild it.

    The file (`journal.db.lock`) is never removed. A file system without locks makes every request succeed without
    exclusiveness: `is_alone` is then never true.
    """

    #: How long others may hold it exclusively before we give up, in seconds; a check of a big journal takes a while.
    PATIENCE_S = 60.0

    def __init__(self, journal: Path) -> None:
        self.path = journal.with_name(journal.name + ".lock")
        self.is_alone = False
        try:
            self._fd = os.open(self.path, _FLAGS, 0o600)
        except OSError as error:
            raise StorageError(
                "this machine", str(self.path), error.errno or errno.EIO, "opening the journal"
            ) from error
        _made.add(self)

    def share(self) -> None:
        """Hold it together with others; waits for one who holds it alone. Raises Conflict after PATIENCE_S."""
        self.is_alone = False
        self._wait(fcntl.LOCK_SH)

    def exclude(self, *, wait: bool) -> bool:
        """Hold it alone. What was held before is given up first.

        Returns:
            Whether it is held alone; False only with `wait` false, and then nothing is held.
        """
        if wait:
            self.is_alone = self._wait(fcntl.LOCK_EX)
            return True
        self.is_alone = self._try(fcntl.LOCK_EX) is True
        return self.is_alone

    def _try(self, how: int) -> bool | None:
        """True: got it. False: somebody has it. None: no locks here."""
        try:
            fcntl.flock(self._fd, how | fcntl.LOCK_NB)
        except OSError as error:
            return False if error.errno in _TAKEN else None
        return True

    def _wait(self, how: int) -> bool:
        deadline = time.monotonic() + self.PATIENCE_S
        while (got := self._try(how)) is False:
            if time.monotonic() > deadline:
                raise Conflict(
                    f"{self.path}: another process has kept the journal to itself for {self.PATIENCE_S:.0f} s"
                )
            time.sleep(0.01)
        return bool(got)

    def close(self) -> None:
        """Give up what is held."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


#: Every lock of this process that may be held.
_made: weakref.WeakSet[DriverLock | OpenLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for lock in _made:
        if lock._fd >= 0:
            os.close(lock._fd)
            lock._fd = -1


os.register_at_fork(after_in_child=_let_go_in_child)
