"""What a batch system granted of this node to the allocation that this agent serves: which cores, which GPUs.

A process of the allocation knows: it is bound to the cores, and its environment names the GPUs. That is this process itself
where the batch system started it, else one that holds the allocation, which a login of the same person may look at. What no
process says is not known: then the counts that the client was told hold.

An allocation's agent has a state folder of its own, so that two on one node have nothing in common. It is removed when the agent
ends by itself; those of agents that were killed, by a later one.
"""

import fcntl
import os
import shutil
import time

try:
    from . import doors, node, processes
except ImportError:
    import doors
    import node
    import processes

#: Which allocation a process is of.
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "OAR_JOB_ID", "JOB_ID")
#: Its GPUs; the first two number all of the node's, whatever a process sees of them.
_GPUS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
#: A holder that was just started is waited for so long, in seconds.
_PATIENCE_S = 5.0
#: Folders of allocations are removed when nothing was written there for so long.
_KEPT_S = 7 * 86400.0


class Grant:
    """What is known; None: it is not."""

    def __init__(self, cores=None, gpus=None):
        #: Numbers of CPUs.
        self.cores = cores
        #: Places in the list of the node's GPUs (numbers), or ids.
        self.gpus = gpus

    def of(self, listed):
        """The GPUs that were granted, among those that the node's tool lists for us."""
        if self.gpus is None or len(self.gpus) == len(listed):
            # Where as many are listed as were granted, the others are hidden from us.
            return list(listed)
        ids = tuple(each for each in self.gpus if not each.isdigit())
        named = [gpu for number, gpu in enumerate(listed) if str(number) in self.gpus or gpu.startswith(ids)]
        # By names that say nothing here: so many it is.
        return named or list(listed)[: len(self.gpus)]


def enter(folder):
    """Keep to what was granted, bound to its cores; return (how many there are, bytes of memory, GPUs). `folder`: the agent's."""
    sweep(folder)
    grant = look(node.allocation(), bool(os.environ.get("ORCHESTRA_AWAITS_GRANT")))
    if grant.cores:
        try:
            os.sched_setaffinity(0, grant.cores)
        except OSError:
            pass  # This login is confined to others: then it has these.
    return len(node.cores()), node.memory_bytes(), grant.of(node.gpus())


def look(allocation, wait):
    """Return the Grant of an allocation. `wait`: it has a part of the node, and a process that knows which, now or at once."""
    until = time.monotonic() + (_PATIENCE_S if wait else 0.0)
    while allocation:
        found = _look(allocation)
        if found is not None:
            if wait and found.gpus is None:
                # Whoever has a part of a node is told which GPUs it has; who is told nothing has none.
                found.gpus = []
            return found
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return Grant()


def _look(allocation):
    cores, gpus = set(), set()
    names_gpus = seen = False
    for pid in [os.getpid()] + processes.own_pids():
        environment = processes.environment_of(pid)
        if not any(_same(environment.get(name, ""), allocation) for name in _JOBS):
            continue
        # What an execution was given is less than what there is.
        if processes.MARK in environment:
            continue
        try:
            cores |= os.sched_getaffinity(pid)
        except OSError:
            continue
        seen = True
        named = next((environment[name] for name in _GPUS if environment.get(name)), None)
        if named is not None:
            names_gpus = True
            gpus.update(word.strip() for word in named.split(",") if word.strip() not in ("", "NoDevFiles"))
        if pid == os.getpid():
            break
    return Grant(sorted(cores), sorted(gpus) if names_gpus else None) if seen else None


def _same(told, allocation):
    """Whether these are one allocation: "12" and "12.server" are."""
    return bool(told) and told.split(".")[0] == allocation.split(".")[0]


def leave(folder, lock, is_awaited):
    """End as the keeper of `folder`. That of an allocation is removed, unless somebody has still to hear of ends there."""
    is_ours = doors.still_ours(folder, "keeper", lock)
    doors.leave(folder, "keeper", lock)
    if node.allocation() and is_ours and not is_awaited:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder, now=None):
    """Remove what agents of earlier allocations left on this node, beside `folder`."""
    base, own = os.path.split(folder)
    name, at, _allocation = own.partition("@")
    if not at:
        return
    now = time.time() if now is None else now
    for other in os.listdir(base):
        path = os.path.join(base, other)
        if (
            other != own
            and other.startswith(name + "@")
            and now - _written(path) > _KEPT_S
            and not _lives(path)
        ):
            shutil.rmtree(path, ignore_errors=True)


def _written(path):
    try:
        return max(os.stat(os.path.join(path, each)).st_mtime for each in os.listdir(path) + ["."])
    except OSError:
        return time.time()


def _lives(path):
    try:
        lock = os.open(os.path.join(path, "keeper.lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
