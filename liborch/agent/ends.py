"""How executions end: by themselves, by walltime, memory, cancel or pause, and until nothing of them is left.

An execution's end is told when its main process was waited for (and, cancelled or out of time, when nothing else is
left); its slot is free when nothing of it is left. The first reason to end it stays. Only processes that are its own, by
group, session, mark or parent, are ever signalled, each by its start time as well as its number.
"""

import os
import signal
import time

try:
    from . import captures, enforce, processes, starts
except ImportError:
    import captures
    import enforce
    import processes
    import starts

ended_fields = starts.ended_fields

#: Processes that resist KILL for so long are reported as unkillable.
UNKILLABLE_S = 60.0
#: How often memory without a cgroup, and what resists KILL, are looked at.
WATCH_S = 0.25
#: How often it is looked whether the disk that output goes to is full, while something runs.
DISK_S = 1.0
#: How often processes are looked for, at most, to stop them all: some fork for as long as they are let.
PAUSE_LOOKS = 100
#: Grace given to processes that outlive the main one, before KILL.
SURVIVOR_GRACE_S = 1.0


class Ends:
    """See the module's text. `free(run)` is called once for each run, when nothing of it is left and its slot is free."""

    def __init__(self, ledger, timers, strays, capture_files, runs, free):
        self._ledger = ledger
        self._timers = timers
        self._strays = strays
        self._captures = capture_files
        self._runs = runs
        self._free_slot = free
        #: {pid: run} of the main processes that were not waited for yet.
        self.by_pid = {}
        self._looks_at_disk = False

    def __repr__(self):
        return "<Ends: %d processes>" % len(self.by_pid)

    # ---------------------------------------------------------------- the start

    def begin(self, run):
        """Take charge of a process that was just started."""
        order = run.order
        self.by_pid[run.pid] = run
        if not self._looks_at_disk:
            self._looks_at_disk = True
            self._timers.at(DISK_S, self._look_at_disk)
        if order.get("wall"):
            run.deadline = run.started + order["wall"]
            run.timers.append(self._timers.at(order["wall"], lambda: self._out_of_time(run)))
        if order.get("mem"):
            look = self._check_box if run.box is not None else self._watch_memory
            run.timers.append(self._timers.at(WATCH_S, lambda: look(run)))

    def _look_at_disk(self):
        self._captures.look()
        self._looks_at_disk = bool(self.by_pid)
        if self._looks_at_disk:
            self._timers.at(DISK_S, self._look_at_disk)

    def not_started(self, run, verdict):
        """A failure to start is an end like any other."""
        run.result = verdict
        if run.result["reason"] == "exit" and run.capture is not None:
            try:
                os.write(run.capture.err, starts.to_bytes(run.result["why"]) + b"\n")
            except (OSError, ValueError):
                pass
        run.main_gone = run.group_gone = True
        self._finish(run)

    # ---------------------------------------------------------------- the end of the main process

    def wait_children(self):
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
                self._strays.reaped(pid)

    def _main_ended(self, run, status, usage):
        run.main_gone = True
        fields = run.result = self._verdict(run, status, usage)
        left = False
        if self._strays.are_there(len(self.by_pid)):
            run.group_gone = not processes.group_lives(run.pid)
            left = self._look(run) or not run.group_gone
            # Whatever it is, it may have the slot's files open.
            run.capture.is_shared = left
        else:
            run.group_gone = True
        if run.ended_by is not None:
            fields["reason"], fields["why"] = self._reason(run, fields)
            if not left:
                self._finish(run)
            else:  # The end is told once nothing is left; KILL comes when the grace is over.
                self._look_for_rest(run, 0.02)
        elif not left:
            self._finish(run)
        elif run.order.get("keep"):
            self._strays.may_stay(run)
            self._finish(run)
        else:
            self._say_end(run)
            run.ended_by = ("survivors", "")
            self._signal_all(run, signal.SIGTERM)
            self._timers.at(SURVIVOR_GRACE_S, lambda: self._kill_rest(run))
            self._look_for_rest(run, 0.005)

    @staticmethod
    def _reason(run, fields):
        reason, why = run.ended_by
        return (fields["reason"], fields["why"]) if fields["reason"] == "oom" else (reason, why)

    def _verdict(self, run, status, usage):
        # A child begins as a copy of this process, and the kernel counts that in: less than ours says nothing.
        peak = usage.ru_maxrss * 1024 if usage.ru_maxrss > enforce.own_peak_kib() else 0
        if os.WIFSIGNALED(status):
            fields = ended_fields(None, os.WTERMSIG(status), "signal")
        else:
            fields = ended_fields(os.WEXITSTATUS(status), None, "exit")
        if run.box is not None:
            peak = run.box.peak_bytes()
            if run.box.out_of_memory():
                why = "over its %d bytes of memory (cgroup)" % run.order["mem"]
                if fields["code"] != 0:
                    fields["reason"] = "oom"
                    fields["why"] = why
                else:
                    # It went on without the process that was killed, and says that it did well; who knows.
                    fields["why"] = "a process of it was killed: " + why
        elif run.over_memory:
            fields["reason"] = "oom"
            fields["why"] = "over its %d bytes of memory (seen: %d)" % (run.order["mem"], run.peak)
        fields["rss"] = max(peak, run.peak)
        fields["cpu"] = round(usage.ru_utime + usage.ru_stime, 6)
        return fields

    # ---------------------------------------------------------------- what is left

    def _rest(self, run):
        """Return {pid: start time} of everything of a run that lives."""
        mains = ()
        if not run.group_gone:
            if not run.main_gone or (
                processes.group_lives(run.pid) and processes.stat_fields(run.pid) is None
            ):
                mains = (run.pid,)
            else:
                # Nothing left, or a process with its very number, which then was given out anew.
                run.group_gone = True
        known = dict(run.adopted)
        if run.box is not None:
            for pid in run.box.pids():
                fields = processes.stat_fields(pid)
                if fields is not None and fields[0] not in "ZX":
                    known[pid] = fields[4]
        return processes.members((run.mark,), mains, known)

    def _look(self, run, number=0):
        """See what of a run was left to us, and signal that at once. Returns whether there is anything."""
        return self._strays.are_there(len(self.by_pid)) and self._strays.look(
            run, self._runs, self.by_pid, number
        )

    def _signal_all(self, run, number):
        rest = self._rest(run)
        for pid, start in rest.items():
            processes.send(pid, start, number)
        return rest

    def signal(self, run, number):
        """Send a signal to every process of a run."""
        self._signal_all(run, number)

    def end(self, run, reason, why):
        """TERM now, KILL after the grace. The first reason stays."""
        if run.ended_by is not None and run.ended_by[0] != "survivors":
            return
        run.ended_by = (reason, why)
        self._look(run, signal.SIGTERM)
        self._signal_all(run, signal.SIGTERM)
        self._signal_all(run, signal.SIGCONT)
        run.paused_at = None
        self._timers.at(run.grace_s, lambda: self._kill_rest(run))

    def hurry(self, run, grace_s):
        """Another grace, counted from now."""
        run.grace_s = grace_s
        if run.ended_by is not None:
            self._timers.at(grace_s, lambda: self._kill_rest(run))

    def _look_for_rest(self, run, wait_s):
        """Finish as soon as nothing is left, without waiting for the grace to end."""
        if run.key not in self._runs or run.killed_at is not None:
            return
        if not self._look(run) and not self._rest(run):
            self._finish(run)
            return
        self._timers.at(wait_s, lambda: self._look_for_rest(run, min(WATCH_S, wait_s * 2)))

    def _kill_rest(self, run):
        """KILL until nothing is left, then finish."""
        if run.key not in self._runs:
            return
        now = time.monotonic()
        if run.killed_at is None:
            run.killed_at = now
        left = self._look(run, signal.SIGKILL)
        rest = self._signal_all(run, signal.SIGKILL)
        if run.main_gone and not rest and not left:
            self._finish(run)
            return
        if now - run.killed_at > UNKILLABLE_S:
            names = ", ".join(str(pid) for pid in sorted(rest))
            if run.result is None and not run.main_gone:
                run.result = ended_fields(None, None, run.ended_by[0])
            if run.result is not None:
                run.result["why"] = "unkillable for %d s: processes %s" % (UNKILLABLE_S, names)
            self.by_pid.pop(run.pid, None)
            run.capture.is_shared = True
            self._finish(run)
            return
        self._timers.at(0.05 if now - run.killed_at < 1 else WATCH_S, lambda: self._kill_rest(run))

    # ---------------------------------------------------------------- the verdict

    def _finish(self, run):
        self._say_end(run)
        if self._runs.pop(run.key, None) is None:
            return
        for timer in run.timers:
            self._timers.cancel(timer)
        if run.capture is not None:
            run.capture.done()
        self._strays.ended(run, self._runs)
        self._free_slot(run)

    def _say_end(self, run):
        """Write the verdict, once."""
        if run.result is None:
            return
        fields, run.result = run.result, None
        fields["start"] = round(run.started_wall, 6)
        fields["dur"] = round(time.monotonic() - run.started, 6)
        fields["slot"] = run.slot
        if run.means:
            fields["means"] = run.means
        if run.cores:
            fields["cores"] = list(run.cores)
        if run.terminal is not None:
            captures.drain_terminal(run.terminal, run.capture.out)
        if run.order.get("outcome"):
            outcome = self._captures.take_outcome(run.key)
            if outcome is not None:
                fields["outcome"] = outcome
        if run.capture is not None:
            output = run.capture.collect()
            # The last also of one that did well: what it wrote may have been cut, and nobody else would say so.
            notes = [
                fields["why"],
                output.pop("why", ""),
                self._captures.trouble(run.capture.out, run.started),
            ]
            fields.update(output)
            fields["why"] = "; ".join(note for note in notes if note)
        self._ledger.event(run.owner, "ended", run.x, run.a, fields)
        self._ledger.close_order(run.key)

    # ---------------------------------------------------------------- limits and pauses

    def _out_of_time(self, run):
        if run.key not in self._runs or run.main_gone:
            return
        left = run.deadline - time.monotonic()
        if run.paused_at is not None:
            left += 1.0
        if left > 0:
            run.timers.append(self._timers.at(left, lambda: self._out_of_time(run)))
            del run.timers[:-4]
            return
        self.end(run, "walltime", "over its walltime of %g s" % run.order["wall"])

    def _check_box(self, run):
        """A cgroup that the execution could not enter holds nothing: watch it instead, and say so."""
        if run.key not in self._runs or run.main_gone or run.pid in run.box.pids():
            return
        run.box = None
        run.means = [each for each in run.means if not each.startswith("memory:")] + ["memory:watching"]
        self._watch_memory(run)

    def _watch_memory(self, run):
        if run.key not in self._runs or run.main_gone:
            return
        rest = self._rest(run)
        seen = enforce.used_bytes(rest, run.order["mem"])
        run.peak = max(run.peak, seen)
        if seen > run.order["mem"]:
            run.over_memory = True
            self._signal_all(run, signal.SIGKILL)
        run.timers.append(self._timers.at(WATCH_S, lambda: self._watch_memory(run)))
        del run.timers[:-4]

    def pause(self, run):
        """Stop every process of a run; False when it is paused, or ends already."""
        if run.main_gone or run.ended_by is not None or run.paused_at is not None:
            return False
        stopped = {}
        for _ in range(PAUSE_LOOKS):
            # Again until no new one appears: a process may fork between our look and our signal.
            self._look(run, signal.SIGSTOP)
            rest = {pid: start for pid, start in self._rest(run).items() if stopped.get(pid) != start}
            if not rest:
                break
            for pid, start in rest.items():
                processes.send(pid, start, signal.SIGSTOP)
            stopped.update(rest)
        run.paused_at = time.monotonic()
        return True

    def resume(self, run):
        """Let it go on; the pause does not count against its walltime. False when it was not paused."""
        if run.paused_at is None:
            return False
        if run.deadline is not None:
            run.deadline += time.monotonic() - run.paused_at
        run.paused_at = None
        self._signal_all(run, signal.SIGCONT)
        return True
