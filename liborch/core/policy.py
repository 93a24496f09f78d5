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
