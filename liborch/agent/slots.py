"""The node's room: what there is, what is taken, who waits. Pure bookkeeping; the keeper acts on it."""

import heapq
from collections import OrderedDict

#: A GPU that several share is dealt out in so many parts, so that sums of shares are exact.
GPU_PARTS = 1000


class Room:
    """Capacity and what is taken of it."""

    def __init__(self, cpus, memory_bytes, gpus):
        self.cpus = cpus
        self.memory_bytes = memory_bytes
        self.found = (cpus, memory_bytes)
        self.gpus = list(gpus)
        self.used_cpus = 0
        self.used_memory = 0
        #: Those that nobody uses.
        self.free_gpus = list(gpus)
        #: {GPU that is shared: parts of it that are free}
        self.shared = {}
        self._freed = []
        self._next = 0

    def resize(self, cpus, memory_bytes, keep=True, gpus=None):
        """Take another capacity (a profile says how a node is cut). What runs goes on.

        `keep`: what is not told stays as it is; else it is what was found on the node. `gpus`: so many are ours, when
        nobody says which; None: all that were found.
        """
        self.cpus = cpus or (self.cpus if keep else self.found[0])
        self.memory_bytes = memory_bytes or (self.memory_bytes if keep else self.found[1])
        if gpus and gpus < len(self.gpus):
            self.gpus = self.gpus[:gpus]
            self.free_gpus = [gpu for gpu in self.free_gpus if gpu in self.gpus]

    def could_ever(self, cpus, memory_bytes, gpus, among=None):
        """Whether a request fits the empty node. `among`: which GPUs will do, numbers or ids; None: any."""
        suited = self._suited(self.gpus, among)
        return cpus <= self.cpus and memory_bytes <= self.memory_bytes and gpus <= len(suited)

    def fits(self, cpus, memory_bytes, gpus, among=None):
        return (
            self.used_cpus + cpus <= self.cpus
            and self.used_memory + memory_bytes <= self.memory_bytes
            and (not gpus or self._has_gpus(gpus, among))
        )

    def _has_gpus(self, gpus, among):
        return gpus <= len(self._suited(self.free_gpus, among)) or self._shared_with(gpus, among) is not None

    def _shared_with(self, gpus, among):
        """The GPU in use on which this share leaves least; None: there is none."""
        if gpus >= 1:
            return None
        parts = _parts_of(gpus)
        # Of several the one that was shared first: clients reckon with that.
        suited = [gpu for gpu in self._suited(self.shared, among) if self.shared[gpu] >= parts]
        return min(suited, key=self.shared.get) if suited else None

    def why_never(self, cpus, memory_bytes, gpus, among=None):
        """Why the empty node has no room for a request; "": it has."""
        if self.could_ever(cpus, memory_bytes, gpus, among):
            return ""
        numbers = (cpus, memory_bytes, gpus, self.cpus, self.memory_bytes, len(self.gpus))
        text = "asks for %d cores, %d bytes of memory, %g GPUs; this node has %d, %d, %d" % numbers
        return text + " (allowed: %s)" % ", ".join(among) if among else text

    def _suited(self, gpus, among):
        if among is None:
            return gpus
        # A number is a place in the list of all of them.
        named = [self.gpus[int(each)] for each in among if each.isdigit() and int(each) < len(self.gpus)]
        return [gpu for gpu in gpus if gpu in among or gpu in named]

    def take(self, cpus, memory_bytes, gpus, among=None):
        """Return (slot number, GPU ids). The lowest free number, so that capture files are reused."""
        self.used_cpus += cpus
        self.used_memory += memory_bytes
        given = self._take_gpus(gpus, among) if gpus else []
        if self._freed:
            slot = heapq.heappop(self._freed)
        else:
            slot = self._next
            self._next += 1
        return slot, given

    def _take_gpus(self, gpus, among):
        shared = self._shared_with(gpus, among)
        given = [shared] if shared else self._suited(self.free_gpus, among)[: int(gpus) or 1]
        self.free_gpus = [gpu for gpu in self.free_gpus if gpu not in given]
        if gpus < 1:
            for gpu in given:
                self.shared[gpu] = self.shared.get(gpu, GPU_PARTS) - _parts_of(gpus)
        return given

    def give_back(self, slot, cpus, memory_bytes, gpus, given):
        """Room of a request is free again; `given`: the ids of its GPUs."""
        self.used_cpus -= cpus
        self.used_memory -= memory_bytes
        for gpu in given:
            if gpus < 1:
                self.shared[gpu] += _parts_of(gpus)
                if self.shared[gpu] < GPU_PARTS:
                    continue
                del self.shared[gpu]
            if gpu in self.gpus:
                self.free_gpus.append(gpu)
        heapq.heappush(self._freed, slot)


def _parts_of(gpus):
    return max(1, int(gpus * GPU_PARTS + 0.5))


class Hold:
    """Room kept for a client that runs commands in it one after the other."""

    __slots__ = ("cores", "gpus", "key", "needs", "owner", "slot")

    def __init__(self, owner, key, slot, needs, gpus, cores):
        self.owner = owner
        self.key = key
        self.slot = slot
        self.needs = needs
        self.gpus = gpus
        self.cores = cores


class Queues:
    """Orders that wait: first come, first served within an owner; owners take turns."""

    def __init__(self):
        #: {owner: {key: order}}, owners without orders left out.
        self._owners = OrderedDict()
        self._owner_of = {}

    def add(self, owner, key, order):
        self._owners.setdefault(owner, OrderedDict())[key] = order
        self._owner_of[key] = owner

    def __contains__(self, key):
        return key in self._owner_of

    def __len__(self):
        return len(self._owner_of)

    def get(self, key):
        owner = self._owner_of.get(key)
        return None if owner is None else self._owners[owner][key]

    def remove(self, key):
        """Take an order out, wherever it stands; None when it is not there."""
        owner = self._owner_of.pop(key, None)
        if owner is None:
            return None
        queue = self._owners[owner]
        order = queue.pop(key)
        if not queue:
            del self._owners[owner]
        return order

    def keys_of(self, owner):
        return list(self._owners.get(owner, ()))

    def keys(self):
        return self._owner_of.keys()

    def pop_fitting(self, fits):
        """Return the next order that `fits` accepts, or None: the first of each owner's queue in turn."""
        for owner, queue in self._owners.items():
            key, order = next(iter(queue.items()))
            if fits(order):
                self._owners.move_to_end(owner)
                return self.remove(key)
        return None
