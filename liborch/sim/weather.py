"""How bad a simulated world is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weather:
    """How bad it is. Probabilities of a misfortune each time it could strike, or how many strike in the whole run."""

    cancelled: float = 0.4
    slots: float = 0.25
    paused: float = 0.06
    transfer_fails: float = 0.05
    said_twice: float = 0.1
    refused: float = 0.01
    acknowledged: float = 0.6
    tears: int = 60
    partitions: int = 10
    keeper_kills: int = 8
    reboots: int = 4
    state_losses: int = 3
    nodes_lost: int = 2
    nodes_given_up: int = 1
    crashes: int = 6
    drains: int = 2
    #: Of a batch system: commands that get no answer, or a late one; and allocations that end before they begin.
    unanswered: float = 0.03
    answered_late: float = 0.03
    never_begins: float = 0.05
    #: Active allocations taken away, machines that fail in one, times in which nothing is answered, or every request refused.
    preemptions: int = 6
    failures: int = 4
    silences: int = 2
    refusals: int = 2


CALM = Weather(
    0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0, 0, 0, 0
)  # fmt: skip
