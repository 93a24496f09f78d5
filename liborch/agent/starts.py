"""From an order to a process: its environment, folder, program, cgroup, cores, terminal. Decides nothing about slots.

What is set on this process for a moment (working folder, CPU affinity) is what a child inherits, so only the keeper's one
thread may come here. Strings of a message become bytes as UTF-8 with surrogates for stray bytes, whatever the locale of
the login is.
"""

import errno
import os
import time

try:
    from . import captures, orders, processes
except ImportError:
    import captures
    import orders
    import processes

to_bytes = orders.to_bytes

#: The node failed, not the execution: it may be tried elsewhere.
_NODE_TROUBLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.EAGAIN,
    errno.ENOMEM,
)
_GPU_NAMES = (b"CUDA_VISIBLE_DEVICES", b"ROCR_VISIBLE_DEVICES", b"HIP_VISIBLE_DEVICES")
_MARK = to_bytes(processes.MARK)


class Run:
    """One running execution."""

    __slots__ = (
        "a",
        "adopted",
        "box",
        "capture",
        "cores",
        "deadline",
        "ended_by",
        "grace_s",
        "group_gone",
        "key",
        "killed_at",
        "main_gone",
        "mark",
        "means",
        "order",
        "over_memory",
        "owner",
        "paused_at",
        "peak",
        "pid",
        "result",
        "room",
        "slot",
        "started",
        "started_wall",
        "terminal",
        "timers",
        "x",
    )

    def __init__(self, order, key):
        self.order = order
        self.key = key
        #: What its processes carry in their environment. Two agents may have been handed the very same attempt.
        self.mark = ""
        self.x = order["x"]
        self.a = order["a"]
        self.owner = order["o"]
        self.pid = 0
        #: (reason, text) of the first thing that asked for its end.
        self.ended_by = None
        #: The process was waited for.
        self.main_gone = False
        #: Nothing of its process group was left: the number may be somebody else's from now on.
        self.group_gone = False
        #: Fields of the verdict, from the end of the process until it is written.
        self.result = None
        self.paused_at = None
        self.deadline = None
        self.killed_at = None
        self.grace_s = 10.0
        self.box = None
        self.cores = ()
        self.means = []
        self.over_memory = False
        self.capture = None
        self.peak = 0
        self.terminal = None
        #: (cores, memory bytes, GPUs, GPU ids) to give back; None inside a hold.
        self.room = None
        #: {pid: start time} of processes that hid from its session and mark, and were found out.
        self.adopted = {}
        #: Of its walltime and its memory.
        self.timers = []
        self.slot = -1
        self.started = time.monotonic()
        self.started_wall = time.time()


def mark(key, tag):
    """Return what marks the processes of an attempt that the agent `tag` started."""
    return "%s@%s" % (key, tag)


def ended_fields(code, number, reason, why=""):
    """The verdict part of an ended event."""
    return {"code": code, "signal": number, "reason": reason, "why": why}


class Starter:
    """See the module's text."""

    def __init__(self, name, tag, capture_files, enforcer):
        self._tag = tag
        self._name = to_bytes(name)
        self._captures = capture_files
        self._enforcer = enforcer
        self._programs = {}
        processes.ask_for_short_turns()
        self.set_environment({os.fsdecode(name): os.fsdecode(value) for name, value in os.environb.items()})

    def set_environment(self, environment):
        """Take the environment that executions start from: that of the login which came last."""
        self._environment = {}
        for name, value in environment.items():
            name, value = to_bytes(name), to_bytes(value)
            if name and b"=" not in name and b"\0" not in name + value:
                self._environment[name] = value
        self._home = self._environment.get(b"HOME") or b"/"
        self._programs.clear()

    def start(self, run, gpus, gpu_count):
        """Start the process of a run; sets its pid, and box, terminal and means where they apply.

        `gpus`: ids of those it has; `gpu_count` below 1 is the share it has of the only one.

        Raises OSError as exec would, ValueError and TypeError for what cannot be given to a program.
        """
        order = run.order
        run.mark = mark(run.key, self._tag)
        env = self._environment_of(run, gpus, gpu_count)
        folder = self._folder(order)
        argv = [to_bytes(word) for word in order.get("argv") or ()]
        if not argv:
            raise ValueError("the command is empty")
        if order.get("outcome"):
            env[b"ORCHESTRA_OUTCOME"] = os.fsencode(self._captures.outcome_path(run.key))
        os.chdir(folder)
        try:
            path = self._program(argv[0], env, folder)
            if order.get("mem"):
                run.box = self._enforcer.prepare(run.slot, order["mem"])
                run.means.append("memory:" + (run.box.means if run.box else "watching"))
                if run.box:
                    _check_program(path)
                    argv = run.box.wrap([path] + argv[1:])
                    path = argv[0]
            before = self._bind(run, env)
            try:
                self._spawn(run, path, argv, env)
            finally:
                if before:
                    os.sched_setaffinity(0, before)
        finally:
            # Not to be found in a folder that somebody wants to remove or unmount.
            os.chdir("/")

    def _folder(self, order):
        return to_bytes(order["cwd"]) if order.get("cwd") else self._home

    def _environment_of(self, run, gpus, gpu_count):
        order = run.order
        env = dict(self._environment)
        for name, value in (order.get("env") or {}).items():
            env[to_bytes(name)] = to_bytes(value)
        env[_MARK] = to_bytes(run.mark)
        env[b"RUNAWAY_UUID"] = to_bytes(run.x)
        handles = order.get("handles") or ()
        env[b"RUNAWAY_HANDLE_ID"] = (
            to_bytes(handles[run.slot]) if run.slot < len(handles) else b"%d" % run.slot
        )
        env[b"RUNAWAY_NODE_ID"] = to_bytes(order["node"]) if order.get("node") else self._name
        if gpus:
            for name in _GPU_NAMES:
                env[name] = to_bytes(",".join(gpus))
            # Nobody divides a GPU by itself: whoever is told its share has to keep to it.
            env.pop(b"RUNAWAY_GPU_SHARE", None)
            if gpu_count < 1:
                env[b"RUNAWAY_GPU_SHARE"] = b"%g" % gpu_count
            run.means.append("gpus:variables")
        return env

    @staticmethod
    def _bind(run, env):
        """Bind ourselves to the run's cores; returns what to go back to, or None."""
        if not run.cores:
            return None
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, run.cores)
        except OSError:
            return None  # cores that were taken from us since; the means then say nothing of cores
        run.means.append("cpus:affinity")
        env.setdefault(b"OMP_NUM_THREADS", b"%d" % len(run.cores))
        return before

    @staticmethod
    def _spawn(run, path, argv, env):
        stdin = None
        out, err = run.capture.out, run.capture.err
        if run.order.get("tty"):
            run.terminal, stdin = captures.open_terminal(*run.order["tty"])
            out = err = None
            env.setdefault(b"TERM", b"xterm")
        try:
            run.pid = processes.spawn(path, argv, env, stdin, out, err)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # What a shell does with a script that has no first line saying who reads it.
            run.pid = processes.spawn(b"/bin/sh", [b"/bin/sh", path] + argv[1:], env, stdin, out, err)

    def _program(self, name, env, folder):
        if b"/" in name:
            return name
        path = env.get(b"PATH", os.fsencode(os.defpath))
        found = self._programs.get((name, path))
        if found is None or not os.access(found, os.X_OK):
            found = processes.find_program(name, path, folder)
            if not found.startswith(folder + b"/") and len(self._programs) < 10000:
                self._programs[name, path] = found
        return found

    def why_not(self, run, error):
        """Return the verdict for an order whose process could not be started."""
        command = (run.order.get("argv") or ["?"])[0]
        if not isinstance(error, OSError):
            return ended_fields(126, None, "exit", "%s: cannot be started: %s" % (command, error))
        what = error.filename or command
        if isinstance(what, bytes):
            what = orders.to_text(what)
        text = os.strerror(error.errno or 0)
        if error.errno in _NODE_TROUBLE:
            return ended_fields(None, None, "node", "%s: %s" % (what, text))
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        if missing and "/" not in what:
            text = "command not found"
        elif missing:
            text = _missing_reader(self._folder(run.order), what) or text
        return ended_fields(127 if missing else 126, None, "exit", "%s: %s" % (what, text))


def _check_program(path):
    """Raise what exec would, where a shell stands in front and would say it in its own words."""
    if not os.path.exists(path):
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if os.path.isdir(path) or not os.access(path, os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)


def _missing_reader(folder, what):
    """What is said of a script that is there while the program of its first line is not."""
    try:
        with open(os.path.join(folder, to_bytes(what)), "rb") as file:
            line = file.readline(256)
    except OSError:
        return ""
    words = line[2:].split()
    if not line.startswith(b"#!") or not words:
        return ""
    return "its first line names %s, which is not there" % orders.to_text(words[0])
