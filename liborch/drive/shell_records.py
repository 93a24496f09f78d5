"""What a node without python3 tells of a folder, and what was sent there: records, and what follows from comparing them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field

from liborch.drive.shell import quoted


@dataclass(frozen=True)
class Facts:
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
class Sent:
    """One entry of a manifest."""

    kind: str
    size: int = 0
    digest: str = ""
    target: bytes = b""


@dataclass
class Known:
    """What the node knows of a folder."""

    #: After `prepare`: whether the code is there; after `look`: whether the folder is one we filled.
    found: bool = False
    #: Whether we made the folder.
    made: bool = False
    manifest: dict[bytes, Sent] = field(default_factory=dict)
    #: Right after we filled it.
    listing: dict[bytes, Facts] = field(default_factory=dict)
    before: dict[bytes, Facts] = field(default_factory=dict)
    #: Now.
    present: dict[bytes, Facts] = field(default_factory=dict)
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


def parse_manifest(text: bytes) -> dict[bytes, Sent]:
    """Read a snapshot's manifest. Raises ValueError."""
    fields = text.split(b"\0")
    if fields.pop():
        raise ValueError("a manifest that is cut")
    found: dict[bytes, Sent] = {}
    for path, meaning in zip(fields[::2], fields[1::2], strict=True):
        kind, _, rest = meaning.partition(b" ")
        if kind == b"l":
            found[path] = Sent("l", target=rest)
        elif kind == b"d":
            found[path] = Sent("d")
        else:
            size, _, digest = rest.partition(b" ")
            found[path] = Sent(kind.decode("ascii"), int(size), digest.decode("ascii"))
    return found


def parse_listing(text: bytes) -> tuple[dict[bytes, Facts], bool]:
    """Read what `list` of the fallback printed; also whether the folder exists. Raises ValueError."""
    found: dict[bytes, Facts] = {}
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
            found[name[2:]] = Facts(
                int(mode, 16), int(size), int(mtime.decode().split(".")[0]), int(inode), changed
            )
    return {path: _judged(facts) for path, facts in found.items()}, True


def _judged(facts: Facts) -> Facts:
    """A folder is told by being one: its size and times change with what lies in it."""
    return Facts(facts.mode, 0, 0, 0, b"") if facts.kind == "d" else facts


def deepest_first(paths: Iterable[bytes]) -> list[bytes]:
    return sorted(paths, key=lambda path: (-path.count(b"/"), path))


def is_above(path: bytes, others: Iterable[bytes]) -> bool:
    return any(other.startswith(path + b"/") for other in others)


def remove_line(path: bytes, facts: Facts) -> bytes:
    where = quoted(b"./" + path)
    return b"rmdir %b 2>/dev/null" % where if facts.kind == "d" else b"rm -f %b" % where


def twin_lines(paths: list[bytes], manifest: dict[bytes, Sent]) -> bytes:
    """Lines that make the other files of one content from the first."""
    lines = []
    for path in paths[1:]:
        where, parent = quoted(b"./" + path), quoted(b"./" + posixpath.dirname(path))
        mode = b"+x" if manifest[path].kind == "x" else b"-x"
        lines.append(
            b"mkdir -p %b && cp %b %b && chmod %b %b || exit 0\n"
            % (parent, quoted(b"./" + paths[0]), where, mode, where)
        )
    return b"".join(lines)
