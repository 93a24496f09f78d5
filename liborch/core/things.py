"""What the machine keeps of executions, gangs, nodes, clusters and allocations. Fields only; `machine.py` and its bases move them."""

from __future__ import annotations

import copy
import math
import re
from collections import OrderedDict
from collections.abc import Sequence

from liborch.core import events as ev
from liborch.core.queue import Group, Shape, Share
from liborch.core.room import Gpus

_RANK = re.compile(r"(.+)-r([0-9]+)\Z")


def rank_id(x: str, rank: int) -> str:
    """What agents know a rank by; rank 0 is the execution itself."""
    return f"{x}-r{rank}" if rank else x


def lead_of(x: str) -> tuple[str, int]:
    """The execution that an id belongs to, and which rank of it."""
    found = _RANK.match(x)
    return (found.group(1), int(found.group(2))) if found is not None else (x, 0)


class Item:
    """One execution or slot request that is not final."""

    __slots__ = (
        "attempt",
        "batch",
        "cancelling",
        "collected",
        "cpus",
        "cut_offs",
        "ended",
        "evicting",
        "gang",
        "gpus",
        "group",
        "has_room",
        "is_slot",
        "lease",
        "memory_bytes",
        "node",
        "nodes",
        "order",
        "pausing",
        "priority",
        "rank",
        "recalling",
        "retries",
        "retry_on",
        "shape",
        "share",
        "staged",
        "started_at",
        "state",
        "state_id",
        "story",
        "walltime_s",
        "x",
    )

    def __init__(self, event: ev.Submitted, order: int) -> None:
        self.x = event.x
        self.batch = event.batch
        self.cpus = event.cpus
        self.memory_bytes = event.memory_bytes
        self.gpus = event.gpus
        self.priority = event.priority
        self.walltime_s = event.walltime_s
        self.retries = event.retries
        self.retry_on = event.retry_on
        self.staged = event.staged
        self.collected = event.collected
        self.nodes = event.nodes
        self.lease = event.lease
        self.is_slot = event.is_slot
        self.order = order
        self.state = "WAITING"
        self.attempt = 1
        self.node: Node | None = None
        self.group: Group | None = None
        self.share: Share | None = None
        self.shape: Shape = (
            event.cpus,
            event.memory_bytes,
            event.gpus,
            event.walltime_s,
            event.nodes,
            event.node_count,
        )
        #: What it runs in, while it is on nodes and there are several; and which of them it is.
        self.gang: Gang | None = None
        self.rank = 0
        #: Takes part of the node's room (an order handed ahead does not yet).
        self.has_room = False
        self.cancelling = False
        self.recalling = False
        #: It is being ended because its allocation is, for which it is not to blame; and how often it was.
        self.evicting = False
        self.cut_offs = 0
        #: Somebody wants its processes stopped.
        self.pausing = False
        #: The agent's last word, while results are collected: (reason, code).
        self.ended: tuple[str, int | None] | None = None
        self.started_at: float | None = None
        #: The agent's state folder that the order was given to; "": it was not given yet.
        self.state_id = ""
        self.story: list[tuple[float, str, str]] | None = None

    def __repr__(self) -> str:
        where = f" on {self.node.name}" if self.node is not None else ""
        return f"<{'slot request' if self.is_slot else 'execution'} {self.x} attempt {self.attempt}: {self.state}{where}>"

    @property
    def node_count(self) -> int:
        """On how many nodes it runs at once."""
        return self.shape[5]


class Gang:
    """An execution that is on several nodes at once: an item for each, of which the first is the execution itself.

    The others have ids of their own for the agents (`ID-r1`), and no place in the queue.
    """

    __slots__ = (
        "awaited",
        "goes_back",
        "is_cancelled",
        "members",
        "names",
        "running",
        "verdict",
        "why",
    )

    def __init__(self, lead: Item, nodes: Sequence[Node]) -> None:
        self.members = [lead]
        lead.gang = self
        for rank in range(1, len(nodes)):
            member = copy.copy(lead)
            member.x = rank_id(lead.x, rank)
            member.rank = rank
            member.group = None
            member.story = None
            self.members.append(member)
        #: Of its nodes, by rank; also when some are left already.
        self.names = tuple(node.name for node in nodes)
        #: How many have not ended.
        self.running = len(nodes)
        #: Of the first that did not succeed: (reason, code, why).
        self.verdict: tuple[str, int | None, str] | None = None
        #: A node could not be told of it, which is nobody's failure: it is tried elsewhere.
        self.goes_back = False
        #: A person wants its end.
        self.is_cancelled = False
        #: Ids of those whose results are on the way.
        self.awaited: set[str] = set()
        #: Why results are not here.
        self.why = ""

    @property
    def is_over(self) -> bool:
        """Whether all have ended."""
        return not self.running

    @property
    def is_said(self) -> bool:
        """Whether an agent was told of it."""
        return any(member.state_id for member in self.members)


class Node:
    """One node, its link and what is on it."""

    __slots__ = (
        "ahead",
        "allocation",
        "cpus",
        "down_at",
        "ever_open",
        "failures",
        "free_cpus",
        "free_gpus",
        "free_memory",
        "gpu_room",
        "gpus",
        "host",
        "is_granted",
        "is_leaving",
        "items",
        "last_end",
        "link",
        "low_water",
        "machine",
        "memory_bytes",
        "name",
        "number",
        "rate",
        "retry_at",
        "since",
        "state",
        "state_id",
        "story",
        "until",
        "why",
    )

    def __init__(self, name: str, host: str, number: int, allocation: Allocation | None = None) -> None:
        self.name = name
        self.host = host
        self.number = number
        #: It came with an allocation, and goes with it; which one: None, when that is over or it is there for good.
        self.is_granted = allocation is not None
        self.allocation = allocation
        #: What its host calls it. The same machine that comes with another allocation is another node.
        self.machine = name
        #: What is placed on it has to be over by then; infinite: it is there for good.
        self.until = math.inf
        #: Nothing more is placed on it: its allocation is about to be over, or is.
        self.is_leaving = False
        self.state = "UNKNOWN"
        self.link = "CLOSED"
        #: Out of reach since then, through however many tries; None: it is not, or nothing of ours is there.
        self.down_at: float | None = None
        self.cpus = self.memory_bytes = self.gpus = 0
        self.free_cpus = self.free_memory = 0
        self.gpu_room = Gpus()
        #: `gpu_room.free`.
        self.free_gpus: float = 0
        self.state_id = ""
        #: {id: item} of everything staging, placed, running, paused or collecting here.
        self.items: dict[str, Item] = {}
        #: Orders handed ahead of free room, oldest first.
        self.ahead: OrderedDict[str, Item] = OrderedDict()
        #: With so many orders ahead, or fewer, it takes more.
        self.low_water = 0
        self.failures = 0
        self.ever_open = False
        self.retry_at: float | None = None
        self.since = 0.0
        self.why = ""
        #: Ends per second, a moving average; 0: not known.
        self.rate = 0.0
        self.last_end: float | None = None
        self.story: list[tuple[float, str, str]] = []

    def __repr__(self) -> str:
        return f"<node {self.name}: {self.state}, link {self.link}, {self.free_cpus} of {self.cpus} cores free, {len(self.items)} here>"

    @property
    def is_usable(self) -> bool:
        """Whether orders can be given to it just now."""
        return self.link == "OPEN" and self.state == "USABLE"

    @property
    def is_open(self) -> bool:
        """Whether something may be placed on it."""
        return self.link == "OPEN" and self.state == "USABLE" and not self.is_leaving

    def takes(self, item: Item) -> bool:
        """Whether it would start at once: there is room, and no order before it."""
        return not self.ahead and self.fits(item)

    def take_gpus(self, item: Item) -> None:
        """They are its own, or a share of one is."""
        self.gpu_room.take(item.x, item.gpus)
        self.free_gpus = self.gpu_room.free

    def give_gpus_back(self, item: Item) -> None:
        """They are free again."""
        self.gpu_room.give_back(item.x, item.gpus)
        self.free_gpus = self.gpu_room.free

    def could_ever(self, item: Item) -> bool:
        """Whether the empty node would have room."""
        return item.cpus <= self.cpus and item.memory_bytes <= self.memory_bytes and item.gpus <= self.gpus

    def fits(self, item: Item) -> bool:
        """Whether there is room now."""
        return (
            item.cpus <= self.free_cpus
            and item.memory_bytes <= self.free_memory
            and item.gpus <= self.free_gpus
        )


class Cluster:
    """A host whose nodes come in allocations."""

    __slots__ = (
        "avoided",
        "ended",
        "failures",
        "is_refused",
        "least_nodes",
        "most",
        "most_nodes",
        "name",
        "retry_at",
        "room",
        "starts",
        "useless",
        "wait_s",
        "walltime_s",
        "why",
    )

    def __init__(self, event: ev.ClusterAdded) -> None:
        self.name = event.cluster
        #: Nodes of one allocation, at least and at most, and allocations at a time, at most.
        self.least_nodes = event.least
        self.most_nodes = event.nodes
        self.most = event.most
        #: Machines that could not be used, in order.
        self.avoided: dict[str, None] = {}
        self.walltime_s = event.walltime_s
        #: (cores, bytes of memory, GPUs) of one node, as told or as its first nodes had it; None: not known yet.
        self.room: tuple[int, int, int] | None = (
            (event.cpus, event.memory_bytes, event.gpus) if event.cpus else None
        )
        #: Requests that failed one after the other, and when the next may be made; None: at once.
        self.failures = 0
        self.retry_at: float | None = None
        #: Allocations in a row that had no node that could be used.
        self.useless = 0
        #: It takes no request until a person has done something.
        self.is_refused = False
        #: What the batch system said last against a request.
        self.why = ""
        #: How long allocations waited in its queue, a moving average; None: none was granted yet.
        self.wait_s: float | None = None
        #: Allocations that are over.
        self.ended = 0
        #: {id: how often an allocation with that id became active}; batch systems start one again, and give ids again.
        self.starts: dict[str, int] = {}

    def change(self, event: ev.ClusterAdded) -> None:
        """Ask for other allocations from now on."""
        self.least_nodes = event.least
        self.most_nodes = event.nodes
        self.most = event.most
        self.walltime_s = event.walltime_s
        self.is_refused = False
        self.retry_at = None

    def __repr__(self) -> str:
        return f"<cluster {self.name}: at most {self.most} x {self.most_nodes} nodes, {self.ended} allocations over>"


class Allocation:
    """Nodes of a cluster that were asked for, until they are over."""

    __slots__ = (
        "active_at",
        "cluster",
        "deadline",
        "id",
        "idle_since",
        "is_held",
        "is_lent",
        "is_releasing",
        "is_soft",
        "name",
        "node_count",
        "nodes",
        "occupied",
        "requested_at",
        "room",
        "state",
        "stop_at",
        "story",
        "walltime_s",
        "why",
    )

    def __init__(self, name: str, cluster: Cluster, node_count: int, now: float) -> None:
        self.name = name
        self.cluster = cluster
        self.state = "REQUESTED"
        #: As asked for.
        self.node_count = node_count
        self.walltime_s = cluster.walltime_s
        self.requested_at = now
        #: The batch system's word for it; "": it has not told one.
        self.id = ""
        #: Why it is not further, in the batch system's words.
        self.why = ""
        self.nodes: list[Node] = []
        #: Cores, bytes of memory and GPUs on each of its nodes that are ours; 0: not told.
        self.room = (0, 0, 0)
        #: How many of them have something of ours on them.
        self.occupied = 0
        self.active_at: float | None = None
        #: When the batch system takes it away, and when we stop placing on it.
        self.deadline = math.inf
        self.stop_at = math.inf
        #: Nobody takes it away: what runs at its deadline goes on.
        self.is_soft = False
        #: Nothing of ours is on its nodes since then, and nobody waits for them; None: it is used.
        self.idle_since: float | None = None
        #: A person holds it: it is not given back for being idle. And another client asked for it: it is not given back at all.
        self.is_held = False
        self.is_lent = False
        #: The batch system was asked to end it.
        self.is_releasing = False
        self.story: list[tuple[float, str, str]] = []

    def until(self, margin_s: float) -> float:
        """When what is on its nodes has to be over."""
        return math.inf if self.is_soft else self.deadline - margin_s

    def __repr__(self) -> str:
        return f"<allocation {self.name} ({self.id or 'no id'}) of {self.cluster.name}: {self.state}, {self.node_count} nodes>"
