"""The fallback for nodes without python3, in dash and in busybox: what the real agent promises, it promises, too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from liborch.drive.link import AgentLink, FrameLink
from liborch.drive.local import LocalShell, open_local_pipe
from liborch.drive.shell import command, fallback_script, session_command
from liborch.drive.shell_link import ShellLink
from liborch.errors import TransferError
from liborch.transfer.fetch import fetch
from liborch.transfer.send import clean, send
from liborch.transfer.snapshot import take_snapshot
from tests.agent import contract
from tests.agent.contract import Client

# ruff: noqa: ASYNC240 - small files of a test

_TOOLS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Node:
    """A machine with nothing but a shell and its usual companions: a PATH and a home of its own."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        programs = folder / "bin"
        programs.mkdir()
        if kind == "busybox":
            binary = shutil.which("busybox")
            if binary is None:
                pytest.skip("no busybox here (Debian: busybox-static)")
            subprocess.run([binary, "--install", "-s", programs], check=True)
            path = str(programs)
        else:
            os.symlink(shutil.which("dash") or "/bin/sh", programs / "sh")
            path = f"{programs}:{_TOOLS}"
        self.env = {
            "PATH": path,
            "HOME": str(self.home),
            "ORCHESTRA_AGENT_STATE": str(folder / "agent"),
            "LANG": "C.UTF-8",
        }
        self.shell = LocalShell(self.env)

    async def link(self) -> ShellLink:
        """Open another link."""
        link = ShellLink("node", self.shell)
        await link.start()
        return link

    @property
    def state(self) -> Path:
        """Where the fallback keeps its files."""
        return self.folder / "agent-sh"

    def tick(self) -> None:
        """Have the keeper look around now, as it does every few seconds."""
        (self.state / "ctl").write_text("tick\n")

    def end(self) -> None:
        """End every process that was started with our folder for its state: it names no other test's."""
        mark = f"ORCHESTRA_AGENT_STATE={self.folder}/agent\0".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes() + b"\0":
                    os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture(params=["dash", "busybox"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path, request.param)
    yield made  # type: ignore[misc]
    made.end()


@pytest.fixture
async def link(node: Node) -> AsyncIterator[ShellLink]:
    opened = await node.link()
    yield opened
    await contract.end_all(opened)
    await opened.close()
    await node.shell.close()


@pytest.mark.parametrize("story", contract.STORIES, ids=lambda story: story.__name__)
async def test_the_fallback_keeps_the_contract(
    link: ShellLink, story: Callable[[AgentLink], Awaitable[None]]
) -> None:
    await story(link)


async def test_shares_of_gpus_are_refused_and_the_next_order_is_taken(link: ShellLink) -> None:
    client = await Client(link).attach(cpus=2)
    event = await client.event("refused", client.order("true", gpus=0.5))
    assert "no shares of GPUs" in event[5]["why"]
    assert (await client.run("echo", "on"))["out"] == "on\n"


async def test_a_client_that_comes_back_gets_what_it_missed_once(node: Node) -> None:
    first = await node.link()
    client = await Client(first).attach(cpus=2)
    gate = node.folder / "gate"
    early = client.order("sh", "-c", "echo early; exit 3")
    late = client.order("sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.05; done; echo late; exit 4")
    await client.ended(early)
    await client.event("started", late)
    seen = max(event[0] for event in client.events)
    await first.close()
    gate.touch()
    second = await node.link()
    again = await Client(second, client.owner).attach(ack=seen)
    detail = await again.ended(late)
    assert (detail["code"], detail["out"]) == (4, "late\n")
    assert not [event for event in again.events if event[3] == early]
    await second.close()
    # Nothing was acknowledged since: a third client is told again.
    third = await node.link()
    assert (await (await Client(third, client.owner).attach(ack=seen)).ended(late))["code"] == 4
    await third.close()
    await node.shell.close()


async def test_what_runs_goes_on_when_every_process_of_ours_but_its_own_is_killed(node: Node) -> None:
    first = await node.link()
    client = await Client(first).attach(cpus=1)
    gate = node.folder / "gate"
    x = client.order("sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.05; done; echo whole; exit 5")
    waiting = client.order("sh", "-c", "echo next")
    await client.event("started", x)
    os.kill(first.hello["keeper_pid"], signal.SIGKILL)
    os.kill(first.hello["pid"], signal.SIGKILL)
    await first.close()
    second = await node.link()
    assert second.hello["keeper_pid"] != first.hello["keeper_pid"]
    again = await Client(second, client.owner).attach(cpus=1)
    assert [x, 1, "running"] in again.attached["holding"]
    gate.touch()
    detail = await again.ended(x)
    assert (detail["reason"], detail["code"], detail["out"]) == ("exit", 5, "whole\n")
    assert (await again.ended(waiting))["out"] == "next\n"
    await second.close()
    await node.shell.close()


async def test_who_waited_for_it_is_killed_and_so_it_is_lost_and_ended(node: Node) -> None:
    link = await node.link()
    client = await Client(link).attach(cpus=1)
    x = client.order("sleep", "600")
    await client.event("started", x)
    run = node.state / "runs" / f"{x}.1"
    main = int((run / "pid").read_text().split()[0])
    os.kill(int((run / "claim").read_text().split()[1]), signal.SIGKILL)
    detail = await client.ended(x)
    assert (detail["reason"], detail["code"]) == ("lost", None)
    assert not Path(f"/proc/{main}").exists()
    await link.close()
    await node.shell.close()


async def test_two_clients_share_the_slots_and_see_only_their_own(node: Node) -> None:
    one, two = await node.link(), await node.link()
    first, second = await Client(one).attach(cpus=1), await Client(two).attach(cpus=1)
    held = first.order("sleep", "600", grace=0.1)
    await first.event("started", held)
    waiting = second.order("echo", "mine")
    one.tell("cancel", ids=[(held, 1)])
    assert (await second.ended(waiting))["out"] == "mine\n"
    assert {event[3] for event in second.events} == {waiting}
    await one.close()
    await two.close()
    await node.shell.close()


def _tree(folder: Path) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for path, folders, files in os.walk(os.fsencode(folder)):
        for name in [*files, *(f for f in folders if os.path.islink(os.path.join(path, f)))]:
            whole = os.path.join(path, name)
            inside = os.path.relpath(whole, os.fsencode(folder))
            if os.path.islink(whole):
                found[inside] = b"-> " + os.readlink(whole)
            else:
                found[inside] = Path(os.fsdecode(whole)).read_bytes()
    return found


def _code(folder: Path) -> Path:
    code = folder / "code"
    for name in (
        b"plain",
        b'a b/it\'s "x"',
        b"new\nline\n",
        b"-rf",
        b"\xff\xfe",
        b"deep/" * 3 + b"x" * 120,
        b"empty",
    ):
        path = os.path.join(os.fsencode(code), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(name * 3 if name != b"empty" else b"")
    (code / "run").write_text("#!/bin/sh\n")
    (code / "run").chmod(0o755)
    (code / "link").symlink_to("plain")
    (code / "large").write_bytes(os.urandom(300_001))
    (code / "twin").write_bytes((code / "large").read_bytes())
    return code


@pytest.mark.parametrize("tar", [True, False], ids=["tar", "no tar"])
async def test_code_goes_out_and_what_was_made_or_changed_comes_back(
    node: Node, link: ShellLink, tmp_path: Path, tar: bool
) -> None:
    if not tar:
        broken = node.folder / "bin"
        (broken / "tar").unlink(missing_ok=True)
        if "busybox" not in os.readlink(broken / "sh"):
            for place in _TOOLS.split(":"):
                for program in Path(place).glob("*") if Path(place).is_dir() else ():
                    if program.name != "tar" and not (broken / program.name).exists():
                        (broken / program.name).symlink_to(program)
            await link.close()
            node.env["PATH"] = str(broken)
            node.shell = LocalShell(node.env)
            link = await node.link()
    snapshot = take_snapshot(_code(tmp_path))
    directory = str(tmp_path / "host")
    folder = f"{directory}/it's here/x"
    stream = link.open_stream("transfer")
    report = await send(stream, snapshot, folder, directory=directory)
    assert report.fresh
    assert _tree(Path(folder)) == _tree(snapshot.folder)
    assert os.access(f"{folder}/run", os.X_OK)
    script = "echo changed >> plain; touch -d @1000000000 large; printf 'a\\nb' > 'made\n'; mkdir results; ln -s ../plain results/link; mkdir void; head -c 500000 /dev/urandom > results/big"
    client = await Client(link).attach()
    assert (await client.run("sh", "-c", script, cwd=folder))["code"] == 0
    results = tmp_path / "results"
    got = await fetch(stream, folder, results, directory=directory)
    assert got.refused == []
    expected = {
        name: data
        for name, data in _tree(Path(folder)).items()
        if name in (b"plain", b"made\n", b"results/link", b"results/big")
    }
    assert len(expected) == 4
    assert _tree(results) == expected
    assert (results / "void").is_dir()
    await clean(stream, folder, directory=directory, leave="code")
    assert _tree(Path(folder)) == _tree(snapshot.folder)
    await clean(stream, folder, directory=directory, leave="nothing")
    assert not Path(directory).exists()
    await stream.close()
    if not tar:
        await link.close()
        await node.shell.close()


async def test_files_that_were_there_before_survive_and_return(
    node: Node, link: ShellLink, tmp_path: Path
) -> None:
    snapshot = take_snapshot(_code(tmp_path))
    folder = tmp_path / "theirs"
    (folder / "sub").mkdir(parents=True)
    (folder / "plain").write_text("theirs")
    (folder / "sub" / "other").write_text("other")
    before = _tree(folder)
    directory = str(tmp_path / "host")
    stream = link.open_stream("transfer")
    report = await send(stream, snapshot, str(folder), directory=directory)
    assert [path for path, _ in report.displaced] == ["plain"]
    assert (folder / "plain").read_bytes() == b"plain" * 3
    (folder / "made").write_text("made")
    got = await fetch(stream, str(folder), tmp_path / "results", directory=directory)
    assert (got.files, _tree(tmp_path / "results")) == (1, {b"made": b"made"})
    await clean(stream, str(folder), directory=directory, leave="nothing")
    assert _tree(folder) == before
    await stream.close()


async def test_sending_again_writes_only_what_differs(node: Node, link: ShellLink, tmp_path: Path) -> None:
    code = _code(tmp_path)
    directory, folder = str(tmp_path / "host"), str(tmp_path / "host" / "f")
    stream = link.open_stream("transfer")
    await send(stream, take_snapshot(code), folder, directory=directory)
    again = await send(stream, take_snapshot(code), folder, directory=directory)
    assert (again.sent_files, again.written) == (0, 0)
    (code / "plain").write_text("new")
    (code / "twin").unlink()
    third = await send(stream, take_snapshot(code), folder, directory=directory)
    assert third.written == 1
    assert _tree(Path(folder)) == _tree(code)
    await stream.close()


async def test_a_file_that_changes_under_way_is_named_and_nothing_is_put_in_place(
    link: ShellLink, tmp_path: Path
) -> None:
    code = _code(tmp_path)
    snapshot = take_snapshot(code)
    data = bytearray((code / "large").read_bytes())
    data[0] ^= 1
    (code / "large").write_bytes(data)
    (code / "twin").write_bytes(data)
    stream = link.open_stream("transfer")
    with pytest.raises(TransferError) as caught:
        await send(stream, snapshot, str(tmp_path / "f"), directory=str(tmp_path / "host"))
    assert caught.value.path in ("large", "twin")
    assert not (tmp_path / "f").exists() or not _tree(tmp_path / "f")
    await stream.close()


async def test_who_tidies_up_leaves_those_alone_who_just_come(node: Node, tmp_path: Path) -> None:
    code = _code(tmp_path)
    snapshot = take_snapshot(code)
    host = tmp_path / "host"

    async def come_and_go(name: str) -> None:
        link = await node.link()
        for _ in range(4):
            stream = link.open_stream("transfer")
            await send(stream, snapshot, str(host / name), directory=str(host))
            assert _tree(host / name) == _tree(code)
            await clean(stream, str(host / name), directory=str(host), leave="nothing")
            await stream.close()
        await link.close()

    await asyncio.gather(*(come_and_go(name) for name in "abc"))
    assert not host.exists()
    await node.shell.close()


async def run_script(node: Node, script: str) -> bytes:
    """What a script with the fallback's functions prints."""
    pipe = await node.shell.open(command("do marker"))
    await pipe.write(f"{script}\nmarker\n".encode())
    pipe.write_eof()
    printed = b""
    while data := await pipe.read(1 << 16):
        printed += data
    await pipe.wait()
    return printed


async def test_many_that_come_first_at_once_meet_one_keeper_and_one_name(node: Node) -> None:
    links = await asyncio.gather(*(node.link() for _ in range(12)))
    assert len({link.hello["state_id"] for link in links}) == 1
    assert len({link.hello["keeper_pid"] for link in links}) == 1
    clients = [await Client(link).attach(cpus=2) for link in links]
    ids = [client.order("sh", "-c", f"echo {number}") for number, client in enumerate(clients)]
    outputs = [(await client.ended(x))["out"] for client, x in zip(clients, ids, strict=True)]
    assert outputs == [f"{number}\n" for number in range(12)]
    await asyncio.gather(*(link.close() for link in links))
    await node.shell.close()


async def test_room_that_one_client_cut_is_whole_again_for_one_who_says_nothing(node: Node) -> None:
    seen = []
    for capacity in ({}, {"cpus": 99}, {}):
        link = await node.link()
        seen.append((await Client(link).attach(**capacity)).attached["room"]["cpus"])
        await link.close()
    assert seen == [seen[0], 99, seen[0]]
    await node.shell.close()


async def test_a_program_that_came_in_half_is_not_kept(node: Node) -> None:
    pipe = await node.shell.open(session_command("marker"))
    while b"need" not in await pipe.read(1 << 16):
        pass
    text = fallback_script()[1]
    await pipe.write(text[: len(text) // 2])
    pipe.write_eof()
    await pipe.wait()
    assert not list((node.home / ".cache" / "orchestra").iterdir())
    link = await node.link()
    assert (await (await Client(link).attach()).run("sh", "-c", "exit 3"))["code"] == 3
    await link.close()
    await node.shell.close()


async def test_who_talks_to_a_keeper_that_is_killed_comes_again_and_misses_nothing(node: Node) -> None:
    first = await node.link()
    client = await Client(first).attach(cpus=1)
    gate = node.folder / "gate"
    x = client.order("sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.05; done; exit 5")
    await client.event("started", x)
    os.kill(first.hello["keeper_pid"], signal.SIGKILL)
    # Nothing is asked of it, and the client learns of it all the same.
    await client.until_somewhere(lambda: client.lost is not None)
    gate.touch()
    second = await node.link()
    again = await Client(second, client.owner).attach(cpus=1)
    assert (await again.ended(x))["code"] == 5
    await first.close()
    await second.close()
    await node.shell.close()


async def test_an_owner_speaks_through_one_session(node: Node) -> None:
    one, two = await node.link(), await node.link()
    first = await Client(one).attach()
    second = await Client(two, first.owner).attach()
    await first.until_somewhere(lambda: first.lost is not None)
    assert (await second.run("sh", "-c", "exit 3"))["code"] == 3
    assert not [event for event in first.events if event[2] == "ended"]
    await one.close()
    await two.close()
    await node.shell.close()


async def test_a_lock_whose_holder_died_goes_to_one_of_many(node: Node) -> None:
    link = await node.link()
    boot, gone = link.hello["boot_id"], node.folder / "gone"
    await link.close()
    lock = node.home / ".cache" / "orchestra" / f"folders-{boot}.lock"
    lock.write_text(f"{boot} {os.getpid()} 1\n")
    inside = f"inside() {{ mkdir {gone} || echo two; sleep 0.05; rmdir {gone}; echo was; }}"
    script = f"{inside}; alone inside; alone inside; alone inside"
    printed = await asyncio.gather(*(run_script(node, script) for _ in range(6)))
    assert printed == [b"was\n" * 3] * 6
    assert not list(lock.parent.glob("folders-*"))
    await node.shell.close()


async def test_of_two_who_bring_the_same_code_one_is_first(node: Node, tmp_path: Path) -> None:
    await (await node.link()).close()
    code = tmp_path / "code"
    bring = "mkdir {0}.{1} && echo whole >{0}.{1}/file && alone settle {0}.{1} {0} && echo done"
    printed = await asyncio.gather(*(run_script(node, bring.format(code, number)) for number in range(6)))
    assert printed == [b"done\n"] * 6
    assert [path.name for path in tmp_path.glob("code*")] == ["code"]
    assert _tree(code) == {b"file": b"whole\n"}
    await node.shell.close()


async def test_who_never_reads_the_answer_holds_up_nobody(node: Node, tmp_path: Path) -> None:
    await (await node.link()).close()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for number in range(3000):
        (theirs / f"{number:0200}").touch()
    host = tmp_path / "host"
    pipe = await node.shell.open(command("do marker"))
    index = host / ".orchestra" / "sh" / "folders" / "i"
    await pipe.write(f"prepare {host} {theirs} {index} s\nmarker\n".encode())
    # More than any buffer takes, and we read no more than the first of it.
    assert (await pipe.read(6)).startswith(b"ready")
    printed = await asyncio.wait_for(run_script(node, f"prepare {host} {host}/f {index}2 s"), 20)
    assert printed.startswith(b"ready no yes")
    pipe.close()
    await node.shell.close()


async def test_what_was_cut_off_while_a_folder_was_claimed_is_done_again(
    node: Node, link: ShellLink, tmp_path: Path
) -> None:
    host = tmp_path / "host"
    snapshot = take_snapshot(_code(tmp_path))
    stream = link.open_stream("transfer")
    await send(stream, snapshot, str(host / "a"), directory=str(host))
    folders = host / ".orchestra" / "sh" / "folders"
    (made,) = folders.iterdir()
    shutil.rmtree(host / "a")
    for file in made.iterdir():
        file.unlink()
    await send(stream, snapshot, str(host / "a"), directory=str(host))
    assert _tree(host / "a") == _tree(snapshot.folder)
    await clean(stream, str(host / "a"), directory=str(host), leave="nothing")
    assert not host.exists()
    await stream.close()


async def test_what_belongs_to_a_client_that_stays_away_is_ended_and_forgotten(node: Node) -> None:
    first, other = await node.link(), await node.link()
    client, witness = await Client(first).attach(cpus=2), await Client(other).attach(cpus=2)
    theirs = witness.order("sleep", "600", grace=0.1)
    await witness.event("started", theirs)
    runs = client.order("sleep", "600", grace=0.1)
    await client.event("started", runs)
    waits = client.order("sleep", "600", cpus=2)
    await first.ask("status")
    mine = node.state / "runs" / f"{runs}.1"
    main = int((mine / "pid").read_text().split()[0])
    session = next(
        path for path in (node.state / "sessions").iterdir() if path.name.startswith(f"{first.hello['pid']}.")
    )
    await first.close()
    await witness.until_somewhere(lambda: not session.exists())
    # Eight days ago by the clock of the node.
    now = int(float(Path("/proc/uptime").read_text().split()[0]) * 100)
    (node.state / "seen" / client.owner).write_text(f"{other.hello['boot_id']} {now - 8 * 8640000}\n")
    node.tick()
    await witness.until_somewhere(lambda: (mine / "freed").exists())
    assert not Path(f"/proc/{main}").exists()
    node.tick()
    await witness.until_somewhere(lambda: not (node.state / "owners" / client.owner).exists())
    assert {path.name for path in (node.state / "runs").iterdir()} == {f"{theirs}.1"}
    assert not (node.state / "seen" / client.owner).exists()
    again = await Client(first := await node.link(), client.owner).attach(cpus=2)
    assert again.attached["holding"] == []
    assert waits not in [event[3] for event in again.events]
    other.tell("cancel", ids=[(theirs, 1)])
    assert (await witness.ended(theirs))["reason"] == "cancelled"
    await first.close()
    await other.close()
    await node.shell.close()


async def test_what_was_launched_and_never_came_is_launched_again(node: Node) -> None:
    link = await node.link()
    client = await Client(link).attach(cpus=2)
    before = await client.run("true")
    assert before["code"] == 0
    # As a keeper leaves it that was killed between writing down the slot and launching.
    os.kill(link.hello["keeper_pid"], signal.SIGKILL)
    await client.until_somewhere(lambda: client.lost is not None)
    run = node.state / "runs" / "x.1"
    run.mkdir(mode=0o700)
    (run / "head").write_text(f"x 1 {client.owner} 1 0 0 - 1000 - - -\n")
    (run / "script").write_text("orchestra_place\norchestra_enter /\nexec echo late\n")
    (run / "seq").write_text("7\n")
    (run / "slot").write_text("0\n")
    again = await Client(second := await node.link(), client.owner).attach(cpus=2)
    assert (await again.ended("x"))["out"] == "late\n"
    await link.close()
    await second.close()
    await node.shell.close()


@pytest.mark.parametrize("story", contract.STORIES, ids=lambda story: story.__name__)
async def test_the_real_agent_keeps_the_contract(
    story: Callable[[AgentLink], Awaitable[None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ORCHESTRA_AGENT_STATE", str(tmp_path / "agent"))
    pipe = await open_local_pipe()
    link = FrameLink("node", pipe)
    await link.start()
    try:
        await story(link)
    finally:
        await contract.end_all(link)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(link.ask("retire"), 5)
        with contextlib.suppress(ProcessLookupError):
            os.kill(link.hello["pid"], signal.SIGTERM)
        await link.close()
        await pipe.wait()
