"""A node that lies: nothing outside the target changes, what is bad is refused by name, the rest comes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from liborch.errors import TransferError
from liborch.transfer.fetch import FetchReport, Limits, fetch
from liborch.transfer.send import send
from liborch.transfer.snapshot import take_snapshot
from tests.transfer.trees import Scripted, fingerprint, grow, picture

Frame = tuple[dict[str, Any], bytes]


def listing(*entries: tuple[bytes, bytes]) -> Frame:
    return {"t": "list", "last": True}, b"".join(b"%s\0%s\0" % entry for entry in entries)


def small(contents: dict[int, bytes], **changes: Any) -> Frame:
    head = {"t": "small", "k": list(contents), "s": [len(data) for data in contents.values()], **changes}
    digests = b"".join(hashlib.sha256(data).digest() for data in contents.values())
    return head, digests + b"".join(contents.values())


DONE: Frame = ({"t": "done"}, b"")


async def receive(target: Path, *frames: Frame, **options: Any) -> FetchReport:
    return await fetch(Scripted(*frames), "/run", target, directory="/host", **options)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A target with canaries around it, all of which every test checks afterwards."""
    grow(
        tmp_path,
        {
            "canary": b"1",
            "outside/canary": b"2",
            "home/.bashrc": b"3",
            "home/work/canary": b"4",
            "home/work/target/mine": b"5",
            "home/work/target/door": ("l", b"../../../outside"),
            "home/work/target/file-door": ("l", b"../../../outside/canary"),
        },
    )
    return tmp_path / "home/work/target"


HOSTILE_NAMES = [
    b"../canary",
    b"../../.bashrc",
    b"sub/../../canary",
    b"sub/..",
    b"..",
    b".",
    b"./x",
    b"",
    b"/tmp/x",
    b"/",
    b"a//b",
    b"a/",
    b"a/./b",
    b"door/x",
    b"door/sub/x",
    b"file-door",
    b"file-door/x",
    b"mine/x",
    b".git/hooks/post-checkout",
    b"sub/.GiT/config",
    b"n" * 256,
    b"d/" * 2100 + b"x",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: repr(name[:30]))
async def test_hostile_name_is_refused_and_the_rest_comes(target: Path, tmp_path: Path, name: bytes) -> None:
    before, mine = fingerprint(tmp_path), picture(target)
    size = b"f m 4 0"
    report = await receive(
        target,
        listing((name, size), (b"good", size)),
        small({0: b"evil", 1: b"good"}) if reachable(name) else small({1: b"good"}),
        DONE,
    )
    assert [path for path, _ in report.refused] == [os.fsdecode(name)]
    assert report.files == 1
    assert picture(target) == {**mine, b"good": b"good"}
    after = fingerprint(tmp_path)
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == {os.fsencode(target / "good")}


def reachable(name: bytes) -> bool:
    """Names that look innocent and are only refused when written."""
    return name in (b"door/x", b"door/sub/x", b"file-door", b"file-door/x", b"mine/x")


HOSTILE_LINKS = [
    (b"l", b"/etc/passwd"),
    (b"l", b".."),
    (b"l", b"../canary"),
    (b"d/l", b"../../canary"),
    (b"d/l", b"x/../../.."),
    (b"l", b"d/.."),
    (b"l", b".git/config"),
    (b"l", b""),
]


@pytest.mark.parametrize(("name", "to"), HOSTILE_LINKS)
async def test_link_out_of_the_folder_is_refused(
    target: Path, tmp_path: Path, name: bytes, to: bytes
) -> None:
    before = fingerprint(tmp_path)
    report = await receive(target, listing((name, b"l m 0 0 " + to)), DONE)
    assert [path for path, _ in report.refused] == [os.fsdecode(name)]
    assert fingerprint(tmp_path) == before


async def test_nothing_is_written_through_a_link_that_came(target: Path, tmp_path: Path) -> None:
    before = fingerprint(tmp_path)
    report = await receive(
        target,
        listing((b"in", b"l m 0 0 door"), (b"in/x", b"f m 4 0"), (b"in2", b"l m 0 0 in")),
        small({1: b"evil"}),
        DONE,
    )
    assert [path for path, _ in report.refused] == ["in"]
    assert (target / "in/x").read_bytes() == b"evil"
    assert not (target / "in").is_symlink()
    after = fingerprint(tmp_path)
    assert {path: after[path] for path in before} == before
    assert os.listdir(tmp_path / "outside") == ["canary"]


@pytest.mark.parametrize(
    "meta",
    [
        b"",
        b"f",
        b"z m 1 0",
        b"f m -1 0",
        b"f m 99999999999999999999 0",
        b"f q 1 0",
        b"f m 1",
        b"s m 0 0",
        b"u m 0 0",
        b"f m 1e3 0",
    ],
)
async def test_bad_description_is_refused(target: Path, tmp_path: Path, meta: bytes) -> None:
    before = fingerprint(tmp_path)
    report = await receive(target, listing((b"x", meta)), DONE)
    assert report.refused_count == 1
    assert fingerprint(tmp_path) == before


BROKEN = [
    [({"t": "list", "last": True}, b"cut")],
    [({"t": "what"}, b"")],
    [listing((b"x", b"f m 4 0")), small({7: b"evil"})],
    [listing((b"x", b"f m 4 0")), small({0: b"evil"}), small({0: b"evil"})],
    [listing((b"x", b"f m 4 0")), small({0: b"evil"}, s=[400])],
    [listing((b"x", b"f m 4 0")), small({0: b"evil"}, s=[-4])],
    [listing((b"x", b"f m 4 0")), small({0: b"evil"}, s="4")],
    [listing((b"x", b"f m 4 0")), small({0: b"evil"}, k=None)],
    [listing((b"x", b"f m 400000 0")), ({"t": "large", "k": 0, "at": 9, "end": False}, b"x")],
    [listing((b"x", b"f m 400000 0")), ({"t": "large", "k": 3, "at": 0, "end": False}, b"x")],
    [listing((b"x", b"f m 400000 0")), ({"t": "large", "at": 0}, b"x")],
    [listing((b"x", b"f m 4 0")), ({"t": "gone", "k": 9}, b"")],
]


@pytest.mark.parametrize("frames", BROKEN, ids=range(len(BROKEN)))
async def test_broken_protocol_ends_the_fetch_and_touches_nothing_else(
    target: Path, tmp_path: Path, frames: list[Frame]
) -> None:
    before = fingerprint(tmp_path)
    with pytest.raises(TransferError, match="broke the protocol"):
        await receive(target, *frames)
    after = fingerprint(tmp_path)
    assert {path: after[path] for path in before} == before


async def test_content_that_is_not_its_hash_does_not_land(target: Path) -> None:
    head, body = small({0: b"evil"})
    report = await receive(target, listing((b"x", b"f m 4 0")), (head, body[:-1] + b"?"), DONE)
    assert report.refused == [("x", "its content is not what its hash says")]
    report = await receive(
        target,
        listing((b"x", b"f m 400000 0")),
        ({"t": "large", "k": 0, "at": 0, "end": True, "sha": "0" * 64}, b"x"),
        DONE,
    )
    assert report.refused == [("x", "its content is not what its hash says")]
    assert not (target / "x").exists()


async def test_file_that_grows_for_ever_is_cut_off(target: Path) -> None:
    piece = b"0" * 100_000
    frames: list[Frame] = [
        ({"t": "large", "k": 0, "at": at, "end": False}, piece) for at in range(0, 2_000_000, 100_000)
    ]
    report = await receive(
        target,
        listing((b"x", b"f m 200000 0"), (b"y", b"f m 1 0")),
        *frames,
        small({1: b"y"}),
        DONE,
        limits=Limits(total_bytes=500_000),
    )
    assert report.refused == [("x", "grew beyond what is let in")]
    assert (target / "y").read_bytes() == b"y"
    assert not [name for name in os.listdir(target) if name.startswith(".orchestra")]


async def test_name_listed_twice_lands_once(target: Path) -> None:
    report = await receive(target, listing((b"x", b"f m 1 0"), (b"x", b"f m 1 0")), small({0: b"1"}), DONE)
    assert report.refused == [("x", "listed twice")]


async def test_names_that_differ_in_case_both_land(target: Path) -> None:
    await receive(target, listing((b"x", b"f m 1 0"), (b"X", b"f m 1 0")), small({0: b"1", 1: b"2"}), DONE)
    assert ((target / "x").read_bytes(), (target / "X").read_bytes()) == (b"1", b"2")


async def test_times_no_file_system_takes_do_no_harm(target: Path) -> None:
    entries = [(b"%d" % n, b"f m 1 " + when) for n, when in enumerate((b"-5", b"9999999999999999999", b"0"))]
    report = await receive(target, listing(*entries), small({0: b"a", 1: b"b", 2: b"c"}), DONE)
    assert (report.files, report.refused) == (3, [])


async def test_flood_of_bad_entries_is_counted_and_the_first_thousand_named(target: Path) -> None:
    report = await receive(target, listing(*((b"../%d" % n, b"f m 1 0") for n in range(5000))), DONE)
    assert (report.refused_count, len(report.refused)) == (5000, 1000)


async def test_what_did_not_come_is_named(target: Path) -> None:
    report = await receive(target, listing((b"x", b"f m 4 0")), DONE)
    assert report.refused == [("x", "did not come")]


async def test_worker_cannot_ask_for_files_outside_the_snapshot(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", {"a": b"1"})
    asking = ({"t": "missing", "parts": [], "last": True}, (5).to_bytes(4, "big"))
    stream = Scripted(asking)
    with pytest.raises(TransferError, match="not in the snapshot"):
        await send(stream, take_snapshot(tree), "/run", directory="/host")
    assert [head["t"] for head, _ in stream.sent] == ["send"]
