"""The node's log: what was accepted, claimed and how it ended, kept until the client acknowledged it.

Append-only segment files `log.NNNNNN` of JSON lines, written by the keeper alone (it holds `keeper.lock`), read by
the talker too. Each segment is preallocated a little ahead, so that a verdict can still be written when the disk is
full; the unwritten rest is NUL bytes. Lines::

    ["B", boot id, wall clock]                       the keeper started
    ["O", owner, {common}, [[x, attempt, {own}]...]] orders accepted
    ["C", x, attempt, slot]                          claimed: written before the process is started
    [n, owner, kind, x, attempt, {...}]              an event the owner must see: n grows over the node's life
    ["A", owner, n]                                  the owner has everything up to n
    ["F", owner]                                     the owner is forgotten
    ["S", ...]                                       what a segment needs to stand alone, see `ledger.py`

A torn last line (power loss) is ignored. Writes reach the page cache at once, which survives any kill of ours; a thread
syncs them to the disk in groups, off the hot path.
"""

import errno
import json
import os
import threading

SEGMENT_BYTES = 8 << 20
RESERVE_BYTES = 64 << 10


def segments(folder):
    """Numbers of the segments present, oldest first."""
    return sorted(int(n[4:]) for n in os.listdir(folder) if n.startswith("log.") and n[4:].isdigit())


def segment_path(folder, number):
    return os.path.join(folder, "log.%06d" % number)


def read_lines(folder, number):
    """Yield the parsed lines of a segment, without a torn one at the end."""
    try:
        with open(segment_path(folder, number), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return
    data = data.rstrip(b"\0")
    for line in data.split(b"\n"):
        if line:
            try:
                yield json.loads(line.decode("ascii"))
            except ValueError:
                continue


def read_events(folder, owner, after):
    """Yield the events of an owner with a number above `after`, in order."""
    quoted = json.dumps(owner).encode("ascii")
    for number in segments(folder):
        try:
            with open(segment_path(folder, number), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            continue
        for line in data.rstrip(b"\0").split(b"\n"):
            if line[1:2].isdigit() and quoted in line:
                try:
                    event = json.loads(line.decode("ascii"))
                except ValueError:
                    continue
                if event[1] == owner and event[0] > after:
                    yield event


class Log:
    """The writing end. One at a time: the caller holds the keeper's lock."""

    def __init__(self, folder):
        self.folder = folder
        present = segments(folder)
        self.number = present[-1] if present else 1
        self._open()
        self._dirty = threading.Event()
        self._stop = False
        self._syncer = threading.Thread(target=self._sync_loop, daemon=True)
        self._syncer.start()
        #: The errno of the last sync that failed. It stays: what was not synced then, no later sync vouches for.
        self.sync_error = 0

    def _open(self):
        path = segment_path(self.folder, self.number)
        self._use(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _use(self, fd):
        self._fd = fd
        size = os.fstat(fd).st_size
        self._at = self._end_of_text(size)
        self._reserved = max(size, self._at)
        if self._at and os.pread(self._fd, 1, self._at - 1) != b"\n":
            # A torn line of an earlier life: end it, so that ours starts afresh.
            self._at += os.pwrite(self._fd, b"\n", self._at)
        self._reserve()

    def _end_of_text(self, size):
        end = size
        while end > 0:
            start = max(0, end - 65536)
            kept = os.pread(self._fd, end - start, start).rstrip(b"\0")
            if kept:
                return start + len(kept)
            end = start
        return 0

    def _reserve(self):
        if self._reserved - self._at < RESERVE_BYTES // 2:
            try:
                os.posix_fallocate(self._fd, self._reserved, RESERVE_BYTES)
                self._reserved += RESERVE_BYTES
            except OSError:
                pass  # Full, broken, or a file system that cannot: go on with what there is. A write would tell.

    def append(self, text):
        """Write whole lines (bytes, each with its newline). Raises OSError when not even the reserve takes them."""
        written = os.pwrite(self._fd, text, self._at)
        while written < len(text):
            written += os.pwrite(self._fd, text[written:], self._at + written)
        self._at += len(text)
        if self._at > self._reserved:
            self._reserved = self._at
        if self._reserved - self._at < RESERVE_BYTES // 2:
            self._reserve()
        if not self._dirty.is_set():
            self._dirty.set()

    @property
    def is_full(self):
        """Whether it is time for the next segment."""
        return self._at >= SEGMENT_BYTES

    def rotate(self):
        """Begin the next segment; returns its number. Raises OSError: nothing has changed then."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        following = os.open(segment_path(self.folder, self.number + 1), flags, 0o600)
        try:
            os.fdatasync(self._fd)
        except OSError:
            os.close(following)
            raise
        os.ftruncate(self._fd, self._at)
        old = self._fd
        self.number += 1
        self._use(following)
        os.close(old)
        return self.number

    def remove(self, number):
        """Delete a segment whose every event was acknowledged."""
        os.unlink(segment_path(self.folder, number))

    def _sync_loop(self):
        while not self._stop:
            self._dirty.wait()
            self._dirty.clear()
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                if error.errno != errno.EBADF:
                    self.sync_error = error.errno
            # Groups: whatever comes in this time is synced together.
            threading.Event().wait(0.25)

    def close(self):
        """Sync and let go."""
        self._stop = True
        try:
            os.ftruncate(self._fd, self._at)
            os.fdatasync(self._fd)
        finally:
            os.close(self._fd)
