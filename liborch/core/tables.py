"""Every state and every edge, on one screen.

Execution (also a slot request: an execution without a command, which ends when it is given back)

* WAITING     in the queue; `explain` says what for
* STAGING     a node is chosen; files are on the way to it
* PLACED      the node's agent has the order in its queue, or is being told
* RUNNING     the agent started it (for a slot request: the room is held)
* PAUSED      its processes are stopped
* COLLECTING  it ended; results are on the way back. One of several nodes' (a rank's): it ended there, and the others are waited
              for before anything is brought; only then may it be lost or tried again
* SUCCEEDED, FAILED, CANCELLED, LOST: final, never changed. Why is a field of the verdict.

"Unreachable" is no state: what we cannot see has not failed. "Being cancelled" is none either: it is a wish, carried out when
the node says so.

Link (to a node's agent)

* CLOSED      nobody asked for it yet
* CONNECTING  being opened
* OPEN        events and orders flow; opened once more when the node's keeper was replaced meanwhile
* BROKEN      torn; tried again at `retry_at`
* REFUSED     will not get better by trying (host key, login, no such host): final until a person acts

Node

* UNKNOWN     its room is not known yet: its link was never open
* USABLE      room known; what is placed on it is placed
* LOST        given up: everything on it is lost

Allocation (nodes of a cluster that a batch system gives for a time)

* REQUESTED   the batch system is being asked; whether it has heard of it is not known
* QUEUED      it is in the batch system's queue
* ACTIVE      its nodes are ours
* DRAINING    its nodes are ours, nothing more is placed on them: its time is nearly over, or nobody needs it
* ENDED       over: its nodes are given up
* REFUSED     it never was: the batch system said no

"Being released" is a wish, as being cancelled is.
"""

from __future__ import annotations

from typing import Final

EXECUTION_TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    "WAITING": {
        "place": "PLACED",
        "stage": "STAGING",
        "cancel": "CANCELLED",
        "impossible": "FAILED",
    },
    "STAGING": {
        "staged": "PLACED",
        "stage_failed": "FAILED",
        "cancel": "CANCELLED",
        "node_lost": "WAITING",
        "rank_over": "COLLECTING",
    },
    "PLACED": {
        "started": "RUNNING",
        "pause": "PAUSED",
        "collect": "COLLECTING",
        "succeed": "SUCCEEDED",
        "fail": "FAILED",
        "cancelled": "CANCELLED",
        "lose": "LOST",
        "retry": "WAITING",
        "recalled": "WAITING",
        "refused": "FAILED",
        "node_lost": "WAITING",
        "rank_over": "COLLECTING",
    },
    "RUNNING": {
        "pause": "PAUSED",
        "collect": "COLLECTING",
        "succeed": "SUCCEEDED",
        "fail": "FAILED",
        "cancelled": "CANCELLED",
        "lose": "LOST",
        "retry": "WAITING",
        "rank_over": "COLLECTING",
    },
    "PAUSED": {
        "resume": "RUNNING",
        "collect": "COLLECTING",
        "succeed": "SUCCEEDED",
        "fail": "FAILED",
        "cancelled": "CANCELLED",
        "lose": "LOST",
        "retry": "WAITING",
        "rank_over": "COLLECTING",
    },
    "COLLECTING": {
        "succeed": "SUCCEEDED",
        "fail": "FAILED",
        "cancelled": "CANCELLED",
        "lose": "LOST",
        "retry": "WAITING",
    },
    "SUCCEEDED": {},
    "FAILED": {},
    "CANCELLED": {},
    "LOST": {},
}

LINK_TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    "CLOSED": {"connect": "CONNECTING"},
    "CONNECTING": {"opened": "OPEN", "torn": "BROKEN", "refused": "REFUSED", "restart": "CLOSED"},
    "OPEN": {"opened": "OPEN", "torn": "BROKEN", "refused": "REFUSED", "restart": "CLOSED"},
    "BROKEN": {"connect": "CONNECTING", "refused": "REFUSED", "restart": "CLOSED"},
    "REFUSED": {"restart": "CLOSED"},
}

NODE_TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    "UNKNOWN": {"known": "USABLE", "lost": "LOST"},
    "USABLE": {"known": "USABLE", "lost": "LOST"},
    "LOST": {},
}

ALLOCATION_TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    "REQUESTED": {"queued": "QUEUED", "active": "ACTIVE", "refused": "REFUSED", "ended": "ENDED"},
    "QUEUED": {"active": "ACTIVE", "refused": "REFUSED", "ended": "ENDED"},
    "ACTIVE": {"stop": "DRAINING", "requeued": "QUEUED", "ended": "ENDED"},
    "DRAINING": {"requeued": "QUEUED", "ended": "ENDED"},
    "ENDED": {},
    "REFUSED": {},
}

FINAL: Final = frozenset(state for state, edges in EXECUTION_TRANSITIONS.items() if not edges)
#: An execution in one of these has an order at a node.
AT_NODE: Final = frozenset({"PLACED", "RUNNING", "PAUSED"})
