"""The worker's half of a transfer where the node has only sh: `send.py` and `fetch.py` talk to it as to the real one.

It is a Stream. What the client sends is answered here, on this machine, by running small scripts on the node (their
functions are in `agent/fallback.sh`): code goes out as a tar stream, or file by file where there is no tar; results
come back with their size in front. What was sent is remembered on the node in `DIRECTORY/.orchestra/sh/`:

    code/SNAPSHOT/          the files as they were sent, once
    folders/HASH/           of a folder: snapshot, manifest, made (by us? with how many folders above it),
                            listing (right after we filled it), before (what it held when we came), kept/ (moved aside)

Nothing the node says is trusted with a path of this machine: that is `transfer/landing.py`'s, behind `fetch.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import posixpath
import secrets
import struct
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from liborch.agent import frames
from liborch.errors import AgentError, HostUnreachable, TransferError

if TYPE_CHECKING:
    from liborch.drive.shell_link import ShellPipe

#: The most a node may list of one folder, in bytes.
MAX_LISTING = 1 << 29
_SMALL = 128 << 10


class _Refused(Exception):
    """The node or the request does not allow it, in words."""


@dataclass(frozen=True)
class _Facts:
    """What tells whether an entry is as it was: file type and permissions, size, time, inode, time of change."""

    mode: int
    size: int
    mtime: int
    inode: int
    changed: bytes

    @property
    def kind(self) -> str:
        """As in a listing of the worker: f x l d s."""
        by_type = {0o100000: "f", 0o120000: "l", 0o040000: "d"}
        kind = by_type.get(self.mode & 0o170000, "s")
        return "x" if kind == "f" and self.mode & 0o111 else kind


@dataclass(frozen=True)
class _Sent:
    """One entry of a manifest."""

    kind: str
    size: int = 0
    digest: str = ""
    target: bytes = b""


@dataclass
class _Known:
    """What the node knows of a folder."""

    #: After `prepare`: whether the code is there; after `look`: whether the folder is one we filled.
    found: bool = False
    #: Whether we made the folder.
    made: bool = False
    manifest: dict[bytes, _Sent] = field(default_factory=dict)
    #: Right after we filled it.
    listing: dict[bytes, _Facts] = field(default_factory=dict)
    before: dict[bytes, _Facts] = field(default_factory=dict)
    #: Now.
    present: dict[bytes, _Facts] = field(default_factory=dict)
    exists: bool = True

    def state(self, path: bytes) -> str:
        """Of an entry that is there now: m made by the execution, c changed, u as it was sent, ? to be looked at, b before us."""
        facts = self.present[path]
        sent = self.manifest.get(path)
        if sent is None:
            if path not in self.before:
                return "m"
            return "b" if self.before[path] == facts else "c"
        if self.listing.get(path) == facts:
            return "u"
        if facts.kind != sent.kind or facts.kind not in "fx" or facts.size != sent.size:
            return "c"
        return "?"


class ShellTransfer:
    """A Stream whose other end is this very object, working with scripts on the node.

    Args:
        host: What the node is called in errors.
        run: Starts a script on the node, its input to be written.
        closed: Told when the conversation is over.
    """

    def __init__(
        self,
        host: str,
        run: Callable[[bytes], Awaitable[ShellPipe]],
        closed: Callable[[Any], None],
    ) -> None:
        self._host = host
        self._run = run
        self._closed = closed
        self._requests: asyncio.Queue[tuple[dict[str, Any], bytes]] = asyncio.Queue(8)
        self._answers: asyncio.Queue[tuple[dict[str, Any], bytes]] = asyncio.Queue(8)
        self._over = asyncio.Event()
        self._lost: str | None = None
        self._task = asyncio.ensure_future(self._serve())

    # -- the client's side

    def lose(self, why: str) -> None:
        """Note that the link is gone."""
        if self._lost is None:
            self._lost = why
            self._over.set()
            self._task.cancel()

    async def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        """See Stream."""
        await self._unless_lost(self._requests.put((head, body)))

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        """See Stream."""
        if not self._answers.empty():
            return self._answers.get_nowait()
        answer: tuple[dict[str, Any], bytes] = await self._unless_lost(self._answers.get())
        return answer

    async def _unless_lost(self, work: Any) -> Any:
        working = asyncio.ensure_future(work)
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({working, over}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise TransferError(f"the transfer was interrupted: {self._lost}", retriable=True)
        finally:
            working.cancel()
            over.cancel()

    async def close(self) -> None:
        """See Stream."""
        self.lose("it was closed")
        await asyncio.gather(self._task, return_exceptions=True)
        self._closed(self)

    # -- the worker's side

    async def _serve(self) -> None:
        services = {"send": self._receive_code, "fetch": self._give_results, "clean": self._clean}
        while True:
            head, _body = await self._requests.get()
            service = services.get(str(head.get("t")))
            if service is None:
                continue  # left over from a conversation that failed
            try:
                await service(head)
            except _Refused as refused:
                why = refused.args[0]
                error = {"kind": "changed", "paths": why} if isinstance(why, list) else {"why": why}
                await self._answer({"t": "error", **error})
            except (OSError, AgentError, HostUnreachable) as error:
                self.lose(str(error) or "the connection broke")
            except (ValueError, IndexError, KeyError) as error:
                await self._answer({"t": "error", "why": f"the fallback's answer makes no sense ({error!r})"})

    async def _answer(self, head: dict[str, Any], body: bytes = b"") -> None:
        await self._answers.put((head, body))

    async def _script(self, script: bytes) -> bytes:
        """Run a script that needs no input and return what it printed."""
        async with _opened(await self._run(script)) as reader:
            reader.pipe.write_eof()
            return await reader.rest(self._host)

    # -- code

    async def _receive_code(self, head: dict[str, Any]) -> None:
        directory, folder, index = self._places(head)
        snapshot = str(head["snapshot"])
        if not snapshot.isalnum():
            raise _Refused("the snapshot's name is none")
        await self._answer({"t": "want"})
        text = b""
        while True:
            manifest_head, piece = await self._requests.get()
            text += piece
            if manifest_head.get("last"):
                break
        manifest = parse_manifest(text)
        words = b" ".join([_quoted(directory), _quoted(folder), _quoted(index), snapshot.encode()])
        known = await self._know(b"prepare " + words, "ready")
        code = posixpath.join(directory, ".orchestra", "sh", "code", snapshot)
        if not known.found:
            await self._unpack(code, manifest)
        report = await self._place(code, folder, index, manifest, text, known)
        await self._answer({"t": "done", **report})

    async def _unpack(self, code: str, manifest: dict[bytes, _Sent]) -> None:
        """Ask for every content and put the tree into the node's code folder, whole or not at all."""
        by_digest: dict[str, list[bytes]] = {}
        for path, sent in manifest.items():
            if sent.kind in "fx":
                by_digest.setdefault(sent.digest, []).append(path)
        digests = list(by_digest)
        temporary = f"{code}.{secrets.token_hex(6)}"
        script = b"mkdir %b && cd %b || { echo refused mkdir; exit 0; }\n" % (
            _quoted(temporary),
            _quoted(temporary),
        )
        script += b"command -v tar >/dev/null 2>&1 || { echo notar; exit 0; }\n"
        script += b"echo tar\ntar xf - 2>&1 || { echo refused tar; exit 0; }\n"
        twins = b"".join(_twins(paths, manifest) for paths in by_digest.values())
        script += twins
        script += b"cd / && { [ -d %b ] || mv %b %b; } && echo done\n" % (
            _quoted(code),
            _quoted(temporary),
            _quoted(code),
        )
        async with _opened(await self._run(script)) as reader:
            word = await reader.line()
            if word not in (b"tar", b"notar"):
                raise _Refused(f"{temporary}: cannot be made on the node")
            writer = _Tar(reader.pipe) if word == b"tar" else _Files(self._script_with, temporary)
            numbers = range(len(digests))
            await self._answer(
                {"t": "missing", "parts": [], "last": True}, struct.pack(f">{len(digests)}I", *numbers)
            )
            await self._take_contents(writer, digests, by_digest, manifest)
            for path, sent in manifest.items():
                if sent.kind == "l":
                    await writer.link(path, sent.target)
                elif sent.kind == "d":
                    await writer.folder(path)
            await writer.end()
            if word == b"tar":
                said = (await reader.rest(self._host)).decode("utf-8", "replace").strip()
                if not said.endswith("done"):
                    raise _Refused(f"the code could not be unpacked on the node: {said[-300:]}")
                return
        script = b"cd %b || exit 0\n%bcd / && mv %b %b && echo done" % (
            _quoted(temporary),
            twins,
            _quoted(temporary),
            _quoted(code),
        )
        said = (await self._script(script)).decode("utf-8", "replace")
        if not said.endswith("done\n"):
            raise _Refused(f"the code could not be put in place on the node: {said[-300:]}")

    async def _take_contents(
        self,
        writer: _Tar | _Files,
        digests: list[str],
        by_digest: dict[str, list[bytes]],
        manifest: dict[bytes, _Sent],
    ) -> None:
        """Pass contents on as they come; every one is checked against its hash."""
        running: tuple[int, Any] | None = None
        broken: list[str] = []
        while True:
            head, body = await self._requests.get()
            kind = head.get("t")
            if kind == "small":
                at = 0
                for number, size in zip(head["k"], head["s"], strict=True):
                    data = body[at : at + size]
                    at += size
                    if hashlib.sha256(data).hexdigest() != digests[number]:
                        broken.append(_text(by_digest[digests[number]][0]))
                    path = by_digest[digests[number]][0]
                    await writer.file(path, manifest[path].kind, len(data))
                    await writer.data(data)
            elif kind == "large":
                number = head["k"]
                paths = by_digest[digests[number]]
                if running is None or running[0] != number:
                    running = (number, hashlib.sha256())
                    await writer.file(paths[0], manifest[paths[0]].kind, manifest[paths[0]].size)
                running[1].update(body)
                await writer.data(body)
                if (
                    head["at"] + len(body) >= manifest[paths[0]].size
                    and running[1].hexdigest() != digests[number]
                ):
                    broken.append(_text(paths[0]))
            elif kind == "sent":
                break
        if broken:
            raise _Refused(broken)

    async def _script_with(self, script: bytes, data: bytes) -> bytes:
        async with _opened(await self._run(script)) as reader:
            await reader.pipe.write(data)
            reader.pipe.write_eof()
            return await reader.rest(self._host)

    async def _place(
        self,
        code: str,
        folder: str,
        index: str,
        manifest: dict[bytes, _Sent],
        text: bytes,
        known: _Known,
    ) -> dict[str, Any]:
        """Bring the folder to the state of the code, writing only what differs."""
        lines = [b"cd %b || exit 0" % _quoted(folder)]
        displaced: list[list[str]] = []
        if not known.present:
            lines.append(b"cp -RPp %b/. . || exit 0" % _quoted(code))
            written = len(manifest)
        else:
            written = 0
            for path in known.manifest:
                # Code of an earlier snapshot that is no longer part of it.
                if path not in manifest and known.present.get(path) == known.listing.get(path) is not None:
                    lines.append(b"rm -f %b 2>/dev/null" % _quoted(b"./" + path))
            for path, sent in manifest.items():
                there = known.present.get(path)
                same = known.manifest.get(path) == sent and known.listing.get(path) == there
                if there is not None and (same or (sent.kind == there.kind == "d")):
                    continue
                where = _quoted(b"./" + path)
                if there is not None and known.manifest.get(path) is None and path in known.before:
                    kept = posixpath.join(index, "kept", str(len(displaced) + 1))
                    displaced.append([_text(path), kept])
                    lines.append(
                        b"mkdir -p %b && mv %b %b && put %b %b || exit 0"
                        % (
                            _quoted(posixpath.dirname(kept)),
                            where,
                            _quoted(kept),
                            _quoted(kept + ".path"),
                            where,
                        )
                    )
                elif there is not None:
                    lines.append(b"rm -rf %b" % where)
                parent = posixpath.dirname(path)
                if parent and parent not in known.present:
                    lines.append(b"mkdir -p %b || exit 0" % _quoted(b"./" + parent))
                lines.append(b"cp -RPp %b %b || exit 0" % (_quoted(code.encode() + b"/" + path), where))
                written += 1
        lines.append(b"list %b >%b" % (_quoted(folder), _quoted(index + "/listing.new")))
        lines.append(b"cat >%b" % _quoted(index + "/manifest.new"))
        lines.append(
            b"cd %b && mv listing.new listing && mv manifest.new manifest && echo done" % _quoted(index)
        )
        said = (await self._script_with(b"\n".join(lines), text)).decode("utf-8", "replace")
        if not said.endswith("done\n"):
            raise _Refused(f"{folder} could not be filled on the node: {said[-300:]}")
        return {"written": written, "displaced": displaced, "fresh": known.made and not known.listing}

    # -- results

    async def _know(self, script: bytes, word: str) -> _Known:
        """Run a script that tells what is known of a folder and read it."""
        async with _opened(await self._run(script + b" 2>&1")) as reader:
            reader.pipe.write_eof()
            line = (await reader.line()).decode("utf-8", "replace")
            words = line.split()
            if len(words) != 3 or words[0] != word:
                raise _Refused(f"the node's folders cannot be used: {line[:300]}")
            known = _Known(words[1] == "yes", words[2] == "yes")
            known.manifest = parse_manifest(await reader.sized())
            known.listing, _ = parse_listing(await reader.sized())
            known.before, _ = parse_listing(await reader.sized())
            known.present, known.exists = parse_listing(await reader.rest(self._host))
        return known

    def _places(self, head: dict[str, Any]) -> tuple[str, str, str]:
        directory, folder = str(head["directory"]), str(head["folder"])
        for path in (directory, folder):
            if not path.startswith("/"):
                raise _Refused(f"{path!r} is not an absolute path")
        folder = posixpath.normpath(folder)
        name = hashlib.sha256(folder.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return directory, folder, posixpath.join(directory, ".orchestra", "sh", "folders", name)

    async def _look(self, index: str, folder: str) -> _Known:
        return await self._know(b"look %b %b" % (_quoted(index), _quoted(folder)), "known")

    async def _give_results(self, head: dict[str, Any]) -> None:
        _directory, folder, index = self._places(head)
        known = await self._look(index, folder)
        states = await self._states(known, folder)
        targets = await self._link_targets(known, folder)
        filled = {posixpath.dirname(path) for path in known.present}
        entries: list[bytes] = []
        records: list[bytes] = []
        for path, facts in sorted(known.present.items()):
            state, kind = states[path], facts.kind
            if state == "b" or (state == "u" and not head.get("sent")):
                continue
            if kind == "d" and (state != "m" or path in filled):
                continue
            nanoseconds = facts.mtime * 10**9 if facts.mtime >= 0 else -1
            record = b"%b\0%b %b %d %d" % (path, kind.encode(), state.encode(), facts.size, nanoseconds)
            if kind == "l":
                record += b" " + targets.get(path, b"")
            entries.append(path)
            records.append(record + b"\0")
        for at in range(0, len(records), 1000):
            await self._answer({"t": "list", "last": False}, b"".join(records[at : at + 1000]))
        await self._answer({"t": "list", "last": True})
        wanted: list[int] = []
        while True:
            answer, body = await self._requests.get()
            wanted += struct.unpack(f">{len(body) // 4}I", body)
            if answer.get("last"):
                break
        if wanted:
            await self._give_files(folder, entries, wanted)
        await self._answer({"t": "done"})

    async def _states(self, known: _Known, folder: str) -> dict[bytes, str]:
        """Tell made from changed; a sent file whose times differ is hashed there, if that is possible."""
        states = {path: known.state(path) for path in known.present}
        doubtful = [path for path, state in states.items() if state == "?"]
        if doubtful:
            lines = [b"cd %b || exit 0" % _quoted(folder)]
            lines += [b"echo $(sha256sum <%b 2>/dev/null)" % _quoted(b"./" + path) for path in doubtful]
            told = (await self._script(b"\n".join(lines))).split(b"\n")
            for path, line in zip(doubtful, told, strict=False):
                same = line.split(b" ")[0].decode("ascii", "replace") == known.manifest[path].digest
                states[path] = "u" if same else "c"
        return {path: "c" if state == "?" else state for path, state in states.items()}

    async def _link_targets(self, known: _Known, folder: str) -> dict[bytes, bytes]:
        links = [path for path, facts in known.present.items() if facts.kind == "l"]
        if not links:
            return {}
        lines = [b"cd %b || exit 0" % _quoted(folder)]
        # A target may end in newlines: the dot keeps them from being taken off.
        lines += [
            b"t=$(readlink %b && echo .); printf '%%s\\0' \"${t%%.}\"" % _quoted(b"./" + path)
            for path in links
        ]
        told = (await self._script(b"\n".join(lines))).split(b"\0")
        return {path: target.removesuffix(b"\n") for path, target in zip(links, told, strict=False)}

    async def _give_files(self, folder: str, entries: list[bytes], wanted: list[int]) -> None:
        marker = secrets.token_hex(16).encode()
        lines = [b"cd %b || exit 0" % _quoted(folder)]
        lines += [b"take %d %b %b" % (k, _quoted(b"./" + entries[k]), marker) for k in wanted]
        async with _opened(await self._run(b"\n".join(lines))) as reader:
            reader.pipe.write_eof()
            for k in wanted:
                words = (await reader.line()).split()
                if len(words) == 2 and words[0] == b"gone" and int(words[1]) == k:
                    await self._answer({"t": "gone", "k": k, "why": "no file that can be read"})
                    continue
                if len(words) != 3 or words[0] != b"file" or int(words[1]) != k or int(words[2]) < 0:
                    raise ValueError(words[:3])
                await self._give_file(reader, k, int(words[2]))
                if await reader.exactly(len(marker) + 2) != b"\n" + marker + b"\n":
                    self.lose("a file changed while it was fetched")
                    return

    async def _give_file(self, reader: _Reader, k: int, size: int) -> None:
        if size <= _SMALL:
            data = await reader.exactly(size)
            await self._answer({"t": "small", "k": [k], "s": [size]}, hashlib.sha256(data).digest() + data)
            return
        at, running = 0, hashlib.sha256()
        while at < size:
            piece = await reader.exactly(min(frames.CHUNK, size - at))
            running.update(piece)
            end = at + len(piece) == size
            head = {"t": "large", "k": k, "at": at, "end": end, "sha": running.hexdigest() if end else ""}
            await self._answer(head, piece)
            at += len(piece)

    # -- tidying up

    async def _clean(self, head: dict[str, Any]) -> None:
        directory, folder, index = self._places(head)
        leave = str(head["leave"])
        report: dict[str, Any] = {"t": "done", "removed": 0, "restored": [], "kept": []}
        known = await self._look(index, folder)
        if leave != "everything" and known.found:
            states = {path: known.state(path) for path in known.present}
            if leave == "code":
                await self._leave_code(directory, folder, index, known, states, report)
            elif leave == "nothing":
                await self._leave_nothing(folder, index, known, states, report)
        if leave == "nothing" and not head.get("keep_store"):
            await self._script(b"collect %b" % _quoted(directory))
        await self._answer(report)

    async def _leave_code(
        self,
        directory: str,
        folder: str,
        index: str,
        known: _Known,
        states: dict[bytes, str],
        report: dict[str, Any],
    ) -> None:
        code = posixpath.join(directory, ".orchestra", "sh", "code")
        lines = [b"read -r snapshot <%b || exit 0" % _quoted(index + "/snapshot")]
        lines.append(b"cd %b || exit 0" % _quoted(folder))
        for path in _deepest_first(known.present):
            if states[path] == "m" and not _is_above(path, known.manifest):
                lines.append(_remove(path, known.present[path]))
                report["removed"] += 1
        for path in known.manifest:
            if path not in states or states[path] in "c?":
                where = _quoted(b"./" + path)
                lines.append(
                    b'rm -rf %b; cp -RPp %b/"$snapshot"/%b %b' % (where, _quoted(code), _quoted(path), where)
                )
        lines.append(b"list %b >%b" % (_quoted(folder), _quoted(index + "/listing.new")))
        lines.append(b"mv %b %b" % (_quoted(index + "/listing.new"), _quoted(index + "/listing")))
        await self._script(b"\n".join(lines))

    async def _leave_nothing(
        self, folder: str, index: str, known: _Known, states: dict[bytes, str], report: dict[str, Any]
    ) -> None:
        if known.made:
            report["removed"] = len(known.present)
            lines = [
                b"read -r fresh made <%b || made=1" % _quoted(index + "/made"),
                b"rm -rf %b" % _quoted(folder),
                b'unmake %b "$((made - 1))"' % _quoted(posixpath.dirname(folder)),
            ]
        else:
            lines = [b"cd %b || exit 0" % _quoted(folder)]
            for path in _deepest_first(known.present):
                if path not in known.before or path in known.manifest:
                    lines.append(_remove(path, known.present[path]))
                    report["removed"] += 1
            lines.append(
                b'set +f; for kept in %b/kept/*.path; do [ -f "$kept" ] || continue; '
                b'path=$(cat "$kept"; echo .); path=${path%%?.}; '
                b'if [ -e "$path" ] || [ -h "$path" ]; then echo "kept ${kept%%.path}"; '
                b'else mkdir -p "${path%%/*}" && mv "${kept%%.path}" "$path" && printf "restored %%s\\0" "$path"; fi; done; set -f'
                % _quoted(index)
            )
        lines.append(b"cd /; rm -rf %b" % _quoted(index))
        told = await self._script(b"\n".join(lines))
        for part in told.split(b"\0"):
            if part.startswith(b"restored "):
                report["restored"].append(_text(part[len(b"restored ") :].removeprefix(b"./")))


def parse_manifest(text: bytes) -> dict[bytes, _Sent]:
    """Read a snapshot's manifest. Raises ValueError."""
    fields = text.split(b"\0")
    if fields.pop():
        raise ValueError("a manifest that is cut")
    found: dict[bytes, _Sent] = {}
    for path, meaning in zip(fields[::2], fields[1::2], strict=True):
        kind, _, rest = meaning.partition(b" ")
        if kind == b"l":
            found[path] = _Sent("l", target=rest)
        elif kind == b"d":
            found[path] = _Sent("d")
        else:
            size, _, digest = rest.partition(b" ")
            found[path] = _Sent(kind.decode("ascii"), int(size), digest.decode("ascii"))
    return found


def parse_listing(text: bytes) -> tuple[dict[bytes, _Facts], bool]:
    """Read what `list` of the fallback printed; also whether the folder exists. Raises ValueError."""
    found: dict[bytes, _Facts] = {}
    if text in (b"", b"absent\n"):
        return found, False
    word, _, rest = text.partition(b"\n")
    if word != b"present":
        raise ValueError(text[:40])
    while not rest.startswith(b"done\n"):
        word, _, rest = rest.partition(b"\n")
        # Names that are no UTF-8, newlines and all: NUL ends each, an empty one ends the batch.
        names, empty, rest = rest.partition(b"\0\0")
        if word != b"batch" or not empty:
            raise ValueError(word[:40])
        for name in names.split(b"\0"):
            line, _, rest = rest.partition(b"\n")
            mode, size, mtime, inode, changed = line.split(b" ", 4)
            if not name.startswith(b"./"):
                raise ValueError(name[:40])
            found[name[2:]] = _Facts(
                int(mode, 16), int(size), int(mtime.decode().split(".")[0]), int(inode), changed
            )
    return {path: _judged(facts) for path, facts in found.items()}, True


def _judged(facts: _Facts) -> _Facts:
    """A folder is told by being one: its size and times change with what lies in it."""
    return _Facts(facts.mode, 0, 0, 0, b"") if facts.kind == "d" else facts


def _deepest_first(paths: Iterable[bytes]) -> list[bytes]:
    return sorted(paths, key=lambda path: (-path.count(b"/"), path))


def _is_above(path: bytes, others: Iterable[bytes]) -> bool:
    return any(other.startswith(path + b"/") for other in others)


def _remove(path: bytes, facts: _Facts) -> bytes:
    where = _quoted(b"./" + path)
    return b"rmdir %b 2>/dev/null" % where if facts.kind == "d" else b"rm -f %b" % where


def _twins(paths: list[bytes], manifest: dict[bytes, _Sent]) -> bytes:
    """Lines that make the other files of one content from the first."""
    lines = []
    for path in paths[1:]:
        where, parent = _quoted(b"./" + path), _quoted(b"./" + posixpath.dirname(path))
        mode = b"+x" if manifest[path].kind == "x" else b"-x"
        lines.append(
            b"mkdir -p %b && cp %b %b && chmod %b %b || exit 0\n"
            % (parent, _quoted(b"./" + paths[0]), where, mode, where)
        )
    return b"".join(lines)


def _quoted(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise ValueError("a NUL byte in a path")
    return b"'" + raw.replace(b"'", b"'\\''") + b"'"


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


class _Tar:
    """Writes a tree as a tar stream."""

    def __init__(self, pipe: ShellPipe) -> None:
        self._pipe = pipe
        self._pad = 0
        self._left = 0

    async def file(self, path: bytes, kind: str, size: int) -> None:
        """Begin a file; its data follow."""
        info = tarfile.TarInfo("./" + _text(path))
        info.size = size
        info.mode = 0o755 if kind == "x" else 0o644
        await self._header(info)
        self._left, self._pad = size, -size % 512
        if size == 0:
            await self.data(b"")

    async def data(self, data: bytes) -> None:
        """Go on with the file."""
        self._left -= len(data)
        await self._pipe.write(data + b"\0" * self._pad if self._left <= 0 else data)

    async def link(self, path: bytes, target: bytes) -> None:
        """A symbolic link."""
        info = tarfile.TarInfo("./" + _text(path))
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, _text(target), 0o777
        await self._header(info)

    async def folder(self, path: bytes) -> None:
        """An empty folder."""
        info = tarfile.TarInfo("./" + _text(path))
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        await self._header(info)

    async def _header(self, info: tarfile.TarInfo) -> None:
        # The one form that GNU tar and busybox both read with names of any length and any bytes.
        await self._pipe.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))

    async def end(self) -> None:
        """Nothing follows."""
        await self._pipe.write(bytes(1024 * 10))
        self._pipe.write_eof()


class _Files:
    """Writes a tree file by file, where the node has no tar."""

    def __init__(self, run: Callable[[bytes, bytes], Awaitable[bytes]], folder: str) -> None:
        self._run = run
        self._folder = folder
        self._left = 0
        self._script = b""
        self._data = io.BytesIO()

    async def file(self, path: bytes, kind: str, size: int) -> None:
        """Begin a file; its data follow."""
        where = _quoted(b"./" + path)
        self._left = size
        self._script = b"mkdir -p %b && cat >%b" % (_quoted(b"./" + posixpath.dirname(path)), where)
        if kind == "x":
            self._script += b" && chmod +x " + where
        self._data = io.BytesIO()
        if size == 0:
            await self.data(b"")

    async def data(self, data: bytes) -> None:
        """Go on with the file: a piece at a time, so that a large one is never held whole."""
        self._left -= len(data)
        self._data.write(data)
        if self._left > 0 and self._data.tell() < 8 << 20:
            return
        await self._do(self._script, self._data.getvalue())
        self._script = self._script.replace(b"cat >", b"cat >>")
        self._data = io.BytesIO()

    async def link(self, path: bytes, target: bytes) -> None:
        """A symbolic link."""
        await self._do(
            b"mkdir -p %b && ln -s %b %b"
            % (_quoted(b"./" + posixpath.dirname(path)), _quoted(target), _quoted(b"./" + path)),
            b"",
        )

    async def folder(self, path: bytes) -> None:
        """An empty folder."""
        await self._do(b"mkdir -p %b" % _quoted(b"./" + path), b"")

    async def end(self) -> None:
        """Nothing follows."""

    async def _do(self, script: bytes, data: bytes) -> None:
        told = await self._run(b"cd %b && %b && echo done" % (_quoted(self._folder), script), data)
        if told != b"done\n":
            raise _Refused(f"a file could not be written on the node: {told[-200:]!r}")


class _Reader:
    """Reads lines and counted bytes from a script's output."""

    def __init__(self, pipe: ShellPipe) -> None:
        self.pipe = pipe
        self._buffer = bytearray()

    async def _more(self) -> None:
        data = await self.pipe.read(1 << 18)
        if not data:
            tail = self.pipe.stderr_tail().decode("utf-8", "replace").strip().splitlines()
            raise ConnectionResetError(tail[-1] if tail else "the connection was closed")
        self._buffer += data

    async def line(self) -> bytes:
        """Return the next line, without its end. Raises OSError."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > 1 << 16:
                raise ValueError("an endless line")
            await self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def exactly(self, count: int) -> bytes:
        """Return so many bytes. Raises OSError."""
        if count > MAX_LISTING:
            raise ValueError(f"{count} bytes at once")
        while len(self._buffer) < count:
            await self._more()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def sized(self) -> bytes:
        """Return what `show` of the fallback printed."""
        return await self.exactly(int(await self.line()))

    async def rest(self, host: str) -> bytes:
        """Return everything up to the end. Raises OSError when the link broke before it."""
        while data := await self.pipe.read(1 << 18):
            self._buffer += data
            if len(self._buffer) > MAX_LISTING:
                raise ValueError(f"more than {MAX_LISTING} bytes")
        if await self.pipe.wait() is None:
            raise ConnectionResetError(f"{host}: the connection was closed")
        return bytes(self._buffer)


@contextlib.asynccontextmanager
async def _opened(pipe: ShellPipe) -> AsyncIterator[_Reader]:
    try:
        yield _Reader(pipe)
    finally:
        pipe.close()
