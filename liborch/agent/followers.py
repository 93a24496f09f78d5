"""The output of one execution on its way to one client: read from the capture files, sent as far as the window allows.

Files grow under us, so they are looked at again and again, more seldom while nothing comes. A terminal's output is in
such a file, too (the keeper moves it there); what a person types and the size of the window go to the terminal directly.
"""

import os
import select
import time

try:
    from . import captures, frames, log, orders
except ImportError:
    import captures
    import frames
    import log
    import orders

#: How often followed output is looked at: first, and at most; a terminal's at most.
LOOK_S = 0.01
LOOK_MOST_S = 0.1
LOOK_TERMINAL_S = 0.02
#: How often the keeper is asked for an execution that does not run yet.
ASK_S = 0.2
#: What is typed ahead of a program that does not read, at most.
TYPED_MOST = 1 << 20

_NAMES = ("out", "err")


class Follower:
    """See the module's text. Lives in its session's `followers` until it has sent the end."""

    def __init__(self, talker, session, stream, head):
        self.talker = talker
        self.session = session
        self.stream = stream
        self.x = head["x"]
        self.attempt = head["a"]
        orders.check_ids([(self.x, self.attempt)])
        self.offsets = {name: _size(head.get(name, 0)) for name in _NAMES}
        self.window = frames.Window()
        #: Whose execution it is, when somebody looks on who is not attached as its owner.
        self.owner = head.get("owner") or session.owner
        #: Wants what there is by now, not what comes.
        self.only_now = bool(head.get("now"))
        self.wants_terminal = head["kind"] == "tty"
        #: How much there is in all, once that is known.
        self.final = {name: _size(head["final"][name]) for name in _NAMES} if head.get("final") else None
        #: Small output, from the verdict.
        self.inline = None
        self.files = {}
        self.terminal = None
        self.typed = bytearray()
        #: There were files before the keeper was asked: it was started before.
        self.had_files = False
        #: The keeper runs it: its end will come as an event.
        self.is_running = False
        #: The log was read for its end, once.
        self.scanned = False
        self.asked_at = 0.0
        self.look_at = 0.0
        self.pause_s = LOOK_S

    def on_frame(self, head, body):
        """Take in a frame of the client on this stream."""
        kind = head["t"]
        if kind == "credit":
            self.window.credit(int(head["n"]))
            self.look(time.monotonic())
        elif kind == "close":
            self.session.followers.pop(self.stream, None)
            self.close()
        elif kind == "in":
            self.typed += body[: TYPED_MOST - len(self.typed)]
            self._type()
        elif kind == "size" and self.terminal is not None:
            captures.resize_terminal(self.terminal, head["c"], head["r"])

    def close(self):
        """Let go of everything."""
        self._leave_terminal()
        self._close_files()

    def _close_files(self):
        for fd in self.files.values():
            os.close(fd)
        self.files = {}

    def keeper_gone(self):
        """Another keeper is there: what ran is over, and its end is on the log, where no event will tell us of it."""
        self.is_running = self.scanned = False
        self.asked_at = self.look_at = 0.0

    # ---------------------------------------------------------------- looking

    def look(self, now):
        """Send what is new, as far as the window allows."""
        if self.session.is_closed:
            return
        if self.inline is None and (not self.files or self._must_ask()):
            self._find_files(now)
        progress = False
        for name in _NAMES:
            while name in self.files and self._may_send():
                data = self._read(name)
                if not data:
                    break
                self._send(name, data)
                progress = True
        if self.inline is not None:
            for name in _NAMES:
                data = self.inline[name][self.offsets[name] :]
                if data:
                    self._send(name, data)
        if (
            self.only_now
            and self.final is None
            and not progress
            and (self.files or self.scanned)
            and self._may_send()
        ):
            self.final = dict(self.offsets)
        if self.final is not None and all(self.offsets[name] >= self.final[name] for name in _NAMES):
            self._end({"t": "end", "out": self.offsets["out"], "err": self.offsets["err"]})
            return
        most = LOOK_TERMINAL_S if self.terminal is not None else LOOK_MOST_S
        self.pause_s = LOOK_S if progress else min(most, self.pause_s * 1.5)
        self.look_at = now + self.pause_s

    def _must_ask(self):
        return self.final is None and not self.is_running and (self.wants_terminal or not self.scanned)

    def _may_send(self):
        return self.window.left > 0 and self.session.has_room

    def _read(self, name):
        most = frames.CHUNK
        if self.final is not None:
            most = min(most, self.final[name] - self.offsets[name])
        return os.pread(self.files[name], most, self.offsets[name]) if most > 0 else b""

    def _send(self, name, data):
        frame = frames.encode(self.stream, {"t": "data", "s": name, "at": self.offsets[name]}, data)
        self.offsets[name] += len(data)
        self.window.spend(len(frame))
        self.session.send_raw(frame)

    def _end(self, head):
        self.session.followers.pop(self.stream, None)
        self.close()
        self.session.send(self.stream, head)

    # ---------------------------------------------------------------- finding

    def _find_files(self, now):
        # An execution that was ordered to be followed has files of its own from the start; a large output, too.
        base = os.path.join(self.talker.folder, "captures", orders.key_of(self.x, self.attempt))
        if not self.files:
            self._open_files([base + ".out", base + ".err"])
        if self.final is not None:
            if not self.files and any(self.offsets[name] < self.final[name] for name in _NAMES):
                self._end({"t": "error", "why": "its output is not on the node any more"})
            return
        if self.asked_at and now - self.asked_at < ASK_S:
            return
        self.asked_at = now
        self.had_files = bool(self.files)
        self.talker.ask_keeper({"t": "follow", "x": self.x, "a": self.attempt}, self._told)

    def _told(self, reply, fd):
        """The keeper knows where it writes, or does not run it."""
        if self.session.followers.get(self.stream) is not self:
            if fd is not None:
                os.close(fd)
            return
        if reply["known"]:
            self.is_running = True
            self._open_files(reply["paths"])
            if fd is not None and self.wants_terminal and self.terminal is None:
                self.terminal = fd
                self.talker.watch(fd, 0, lambda _mask: self._type())
                self._type()
            elif fd is not None:
                os.close(fd)
            self.look(time.monotonic())
        elif not self.scanned:
            # It waits, or has ended; then the event went by before, once.
            self.scanned = True
            for event in log.read_events(self.talker.folder, self.owner, 0):
                if event[2] == "ended" and event[3] == self.x and event[4] == self.attempt:
                    self.ended(event[5])
                    return
            if self.files and self.had_files and self.final is None:
                # It ended, and its owner has long had the verdict.
                self.final = {name: os.fstat(fd).st_size for name, fd in self.files.items()}
                self.look(time.monotonic())

    def _open_files(self, paths):
        self._close_files()
        try:
            for name, path in zip(_NAMES, paths):
                self.files[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._close_files()

    def ended(self, fields):
        """The execution ended: what is still to be sent is known now."""
        if self.final is not None:
            return
        self._leave_terminal()
        if not fields.get("files"):
            self._close_files()
            self.inline = {name: fields.get(name, "").encode("latin-1") for name in _NAMES}
        self.final = {name: fields.get(name + "_size", 0) for name in _NAMES}
        self.look(time.monotonic())

    # ---------------------------------------------------------------- typing

    def _type(self):
        """Pass on what the person typed; what a program does not take yet waits."""
        if self.terminal is None:
            return
        try:
            while self.typed:
                del self.typed[: os.write(self.terminal, self.typed)]
        except BlockingIOError:
            pass
        except OSError:
            self._leave_terminal()
            return
        self.talker.poll.modify(self.terminal, select.EPOLLOUT if self.typed else 0)
        # The echo is what a person waits for.
        self.pause_s = LOOK_S / 5
        self.look_at = min(self.look_at, time.monotonic() + self.pause_s)

    def _leave_terminal(self):
        if self.terminal is not None:
            self.talker.unwatch(self.terminal)
            os.close(self.terminal)
            self.terminal = None


def _size(value):
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("no size: %.80r" % (value,))
    return value
