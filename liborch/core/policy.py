"""How an orchestration is told to behave. Part of its history: another policy would have decided otherwise."""

from __future__ import annotations

import msgspec


class Policy(msgspec.Struct, frozen=True):
    """How an orchestration behaves. Times in seconds."""

    #: Longest wait before the n-th try to open a link is base * 2**n, at most the cap; the wait is drawn evenly below it.
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 30.0
    #: A node that was never reached is refused after so many tries; one that was reached once is tried for ever.
    first_attempts: int = 5
    #: What is on a node that was out of reach for so long is lost, while another node can be reached; None: never.
    give_up_s: float | None = None
    #: Orders handed ahead of free slots are meant to last so long.
    ahead_s: float = 0.25
    #: Most orders handed ahead per node.
    ahead_most: int = 2000
    #: Orders ahead are recalled for a free node when they would wait longer than this.
    recall_after_s: float = 0.5
    #: An allocation that nobody has used for so long is given back.
    idle_s: float = 60.0
    #: Before the end of its allocation an execution is asked to end so long, and is gone (`cut_margin_s`) for certain.
    cut_grace_s: float = 10.0
    cut_margin_s: float = 5.0
    #: A node whose allocation is over is given up when it was out of reach for so long.
    leave_s: float = 10.0
    #: An execution that allocations cut off so often, one after the other, is not begun again.
    cut_offs_most: int = 3
    #: A cluster is of no use when so many allocations in a row had no node that could be used.
    useless_most: int = 3
    #: Longest wait before a batch system that refused for now is asked again; drawn as for links.
    request_cap_s: float = 60.0
    #: What allocations are needed is thought over so long after something changed.
    review_s: float = 0.25
