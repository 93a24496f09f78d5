"""Start, recognise and signal processes. Knows Linux; decides nothing.

Every process of an execution carries ``ORCHESTRA_EXECUTION=<id>.<attempt>@<agent>`` in its environment: that, with its start
time, is how survivors are told from other people's processes before any signal is sent.
"""

import errno
import os
import signal
import struct
import subprocess

#: Name of the variable that marks the processes of an execution.
MARK = "ORCHESTRA_EXECUTION"

_DEFAULT_SIGNALS = [
    signal.SIGPIPE,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGCHLD,
    signal.SIGQUIT,
    signal.SIGXFSZ,
]
_HAS_SPAWN = hasattr(os, "posix_spawn")
_DEVNULL = os.devnull


def become_subreaper():
    """Have orphaned descendants reparented to this process, so that none escapes. False where that is not possible."""
    try:
        import ctypes

        return ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0) == 0
    except (ImportError, OSError, AttributeError):
        return False


#: The system call sched_setattr, by machine.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "ppc64le": 355, "s390x": 345}
#: Of the calling thread's turns on a processor, in nanoseconds.
_TURN_NS = 100_000


def ask_for_short_turns():
    """Have this thread woken at once while others run, for short turns. What it starts has turns as usual.

    Who starts a program waits until that is loaded, and is woken on its processor: behind it, unless one of the two has a
    claim to be first. Without, a program that is over at once is over before the next can be started, and other processors
    idle. Linux 6.12 and newer take such a wish from anybody; before, nothing changes. Returns whether it was taken.
    """
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        return False
    try:
        import ctypes

        nice = os.getpriority(os.PRIO_PROCESS, 0)
        # struct sched_attr: size, policy (normal), flags (reset on fork), nice, priority, runtime, deadline, period
        attributes = struct.pack("=IIQiIQQQ", 48, 0, 1, nice, 0, _TURN_NS, 0, 0)
        call = ctypes.CDLL(None, use_errno=True).syscall
        return call(ctypes.c_long(number), 0, ctypes.create_string_buffer(attributes), 0) == 0
    except (ImportError, OSError, AttributeError):
        return False


def set_name(name):
    """Show `name` in process lists."""
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(name[:15])
    except OSError:
        pass


def spawn(path, argv, env, stdin, stdout, stderr):
    """Start a program in a session of its own; return its pid. stdin None: /dev/null; a path: opened as controlling terminal.

    The working folder, CPU affinity and umask are those of the caller at this moment, which is why the keeper
    has one thread that starts things. Raises OSError as exec would.
    """
    global _HAS_SPAWN
    if _HAS_SPAWN:
        actions = [(os.POSIX_SPAWN_OPEN, 0, stdin or _DEVNULL, os.O_RDWR if stdin else os.O_RDONLY, 0)]
        if stdout is None:
            actions += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
        else:
            actions += [(os.POSIX_SPAWN_DUP2, stdout, 1), (os.POSIX_SPAWN_DUP2, stderr, 2)]
        try:
            return os.posix_spawn(
                path, argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_DEFAULT_SIGNALS
            )
        except NotImplementedError:
            _HAS_SPAWN = False  # a C library without setsid in posix_spawn
    return _spawn_slowly(path, argv, env, stdin, stdout, stderr)


def _spawn_slowly(path, argv, env, stdin, stdout, stderr):
    """The same for Python 3.6 and 3.7, which have no posix_spawn."""
    terminal = None
    if stdin:
        terminal = os.open(stdin, os.O_RDWR | os.O_NOCTTY)

    def prepare():
        # Runs in the child, after setsid. Its mask is empty and Popen restores some signals only.
        for number in _DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        if stdin:
            import fcntl
            import termios

            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    try:
        child = subprocess.Popen(
            argv,
            executable=path,
            env=env,
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=terminal if stdout is None else stdout,
            stderr=terminal if stderr is None else stderr,
            start_new_session=True,
            preexec_fn=prepare,
        )
    finally:
        if terminal is not None:
            os.close(terminal)
    pid = child.pid
    # The keeper waits for its children itself; Popen must not.
    child.returncode = 0
    return pid


def find_program(name, path, folder):
    """Return the file to execute for a command (bytes), as execvp would find it. Raises OSError(ENOENT or EACCES)."""
    denied = False
    for entry in path.split(b":"):
        candidate = os.path.join(folder, entry or b".", name)
        if os.path.isfile(candidate):
            if os.access(candidate, os.X_OK):
                return candidate
            denied = True
    code = errno.EACCES if denied else errno.ENOENT
    raise OSError(code, os.strerror(code), name)


def stat_fields(pid):
    """Return (state, parent, group, session, start time in ticks since boot) of a process, or None when it is gone."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return (fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def mark_of(pid):
    """Return `<id>.<attempt>@<agent>` of the execution a process belongs to, or "": it has no mark or is not ours to read."""
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            text = file.read()
    except OSError:
        return ""
    key = MARK.encode() + b"="
    at = 0 if text.startswith(key) else text.find(b"\0" + key) + 1
    if at == 0 and not text.startswith(key):
        return ""
    end = text.find(b"\0", at)
    return text[at + len(key) : end if end >= 0 else len(text)].decode("ascii", "replace")


def environment_of(pid):
    """Return the environment a process was started with, as text; empty when it is gone or not ours to read."""
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            text = file.read().decode("utf-8", "surrogateescape")
    except OSError:
        return {}
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if "=" in entry)


def own_pids():
    """Return the pids of this person's processes."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat("/proc/" + name).st_uid == os.getuid():
                found.append(int(name))
        except OSError:
            continue
    return found


def scan():
    """Return {pid: (state, parent, group, session, start time)} of every visible process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(int(name))
            if fields is not None:
                found[int(name)] = fields
    return found


def writes_to(pid, paths):
    """Whether a process has one of these files (bytes, no links in them) open. False when it is not ours to ask."""
    folder = "/proc/%d/fd" % pid
    try:
        for name in os.listdir(folder):
            try:
                if os.readlink(os.fsencode("%s/%s" % (folder, name))) in paths:
                    return True
            except OSError:
                continue
    except OSError:
        pass
    return False


def writers_below(folder):
    """Return {pid: start time} of processes that have a file below a folder (bytes, no links in it) open for writing."""
    prefix = folder.rstrip(b"/") + b"/"
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            for number in os.listdir("/proc/%s/fd" % name):
                if not os.readlink(os.fsencode("/proc/%s/fd/%s" % (name, number))).startswith(prefix):
                    continue
                with open("/proc/%s/fdinfo/%s" % (name, number)) as file:
                    flags = int(file.read().split("flags:")[1].split()[0], 8)
                fields = stat_fields(int(name))
                if flags & os.O_ACCMODE != os.O_RDONLY and fields is not None:
                    found[int(name)] = fields[4]
        except (OSError, IndexError, ValueError):
            continue
    return found


def members(marks, mains=(), known=None):
    """Return {pid: start time} of living processes that belong to executions.

    A process belongs when its environment carries one of `marks`, when it is in the group or session of one of
    the main pids (the caller vouches that those numbers are still theirs), when it is one of `known` ({pid: start
    time}), or when its parent belongs.
    """
    everything = scan()
    mains = set(mains)
    found = {}
    for pid, start in (known or {}).items():
        if pid in everything and everything[pid][4] == start and everything[pid][0] not in "ZX":
            found[pid] = start
    me = os.getpid()
    for pid, (state, _parent, group, session, start) in everything.items():
        if state in "ZX" or pid == me:
            continue
        if group in mains or session in mains or (marks and mark_of(pid) in marks):
            found[pid] = start
    grew = True
    while grew:
        grew = False
        for pid, (state, parent, _group, _session, start) in everything.items():
            if parent in found and pid not in found and state not in "ZX":
                found[pid] = start
                grew = True
    return found


def send(pid, start, number):
    """Signal one process if it still is the one that started at `start`. Returns whether a signal was sent."""
    opened = None
    try:
        if hasattr(os, "pidfd_open"):
            opened = os.pidfd_open(pid)
        fields = stat_fields(pid)
        if fields is None or fields[4] != start:
            return False
        if opened is not None and hasattr(signal, "pidfd_send_signal"):
            signal.pidfd_send_signal(opened, number)
        else:
            os.kill(pid, number)
        return True
    except OSError:
        return False
    finally:
        if opened is not None:
            os.close(opened)


def group_lives(pgid):
    """Whether a process group that was ours still has members (zombies that wait for us included)."""
    try:
        os.killpg(pgid, 0)
        return True
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
