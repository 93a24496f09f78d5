"""Disks that are full or closed: a clear error with path and errno, nothing half-done, and work goes on afterwards."""

# ruff: noqa: ASYNC221, ASYNC240 -- what a test sets up and looks at may block; nothing else runs meanwhile.
from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from liborch.errors import StorageError
from tests.transfer.conftest import Host
from tests.transfer.trees import grow, picture

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "none", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@root_only
@pytest.mark.parametrize(
    "things", [{f"f{n}": os.urandom(20_000) for n in range(40)}, {"large": os.urandom(900_000)}]
)
async def test_node_full_while_sending(
    host: Host, tmp_path: Path, small_disk: Path, things: dict[bytes | str, bytes]
) -> None:
    tree = grow(tmp_path / "tree", things)  # type: ignore[arg-type]
    full = Host(small_disk, host.stream)
    with pytest.raises(StorageError) as caught:
        await full.send(tree)
    assert caught.value.code == errno.ENOSPC
    assert caught.value.path.startswith(str(small_disk))
    assert not (small_disk / "run").exists()
    assert list((small_disk / ".orchestra/tmp").iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    await full.send(tree)
    assert picture(small_disk / "run") == picture(tree)
    await full.clean("nothing")
    assert list(small_disk.iterdir()) == []


@root_only
async def test_node_full_while_replacing_keeps_the_old_files(
    host: Host, tmp_path: Path, small_disk: Path
) -> None:
    full = Host(small_disk, host.stream)
    await full.send(grow(tmp_path / "old", {"a": b"old", "b": b"old"}))
    with pytest.raises(StorageError):
        await full.send(grow(tmp_path / "new", {"a": os.urandom(100_000), "b": os.urandom(600_000)}))
    assert picture(small_disk / "run") == {b"a": b"old", b"b": b"old"}


@root_only
async def test_this_machine_full_while_fetching(host: Host, tmp_path: Path, small_disk: Path) -> None:
    await host.send(grow(tmp_path / "tree", {"code": b"1"}))
    run = grow(host.directory / "run", {**{f"r{n}": os.urandom(20_000) for n in range(40)}, "code": b"1"})
    target = small_disk / "back"
    with pytest.raises(StorageError) as caught:
        await host.fetch(target)
    assert (caught.value.where, caught.value.code) == ("this machine", errno.ENOSPC)
    landed = {path: thing for path, thing in picture(target).items() if not path.startswith(b".orchestra")}
    assert landed.items() <= picture(run).items()
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    # The worker was in the middle of this conversation; the next one has its own.
    from liborch.transfer.stream import worker_stream

    async with worker_stream() as stream:
        report = await Host(host.directory, stream).fetch(target)
    assert report.already == len(landed)
    assert len(picture(target)) == 40


@root_only
async def test_read_only_node(host: Host, tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError) as caught:
        await Host(small_disk / "d", host.stream).send(grow(tmp_path / "tree", {"a": b"1"}))
    assert caught.value.code == errno.EROFS
    assert str(small_disk) in str(caught.value)
    with pytest.raises(StorageError) as caught:
        await Host(small_disk, host.stream).fetch(small_disk / "back")
    assert caught.value.code in (errno.EROFS, errno.ENOENT)


@root_only
async def test_folder_on_another_file_system_than_the_store(
    host: Host, tmp_path: Path, small_disk: Path
) -> None:
    from liborch.transfer.send import clean, send
    from liborch.transfer.snapshot import take_snapshot

    tree = grow(tmp_path / "tree", {"a": b"1", "d/large": os.urandom(200_000), "l": ("l", b"a")})
    for place in (small_disk / "fresh", small_disk):
        grow(small_disk, {"a": b"mine"} if place == small_disk else {})
        snapshot = take_snapshot(tree)
        report = await send(host.stream, snapshot, str(place), directory=str(host.directory), sole=True)
        assert {**picture(tree), **picture(place)}.items() >= picture(tree).items()
        assert (place / "d/large").read_bytes() == (tree / "d/large").read_bytes()
        assert [path for path, _ in report.displaced] == (["a"] if place == small_disk else [])
        await clean(host.stream, str(place), directory=str(host.directory), leave="nothing")
    assert picture(small_disk) == {b"a": b"mine"}
    assert not host.directory.exists()


@root_only
async def test_target_with_a_folder_on_another_file_system(
    host: Host, tmp_path: Path, small_disk: Path
) -> None:
    await host.send(grow(tmp_path / "tree", {"code": b"1"}))
    grow(host.directory / "run", {"disk/r": b"result", "disk/l": ("l", b"r"), "r": b"1"})
    report = await host.fetch(tmp_path)
    assert report.refused == []
    assert picture(small_disk) == {b"r": b"result", b"l": ("l", b"r")}


async def test_file_where_the_directory_should_be(host: Host, tmp_path: Path) -> None:
    host.directory.write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        await host.send(grow(tmp_path / "tree", {"a": b"1"}))
    assert caught.value.code == errno.ENOTDIR
