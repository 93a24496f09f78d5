"""Ignore rules with git's own grammar, which also say which line of which file decided.

Its job: `Rules`, the patterns of one kind of ignore file (`.sendignore`, say) in a tree, nested files included. The
grammar of a pattern is dulwich's, which agrees with git in every case we tried; finding the files and explaining the
outcome is ours. Who lists a tree and what two kinds of rules mean together is `listing.py`'s.

As in git: within a file the last pattern that matches decides; a file deeper in the tree goes before one nearer the
root; below an ignored folder nothing can be brought back.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from liborch.errors import SpecError

if TYPE_CHECKING:
    from dulwich.ignore import Pattern


@dataclass(frozen=True)
class Rule:
    """One pattern: its text, and where it stands."""

    text: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Verdict:
    """What rules say of an entry, and which of them."""

    ignored: bool
    rule: Rule


class _RuleFile:
    """The patterns of one file."""

    def __init__(self, data: bytes, name: str) -> None:
        # Most trees have no rules of ours, and this import takes longer than listing them.
        from dulwich.ignore import Pattern, read_ignore_patterns, translate
        from dulwich.wildmatch import MalformedPattern

        self._patterns: list[tuple[Pattern, Rule]] = []
        matchers: list[bytes] = []
        if data.startswith(b"\xef\xbb\xbf"):
            data = data[3:]
        for number, line in enumerate(data.split(b"\n"), 1):
            for text in read_ignore_patterns([line]):  # type: ignore[arg-type]
                try:
                    pattern = Pattern(text)
                except MalformedPattern:
                    continue  # git, too, lets a pattern that can match nothing pass
                if pattern.is_empty:
                    continue
                self._patterns.append((pattern, Rule(os.fsdecode(text), name, number)))
                bare = text[1:] if text[:1] == b"!" else text
                if bare[:2] in (b"\\!", b"\\#"):
                    bare = bare[1:]
                matchers.append(b"(?:%s)" % translate(bare.rstrip(b"/")).removeprefix(b"(?ms)"))
        #: One expression for all patterns: most names match none, and are done after one look.
        self._any = re.compile(b"|".join(matchers), re.MULTILINE | re.DOTALL) if matchers else None

    def decide(self, name: bytes, is_folder: bool) -> Verdict | None:
        if self._any is None or not self._any.match(name):
            return None
        for pattern, rule in reversed(self._patterns):
            if pattern.matches(name, is_folder):
                return Verdict(pattern.is_exclude, rule)
        return None


#: Of a folder: the rule that hides all in it, or else the files that count there, deepest first, each with how much of
#: a path's front is not its business.
_Inside = tuple[Verdict | None, tuple[tuple[int, _RuleFile], ...]]


@dataclass
class Rules:
    """The rules of one kind in a tree.

    Args:
        root: The tree's root. None: nested files are not looked for.
        name: The files' name, `.sendignore` for instance. "": only what was `add`ed counts.
    """

    root: Path | None
    name: str = ""
    #: By folder.
    _folders: dict[bytes, _Inside] = field(default_factory=dict, repr=False)
    _added: list[_RuleFile] = field(default_factory=list, repr=False)
    #: Whether any rule exists, as far as files were looked for.
    found: bool = False

    def add(self, file: Path) -> None:
        """Let a file's patterns count as if it stood at the root, before (that is, weaker than) the root's own.

        Raises:
            SpecError: It cannot be read.
        """
        try:
            data = file.read_bytes()
        except OSError as error:
            raise SpecError(f"{file}: {error.strerror}; expected a file of ignore patterns") from error
        self.add_text(data, str(file))

    def add_text(self, data: bytes, name: str) -> None:
        """Let patterns count as if they stood in a file at the root."""
        self._added.append(_RuleFile(data, name))
        self.found = True

    def decide(self, path: bytes, is_folder: bool = False) -> Verdict | None:
        """Return what the rules say of an entry (a path relative to the root); None: they do not mention it."""
        at = path.rfind(b"/")
        hidden, files = self._inside(path[:at] if at > 0 else b"")
        if hidden is not None:
            return hidden
        for start, file in files:
            verdict = file.decide(path[start:], is_folder)
            if verdict is not None:
                return verdict
        return None

    def matter_in(self, folder: bytes) -> bool:
        """Whether any rule counts for the entries of a folder: where none does, nobody need ask for each."""
        hidden, files = self._inside(folder)
        return hidden is not None or bool(files)

    def _inside(self, folder: bytes) -> _Inside:
        """What counts for the entries of a folder."""
        known = self._folders.get(folder)
        if known is not None:
            return known
        above: tuple[tuple[int, _RuleFile], ...] = ()
        if folder:
            verdict = self.decide(folder, True)
            if verdict is not None and verdict.ignored:
                self._folders[folder] = (verdict, ())
                return self._folders[folder]
            at = folder.rfind(b"/")
            above = self._inside(folder[:at] if at > 0 else b"")[1]
        own = tuple((len(folder) + 1 if folder else 0, file) for file in self._load(folder))
        self._folders[folder] = (None, own + above)
        return self._folders[folder]

    def _load(self, folder: bytes) -> list[_RuleFile]:
        files = list(reversed(self._added)) if not folder else []
        if self.root is None or not self.name:
            return files
        path = os.path.join(os.fsencode(self.root), folder, os.fsencode(self.name))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return files  # none here, or a link, which git does not follow either
        with open(descriptor, "rb") as opened:
            shown = os.fsdecode(os.path.join(folder, os.fsencode(self.name)))
            files.insert(0, _RuleFile(opened.read(), shown))
            self.found = True
        return files


def fetch_rules(folder: Path, fetch_ignore: Path | None = None) -> Rules | None:
    """Return the rules that decide what comes back to a folder; None when there are none.

    Args:
        folder: The folder whose `.fetchignore`, and those nested in it, count.
        fetch_ignore: Another file of patterns, in their place.

    Raises:
        SpecError: `fetch_ignore` cannot be read.
    """
    if fetch_ignore is not None:
        rules = Rules(None)
        rules.add(fetch_ignore)
        return rules
    if not (folder / ".fetchignore").is_file():
        return None
    return Rules(folder, ".fetchignore")
