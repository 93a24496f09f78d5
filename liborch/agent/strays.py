"""Processes that left their execution's session: which of our executions they come from, and whether they may stay.

This process is a subreaper: whatever outlives its parent below us becomes our child, so a survivor that hid in a session
of its own, without the mark in its environment, still shows up here. It is told by its mark, else by a capture file of
the execution that it holds open. One that shows neither is a suspect: it is ended with the last execution that ran
when it was first seen, unless one of those was to leave its survivors running.

A process may be replaced by its own child, again and again, faster than any list of processes is read. Whichever it is just
now, it is a child of ours; so the list of these is read until nobody new is in it, and who is found is signalled at once.
"""

import os
import signal
import time

try:
    from . import processes
except ImportError:
    import processes


#: How often the list of our children is read, at most, while new ones keep appearing there.
_LOOKS = 200
#: How long to wait for the children of one that was signalled: so often, so many seconds.
_MOMENTS = 3
_MOMENT_S = 0.0005


class Strays:
    """See the module's text."""

    def __init__(self, tag):
        self._end_of_mark = "@" + tag
        self.is_subreaper = processes.become_subreaper()
        try:
            self._children = os.open("/proc/self/task/%d/children" % os.getpid(), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._children = None
        #: {pid: (start time, keys of executions it may come from)}
        self._suspects = {}
        #: {pid: start time} of those that may stay.
        self._kept = {}

    @property
    def _sees(self):
        return self._children is not None and self.is_subreaper

    def _list(self):
        try:
            return os.pread(self._children, 1 << 20, 0).split()
        except OSError:
            return []

    def are_there(self, started):
        """Whether we have more children than the `started` ones. The usual answer, no, is cheap."""
        return not self._sees or len(self._list()) > started

    def reaped(self, pid):
        """A child that was no execution is gone."""
        self._suspects.pop(pid, None)
        self._kept.pop(pid, None)

    def look(self, run, runs, mains, number=0):
        """Find what of `run` was given to us; add it to `run.adopted`, and send it the signal `number` at once.

        `mains`: pids of what we started ourselves. Returns whether there is anything, or anything that may be.
        """
        if not self._sees:
            found = processes.members((run.mark,))
            run.adopted.update(found)
            return bool(found)
        found = False
        patience = _MOMENTS
        paths = run.capture.paths() if run.capture is not None else ()
        seen = set()
        for _ in range(_LOOKS):
            new = [pid for pid in map(int, self._list()) if pid not in seen and pid not in mains]
            if not new:
                if not (found and number and patience):
                    break
                # Who was signalled may have had a child already, which is ours once it is dead: in a moment.
                patience -= 1
                time.sleep(_MOMENT_S)
            seen.update(new)
            for pid in new:
                found = self._look_at(pid, run, runs, paths, number) or found
        return found

    def _look_at(self, pid, run, runs, paths, number):
        fields = processes.stat_fields(pid)
        if fields is None or fields[0] in "ZX" or self._kept.get(pid) == fields[4]:
            return False
        key = self._key_of(pid)
        if key == run.key or (key not in runs and processes.writes_to(pid, paths)):
            run.adopted[pid] = fields[4]
            self._suspects.pop(pid, None)
            if number:
                processes.send(pid, fields[4], number)
            return True
        if key in runs:
            return False
        if key:
            self._kept[pid] = fields[4]  # of one that ended and was to leave it
        elif pid not in self._suspects:
            self._suspects[pid] = (fields[4], set(runs))
            return True
        return False

    def _key_of(self, pid):
        mark = processes.mark_of(pid)
        return mark[: -len(self._end_of_mark)] if mark.endswith(self._end_of_mark) else ""

    def may_stay(self, run):
        """What is left of this execution was meant to be left."""
        self._kept.update(run.adopted)
        for pid, (start, keys) in list(self._suspects.items()):
            if run.key in keys:
                self._kept[pid] = start
                del self._suspects[pid]

    def ended(self, run, runs):
        """An execution is over: end the suspects that can come from no other."""
        for pid, (start, keys) in list(self._suspects.items()):
            keys.discard(run.key)
            if not any(key in runs for key in keys):
                for each, since in processes.members((), (), {pid: start}).items():
                    processes.send(each, since, signal.SIGKILL)
