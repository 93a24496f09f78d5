"""Code goes to a host: everything once, only what differs, nothing of the person's lost."""

# ruff: noqa: ASYNC240 -- what a test sets up and looks at may block; nothing else runs meanwhile.
from __future__ import annotations

import os
from pathlib import Path

import pytest

from liborch.errors import TransferError
from liborch.transfer.send import send
from liborch.transfer.snapshot import empty_snapshot, take_snapshot
from liborch.transfer.stream import worker_stream
from tests.transfer.conftest import Host
from tests.transfer.trees import Counting, fingerprint, grow, picture

TREE = {
    "a": b"first\n",
    "folder/2": b"",
    "folder/tool": ("x", b"#!/bin/sh\n"),
    "link": ("l", b"a"),
    "dangling": ("l", b"nowhere"),
    "leaving": ("l", b"../../etc/passwd"),
    "empty/folder": None,
    "large": os.urandom(700_000),
    b"bad \xff\n'name\"": b"bytes",
    "-rf": b"dash",
}


async def test_host_sees_exactly_the_tree(host: Host, tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", TREE)
    report = await host.send(tree)
    assert picture(host.directory / "run") == picture(tree)
    assert report.fresh
    assert report.files == report.sent_files == 6
    assert report.sent_bytes == report.bytes > 700_000


async def test_second_send_into_another_folder_sends_no_file_bytes(host: Host, tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", TREE)
    await host.send(tree)
    counting = Counting(host.stream)
    report = await host.send(tree, "other", counting)
    assert counting.file_bytes == 0
    assert [head["t"] for head in counting.heads] == ["send"]
    assert report.written == 10
    assert picture(host.directory / "other") == picture(tree)


async def test_resend_into_the_same_folder_touches_nothing(host: Host, tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", TREE)
    await host.send(tree)
    before = fingerprint(host.directory / "run")
    for path in tree.rglob("*"):
        if not path.is_symlink():
            os.utime(path)
    report = await host.send(tree)
    assert (report.written, report.sent_bytes) == (0, 0)
    assert fingerprint(host.directory / "run") == before


async def test_only_the_changed_file_travels_and_is_rewritten(host: Host, tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", TREE)
    await host.send(tree)
    (tree / "a").write_bytes(b"second")
    (tree / "folder/tool").chmod(0o644)
    (tree / "dangling").unlink()
    (tree / "link").unlink()
    (tree / "link").symlink_to("folder")
    before = fingerprint(host.directory / "run")
    report = await host.send(tree)
    assert (report.sent_files, report.sent_bytes, report.written) == (1, 6, 3)
    assert report.displaced == ()
    assert picture(host.directory / "run") == picture(tree)
    after = fingerprint(host.directory / "run")
    same = os.fsencode(host.directory / "run/large")
    assert after[same] == before[same]


async def test_file_becomes_folder_and_folder_becomes_file(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "one", {"x": b"file", "y/z": b"folder", "k": ("l", b"y")}))
    two = grow(
        tmp_path / "two",
        {"x/inner": b"folder now", "y": b"file now", "k/in": b"folder, not through the link"},
    )
    await host.send(two)
    assert picture(host.directory / "run") == picture(two)


async def test_same_content_many_times_travels_once(host: Host, tmp_path: Path) -> None:
    big = os.urandom(400_000)
    tree = grow(
        tmp_path / "tree", {**{f"f{n}": b"same" for n in range(50)}, "b1": big, "b2": big, "b3": ("x", big)}
    )
    report = await host.send(tree, sole=True)
    assert (report.sent_files, report.sent_bytes) == (2, 400_004)
    assert picture(host.directory / "run") == picture(tree)


async def test_files_there_before_survive_and_come_back(host: Host, tmp_path: Path) -> None:
    run = grow(host.directory / "run", {"mine": b"keep", "a": b"my own a", "d/e": b"deep", "same": b"same"})
    before = picture(run)
    tree = grow(tmp_path / "tree", {"a": b"sent", "d": b"a file now", "same": b"same", "new/x": b"1"})
    report = await host.send(tree)
    assert not report.fresh
    assert {path for path, _ in report.displaced} == {"a", "d"}
    for path, at in report.displaced:
        kept = Path(at)
        assert (kept / "e" if path == "d" else kept).read_bytes() in (b"my own a", b"deep")
    assert picture(run) == {**picture(tree), b"mine": b"keep"}
    (run / "made").write_bytes(b"by the run")
    cleaned = await host.clean("nothing")
    assert picture(run) == before
    assert set(cleaned.restored) == {"a", "d"}
    assert os.listdir(host.directory) == ["run"]


async def test_what_an_earlier_run_changed_is_kept_aside_when_code_is_sent_again(
    host: Host, tmp_path: Path
) -> None:
    tree = grow(tmp_path / "tree", {"results.csv": b"header\n"})
    await host.send(tree)
    (host.directory / "run/results.csv").write_bytes(b"header\n1,2,3\n")
    report = await host.send(tree)
    [(path, at)] = report.displaced
    assert path == "results.csv"
    assert Path(at).read_bytes() == b"header\n1,2,3\n"
    assert (host.directory / "run/results.csv").read_bytes() == b"header\n"


async def test_a_link_in_the_folder_is_never_written_through(host: Host, tmp_path: Path) -> None:
    outside = grow(tmp_path / "outside", {"x": b"precious"})
    grow(host.directory / "run", {"data": ("l", os.fsencode(outside))})
    report = await host.send(grow(tmp_path / "tree", {"data/x": b"sent"}))
    assert [path for path, _ in report.displaced] == ["data"]
    assert (outside / "x").read_bytes() == b"precious"
    assert (host.directory / "run/data/x").read_bytes() == b"sent"
    await host.clean("nothing")
    assert picture(outside) == {b"x": b"precious"}
    assert (host.directory / "run/data").is_symlink()


@pytest.mark.parametrize("sole", [False, True])
async def test_leave_nothing_leaves_the_host_as_before(host: Host, tmp_path: Path, sole: bool) -> None:
    tree = grow(tmp_path / "tree", TREE)
    await host.send(tree, "deep/er/run", sole=sole)
    made = host.directory / "deep/er/run"
    grow(made, {"results/r": b"1", "closed/x": b"2"})
    (made / "closed").chmod(0)
    await host.clean("nothing", "deep/er/run")
    assert not host.directory.exists()


async def test_leave_nothing_spares_what_other_folders_need(host: Host, tmp_path: Path) -> None:
    one = grow(tmp_path / "one", {"shared": b"both", "only1": b"1", "big": os.urandom(300_000)})
    two = grow(tmp_path / "two", {"shared": b"both", "only2": b"2"})
    await host.send(one, "r1")
    await host.send(two, "r2")
    await host.clean("nothing", "r1")
    assert os.listdir(host.directory / ".orchestra/store/large") == []
    counting = Counting(host.stream)
    await host.send(two, "r3", counting)
    assert counting.file_bytes == 0
    assert picture(host.directory / "r2") == picture(host.directory / "r3") == picture(two)


async def test_store_is_kept_while_more_executions_wait(host: Host, tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", TREE)
    await host.send(tree, "r1")
    await host.clean("nothing", "r1", keep_store=True)
    counting = Counting(host.stream)
    await host.send(tree, "r2", counting)
    assert counting.file_bytes == 0
    await host.clean("nothing", "r2")
    assert not host.directory.exists()


async def test_leave_code_removes_results_and_restores_changed_code(host: Host, tmp_path: Path) -> None:
    grow(host.directory / "run", {"mine": b"keep"})
    tree = grow(tmp_path / "tree", TREE)
    await host.send(tree)
    run = host.directory / "run"
    (run / "a").write_bytes(b"changed by the run")
    grow(run, {"results/r": b"1", "folder/out": b"2"})
    await host.clean("code")
    assert picture(run) == {**picture(tree), b"mine": b"keep"}
    counting = Counting(host.stream)
    report = await host.send(tree, stream=counting)
    assert (counting.file_bytes, report.written) == (0, 0)


async def test_leave_everything_removes_nothing(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", TREE))
    grow(host.directory / "run", {"results/r": b"1"})
    before = picture(host.directory)
    await host.clean("everything")
    assert picture(host.directory) == before


async def test_cleaning_what_was_never_sent_touches_nothing(host: Host) -> None:
    run = grow(host.directory / "run", {"mine": b"keep"})
    before = fingerprint(host.directory)
    assert (await host.clean("nothing")).removed == 0
    assert fingerprint(host.directory) == before
    assert picture(run) == {b"mine": b"keep"}


async def test_empty_snapshot_makes_a_folder_of_its_own(host: Host, tmp_path: Path) -> None:
    folder = str(host.directory / "run")
    await send(host.stream, empty_snapshot(tmp_path), folder, directory=str(host.directory))
    assert picture(host.directory / "run") == {}
    await host.clean("nothing")
    assert not host.directory.exists()


@pytest.mark.parametrize("size", [5, 400_000])
async def test_file_edited_after_the_snapshot_fails_by_name_and_corrupts_nothing(
    host: Host, tmp_path: Path, size: int
) -> None:
    tree = grow(tmp_path / "tree", {"steady": b"s", "edited": b"x" * size})
    snapshot = take_snapshot(tree)
    snapshot.kept.clear()
    (tree / "edited").write_bytes(b"y" * size)
    folder = str(host.directory / "run")
    with pytest.raises(TransferError, match="edited: changed after the snapshot") as caught:
        await send(host.stream, snapshot, folder, directory=str(host.directory))
    assert caught.value.retriable
    assert not (host.directory / "run").exists()
    await host.send(tree)
    assert picture(host.directory / "run") == picture(tree)


async def test_small_files_are_sent_as_they_were_at_the_snapshot(host: Host, tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", {"a": b"at submission"})
    snapshot = take_snapshot(tree)
    (tree / "a").write_bytes(b"edited since")
    await send(host.stream, snapshot, str(host.directory / "run"), directory=str(host.directory))
    assert (host.directory / "run/a").read_bytes() == b"at submission"


@pytest.mark.parametrize("name", [b"a", b"large"])
async def test_content_torn_in_the_store_is_sent_again(host: Host, tmp_path: Path, name: bytes) -> None:
    tree = grow(tmp_path / "tree", TREE)
    await host.send(tree)
    store = host.directory / ".orchestra/store"
    for file in (*store.glob("packs/*.pack"), *store.glob("large/*")):
        data = bytearray(file.read_bytes())
        at = data.find(b"first\n") if name == b"a" else 1000
        if at >= 0 and (file.parent.name == "large") == (name == b"large"):
            data[at] ^= 1
            file.write_bytes(data)
    counting = Counting(host.stream)
    await host.send(tree, "other", counting)
    assert counting.file_bytes == len(TREE[name.decode()] or b"")
    assert picture(host.directory / "other") == picture(tree)


async def test_pack_of_a_killed_writer_is_used(host: Host, tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", TREE)
    await host.send(tree)
    for index in (host.directory / ".orchestra/store/packs").glob("*.idx"):
        index.unlink()
    counting = Counting(host.stream)
    await host.send(tree, "other", counting)
    assert counting.file_bytes == 0


async def test_torn_index_never_makes_the_persons_files_ours(host: Host, tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", {"a": b"1"})
    await host.send(tree)
    [index] = (path for path in (host.directory / ".orchestra/index").iterdir() if path.suffix != ".lock")
    index.write_bytes(index.read_bytes()[:20])
    await host.clean("nothing")
    assert picture(host.directory / "run") == {b"a": b"1"}


async def test_relative_folder_is_refused(host: Host, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="not an absolute path"):
        await send(host.stream, empty_snapshot(tmp_path), "run", directory=str(host.directory))


async def test_two_senders_at_once_do_not_disturb_each_other(host: Host, tmp_path: Path) -> None:
    import asyncio

    tree = grow(tmp_path / "tree", {**TREE, **{f"m/{n}": os.urandom(3000) for n in range(200)}})
    async with worker_stream() as second, worker_stream() as third:
        await asyncio.gather(
            host.send(tree, "one"), host.send(tree, "same", second), host.send(tree, "same", third)
        )
    assert picture(host.directory / "one") == picture(host.directory / "same") == picture(tree)
    async with worker_stream() as second:
        await asyncio.gather(
            host.clean("nothing", "one"), Host(host.directory, second).clean("nothing", "same")
        )
    assert not host.directory.exists()


async def test_progress_ends_at_the_total(host: Host, tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", TREE)
    seen: list[tuple[int, int, int, int]] = []
    report = await host.send(tree, progress=lambda *now: seen.append(now))
    assert seen[-1] == (report.sent_bytes, report.sent_bytes, report.sent_files, report.sent_files)
    assert seen == sorted(seen)
