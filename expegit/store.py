"""A campaign's repository: finding it, reading it, and recording in it.

Recording goes through `git fast-import`: files become a pack and a commit without a working tree, in groups; nothing is seen of
a group before it is whole, and a reference moves from the commit it was made on to the new one, or not at all. Whoever else
has recorded meanwhile is merged with (`merging.py`).

A repository's state, and what a kill at any instant leaves::

    objects written            unreachable: git removes them some day
    reference moved            recorded
    working tree brought up    else done by the next command: `orchestra-shown` says which commit it still shows
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pygit2

from expegit import merging
from expegit.git import Git
from expegit.layout import EXECUTIONS, EXPERIMENT, RECORD, SETTINGS, Settings, folder_of, read_settings
from expegit.records import Record, read_record
from liborch.errors import CampaignError, GitError, StorageError


@dataclass(frozen=True)
class Link:
    """A symbolic link to record."""

    target: str


#: (path in the tree, content; None removes it).
Change = tuple[str, bytes | Path | Link | None]
#: Beside the references: held while one is moved, and the commit that the working tree shows.
_LOCK, _SHOWN, _TIDYING = "orchestra.lock", "orchestra-shown", "orchestra-tidying.lock"
#: More packs than this are made fewer.
PACKS_MOST = 20
#: How often a reference is tried again that somebody else moved meanwhile.
_TRIES = 1000


class Campaign:
    """An open campaign. Of one thread; makes no connection.

    Raises:
        CampaignError: The folder is no campaign, or one of a newer layout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git = Git(folder)
        try:
            self.repository = pygit2.Repository(str(folder))
        except (pygit2.GitError, KeyError) as error:
            raise CampaignError(str(folder), f"is no campaign: {error}") from error
        if self.repository.head_is_unborn:
            raise CampaignError(str(folder), "is no campaign: its repository has no commits yet")
        text = self.read(SETTINGS)
        if text is None:
            raise CampaignError(
                str(folder), f"is no campaign: there is no {SETTINGS}; `expegit init` makes one"
            )
        self.settings: Settings = read_settings(text, str(folder))

    def __repr__(self) -> str:
        return f"<Campaign {self.settings.name} in {self.folder}>"

    @classmethod
    def find(cls, start: Path) -> Campaign:
        """Open the campaign that a folder lies in. Raises CampaignError."""
        for folder in (start, *start.parents):
            if (folder / ".git").exists() and (folder / SETTINGS).exists():
                return cls(folder)
        raise CampaignError(
            str(start), "is in no campaign; name one with -C, or make one with `expegit init`"
        )

    @property
    def outputs(self) -> Path:
        """Where executions leave their results until they are recorded; nothing else is there."""
        return Path(self.repository.path) / "orchestra-outputs"

    # ------------------------------------------------------------------ reading

    @property
    def reference(self) -> str:
        """The reference of the campaign's branch. Raises CampaignError when none is checked out."""
        if self.repository.head_is_detached:
            raise CampaignError(str(self.folder), "has no branch checked out; `git switch` to the campaign's")
        return self.repository.head.name

    @property
    def head(self) -> pygit2.Oid:
        """The campaign's newest commit here."""
        return pygit2.Oid(hex=str(self.repository.head.target))

    def tree_of(self, commit: pygit2.Oid) -> pygit2.Oid:
        """The tree of a commit."""
        return pygit2.Oid(hex=str(self.repository[commit].peel(pygit2.Tree).id))

    def read(self, path: str, commit: pygit2.Oid | None = None) -> bytes | None:
        """A file of the tree, or None."""
        entry = self._entry(path, commit)
        return bytes(entry.data) if isinstance(entry, pygit2.Blob) else None

    def _entry(self, path: str, commit: pygit2.Oid | None = None) -> Any:
        root: Any = self.repository[commit or self.head]
        try:
            return root.tree[path]
        except KeyError:
            return None

    def pin(self) -> str:
        """The experiment's commit; "": there is none."""
        entry = self._entry(EXPERIMENT)
        return str(entry.id) if entry is not None else ""

    def files(self, folder: str) -> list[tuple[str, int]]:
        """(path below a folder of the tree, size in bytes) of every file there, sorted."""
        found: list[tuple[str, int]] = []

        def walk(tree: pygit2.Tree, prefix: str) -> None:
            for entry in tree:
                if isinstance(entry, pygit2.Tree):
                    walk(entry, f"{prefix}{entry.name}/")
                elif isinstance(entry, pygit2.Blob):
                    found.append((f"{prefix}{entry.name}", entry.size))

        top = self._entry(folder)
        if isinstance(top, pygit2.Tree):
            walk(top, "")
        return sorted(found)

    def ahead(self) -> int | None:
        """How many commits its remote has not got, as far as known here; None: it has none, or nothing was pushed yet."""
        branch = self.reference.removeprefix("refs/heads/")
        for name in self.git.text("remote").split():
            there = f"refs/remotes/{name}/{branch}"
            if self.git.answers("show-ref", "--verify", "--quiet", there):
                return int(self.git.text("rev-list", "--count", str(self.head), f"^{there}"))
        return None

    def ids(self) -> list[str]:
        """Every execution, by id."""
        top = self._entry(EXECUTIONS)
        if not isinstance(top, pygit2.Tree):
            return []
        shards = (inner for outer in top if isinstance(outer, pygit2.Tree) for inner in outer)
        return [str(entry.name) for shard in shards if isinstance(shard, pygit2.Tree) for entry in shard]

    def record(self, x: str) -> Record:
        """What is known of an execution. Raises CampaignError: it is not there, or damaged."""
        path = f"{folder_of(x)}/{RECORD}"
        text = self.read(path)
        if text is None:
            raise CampaignError(str(self.folder), f"has no execution {x}")
        return read_record(text, f"{self.folder}: {path}")

    def records(self, damaged: Callable[[str, CampaignError], object]) -> Iterator[Record]:
        """Every record that can be read; the others go to `damaged(id, why)`."""
        for x in self.ids():
            try:
                yield self.record(x)
            except CampaignError as error:
                damaged(x, error)

    # ------------------------------------------------------------------ recording

    def commit(self, changes: Iterable[Change], message: str) -> pygit2.Oid:
        """Record changes in one commit, and show it in the working tree.

        Returns:
            The branch's new commit: it holds the changes, and whatever others recorded here meanwhile.

        Raises:
            GitError: git refused; nothing is recorded.
            StorageError: A file to record cannot be read, or nothing can be written.
        """
        base = self.head
        made = self._import(base, changes, message)
        new = self.advance(made, base, message)
        self._tidy()
        return new

    def _tidy(self) -> None:
        """A group is a pack: every so often those of a size become one, so that there are few, however many groups."""
        inside = Path(self.repository.path)
        with contextlib.suppress(FileNotFoundError):
            # A worktree's objects are its repository's.
            inside = (inside / (inside / "commondir").read_text().strip()).resolve()
        names = os.listdir(inside / "objects" / "pack")
        if sum(name.endswith(".pack") for name in names) <= PACKS_MOST:
            return
        with open(inside / _TIDYING, "wb") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # What it could not do, it does the next time.
            self.git.run("repack", "--quiet", "--geometric=2", "-d", fine=tuple(range(256)))

    def advance(self, made: pygit2.Oid, base: pygit2.Oid, message: str) -> pygit2.Oid:
        """Move the branch to a commit that was made on `base`, merging with what came to it meanwhile."""
        reference = self.reference
        with self._locked():
            for _ in range(_TRIES):
                old = pygit2.Oid(hex=str(self.repository.references[reference].target))
                new = made if old == base else self.merge_commit(old, made, message)
                done = self.git.run("update-ref", reference, str(new), str(old), fine=(0, 128))
                if done.status == 0:
                    self._show(old, new)
                    return new
        raise GitError(
            "git update-ref", str(self.folder), f"{reference} is moved again and again by somebody else"
        )

    def merge_commit(self, ours: pygit2.Oid, theirs: pygit2.Oid, message: str) -> pygit2.Oid:
        """Return a commit that holds both histories: one of them when it holds the other already."""
        common = self.repository.merge_base(ours, theirs)
        if common == theirs:
            return ours
        if common == ours:
            return theirs
        base = self.tree_of(common) if common is not None else None
        merged = merging.merge_trees(self.repository, base, self.tree_of(ours), self.tree_of(theirs))
        who = self.signature()
        return self.repository.create_commit(None, who, who, message, merged.tree, [ours, theirs])

    def signature(self) -> pygit2.Signature:
        """Who records, by git's own settings. Raises GitError, saying how to set them."""
        text = self.git.text("var", "GIT_COMMITTER_IDENT")
        name, _, rest = text.rpartition(" <")
        address, _, _when = rest.partition("> ")
        return pygit2.Signature(name, address)

    def _import(self, base: pygit2.Oid, changes: Iterable[Change], message: str) -> pygit2.Oid:
        who = self.git.text("var", "GIT_COMMITTER_IDENT").encode("utf-8", "surrogateescape")
        text = message.encode()
        # A reference of its own, of no other use than that fast-import wants one.
        lines = [
            b"feature done\ncommit refs/orchestra/recording-%d\nmark :1\ncommitter %b\ndata %d\n%b\nfrom %b\n"
            % (os.getpid(), who, len(text), text, str(base).encode())
        ]
        for path, content in changes:
            name = _quoted(path)
            if content is None:
                lines.append(b"D %b\n" % name)
                continue
            mode = b"100644"
            if isinstance(content, Link):
                mode, content = b"120000", os.fsencode(content.target)
            elif isinstance(content, Path):
                try:
                    mode = b"100755" if os.access(content, os.X_OK) else mode
                    content = content.read_bytes()
                except OSError as error:
                    raise StorageError("this machine", str(content), error.errno or 0, "recording") from error
            lines.append(b"M %b inline %b\ndata %d\n" % (mode, name, len(content)))
            lines += [content, b"\n"]
        lines.append(
            b"\nget-mark :1\nreset refs/orchestra/recording-%d\nfrom %b\n\ndone\n" % (os.getpid(), b"0" * 40)
        )
        done = self.git.run("fast-import", "--quiet", "--force", stdin=b"".join(lines))
        return pygit2.Oid(hex=done.text)

    # ------------------------------------------------------------------ the working tree

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time, of all on this machine; a killed one lets go."""
        path = Path(self.repository.path) / _LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError("this machine", str(path), error.errno or 0, "locking") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _show(self, old: pygit2.Oid, new: pygit2.Oid) -> None:
        """Bring the working tree and the index from one commit to another; the person's own edits stay.

        Raises:
            GitError: An edit is in the way. What is recorded stays recorded, and the next command tries again.
        """
        if self.repository.is_bare:
            return
        note = Path(self.repository.path) / _SHOWN
        try:
            shown = note.read_text().strip() or str(old)
        except FileNotFoundError:
            shown = str(old)
            note.write_text(f"{shown}\n")
        if not self.git.answers("read-tree", "-m", "-u", shown, str(new)):
            # A file that was only touched looks edited, until git has looked inside.
            self.git.run("update-index", "-q", "--refresh", fine=(0, 1))
            self.git.run("read-tree", "-m", "-u", shown, str(new))
        note.unlink(missing_ok=True)


def _quoted(path: str) -> bytes:
    """A path as fast-import reads it: quoted as in C where it has to be."""
    data = path.encode("utf-8", "surrogateescape")
    if not any(byte in b'\n"\\' for byte in data) and not data.startswith(b'"'):
        return data
    return b'"' + data.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'
