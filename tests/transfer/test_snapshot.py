"""A snapshot is what a folder holds, not when it was touched."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from liborch.errors import StorageError
from liborch.transfer import snapshot as module
from liborch.transfer.snapshot import HashCache, take_snapshot
from tests.transfer.trees import grow

TREE = {"a": b"1", "d/b": b"2" * 200_000, "link": ("l", b"a"), "empty": None, "tool": ("x", b"3")}


def age(folder: Path) -> None:
    """Make every file look old enough for the cache."""
    then = time.time() - 3600
    for path in folder.rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)


def test_touching_changes_nothing_and_everything_else_does(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", TREE)
    first = take_snapshot(tree)
    age(tree)
    assert take_snapshot(tree).id == first.id
    ids = {first.id}
    for change in (
        lambda: (tree / "a").write_bytes(b"2"),
        lambda: (tree / "a").chmod(0o755),
        lambda: (tree / "a").rename(tree / "c"),
        lambda: (tree / "link").unlink(),
        lambda: (tree / "empty").rmdir(),
    ):
        change()
        ids.add(take_snapshot(tree).id)
    assert len(ids) == 6


def test_same_tree_elsewhere_has_the_same_name(tmp_path: Path) -> None:
    assert take_snapshot(grow(tmp_path / "x", TREE)).id == take_snapshot(grow(tmp_path / "y", TREE)).id


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, cache = grow(tmp_path / "tree", TREE), tmp_path / "cache"
    monkeypatch.setattr(module, "RACY_NS", 0)
    first = take_snapshot(tree, cache=cache)
    [file] = (cache / "hashes").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    second = take_snapshot(tree, cache=cache)
    assert second.id == first.id
    assert first.kept
    assert not second.kept


def test_file_modified_just_now_is_not_trusted_to_the_cache(tmp_path: Path) -> None:
    tree, cache = grow(tmp_path / "tree", {"a": b"1"}), tmp_path / "cache"
    take_snapshot(tree, cache=cache)
    known = HashCache(cache, tree)
    known.load()
    assert known.known == {}


def test_edit_that_keeps_size_and_time_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, cache = grow(tmp_path / "tree", {"a": b"1"}), tmp_path / "cache"
    monkeypatch.setattr(module, "RACY_NS", 0)
    status = (tree / "a").stat()
    first = take_snapshot(tree, cache=cache)
    (tree / "a").write_bytes(b"2")
    os.utime(tree / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert take_snapshot(tree, cache=cache).id != first.id


@pytest.mark.parametrize("damage", [b"", b"\x81", b"\xc1junk", b"\x81\xc4\x01a\x93\x01\x02\x03"])
def test_corrupt_cache_is_ignored(tmp_path: Path, damage: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, cache = grow(tmp_path / "tree", TREE), tmp_path / "cache"
    monkeypatch.setattr(module, "RACY_NS", 0)
    first = take_snapshot(tree, cache=cache)
    [file] = (cache / "hashes").iterdir()
    file.write_bytes(damage)
    assert take_snapshot(tree, cache=cache).id == first.id
    assert file.read_bytes() != damage


def test_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", TREE)
    (tmp_path / "file").write_bytes(b"")
    assert take_snapshot(tree, cache=tmp_path / "file").files == 3


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    tree = grow(tmp_path / "tree", {"closed": b"1"})
    (tree / "closed").chmod(0)
    with pytest.raises(StorageError, match="closed"):
        take_snapshot(tree)
