"""Bytes of a YAML file -> documents of plain nodes that know their line. All defence against hostile files is here.

Only the parser of PyYAML is used (libyaml's where it is compiled in), never its constructors: nothing in a file can make
an object. The nodes are built from parser events rather than by `yaml.compose`, because that one recurses (a file of
opening brackets ends it with RecursionError) and lets aliases multiply unchecked.

What YAML allows and we refuse, each with its line: tags (`!!python/...` and every other), duplicate keys, keys that are no
text, merge keys (`<<`), aliases inside their own anchor, more than MAX_NODES nodes after aliases are followed, nesting
deeper than MAX_DEPTH, files over MAX_BYTES, anything but UTF-8.

Plain words have no type of their own here: `on`, `1e3`, `012` and `.nan` are the text that was written. What they mean is
for the key that holds them to say (`fields`), so YAML 1.1's surprises (`no` is false, `012` is ten, `1:30` is ninety)
cannot happen. Only `null`, `~` and nothing at all, unquoted, are no value.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from liborch.errors import ProfileError

#: Largest profile read, in bytes. A generous one has 2,000.
MAX_BYTES = 256 << 10
#: Nodes in one file, with aliases followed.
MAX_NODES = 100_000
#: Nesting of lists and mappings; a profile needs four.
MAX_DEPTH = 32

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: What usually mends an error of libyaml's.
_HINTS = {
    "mapping values are not allowed": "quotes around text that holds `: `, and each key on a line of its own",
    "cannot start any token": "quotes around a word that begins with this character",
    "unexpected end of stream": "a closing quote or bracket before the end of the file",
    "did not find expected ','": "a comma or a closing bracket before this line",
}
_NULLS = ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, slots=True)
class Scalar:
    """A word or text, as written."""

    text: str
    #: Written without quotes and not as a block.
    plain: bool
    #: Counted from 1.
    line: int

    @property
    def is_null(self) -> bool:
        """Whether this stands for "no value"."""
        return self.plain and self.text in _NULLS


@dataclass(slots=True)
class Sequence:
    """A list."""

    line: int
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Mapping:
    """Keys and values in file order; keys are distinct."""

    line: int
    pairs: list[tuple[Scalar, Node]] = field(default_factory=list)


Node = Scalar | Sequence | Mapping


def read_documents(file: str) -> list[Node]:
    """Return the documents of a YAML file that have any content, in order; at least one.

    Args:
        file: Path, used as it is in messages.

    Raises:
        ProfileError: The file cannot be read, or is not YAML as described above.
    """
    return parse_documents(file, _read(file))


def parse_documents(file: str, raw: bytes) -> list[Node]:
    """As `read_documents`, for bytes that were read already."""
    if len(raw) > MAX_BYTES:
        raise ProfileError(
            file, 1, None, f"the file is too large ({len(raw):,} bytes)", f"at most {MAX_BYTES:,} bytes"
        )
    text = _decode(file, raw)
    try:
        documents = [root for root in _compose(file, text) if not (isinstance(root, Scalar) and root.is_null)]
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(file, text, error) from None
    except yaml.reader.ReaderError as error:
        line = raw.count(b"\n", 0, max(error.position, 0)) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character[:1] or "?")
        raise ProfileError(file, line, None, f"holds the control character U+{code:04X}", "text") from None
    except yaml.YAMLError as error:
        raise ProfileError(file, 1, None, f"is not YAML: {error}") from None
    if not documents:
        raise ProfileError(file, 1, None, "the file is empty", "a profile: `name: ...` and `ssh: ...`")
    return documents


def shown(text: str, most: int = 50) -> str:
    """Quote text of a file for a message: on one line, short, without terminal controls."""
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def _read(file: str) -> bytes:
    try:
        # Not blocking: opening a fifo for reading would wait for its writer.
        with open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ProfileError(file, 1, None, "is no regular file", "a YAML file")
            if status.st_size > MAX_BYTES:
                problem = f"the file is too large ({status.st_size:,} bytes)"
                raise ProfileError(file, 1, None, problem, f"at most {MAX_BYTES:,} bytes")
            return stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno or errno.EIO) if isinstance(error, OSError) else "not a file name"
        raise ProfileError(file, 1, None, f"cannot be read: {why}", "a file you may read") from error


def _decode(file: str, raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ProfileError(file, 1, None, "is UTF-16", "UTF-8 text; `iconv -f utf-16 -t utf-8` converts it")
    if b"\0" in raw:
        line = raw.count(b"\n", 0, raw.index(b"\0")) + 1
        raise ProfileError(file, line, None, "is a binary file (holds a NUL byte)", "UTF-8 text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        raise ProfileError(file, line, None, problem, "UTF-8 text") from None


def _syntax_error(file: str, text: str, error: yaml.MarkedYAMLError) -> ProfileError:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.split("\n")
    line = max(1, min(line, len(lines)))
    if re.match(r" *\t", lines[line - 1]):
        return ProfileError(file, line, None, "the line is indented with a tab", "spaces")
    what = error.problem or "cannot be understood"
    if error.context:
        what = f"{error.context}: {what}"
    expected = next(
        (hint for said, hint in _HINTS.items() if said in what), "valid YAML here and in the lines before"
    )
    return ProfileError(file, line, None, f"is not YAML: {what}", expected)


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end was not seen yet."""

    node: Sequence | Mapping
    anchor: str | None
    #: Nodes below, aliases followed, this one included.
    size: int = 1
    key: Scalar | None = None
    seen: dict[str, int] = field(default_factory=dict)


def _compose(file: str, text: str) -> Iterator[Node]:
    """Yield the root node of each document."""

    def fail(line: int, problem: str, expected: str = "") -> NoReturn:
        raise ProfileError(file, line, None, problem, expected)

    anchors: dict[str, tuple[Node, int]] = {}
    stack: list[_Open] = []
    total = 0

    def add(node: Node, size: int) -> Node | None:
        """Put a finished node where it belongs; return it when it is a root."""
        if not stack:
            return node
        top = stack[-1]
        top.size += size
        if isinstance(top.node, Sequence):
            top.node.items.append(node)
        elif top.key is None:
            if not isinstance(node, Scalar):
                fail(node.line, "a key is a list or a mapping", "a word, then `:`")
            if node.plain and node.text == "<<":
                fail(node.line, "`<<` (merging mappings) is not supported", "the keys themselves")
            if node.text in top.seen:
                fail(
                    node.line,
                    f"the key {shown(node.text)} is there twice (first in line {top.seen[node.text]})",
                    "it once",
                )
            top.seen[node.text] = node.line
            top.key = node
        else:
            top.node.pairs.append((top.key, node))
            top.key = None
        return None

    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1 if event.start_mark else 1
        root: Node | None = None
        if isinstance(event, yaml.AliasEvent):
            anchor = event.anchor or ""
            if any(open_.anchor == anchor for open_ in stack):
                fail(
                    line,
                    f"the alias *{anchor} is inside its own anchor",
                    "an anchor that ends before it is used",
                )
            if anchor not in anchors:
                fail(
                    line,
                    f"the alias *{anchor} has no anchor &{anchor} before it",
                    "an anchor in the same document",
                )
            node, size = anchors[anchor]
            total += size
            root = add(node, size)
        elif isinstance(event, yaml.NodeEvent):
            tag = getattr(event, "tag", None)
            if tag is not None:
                fail(
                    line,
                    f"the tag {shown(tag.replace('tag:yaml.org,2002:', '!!'))} is not allowed",
                    "a value without a tag",
                )
            total += 1
            if isinstance(event, yaml.ScalarEvent):
                if any("\ud800" <= letter <= "\udfff" for letter in event.value):
                    fail(line, "holds half a character (a lone surrogate)", "text")
                scalar = Scalar(event.value, not event.style, line)
                if event.anchor:
                    anchors[event.anchor] = (scalar, 1)
                root = add(scalar, 1)
            else:
                if len(stack) >= MAX_DEPTH:
                    fail(line, f"nested more than {MAX_DEPTH} deep", "a flat profile")
                made = Sequence(line) if isinstance(event, yaml.SequenceStartEvent) else Mapping(line)
                stack.append(_Open(made, event.anchor))
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            done = stack.pop()
            if done.anchor:
                anchors[done.anchor] = (done.node, done.size)
            root = add(done.node, done.size)
        elif isinstance(event, yaml.DocumentStartEvent):
            anchors.clear()
        if total > MAX_NODES:
            fail(
                line,
                f"holds more than {MAX_NODES:,} values once aliases are followed",
                "a profile of some lines",
            )
        if root is not None:
            yield root
