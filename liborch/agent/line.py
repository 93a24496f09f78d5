"""The keeper's line to its talker: messages in, answers and events out. One talker at a time, the newest.

Nothing here is needed for work to go on. A talker that breaks the line, or does not read, is dropped: everything is in the
log, and the next one starts from there.
"""

import array
import select
import socket
import sys

try:
    from . import frames
except ImportError:
    import frames

#: A talker that leaves so many bytes unread is dropped.
UNREAD_MOST = 64 << 20
#: How long a descriptor may take to be handed over, in seconds.
HAND_OVER_S = 5.0


class Line:
    """See the module's text. `handle(head)` is called for each message; `left()` when the talker is gone."""

    def __init__(self, poll, handle, left):
        self._poll = poll
        self._handle = handle
        self._left = left
        self._socket = None
        self._decoder = None
        self._out = bytearray()
        self._wants_write = False
        #: Descriptor to be waited for, None without a talker.
        self.fd = None

    def __repr__(self):
        return "<Line: %s, %d bytes waiting>" % ("open" if self.is_open else "nobody", len(self._out))

    @property
    def is_open(self):
        """Whether there is a talker."""
        return self._socket is not None

    def take(self, connection):
        """Talk to this one from now on."""
        self.drop()
        connection.setblocking(False)
        self._socket = connection
        self._decoder = frames.Decoder()
        self._wants_write = False
        self.fd = connection.fileno()
        self._poll.register(self.fd, select.EPOLLIN)

    def drop(self):
        """Hang up. Fine when there is nobody."""
        if self._socket is None:
            return
        self._poll.unregister(self.fd)
        self._socket.close()
        self._socket = self.fd = None
        self._out = bytearray()
        self._left()

    def on_ready(self, mask):
        """The loop saw something happen on `fd`."""
        if mask & select.EPOLLOUT:
            self._write()
        if self._socket is not None and mask & ~select.EPOLLOUT:
            self._read()

    def _read(self):
        try:
            data = self._socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop()
            return
        line = self._socket
        try:
            for _stream, raw, _body, _size in self._decoder.feed(data):
                self._handle(frames.parse_head(raw))
                if self._socket is not line:
                    return
        except (frames.FrameError, KeyError, TypeError, AttributeError, ValueError) as error:
            # The talker lets nothing through that is no message, so this is a fault of ours: begin a new line.
            sys.stderr.write("keeper: bad message: %r\n" % (error,))
            sys.stderr.flush()
            self.drop()

    def reply(self, head, fd=None):
        """Answer. A descriptor travels with its frame, so what waits goes first."""
        if self._socket is None:
            return
        data = frames.encode(0, head)
        if fd is None:
            self._out += data
            self._write()
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes())]
        try:
            self._socket.settimeout(HAND_OVER_S)
            self._socket.sendall(self._out)
            self._out = bytearray()
            sent = self._socket.sendmsg([data], rights)
            self._socket.sendall(data[sent:])
            self._socket.setblocking(False)
        except OSError:
            self.drop()

    def send_events(self, lines):
        """Send (owner, number, text, [x, attempt] of one that ended) each: one message per owner.

        The text is as it is on the log, so that nobody in between parses it.
        """
        if self._socket is None or not lines:
            return
        owners = {}
        for owner, number, text, ended in lines:
            owners.setdefault(owner, []).append((number, text, ended))
        for owner, events in owners.items():
            for part in _portions(events):
                head = {"t": "events", "owner": owner, "first": part[0][0], "last": part[-1][0]}
                # Whoever follows one of these looks for its end in this very part.
                head["ended"] = [ended for _, _, ended in part if ended is not None]
                self._out += frames.encode(0, head, b"[" + b",".join(text for _, text, _ in part) + b"]")
        self._write()

    def _write(self):
        if not self._out:
            return
        try:
            sent = self._socket.send(self._out)
            del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.drop()
            return
        if len(self._out) > UNREAD_MOST:
            self.drop()
            return
        wanted = bool(self._out)
        if wanted != self._wants_write:
            self._wants_write = wanted
            self._poll.modify(self.fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))


def _portions(events):
    """Cut a list of (number, text, ended) so that each portion fits a frame."""
    part, size = [], 0
    for entry in events:
        if part and size + len(entry[1]) > frames.MAX_BODY // 2:
            yield part
            part, size = [], 0
        part.append(entry)
        size += len(entry[1]) + 1
    if part:
        yield part
