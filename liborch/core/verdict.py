"""Why an execution ended.

=========== ==========================================================================
exit        its own exit code
signal      a signal nobody of ours sent
oom         out of memory, from evidence
walltime    over its time limit
cancelled   somebody asked
lost        what it did cannot be known: the node restarted, its keeper was killed, the node is gone
allocation  its allocation was over before it was, through no fault of its own
node        the node could not start it: disk full, no processes left
refused     no node may run it
staging     its files could not be brought to the node
=========== ==========================================================================
"""

from __future__ import annotations

from typing import Final

REASONS: Final = (
    "exit",
    "signal",
    "oom",
    "walltime",
    "cancelled",
    "lost",
    "allocation",
    "node",
    "refused",
    "staging",
)

_STATES: Final = {"cancelled": "CANCELLED", "lost": "LOST", "allocation": "LOST"}
_EDGES: Final = {"SUCCEEDED": "succeed", "FAILED": "fail", "CANCELLED": "cancelled", "LOST": "lose"}


def final_state(reason: str, code: int | None) -> str:
    """The final state for a reason: SUCCEEDED only for exit code 0."""
    if reason == "exit" and code == 0:
        return "SUCCEEDED"
    return _STATES.get(reason, "FAILED")


def edge(state: str) -> str:
    """The edge that leads to a final state."""
    return _EDGES[state]


def asks_retry(retry_on: tuple[str, ...], reason: str, code: int | None) -> bool:
    """Whether a policy wants another attempt after this end. What succeeded is never tried again."""
    if final_state(reason, code) == "SUCCEEDED":
        return False
    return reason in retry_on or (reason == "exit" and f"exit:{code}" in retry_on)
