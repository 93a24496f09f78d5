"""The doors of keeper and talker: a lock that only one process holds, and the socket behind which it answers."""

import fcntl
import os
import socket

try:
    from . import node, processes
except ImportError:
    import node
    import processes


def claim(folder, name):
    """Become the one `name` of this state folder: return the lock (a descriptor), or None when there is one. Raises OSError."""
    lock = os.open(os.path.join(folder, name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    node.sign(lock)
    processes.set_name("orch-" + name)
    return lock


def listen(folder, name):
    """Answer at `name`.sock; the caller holds the lock. Raises OSError."""
    # By relative name: the path of a socket is limited to some hundred bytes, a home folder's is not.
    os.chdir(folder)
    try:
        try:
            os.unlink(name + ".sock")
        except FileNotFoundError:
            pass
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Executions inherit this process's umask, so it is the person's own but for this moment.
        old = os.umask(0o177)
        try:
            listener.bind(name + ".sock")
        finally:
            os.umask(old)
        listener.listen(32)
        return listener
    finally:
        os.chdir("/")


def still_ours(folder, name, lock):
    """Whether the lock is still the one found under its name: else the folder was removed, and perhaps made anew."""
    return node.still_holds(lock, os.path.join(folder, name + ".lock"))


def leave(folder, name, lock):
    """Take the socket away, with the lock still held: nobody else can have put one there."""
    if still_ours(folder, name, lock):
        try:
            os.unlink(os.path.join(folder, name + ".sock"))
        except OSError:
            pass
