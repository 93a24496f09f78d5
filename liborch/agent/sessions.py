"""One client on one channel: its greeting, its messages, the events it is owed, its streams.

Events are sent in order of their numbers; a client that reads too slowly is marked as lagging and served from the log
again once its buffer has drained. Only well-formed messages go on to the keeper: what nobody understands ends the session
that sent it, and no other.
"""

import array
import fcntl
import json
import os
import re
import select
import socket
import sys
import time

try:
    from . import followers, frames, log, node, orders, passages
except ImportError:
    import followers
    import frames
    import log
    import node
    import orders
    import passages

#: Version of the conversation on stream 0.
PROTOCOL = 1
#: A session with more bytes than this waiting to be written gets no more for now.
HIGH_WATER = 8 << 20
#: One that asks on without reading the answers is ended.
UNREAD_MOST = 32 << 20
#: Largest greeting of a relay: the environment of a login.
GREETING_MOST = 16 << 20
#: Seconds a relay may take over its greeting.
GREETING_S = 10.0
#: Bytes a channel's pipe shall hold: a large transfer wakes sshd and us a fourth as often as with Linux's 64 KiB. More is
#: for root only. The name of the call is not in Python before 3.10.
PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031

#: Messages that the keeper carries out, and the fields that name attempts in them.
_FOR_KEEPER = {
    "order": "orders",
    "recall": "ids",
    "cancel": "ids",
    "pause": "ids",
    "resume": "ids",
    "drop": "ids",
    "ack": None,
    "depart": None,
    "unhold": None,
    "signal": None,
    "forget": None,
}
_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")


def _widen(fd):
    """Give a pipe PIPE_BYTES of room. Fine when it is none, or a person's share of such room is used up."""
    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass


class Greeting:
    """A relay that has not yet handed over its channel. Never waited for: another client may be talking."""

    def __init__(self, talker, line):
        self.talker = talker
        self.line = line
        self.until = time.monotonic() + GREETING_S
        self._fds = array.array("i")
        self._text = b""
        line.setblocking(False)
        talker.greetings.add(self)
        talker.watch(line.fileno(), select.EPOLLIN, self._on_line)

    def _on_line(self, _mask):
        try:
            data, ancillary, _flags, _address = self.line.recvmsg(1 << 18, socket.CMSG_SPACE(4 * 2))
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._fds.frombytes(payload[: len(payload) - len(payload) % self._fds.itemsize])
        self._text += data
        size = int.from_bytes(self._text[:4], "big") if len(self._text) >= 4 else 0
        if not data or size > GREETING_MOST or len(self._fds) > 2:
            self.close()
        elif len(self._text) >= 4 + size:
            self._finish(self._text[4 : 4 + size])

    def _finish(self, text):
        try:
            greeting = json.loads(text.decode("ascii"))
            environment = greeting["env"]
            self.talker.ends_with_login |= bool(greeting.get("ends_with_login"))
            fd_in, fd_out = self._fds
            for fd in (fd_in, fd_out):
                os.set_blocking(fd, False)
            session = Session(self.talker, self.line, fd_in, fd_out, environment)
        except (OSError, ValueError, KeyError, TypeError):
            # For instance a channel that is a plain file: nothing can be waited for there.
            self.close()
            return
        self.talker.greetings.discard(self)
        self._fds = array.array("i")
        session.send(0, session.hello())

    def close(self):
        """Hang up."""
        self.talker.greetings.discard(self)
        self.talker.unwatch(self.line.fileno())
        self.line.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = array.array("i")


class Session:
    """See the module's text. Takes the descriptors over once it was made; raises OSError when they cannot be waited for."""

    def __init__(self, talker, line, fd_in, fd_out, environment):
        self.talker = talker
        self.line = line
        self.fd_in = fd_in
        self.fd_out = fd_out
        self.environment = environment
        self.decoder = frames.Decoder()
        self.out = bytearray()
        self.owner = None
        self.attach_message = None
        #: When the node is not its owner's any more, and with how much grace; for a keeper that was started anew.
        self.departure = None
        self.last_sent = 0
        self.live = False
        self.lagging = False
        self.followers = {}
        self.passages = {}
        self.is_closed = False
        self._wants_write = False
        for fd in (fd_in, fd_out):
            _widen(fd)
        talker.watch(fd_in, select.EPOLLIN, self._on_in)
        try:
            talker.watch(fd_out, 0, self._on_out)
        except OSError:
            talker.unwatch(fd_in)
            raise
        talker.unwatch(line.fileno())
        talker.watch(line.fileno(), select.EPOLLIN, self._on_relay)
        talker.sessions[fd_in] = self

    def __repr__(self):
        return "<Session %s: %d bytes waiting>" % (self.owner, len(self.out))

    def hello(self):
        """Who we are."""
        return {
            "t": "hello",
            "protocol": PROTOCOL,
            "hash": self.talker.code_hash,
            "state_id": self.talker.state_id,
            "boot_id": node.boot_id(),
            "node": node.name(),
            "python": "%d.%d.%d" % sys.version_info[:3],
            "home": self.environment.get("HOME", "/"),
            "user": self.environment.get("USER", ""),
            "clock": time.time(),
            "pid": os.getpid(),
            "folder": self.talker.folder,
            # Whoever started this one was told that nothing outlives its login.
            "ends_with_login": self.talker.ends_with_login,
        }

    # ---------------------------------------------------------------- bytes

    def _on_relay(self, _mask):
        """The relay sleeps until we hang up: that it ended means that its channel did.

        Somebody may hold the other end of it still, and wait for us to let go of this one: what runs a step of a batch system.
        """
        try:
            if self.line.recv(16):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        # What was said before is heard; it is no more than what a pipe holds.
        left = select.poll()
        left.register(self.fd_in, select.POLLIN)
        for _ in range(64):
            if self.is_closed or not left.poll(0):
                break
            self._on_in(select.EPOLLIN)
        self.close()

    def _on_in(self, _mask):
        try:
            data = os.read(self.fd_in, PIPE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for stream, raw, body, _size in self.decoder.feed(data):
                if stream == 0:
                    self._on_message(frames.parse_head(raw))
                else:
                    self._on_stream(stream, raw, body)
                if self.is_closed:
                    return
        except (
            frames.FrameError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
        ) as error:
            self.send(0, {"t": "error", "why": "not understood: %.300r" % (error,)})
            self.close()

    def _on_out(self, mask):
        self._write()
        if mask & (select.EPOLLERR | select.EPOLLHUP):
            self.close()

    @property
    def has_room(self):
        """Whether more may be put on its way."""
        return len(self.out) < HIGH_WATER

    def send(self, stream, head, body=b""):
        """Send one frame."""
        self.send_raw(frames.encode(stream, head, body))

    def send_raw(self, data):
        """Send whole frames."""
        if self.is_closed:
            return
        self.out += data
        self._write()
        if len(self.out) > UNREAD_MOST:
            self.close()

    def _write(self):
        if self.is_closed:
            return
        try:
            while self.out:
                sent = os.write(self.fd_out, memoryview(self.out)[: 1 << 18])
                del self.out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.out = bytearray()
        if bool(self.out) != self._wants_write:
            self._wants_write = bool(self.out)
            self.talker.poll.modify(self.fd_out, select.EPOLLOUT if self._wants_write else 0)
        if len(self.out) < HIGH_WATER // 2:
            if self.lagging:
                self.lagging = False
                self._replay()
            for passage in list(self.passages.values()):
                passage.set_mask()

    def close(self):
        """End the session; executions go on. Safe to call twice."""
        if self.is_closed:
            return
        self.is_closed = True
        self.talker.sessions.pop(self.fd_in, None)
        for passage in list(self.passages.values()):
            passage.close()
        for follower in self.followers.values():
            follower.close()
        self.followers = {}
        self.talker.unwatch(self.line.fileno())
        for fd in (self.fd_in, self.fd_out):
            self.talker.unwatch(fd)
            os.close(fd)
        self.line.close()
        self.talker.session_ended()

    # ---------------------------------------------------------------- messages

    def _on_message(self, head):
        kind = head["t"]
        if kind in _FOR_KEEPER:
            self._pass_on(kind, head)
        elif kind == "attach":
            if not isinstance(head["owner"], str) or not head["owner"]:
                raise ValueError("no owner: %.80r" % (head["owner"],))
            head["ack"] = int(head.get("ack") or 0)
            # An owner speaks through one session. What an older one still had to say may be out of date by now: an order that
            # was recalled since must not come in late.
            for other in list(self.talker.sessions.values()):
                if other is not self and other.owner == head["owner"]:
                    other.close()
            self.owner = head["owner"]
            self.attach_message = head
            self.last_sent = max(self.last_sent, head["ack"])
            self.attach()
            self.talker.tell_present()
        elif kind == "open":
            self._open(head)
        elif kind == "ping":
            self.send(0, {"t": "pong", "clock": time.time(), "at": head.get("at")})
        elif kind == "probe":
            self.send(0, dict(node.probe(head["path"]), t="probe"))
        elif kind == "expand":
            self.send(0, {"t": "expanded", "texts": [self.expand(text) for text in head["texts"]]})
        elif kind in ("status", "retire"):
            self.talker.ask_keeper({"t": kind}, self._answered)
        elif kind == "bye":
            self.close()
        else:
            raise ValueError("unknown message %.80r" % (kind,))

    def _pass_on(self, kind, head):
        if self.owner is None:
            raise ValueError("%s before attach" % kind)
        named = _FOR_KEEPER[kind]
        if named is not None:
            orders.check_ids(head[named])
        if kind == "order":
            if not isinstance(head.get("common") or {}, dict) or not all(
                type(item[2]) is dict for item in head["orders"]
            ):
                raise ValueError("no orders")
            if not isinstance((head.get("common") or {}).get("env") or {}, dict):
                raise ValueError("no environment")
        elif kind == "ack":
            head["n"] = self.attach_message["ack"] = int(head["n"])
        elif kind == "unhold":
            orders.check_ids([(head["lease"], 1)])
        elif kind == "signal":
            orders.check_ids([(head["x"], head["a"])])
            head["number"] = int(head["number"])
        elif kind == "cancel" and head.get("grace") is not None:
            head["grace"] = float(head["grace"])
        elif kind == "depart":
            self.departure = (time.monotonic() + float(head["left"]), float(head["grace"]))
            self._tell_departure()
            return
        head["owner"] = self.owner
        self.talker.tell_keeper(head)

    def _answered(self, reply, _fd):
        if reply["t"] == "retiring" and reply["yes"]:
            self.talker.retiring = True
        reply.pop("req", None)
        self.send(0, reply)

    def expand(self, text):
        """Fill the login's variables into a folder's name, as its shell would: `$HOME/x`, `~/x`."""
        home = self.environment.get("HOME", "/")
        if text == "~" or text.startswith("~/"):
            text = home + text[1:]
        text = _VARIABLE.sub(lambda match: self.environment.get(match.group(1) or match.group(2), ""), text)
        return os.path.normpath(os.path.join(home, text))

    # ---------------------------------------------------------------- events

    def attach(self):
        """(Re)attach its owner at the keeper, then bring it up to date from the log."""
        given = self.attach_message
        head = {name: given[name] for name in ("owner", "ack", "capacity", "lease_s") if name in given}
        self.live = False

        def attached(reply, _fd):
            if self.is_closed:
                return
            self._replay(reply["last"])
            self.live = True
            reply.pop("req", None)
            reply["expanded"] = [self.expand(text) for text in given.get("expand", ())]
            self.send(0, reply)

        self.talker.ask_keeper(dict(head, t="attach", env=self.environment), attached)
        if self.departure is not None:
            self._tell_departure()

    def _tell_departure(self):
        at, grace_s = self.departure
        left_s = max(0.0, at - time.monotonic())
        self.talker.tell_keeper({"t": "depart", "owner": self.owner, "left": left_s, "grace": grace_s})

    def send_events(self, first, last, body):
        """Send a list of events, given as JSON text, unless the session lags: then the log serves it later."""
        if self.lagging or not self.has_room:
            self.lagging = True
        elif first > self.last_sent:
            self.last_sent = last
            self.send(0, {"t": "events"}, body)
        elif last > self.last_sent:
            # A part of it went out by a replay.
            rest = [event for event in json.loads(body.decode("ascii")) if event[0] > self.last_sent]
            self.last_sent = last
            self.send(0, {"t": "events"}, json.dumps(rest).encode("ascii"))

    def _replay(self, up_to=None):
        """Send what the log holds beyond what was sent."""
        batch = []
        size = 0
        for event in log.read_events(self.talker.folder, self.owner, self.last_sent):
            if up_to is not None and event[0] > up_to:
                break
            text = json.dumps(event).encode("ascii")
            if batch and size + len(text) > frames.MAX_BODY // 2:
                self._send_batch(batch)
                batch, size = [], 0
                if self.lagging:
                    return
            batch.append((event[0], text))
            size += len(text)
        if batch:
            self._send_batch(batch)

    def _send_batch(self, batch):
        self.send_events(batch[0][0], batch[-1][0], b"[" + b",".join(text for _, text in batch) + b"]")

    # ---------------------------------------------------------------- streams

    def _open(self, head):
        stream = head["stream"]
        if type(stream) is not int or stream <= 0 or stream in self.followers or stream in self.passages:
            raise ValueError("no new stream: %.80r" % (stream,))
        if head["kind"] == "transfer":
            try:
                self.passages[stream] = passages.Passage(self.talker, self, stream)
            except OSError as error:
                why = os.strerror(error.errno or 0)
                self.send(stream, {"t": "error", "why": why, "errno": error.errno or 0})
        else:
            follower = self.followers[stream] = followers.Follower(self.talker, self, stream, head)
            follower.look(time.monotonic())

    def _on_stream(self, stream, raw, body):
        passage = self.passages.get(stream)
        follower = self.followers.get(stream)
        if passage is not None:
            passage.on_frame(raw, body)
        elif follower is not None:
            follower.on_frame(frames.parse_head(raw), body)
