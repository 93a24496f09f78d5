"""What the keeper knows on record: who was told what, what was claimed, which segments of the log are still needed.

Everything that must survive a kill goes through here onto the log (`log.py`). Each segment begins with a line that lets
it stand alone once older ones are dropped::

    ["S", last event number, [cores, memory bytes] or null, {owner: [acknowledged, last seen by the wall clock]}]

When the disk takes no more, not even the reserve, lines wait in memory, in order: verdicts still reach clients that are
there, nothing new is started (`stuck`), and `retry` writes all of it once there is room.
"""

import collections
import json
import os
import time

try:
    from . import log, orders
except ImportError:
    import log
    import orders

key_of = orders.key_of

#: An absent owner's executions are ended and its events dropped after so many seconds.
OWNER_LEASE_S = 7 * 86400.0
#: What belongs to an owner that has been away for so long when a keeper starts is dropped.
OWNER_KEPT_S = 60 * 86400.0
#: Events are gathered for so long, in seconds, while more work is queued: one message for many, and no slot waits for it.
GATHER_S = 0.004
#: The same while so many times more is queued than there is to tell: it is far from running dry.
GATHER_LONG_S = 0.025
GATHER_SHARE = 4
GATHER_MOST = 64

#: More events than a keeper tells in its life while its disk takes nothing.
UNRECORDED = 1 << 32

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Owner:
    """One client-side orchestration, as the node knows it."""

    __slots__ = ("acked", "ended", "last_event", "lease_s", "seen_at", "seen_wall")

    def __init__(self):
        self.acked = 0
        #: (event number, key) of ends not yet acknowledged, in order.
        self.ended = collections.deque()
        self.last_event = 0
        self.seen_at = time.monotonic()
        self.seen_wall = time.time()
        self.lease_s = OWNER_LEASE_S

    def saw(self):
        """It is there now."""
        self.seen_at = time.monotonic()
        self.seen_wall = time.time()


class Past:
    """What the log says of the time before this keeper."""

    def __init__(self):
        #: {key: order}: accepted, not ended.
        self.orders = collections.OrderedDict()
        #: {key: (slot, boot id)}: claimed, not ended.
        self.claims = {}
        #: Keys of holds that were granted and not given back.
        self.held = collections.OrderedDict()


class Ledger:
    """See the module's text. `read` first, then `begin`."""

    def __init__(self, folder):
        self.folder = folder
        self.log = None
        self.event_number = 0
        self.owners = {}
        #: Keys that must never start (again).
        self.claimed = set()
        #: [cores, memory bytes] that clients said this node has, or None.
        self.capacity = None
        #: {segment number: {"last": {owner: its last event there}, "open": orders there that have not ended}}
        self.segments = {}
        #: {key: segment number} of every order that has not ended.
        self.segment_of = {}
        #: (owner, number, text, [x, attempt] of one that ended) of events not yet sent to the talker.
        self.unsent = []
        self.unsent_since = 0.0
        #: errno of the failure to write, 0 while all is well.
        self.stuck = 0
        self._backlog = []
        #: Keys of orders that came since then: no log holds them.
        self.unrecorded = set()
        #: Messages by which orders that are on record shall not start: kept until that can be put on record, too.
        self.put_off = []

    def __repr__(self):
        return "<Ledger %s: %d events, %d segments%s>" % (
            self.folder,
            self.event_number,
            len(self.segments),
            ", stuck" if self.stuck else "",
        )

    # ---------------------------------------------------------------- reading

    def read(self):
        """Take in the log of earlier keepers; returns the Past."""
        past = Past()
        state = {"boot": None, "wall": 0.0}
        for number in log.segments(self.folder):
            self.segments[number] = {"last": {}, "open": 0}
            for line in log.read_lines(self.folder, number):
                try:
                    self._read_line(line, number, past, state)
                except (ValueError, IndexError, KeyError, TypeError, AttributeError):
                    continue  # a line that a damaged disk made up
        for owner in self.owners.values():
            self._forget_claims(owner)
        return past

    def _read_line(self, line, number, past, state):
        kind = line[0]
        if isinstance(kind, int):
            n, name, what, x, attempt, _detail = line
            self.event_number = max(self.event_number, n)
            self.segments[number]["last"][name] = n
            owner = self._known(name, state)
            owner.last_event = max(owner.last_event, n)
            key = key_of(x, attempt)
            if what == "ended":
                self.claimed.add(key)
                owner.ended.append((n, key))
            if what == "held":
                past.held[key] = True
            elif what in ("ended", "recalled", "refused", "unheld"):
                past.held.pop(key, None)
                past.claims.pop(key, None)
                if past.orders.pop(key, None) is not None:
                    self.close_order(key)
        elif kind == "O":
            self._known(line[1], state)
            for order in orders.unfold(line[1], line[2], line[3]):
                key = key_of(order["x"], order["a"])
                if key not in self.claimed and key not in past.orders:
                    past.orders[key] = order
                    self._open_order(key, number)
        elif kind == "C":
            key = key_of(line[1], line[2])
            self.claimed.add(key)
            past.claims[key] = (line[3], state["boot"])
        elif kind == "A":
            owner = self._known(line[1], state)
            owner.acked = max(owner.acked, line[2])
        elif kind == "F":
            self.forget(line[1])
        elif kind == "B":
            state["boot"], state["wall"] = line[1], float(line[2])
        elif kind == "S":
            self.event_number = max(self.event_number, line[1])
            self.capacity = line[2]
            for name, (acked, seen_wall) in line[3].items():
                owner = self._known(name, state)
                owner.acked = max(owner.acked, acked)
                owner.last_event = max(owner.last_event, acked)
                owner.seen_wall = seen_wall

    def _known(self, name, state):
        owner = self.owner(name)
        owner.seen_wall = state["wall"]
        return owner

    def begin(self, boot):
        """Open the log for writing. Raises OSError."""
        if self.segments:
            # What an earlier keeper told while its disk was full is on no log. Clients drop a number they heard before: none of
            # those is used again, also when that keeper could not even put on record where it began.
            self.event_number = max(self.event_number + UNRECORDED, int(time.time() * 1e6))
        self.log = log.Log(self.folder)
        if self.log.number not in self.segments:
            self.segments[self.log.number] = {"last": {}, "open": 0}
        # On the log this also parts the lives of two keepers.
        self._write(["B", boot, time.time()])
        self._write(self._head())
        long_ago = time.time() - OWNER_KEPT_S
        for name, owner in list(self.owners.items()):
            if 0 < owner.seen_wall < long_ago:
                self.write_forget(name)
        self.drop_segments()

    # ---------------------------------------------------------------- writing

    def _head(self):
        known = {name: [owner.acked, round(owner.seen_wall)] for name, owner in self.owners.items()}
        return ["S", self.event_number, self.capacity, known]

    def _write(self, line):
        """Put one line on the log; returns it as it stands there."""
        text = _encode(line).encode("ascii")
        if self.stuck:
            self._backlog.append(text)
            return text
        try:
            self.log.append(text + b"\n")
        except OSError as error:
            self.stuck = error.errno or 5
            self._backlog.append(text)
            return text
        if self.log.is_full:
            self._rotate()
        return text

    def _rotate(self):
        try:
            number = self.log.rotate()
        except OSError:
            return  # It grows on; the next line tries again.
        self.segments[number] = {"last": {}, "open": 0}
        self._write(self._head())

    def retry(self):
        """Write what waits in memory, as far as the disk takes it."""
        if not self.stuck:
            return
        at = 0
        try:
            while at < len(self._backlog):
                self.log.append(self._backlog[at] + b"\n")
                at += 1
            self.stuck = 0
            self.unrecorded.clear()
        except OSError as error:
            self.stuck = error.errno or 5
        del self._backlog[:at]

    def unwritten(self, owner):
        """Return (number, text, None) of an owner's events that no log holds yet."""
        found = []
        for text in self._backlog:
            line = json.loads(text.decode("ascii"))
            if isinstance(line[0], int) and line[1] == owner:
                found.append((line[0], text, None))
        return found

    def why_stuck(self):
        """What stands in the way, for people."""
        return "%s: %s" % (self.folder, os.strerror(self.stuck))

    def why_unsynced(self):
        """Why the log may not outlive a power cut, for people; "" when all is well."""
        return "%s: %s" % (self.folder, os.strerror(self.log.sync_error)) if self.log.sync_error else ""

    def event(self, name, kind, x, attempt, detail):
        """Put an event on the log, then on the way to the talker."""
        self.event_number += 1
        number = self.event_number
        self.segments[self.log.number]["last"][name] = number
        owner = self.owner(name)
        owner.last_event = number
        ended = None
        if kind == "ended":
            ended = [x, attempt]
            owner.ended.append((number, key_of(x, attempt)))
        text = self._write([number, name, kind, x, attempt, detail])
        if not self.unsent:
            self.unsent_since = time.monotonic()
        self.unsent.append((name, number, text, ended))

    def tell_at(self, queued):
        """When to tell what is unsent, with so many orders queued: a client that hands more over needs to hear of ends in time."""
        count = len(self.unsent)
        if not queued or count >= GATHER_MOST:
            return 0.0
        return self.unsent_since + (GATHER_LONG_S if queued >= GATHER_SHARE * count else GATHER_S)

    def take_unsent(self):
        """Return the events that are to be sent now, and forget them here."""
        lines, self.unsent = self.unsent, []
        return lines

    def accept(self, owner, common, items):
        """Put orders on the log."""
        number = self.log.number
        self.owner(owner)
        for item in items:
            self._open_order(key_of(item[0], item[1]), number)
        # The segment is the one before the line: writing it may begin the next.
        self._write(["O", owner, common, items])
        if self.stuck:
            self.unrecorded.update(key_of(item[0], item[1]) for item in items)

    def puts_off(self, key, message):
        """Whether a message that takes an order from the queue has to wait; it is carried out later then.

        A keeper that is killed is followed by one that goes on with what is on record. A client that was told that an order
        does not start may have given it to another node.
        """
        waits = bool(self.stuck) and key in self.segment_of and key not in self.unrecorded
        if waits:
            x, attempt = key.rsplit(".", 1)
            self.put_off.append({**message, "ids": [[x, int(attempt)]]})
        return waits

    def may_go(self, order):
        """Whether an order may leave the queue. While nothing can be put on record, what is there stays for whoever comes next."""
        return not self.stuck or key_of(order["x"], order["a"]) in self.unrecorded

    def take_put_off(self):
        """Return the messages that can be carried out now, and forget them."""
        messages, self.put_off = ([], self.put_off) if self.stuck else (self.put_off, [])
        return messages

    def claim(self, x, attempt, slot):
        """Say, before a process exists, that this attempt is started."""
        self.claimed.add(key_of(x, attempt))
        self._write(["C", x, attempt, slot])

    def knows(self, key):
        """Whether an attempt was accepted or must not start."""
        return key in self.claimed or key in self.segment_of

    def _open_order(self, key, number):
        self.segment_of[key] = number
        self.segments[number]["open"] += 1

    def close_order(self, key):
        """An order that ended, or was taken back, needs its segment no more."""
        number = self.segment_of.pop(key, None)
        if number is not None and number in self.segments:
            self.segments[number]["open"] -= 1

    def set_capacity(self, cpus, memory_bytes):
        """Remember what clients said this node has."""
        capacity = [cpus or 0, memory_bytes or 0] if cpus or memory_bytes else None
        if capacity != self.capacity:
            self.capacity = capacity
            self._write(self._head())

    # ---------------------------------------------------------------- owners

    def owner(self, name):
        """Return what is known of an owner, from now on if need be."""
        found = self.owners.get(name)
        if found is None:
            found = self.owners[name] = Owner()
        return found

    def acknowledge(self, name, n):
        """The owner has everything up to `n`: forget it."""
        owner = self.owner(name)
        n = min(n, owner.last_event)
        if n > owner.acked:
            owner.acked = n
            self._forget_claims(owner)
            self._write(["A", name, n])
            if len(self.segments) > 1:
                self.drop_segments()

    def _forget_claims(self, owner):
        """What its owner has on record, it will not order again."""
        while owner.ended and owner.ended[0][0] <= owner.acked:
            self.claimed.discard(owner.ended.popleft()[1])

    def forget(self, name):
        """Drop an owner and what waits for it."""
        owner = self.owners.pop(name, None)
        if owner is not None:
            for _number, key in owner.ended:
                self.claimed.discard(key)

    def write_forget(self, name):
        """The same, on record."""
        self._write(["F", name])
        self.forget(name)

    def drop_segments(self):
        """Delete the oldest segments in which nobody has anything left."""
        for number in sorted(self.segments):
            if number == self.log.number:
                return
            segment = self.segments[number]
            if segment["open"] > 0:
                return
            for name, last in segment["last"].items():
                if name in self.owners and self.owners[name].acked < last:
                    return
            try:
                self.log.remove(number)
            except OSError:
                return
            del self.segments[number]

    def close(self):
        """Sync and let go."""
        self.retry()
        self.log.close()
