"""What goes out: the entries of a folder that are sent, and why each other one is not.

Its job: walk a folder and decide entry by entry. In a git work tree git itself says which files count (tracked ones
with their uncommitted edits, and untracked ones it does not ignore); elsewhere `.gitignore` files are read as git
would. The send rules (`.sendignore` files, or one other file in their place) come on top: an entry goes out when git's
rules *and* the send rules let it. So a `!pattern` among the send rules brings back what other send rules hid, never
what `.gitignore` hides. Reading contents is `snapshot.py`'s.

Never sent: `.git`, `.sendignore`, `.fetchignore`, the file given in place of `.sendignore`, and `.orchestra`.
`.gitignore` is code like any other. Links are sent as links and never followed. Sockets, pipes and devices stay.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from liborch.errors import SpecError
from liborch.transfer.rules import Rules

#: Names, anywhere in a tree, that neither go out nor come back.
OURS = frozenset({b".git", b".sendignore", b".fetchignore", b".orchestra"})


class Found(NamedTuple):
    """An entry that goes out."""

    #: Relative to the folder, "/" between parts; the bytes the file system has.
    path: bytes
    #: "file", "link" or "folder" (an empty one; others are implied by what they hold).
    kind: str
    status: os.stat_result


@dataclass(frozen=True)
class LeftOut:
    """An entry that stays, and why. A folder stands for everything in it."""

    path: str
    reason: str


@dataclass
class Listing:
    """The entries of a folder that go out, sorted by path, and those that stay."""

    folder: Path
    found: list[Found] = field(default_factory=list)
    #: Sorted by path. What git hides is only listed when asked for.
    left_out: list[LeftOut] = field(default_factory=list)
    #: Whether git listed the files.
    by_git: bool = False

    @property
    def total_bytes(self) -> int:
        """Bytes in the files that go out."""
        return sum(each.status.st_size for each in self.found if each.kind == "file")


def list_folder(
    folder: Path, *, send_ignore: Path | None = None, explain: bool = False, results: Collection[str] = ()
) -> Listing:
    """List what of a folder goes out. Blocking; call it in a thread.

    Args:
        folder: The folder to send.
        send_ignore: Patterns that count in place of every `.sendignore`.
        results: Folders in it, by relative path, that hold results of executions: never sent.
        explain: Also find out what git hides and which rule does: for `--dry-run`, costs more.

    Raises:
        SpecError: The folder or `send_ignore` cannot be read.
    """
    rules = Rules(folder, "" if send_ignore else ".sendignore")
    never = set(OURS)
    hidden = b""
    if send_ignore is not None:
        rules.add(send_ignore)
        hidden = _inside(folder, send_ignore)
    walk = _Walk(folder, rules, never, hidden, explain, {os.fsencode(path) for path in results})
    walk.run()
    listing = walk.listing
    listing.found.sort(key=lambda each: each.path)
    listing.left_out.sort(key=lambda each: each.path)
    return listing


def _inside(folder: Path, file: Path) -> bytes:
    """Return a file's path relative to the folder, b"" when it lies elsewhere."""
    try:
        return os.fsencode(file.resolve().relative_to(folder.resolve()))
    except ValueError:
        return b""


class _Walk:
    def __init__(
        self,
        folder: Path,
        rules: Rules,
        never: set[bytes],
        hidden: bytes,
        explain: bool,
        results: set[bytes],
    ) -> None:
        self.listing = Listing(folder)
        self._root = os.fsencode(folder)
        self._rules = rules
        self._never = never
        self._hidden = hidden
        self._explain = explain
        self._results = results

    def run(self) -> None:
        try:
            os.scandir(self._root).close()
        except OSError as error:
            raise SpecError(f"{self.listing.folder}: {error.strerror}; expected a folder to send") from error
        listed = git_listing(self._root)
        self.listing.by_git = listed is not None
        self._tree(b"", listed)

    def _tree(self, top: bytes, listed: set[bytes] | None) -> None:
        """Walk one work tree (or folder outside git); `listed` are paths relative to `top`."""
        git = None if listed is not None else _outside_git(Path(os.fsdecode(os.path.join(self._root, top))))
        folders = _parents(listed) if listed is not None else set()
        skip = len(top) + 1 if top else 0
        unlisted: list[bytes] = []
        hidden: list[bytes] = []
        stack = [top]
        while stack:
            inside = stack.pop()
            entries = self._scan(inside)
            if entries is None:
                continue
            count = 0
            prefix = inside + b"/" if inside else b""
            ruled = self._rules.matter_in(inside)
            ruled_by_git = git is not None and git.matter_in(inside[skip:])
            for item in entries:
                name = item.name
                if name in self._never:
                    if name != b".git":
                        self._leave(prefix + name, "ours: never sent")
                    continue
                path = prefix + name
                count += 1
                relative = path[skip:]
                is_folder = item.is_dir(follow_symlinks=False)
                if is_folder:
                    if path in self._results:
                        self._leave(path + b"/", "results of executions: never sent")
                        continue
                    verdict = self._rules.decide(path, True)
                    if verdict is not None and verdict.ignored:
                        self._leave(path + b"/", str(verdict.rule))
                        continue
                    if listed is not None and relative not in folders:
                        if relative in listed or (relative + b"/") in listed:
                            # A submodule, or a repository in the repository: its own git lists it.
                            self._tree(path, git_listing(os.path.join(self._root, path)))
                        else:
                            unlisted.append(path)
                        continue
                    if (
                        git is not None
                        and (outside := git.decide(relative, True)) is not None
                        and outside.ignored
                    ):
                        self._leave(path + b"/", str(outside.rule))
                        continue
                    stack.append(path)
                    continue
                if listed is not None and relative not in listed:
                    if item.is_file(follow_symlinks=False) or item.is_symlink():
                        hidden.append(path)
                    else:
                        self._leave(path, "neither file, folder nor link")
                    continue
                if (
                    git is not None
                    and ruled_by_git
                    and (outside := git.decide(relative)) is not None
                    and outside.ignored
                ):
                    self._leave(path, str(outside.rule))
                    continue
                verdict = self._rules.decide(path) if ruled else None
                if verdict is not None and verdict.ignored:
                    self._leave(path, str(verdict.rule))
                elif path == self._hidden:
                    self._leave(path, "it holds the send rules")
                else:
                    self._take(path, item)
            if not count and inside != top:
                self._take_folder(inside)
        if listed is not None:
            self._settle(top, skip, unlisted, hidden)

    def _settle(self, top: bytes, skip: int, unlisted: list[bytes], hidden: list[bytes]) -> None:
        """Folders git did not list hold nothing that counts; those that are really empty are kept unless ignored."""
        empty: list[bytes] = []
        sockets: list[bytes] = []
        for path in unlisted:
            if not self._only_folders(path, empty, sockets):
                hidden.append(path)
        asked = hidden if self._explain else []
        reasons = (
            git_reasons(os.path.join(self._root, top), [each[skip:] for each in (*empty, *sockets, *asked)])
            if empty or sockets or asked
            else {}
        )
        for path in empty:
            verdict = self._rules.decide(path, True)
            if path[skip:] in reasons:
                self._leave(path + b"/", reasons[path[skip:]])
            elif verdict is not None and verdict.ignored:
                self._leave(path + b"/", str(verdict.rule))
            else:
                self._take_folder(path)
        for path in sockets:
            self._leave(path, reasons.get(path[skip:], "neither file, folder nor link"))
        for path in asked:
            is_folder = os.path.isdir(os.path.join(self._root, path)) and not os.path.islink(
                os.path.join(self._root, path)
            )
            self._leave(
                path + b"/" if is_folder else path,
                reasons.get(
                    path[skip:], "git ignores everything in it" if is_folder else "git does not list it"
                ),
            )

    def _only_folders(self, path: bytes, empty: list[bytes], sockets: list[bytes]) -> bool:
        """Collect the empty folders at and below a folder; False when it holds files (all ignored, since unlisted)."""
        stack = [path]
        found: list[bytes] = []
        while stack:
            inside = stack.pop()
            entries = self._scan(inside)
            if entries is None:
                return True
            if not entries:
                found.append(inside)
            for item in entries:
                if item.is_dir(follow_symlinks=False):
                    if item.name in self._never:
                        return False
                    stack.append(inside + b"/" + item.name)
                elif item.is_file(follow_symlinks=False) or item.is_symlink():
                    return False
                else:
                    sockets.append(inside + b"/" + item.name)
        empty.extend(found)
        return True

    def _scan(self, inside: bytes) -> list[os.DirEntry[bytes]] | None:
        try:
            with os.scandir(os.path.join(self._root, inside)) as entries:
                return list(entries)
        except OSError as error:
            self._leave(inside + b"/", error.strerror or "cannot be read")
            return None

    def _take(self, path: bytes, item: os.DirEntry[bytes]) -> None:
        try:
            status = item.stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISREG(status.st_mode):
            self.listing.found.append(Found(path, "file", status))
        elif stat.S_ISLNK(status.st_mode):
            self.listing.found.append(Found(path, "link", status))
        else:
            self._leave(path, "neither file, folder nor link")

    def _take_folder(self, path: bytes) -> None:
        try:
            status = os.lstat(os.path.join(self._root, path))
        except FileNotFoundError:
            return
        self.listing.found.append(Found(path, "folder", status))

    def _leave(self, path: bytes, reason: str) -> None:
        self.listing.left_out.append(LeftOut(os.fsdecode(path), reason))


def _parents(paths: Iterable[bytes]) -> set[bytes]:
    folders: set[bytes] = set()
    for path in paths:
        at = path.rfind(b"/", 0, len(path) - 1)
        while at > 0:
            path = path[:at]
            if path in folders:
                break
            folders.add(path)
            at = path.rfind(b"/")
    return folders


def _outside_git(top: Path) -> Rules:
    """The rules git would follow in a folder it cannot be asked about."""
    rules = Rules(top, ".gitignore")
    exclude = top / ".git" / "info" / "exclude"
    if exclude.is_file():
        rules.add(exclude)
    return rules


def _git(folder: bytes, *arguments: str, stdin: bytes = b"") -> bytes | None:
    """Run git in a folder; None when there is no git, or it refuses."""
    # Inside a hook GIT_DIR and others name the repository the hook runs for, which need not be this one.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**env, "LC_ALL": "C"},
            input=stdin,
            capture_output=True,
            check=False,
        )
    except OSError:
        return None
    # `check-ignore` ends with 1 when nothing is ignored.
    return done.stdout if done.returncode in (0, 1) else None


def git_listing(folder: bytes) -> set[bytes] | None:
    """Return the paths git counts as part of a folder; None when it is in no work tree, or itself ignored there."""
    output = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ".")
    if output is None:
        return None
    listed = set(output.split(b"\0"))
    listed.discard(b"")
    if not listed and _git(folder, "check-ignore", "-q", "."):
        return None
    if not listed and not os.path.lexists(os.path.join(folder, b".git")):
        # A folder of a repository in which nothing counts: it is ignored as a whole, and the person names it
        # nevertheless. What lies in it is meant to be sent.
        return None
    return listed


def git_reasons(folder: bytes, paths: list[bytes]) -> dict[bytes, str]:
    """Return {path: "file:line: pattern"} of those paths that git ignores."""
    output = _git(
        folder, "check-ignore", "-z", "-v", "--stdin", stdin=b"".join(each + b"\0" for each in paths)
    )
    reasons: dict[bytes, str] = {}
    fields = (output or b"").split(b"\0")
    for at in range(0, len(fields) - 3, 4):
        file, line, pattern, path = fields[at : at + 4]
        if pattern and not pattern.startswith(b"!"):
            reasons[path] = f"{os.fsdecode(file)}:{os.fsdecode(line)}: {os.fsdecode(pattern)}"
    return reasons
