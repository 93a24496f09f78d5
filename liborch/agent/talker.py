"""The talker: speaks frames with clients, and nothing of it is needed for executions to go on.

It keeps no truth. Orders and cancels go on to the keeper, events come from there (or, for a client that comes back, from
the log), output is read from the capture files, and a transfer is served by a worker process whose frames pass
through here unread. Killed at any instant, the next contact starts another.

Here are the loop and the keeper's line; clients are `sessions.py`'s, output is `followers.py`'s, transfers `passages.py`'s.
"""

import array
import collections
import errno
import json
import os
import select
import signal
import socket
import time

try:
    from . import doors, frames, keeper, node, relay, sessions
except ImportError:
    import doors
    import frames
    import keeper
    import node
    import relay
    import sessions

#: Seconds without a client after which the talker ends.
IDLE_S = 60.0
#: How often, and how long apart in seconds, the keeper is tried: one that ends may be syncing its log to a slow disk.
KEEPER_TRIES = 200
KEEPER_PAUSE_S = 0.025
#: Questions that are asked again when the keeper that was asked is gone.
_ASKED_AGAIN = ("status", "retire")


class Talker:
    """See the module's text."""

    def __init__(self, folder, lock, code_hash, idle_s=IDLE_S):
        self.folder = folder
        self.lock = lock
        self.code_hash = code_hash
        self.idle_s = idle_s
        #: What a login leaves behind is ended with it here, this process as well: see `logins`.
        self.ends_with_login = False
        #: The keeper makes room for a newer agent, so this has to go, too.
        self.retiring = False
        #: {descriptor: Session}
        self.sessions = {}
        self.greetings = set()
        #: Workers of transfers that were told to end.
        self.leaving = []
        #: {number: (question, what to call with the answer)}
        self.waiting = {}
        self.requests = 0
        self.keeper = None
        self.keeper_in = None
        self.keeper_out = bytearray()
        #: Descriptors that came from the keeper, for answers not yet read.
        self.incoming_fds = collections.deque()
        #: {descriptor: handler(mask)}
        self.handlers = {}
        self.poll = select.epoll()
        self.idle_since = time.monotonic()
        self.state_id = node.state_id(folder)

    # ---------------------------------------------------------------- the keeper's line

    def reach_keeper(self):
        """Connect to the keeper, starting it when it is not there. Raises OSError."""
        for _ in range(KEEPER_TRIES):
            line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            os.chdir(self.folder)
            try:
                line.connect("keeper.sock")
            except OSError:
                line.close()
                said = relay.daemonise(keeper.serve, self.folder, "keeper.err")
                if said != "ok":
                    raise OSError(5, said, self.folder)
                time.sleep(KEEPER_PAUSE_S)
                continue
            finally:
                os.chdir("/")
            line.setblocking(False)
            self.keeper = line
            self.keeper_in = frames.Decoder()
            self.keeper_out = bytearray()
            self.watch(line.fileno(), select.EPOLLIN, self._on_keeper)
            return
        raise OSError(5, "the keeper does not answer on its socket", self.folder)

    def tell_keeper(self, head):
        """Send a message."""
        self.keeper_out += frames.encode(0, head)
        self._write_keeper()

    def ask_keeper(self, head, answer):
        """Send a question; `answer(reply, fd or None)` is called with the reply."""
        self.requests += 1
        self.waiting[self.requests] = (head, answer)
        self.tell_keeper(dict(head, req=self.requests))

    def _write_keeper(self):
        try:
            while self.keeper_out:
                sent = self.keeper.send(self.keeper_out)
                del self.keeper_out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            return  # Its end is read, too, and dealt with there.
        self.poll.modify(self.keeper.fileno(), select.EPOLLIN | (select.EPOLLOUT if self.keeper_out else 0))

    def _on_keeper(self, mask):
        if mask & select.EPOLLOUT:
            self._write_keeper()
        if not mask & ~select.EPOLLOUT:
            return
        given = array.array("i")
        try:
            data, ancillary, _flags, _address = self.keeper.recvmsg(1 << 20, socket.CMSG_SPACE(4 * 8))
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                given.frombytes(payload[: len(payload) - len(payload) % given.itemsize])
        self.incoming_fds.extend(given)
        if not data:
            self._keeper_gone()
            return
        line = self.keeper
        for _stream, raw, body, _size in self.keeper_in.feed(data):
            self._on_keeper_message(frames.parse_head(raw), body)
            if self.keeper is not line:
                return

    def _keeper_gone(self):
        """Start another, and attach everybody again: what was missed is in the log. Raises OSError when none can be had."""
        self.unwatch(self.keeper.fileno())
        self.keeper.close()
        asked = [(head, answer) for head, answer in self.waiting.values() if head["t"] in _ASKED_AGAIN]
        self.waiting.clear()
        while self.incoming_fds:
            os.close(self.incoming_fds.popleft())
        if not doors.still_ours(self.folder, "talker", self.lock):
            # Another agent lives there now, and has a talker of its own.
            raise OSError(errno.ENOENT, "our folder was removed", self.folder)
        self.reach_keeper()
        for session in list(self.sessions.values()):
            if session.attach_message is not None:
                session.attach()
            for follower in session.followers.values():
                follower.keeper_gone()
        for head, answer in asked:
            self.ask_keeper(head, answer)
        self.tell_present()

    def _on_keeper_message(self, head, body):
        if head["t"] == "events":
            self._on_events(head, body)
        elif "req" in head:
            fd = self.incoming_fds.popleft() if head.get("tty") and self.incoming_fds else None
            _question, answer = self.waiting.pop(head["req"], (None, None))
            if answer is not None:
                answer(head, fd)
            elif fd is not None:
                os.close(fd)

    def _on_events(self, head, body):
        """Pass events on unread; only who follows an execution that ended has to look inside."""
        for session in list(self.sessions.values()):
            if session.owner == head["owner"] and session.live:
                session.send_events(head["first"], head["last"], body)
        ended = {(x, attempt) for x, attempt in head["ended"]}
        waiting = [
            follower
            for session in self.sessions.values()
            for follower in session.followers.values()
            if (follower.x, follower.attempt) in ended
        ]
        if waiting:
            details = {
                (event[3], event[4]): event[5]
                for event in json.loads(body.decode("ascii"))
                if event[2] == "ended"
            }
            for follower in waiting:
                follower.ended(details[follower.x, follower.attempt])

    def tell_present(self):
        """Tell the keeper which owners have a client."""
        owners = {session.owner for session in self.sessions.values() if session.owner}
        self.tell_keeper({"t": "present", "owners": sorted(owners)})

    # ---------------------------------------------------------------- clients

    def _on_listener(self, _mask):
        try:
            line, _address = self.listener.accept()
        except OSError:
            time.sleep(0.02)  # no descriptors left: the relay waits in line
            return
        sessions.Greeting(self, line)

    def session_ended(self):
        """A client is gone."""
        self.idle_since = time.monotonic()
        self.tell_present()

    # ---------------------------------------------------------------- the loop

    def watch(self, fd, mask, handler):
        """Have `handler(mask)` called. Raises OSError for what cannot be waited for."""
        self.poll.register(fd, mask)
        self.handlers[fd] = handler

    def unwatch(self, fd):
        """The other way. Fine when it is not watched."""
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def _followers(self):
        return [each for session in self.sessions.values() for each in session.followers.values()]

    def run(self, listener):
        """Serve until nobody has asked for a while."""
        self.listener = listener
        self.watch(listener.fileno(), select.EPOLLIN, self._on_listener)
        while True:
            now = time.monotonic()
            if self.retiring and not any(session.out for session in self.sessions.values()):
                return
            if self.sessions:
                self.idle_since = now
            elif now - self.idle_since > self.idle_s:
                return
            timeout = 1.0
            for follower in self._followers():
                timeout = min(timeout, max(0.0, follower.look_at - now))
            for fd, mask in self.poll.poll(timeout):
                handler = self.handlers.get(fd)
                if handler is not None:
                    handler(mask)
            now = time.monotonic()
            for follower in self._followers():
                if follower.look_at <= now:
                    follower.look(now)
            for greeting in [each for each in self.greetings if each.until < now]:
                greeting.close()
            if self.leaving:
                self.leaving = [process for process in self.leaving if process.poll() is None]


def serve(folder, ready, code_hash=""):
    """Be the talker of this state folder; returns at once when there is one already. `ready(text)` says how it went."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    try:
        lock = doors.claim(folder, "talker")
        if lock is None:
            ready("ok")
            return
        talker = Talker(folder, lock, code_hash)
        talker.reach_keeper()
        listener = doors.listen(folder, "talker")
    except OSError as error:
        ready("%s: %s" % (error.filename or folder, error.strerror or error))
        return
    ready("ok")
    talker.run(listener)
    doors.leave(folder, "talker", lock)
