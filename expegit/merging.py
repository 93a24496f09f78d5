"""Merges two histories of a campaign in memory: tree by tree, going down only where both sides differ.

Writers never touch the same paths, so nearly always a whole folder is one side's or the other's and is taken as it is: what a
merge costs depends on what changed, not on how much there is. The exceptions:

============================  =====================================================================================
a record changed on both      field by field (`records.merge`); where both changed the same one, both records are kept
                              (`record.json` and `record-HASH.json`), the same on both sides
removed here, changed there   the change wins: nothing that somebody still works on is lost
another file on both sides    both are kept, the second as `NAME-HASH`
campaign.toml, experiment     theirs, when ours is as it was; else ours: what a person changes last is pushed last
============================  =====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pygit2

from expegit import records
from expegit.layout import EXPERIMENT, RECORD, SETTINGS

#: Mode and id of an entry of a tree; None: there is none.
Entry = tuple[int, pygit2.Oid] | None
_TREE = 0o40000


@dataclass
class Merged:
    """What a merge came to."""

    tree: pygit2.Oid
    #: Paths of which both sides had their own, and both were kept.
    kept_twice: list[str] = field(default_factory=list)


def merge_trees(
    repository: pygit2.Repository, base: pygit2.Oid | None, ours: pygit2.Oid, theirs: pygit2.Oid
) -> Merged:
    """Merge two trees; never fails for what they hold.

    Args:
        base: The tree of what both come from; None when they have nothing in common.

    Returns:
        Merged. Its tree is the same whichever side is called ours, but for `campaign.toml` and the experiment's pin.
    """
    found = Merged(ours)
    found.tree = _Merge(repository, found).tree(base, ours, theirs, "")
    return found


class _Merge:
    def __init__(self, repository: pygit2.Repository, found: Merged) -> None:
        self._repository = repository
        self._found = found

    def tree(
        self, base: pygit2.Oid | None, ours: pygit2.Oid | None, theirs: pygit2.Oid | None, path: str
    ) -> pygit2.Oid:
        of_base, of_ours, of_theirs = self._entries(base), self._entries(ours), self._entries(theirs)
        builder = self._repository.TreeBuilder(*(() if ours is None else (ours,)))
        for name in of_base.keys() | of_ours.keys() | of_theirs.keys():
            was, our, their = of_base.get(name), of_ours.get(name), of_theirs.get(name)
            if our == their or their == was:
                continue
            if our == was:
                self._put(builder, name, their)
                continue
            for new_name, entry in self._both(name, was, our, their, f"{path}/{name}" if path else name):
                self._put(builder, new_name, entry)
        return builder.write()

    def _entries(self, tree: pygit2.Oid | None) -> dict[str, Entry]:
        if tree is None:
            return {}
        found: Any = self._repository[tree]
        # By the raw name: others than UTF-8 are names, too.
        return {
            entry.raw_name.decode("utf-8", "surrogateescape"): (int(entry.filemode), entry.id)
            for entry in found
        }

    @staticmethod
    def _put(builder: Any, name: str, entry: Entry) -> None:
        if entry is not None:
            builder.insert(name, entry[1], entry[0])
        elif builder.get(name) is not None:
            builder.remove(name)

    def _both(self, name: str, was: Entry, our: Entry, their: Entry, path: str) -> list[tuple[str, Entry]]:
        """Both sides changed an entry, each in its own way; what is to be there instead."""
        if our is None or their is None:
            return [(name, our or their)]
        if our[0] == _TREE and their[0] == _TREE:
            before = was[1] if was is not None and was[0] == _TREE else None
            return [(name, (_TREE, self.tree(before, our[1], their[1], path)))]
        if path in (SETTINGS, EXPERIMENT):
            return [(name, our)]
        if name == RECORD:
            text = records.merge(*(self._text(entry) for entry in (was, our, their)))
            if text is not None:
                return [(name, (our[0], self._repository.create_blob(text)))]
        first, second = sorted((our, their), key=lambda entry: (entry[0] != _TREE, str(entry[1])))
        self._found.kept_twice.append(path)
        stem, dot, suffix = name.rpartition(".")
        mark = str(second[1])[:8]
        return [(name, first), (f"{stem}-{mark}{dot}{suffix}" if stem else f"{name}-{mark}", second)]

    def _text(self, entry: Entry) -> bytes | None:
        if entry is None or entry[0] == _TREE:
            return None
        blob: Any = self._repository[entry[1]]
        data: bytes = blob.data
        return data
