"""Results come back: what was made or changed, whole, and never over what is in the way."""

# ruff: noqa: ASYNC240 -- what a test sets up and looks at may block; nothing else runs meanwhile.
from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liborch.errors import StorageError
from liborch.transfer.fetch import Limits, fetch
from liborch.transfer.rules import Rules, fetch_rules
from liborch.transfer.send import clean, send
from liborch.transfer.snapshot import take_snapshot
from liborch.transfer.stream import worker_stream
from tests.transfer.conftest import Host
from tests.transfer.trees import Thing, fingerprint, grow, picture

TREE = {
    "code": b"print()",
    "data": b"1\n",
    "tool": ("x", b"#!"),
    "big": os.urandom(300_000),
    "l": ("l", b"code"),
}
MADE = {
    "out/result": b"42",
    "out/big": os.urandom(900_000),
    "out/run": ("x", b"x"),
    "out/empty": None,
    "out/zero": b"",
    "out/link": ("l", b"../data"),
    b"out/\xff \n'\"": b"name",
}


def rules(text: str) -> Rules:
    made = Rules(None)
    made.add_text(text.encode(), "test")
    return made


async def test_made_and_changed_files_come_and_unchanged_do_not(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", TREE))
    run = grow(host.directory / "run", MADE)
    (run / "data").write_bytes(b"2\n")
    report = await host.fetch(tmp_path / "back")
    assert picture(tmp_path / "back") == {**picture(grow(tmp_path / "expected", MADE)), b"data": b"2\n"}
    assert (report.files, report.others, report.refused) == (6, 2, [])
    assert (tmp_path / "back/out/result").stat().st_mtime_ns == (run / "out/result").stat().st_mtime_ns


async def test_touched_but_unchanged_file_does_not_come(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", TREE))
    os.utime(host.directory / "run/code")
    os.rename(host.directory / "run/data", host.directory / "run/x")
    (host.directory / "run/data").write_bytes(b"1\n")
    await host.fetch(tmp_path / "back")
    assert picture(tmp_path / "back") == {b"x": b"1\n"}


async def test_change_that_keeps_the_size_right_after_sending_is_seen(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", {f"f{n}": b"old" for n in range(100)}))
    for n in range(100):
        descriptor = os.open(host.directory / f"run/f{n}", os.O_WRONLY)
        os.write(descriptor, b"new")
        os.close(descriptor)
    assert (await host.fetch(tmp_path / "back")).files == 100


async def test_sent_files_carry_a_time_the_kernel_never_gives(host: Host, tmp_path: Path) -> None:
    """Where the clock of a file system is coarse, only that tells a change in the same tick."""
    await host.send(grow(tmp_path / "tree", TREE))
    for name in ("code", "big"):
        assert (host.directory / "run" / name).stat().st_mtime_ns % 1000 == 7


async def test_files_there_before_come_only_when_changed(host: Host, tmp_path: Path) -> None:
    run = grow(host.directory / "run", {"mine": b"1", "mine2": b"1"})
    await host.send(grow(tmp_path / "tree", TREE))
    (run / "mine2").write_bytes(b"22")
    await host.fetch(tmp_path / "back")
    assert picture(tmp_path / "back") == {b"mine2": b"22"}


async def test_results_of_an_earlier_run_do_not_come_again(host: Host, tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", TREE)
    await host.send(tree)
    grow(host.directory / "run", {"first": b"1"})
    await host.send(tree)
    grow(host.directory / "run", {"second": b"2"})
    await host.fetch(tmp_path / "back")
    assert picture(tmp_path / "back") == {b"second": b"2"}
    await host.clean("nothing")
    assert not host.directory.exists()


async def test_fetch_rules_decide_alone_but_spare_local_files(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", TREE))
    grow(host.directory / "run", MADE)
    back = grow(tmp_path / "back", {"code": b"edited here since"})
    report = await host.fetch(back, fetch_ignore=rules("out/*\n!out/result\nbig\n"))
    assert set(picture(back)) == {b"code", b"data", b"tool", b"l", b"out/result"}
    assert (back / "code").read_bytes() == b"edited here since"
    assert report.left_out == 7


async def test_fetchignore_of_a_folder_counts_nested_ones_too(host: Host, tmp_path: Path) -> None:
    tree = grow(
        tmp_path / "tree",
        {"code": b"1", ".fetchignore": b"*\n!out/\n!out/**\n", "out/.fetchignore": b"zero\n"},
    )
    await host.send(tree)
    grow(host.directory / "run", {"out/zero": b"", "out/one": b"", "two": b""})
    await host.fetch(tmp_path / "back", fetch_ignore=fetch_rules(tree))
    assert set(picture(tmp_path / "back")) == {b"out/one"}
    assert fetch_rules(tmp_path / "back") is None


async def test_local_file_is_replaced_in_one_step(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", TREE))
    grow(host.directory / "run", {"r": b"new"})
    back = grow(tmp_path / "back", {"r": b"old"})
    os.link(back / "r", tmp_path / "witness")
    await host.fetch(back)
    assert (back / "r").read_bytes() == b"new"
    assert (tmp_path / "witness").read_bytes() == b"old"


async def test_folders_and_links_in_the_way_are_refused_by_name(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", TREE))
    grow(
        host.directory / "run",
        {"a": b"1", "b": b"1", "c/x": b"1", "d/x": b"1", "e": ("l", b"f"), "fine": b"1"},
    )
    outside = grow(tmp_path / "outside", {"precious": b"1"})
    back = grow(
        tmp_path / "back",
        {
            "a/in": b"",
            "b": ("l", b"../outside/precious"),
            "c": ("l", b"../outside"),
            "d": b"file",
            "e/in": b"",
        },
    )
    before, kept = picture(back), fingerprint(outside)
    report = await host.fetch(back)
    assert {name for name, _ in report.refused} == {"a", "b", "c/x", "d/x", "e"}
    assert picture(back) == {**before, b"fine": b"1"}
    assert fingerprint(outside) == kept


async def test_sockets_and_pipes_are_named(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", TREE))
    os.mkfifo(host.directory / "run/pipe")
    report = await host.fetch(tmp_path / "back")
    assert report.refused == [("pipe", "a socket, pipe or device")]


async def test_special_modes_do_not_come(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", TREE))
    (grow(host.directory / "run", {"s": b"1"}) / "s").chmod(0o6777)
    await host.fetch(tmp_path / "back")
    assert (tmp_path / "back/s").stat().st_mode & 0o7777 == 0o755


async def test_git_and_steering_files_do_not_come(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", TREE))
    grow(
        host.directory / "run",
        {".git/hooks/x": b"", "s/.GIT/config": b"", ".sendignore": b"", "s/.gitignore": b"", "r": b""},
    )
    report = await host.fetch(tmp_path / "back")
    assert set(picture(tmp_path / "back")) == {b"r"}
    assert {name for name, _ in report.refused} >= {".git/hooks/x", "s/.GIT/config"}
    assert report.left_out == 2


async def test_limits_refuse_what_is_beyond_by_name(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", TREE))
    grow(host.directory / "run", {"huge": os.urandom(500_000), "s1": b"1", "s2": b"2"})
    report = await host.fetch(tmp_path / "back", limits=Limits(total_bytes=100_000))
    assert [name for name, _ in report.refused] == ["huge"]
    assert set(picture(tmp_path / "back")) == {b"s1", b"s2"}
    report = await host.fetch(tmp_path / "back2", limits=Limits(entries=1))
    assert (report.files, report.refused_count) == (1, 2)


async def test_folder_that_is_gone_is_a_clear_error(host: Host, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"host/never.*No such file"):
        await host.fetch(tmp_path / "back", "never")


async def test_file_replaced_by_a_pipe_since_the_listing_hangs_nobody(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", TREE))
    run = grow(host.directory / "run", {"r": b"1", "gone": b"1", "grew": b"1"})
    receive = host.stream.receive

    async def tampering() -> tuple[dict[str, object], bytes]:
        head, body = await receive()
        if head["t"] == "list" and head["last"]:
            (run / "gone").unlink()
            (run / "r").unlink()
            os.mkfifo(run / "r")
            (run / "grew").write_bytes(b"2" * 400_000)
        return head, body

    host.stream.receive = tampering  # type: ignore[method-assign]
    report = await host.fetch(tmp_path / "back")
    assert ("gone", "could not be read there: No such file or directory") in report.refused
    assert ("r", "could not be read there: it is no file any more") in report.refused
    assert picture(tmp_path / "back")[b"grew"] == b"2" * 400_000


async def test_progress_ends_at_the_total(host: Host, tmp_path: Path) -> None:
    await host.send(grow(tmp_path / "tree", TREE))
    grow(host.directory / "run", MADE)
    seen: list[tuple[int, int, int, int]] = []
    report = await host.fetch(tmp_path / "back", progress=lambda *now: seen.append(now))
    assert seen[-1] == (report.bytes, report.bytes, report.files, report.files)
    assert seen == sorted(seen)


# Names as hostile as a file system takes; prefixes make files and folders collide now and then.
_part = st.one_of(
    st.sampled_from([b"a", b"b", b"-rf", b" ", b"\n", b"'\"$(x)", b"\xff\xfe", "é".encode(), b"...", b"A"]),
    st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"0")),
).filter(
    lambda part: (
        part not in (b".", b"..")
        and part.lower() != b".git"
        and not part.startswith((b".orch", b".sendi", b".fetchi", b".giti"))
    )
)
_path = st.lists(_part, min_size=1, max_size=3).map(b"/".join)
_thing = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=10).map(lambda data: ("x", data)),
    st.just(("l", b"a")),
    st.none(),
    st.integers(0, 255).map(lambda byte: bytes([byte]) * 140_000),
)


def _consistent(things: dict[bytes, Thing]) -> dict[bytes, Thing]:
    """Drop entries that would need a file to be a folder."""
    kept: dict[bytes, Thing] = {}
    for path in sorted(things):
        above = [path[:at] for at in range(len(path)) if path[at : at + 1] == b"/"]
        if not any(each in kept for each in above):
            kept[path] = things[path]
    return kept


_tree = st.dictionaries(_path, _thing, max_size=6).map(_consistent)


def test_any_tree_makes_the_round_trip(tmp_path: Path) -> None:
    """Send a tree, change it as an execution might, fetch: made and changed files are here, whole; twice over."""
    count = 0

    with asyncio.Runner() as runner:
        opened = worker_stream()
        stream = runner.run(opened.__aenter__())

        async def story(
            first: dict[bytes, Thing], second: dict[bytes, Thing], made: dict[bytes, Thing]
        ) -> None:
            nonlocal count
            count += 1
            place = tmp_path / str(count)
            directory = place / "host"
            for number, things in enumerate((first, second)):
                tree = grow(place / f"tree{number}", things)
                await send(stream, take_snapshot(tree), str(directory / "run"), directory=str(directory))
                assert picture(directory / "run") == picture(tree)
            before = picture(directory / "run")
            for path, thing in made.items():
                full = os.path.join(os.fsencode(directory / "run"), path)
                if (
                    isinstance(thing, bytes)
                    and os.path.isdir(os.path.dirname(full))
                    and not os.path.isdir(full)
                ):
                    if os.path.lexists(full):
                        os.unlink(full)
                    grow(directory / "run", {path: thing})
            after = picture(directory / "run")
            expected = {
                path: thing
                for path, thing in after.items()
                if thing is not None and before.get(path) != thing
            }
            report = await fetch(stream, str(directory / "run"), place / "back", directory=str(directory))
            assert report.refused == []
            assert {
                path: thing for path, thing in picture(place / "back").items() if thing is not None
            } == expected
            await clean(stream, str(directory / "run"), directory=str(directory), leave="nothing")
            assert not directory.exists()

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(_tree, _tree, _tree)
        def told(first: dict[bytes, Thing], second: dict[bytes, Thing], made: dict[bytes, Thing]) -> None:
            runner.run(story(first, second, made))

        try:
            told()
        finally:
            runner.run(opened.__aexit__(None, None, None))
