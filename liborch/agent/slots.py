"""The node's room: what there is, what is taken, who waits. Pure bookkeeping; the keeper acts on it."""

import heapq
from collections import OrderedDict


class Room:
    """Capacity and what is taken of it."""

    def __init__(self, cpus, memory_bytes, gpus):
        self.cpus = cpus
        self.memory_bytes = memory_bytes
        self.found = (cpus, memory_bytes)
        self.gpus = list(gpus)
        self.used_cpus = 0
        self.used_memory = 0
        self.free_gpus = list(gpus)
        self._freed = []
        self._next = 0

    def resize(self, cpus, memory_bytes, keep=True):
        """Take another capacity (a profile says how a node is cut). What runs goes on.

        `keep`: what is not told stays as it is; else it is what was found on the node.
        """
        self.cpus = cpus or (self.cpus if keep else self.found[0])
        self.memory_bytes = memory_bytes or (self.memory_bytes if keep else self.found[1])

    def could_ever(self, cpus, memory_bytes, gpus, among=None):
        """Whether a request fits the empty node. `among`: which GPUs will do, numbers or ids; None: any."""
        suited = self._suited(self.gpus, among)
        return cpus <= self.cpus and memory_bytes <= self.memory_bytes and gpus <= len(suited)

    def fits(self, cpus, memory_bytes, gpus, among=None):
        return (
            self.used_cpus + cpus <= self.cpus
            and self.used_memory + memory_bytes <= self.memory_bytes
            and gpus <= len(self._suited(self.free_gpus, among))
        )

    def why_never(self, cpus, memory_bytes, gpus, among=None):
        """Why the empty node has no room for a request; "": it has."""
        if self.could_ever(cpus, memory_bytes, gpus, among):
            return ""
        numbers = (cpus, memory_bytes, gpus, self.cpus, self.memory_bytes, len(self.gpus))
        text = "asks for %d cores, %d bytes of memory, %d GPUs; this node has %d, %d, %d" % numbers
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
        given = self._suited(self.free_gpus, among)[:gpus]
        if given:
            self.free_gpus = [gpu for gpu in self.free_gpus if gpu not in given]
        if self._freed:
            slot = heapq.heappop(self._freed)
        else:
            slot = self._next
            self._next += 1
        return slot, given

    def give_back(self, slot, cpus, memory_bytes, gpus):
        self.used_cpus -= cpus
        self.used_memory -= memory_bytes
        self.free_gpus.extend(gpus)
        heapq.heappush(self._freed, slot)


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
