"""The worker's half of a transfer where the node has only sh: `send.py` and `fetch.py` talk to it as to the real one.

It is a Stream. What the client sends is answered here, on this machine, by running small scripts on the node (their
functions are in `agent/fallback/files.sh`): code goes out as a tar stream, or file by file where there is no tar; results
come back with their size in front. What was sent is remembered on the node in `DIRECTORY/.orchestra/sh/`:

    code/SNAPSHOT/          the files as they were sent, once
    folders/HASH/           of a folder: snapshot, manifest, made (by us? with how many folders above it),
                            listing (right after we filled it), before (what it held when we came), kept/ (moved aside)

Nothing the node says is trusted with a path of this machine: that is `transfer/landing.py`'s, behind `fetch.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import secrets
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from liborch.agent import frames
from liborch.drive.shell import Reader, ShellPipe, as_text, opened, quoted
from liborch.drive.shell_records import (
    Known,
    Sent,
    deepest_first,
    is_above,
    parse_listing,
    parse_manifest,
    remove_line,
    twin_lines,
)
from liborch.drive.shell_writers import FileWriter, Refused, TarWriter
from liborch.errors import AgentError, HostUnreachable, TransferError

#: A file this small goes whole into one frame.
_SMALL = 128 << 10


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
            except Refused as refused:
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
        async with opened(await self._run(script)) as reader:
            reader.pipe.write_eof()
            return await reader.rest(self._host)

    # -- code

    async def _receive_code(self, head: dict[str, Any]) -> None:
        directory, folder, index = self._places(head)
        snapshot = str(head["snapshot"])
        if not snapshot.isalnum():
            raise Refused("the snapshot's name is none")
        await self._answer({"t": "want"})
        text = b""
        while True:
            manifest_head, piece = await self._requests.get()
            text += piece
            if manifest_head.get("last"):
                break
        manifest = parse_manifest(text)
        words = b" ".join([quoted(directory), quoted(folder), quoted(index), snapshot.encode()])
        known = await self._know(b"prepare " + words, "ready")
        code = posixpath.join(directory, ".orchestra", "sh", "code", snapshot)
        if not known.found:
            await self._unpack(code, manifest)
        report = await self._place(code, folder, index, manifest, text, known)
        await self._answer({"t": "done", **report})

    async def _unpack(self, code: str, manifest: dict[bytes, Sent]) -> None:
        """Ask for every content and put the tree into the node's code folder, whole or not at all."""
        by_digest: dict[str, list[bytes]] = {}
        for path, sent in manifest.items():
            if sent.kind in "fx":
                by_digest.setdefault(sent.digest, []).append(path)
        digests = list(by_digest)
        temporary = f"{code}.{secrets.token_hex(6)}"
        script = b"mkdir %b && cd %b || { echo refused mkdir; exit 0; }\n" % (
            quoted(temporary),
            quoted(temporary),
        )
        script += b"command -v tar >/dev/null 2>&1 || { echo notar; exit 0; }\n"
        script += b"echo tar\ntar xf - 2>&1 || { echo refused tar; exit 0; }\n"
        twins = b"".join(twin_lines(paths, manifest) for paths in by_digest.values())
        script += twins
        script += b"cd / && alone settle %b %b && echo done\n" % (quoted(temporary), quoted(code))
        async with opened(await self._run(script)) as reader:
            word = await reader.line()
            if word not in (b"tar", b"notar"):
                raise Refused(f"{temporary}: cannot be made on the node")
            writer = TarWriter(reader.pipe) if word == b"tar" else FileWriter(self._script_with, temporary)
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
                    raise Refused(f"the code could not be unpacked on the node: {said[-300:]}")
                return
        script = b"cd %b || exit 0\n%bcd / && alone settle %b %b && echo done" % (
            quoted(temporary),
            twins,
            quoted(temporary),
            quoted(code),
        )
        said = (await self._script(script)).decode("utf-8", "replace")
        if not said.endswith("done\n"):
            raise Refused(f"the code could not be put in place on the node: {said[-300:]}")

    async def _take_contents(
        self,
        writer: TarWriter | FileWriter,
        digests: list[str],
        by_digest: dict[str, list[bytes]],
        manifest: dict[bytes, Sent],
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
                        broken.append(as_text(by_digest[digests[number]][0]))
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
                    broken.append(as_text(paths[0]))
            elif kind == "sent":
                break
        if broken:
            raise Refused(broken)

    async def _script_with(self, script: bytes, data: bytes) -> bytes:
        async with opened(await self._run(script)) as reader:
            await reader.pipe.write(data)
            reader.pipe.write_eof()
            return await reader.rest(self._host)

    async def _place(
        self,
        code: str,
        folder: str,
        index: str,
        manifest: dict[bytes, Sent],
        text: bytes,
        known: Known,
    ) -> dict[str, Any]:
        """Bring the folder to the state of the code, writing only what differs."""
        lines = [b"cd %b || exit 0" % quoted(folder)]
        displaced: list[list[str]] = []
        if not known.present:
            lines.append(b"cp -RPp %b/. . || exit 0" % quoted(code))
            written = len(manifest)
        else:
            written = 0
            for path in known.manifest:
                # Code of an earlier snapshot that is no longer part of it.
                if path not in manifest and known.present.get(path) == known.listing.get(path) is not None:
                    lines.append(b"rm -f %b 2>/dev/null" % quoted(b"./" + path))
            for path, sent in manifest.items():
                there = known.present.get(path)
                same = known.manifest.get(path) == sent and known.listing.get(path) == there
                if there is not None and (same or (sent.kind == there.kind == "d")):
                    continue
                where = quoted(b"./" + path)
                if there is not None and known.manifest.get(path) is None and path in known.before:
                    kept = posixpath.join(index, "kept", str(len(displaced) + 1))
                    displaced.append([as_text(path), kept])
                    lines.append(
                        b"mkdir -p %b && mv %b %b && put %b %b || exit 0"
                        % (
                            quoted(posixpath.dirname(kept)),
                            where,
                            quoted(kept),
                            quoted(kept + ".path"),
                            where,
                        )
                    )
                elif there is not None:
                    lines.append(b"rm -rf %b" % where)
                parent = posixpath.dirname(path)
                if parent and parent not in known.present:
                    lines.append(b"mkdir -p %b || exit 0" % quoted(b"./" + parent))
                lines.append(b"cp -RPp %b %b || exit 0" % (quoted(code.encode() + b"/" + path), where))
                written += 1
        lines.append(b"list %b >%b" % (quoted(folder), quoted(index + "/listing.new")))
        lines.append(b"cat >%b" % quoted(index + "/manifest.new"))
        lines.append(
            b"cd %b && mv listing.new listing && mv manifest.new manifest && echo done" % quoted(index)
        )
        said = (await self._script_with(b"\n".join(lines), text)).decode("utf-8", "replace")
        if not said.endswith("done\n"):
            raise Refused(f"{folder} could not be filled on the node: {said[-300:]}")
        return {"written": written, "displaced": displaced, "fresh": known.made and not known.listing}

    # -- results

    async def _know(self, script: bytes, word: str) -> Known:
        """Run a script that tells what is known of a folder and read it."""
        async with opened(await self._run(script + b" 2>&1")) as reader:
            reader.pipe.write_eof()
            line = (await reader.line()).decode("utf-8", "replace")
            words = line.split()
            if len(words) != 3 or words[0] != word:
                raise Refused(f"the node's folders cannot be used: {line[:300]}")
            known = Known(words[1] == "yes", words[2] == "yes")
            known.manifest = parse_manifest(await reader.sized())
            known.listing, _ = parse_listing(await reader.sized())
            known.before, _ = parse_listing(await reader.sized())
            known.present, known.exists = parse_listing(await reader.rest(self._host))
        return known

    def _places(self, head: dict[str, Any]) -> tuple[str, str, str]:
        directory, folder = str(head["directory"]), str(head["folder"])
        for path in (directory, folder):
            if not path.startswith("/"):
                raise Refused(f"{path!r} is not an absolute path")
        folder = posixpath.normpath(folder)
        name = hashlib.sha256(folder.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return directory, folder, posixpath.join(directory, ".orchestra", "sh", "folders", name)

    async def _look(self, index: str, folder: str) -> Known:
        return await self._know(b"look %b %b" % (quoted(index), quoted(folder)), "known")

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

    async def _states(self, known: Known, folder: str) -> dict[bytes, str]:
        """Tell made from changed; a sent file whose times differ is hashed there, if that is possible."""
        states = {path: known.state(path) for path in known.present}
        doubtful = [path for path, state in states.items() if state == "?"]
        if doubtful:
            lines = [b"cd %b || exit 0" % quoted(folder)]
            lines += [b"echo $(sha256sum <%b 2>/dev/null)" % quoted(b"./" + path) for path in doubtful]
            told = (await self._script(b"\n".join(lines))).split(b"\n")
            for path, line in zip(doubtful, told, strict=False):
                same = line.split(b" ")[0].decode("ascii", "replace") == known.manifest[path].digest
                states[path] = "u" if same else "c"
        return {path: "c" if state == "?" else state for path, state in states.items()}

    async def _link_targets(self, known: Known, folder: str) -> dict[bytes, bytes]:
        links = [path for path, facts in known.present.items() if facts.kind == "l"]
        if not links:
            return {}
        lines = [b"cd %b || exit 0" % quoted(folder)]
        # A target may end in newlines: the dot keeps them from being taken off.
        lines += [
            b"t=$(readlink %b && echo .); printf '%%s\\0' \"${t%%.}\"" % quoted(b"./" + path)
            for path in links
        ]
        told = (await self._script(b"\n".join(lines))).split(b"\0")
        return {path: target.removesuffix(b"\n") for path, target in zip(links, told, strict=False)}

    async def _give_files(self, folder: str, entries: list[bytes], wanted: list[int]) -> None:
        marker = secrets.token_hex(16).encode()
        lines = [b"cd %b || exit 0" % quoted(folder)]
        lines += [b"take %d %b %b" % (k, quoted(b"./" + entries[k]), marker) for k in wanted]
        async with opened(await self._run(b"\n".join(lines))) as reader:
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

    async def _give_file(self, reader: Reader, k: int, size: int) -> None:
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
            await self._script(b"alone collect %b" % quoted(directory))
        await self._answer(report)

    async def _leave_code(
        self,
        directory: str,
        folder: str,
        index: str,
        known: Known,
        states: dict[bytes, str],
        report: dict[str, Any],
    ) -> None:
        code = posixpath.join(directory, ".orchestra", "sh", "code")
        lines = [b"read -r snapshot <%b || exit 0" % quoted(index + "/snapshot")]
        lines.append(b"cd %b || exit 0" % quoted(folder))
        for path in deepest_first(known.present):
            if states[path] == "m" and not is_above(path, known.manifest):
                lines.append(remove_line(path, known.present[path]))
                report["removed"] += 1
        for path in known.manifest:
            if path not in states or states[path] in "c?":
                where = quoted(b"./" + path)
                lines.append(
                    b'rm -rf %b; cp -RPp %b/"$snapshot"/%b %b' % (where, quoted(code), quoted(path), where)
                )
        lines.append(b"list %b >%b" % (quoted(folder), quoted(index + "/listing.new")))
        lines.append(b"mv %b %b" % (quoted(index + "/listing.new"), quoted(index + "/listing")))
        await self._script(b"\n".join(lines))

    async def _leave_nothing(
        self, folder: str, index: str, known: Known, states: dict[bytes, str], report: dict[str, Any]
    ) -> None:
        if known.made:
            report["removed"] = len(known.present)
            lines = [
                b"read -r fresh made <%b || made=1" % quoted(index + "/made"),
                b"rm -rf %b" % quoted(folder),
                b'unmake %b "$((made - 1))"' % quoted(posixpath.dirname(folder)),
            ]
        else:
            lines = [b"cd %b || exit 0" % quoted(folder)]
            for path in deepest_first(known.present):
                if path not in known.before or path in known.manifest:
                    lines.append(remove_line(path, known.present[path]))
                    report["removed"] += 1
            lines.append(
                b'set +f; for kept in %b/kept/*.path; do [ -f "$kept" ] || continue; '
                b'path=$(cat "$kept"; echo .); path=${path%%?.}; '
                b'if [ -e "$path" ] || [ -h "$path" ]; then echo "kept ${kept%%.path}"; '
                b'else mkdir -p "${path%%/*}" && mv "${kept%%.path}" "$path" && printf "restored %%s\\0" "$path"; fi; done; set -f'
                % quoted(index)
            )
        lines.append(b"cd /; rm -rf %b" % quoted(index))
        told = await self._script(b"\n".join(lines))
        for part in told.split(b"\0"):
            if part.startswith(b"restored "):
                report["restored"].append(as_text(part[len(b"restored ") :].removeprefix(b"./")))
