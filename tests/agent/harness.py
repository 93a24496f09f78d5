"""An agent of a test's own, and clients that talk frames to it.

`Node` is a state folder with an environment; its agent is started by the first client's relay and ended by `stop`. A
`Client` reads only when it is asked for something, so one that is never asked is a client that does not read. Nothing of
the driver is used here: these are the agent's own tests. Over ssh the same `Client` runs on what `bootstrap` starts.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from liborch.agent import frames as _untyped

frames: Any = _untyped

ENTRY = Path(__file__).parents[2] / "liborch/agent/entry.py"
#: How long anything may take that has no time of its own, in seconds. Generous: other work shares these cores.
PATIENCE_S = 20.0


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def until(what: str, true: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Ask every 5 ms until the answer is true; return it. Raises AssertionError naming `what`."""
    end = time.monotonic() + patience_s
    while not (answer := true()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience_s:g} s for {what}")
        time.sleep(0.005)
    return answer


class Node:
    """A node of one's own: where its agent keeps its things, and what its login's environment is."""

    def __init__(self, folder: Path, *, python: str = sys.executable, **environment: str) -> None:
        self.state = folder / "state"
        self.home = folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.python = python
        self.environment = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "USER": "tester",
            "ORCHESTRA_AGENT_STATE": str(self.state),
            **environment,
        }
        self.clients: list[Client] = []
        self._owners = itertools.count(1)

    def __repr__(self) -> str:
        return f"<Node {self.state}>"

    def connect(self, code_hash: str = "test") -> Client:
        """A client that was greeted, not yet attached."""
        client = Client([self.python, "-I", "-S", str(ENTRY), code_hash], self.environment)
        self.clients.append(client)
        return client

    def client(self, owner: str | None = None, ack: int = 0, code_hash: str = "test", **more: Any) -> Client:
        """A client that takes part; `cpus=2` and the like are its attach message's capacity."""
        capacity = {name: more.pop(name) for name in ("cpus", "memory_bytes") if name in more}
        client = self.connect(code_hash)
        client.attach(owner or f"owner{next(self._owners)}", ack, capacity=capacity, **more)
        return client

    def pid(self, name: str) -> int:
        """Pid of the `keeper` or `talker` of this node, 0 when it does not run."""
        try:
            pid = int((self.state / f"{name}.lock").read_text() or 0)
            return pid if Path(f"/proc/{pid}/comm").read_text().strip() == f"orch-{name}" else 0
        except (OSError, ValueError):
            return 0

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Signal the keeper or talker; a killed one is gone on return."""
        pid = self.pid(name)
        assert pid, f"no {name} runs"
        os.kill(pid, number)
        if number == signal.SIGKILL:
            until(f"the {name}'s end", lambda: not alive(pid))

    def replace_keeper(self, client: Client) -> dict[str, Any]:
        """Kill the keeper and wait until the client was attached to the next: what it says before may be lost."""
        client.settle()
        self.kill("keeper")
        return client.control("attached")

    def log(self) -> list[Any]:
        """Every line of the node's log."""
        lines = []
        for path in sorted(self.state.glob("log.*")):
            lines += [
                json.loads(line) for line in path.read_bytes().rstrip(b"\0").split(b"\n") if line.strip(b"\0")
            ]
        return lines

    def captures(self) -> list[str]:
        """Names of the capture files."""
        return sorted(os.listdir(self.state / "captures"))

    def marked(self, x: str = "") -> list[int]:
        """Pids of living processes that carry the mark of an execution of this node."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            ours = f"ORCHESTRA_AGENT_STATE={self.state}".encode() in words
            mark = f"ORCHESTRA_EXECUTION={x}.".encode() if x else b"ORCHESTRA_EXECUTION="
            if ours and any(word.startswith(mark) for word in words):
                found += [int(name)] if alive(int(name)) else []
        return found

    def stop(self) -> None:
        """End everything of this node."""
        for client in self.clients:
            client.kill()
        for name in ("talker", "keeper"):
            if self.pid(name):
                self.kill(name)
        for pid in self.marked():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Client:
    """One client on one relay."""

    def __init__(
        self, argv: Sequence[str], environment: dict[str, str] | None = None, prelude: Any = None
    ) -> None:
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True,
            stderr=None if prelude is None else subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.to, self.of = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.decoder = frames.Decoder()
        #: Every event received, in order: [number, owner, kind, x, attempt, detail].
        self.events: list[list[Any]] = []
        self.inbox: collections.deque[tuple[int, dict[str, Any], bytes]] = collections.deque()
        self.owner = ""
        self.attached: dict[str, Any] = {}
        self._streams = itertools.count(1)
        if prelude is not None:
            prelude(self)
        self.hello = self.control("hello", "failed")

    # -- frames

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        while data:
            data = data[os.write(self.to, data) :]

    def send(self, head: dict[str, Any], stream: int = 0, body: bytes = b"") -> None:
        """Send one frame."""
        self.write(frames.encode(stream, head, body))

    def read(self, patience_s: float = PATIENCE_S) -> bytes:
        """Return some bytes. Raises AssertionError when none come, EOFError at the end."""
        ready, _, _ = select.select([self.of], [], [], patience_s)
        assert ready, f"no frame in {patience_s:g} s"
        data = os.read(self.of, 1 << 20)
        if not data:
            raise EOFError("the agent hung up")
        return data

    def _take(self, data: bytes) -> None:
        for stream, raw, body, _size in self.decoder.feed(data):
            head = frames.parse_head(raw)
            if stream == 0 and head["t"] == "events":
                self.events += json.loads(body) if body else head["events"]
            else:
                self.inbox.append((stream, head, body))

    def frame(
        self, wanted: Callable[[int, dict[str, Any]], bool], patience_s: float = PATIENCE_S
    ) -> tuple[dict[str, Any], bytes]:
        """Return the first frame `wanted` agrees to; others stay for later."""
        end = time.monotonic() + patience_s
        while True:
            for at, (stream, head, body) in enumerate(self.inbox):
                if wanted(stream, head):
                    del self.inbox[at]
                    return head, body
            self._take(self.read(max(0.0, end - time.monotonic())))

    def control(self, *kinds: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Return the next frame of stream 0 of one of these kinds."""
        return self.frame(lambda stream, head: stream == 0 and head["t"] in kinds, patience_s)[0]

    # -- the conversation

    def attach(self, owner: str, ack: int = 0, **fields: Any) -> dict[str, Any]:
        """Take part; returns the `attached` reply. Missed events are in `events` by then."""
        self.owner = owner
        self.send({"t": "attach", "owner": owner, "ack": ack, **fields})
        self.attached = self.control("attached")
        return self.attached

    def order(self, *orders: Any, **common: Any) -> None:
        """Hand over: each an id, or (id, {own part}), or (id, attempt, {own part})."""
        items = []
        for order in orders:
            if isinstance(order, str):
                order = (order, {})
            items.append([order[0], 1, order[1]] if len(order) == 2 else list(order))
        self.send({"t": "order", "common": common, "orders": items})

    def sh(self, x: str, script: str, **fields: Any) -> None:
        """Hand over one execution of a shell script."""
        self.order((x, {"argv": ["/bin/sh", "-c", script], **fields}))

    def tell(self, kind: str, *ids: str, **fields: Any) -> None:
        """recall, cancel, pause, resume, drop of first attempts."""
        self.send({"t": kind, "ids": [[x, 1] for x in ids], **fields})

    def ack(self, n: int | None = None) -> None:
        """Acknowledge every event received, or up to `n`."""
        self.send({"t": "ack", "n": self.events[-1][0] if n is None else n})

    def ask(
        self, kind: str, reply: str = "", patience_s: float = PATIENCE_S, **fields: Any
    ) -> dict[str, Any]:
        """Ask and return the reply."""
        self.send({"t": kind, **fields})
        return self.control(reply or kind, patience_s=patience_s)

    def ping(self) -> dict[str, Any]:
        """A round trip to the talker; with it every earlier frame of the talker has arrived."""
        return self.ask("ping", "pong")

    def settle(self) -> dict[str, Any]:
        """A round trip to the keeper: what was told before was carried out. Returns its status."""
        return self.ask("status")

    def event(self, kind: str, x: str, attempt: int = 1, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for an event; returns its detail."""
        end = time.monotonic() + patience_s
        seen = 0
        while True:
            for event in self.events[seen:]:
                if event[2:5] == [kind, x, attempt]:
                    detail: dict[str, Any] = event[5]
                    return detail
            seen = len(self.events)
            self._take(self.read(max(0.0, end - time.monotonic())))

    def ended(self, x: str, attempt: int = 1, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for an end; returns its detail."""
        return self.event("ended", x, attempt, patience_s)

    def run(self, script: str, x: str = "x", **fields: Any) -> dict[str, Any]:
        """Run a shell script to its end."""
        self.sh(x, script, **fields)
        return self.ended(x)

    def count(self, kind: str, x: str | None = None) -> int:
        """How many events of a kind (and an execution) were received."""
        return sum(event[2] == kind and x in (None, event[3]) for event in self.events)

    # -- streams

    def open(self, kind: str, x: str = "", attempt: int = 1, **fields: Any) -> int:
        """Open a stream; returns its number."""
        number = next(self._streams)
        self.send({"t": "open", "stream": number, "kind": kind, "x": x, "a": attempt, **fields})
        return number

    def next_of(self, stream: int, patience_s: float = PATIENCE_S) -> tuple[dict[str, Any], bytes]:
        """Return the stream's next frame, and hand its credit back."""
        head, body = self.frame(lambda number, _head: number == stream, patience_s)
        if head["t"] == "data":
            # About the frame's length; generous is wrong here, so a little less.
            self.send({"t": "credit", "n": len(body) + 32}, stream)
        return head, body

    def gather(self, stream: int, want: Callable[[dict[str, Any]], bool] | None = None) -> Output:
        """Read an output stream until its end, or until `want` is content."""
        output = Output()
        while True:
            head, body = self.next_of(stream, 60.0)
            if head["t"] in ("end", "error"):
                output.end = head
                return output
            output.take(head, body)

    def follow(self, x: str, **fields: Any) -> Output:
        """Follow an execution's output to its end."""
        return self.gather(self.open("output", x, **fields))

    # -- the end

    def close(self) -> None:
        """Hang up and wait for the relay."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """Kill the relay; the client's end is closed. Safe to call twice."""
        if self.process.poll() is None:
            self.process.kill()
        self.close()


class Output:
    """What came over an output stream: sizes and hashes always, the bytes while they are few."""

    KEPT = 4 << 20

    def __init__(self) -> None:
        self.sizes = {"out": 0, "err": 0}
        self.hashes = {"out": hashlib.sha256(), "err": hashlib.sha256()}
        self.kept = {"out": b"", "err": b""}
        self.end: dict[str, Any] = {}

    def take(self, head: dict[str, Any], body: bytes) -> None:
        """Take in a piece, which must begin where the last one ended."""
        name = head["s"]
        assert head["at"] == self.sizes[name], f"{name} continues at {head['at']}, not at {self.sizes[name]}"
        self.sizes[name] += len(body)
        self.hashes[name].update(body)
        if len(self.kept[name]) < self.KEPT:
            self.kept[name] += body

    @property
    def out(self) -> bytes:
        return self.kept["out"]

    @property
    def err(self) -> bytes:
        return self.kept["err"]


def high_water(pid: int) -> int:
    """Most memory a process ever used, in bytes."""
    line = next(ln for ln in Path(f"/proc/{pid}/status").read_text().splitlines() if ln.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def old_pythons() -> list[str]:
    """Interpreters of this machine the agent must run on and our client does not: 3.6 to 3.10, oldest first."""
    found = [shutil.which(f"python3.{minor}") for minor in range(6, 11)]
    found += [
        str(path) for path in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3"))
        if path.parts[-3].split(".")[1] in ("6", "7", "8", "9", "10")
    ]  # fmt: skip
    good = {}
    for path in filter(None, found):
        done = subprocess.run(
            [path, "-c", "import sys; print(sys.version_info[1])"], capture_output=True, check=False
        )
        if done.returncode == 0:
            good.setdefault(int(done.stdout), path)
    return [good[minor] for minor in sorted(good) if minor < 11]
