"""The talker: speaks frames with clients, and nothing of it is needed for executions to go on.

It keeps no truth. Orders and cancels go on to the keeper, events come from there (or, for a client that comes back, from
the log), output is read from the capture files, and a transfer is served by a worker process whose frames pass
through here unread. Killed at any instant, the next contact starts another.

A session is one client on one channel. Its events are sent in order of their numbers; one that reads too slowly is
marked as lagging and served from the log again once its buffer has drained.
"""

import fcntl
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time

try:
    from . import captures, frames, keeper, log, node, orders, processes, relay
except ImportError:
    import captures
    import frames
    import keeper
    import log
    import node
    import orders
    import processes
    import relay

#: Version of the conversation on stream 0.
PROTOCOL = 1
#: Seconds without a client after which the talker ends.
IDLE_S = 60.0
#: A session with more bytes than this waiting to be written gets no more for now.
HIGH_WATER = 8 << 20
#: How often followed output is looked at: first, and at most.
LOOK_S = 0.01
LOOK_MOST_S = 0.1


class Follower:
    """The output of one execution on its way to one client."""

    def __init__(self, session, stream, head):
        self.session = session
        self.stream = stream
        self.x = head["x"]
        self.attempt = head["a"]
        self.offsets = {"out": head.get("out", 0), "err": head.get("err", 0)}
        self.window = frames.Window()
        self.files = {}
        self.final = head.get("final")
        #: Whose execution it is, when somebody looks on who is not attached as its owner.
        self.owner = head.get("owner") or session.owner
        #: Wants what there is by now, not what comes.
        self.only_now = bool(head.get("now"))
        self.inline = None
        self.terminal = None
        self.wants_terminal = head["kind"] == "tty"
        self.scanned = False
        self.asked_at = 0.0
        self.look_at = 0.0
        self.pause_s = LOOK_S

    def close(self):
        for fd in self.files.values():
            os.close(fd)
        self.files = {}


class Worker:
    """A process that serves one transfer."""

    def __init__(self, session, stream):
        self.session = session
        self.stream = stream
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        here = os.path.dirname(os.path.abspath(__file__))
        environment = dict(os.environ)
        environment.update(session.environment)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.join(here, "worker.py"), str(stream)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            env=environment,
            cwd=environment.get("HOME") or "/",
        )
        theirs.close()
        self.line = ours
        self.out = bytearray()
        self.started_at = time.monotonic()


class Session:
    """One client on one channel."""

    def __init__(self, line, fd_in, fd_out, greeting):
        self.line = line
        self.fd_in = fd_in
        self.fd_out = fd_out
        self.environment = greeting["env"]
        self.decoder = frames.Decoder()
        self.out = bytearray()
        self.owner = None
        self.attach = None
        self.last_sent = 0
        self.live = False
        self.lagging = False
        self.followers = {}
        self.workers = {}
        self.streams_open = True


class Talker:
    """See the module's text."""

    def __init__(self, folder, code_hash, idle_s=IDLE_S):
        self.folder = folder
        self.code_hash = code_hash
        self.idle_s = idle_s
        #: The keeper makes room for a newer agent, so this has to go, too.
        self.retiring = False
        self.sessions = {}
        self.waiting = {}
        self.requests = 0
        self.keeper = None
        self.keeper_in = None
        self.keeper_out = bytearray()
        self.incoming_fds = []
        self.fds = {}
        self.poll = None
        self.idle_since = time.monotonic()
        self.state_id = node.state_id(folder)

    # ---------------------------------------------------------------- the keeper's line

    def reach_keeper(self):
        """Connect to the keeper, starting it when it is not there. Raises OSError."""
        for _ in range(20):
            line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            os.chdir(self.folder)
            try:
                line.connect("keeper.sock")
            except OSError:
                line.close()
                said = relay.daemonise(keeper.serve, self.folder, "keeper.err")
                if said != "ok":
                    raise OSError(5, said, self.folder)
                time.sleep(0.005)
                continue
            finally:
                os.chdir("/")
            line.setblocking(False)
            self.keeper = line
            self.keeper_in = frames.Decoder()
            self.keeper_out = bytearray()
            self.watch(line.fileno(), select.EPOLLIN, self.on_keeper)
            return
        raise OSError(5, "the keeper does not answer on its socket", self.folder)

    def tell_keeper(self, head):
        self.keeper_out += frames.encode(0, head)
        self._write_keeper()

    def ask_keeper(self, head, answer):
        """Send a request; `answer(reply, fd or None)` is called with the reply."""
        self.requests += 1
        self.waiting[self.requests] = answer
        self.tell_keeper(dict(head, req=self.requests))

    def _write_keeper(self):
        try:
            while self.keeper_out:
                sent = self.keeper.send(self.keeper_out)
                del self.keeper_out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            return
        self.poll.modify(self.keeper.fileno(), select.EPOLLIN | (select.EPOLLOUT if self.keeper_out else 0))

    def on_keeper(self, mask):
        if mask & select.EPOLLOUT:
            self._write_keeper()
        if not mask & ~select.EPOLLOUT:
            return
        import array

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
        for _stream, raw, body, _size in self.keeper_in.feed(data):
            self.on_keeper_message(frames.parse_head(raw), body)

    def _keeper_gone(self):
        """Start another, and attach everybody again: what was missed is in the log."""
        self.unwatch(self.keeper.fileno())
        self.keeper.close()
        self.waiting.clear()
        self.reach_keeper()
        for session in list(self.sessions.values()):
            session.live = False
            if session.attach is not None:
                self.attach(session)
            for follower in session.followers.values():
                follower.asked_at = 0.0
        self.tell_present()

    def on_keeper_message(self, head, body):
        if head["t"] == "events":
            self.on_events(head, body)
        elif "req" in head:
            fd = None
            if head.get("tty") and self.incoming_fds:
                fd = self.incoming_fds.pop(0)
            answer = self.waiting.pop(head["req"], None)
            if answer is not None:
                answer(head, fd)
            elif fd is not None:
                os.close(fd)

    def on_events(self, head, body):
        """Pass events on unread; only who follows an execution that ended has to look inside."""
        for session in self.sessions.values():
            if session.owner == head["owner"] and session.live:
                self.send_events(session, head["first"], head["last"], body)
        for x, attempt in head["ended"]:
            self.tell_followers(x, attempt, head, body)

    def tell_followers(self, x, attempt, head, body):
        for session in list(self.sessions.values()):
            for follower in list(session.followers.values()):
                if follower.x == x and follower.attempt == attempt:
                    for event in json.loads(body.decode("ascii")):
                        if event[2] == "ended" and event[3] == x and event[4] == attempt:
                            self.follower_ended(follower, event[5])

    def send_events(self, session, first, last, body):
        """Send a list of events, given as JSON text, unless the session lags: then the log serves it later."""
        if session.lagging or len(session.out) > HIGH_WATER:
            session.lagging = True
        elif first > session.last_sent:
            session.last_sent = last
            self.send(session, 0, {"t": "events"}, body)
        elif last > session.last_sent:
            # A part of it went out by a replay.
            rest = [event for event in json.loads(body.decode("ascii")) if event[0] > session.last_sent]
            session.last_sent = last
            self.send(session, 0, {"t": "events"}, json.dumps(rest).encode("ascii"))

    def replay(self, session, up_to=None):
        """Send what the log holds for a session beyond what it was sent."""
        batch = []
        size = 0
        for event in log.read_events(self.folder, session.owner, session.last_sent):
            if up_to is not None and event[0] > up_to:
                break
            text = json.dumps(event).encode("ascii")
            if batch and size + len(text) > frames.MAX_BODY // 2:
                self._send_batch(session, batch)
                batch, size = [], 0
                if session.lagging:
                    return
            batch.append((event[0], text))
            size += len(text)
        if batch:
            self._send_batch(session, batch)

    def _send_batch(self, session, batch):
        self.send_events(session, batch[0][0], batch[-1][0], b"[" + b",".join(text for _, text in batch) + b"]")

    def tell_present(self):
        self.tell_keeper(
            {"t": "present", "owners": sorted({s.owner for s in self.sessions.values() if s.owner})}
        )

    # ---------------------------------------------------------------- sessions

    def on_listener(self, _mask):
        line, _address = self.listener.accept()
        try:
            line.settimeout(5.0)
            import array

            given = array.array("i")
            data, ancillary, _flags, _addr = line.recvmsg(4, socket.CMSG_SPACE(4 * 2))
            for _level, _kind, payload in ancillary:
                given.frombytes(payload[: len(payload) - len(payload) % given.itemsize])
            size = int.from_bytes(data, "big")
            text = b""
            while len(text) < size:
                piece = line.recv(size - len(text))
                if not piece:
                    raise OSError("relay hung up")
                text += piece
            greeting = json.loads(text.decode("ascii"))
            fd_in, fd_out = given
        except (OSError, ValueError):
            line.close()
            return
        os.set_blocking(fd_in, False)
        os.set_blocking(fd_out, False)
        session = Session(line, fd_in, fd_out, greeting)
        self.sessions[fd_in] = session
        self.watch(fd_in, select.EPOLLIN, lambda mask: self.on_session(session, mask))
        if fd_out != fd_in:
            self.watch(fd_out, 0, lambda mask: self.on_session_out(session, mask))
        self.send(session, 0, self.hello(session))

    def hello(self, session):
        return {
            "t": "hello",
            "protocol": PROTOCOL,
            "hash": self.code_hash,
            "state_id": self.state_id,
            "boot_id": node.boot_id(),
            "node": node.name(),
            "python": "%d.%d.%d" % sys.version_info[:3],
            "home": session.environment.get("HOME", "/"),
            "user": session.environment.get("USER", ""),
            "clock": time.time(),
            "pid": os.getpid(),
            "folder": self.folder,
        }

    def on_session(self, session, mask):
        try:
            data = os.read(session.fd_in, 1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.end_session(session)
            return
        try:
            for stream, raw, body, size in session.decoder.feed(data):
                if stream == 0:
                    self.on_client(session, frames.parse_head(raw), body)
                else:
                    self.on_stream(session, stream, raw, body, size)
                if session.fd_in not in self.sessions:
                    return
        except (frames.FrameError, KeyError, TypeError, ValueError) as error:
            self.send(session, 0, {"t": "error", "why": "not understood: %r" % (error,)})
            self._write_session(session)
            self.end_session(session)

    def on_session_out(self, session, mask):
        self._write_session(session)
        if mask & (select.EPOLLERR | select.EPOLLHUP) and session.fd_in in self.sessions:
            self.end_session(session)

    def send(self, session, stream, head, body=b""):
        session.out += frames.encode(stream, head, body)
        self._write_session(session)

    def _write_session(self, session):
        try:
            while session.out:
                sent = os.write(session.fd_out, memoryview(session.out)[: 1 << 18])
                del session.out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            session.out = bytearray()
        if session.fd_in not in self.sessions:
            return
        wanted = select.EPOLLOUT if session.out else 0
        if session.fd_out != session.fd_in:
            self.poll.modify(session.fd_out, wanted)
        else:
            self.poll.modify(session.fd_in, select.EPOLLIN | wanted)
        if len(session.out) < HIGH_WATER // 2:
            if session.lagging:
                session.lagging = False
                self.replay(session)
            for worker in session.workers.values():
                self.poll.modify(
                    worker.line.fileno(), select.EPOLLIN | (select.EPOLLOUT if worker.out else 0)
                )

    def end_session(self, session):
        self.sessions.pop(session.fd_in, None)
        self.unwatch(session.fd_in)
        if session.fd_out != session.fd_in:
            self.unwatch(session.fd_out)
        for worker in list(session.workers.values()):
            self.end_worker(worker)
        for follower in session.followers.values():
            self.end_terminal(follower)
            follower.close()
        os.close(session.fd_in)
        os.close(session.fd_out)
        session.line.close()
        self.tell_present()
        self.idle_since = time.monotonic()

    def on_client(self, session, head, body):
        kind = head["t"]
        if kind == "attach":
            session.owner = head["owner"]
            session.attach = head
            session.last_sent = max(session.last_sent, int(head.get("ack", 0)))
            self.attach(session)
            self.tell_present()
        elif kind in (
            "order",
            "recall",
            "cancel",
            "pause",
            "resume",
            "ack",
            "drop",
            "unhold",
            "signal",
            "forget",
        ):
            head["owner"] = session.owner
            if kind == "ack":
                session.attach["ack"] = head["n"]
            self.tell_keeper(head)
        elif kind == "open":
            self.open_stream(session, head)
        elif kind == "ping":
            self.send(session, 0, {"t": "pong", "clock": time.time(), "at": head.get("at")})
        elif kind == "probe":
            self.send(session, 0, dict(node.probe(head["path"]), t="probe"))
        elif kind == "expand":
            self.send(session, 0, {"t": "expanded", "texts": [self.expand(session, text) for text in head["texts"]]})
        elif kind in ("status", "retire"):
            self.ask_keeper({"t": kind}, lambda reply, _fd: self.answered(session, reply))
        elif kind == "bye":
            self.end_session(session)
        else:
            raise ValueError("unknown message %r" % kind)

    def answered(self, session, reply):
        if reply["t"] == "retiring" and reply["yes"]:
            self.retiring = True
        if session.fd_in in self.sessions:
            self.send(session, 0, reply)

    def expand(self, session, text):
        """Fill the login's variables into a folder's name, as its shell would: `$HOME/x`, `~/x`."""

        def value(match):
            return session.environment.get(match.group(1) or match.group(2), "")

        home = session.environment.get("HOME", "/")
        if text == "~" or text.startswith("~/"):
            text = home + text[1:]
        text = re.sub(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})", value, text)
        return os.path.normpath(os.path.join(home, text))

    def attach(self, session):
        """(Re)attach a session's owner at the keeper, then bring the session up to date from the log."""
        head = {
            key: session.attach[key]
            for key in ("owner", "ack", "capacity", "lease_s")
            if key in session.attach
        }
        head.update(t="attach", env=session.environment)

        def attached(reply, _fd):
            if session.fd_in not in self.sessions:
                return
            self.replay(session, reply["last"])
            session.live = True
            reply.pop("req", None)
            reply["expanded"] = [self.expand(session, text) for text in session.attach.get("expand", ())]
            self.send(session, 0, reply)

        self.ask_keeper(head, attached)

    # ---------------------------------------------------------------- streams

    def open_stream(self, session, head):
        stream = head["stream"]
        if head["kind"] == "transfer":
            try:
                worker = Worker(session, stream)
            except OSError as error:
                self.send(
                    session,
                    stream,
                    {"t": "error", "why": os.strerror(error.errno or 0), "errno": error.errno or 0},
                )
                return
            session.workers[stream] = worker
            self.watch(worker.line.fileno(), select.EPOLLIN, lambda mask: self.on_worker(worker, mask))
        else:
            follower = Follower(session, stream, head)
            session.followers[stream] = follower
            self.look(follower, time.monotonic())

    def on_stream(self, session, stream, raw, body, size):
        worker = session.workers.get(stream)
        if worker is not None:
            worker.out += frames.HEADER.pack(frames.VERSION, stream, len(raw), len(body)) + raw + body
            self._write_worker(worker)
            return
        follower = session.followers.get(stream)
        if follower is None:
            return
        head = frames.parse_head(raw)
        if head["t"] == "credit":
            follower.window.credit(head["n"])
            self.look(follower, time.monotonic())
        elif head["t"] == "close":
            self.end_terminal(follower)
            follower.close()
            del session.followers[stream]
        elif follower.terminal is not None:
            if head["t"] == "in":
                self._type(follower, body)
            elif head["t"] == "size":
                captures.resize_terminal(follower.terminal, head["c"], head["r"])

    def _type(self, follower, body):
        """Write what the person typed; a terminal that takes no more right now is waited for a moment."""
        at = 0
        for _ in range(200):
            try:
                at += os.write(follower.terminal, body[at:])
            except BlockingIOError:
                select.select([], [follower.terminal], [], 0.005)
            except OSError:
                return
            if at >= len(body):
                return

    def on_worker(self, worker, mask):
        if mask & select.EPOLLOUT:
            self._write_worker(worker)
        if not mask & ~select.EPOLLOUT:
            return
        try:
            data = worker.line.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        session = worker.session
        if not data:
            self.send(session, worker.stream, {"t": "close"})
            self.end_worker(worker)
            return
        session.out += data
        if len(session.out) > HIGH_WATER:
            self.poll.modify(worker.line.fileno(), select.EPOLLOUT if worker.out else 0)
        self._write_session(session)

    def _write_worker(self, worker):
        try:
            while worker.out:
                sent = worker.line.send(memoryview(worker.out)[: 1 << 18])
                del worker.out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            worker.out = bytearray()
        if worker.line.fileno() >= 0:
            self.poll.modify(worker.line.fileno(), select.EPOLLIN | (select.EPOLLOUT if worker.out else 0))

    def end_worker(self, worker):
        worker.session.workers.pop(worker.stream, None)
        self.unwatch(worker.line.fileno())
        worker.line.close()
        self.leaving.append(worker.process)

    # ---------------------------------------------------------------- output

    def look(self, follower, now):
        """Send what is new of a followed output, as far as its window allows."""
        session = follower.session
        if session.fd_in not in self.sessions:
            return
        progress = False
        if not follower.files and follower.inline is None:
            self._find_files(follower, now)
        for name in ("out", "err"):
            fd = follower.files.get(name)
            while fd is not None and follower.window.left > 0 and len(session.out) < HIGH_WATER:
                most = frames.CHUNK
                if follower.final is not None:
                    most = min(most, follower.final[name] - follower.offsets[name])
                data = os.pread(fd, most, follower.offsets[name]) if most > 0 else b""
                if not data:
                    break
                self._send_output(follower, name, data)
                progress = True
        if follower.inline is not None:
            for name in ("out", "err"):
                data = follower.inline[name][follower.offsets[name] :]
                if data:
                    self._send_output(follower, name, data)
        if follower.only_now and follower.final is None and not progress:
            found = follower.files or follower.scanned
            if found and follower.window.left > 0 and len(session.out) < HIGH_WATER:
                follower.final = dict(follower.offsets)
        if follower.final is not None and follower.terminal is None and self._has_all(follower):
            self.send(
                session,
                follower.stream,
                {"t": "end", "out": follower.offsets["out"], "err": follower.offsets["err"]},
            )
            follower.close()
            session.followers.pop(follower.stream, None)
            return
        follower.pause_s = LOOK_S if progress else min(LOOK_MOST_S, follower.pause_s * 1.5)
        follower.look_at = now + follower.pause_s

    def _send_output(self, follower, name, data):
        head = {"t": "data", "s": name, "at": follower.offsets[name]}
        follower.offsets[name] += len(data)
        before = len(follower.session.out)
        follower.session.out += frames.encode(follower.stream, head, data)
        follower.window.spend(len(follower.session.out) - before)
        self._write_session(follower.session)

    @staticmethod
    def _has_all(follower):
        return all(follower.offsets[name] >= follower.final[name] for name in ("out", "err"))

    def _find_files(self, follower, now):
        key = orders.key_of(follower.x, follower.attempt)
        folder = os.path.join(self.folder, "captures")
        if follower.final is not None:
            self._open_files(
                follower, [os.path.join(folder, key + ".out"), os.path.join(folder, key + ".err")]
            )
            if not follower.files and not self._has_all(follower):
                self.send(
                    follower.session,
                    follower.stream,
                    {"t": "error", "why": "its output is not on the node any more"},
                )
                follower.final = dict(follower.offsets)
            return
        # An execution that was ordered to be followed has files of its own from the start.
        self._open_files(follower, [os.path.join(folder, key + ".out"), os.path.join(folder, key + ".err")])
        if follower.files and not follower.wants_terminal:
            return
        if now - follower.asked_at < 0.2 and follower.asked_at:
            return
        follower.asked_at = now

        def known(reply, fd):
            if follower.session.followers.get(follower.stream) is not follower:
                if fd is not None:
                    os.close(fd)
                return
            if reply["known"]:
                self._open_files(follower, reply["paths"])
                if fd is not None and follower.wants_terminal:
                    os.set_blocking(fd, False)
                    follower.terminal = fd
                    self.watch(fd, select.EPOLLIN, lambda mask: self.on_terminal(follower))
                elif fd is not None:
                    os.close(fd)
                self.look(follower, time.monotonic())
                return
            # Not running: it waits, or has ended; then the event went by before, once.
            if follower.scanned:
                return
            follower.scanned = True
            for event in log.read_events(self.folder, follower.owner, 0):
                if event[2] == "ended" and event[3] == follower.x and event[4] == follower.attempt:
                    self.follower_ended(follower, event[5])
                    return

        self.ask_keeper({"t": "follow", "x": follower.x, "a": follower.attempt}, known)

    @staticmethod
    def _open_files(follower, paths):
        follower.close()
        try:
            for name, path in zip(("out", "err"), paths):
                follower.files[name] = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError:
            follower.close()

    def follower_ended(self, follower, fields):
        """The execution ended: what is still to be sent is known now."""
        if follower.final is not None:
            return
        if follower.terminal is not None:
            self._pump(follower)
            self.end_terminal(follower)
        sizes = {name: fields.get(name + "_size", 0) for name in ("out", "err")}
        if follower.files and (fields.get("files") or follower.wants_terminal):
            sizes = {name: os.fstat(fd).st_size for name, fd in follower.files.items()}
        elif not fields.get("files"):
            follower.close()
            follower.inline = {name: fields.get(name, "").encode("latin-1") for name in ("out", "err")}
        follower.final = sizes
        self.look(follower, time.monotonic())

    def on_terminal(self, follower):
        if not self._pump(follower):
            self.end_terminal(follower)
        self.look(follower, time.monotonic())

    def _pump(self, follower):
        """Move what a pseudo-terminal printed into its capture file; False at its end."""
        while True:
            try:
                data = os.read(follower.terminal, 65536)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            os.write(follower.files["out"], data)

    def end_terminal(self, follower):
        if follower.terminal is not None:
            self.unwatch(follower.terminal)
            os.close(follower.terminal)
            follower.terminal = None

    # ---------------------------------------------------------------- the loop

    def watch(self, fd, mask, handler):
        self.fds[fd] = handler
        self.poll.register(fd, mask)

    def unwatch(self, fd):
        if self.fds.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def run(self, listener):
        """Serve until nobody has asked for a while."""
        self.listener = listener
        self.leaving = []
        self.watch(listener.fileno(), select.EPOLLIN, self.on_listener)
        while True:
            now = time.monotonic()
            if self.retiring and not any(session.out for session in self.sessions.values()):
                return
            if self.sessions:
                self.idle_since = now
            elif now - self.idle_since > self.idle_s:
                return
            timeout = 1.0
            for session in self.sessions.values():
                for follower in session.followers.values():
                    timeout = min(timeout, max(0.0, follower.look_at - now))
            for fd, mask in self.poll.poll(timeout):
                handler = self.fds.get(fd)
                if handler is not None:
                    handler(mask)
            now = time.monotonic()
            for session in list(self.sessions.values()):
                for follower in list(session.followers.values()):
                    if follower.look_at <= now:
                        self.look(follower, now)
            if self.leaving:
                self.leaving = [process for process in self.leaving if process.poll() is None]


def serve(folder, ready, code_hash=""):
    """Be the talker of this state folder; returns at once when there is one already."""
    lock = os.open(os.path.join(folder, "talker.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        ready("ok")
        return
    node.sign(lock)
    processes.set_name("orch-talker")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    talker = Talker(folder, code_hash)
    talker.poll = select.epoll()
    try:
        talker.reach_keeper()
        os.chdir(folder)
        try:
            os.unlink("talker.sock")
        except FileNotFoundError:
            pass
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o177)
        listener.bind("talker.sock")
        os.umask(old)
        listener.listen(32)
        os.chdir("/")
    except OSError as error:
        ready("%s: %s" % (error.filename or folder, error.strerror or error))
        return
    ready("ok")
    talker.run(listener)
    try:
        os.unlink(os.path.join(folder, "talker.sock"))
    except OSError:
        pass
