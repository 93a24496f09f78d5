"""Owners who are away: what is theirs ends when they stay away for too long, or when the node is about to be taken from them.

A client that is there decides by itself what would not be over before its allocation is, and knows better. One that is away
cannot, and the batch system ends everything at once: so it says beforehand how long the node is its (`depart`), and what
runs has its grace. What ends this way has the reason `allocation`: it is tried again, and costs no retry.
"""

import time

#: How often it is looked whether a client is there still, once it would have to act; and how soon at the earliest: a talker
#: that has just come has yet to say who is there.
LOOK_S = 0.5


class Absence:
    """See the module's text."""

    def __init__(self, owners, timers, is_present, leave):
        """`owners`: the ledger's. `is_present(name)`: whether its client is there. `leave(name, reason, why, grace_s)` ends what is
        an owner's (`grace_s` None: each with its own grace) and returns whether nothing is left to wait for, to forget it."""
        self._owners = owners
        self._timers = timers
        self._is_present = is_present
        self._leave = leave
        self._departures = {}
        self._expiry = timers.at(0.0, self.expire)

    def expire(self):
        """End what belongs to owners whose lease ran out, and look again in time for the next."""
        self._timers.cancel(self._expiry)
        now = time.monotonic()
        shortest = 60.0
        for name, owner in list(self._owners.items()):
            if self._is_present(name):
                owner.saw()
            elif now - owner.seen_at > owner.lease_s:
                why = "its owner stayed away for %d s" % owner.lease_s
                if self._leave(name, "cancelled", why, None):
                    continue
            shortest = min(shortest, owner.lease_s)
        self._expiry = self._timers.at(max(0.1, shortest / 2), self.expire)

    def depart(self, name, left_s, grace_s):
        """What is an owner's has to be gone in `left_s` seconds; it is asked `grace_s` before. The last word counts."""
        entry = self._departures.pop(name, None)
        if entry is not None:
            self._timers.cancel(entry)
        self._wait(name, max(LOOK_S, left_s - grace_s), time.monotonic() + left_s)

    def _wait(self, name, delay_s, gone_by):
        self._departures[name] = self._timers.at(delay_s, lambda: self._look(name, gone_by))

    def _look(self, name, gone_by):
        del self._departures[name]
        left_s = max(0.0, gone_by - time.monotonic())
        if not self._is_present(name):
            self._leave(name, "allocation", "its allocation was about to be over", left_s)
        if left_s:
            self._wait(name, min(LOOK_S, left_s), gone_by)
