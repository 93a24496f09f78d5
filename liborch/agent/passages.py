"""A transfer's way through the talker: a worker process, and its frames in both directions, unread."""

import os
import select
import socket
import subprocess
import sys

try:
    from . import frames
except ImportError:
    import frames

#: The client never has more under way than the window; one that does breaks the protocol.
WAITING_MOST = 4 * frames.WINDOW


#: By its name an interpreter finds its library. Ours may have been named by a process that ends before we do.
_PYTHON = os.path.realpath(sys.executable)


class Passage:
    """One stream of a session, served by `worker.py`. Raises OSError when that cannot be started."""

    def __init__(self, talker, session, stream):
        self.talker = talker
        self.session = session
        self.stream = stream
        self.out = bytearray()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        environment = dict(os.environb)
        environment.update(
            (name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape"))
            for name, value in session.environment.items()
        )
        here = os.path.dirname(os.path.abspath(__file__))
        try:
            self.process = subprocess.Popen(
                [_PYTHON, "-I", "-S", os.path.join(here, "worker.py"), str(stream)],
                # This very program, also when another one lies under its name by now, or none.
                executable="/proc/self/exe" if os.path.exists("/proc/self/exe") else sys.executable,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env=environment,
                cwd=environment.get(b"HOME") or b"/",
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.line = ours
        self._mask = select.EPOLLIN
        talker.watch(ours.fileno(), self._mask, self._on_line)

    def on_frame(self, raw, body):
        """Pass a frame of the client on. Raises ValueError when it sends far more than it may."""
        pieces = [frames.HEADER.pack(frames.VERSION, self.stream, len(raw), len(body)), raw, body]
        if self.out:
            self.out += b"".join(pieces)
            if len(self.out) > WAITING_MOST:
                raise ValueError("more under way on stream %d than its window" % self.stream)
            return
        # Straight on, as far as the worker takes it: most of a gigabyte is never copied here.
        try:
            sent = self.line.sendmsg(pieces)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # Its end is read, too, and dealt with there.
        if sent < sum(map(len, pieces)):
            self.out += memoryview(b"".join(pieces))[sent:]
            self.set_mask()

    def _on_line(self, mask):
        if mask & select.EPOLLOUT:
            self._write()
        if not mask & ~select.EPOLLOUT or self.line.fileno() < 0:
            return
        try:
            data = self.line.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.session.send_raw(data)
            self.set_mask()
        else:
            self.close()
            self.session.send(self.stream, {"t": "close"})

    def _write(self):
        try:
            while self.out:
                sent = self.line.send(memoryview(self.out)[: 1 << 18])
                del self.out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.out = bytearray()
        self.set_mask()

    def set_mask(self):
        """Read from the worker only while the client takes what it says."""
        if self.line.fileno() < 0:
            return
        mask = (select.EPOLLIN if self.session.has_room else 0) | (select.EPOLLOUT if self.out else 0)
        if mask != self._mask:
            self._mask = mask
            self.talker.poll.modify(self.line.fileno(), mask)

    def close(self):
        """Hang up; the worker ends by itself."""
        self.session.passages.pop(self.stream, None)
        self.talker.unwatch(self.line.fileno())
        self.line.close()
        self.talker.leaving.append(self.process)
