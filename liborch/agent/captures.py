"""Where executions' stdout and stderr go: files, so that nothing depends on anybody reading.

Each slot has one pair of files that is used again and again while outputs are small (no inode per execution): a small
output travels inside the verdict and the file is emptied. A large one, or one that somebody follows, makes the files the
execution's own (`<id>.<attempt>.out`, `.err`) until the client has them.
"""

import errno
import fcntl
import os
import struct
import termios
import time

#: Output up to so many bytes per stream travels in the verdict itself.
INLINE_BYTES = 8 << 10
#: Output that no client has asked for is kept so long, in seconds.
KEPT_S = 30 * 86400
#: A procedure's outcome (variables) larger than this is not read.
MAX_OUTCOME_BYTES = 4 << 20
#: With less room than this a disk counts as full: what one execution empties another one writes.
LITTLE_BYTES = 256 << 10

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


def open_terminal(columns, rows):
    """Make a pseudo-terminal; return (its master, the path of its slave)."""
    master, slave = os.openpty()
    try:
        path = os.ttyname(slave)
        resize_terminal(master, columns, rows)
    finally:
        os.close(slave)
    os.set_blocking(master, False)
    return master, path


def resize_terminal(master, columns, rows):
    """Tell the programs on a pseudo-terminal its new size."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def drain_terminal(master, target):
    """Move what is left in a pseudo-terminal into the capture file."""
    while move_terminal(master, target):
        pass


def move_terminal(master, target):
    """Move a piece of what was printed on a pseudo-terminal (not blocking) into the capture file.

    Returns None at its end, 0 when there is nothing just now, else how many bytes were moved.
    """
    try:
        data = os.read(master, 65536)
    except BlockingIOError:
        return 0
    except OSError:
        return None
    left = data
    try:
        while left:
            left = left[os.write(target, left) :]
    except OSError:
        pass  # The disk is full: as with any other file, what does not fit is lost, and the program goes on.
    return len(data) or None


class Captures:
    """The capture files of one node."""

    def __init__(self, folder):
        # As the kernel shows it in /proc/PID/fd.
        self.folder = os.path.realpath(folder)
        self.pairs = {}
        #: When the disk was last seen full, on the monotonic clock.
        self._full_at = float("-inf")

    def path(self, name):
        return os.path.join(self.folder, name)

    def _pair(self, name):
        out = os.open(self.path(name + ".out"), _FLAGS, 0o600)
        try:
            return out, os.open(self.path(name + ".err"), _FLAGS, 0o600)
        except OSError:
            os.close(out)
            raise

    def open(self, slot, key, own):
        """Return the Capture for an execution about to start. Raises OSError."""
        self.look()
        if own:
            return Capture(self, key, None, self._pair(key))
        pair = self.pairs.pop(slot, None)
        if pair is None:
            pair = self._pair("slot-%d" % slot)
            for fd in pair:
                if os.fstat(fd).st_size:
                    os.ftruncate(fd, 0)
        return Capture(self, key, slot, pair)

    def outcome_path(self, key):
        return self.path(key + ".outcome")

    def take_outcome(self, key):
        """Return what a procedure left (latin-1 text), and remove it."""
        path = self.outcome_path(key)
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_OUTCOME_BYTES)
            os.unlink(path)
            return data.decode("latin-1")
        except OSError:
            return None

    def remove(self, key):
        """Delete the files that were an execution's own."""
        for ending in (".out", ".err", ".outcome"):
            try:
                os.unlink(self.path(key + ending))
            except OSError:
                pass

    def rescue(self, slot, key, own):
        """What an execution had written when its keeper died."""
        names = [key] if own or os.path.exists(self.path(key + ".out")) else ["slot-%d" % slot]
        try:
            capture = Capture(self, key, None if names[0] == key else slot, self._pair(names[0]))
        except OSError:
            return {}
        fields = capture.collect()
        capture.done()
        return fields

    def sweep(self, running, slots=False):
        """Remove what nobody has asked for in a long time, and at the start the `slots`' files, which nobody may use again.

        An execution's own files stay, acknowledged or not, until their client has them and says so. `running`: keys of
        those that are still written.
        """
        if slots:
            for pair in self.pairs.values():
                for fd in pair:
                    os.close(fd)
            self.pairs.clear()
        long_ago = time.time() - KEPT_S
        for name in os.listdir(self.folder):
            base = name.rsplit(".", 1)[0]
            try:
                if base.startswith("slot-"):
                    if slots:
                        os.unlink(self.path(name))
                elif base not in running and os.stat(self.path(name)).st_mtime < long_ago:
                    os.unlink(self.path(name))
            except OSError:
                continue

    def look(self):
        """Note whether the disk is full. Asked at every start and end, and now and then: a disk can be full for a moment."""
        try:
            info = os.statvfs(self.folder)
        except OSError:
            return
        if info.f_bavail * info.f_frsize < LITTLE_BYTES or (info.f_files > 0 and info.f_favail == 0):
            self._full_at = time.monotonic()

    def trouble(self, fd, since):
        """Why what was written to a capture file (a descriptor) may be cut, for people; "" when the disk was well.

        since: when the execution was started, on the monotonic clock.
        """
        try:
            # A disk that gave up takes not even nothing.
            os.statvfs(self.folder)
            os.write(fd, b"")
        except OSError as error:
            return "output may be cut: %s: %s" % (self.folder, os.strerror(error.errno))
        self.look()
        if self._full_at >= since:
            return "the node's disk is full: %s" % self.folder
        return ""


class Capture:
    """The two files of one running execution."""

    def __init__(self, captures, key, slot, pair):
        self.captures = captures
        self.key = key
        self.slot = slot
        self.out, self.err = pair
        self.keep_files = False
        #: Nothing was written: the files need no emptying.
        self.is_clean = False
        #: Somebody may still have the files open: no other execution may write there.
        self.is_shared = False

    def paths(self):
        """Names of the two files, as bytes."""
        base = self.key if self.slot is None else "slot-%d" % self.slot
        return [os.fsencode(self.captures.path(base + ending)) for ending in (".out", ".err")]

    def give_up(self):
        """Make the files the execution's own, so that the slot gets new ones; return their paths. Raises OSError."""
        if self.slot is not None:
            for ending in (".out", ".err"):
                os.rename(
                    self.captures.path("slot-%d%s" % (self.slot, ending)),
                    self.captures.path(self.key + ending),
                )
            self.slot = None
        self.keep_files = True
        return self.captures.path(self.key + ".out"), self.captures.path(self.key + ".err")

    def collect(self):
        """Return the output part of the verdict: sizes, and the text itself where it is small."""
        fields = {}
        sizes = [os.fstat(self.out).st_size, os.fstat(self.err).st_size]
        self.is_clean = not any(sizes)
        large = max(sizes) > INLINE_BYTES
        if large:
            try:
                self.give_up()
                fields["files"] = True
            except OSError as error:
                # A disk that lets no name be changed: the beginning is better than nothing.
                large = False
                fields["why"] = "output cut to %d bytes: %s: %s" % (
                    INLINE_BYTES,
                    self.captures.folder,
                    os.strerror(error.errno),
                )
                sizes = [min(size, INLINE_BYTES) for size in sizes]
        for name, fd, size in (("out", self.out, sizes[0]), ("err", self.err, sizes[1])):
            if size:
                fields[name + "_size"] = size
                if not large:
                    fields[name] = os.pread(fd, size, 0).decode("latin-1")
        self.keep_files = large
        return fields

    def done(self):
        """The execution is over: the slot's files are free again, own ones are closed, and removed unless still needed."""
        if self.slot is not None and self.is_shared:
            for ending in (".out", ".err"):
                try:
                    os.unlink(self.captures.path("slot-%d%s" % (self.slot, ending)))
                except OSError:
                    pass
        elif self.slot is not None:
            try:
                if not self.is_clean:
                    for fd in (self.out, self.err):
                        os.ftruncate(fd, 0)
                if self.slot not in self.captures.pairs:
                    self.captures.pairs[self.slot] = (self.out, self.err)
                    return
            except OSError as error:
                if error.errno not in (errno.EIO, errno.ENOSPC, errno.EROFS):
                    raise
        elif not self.keep_files:
            self.captures.remove(self.key)
        os.close(self.out)
        os.close(self.err)
