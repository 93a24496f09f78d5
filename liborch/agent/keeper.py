"""The keeper: owns a node's slots and log; claims, starts, waits for, enforces and ends executions.

One thread does everything that matters, so that what is set on this process for a moment (working folder, CPU affinity) is
what a child inherits. It talks to one talker over `keeper.sock` and trusts only the log: killed and started again it
reads the log, reaps what its predecessor left running and says so (`lost`), and goes on with the queue.

An execution here: queued -> running (<-> paused) -> [ending: TERM, then KILL until nothing is left] -> ended.
"claimed" is on the log before a process exists; "ended" is on the log before anybody is told.
"""

import collections
import errno
import fcntl
import heapq
import json
import os
import resource
import select
import signal
import socket
import sys
import time

try:
    from . import captures, enforce, frames, log, node, processes, slots
except ImportError:  # packed: the modules lie side by side
    import captures
    import enforce
    import frames
    import log
    import node
    import processes
    import slots

#: Seconds without work, talker or unsaid things after which the keeper ends.
IDLE_S = 300.0
#: An absent owner's executions are ended and its events dropped after so many seconds.
OWNER_LEASE_S = 7 * 86400.0
#: An execution still running after this is announced as started; shorter ones say it with their end.
ANNOUNCE_S = 0.1
#: Processes that resist KILL for so long are reported as unkillable.
UNKILLABLE_S = 60.0
#: How often a slot that waits for survivors, and memory without a cgroup, are looked at.
WATCH_S = 0.25
#: Grace given to processes that outlive the main one, before KILL.
SURVIVOR_GRACE_S = 1.0


_encode = json.JSONEncoder(separators=(",", ":")).encode
#: Events are gathered for so long while more work is queued: one message for many, and no slot waits for it.
GATHER_S = 0.004
GATHER_MOST = 64


class Owner:
    """One client-side orchestration, as the node knows it."""

    __slots__ = ("acked", "ended", "last_event", "lease_s", "seen_at")

    def __init__(self):
        self.acked = 0
        #: (event number, key) of ends not yet acknowledged, in order.
        self.ended = collections.deque()
        self.last_event = 0
        self.seen_at = time.monotonic()
        self.lease_s = OWNER_LEASE_S


class Hold:
    """Room kept for a client that runs commands in it one after the other."""

    __slots__ = ("cores", "cpus", "gpus", "key", "memory_bytes", "owner", "slot")

    def __init__(self, owner, key, slot, cpus, memory_bytes, gpus, cores):
        self.owner = owner
        self.key = key
        self.slot = slot
        self.cpus = cpus
        self.memory_bytes = memory_bytes
        self.gpus = gpus
        self.cores = cores


class Run:
    """One running execution."""

    __slots__ = (
        "announced",
        "attempt",
        "box",
        "capture",
        "cores",
        "deadline",
        "ended_by",
        "followed",
        "grace_s",
        "key",
        "killed_at",
        "main_gone",
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
        "x",
    )

    def __init__(self, order, key):
        self.order = order
        self.key = key
        self.x = order["x"]
        self.attempt = order["a"]
        self.owner = order["o"]
        self.pid = 0
        self.ended_by = None
        self.main_gone = False
        self.result = None
        self.paused_at = None
        self.announced = False
        self.deadline = None
        self.killed_at = None
        self.box = None
        self.cores = ()
        self.means = []
        self.over_memory = False
        #: A talker reads the pseudo-terminal.
        self.followed = False
        self.capture = None
        self.peak = 0
        self.terminal = None
        self.room = None


def key_of(x, attempt):
    return "%s.%d" % (x, attempt)


def ended_fields(code, number, reason, why=""):
    """The verdict part of an ended event."""
    return {"code": code, "signal": number, "reason": reason, "why": why}


class Keeper:
    """See the module's text. `run()` returns when the keeper has nothing left to do."""

    def __init__(self, folder, idle_s=IDLE_S):
        self.folder = folder
        self.idle_s = idle_s
        self.boot = node.boot_id()
        self.log = None
        self.owners = {}
        self.queues = slots.Queues()
        self.runs = {}
        self.by_pid = {}
        self.holds = {}
        self.claimed = set()
        self.segments = {}
        self.segment_of = {}
        self.name = node.name()
        #: (owner, number, text, [x, attempt] of one that ended) of events not yet sent to the talker.
        self.unsent = []
        self.unsent_since = 0.0
        self.timers = []
        self.timer_count = 0
        self.fresh = []
        self.straying = {}
        self.programs = {}
        self.talker = None
        self.talker_in = None
        self.talker_out = bytearray()
        self.retiring = False
        self.environment = dict(os.environ)
        self.busy_since = time.monotonic()
        gpus = node.gpus()
        self.room = slots.Room(len(node.cores()), node.memory_bytes(), gpus)
        self.cores = enforce.Cores(node.numa_nodes())
        self.enforcer = enforce.Enforcer("%d-%s" % (os.getuid(), node.state_id(folder)[:12]))
        self.captures = captures.Captures(os.path.join(folder, "captures"))
        self.home = self.environment.get("HOME") or "/"
        self.event_number = 0
        self.own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 1024
        self.subreaper = processes.become_subreaper()
        try:
            self.children_fd = os.open(
                "/proc/self/task/%d/children" % os.getpid(), os.O_RDONLY | os.O_CLOEXEC
            )
        except OSError:
            self.children_fd = None

    # ---------------------------------------------------------------- the log

    def recover(self):
        """Rebuild from the log; end what an earlier keeper left running."""
        orders = {}
        open_claims = {}
        acked = {}
        last_boot = None
        for number in log.segments(self.folder):
            known = self.segments.setdefault(number, {"last": {}, "open": 0})
            for line in log.read_lines(self.folder, number):
                try:
                    kind = line[0]
                    if isinstance(kind, int):
                        n, owner, what, x, attempt, _detail = line
                        self.event_number = max(self.event_number, n)
                        known["last"][owner] = n
                        self._owner(owner).last_event = n
                        if what in ("ended", "recalled", "refused", "unheld"):
                            key = key_of(x, attempt)
                            if what == "ended":
                                self.claimed.add(key)
                                self._owner(owner).ended.append((n, key))
                            open_claims.pop(key, None)
                            if orders.pop(key, None) is not None:
                                self.segments[self.segment_of.pop(key)]["open"] -= 1
                    elif kind == "O":
                        for order in self._unfold(line[1], line[2], line[3]):
                            key = key_of(order["x"], order["a"])
                            if key not in self.claimed and key not in orders:
                                orders[key] = order
                                self.segment_of[key] = number
                                known["open"] += 1
                    elif kind == "C":
                        key = key_of(line[1], line[2])
                        self.claimed.add(key)
                        open_claims[key] = (line[3], last_boot)
                    elif kind == "A":
                        acked[line[1]] = max(acked.get(line[1], 0), line[2])
                    elif kind == "F":
                        acked[line[1]] = self.event_number
                    elif kind == "B":
                        last_boot = line[1]
                except (ValueError, IndexError, KeyError, TypeError):
                    continue
        for owner, n in acked.items():
            self._owner(owner).acked = n
            self._forget_claims(self._owner(owner))
        self.log = log.Log(self.folder)
        self.segments.setdefault(self.log.number, {"last": {}, "open": 0})
        self._write(["B", self.boot, time.time()])
        self._reap_strangers(open_claims, orders)
        for key, order in orders.items():
            if key not in open_claims:
                # Holds are asked for again here, too: their room is free after a restart.
                self.queues.add(order["o"], key, order)
        self._drop_segments()

    def _reap_strangers(self, open_claims, orders):
        """Kill what a dead keeper left running and write its verdicts."""
        here = {key for key, (_slot, boot) in open_claims.items() if boot == self.boot}
        for wait_s in (0.0, 0.05, 0.2, 0.5, 1.0, 2.0):
            found = processes.members(here) if here else {}
            if not found:
                break
            for pid, start in found.items():
                processes.send(pid, start, signal.SIGKILL)
            time.sleep(wait_s)
        for key, (slot, boot) in open_claims.items():
            order = orders.get(key)
            if order is None:
                continue
            rebooted = boot != self.boot
            why = (
                "the node was restarted while it ran"
                if rebooted
                else "its keeper process was killed while it ran"
            )
            fields = ended_fields(None, None, "lost", "%s: %s" % ("reboot" if rebooted else "keeper", why))
            fields.update(self.captures.rescue(slot, key, bool(order.get("live") or order.get("tty"))))
            fields["slot"] = slot
            self._event(order["o"], "ended", order["x"], order["a"], fields)
            self._close_order(key)
        self.captures.sweep(self.claimed)

    def _write(self, line):
        """Put one line on the log; returns it as it stands there."""
        text = _encode(line).encode("ascii")
        self.log.append(text + b"\n")
        if self.log.is_full:
            self.segments[self.log.rotate()] = {"last": {}, "open": 0}
        return text

    def _event(self, owner, kind, x, attempt, detail):
        """Put an event on the log, then on the way to the talker."""
        self.event_number += 1
        line = [self.event_number, owner, kind, x, attempt, detail]
        self.segments[self.log.number]["last"][owner] = self.event_number
        known = self._owner(owner)
        known.last_event = self.event_number
        if kind == "ended":
            known.ended.append((self.event_number, key_of(x, attempt)))
        text = self._write(line)
        if not self.unsent:
            self.unsent_since = time.monotonic()
        self.unsent.append((owner, self.event_number, text, [x, attempt] if kind == "ended" else None))

    def _close_order(self, key):
        number = self.segment_of.pop(key, None)
        if number is not None and number in self.segments:
            self.segments[number]["open"] -= 1

    def _drop_segments(self):
        for number in sorted(self.segments):
            if number == self.log.number:
                break
            segment = self.segments[number]
            if segment["open"] > 0 or any(self._owner(o).acked < n for o, n in segment["last"].items()):
                break
            self.log.remove(number)
            del self.segments[number]

    def _forget_claims(self, owner):
        """What its owner has on record, it will not order again."""
        while owner.ended and owner.ended[0][0] <= owner.acked:
            self.claimed.discard(owner.ended.popleft()[1])

    def _owner(self, name):
        found = self.owners.get(name)
        if found is None:
            found = self.owners[name] = Owner()
        return found

    # ---------------------------------------------------------------- orders

    @staticmethod
    def _unfold(owner, common, items):
        for x, attempt, own in items:
            order = dict(common)
            for name, value in own.items():
                if name == "env" and "env" in common:
                    value = dict(common["env"], **value)
                order[name] = value
            order["x"] = x
            order["a"] = attempt
            order["o"] = owner
            yield order

    def on_order(self, message):
        """Accept orders: on the log first, then in the queue. Known ones are dropped: handing over is idempotent."""
        owner = message["owner"]
        accepted = []
        for item in message["orders"]:
            key = key_of(item[0], item[1])
            if key not in self.claimed and key not in self.queues and key not in self.segment_of:
                accepted.append(item)
        if not accepted:
            return
        common = message.get("common") or {}
        self._write(["O", owner, common, accepted])
        self._owner(owner)
        for order in self._unfold(owner, common, accepted):
            key = key_of(order["x"], order["a"])
            self.segment_of[key] = self.log.number
            self.segments[self.log.number]["open"] += 1
            room = self._needs(order)
            lease = order.get("lease")
            if lease is not None and lease not in self.holds:
                self._refuse(order, "the slot %s is not held any more" % lease)
            elif lease is not None:
                self._start(order, key)
            elif not self.room.could_ever(*room):
                self._refuse(
                    order,
                    "asks for %d cores, %d bytes of memory, %d GPUs; this node has %d, %d, %d"
                    % (room + (self.room.cpus, self.room.memory_bytes, len(self.room.gpus))),
                )
            else:
                self.queues.add(owner, key, order)

    def _refuse(self, order, why):
        self._close_order(key_of(order["x"], order["a"]))
        self._event(order["o"], "refused", order["x"], order["a"], {"why": why})

    @staticmethod
    def _needs(order):
        return (order.get("cpus") or 1, order.get("mem") or 0, order.get("gpus") or 0)

    def fill(self):
        """Start what fits."""
        room = self.room
        while room.used_cpus < room.cpus and self.queues:
            order = self.queues.pop_fitting(lambda o: room.fits(*self._needs(o)))
            if order is None:
                return
            key = key_of(order["x"], order["a"])
            if order.get("hold"):
                self._grant_hold(order, key)
            else:
                self._start(order, key)

    def _grant_hold(self, order, key):
        needs = self._needs(order)
        slot, gpus = self.room.take(*needs)
        cores = self.cores.take(order["cpus"], order.get("numa")) if order.get("cpus") else ()
        self.holds[order["x"]] = Hold(order["o"], key, slot, needs[0], needs[1], gpus, cores)
        self._event(
            order["o"], "held", order["x"], order["a"], {"slot": slot, "cores": list(cores), "gpus": gpus}
        )

    def on_unhold(self, message):
        """Give the room of a hold back; what runs in it is ended."""
        lease = message["lease"]
        hold = self.holds.pop(lease, None)
        if hold is None:
            for key in self.queues.keys_of(message["owner"]):
                order = self.queues.get(key)
                if order["x"] == lease:
                    self.queues.remove(key)
                    self._close_order(key)
            self._event(message["owner"], "unheld", lease, 1, {})
            return
        for run in list(self.runs.values()):
            if run.order.get("lease") == lease:
                self.end(run, "cancelled", "its slot was given back")
        self._release_hold_when_empty(lease, hold)

    def _release_hold_when_empty(self, lease, hold):
        if any(run.order.get("lease") == lease for run in self.runs.values()):
            self.at(WATCH_S, lambda: self._release_hold_when_empty(lease, hold))
            return
        self.cores.give_back(hold.cores)
        self.room.give_back(hold.slot, hold.cpus, hold.memory_bytes, hold.gpus)
        self._close_order(hold.key)
        self._event(hold.owner, "unheld", lease, 1, {})

    def _start(self, order, key):
        """Claim, then start. A failure to start is an end like any other."""
        run = Run(order, key)
        lease = order.get("lease")
        hold = self.holds.get(lease) if lease is not None else None
        needs = self._needs(order)
        if hold is not None:
            run.slot, gpus, run.cores = hold.slot, hold.gpus, hold.cores
        else:
            run.slot, gpus = self.room.take(*needs)
            run.room = needs + (gpus,)
            if order.get("cpus"):
                run.cores = self.cores.take(order["cpus"], order.get("numa"))
        run.grace_s = float(order.get("grace", 10.0))
        self.claimed.add(key)
        self._write(["C", run.x, run.attempt, run.slot])
        run.started = time.monotonic()
        run.started_wall = time.time()
        self.runs[key] = run
        try:
            own_files = bool(order.get("live")) or hold is not None
            run.capture = self.captures.open(run.slot, key, own_files)
            self._spawn(run, gpus)
        except OSError as error:
            self._could_not_start(run, error)
            return
        self.by_pid[run.pid] = run
        self.fresh.append(run)
        wall = order.get("wall")
        if wall:
            run.deadline = run.started + wall
            self.at(wall, lambda: self._out_of_time(run))
        if order.get("mem") and run.box is None:
            self.at(WATCH_S, lambda: self._watch_memory(run))

    def _spawn(self, run, gpus):
        order = run.order
        env = dict(self.environment)
        env.update(order.get("env") or {})
        env[processes.MARK] = run.key
        env["RUNAWAY_UUID"] = run.x
        env["RUNAWAY_HANDLE_ID"] = str(run.slot)
        env["RUNAWAY_NODE_ID"] = order.get("node") or self.name
        if gpus:
            for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
                env[name] = ",".join(gpus)
            run.means.append("gpus:variables")
        folder = order.get("cwd") or self.home
        argv = list(order.get("argv") or ())
        if order.get("outcome"):
            env["ORCHESTRA_OUTCOME"] = self.captures.outcome_path(run.key)
        os.chdir(folder)
        try:
            path = self._program(argv[0], env, folder)
            if order.get("mem"):
                run.box = self.enforcer.prepare(run.slot, order["mem"])
                run.means.append("memory:" + (run.box.means if run.box else "watching"))
                if run.box:
                    argv = run.box.wrap([path] + argv[1:])
                    path = argv[0]
            if run.cores:
                before = os.sched_getaffinity(0)
                os.sched_setaffinity(0, run.cores)
                run.means.append("cpus:affinity")
                env.setdefault("OMP_NUM_THREADS", str(len(run.cores)))
            try:
                stdin = None
                out, err = run.capture.out, run.capture.err
                if order.get("tty"):
                    run.terminal, stdin = captures.open_terminal(*order["tty"])
                    out = err = None
                    env.setdefault("TERM", "xterm")
                try:
                    run.pid = processes.spawn(path, argv, env, stdin, out, err)
                except OSError as error:
                    if error.errno != errno.ENOEXEC:
                        raise
                    # What a shell does with a script that has no first line saying who reads it.
                    run.pid = processes.spawn("/bin/sh", ["/bin/sh", path] + argv[1:], env, stdin, out, err)
            finally:
                if run.cores:
                    os.sched_setaffinity(0, before)
        finally:
            # Not to be found in a folder that somebody wants to remove or unmount.
            os.chdir("/")

    def _program(self, name, env, folder):
        if "/" in name:
            return name
        path = env.get("PATH", os.defpath)
        found = self.programs.get((name, path))
        if found is None or not os.access(found, os.X_OK):
            found = processes.find_program(name, path, folder)
            if os.path.isabs(found):
                self.programs[name, path] = found
        return found

    def _could_not_start(self, run, error):
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        what = error.filename or (run.order.get("argv") or ["?"])[0]
        if isinstance(what, bytes):
            what = os.fsdecode(what)
        if error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EIO,
            errno.EMFILE,
            errno.EAGAIN,
            errno.ENOMEM,
        ):
            fields = ended_fields(None, None, "node", "%s: %s" % (what, os.strerror(error.errno)))
        else:
            text = "command not found" if missing and "/" not in what else os.strerror(error.errno)
            fields = ended_fields(127 if missing else 126, None, "exit", "%s: %s" % (what, text))
            if run.capture is not None:
                try:
                    os.write(run.capture.err, os.fsencode("%s: %s\n" % (what, text)))
                except OSError:
                    pass
        run.main_gone = True
        run.result = (fields, None)
        self._say_end(run)
        self._free(run)

    # ---------------------------------------------------------------- ends

    def on_children(self):
        """Collect every child that ended."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            run = self.by_pid.pop(pid, None)
            if run is not None:
                self._main_ended(run, status, usage)
            else:
                self.straying.pop(pid, None)

    def _main_ended(self, run, status, usage):
        run.main_gone = True
        # A child begins as a copy of this process, and the kernel counts that in: less than ours says nothing.
        peak = usage.ru_maxrss * 1024 if usage.ru_maxrss > self.own_peak else 0
        if os.WIFSIGNALED(status):
            fields = ended_fields(None, os.WTERMSIG(status), "signal")
        else:
            fields = ended_fields(os.WEXITSTATUS(status), None, "exit")
        if run.box is not None:
            peak = max(run.box.peak_bytes(), run.peak)
            if run.box.out_of_memory():
                fields["reason"] = "oom"
                fields["why"] = "over its %d bytes of memory (cgroup)" % run.order["mem"]
        elif run.over_memory:
            fields["reason"] = "oom"
            fields["why"] = "over its %d bytes of memory (seen: %d)" % (run.order["mem"], run.peak)
        fields["rss"] = max(peak, run.peak)
        fields["cpu"] = round(usage.ru_utime + usage.ru_stime, 6)
        run.result = (fields, status)
        left = self._has_orphans() and (processes.group_lives(run.pid) or self._has_strays(run))
        if run.ended_by is not None:
            reason, why = run.ended_by
            if reason in ("cancelled", "walltime"):
                fields["reason"] = reason
                fields["why"] = why
            if left:
                return  # `_kill_rest` says the end once nothing is left
        elif left and not run.order.get("keep"):
            self._say_end(run)
            run.ended_by = ("survivors", "")
            self._signal_all(run, signal.SIGTERM)
            self.at(SURVIVOR_GRACE_S, lambda: self._kill_rest(run))
            self.at(0.02, lambda: self._look_for_rest(run, 0.02))
            return
        elif left:
            run.capture.give_up()
        self._say_end(run)
        self._free(run)

    def _look_for_rest(self, run, waited):
        """Free a slot as soon as the survivors are gone."""
        if run.key not in self.runs:
            return
        if not self._rest(run):
            self._finish(run)
        elif waited < SURVIVOR_GRACE_S:
            self.at(waited, lambda: self._look_for_rest(run, waited * 2))

    def _has_orphans(self):
        """Whether we have more children than we started: what outlives its parent becomes ours. The usual answer, no, is cheap."""
        if self.children_fd is None or not self.subreaper:
            return True
        try:
            return len(os.pread(self.children_fd, 65536, 0).split()) > len(self.by_pid)
        except OSError:
            return True

    def _has_strays(self, run):
        """Whether descendants were reparented to us that left the execution's session."""
        if self.children_fd is None or not self.subreaper:
            return False
        try:
            words = os.pread(self.children_fd, 65536, 0).split()
        except OSError:
            return False
        if len(words) <= len(self.by_pid):
            return False
        mine = False
        for word in words:
            pid = int(word)
            if pid in self.by_pid:
                continue
            fields = processes.stat_fields(pid)
            if fields is None or fields[0] in "ZX":
                continue
            mark = processes.mark_of(pid)
            if mark == run.key:
                mine = True
            elif mark not in self.runs and pid not in self.straying:
                # No mark: it is a descendant of something that ran until now. It may stay while that runs.
                self.straying[pid] = (fields[4], set(self.runs) - {run.key})
                if not self.straying[pid][1]:
                    processes.send(pid, fields[4], signal.SIGKILL)
        for pid, (start, suspects) in list(self.straying.items()):
            suspects.discard(run.key)
            if not suspects & set(self.runs):
                processes.send(pid, start, signal.SIGKILL)
        return mine

    def _rest(self, run):
        mains = () if run.main_gone and not processes.group_lives(run.pid) else (run.pid,)
        found = processes.members({run.key}, mains)
        if run.box is not None:
            for pid in run.box.pids():
                fields = processes.stat_fields(pid)
                if fields is not None and fields[0] not in "ZX":
                    found[pid] = fields[4]
        return found

    def _signal_all(self, run, number):
        rest = self._rest(run)
        for pid, start in rest.items():
            processes.send(pid, start, number)
        return rest

    def end(self, run, reason, why):
        """TERM now, KILL after the grace. The first reason stays."""
        if run.ended_by is not None and run.ended_by[0] != "survivors":
            return
        run.ended_by = (reason, why)
        self._signal_all(run, signal.SIGTERM)
        self._signal_all(run, signal.SIGCONT)
        run.paused_at = None
        self.at(run.grace_s, lambda: self._kill_rest(run))
        if run.main_gone:
            self.at(0.02, lambda: self._look_for_rest(run, 0.02))

    def _kill_rest(self, run):
        """KILL until nothing is left, then finish."""
        if run.key not in self.runs:
            return
        now = time.monotonic()
        if run.killed_at is None:
            run.killed_at = now
        rest = self._signal_all(run, signal.SIGKILL)
        if run.main_gone and not rest:
            self._finish(run)
            return
        if now - run.killed_at > UNKILLABLE_S:
            names = ", ".join(str(pid) for pid in sorted(rest))
            if run.result is None:
                run.result = (ended_fields(None, None, run.ended_by[0]), None)
            run.result[0]["why"] = "unkillable for %d s: processes %s" % (UNKILLABLE_S, names)
            self.by_pid.pop(run.pid, None)
            self._finish(run)
            return
        self.at(0.05 if now - run.killed_at < 1 else WATCH_S, lambda: self._kill_rest(run))

    def _finish(self, run):
        if run.result is not None:
            self._say_end(run)
        self._free(run)

    def _say_end(self, run):
        """Write the verdict, once."""
        if run.result is None:
            return
        fields, _status = run.result
        run.result = None
        now = time.monotonic()
        fields["start"] = round(run.started_wall, 6)
        fields["dur"] = round(now - run.started, 6)
        fields["slot"] = run.slot
        if run.means:
            fields["means"] = run.means
        if run.terminal is not None and not run.followed:
            captures.drain_terminal(run.terminal, run.capture.out if run.capture else None)
        outcome = self.captures.take_outcome(run.key) if run.order.get("outcome") else None
        if outcome is not None:
            fields["outcome"] = outcome
        if run.capture is not None:
            fields.update(run.capture.collect())
            if fields.get("code") and self.captures.disk_is_full():
                fields["why"] = (fields["why"] + "; " if fields["why"] else "") + "the node's disk is full"
        self._event(run.owner, "ended", run.x, run.attempt, fields)
        self._close_order(run.key)

    def _free(self, run):
        if self.runs.pop(run.key, None) is None:
            return
        if run.terminal is not None:
            os.close(run.terminal)
        if run.capture is not None:
            run.capture.done()
        if run.room is not None:
            if run.cores:
                self.cores.give_back(run.cores)
            cpus, memory, _count, gpus = run.room
            self.room.give_back(run.slot, cpus, memory, gpus)

    # ---------------------------------------------------------------- time

    def at(self, delay_s, action):
        """Call `action` after so many seconds."""
        self.timer_count += 1
        heapq.heappush(self.timers, (time.monotonic() + delay_s, self.timer_count, action))

    def _out_of_time(self, run):
        if run.key not in self.runs or run.main_gone:
            return
        left = run.deadline - time.monotonic()
        if run.paused_at is not None:
            left += 1.0
        if left > 0:
            self.at(left, lambda: self._out_of_time(run))
            return
        self.end(run, "walltime", "over its walltime of %g s" % run.order["wall"])

    def _watch_memory(self, run):
        if run.key not in self.runs or run.main_gone:
            return
        seen = enforce.resident_bytes(self._rest(run))
        run.peak = max(run.peak, seen)
        if seen > run.order["mem"]:
            run.over_memory = True
            self._signal_all(run, signal.SIGKILL)
        self.at(WATCH_S, lambda: self._watch_memory(run))

    def announce(self, now):
        """Say which executions have started and still run."""
        kept = []
        for run in self.fresh:
            if run.key in self.runs and not run.main_gone:
                if now - run.started >= ANNOUNCE_S:
                    run.announced = True
                    detail = {
                        "start": round(run.started_wall, 6),
                        "slot": run.slot,
                        "pid": run.pid,
                        "means": run.means,
                    }
                    self._event(run.owner, "started", run.x, run.attempt, detail)
                else:
                    kept.append(run)
        self.fresh = kept

    def _expire_owners(self):
        now = time.monotonic()
        for name, owner in list(self.owners.items()):
            if self.talker is not None and name in self.present:
                owner.seen_at = now
            elif now - owner.seen_at > owner.lease_s:
                self._cancel_owner(name, "its owner stayed away for %d s" % owner.lease_s)
                if not any(run.owner == name for run in self.runs.values()):
                    self._write(["F", name])
                    del self.owners[name]
        self.at(30.0, self._expire_owners)

    def _cancel_owner(self, name, why):
        for key in self.queues.keys_of(name):
            order = self.queues.remove(key)
            self._close_order(key)
            self._event(name, "ended", order["x"], order["a"], ended_fields(None, None, "cancelled", why))
        for run in list(self.runs.values()):
            if run.owner == name:
                self.end(run, "cancelled", why)
        for lease, hold in list(self.holds.items()):
            if hold.owner == name:
                del self.holds[lease]
                self._release_hold_when_empty(lease, hold)

    # ---------------------------------------------------------------- messages from the talker

    present = frozenset()

    def on_message(self, message):
        """Carry out one message of the talker."""
        getattr(self, "on_" + message["t"])(message)

    def on_attach(self, message):
        """A client is there: take its acknowledgement, tell what is held for it."""
        owner = self._owner(message["owner"])
        owner.seen_at = time.monotonic()
        if message.get("lease_s"):
            owner.lease_s = float(message["lease_s"])
        capacity = message.get("capacity") or {}
        self.room.resize(capacity.get("cpus"), capacity.get("memory_bytes"))
        if message.get("env"):
            self.environment = dict(message["env"])
            self.home = self.environment.get("HOME") or "/"
        self.on_ack(message)
        name = message["owner"]
        holding = [
            [order["x"], order["a"], "hold" if order.get("hold") else "queued"]
            for order in (self.queues.get(key) for key in self.queues.keys_of(name))
        ]
        holding += [
            [run.x, run.attempt, "paused" if run.paused_at is not None else "running"]
            for run in self.runs.values()
            if run.owner == name
        ]
        holding += [[lease, 1, "held"] for lease, hold in self.holds.items() if hold.owner == name]
        self._flush()
        self.reply(
            {
                "t": "attached",
                "req": message["req"],
                "last": self.event_number,
                "holding": holding,
                "room": self.describe(),
            }
        )

    def on_present(self, message):
        """Which owners have a client just now."""
        self.present = frozenset(message["owners"])
        for name in self.present:
            self._owner(name).seen_at = time.monotonic()

    def on_ack(self, message):
        """Forget what the owner has."""
        owner = self._owner(message["owner"])
        n = min(int(message.get("n") or message.get("ack") or 0), owner.last_event)
        if n > owner.acked:
            owner.acked = n
            self._forget_claims(owner)
            self._write(["A", message["owner"], n])
            if len(self.segments) > 1:
                self._drop_segments()

    def on_drop(self, message):
        """The client has the output of these attempts: remove the capture files that were their own."""
        for x, attempt in message["ids"]:
            self.captures.remove(key_of(x, attempt))

    def on_recall(self, message):
        """Take back orders that have not started."""
        for x, attempt in message["ids"]:
            key = key_of(x, attempt)
            order = self.queues.remove(key)
            if order is not None:
                self._close_order(key)
                self._event(order["o"], "recalled", x, attempt, {})

    def on_cancel(self, message):
        """End executions, queued or running."""
        for x, attempt in message["ids"]:
            key = key_of(x, attempt)
            order = self.queues.remove(key)
            if order is not None:
                self._close_order(key)
                self.claimed.add(key)
                self._event(
                    order["o"],
                    "ended",
                    x,
                    attempt,
                    ended_fields(None, None, "cancelled", "before it started"),
                )
                continue
            run = self.runs.get(key)
            if run is None and key not in self.claimed:
                # Never heard of: whatever still comes for it must not start.
                self.claimed.add(key)
                self._event(
                    message["owner"],
                    "ended",
                    x,
                    attempt,
                    ended_fields(None, None, "cancelled", "before it came"),
                )
            if run is not None:
                if message.get("grace") is not None:
                    run.grace_s = float(message["grace"])
                    if run.ended_by is not None:
                        self.at(run.grace_s, lambda run=run: self._kill_rest(run))
                self.end(run, "cancelled", "cancelled")

    def on_pause(self, message):
        """Stop every process of running executions."""
        for x, attempt in message["ids"]:
            run = self.runs.get(key_of(x, attempt))
            if run is not None and not run.main_gone and run.ended_by is None and run.paused_at is None:
                stopped = {}
                while True:
                    # Again until no new one appears: a process may fork between our look and our signal.
                    rest = {pid: start for pid, start in self._rest(run).items() if pid not in stopped}
                    if not rest:
                        break
                    for pid, start in rest.items():
                        processes.send(pid, start, signal.SIGSTOP)
                    stopped.update(rest)
                run.paused_at = time.monotonic()
                self._event(run.owner, "paused", x, attempt, {})

    def on_resume(self, message):
        """Let paused executions go on; the pause does not count against their walltime."""
        for x, attempt in message["ids"]:
            run = self.runs.get(key_of(x, attempt))
            if run is not None and run.paused_at is not None:
                if run.deadline is not None:
                    run.deadline += time.monotonic() - run.paused_at
                run.paused_at = None
                self._signal_all(run, signal.SIGCONT)
                self._event(run.owner, "resumed", x, attempt, {})

    def on_follow(self, message):
        """Somebody reads the output while it is written: it must not land in a file that is used again."""
        run = self.runs.get(key_of(message["x"], message["a"]))
        known = run is not None and run.capture is not None
        paths = run.capture.give_up() if known else ("", "")
        fd = run.terminal if known and run.terminal is not None else None
        if fd is not None:
            run.followed = True
        self.reply(
            {
                "t": "following",
                "req": message["req"],
                "known": known,
                "paths": list(paths),
                "tty": fd is not None,
            },
            fd,
        )

    def on_signal(self, message):
        """Send a signal to every process of a running execution."""
        run = self.runs.get(key_of(message["x"], message["a"]))
        if run is not None:
            self._signal_all(run, int(message["number"]))

    def on_forget(self, message):
        """An owner that will not come back."""
        self._cancel_owner(message["owner"], "forgotten")

    def on_status(self, message):
        """Everything this node does, for people."""
        self.reply(
            {
                "t": "status",
                "req": message["req"],
                "pid": os.getpid(),
                "room": self.describe(),
                "runs": [
                    {
                        "x": run.x,
                        "a": run.attempt,
                        "owner": run.owner,
                        "slot": run.slot,
                        "pid": run.pid,
                        "seconds": round(time.monotonic() - run.started, 3),
                        "paused": run.paused_at is not None,
                        "means": run.means,
                    }
                    for run in self.runs.values()
                ],
                "queued": len(self.queues),
                "holds": list(self.holds),
                "sync_error": self.log.sync_error,
            }
        )

    def on_retire(self, message):
        """A newer agent wants this place: leave if nothing would be lost by it."""
        idle = not self.runs and not self.queues and not self.holds
        self.retiring = idle
        self.reply({"t": "retiring", "req": message["req"], "yes": idle})

    def describe(self):
        room = self.room
        return {
            "cpus": room.cpus,
            "used_cpus": room.used_cpus,
            "memory_bytes": room.memory_bytes,
            "used_memory": room.used_memory,
            "gpus": room.gpus,
            "free_gpus": room.free_gpus,
            "means": self.enforcer.means(),
        }

    # ---------------------------------------------------------------- the talker's line

    def reply(self, head, fd=None):
        if self.talker is None:
            return
        data = frames.encode(0, head)
        if fd is not None and not self.talker_out:
            try:
                self.talker.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _fd_bytes(fd))])
                return
            except OSError:
                pass
        self.talker_out += data
        self._write_talker()

    def _flush(self):
        """Send the events gathered: one message per owner, their text as it is on the log, so that nobody in between parses it."""
        if not self.unsent:
            return
        lines, self.unsent = self.unsent, []
        if self.talker is None:
            return
        owners = {}
        for owner, number, text, ended in lines:
            owners.setdefault(owner, []).append((number, text, ended))
        for owner, events in owners.items():
            for part in _portions(events):
                head = {"t": "events", "owner": owner, "first": part[0][0], "last": part[-1][0]}
                # Whoever follows one of these looks for its end in this very part.
                head["ended"] = [ended for _, _, ended in part if ended is not None]
                self.talker_out += frames.encode(0, head, b"[" + b",".join(text for _, text, _ in part) + b"]")
        self._write_talker()

    def _write_talker(self):
        if not self.talker_out:
            return
        try:
            sent = self.talker.send(self.talker_out)
            del self.talker_out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._drop_talker()
            return
        if len(self.talker_out) > 64 << 20:
            # It does not read. Everything is in the log: the next talker starts from there.
            self._drop_talker()
            return
        self._want_write(bool(self.talker_out))

    def _want_write(self, wanted):
        if wanted != self._wanting:
            self._wanting = wanted
            self.poll.modify(self.talker.fileno(), select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    _wanting = False

    def _take_talker(self, connection):
        if self.talker is not None:
            self._drop_talker()
        connection.setblocking(False)
        self.talker = connection
        self.talker_in = frames.Decoder()
        self.talker_out = bytearray()
        self._wanting = False
        self.poll.register(connection.fileno(), select.EPOLLIN)

    def _drop_talker(self):
        self.poll.unregister(self.talker.fileno())
        self.talker.close()
        self.talker = None
        self.talker_out = bytearray()
        self.present = frozenset()

    def _read_talker(self):
        try:
            data = self.talker.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop_talker()
            return
        try:
            for _stream, raw, _body, _size in self.talker_in.feed(data):
                self.on_message(frames.parse_head(raw))
        except (frames.FrameError, KeyError, TypeError, AttributeError, ValueError) as error:
            sys.stderr.write("keeper: bad message: %r\n" % (error,))
            self._drop_talker()

    # ---------------------------------------------------------------- the loop

    def run(self, listener):
        """Serve until idle."""
        self.poll = select.epoll()
        wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        self.poll.register(wake_in, select.EPOLLIN)
        self.poll.register(listener.fileno(), select.EPOLLIN)
        self.at(30.0, self._expire_owners)
        self.fill()
        while not self._is_done():
            for fd, _mask in self._wait():
                if fd == wake_in:
                    os.read(wake_in, 4096)
                    self.on_children()
                elif fd == listener.fileno():
                    self._take_talker(listener.accept()[0])
                elif self.talker is not None and fd == self.talker.fileno():
                    if self.talker_out:
                        self._write_talker()
                    if self.talker is not None and _mask & ~select.EPOLLOUT:
                        self._read_talker()
            now = time.monotonic()
            while self.timers and self.timers[0][0] <= now:
                heapq.heappop(self.timers)[2]()
            if self.fresh and now - self.fresh[0].started >= ANNOUNCE_S:
                self.announce(now)
            self.fill()
            if self.unsent and (
                not len(self.queues)
                or len(self.unsent) >= GATHER_MOST
                or time.monotonic() - self.unsent_since >= GATHER_S
            ):
                self._flush()
        self.enforcer.close()
        self.log.close()

    def _wait(self):
        until = self.timers[0][0] if self.timers else time.monotonic() + 30.0
        if self.fresh:
            until = min(until, self.fresh[0].started + ANNOUNCE_S)
        if self.unsent:
            until = min(until, self.unsent_since + GATHER_S)
        return self.poll.poll(max(0.0, until - time.monotonic()) + 0.0005)

    def _is_done(self):
        if self.runs or self.queues or self.holds or (self.talker is not None and not self.retiring):
            self.busy_since = time.monotonic()
            return False
        return self.retiring or time.monotonic() - self.busy_since > self.idle_s


def _portions(events):
    """Cut a list of (number, text, ended) so that each portion fits a frame."""
    part, size = [], 0
    for entry in events:
        if part and size + len(entry[1]) > frames.MAX_BODY // 2:
            yield part
            part, size = [], 0
        part.append(entry)
        size += len(entry[1]) + 1
    if part:
        yield part


def _fd_bytes(fd):
    import array

    return array.array("i", [fd]).tobytes()


def serve(folder, ready):
    """Be the keeper of this state folder; returns at once when there is one already. `ready(text)` says how it went."""
    lock = os.open(os.path.join(folder, "keeper.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        ready("ok")
        return
    node.sign(lock)
    processes.set_name("orch-keeper")
    try:
        os.chdir(folder)
        keeper = Keeper(folder)
        keeper.recover()
        try:
            os.unlink("keeper.sock")
        except FileNotFoundError:
            pass
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Executions inherit this process's umask, so it is the person's own but for this moment.
        old = os.umask(0o177)
        listener.bind("keeper.sock")
        os.umask(old)
        listener.listen(8)
        os.chdir("/")
    except OSError as error:
        ready("%s: %s" % (error.filename or folder, os.strerror(error.errno or 0)))
        return
    ready("ok")
    keeper.run(listener)
    # Only now, with the lock still held: nobody else can have put a socket there.
    try:
        os.unlink(os.path.join(folder, "keeper.sock"))
    except OSError:
        pass
