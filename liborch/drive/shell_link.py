"""The client's end of the fallback for nodes without python3: an AgentLink over lines of text and plain commands.

One channel runs the fallback's `session` for as long as the link lives; it takes one-line commands and prints one-line
events, some with raw bytes behind them whose number the line tells. Output that is followed and files that travel
use channels of their own. What the node does is `agent/fallback/`'s, files are `shell_transfer.py`'s; this file turns
orders into scripts, lines into events, and decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

from liborch.drive.link import GREETING_S, AgentEvent
from liborch.drive.shell import (
    MAX_LINE,
    Shell,
    ShellPipe,
    command,
    fallback_script,
    opened,
    quoted,
    session_command,
)
from liborch.drive.shell_orders import VARIABLE, checked, head_of, normal, script_of
from liborch.drive.shell_output import ShellOutput
from liborch.drive.shell_transfer import ShellTransfer
from liborch.errors import AgentError, HostUnreachable
from liborch.transfer.stream import Stream

#: Output that travels with a verdict is remembered for who follows it, for so many executions.
_REMEMBERED = 200
#: The most bytes of output, or of a procedure's note, that one line announces.
_MAX_BODY = 8 << 20

#: What cannot be had without python3, for people.
LIMITS = (
    "executions start more slowly: about ten processes each",
    "memory is counted, not enforced, and neither it nor CPU time is measured",
    "cores are counted, not bound",
    "no pseudo-terminal (--tty)",
    "a process that cleared its environment and left its process group is not found when its execution is cancelled",
    "code is stored once per snapshot, not per file, and a large result that was interrupted is fetched anew",
)


class ShellLink:
    """AgentLink to a node that has only sh."""

    def __init__(self, host: str, shell: Shell) -> None:
        self.host = host
        self.hello: dict[str, Any] = {}
        #: Client's wall clock minus the node's, in seconds, as of the greeting.
        self.clock_skew_s = 0.0
        self._shell = shell
        self._pipe: ShellPipe | None = None
        self._marker = f"orchestra-{secrets.token_hex(8)}"
        self._buffer = bytearray()
        self._out: deque[bytes] = deque()
        self._out_wake = asyncio.Event()
        self._replies: dict[str, asyncio.Future[Any]] = {}
        self._tags = 0
        self._owner = "-"
        self._expanded: list[str] = []
        self._state = ""
        self._on_events: Callable[[list[AgentEvent]], None] | None = None
        self._on_attached: Callable[[dict[str, Any]], None] | None = None
        self._on_lost: Callable[[str], None] | None = None
        self._lost: str | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._streams: set[ShellOutput | ShellTransfer] = set()
        #: {(id, attempt): (out, err)} that came with a verdict.
        self._inline: OrderedDict[tuple[str, int], tuple[bytes, bytes]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<ShellLink {self.host}: {self._lost or 'open'}, {len(self._streams)} streams>"

    async def start(self, why: str = "has no python3") -> None:
        """Bring the fallback to the node and wait for its greeting. `why`: what kept python3 from being used.

        Cancelled or failed: the channel is closed.

        Raises:
            AgentError, HostUnreachable.
        """
        try:
            async with asyncio.timeout(GREETING_S):
                self._pipe = await self._shell.open(session_command(self._marker))
                self._greet(await self._begin(), why)
        except TimeoutError:
            self._close_pipe()
            raise AgentError(
                self.host, f"the fallback gave no answer in {GREETING_S:.0f} s", retriable=True
            ) from None
        except OSError as error:
            self._close_pipe()
            raise HostUnreachable(self.host, self.host, "hung up while the fallback was started") from error
        except BaseException:
            self._close_pipe()
            raise
        self._tasks = [asyncio.ensure_future(self._read()), asyncio.ensure_future(self._write())]

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            self._pipe.close()

    async def _begin(self) -> list[str]:
        """See the start through; return the greeting's fields."""
        assert self._pipe is not None
        while True:
            line = (await self._line()).decode("utf-8", "replace")
            at = line.find(self._marker)
            if at >= 0:
                word = line[at + len(self._marker) :]
                if word == "need":
                    await self._pipe.write(fallback_script()[1] + f"{self._marker}\n".encode())
                elif word == "nowrite":
                    raise AgentError(
                        self.host,
                        "the fallback cannot be put into the home folder",
                        detail=self._complaint(),
                    )
            elif line.startswith("failed "):
                raise AgentError(self.host, "the fallback could not start", detail=line[7:])
            elif line.startswith("hello\t"):
                return line.split("\t")[1:]

    def _complaint(self) -> str:
        assert self._pipe is not None
        tail = self._pipe.stderr_tail().decode("utf-8", "replace").strip().splitlines()
        return tail[-1] if tail else ""

    def _greet(self, fields: list[str], why: str) -> None:
        try:
            state_id, boot, node, clock, pid, keeper, detach, means, user, folder = fields
            found = means.split(",")
            limits = list(LIMITS)
            if detach == "nohup":
                limits.append("no setsid there: only processes that carry our mark are found and ended")
            elif detach == "session":
                limits.append("INT and QUIT are ignored by what is started")
            if "sha256sum" not in found:
                limits.append("no sha256sum there: a sent file that was only touched counts as changed")
            self.hello = {
                "protocol": 1,
                "state_id": state_id,
                "boot_id": boot,
                "node": node,
                "python": "",
                "why": why,
                "limits": limits,
                "user": user,
                "clock": float(clock),
                "pid": int(pid),
                "keeper_pid": int(keeper),
                "folder": folder,
                "means": [name for name in found if name],
            }
        except ValueError as error:
            raise AgentError(
                self.host, "the fallback's greeting makes no sense", detail=repr(fields)[:200]
            ) from error
        self._state = folder
        self.clock_skew_s = time.time() - self.hello["clock"]

    # -- reading

    async def _more(self) -> None:
        assert self._pipe is not None
        data = await self._pipe.read(1 << 18)
        if not data:
            status = await self._pipe.wait()
            if status is None:
                raise ConnectionResetError("the connection was closed")
            raise AgentError(self.host, f"the fallback ended with status {status}", detail=self._complaint())
        self._buffer += data

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE:
                raise AgentError(self.host, "printed an endless line where the fallback was expected")
            await self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def _bytes(self, count: int) -> bytes:
        if not 0 <= count <= _MAX_BODY:
            raise ValueError(f"{count} bytes announced")
        while len(self._buffer) < count:
            await self._more()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def _read(self) -> None:
        why = "the connection was closed"
        try:
            while True:
                line = (await self._line()).decode("utf-8", "replace")
                try:
                    await self._on_line(line)
                except (ValueError, IndexError, KeyError) as error:
                    why = f"the fallback broke the protocol: {line[:80]!r} ({error})"
                    break
        except (OSError, AgentError) as error:
            why = str(error)
        finally:
            self._lose(why)

    async def _on_line(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        if kind == "O":
            out, err, note, rest = rest.split(" ", 3)
            sizes = [int(out), int(err), int(note)]
            bodies = [await self._bytes(size) for size in sizes]
            self._on_event(rest.partition(" ")[2], bodies)
        elif kind == "E":
            self._on_event(rest, [b"", b"", b""])
        elif kind == "A":
            self._attached(rest)
        elif kind == "X":
            tag, size = rest.split(" ")
            self._reply(tag, (await self._bytes(int(size))).split(b"\0")[:-1])
        elif kind == "S":
            tag, _, text = rest.partition(" ")
            self._reply(tag, self._status(text))
        elif kind == "T":
            tag, answer = rest.split(" ")
            self._reply(tag, {"t": "retiring", "yes": answer == "yes"})

    def _reply(self, tag: str, value: Any) -> None:
        future = self._replies.pop(tag, None)
        if future is not None and not future.done():
            future.set_result(value)

    def _on_event(self, text: str, bodies: list[bytes]) -> None:
        n, kind, x, attempt, out, err, _note, told = text.split(" ", 7)
        fields = dict(each.split("=", 1) for each in told.split("\t") if "=" in each)
        detail: dict[str, Any] = {}
        for name in ("slot", "code", "signal"):
            if name in fields:
                detail[name] = int(fields[name])
        if "start" in fields:
            detail["start"] = float(fields["start"])
        if "dur" in fields:
            detail["dur"] = int(fields["dur"]) / 100
        if "means" in fields:
            detail["means"] = [fields["means"]]
        if "why" in fields:
            detail["why"] = fields["why"]
        if kind == "ended":
            self._on_ended(detail, fields, (x, int(attempt)), (int(out), int(err)), bodies)
        if self._on_events is not None:
            self._on_events([[int(n), self._owner, kind, x, int(attempt), detail]])

    def _on_ended(
        self,
        detail: dict[str, Any],
        fields: dict[str, str],
        key: tuple[str, int],
        sizes: tuple[int, int],
        bodies: list[bytes],
    ) -> None:
        detail["reason"] = fields["reason"]
        detail.setdefault("code", None)
        detail.setdefault("signal", None)
        detail.setdefault("why", "")
        for name, size, body in zip(("out", "err"), sizes, bodies, strict=False):
            if size:
                detail[f"{name}_size"] = size
                if len(body) == size:
                    detail[name] = body.decode("latin-1")
        if bodies[2]:
            detail["outcome"] = bodies[2].decode("latin-1")
        if (len(bodies[0]), len(bodies[1])) != sizes:
            detail["files"] = True
            return
        self._inline[key] = (bodies[0], bodies[1])
        if len(self._inline) > _REMEMBERED:
            self._inline.popitem(last=False)
        for stream in self._streams:
            if isinstance(stream, ShellOutput) and stream.key == key:
                stream.finish(bodies[0], bodies[1])

    def _attached(self, text: str) -> None:
        front, _, held = text.partition("|")
        last, cpus, used, memory, used_memory, gpus = front.split()
        holding = []
        for each in held.split():
            x, attempt, state = each.rsplit(":", 2)
            holding.append([x, int(attempt), state])
        head = {
            "t": "attached",
            "last": int(last),
            "holding": holding,
            "room": _room(cpus, used, memory, used_memory, gpus),
            "expanded": self._expanded,
        }
        if self._on_attached is not None:
            self._on_attached(head)

    @staticmethod
    def _status(text: str) -> dict[str, Any]:
        front, _, told = text.partition("|")
        keeper, queued, cpus, used, memory, used_memory, gpus = front.split()
        runs = []
        for each in told.split():
            x, attempt, owner, slot, pid, ticks, paused = each.rsplit(":", 6)
            runs.append(
                {
                    "x": x,
                    "a": int(attempt),
                    "owner": owner,
                    "slot": int(slot),
                    "pid": int(pid),
                    "seconds": int(ticks) / 100,
                    "paused": paused == "1",
                    "means": [],
                }
            )
        return {
            "t": "status",
            "keeper_pid": int(keeper),
            "room": _room(cpus, used, memory, used_memory, gpus),
            "runs": runs,
            "queued": int(queued),
            "holds": [],
            "sync_error": "",
            "stuck": "",
        }

    def _lose(self, why: str) -> None:
        if self._lost is not None:
            return
        self._lost = why
        for stream in list(self._streams):
            stream.lose(why)
        self._streams.clear()
        for future in self._replies.values():
            if not future.done():
                future.set_exception(AgentError(self.host, why, retriable=True))
        self._out_wake.set()
        self._close_pipe()
        if self._on_lost is not None:
            on_lost, self._on_lost = self._on_lost, None
            on_lost(why)

    # -- writing

    def _post(self, text: str) -> None:
        if self._lost is None:
            self._out.append(text.encode("utf-8", "surrogateescape"))
            self._out_wake.set()

    async def _write(self) -> None:
        assert self._pipe is not None
        try:
            while self._lost is None:
                await self._out_wake.wait()
                self._out_wake.clear()
                while self._out:
                    await self._pipe.write(self._out.popleft())
        except OSError as error:
            self._lose(str(error) or "the connection broke")

    # -- the driver's side

    async def attach(
        self,
        owner: str,
        ack: int,
        capacity: dict[str, int],
        on_events: Callable[[list[AgentEvent]], None],
        on_attached: Callable[[dict[str, Any]], None],
        on_lost: Callable[[str], None],
        expand: Sequence[str] = (),
    ) -> None:
        """See AgentLink."""
        self._on_events = on_events
        self._on_attached = on_attached
        self._on_lost = on_lost
        self._owner = checked(owner)
        with contextlib.suppress(AgentError):
            self._expanded = await self._expand(expand)
        if self._lost is not None:
            if self._on_lost is not None:
                self._on_lost = None
                on_lost(self._lost)
            return
        room = [str(capacity.get(name, "-")) for name in ("cpus", "memory_bytes")]
        self._post(f"attach {owner} {ack} {' '.join(room)}\n")

    def order(self, common: dict[str, Any], orders: Sequence[tuple[str, int, dict[str, Any]]]) -> None:
        """See AgentLink."""
        for x, attempt, own in orders:
            head = head_of(checked(x), attempt, self._owner, own)
            script = script_of(x, self.hello.get("node", ""), common, own)
            self._post(f"order {self._marker} {head}\n{script}\n{self._marker}\n")

    def tell(self, kind: str, **fields: Any) -> None:
        """See AgentLink."""
        owner = self._owner
        if kind == "ack":
            self._post(f"ack {owner} {int(fields['n'])}\n")
        elif kind == "unhold":
            self._post(f"unhold {owner} {checked(fields['lease'])}\n")
        elif kind == "forget":
            self._post(f"forget {owner}\n")
        elif kind == "signal":
            self._post(f"signal {checked(fields['x'])} {int(fields['a'])} {int(fields['number'])}\n")
        elif kind != "depart":
            grace = fields.get("grace")
            for x, attempt in fields["ids"]:
                words = [kind, checked(x), str(int(attempt))]
                if kind == "cancel":
                    words.insert(1, owner)
                    if grace is not None:
                        words.append(str(round(float(grace) * 100)))
                self._post(f"{' '.join(words)}\n")

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """See AgentLink."""
        if kind == "expand":
            return {"t": "expanded", "texts": await self._expand(fields["texts"])}
        if kind == "ping":
            await self._values(())
            return {"t": "pong", "clock": time.time() - self.clock_skew_s, "at": fields.get("at")}
        if kind == "probe":
            return await self._probe(str(fields["path"]))
        if kind not in ("status", "retire"):
            raise AgentError(self.host, f"the fallback has no answer to {kind!r}")
        reply: dict[str, Any] = await self._request(kind)
        return reply

    async def _request(self, kind: str, *words: str) -> Any:
        if self._lost is not None:
            raise AgentError(self.host, self._lost, retriable=True)
        self._tags += 1
        tag = str(self._tags)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies[tag] = future
        self._post(f"{' '.join([kind, tag, *words])}\n")
        return await future

    async def _probe(self, path: str) -> dict[str, Any]:
        """What room is at a folder's place, as the agent's `probe` tells it."""
        try:
            async with opened(await self._run_script(b"probe %b" % quoted(path))) as reader:
                reader.pipe.write_eof()
                word, _, rest = (await reader.line()).decode("utf-8", "replace").partition(" ")
                if word == "error":
                    return {"t": "probe", "error": rest}
                free, files = map(int, rest.split())
        except (OSError, ValueError) as error:
            raise AgentError(
                self.host, f"the fallback cannot look at {path}: {error}", retriable=True
            ) from error
        return {"t": "probe", "free_bytes": free, "free_inodes": files}

    async def _values(self, names: Sequence[str]) -> list[bytes]:
        """Return the login's variables by name, empty ones where there is none."""
        values: list[bytes] = await self._request("values", *names)
        return values

    async def _expand(self, texts: Sequence[str]) -> list[str]:
        """Fill the login's variables into folders' names, as its shell would: `$HOME/x`, `~/x`."""
        names = ["HOME", *{a or b for text in texts for a, b in VARIABLE.findall(text)} - {"HOME"}]
        values = dict(
            zip(
                names, (v.decode("utf-8", "surrogateescape") for v in await self._values(names)), strict=False
            )
        )
        home = values.get("HOME") or "/"
        return [normal(text, home, values) for text in texts]

    def open_stream(self, kind: str, **fields: Any) -> Stream:
        """See AgentLink."""
        stream: ShellOutput | ShellTransfer
        if kind == "transfer":
            stream = ShellTransfer(self.host, self._run_script, self._streams.discard)
        else:
            key = (checked(fields["x"]), int(fields["a"]))
            stream = ShellOutput(self._shell, key, fields, self._streams.discard)
            if kind == "tty":
                stream.lose("there is no pseudo-terminal without python3")
            elif key in self._inline:
                stream.finish(*self._inline[key])
        if self._lost is not None:
            stream.lose(self._lost)
        else:
            self._streams.add(stream)
        return stream

    async def _run_script(self, script: bytes) -> ShellPipe:
        """Start a script with the fallback's functions on a channel of its own; its stdin is what is written afterwards."""
        marker = f"orchestra-{secrets.token_hex(8)}"
        pipe = await self._shell.open(command(f"do {marker}"))
        try:
            await pipe.write(script + b"\n" + marker.encode() + b"\n")
        except BaseException:
            pipe.close()
            raise
        return pipe

    async def close(self) -> None:
        """Hang up; executions go on. Never raises."""
        self._on_lost = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._lose("it was closed")


def _room(cpus: str, used: str, memory: str, used_memory: str, gpus: str) -> dict[str, Any]:
    names = [] if gpus == "-" else gpus.split(",")
    return {
        "cpus": int(cpus),
        "used_cpus": int(used),
        "memory_bytes": int(memory),
        "used_memory": int(used_memory),
        "gpus": names,
        "free_gpus": names,
        "means": {},
    }
