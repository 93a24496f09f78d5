"""What the machine keeps of an execution, of a gang and of a node. Fields only; `machine.py` moves them."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Sequence

from liborch.core import events as ev
from liborch.core.queue import Group, Shape, Share

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
        "ended",
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
        "cpus",
        "down_at",
        "ever_open",
        "failures",
        "free_cpus",
        "free_gpus",
        "free_memory",
        "gpus",
        "host",
        "items",
        "last_end",
        "link",
        "low_water",
        "memory_bytes",
        "name",
        "number",
        "rate",
        "retry_at",
        "since",
        "state",
        "state_id",
        "story",
        "why",
    )

    def __init__(self, name: str, host: str, number: int) -> None:
        self.name = name
        self.host = host
        self.number = number
        self.state = "UNKNOWN"
        self.link = "CLOSED"
        #: Out of reach since then, through however many tries; None: it is not, or nothing of ours is there.
        self.down_at: float | None = None
        self.cpus = self.memory_bytes = self.gpus = 0
        self.free_cpus = self.free_memory = self.free_gpus = 0
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

    def takes(self, item: Item) -> bool:
        """Whether it would start at once: there is room, and no order before it."""
        return not self.ahead and self.fits(item)

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
