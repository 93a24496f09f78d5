"""When the first in the queue that fits nowhere will have room, and who may start before it: EASY backfilling.

The first that waits, the *head*, gets a reservation: the soonest moment at which what runs is expected to have left enough
room, and what is spare beside it then. Others may pass it when that moment stays where it is: they are gone by then, or
fit into what is spare.

Room is whatever can be added, subtracted and compared, where `a <= b` says that a fits into b: a number of processors in
the replay of traces (`liborch.sim.swf_queue`), cores, memory and GPUs at once (`Room`) on a node. Where the queue is kept,
who is asked in which order and what is expected of whom is left to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Generic, Protocol, Self, TypeVar

from liborch.quantities import GPU_PARTS, format_gpus

#: The end of what nobody can tell the end of, in seconds.
FOREVER: Final = math.inf


class Amount(Protocol):
    """Room, taken or free."""

    def __add__(self, other: Self, /) -> Self: ...

    def __sub__(self, other: Self, /) -> Self: ...

    def __le__(self, other: Self, /) -> bool: ...


A = TypeVar("A", bound=Amount)


class Room:
    """Cores, memory and GPUs, of one node. GPUs are in parts (`quantities.GPU_PARTS`), since some are shared."""

    __slots__ = ("cpus", "gpu_parts", "memory_bytes")

    def __init__(self, cpus: int, memory_bytes: int, gpu_parts: int) -> None:
        self.cpus = cpus
        self.memory_bytes = memory_bytes
        self.gpu_parts = gpu_parts

    def __repr__(self) -> str:
        return (
            f"<room: {self.cpus} cores, {self.memory_bytes} bytes, {format_gpus(self.gpu_parts / GPU_PARTS)}>"
        )

    def __add__(self, other: Room) -> Room:
        return Room(
            self.cpus + other.cpus, self.memory_bytes + other.memory_bytes, self.gpu_parts + other.gpu_parts
        )

    def __sub__(self, other: Room) -> Room:
        return Room(
            self.cpus - other.cpus, self.memory_bytes - other.memory_bytes, self.gpu_parts - other.gpu_parts
        )

    def __le__(self, other: Room) -> bool:
        return (
            self.cpus <= other.cpus
            and self.memory_bytes <= other.memory_bytes
            and self.gpu_parts <= other.gpu_parts
        )


class Reservation(Generic[A]):
    """What is kept for the head of the queue."""

    __slots__ = ("begin", "spare")

    def __init__(self, begin: float, spare: A | None) -> None:
        #: When it is expected to start, in seconds; `FOREVER`: when something ends of which nobody knows when.
        self.begin = begin
        #: What is free beside it then. None: not known, since which of several ends first is not.
        self.spare = spare

    def lets_pass(self, asked: A, until: float) -> bool:
        """Whether the head starts no later for something that takes `asked` from now until `until` (`FOREVER`: nobody knows)."""
        if until <= self.begin and until != FOREVER:
            return True
        return self.spare is not None and asked <= self.spare

    def passed(self, asked: A, until: float) -> None:
        """Something was let pass, and takes its part of what is spare when it is still there then."""
        if until > self.begin and self.spare is not None:
            self.spare = self.spare - asked


def reserve(asked: A, free: A, ends: Iterable[tuple[float, A]], now: float) -> Reservation[A] | None:
    """Find the soonest moment with room for the head of the queue.

    All that is expected to end in one moment is gone in that moment. What should have ended before now and has not is
    expected to end now.

    Args:
        asked: What the head takes.
        free: What is free now.
        ends: (when it is expected to end, what it takes) of all that runs, soonest first.
        now: Seconds.

    Returns:
        None where it does not fit even when everything has ended.
    """
    if asked <= free:
        return Reservation(now, free - asked)
    rest = iter(ends)
    for end, amount in rest:
        free = free + amount
        if asked <= free:
            begin = end if end > now else now
            if begin == FOREVER:
                return Reservation(begin, None)
            for later, other in rest:
                if later > begin:
                    break
                free = free + other
            return Reservation(begin, free - asked)
    return None
