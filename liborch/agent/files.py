"""What the transfer modules of the agent do with files: locks, whole writes, removing, and errors that name the path.

Standard library only, Python 3.6 and newer. Paths are bytes.
"""

import errno
import fcntl
import hashlib
import os
import stat

#: Bytes read or written at a time.
PIECE = 1 << 20

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Trouble(Exception):
    """Something on the node refused: which path, which errno, while doing what."""

    def __init__(self, path, code, doing):
        Exception.__init__(self, "%r: %s while %s" % (path, os.strerror(code), doing))
        self.path = path
        self.code = code
        self.doing = doing


class Attempt:
    """Turns an OSError within its block into Trouble that names the path."""

    def __init__(self, path, doing):
        self.path = path
        self.doing = doing

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError):
            named = error.filename if isinstance(error.filename, bytes) else self.path
            raise Trouble(named, error.errno or errno.EIO, self.doing) from error
        return False


class Lock:
    """An advisory lock on a file that may be deleted and made again by its holders."""

    def __init__(self, path):
        self.path = path
        self.fd = -1

    def acquire(self, exclusive, wait=True):
        """Return whether the lock is held now. Without `wait` False means that somebody else has it."""
        how = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB)
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, how)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    os.close(fd)
                    return False
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    os.close(fd)
                    raise
                # A file system without locks: better unlocked than unusable.
            try:
                there = os.stat(self.path)
            except FileNotFoundError:
                there = None
            mine = os.fstat(fd)
            if there is not None and (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                self.fd = fd
                return True
            os.close(fd)  # its holder deleted it while we waited: what we locked guards nothing

    def release(self, delete=False):
        """Give the lock back; with `delete` (exclusive holders only) remove its file."""
        if self.fd >= 0:
            if delete:
                os.unlink(self.path)
            os.close(self.fd)
            self.fd = -1


def write_all(fd, data):
    """Write every byte."""
    done = os.write(fd, data)
    while done < len(data):
        done += os.write(fd, memoryview(data)[done:])


def replace_file(path, data, mode=0o600):
    """Write a whole file under a temporary name beside it, then rename it into place."""
    temporary = path + b"." + token() + b".tmp"
    fd = os.open(temporary, WRITE_FLAGS, mode)
    try:
        try:
            write_all(fd, data)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_file(path):
    """Return a file's bytes."""
    with open(path, "rb") as file:
        return file.read()


def token():
    """Return a name nobody else uses."""
    return (b"%d-" % os.getpid()) + os.urandom(6).hex().encode()


def make_directories(path, mode=0o777):
    """Make a directory and its ancestors; return those that were not there before, outermost first."""
    absent = []
    at = path
    while not os.path.isdir(at):
        absent.append(at)
        up = os.path.dirname(at)
        if up == at:
            break
        at = up
    made = []
    for each in reversed(absent):
        try:
            os.mkdir(each, mode)
            made.append(each)
        except FileExistsError:
            if not os.path.isdir(each):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), each)
    return made


def remove_tree(path):
    """Delete a file or a folder with everything in it, following no link, opening closed folders where allowed."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        os.unlink(path)
        return
    stack = [(path, False)]
    while stack:
        at, emptied = stack.pop()
        if emptied:
            os.rmdir(at)
            continue
        if mode & 0o700 != 0o700:
            os.chmod(at, 0o700)
        stack.append((at, True))
        with os.scandir(at) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.stat(follow_symlinks=False).st_mode & 0o700 != 0o700:
                        os.chmod(entry.path, 0o700)
                    stack.append((entry.path, False))
                else:
                    os.unlink(entry.path)
        mode = 0o700


def remove_empty(path):
    """Delete a folder if it is empty; return whether it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def copy(reading, writing):
    """Copy all of a file within the kernel."""
    at = 0
    while True:
        count = os.sendfile(writing, reading, at, 1 << 30)
        if not count:
            return
        at += count


def copy_hashed(reading, writing):
    """Copy all of a file and return its sha256."""
    running = hashlib.sha256()
    while True:
        piece = os.read(reading, PIECE)
        if not piece:
            return running.digest()
        running.update(piece)
        write_all(writing, piece)


def umask():
    """Return the process's umask, which can only be read by setting it."""
    value = os.umask(0o077)
    os.umask(value)
    return value
