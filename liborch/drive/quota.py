"""What a batch system lets one person ask for: known by its own answer, which is asked for once, when it first matters.

Whoever submits more than may be in the queue is refused, again and again; so no more is submitted than there is room for. What
others of the same person's commands have there is not counted: then the refusal says it. A request that can never begin is
explained by the limit it is over.
"""

from __future__ import annotations

from liborch.batch_systems.base import Limits, Request
from liborch.quantities import format_duration


class Quota:
    """The limits of one batch system, for one kind of request."""

    def __init__(self, system: str) -> None:
        self._system = system
        #: None: not asked for yet.
        self.limits: Limits | None = None
        self._is_told = False

    def __repr__(self) -> str:
        return f"<Quota {self._system}: {self.limits}>"

    def has_room_beside(self, queued: int) -> bool:
        """Whether another one may be in the queue beside so many. The first is always tried: its refusal says best what is wrong."""
        most = self.limits.most_submitted if self.limits is not None else None
        has_room = most is None or queued < max(1, most)
        if has_room:
            self._is_told = False
        return has_room

    def news(self) -> str:
        """What people are told of a full queue, the first time; "" afterwards, until there was room again."""
        if self._is_told or self.limits is None:
            return ""
        self._is_told = True
        source = self.limits.sources.get("most_submitted", self._system)
        most = self.limits.most_submitted
        return f"{source} lets {most} be in the queue; the next is asked for when one of them is over"

    def exceeded_by(self, request: Request) -> str:
        """Every limit on one allocation that a request is over, each after "; ", and what to change; "": none is known."""
        limits = self.limits or Limits()
        found = []
        longest = limits.most_walltime_s
        if longest is not None and request.walltime_s is not None and request.walltime_s > longest:
            source = limits.sources.get("most_walltime_s", self._system)
            found.append(
                f"{source} is {format_duration(longest)}, asked for are {format_duration(request.walltime_s)}: "
                "say less in the profile's `allocation: {walltime: ...}`"
            )
        if limits.most_nodes is not None and request.nodes > limits.most_nodes:
            source = limits.sources.get("most_nodes", self._system)
            found.append(
                f"{source} is {limits.most_nodes}, asked for are {request.nodes}: "
                "say less in the profile's `allocation: {nodes: ...}`"
            )
        return "".join(f"; {each}" for each in found)
