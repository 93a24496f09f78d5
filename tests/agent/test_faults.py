"""What goes wrong around an agent: clients that talk nonsense, disks that fill, folders that vanish."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from liborch.agent import frames
from tests.agent.harness import ENTRY, Client, Node, alive, high_water, until


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(range(256)) * 40,
        frames.HEADER.pack(1, 0, (4 << 20) + 1, 0),
        frames.HEADER.pack(1, 0, 2, (1 << 20) + 1),
        frames.HEADER.pack(1, 0, 2, 0) + b"[]",
        frames.HEADER.pack(1, 0, 3, 0) + b"{\xff}",
        frames.encode(0, {}),
        frames.encode(0, {"t": "nothing"}),
        frames.encode(0, {"t": "order", "orders": []}),
        frames.encode(0, {"t": "attach"}),
        frames.encode(0, {"t": "attach", "owner": ["x"]}),
        frames.encode(0, {"t": "expand", "texts": [5]}),
        frames.encode(0, {"t": "open", "stream": 1, "kind": "output", "x": "../../x", "a": 1}),
        frames.encode(0, {"t": "open", "stream": 1, "kind": "output", "x": "x", "a": 1, "out": -5}),
        frames.encode(0, {"t": "open", "stream": "one", "kind": "transfer"}),
    ],
)
def test_nonsense_ends_the_session_that_sent_it_and_no_other(node: Node, data: bytes) -> None:
    other = node.client()
    talker, keeper = node.pid("talker"), node.pid("keeper")
    bad = node.connect()
    bad.write(data)
    assert "not understood" in bad.control("error")["why"]
    with pytest.raises(EOFError):
        bad.read()
    assert other.run("echo on")["out"] == "on\n"
    assert (node.pid("talker"), node.pid("keeper")) == (talker, keeper)


@pytest.mark.parametrize(
    "message",
    [
        {"t": "order", "orders": [["../x", 1, {}]]},
        {"t": "order", "orders": [["x", "1", {}]]},
        {"t": "order", "orders": [["x", 1, []]]},
        {"t": "order", "orders": [["x", 1]]},
        {"t": "order", "orders": 5},
        {"t": "order", "orders": [["x", 1, {"env": {}}]], "common": {"env": 5}},
        {"t": "cancel", "ids": [[{}, 1]]},
        {"t": "recall"},
        {"t": "ack", "n": "many"},
        {"t": "signal", "x": "x", "a": 1, "number": "KILL"},
        {"t": "unhold", "lease": {}},
    ],
)
def test_a_message_nobody_understands_does_not_reach_the_keeper(
    node: Node, message: dict[str, object]
) -> None:
    other = node.client()
    bad = node.client()
    keeper = node.pid("keeper")
    bad.send(message)
    assert "not understood" in bad.control("error")["why"]
    assert other.run("echo on")["out"] == "on\n"
    assert node.pid("keeper") == keeper
    assert "bad message" not in (node.state / "keeper.err").read_text()


@pytest.mark.parametrize(
    "own",
    [
        {"argv": 5},
        {"argv": ["true", 5]},
        {"argv": ["true"], "cpus": "two"},
        {"argv": ["true"], "cpus": -1},
        {"argv": ["true"], "mem": 1.5},
        {"argv": ["true"], "env": ["A"]},
        {"argv": ["true"], "env": {"A": None}},
        {"argv": ["true"], "wall": "1h"},
        {"argv": ["true"], "tty": [80]},
        {"argv": ["true"], "cwd": "a\0b"},
    ],
)
def test_an_order_that_cannot_be_is_refused_and_forgotten(node: Node, own: dict[str, object]) -> None:
    client = node.client()
    client.order(("x", own), ("y", {"argv": ["true"]}))
    assert "of the order is no good" in client.event("refused", "x")["why"]
    assert client.ended("y")["code"] == 0
    keeper = node.pid("keeper")
    node.replace_keeper(client)
    client.run("true", "z")
    assert node.pid("keeper") != keeper
    assert client.count("refused") == 1


def test_random_bytes_never_end_an_agent(node: Node) -> None:
    chance = random.Random(7)
    client = node.client()
    pids = node.pid("talker"), node.pid("keeper")
    for _ in range(30):
        bad = node.connect()
        valid = frames.encode(0, {"t": "attach", "owner": "o", "ack": 0}) + frames.encode(0, {"t": "status"})
        data = bytearray(valid)
        for _ in range(3):
            data[chance.randrange(len(data))] = chance.randrange(256)
        bad.write(bytes(data[: chance.randrange(1, len(data))]))
        bad.kill()
    assert client.run("echo on")["out"] == "on\n"
    assert (node.pid("talker"), node.pid("keeper")) == pids


def test_half_a_frame_is_waited_for(node: Node) -> None:
    client = node.client()
    data = frames.encode(0, {"t": "ping", "at": 5})
    for at in range(len(data)):
        client.write(data[at : at + 1])
    assert client.control("pong")["at"] == 5
    client.write(data[:9])
    client.kill()
    assert node.client().run("echo on")["out"] == "on\n"


def test_a_relay_that_says_nothing_holds_up_nobody(node: Node) -> None:
    client = node.client()
    silent = []
    for begin in (b"", b"\0", b"\0\0\1\0", b"\0\0\1\0{"):
        line = socket.socket(socket.AF_UNIX)
        line.connect(str(node.state / "talker.sock"))
        line.sendall(begin)
        silent.append(line)
    began = time.monotonic()
    client.ping()
    assert node.client().run("echo on")["out"] == "on\n"
    assert time.monotonic() - began < 5
    for line in silent:
        line.close()


def test_a_channel_that_is_a_plain_file_is_refused_and_harms_nobody(node: Node, tmp_path: Path) -> None:
    client = node.client()
    (tmp_path / "in").write_bytes(b"")
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        relay = subprocess.run(
            [node.python, "-I", "-S", str(ENTRY), "test"], stdin=source, stdout=target, env=node.environment,
            timeout=20, check=False,
        )  # fmt: skip
    assert relay.returncode == 0
    assert client.run("echo on")["out"] == "on\n"


def test_twenty_clients_work_side_by_side(node: Node) -> None:
    clients = [node.client(cpus=4) for _ in range(20)]
    for turn in range(5):
        for client in clients:
            client.sh(f"x{client.owner}.{turn}", f"echo {client.owner} {turn}")
    for client in clients:
        for turn in range(5):
            assert client.ended(f"x{client.owner}.{turn}")["out"] == f"{client.owner} {turn}\n"
        assert {event[1] for event in client.events} == {client.owner}
    assert high_water(node.pid("talker")) < 64 << 20


def test_one_that_asks_on_without_reading_is_let_go(node: Node) -> None:
    rude = node.client()
    other = node.client()
    question = frames.encode(0, {"t": "expand", "texts": ["x" * 100_000]})
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        rude.write(question * 4000)
    assert other.run("echo on")["out"] == "on\n"
    assert high_water(node.pid("talker")) < 150 << 20


def test_two_agents_started_at_once_are_one(make_node: Callable[..., Node]) -> None:
    node = make_node()
    relays = [
        subprocess.Popen(
            [node.python, "-I", "-S", str(ENTRY), "test"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=node.environment,
        )
        for _ in range(6)
    ]  # fmt: skip
    pids = set()
    for relay in relays:
        assert relay.stdout is not None
        decoder = frames.Decoder()
        got: list[object] = []
        while not got:
            got = decoder.feed(os.read(relay.stdout.fileno(), 65536))
        pids.add(json.loads(got[0][1])["pid"])  # type: ignore[index]
    for relay in relays:
        relay.communicate()
    assert pids == {node.pid("talker")}


# ---------------------------------------------------------------- holds


def test_holds_of_two_clients_never_overlap(node: Node) -> None:
    first, second = node.client("first", cpus=1), node.client("second", cpus=1)
    alone = f"mkdir {node.home}/alone && sleep 0.02 && rmdir {node.home}/alone"
    for turn in range(5):
        for client in (first, second):
            client.order((f"h{client.owner}{turn}", {"hold": True, "cpus": 1}))
        waiting = [first, second]
        while waiting:
            client = until("a hold", lambda: next((c for c in waiting if c.ping() and c.count("held", f"h{c.owner}{turn}")), None))  # fmt: skip # noqa: B023
            waiting.remove(client)
            assert all(not other.count("held", f"h{other.owner}{turn}") for other in waiting)
            for n in range(3):
                x = f"x{client.owner}{turn}.{n}"
                assert client.run(alone, x, lease=f"h{client.owner}{turn}")["code"] == 0
            client.send({"t": "unhold", "lease": f"h{client.owner}{turn}"})
            client.event("unheld", f"h{client.owner}{turn}")
    assert first.settle()["room"]["used_cpus"] == 0


def test_giving_a_hold_back_ends_what_runs_in_it(node: Node) -> None:
    client = node.client(cpus=1)
    client.order(("h", {"hold": True}))
    client.event("held", "h")
    client.sh("x", "sleep 300", lease="h")
    client.event("started", "x")
    client.send({"t": "unhold", "lease": "h"})
    assert client.ended("x")["reason"] == "cancelled"
    client.event("unheld", "h")
    client.sh("y", "true", lease="h")
    assert "not held" in client.event("refused", "y")["why"]
    assert client.run("true", "z")["code"] == 0


def test_a_hold_given_up_before_it_was_granted_is_gone(node: Node) -> None:
    client = node.client(cpus=1)
    client.order(("h1", {"hold": True}), ("h2", {"hold": True}))
    client.event("held", "h1")
    client.send({"t": "unhold", "lease": "h2"})
    client.event("unheld", "h2")
    client.send({"t": "unhold", "lease": "h1"})
    client.event("unheld", "h1")
    assert (client.settle()["holds"], client.count("held")) == ([], 1)


def test_a_hold_outlives_a_killed_keeper(node: Node) -> None:
    client = node.client(cpus=1)
    client.order(("h", {"hold": True}))
    client.event("held", "h")
    client.sh("other", "echo other")
    assert node.replace_keeper(client)["holding"] == [["other", 1, "queued"], ["h", 1, "held"]]
    assert client.run("echo mine", "x", lease="h")["out"] == "mine\n"
    assert (client.count("held"), client.count("ended", "other")) == (1, 0)
    client.send({"t": "unhold", "lease": "h"})
    client.ended("other")


# ---------------------------------------------------------------- disks and folders


@pytest.fixture
def small_disk(make_node: Callable[..., Node]) -> Iterator[Node]:
    """A node whose state lies on a tmpfs of 2 MiB."""
    node = make_node()
    node.state.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(node.state)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs root to mount a small disk")
    yield node
    node.stop()
    subprocess.run(["umount", "-l", str(node.state)], check=True)


def fill(node: Node) -> Path:
    filler = node.state / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(fd, b"x" * 4096)
    os.close(fd)
    return filler


def test_an_exit_code_comes_home_from_a_full_disk(small_disk: Node) -> None:
    client = small_disk.client("me")
    end = client.run("head -c 10000000 /dev/zero; exit 3")
    assert (end["reason"], end["code"]) == ("exit", 3)
    assert "the node's disk is full" in end["why"]
    client.tell("drop", "x")
    filler = fill(small_disk)
    assert client.run("exit 4", "y")["code"] == 4
    filler.unlink()
    assert client.run("echo back", "z")["out"] == "back\n"


def ends_of(client: Client) -> list[list[str]]:
    return [event[2:4] for event in client.events if event[2] == "ended"]


def fill_log(node: Node, client: Client) -> Path:
    """Leave no room for what goes on record; returns what takes it."""
    filler = fill(node)
    pad = {"PAD": "p" * 60_000}
    # One after the other, until the log takes no more: the last is refused, or waits because it could not be claimed.
    for n in range(12):
        client.order((f"x{n}", {"argv": ["sleep", "0.01"], "env": pad}))
        until(
            "an end, or no more",
            lambda n=n: client.settle()["stuck"] or ["ended", f"x{n}"] in ends_of(client),
        )
        if client.settle()["stuck"]:
            break
    assert str(node.state) in client.settle()["stuck"]
    return filler


def test_verdicts_come_home_when_the_log_takes_nothing_more_and_work_goes_on_afterwards(
    small_disk: Node,
) -> None:
    client = small_disk.client("me", cpus=2)
    go = small_disk.home / "go"
    client.sh("early", f"until [ -e {go} ]; do sleep 0.01; done; exit 7")
    client.event("started", "early")
    filler = fill_log(small_disk, client)
    refused = [event[5] for event in client.events if event[2] == "ended" and event[5]["reason"] == "node"]
    assert all("No space left on device" in each["why"] for each in refused)
    go.touch()
    assert client.ended("early")["code"] == 7
    # One who comes new gets what no disk holds.
    again = small_disk.client("me")
    assert again.ended("early")["code"] == 7
    filler.unlink()
    until("room", lambda: not again.settle()["stuck"])
    assert again.run("echo back", "z")["out"] == "back\n"
    small_disk.replace_keeper(again)
    again.run("true", "w")
    numbers = [line[0] for line in small_disk.log() if isinstance(line[0], int)]
    assert numbers == sorted(set(numbers))


def test_events_that_were_told_and_are_on_no_log_do_not_hide_those_of_the_next_keeper(
    small_disk: Node,
) -> None:
    client = small_disk.client("me", cpus=4)
    go = small_disk.home / "go"
    for n in range(3):
        client.sh(f"early{n}", f"until [ -e {go} ]; do sleep 0.01; done")
        client.event("started", f"early{n}")
    filler = fill_log(small_disk, client)
    go.touch()
    for n in range(3):
        client.ended(f"early{n}")
    heard = max(event[0] for event in client.events)
    small_disk.kill("keeper")
    filler.unlink()
    again = small_disk.client("me", ack=heard)
    assert again.run("echo news", "news")["out"] == "news\n"
    assert min(event[0] for event in again.events) > heard


@pytest.mark.parametrize(("kind", "answer"), [("recall", "recalled"), ("cancel", "ended")])
def test_an_order_on_record_is_given_back_only_when_that_can_be_put_on_record(
    small_disk: Node, kind: str, answer: str
) -> None:
    client = small_disk.client("me", cpus=2)
    go = small_disk.home / "go"
    client.sh("first", f"until [ -e {go} ]; do sleep 0.01; done")
    client.sh("second", "echo never", cpus=2)
    client.event("started", "first")
    filler = fill_log(small_disk, small_disk.client("other", cpus=2))
    client.tell(kind, "second")
    client.settle()
    # Killed now, it would be followed by one that finds the order on record, and starts it.
    assert client.count(answer, "second") == 0
    filler.unlink()
    client.event(answer, "second")
    go.touch()
    client.ended("first")
    client.settle()
    assert client.count("started", "second") == 0


def test_a_read_only_disk_is_named_and_verdicts_still_come(small_disk: Node) -> None:
    client = small_disk.client("me")
    client.sh("x", "sleep 0.5; exit 6")
    client.event("started", "x")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk.state)], check=False)
    readonly = not os.access(small_disk.state, os.W_OK)
    assert client.ended("x")["code"] == 6
    if readonly:
        end = client.run("true", "y")
        assert (end["reason"], end["code"]) == ("node", None)
        assert "Read-only file system" in end["why"]
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk.state)], check=True)
    until("room", lambda: not client.settle()["stuck"])
    assert client.run("echo back", "z")["out"] == "back\n"


def test_a_state_folder_that_cannot_be_made_is_named(make_node: Callable[..., Node]) -> None:
    node = make_node()
    node.state.write_text("a file")
    failed = node.connect().hello
    assert failed["t"] == "failed"
    assert failed["path"].startswith(str(node.state))
    assert failed["why"]


def test_a_removed_state_folder_ends_the_old_agents_work_and_a_new_one_says_so(node: Node) -> None:
    client = node.client("me")
    first = client.hello["state_id"]
    client.sh("x", "sleep 300")
    client.event("started", "x")
    keeper = node.pid("keeper")
    pids = node.marked("x")
    shutil.rmtree(node.state)
    again = node.client("me")
    assert again.hello["state_id"] != first
    assert again.attached["holding"] == []
    until("the end of what ran", lambda: not any(alive(pid) for pid in pids))
    until("the old keeper's end", lambda: not alive(keeper))
    assert again.run("echo new", "y")["out"] == "new\n"
    until("the old talker's end", lambda: not alive(client.hello["pid"]))


def test_a_torn_and_damaged_log_is_read_as_far_as_it_goes(node: Node) -> None:
    client = node.client("me")
    for n in range(5):
        client.run("exit 2", f"x{n}")
    client.kill()
    node.kill("talker")
    node.kill("keeper")
    path = next(node.state.glob("log.*"))
    text = path.read_bytes().rstrip(b"\0")
    lines = text.split(b"\n")
    lines[len(lines) // 2] = lines[len(lines) // 2][:-7] + b"\xff\xfe"
    path.write_bytes(b"\n".join(lines)[:-20] + b"\0" * 1000)
    again = node.client("me")
    assert again.run("echo on", "y")["out"] == "on\n"
    assert {event[3] for event in again.events} >= {"x0", "x1", "y"}


@pytest.mark.soak
def test_an_idle_talker_ends_and_the_next_client_finds_everything(node: Node) -> None:
    client = node.client("me")
    client.run("exit 9", "x")
    client.close()
    talker = node.pid("talker")
    until("its end", lambda: not alive(talker), 90)
    assert node.client("me").ended("x")["code"] == 9
