"""Hold executions to what they asked for, with the strongest means the node offers, and say which means that was.

Memory: a cgroup of the slot (v2 or v1) when one can be written, else watching the processes' resident memory and killing
above the limit. Cores: CPU affinity. GPUs: the visible-devices variables. Out of memory is only ever reported from
evidence: the cgroup's own counter, or our own kill.
"""

import os
import re
import resource
import subprocess

_V1_MEMORY = "/sys/fs/cgroup/memory"
_V2 = "/sys/fs/cgroup"


def _read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _write(path, text):
    with open(path, "w") as file:
        file.write(text)


def _own_v2_folder():
    for line in _read("/proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            return _V2 + line[3:]
    return ""


class Enforcer:
    """What can be enforced here. One per keeper."""

    def __init__(self, tag):
        self.kind = ""
        self.base = ""
        for kind, base in self._candidates():
            folder = os.path.join(base, "orchestra-" + tag)
            try:
                os.makedirs(os.path.join(folder, "probe"), exist_ok=True)
                if kind == "v2":
                    try:
                        _write(os.path.join(folder, "cgroup.subtree_control"), "+memory")
                    except OSError:
                        os.rmdir(os.path.join(folder, "probe"))
                        os.rmdir(folder)
                        continue
                limit = "memory.max" if kind == "v2" else "memory.limit_in_bytes"
                probe = os.path.join(folder, "probe")
                usable = os.access(os.path.join(probe, limit), os.W_OK) and _can_enter(probe)
                os.rmdir(probe)
                if usable:
                    self.kind = kind
                    self.base = folder
                    return
                os.rmdir(folder)
            except OSError:
                continue

    @staticmethod
    def _candidates():
        if os.path.exists(_V2 + "/cgroup.controllers"):
            own = _own_v2_folder()
            if own:
                yield "v2", own
        if os.path.isdir(_V1_MEMORY):
            own = re.search(r":memory:(/.*)", _read("/proc/self/cgroup"))
            if own:
                yield "v1", _V1_MEMORY + own.group(1).rstrip("/")
            yield "v1", _V1_MEMORY

    def means(self):
        """What this node offers, for people."""
        return {
            "memory": "cgroup-" + self.kind if self.kind else "watching",
            "cpus": "affinity",
            "gpus": "variables",
        }

    def prepare(self, slot, memory_bytes):
        """Make the slot's cgroup ready for one execution. Returns a Box, or None when memory is to be watched instead."""
        if not self.kind or not memory_bytes:
            return None
        folder = os.path.join(self.base, "slot-%d" % slot)
        try:
            os.makedirs(folder, exist_ok=True)
            if self.kind == "v2":
                _write(os.path.join(folder, "memory.max"), str(memory_bytes))
                try:
                    _write(os.path.join(folder, "memory.swap.max"), "0")
                except OSError:
                    pass
            else:
                _set_v1_limit(folder, memory_bytes)
        except OSError:
            return None
        return Box(self.kind, folder)

    def inside(self):
        """Return the pids of every process in any of our cgroups."""
        return [
            int(pid)
            for name in self._slots()
            for pid in _read(os.path.join(self.base, name, "cgroup.procs")).split()
        ]

    def _slots(self):
        try:
            return [name for name in os.listdir(self.base) if name.startswith("slot-")] if self.base else []
        except OSError:
            return []

    def close(self):
        """Remove our cgroups, as far as they are empty."""
        if not self.base:
            return
        for name in self._slots():
            try:
                os.rmdir(os.path.join(self.base, name))
            except OSError:
                pass
        try:
            os.rmdir(self.base)
        except OSError:
            pass


def _can_enter(folder):
    """Whether a process of ours can really be moved there: permissions do not tell."""
    command = ["/bin/sh", "-c", 'echo $$ > "$0"', os.path.join(folder, "cgroup.procs")]
    null = subprocess.DEVNULL
    try:
        return subprocess.call(command, stdin=null, stdout=null, stderr=null, timeout=10) == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _set_v1_limit(folder, memory_bytes):
    limits = [
        os.path.join(folder, "memory.limit_in_bytes"),
        os.path.join(folder, "memory.memsw.limit_in_bytes"),
    ]
    # The kernel keeps limit <= memsw.limit, so raise them in one order and lower them in the other.
    for path in list(reversed(limits)) + limits:
        if os.path.exists(path):
            try:
                _write(path, str(memory_bytes))
            except OSError:
                if path == limits[0]:
                    continue
    if int(_read(limits[0]) or 0) > memory_bytes + 4096:
        raise OSError("limit not taken")
    _write(os.path.join(folder, "memory.max_usage_in_bytes"), "0")


class Box:
    """The cgroup of one slot, while one execution uses it."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        self._kills = self._kill_count()

    @property
    def means(self):
        return "cgroup-" + self.kind

    def wrap(self, argv):
        """Put a shell in front (of bytes) that enters the cgroup and becomes the program.

        It goes on where it cannot enter: the caller looks whether it did.
        """
        procs = os.fsencode(os.path.join(self.folder, "cgroup.procs"))
        return [b"/bin/sh", b"-c", b'{ echo $$ >"$0"; } 2>/dev/null; exec "$@"', procs] + argv

    def _kill_count(self):
        text = _read(
            os.path.join(self.folder, "memory.events" if self.kind == "v2" else "memory.oom_control")
        )
        found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        return int(found.group(1)) if found else 0

    def out_of_memory(self):
        """Whether the kernel killed something in here for lack of memory since `prepare`."""
        return self._kill_count() > self._kills

    def peak_bytes(self):
        """Most memory used at once, or 0."""
        text = _read(
            os.path.join(self.folder, "memory.peak" if self.kind == "v2" else "memory.max_usage_in_bytes")
        )
        return int(text) if text.strip().isdigit() else 0

    def pids(self):
        """Every process inside, also those that left session and environment behind."""
        return [int(word) for word in _read(os.path.join(self.folder, "cgroup.procs")).split()]


def used_bytes(pids, limit):
    """Memory of processes. Pages that several share count for each, unless the sum is over `limit`: then they are divided."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in pids:
        fields = _read("/proc/%d/statm" % pid).split()
        if len(fields) > 1:
            total += int(fields[1]) * page
    if total <= limit or len(pids) < 2:
        return total
    exact = 0
    for pid in pids:
        found = re.search(r"^Pss: +(\d+) kB", _read("/proc/%d/smaps_rollup" % pid), re.MULTILINE)
        if found is None:
            # An old kernel, or it is gone by now: the next look decides.
            return total if os.path.exists("/proc/%d" % pid) else limit
        exact += int(found.group(1)) << 10
    return exact


def own_peak_kib():
    """Most memory this process ever used, in KiB, and a little."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 1024


class Cores:
    """Hands out CPU numbers for binding: within one NUMA node where they fit, the least used first."""

    def __init__(self, numa_nodes):
        self._numa = [list(cpus) for cpus in numa_nodes]
        self._uses = {cpu: 0 for cpus in self._numa for cpu in cpus}
        #: Some of them are somebody else's, and nobody says which: none is bound to.
        self.are_unsure = False

    def sizes(self):
        """How many cores each NUMA node has."""
        return [len(cpus) for cpus in self._numa]

    def why_never(self, numa):
        """Why nothing can be bound to this NUMA node; "": it can."""
        if numa is None or numa < len(self._numa):
            return ""
        return "asks for NUMA node %d; this node has %d" % (numa, len(self._numa))

    def take(self, count, numa=None):
        """Return a tuple of `count` CPU numbers (fewer when the node has fewer); without a count, all of the NUMA node, or none."""
        if numa is None and (not count or self.are_unsure):
            return ()
        if not count:
            count = len(self._numa[numa]) if numa < len(self._numa) else 1
        groups = self._numa if numa is None else self._numa[numa : numa + 1] or self._numa
        best = None
        for cpus in groups:
            chosen = sorted(cpus, key=lambda cpu: (self._uses[cpu], cpu))[:count]
            cost = (len(chosen) < count, sum(self._uses[cpu] for cpu in chosen), len(cpus))
            if best is None or cost < best[0]:
                best = (cost, chosen)
        if best[0][0] and numa is None:
            every = sorted(self._uses, key=lambda cpu: (self._uses[cpu], cpu))
            best = (None, every[:count])
        for cpu in best[1]:
            self._uses[cpu] += 1
        return tuple(best[1])

    def give_back(self, cpus):
        for cpu in cpus:
            self._uses[cpu] -= 1
