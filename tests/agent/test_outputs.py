"""Output: followed while it is written, kept apart between executions, whole and in order, whatever its size."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from tests.agent.harness import Node, Output, alive, high_water, until

HIDE = "env -i PATH=$PATH setsid sh -c"


def test_output_is_followed_while_it_is_written(node: Node) -> None:
    client = node.client()
    go = node.home / "go"
    client.sh("x", f"echo one; echo two >&2; until [ -e {go} ]; do sleep 0.01; done; echo three", live=True)
    stream = client.open("output", "x")
    output = Output()
    while output.out != b"one\n" or output.err != b"two\n":
        head, body = client.next_of(stream)
        output.take(head, body)
    assert client.count("ended") == 0
    go.touch()
    rest = client.next_of(stream)
    assert rest[1] == b"three\n"
    assert client.next_of(stream)[0] == {"t": "end", "out": 10, "err": 4}
    assert client.ended("x")["out"] == "one\nthree\n"
    client.settle()
    assert [name for name in node.captures() if name.startswith("x")] == []


def test_a_stream_opened_before_the_order_came_gets_all_of_it(node: Node) -> None:
    client = node.client()
    stream = client.open("output", "x")
    slow = client.open("output", "y")
    client.ping()
    client.sh("x", "echo quick")
    client.sh("y", "echo slow; sleep 0.5; echo done")
    assert client.gather(stream).out == b"quick\n"
    assert client.gather(slow).out == b"slow\ndone\n"


def test_a_stream_opened_after_the_end_gets_all_of_it(node: Node) -> None:
    client = node.client()
    client.run("echo small; echo err >&2", "x")
    output = client.follow("x")
    assert (output.out, output.err) == (b"small\n", b"err\n")
    client.run("seq 20000", "y")
    assert client.follow("y").sizes["out"] == 108894


def test_following_continues_where_it_stopped_after_a_torn_link(node: Node) -> None:
    client = node.client("me")
    client.sh("x", "for i in $(seq 300); do echo line $i; sleep 0.003; done", live=True)
    stream = client.open("output", "x")
    output = Output()
    while output.sizes["out"] < 500:
        output.take(*client.next_of(stream))
    client.kill()
    node.kill("talker")
    again = node.client("me")
    stream = again.open("output", "x", out=output.sizes["out"])
    while (frame := again.next_of(stream))[0]["t"] == "data":
        output.take(*frame)
    assert output.out == b"".join(b"line %d\n" % n for n in range(1, 301))


def test_who_follows_one_that_its_keeper_left_comes_to_the_end(node: Node) -> None:
    client = node.client("me")
    client.sh("x", "echo begun; sleep 300", live=True)
    stream = client.open("output", "x")
    output = Output()
    while output.sizes["out"] < len("begun\n"):
        output.take(*client.next_of(stream))
    node.kill("keeper")
    assert client.next_of(stream)[0] == {"t": "end", "out": 6, "err": 0}
    assert client.ended("x")["reason"] == "lost"


def test_large_output_is_kept_until_it_was_fetched_also_over_a_new_keeper(node: Node) -> None:
    client = node.client("me")
    end = client.run("seq 50000")
    client.ack()
    client.settle()
    node.replace_keeper(client)
    client.run("true", "y")
    output = client.follow("x", final={"out": end["out_size"], "err": 0})
    assert output.sizes["out"] == end["out_size"] == 288894
    client.tell("drop", "x")
    client.settle()
    assert [name for name in node.captures() if name.startswith("x")] == []
    assert client.follow("x", final={"out": 5, "err": 0}).end["t"] == "error"


def test_many_executions_share_few_files(node: Node) -> None:
    client = node.client(cpus=3)
    for n in range(100):
        client.sh(f"x{n}", f"echo {n}")
    assert [client.ended(f"x{n}")["out"] for n in range(100)] == [f"{n}\n" for n in range(100)]
    assert all(name.startswith("slot-") for name in node.captures())
    assert len(node.captures()) <= 6


@pytest.mark.parametrize(
    "writer",
    [
        "(for n in $(seq 1500); do echo WRONG; sleep 0.005; done) &",
        "(setsid sh -c 'for n in $(seq 1500); do echo WRONG; sleep 0.005; done' &)",
        f"({HIDE} 'for n in $(seq 1500); do echo WRONG; sleep 0.005; done' &)",
        f"({HIDE} 'exec 3>&1 >/dev/null 2>&1; for n in $(seq 1500); do echo WRONG >&3; sleep 0.005; done' &)",
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_what_outlives_an_execution_never_writes_into_anothers_output(
    node: Node, writer: str, keep: bool
) -> None:
    client = node.client(cpus=2)
    client.sh("beside", "sleep 300")
    for turn in range(3):
        client.sh(f"w{turn}", f"echo first; {writer}\nsleep 0.05", keep=keep)
        for n in range(3):
            client.sh(f"x{turn}.{n}", f"echo right {n}; sleep 0.03; echo still")
    for turn in range(3):
        assert client.ended(f"w{turn}")["out"].startswith("first\n")
        for n in range(3):
            assert client.ended(f"x{turn}.{n}")["out"] == f"right {n}\nstill\n"


def test_a_followed_execution_leaves_its_slot_with_clean_files(node: Node) -> None:
    client = node.client(cpus=1)
    client.sh("x", "echo mine; sleep 0.3; echo more")
    client.event("started", "x")
    assert client.follow("x").out == b"mine\nmore\n"
    assert client.run("echo other", "y")["out"] == "other\n"


def test_the_sizes_around_the_limit_of_a_verdict_come_whole(node: Node) -> None:
    client = node.client()
    for size in (0, 1, 8191, 8192, 8193, 65536):
        end = client.run(f"head -c {size} /dev/zero | tr '\\0' x; head -c {size} /dev/zero >&2", f"x{size}")
        assert end.get("out_size", 0) == end.get("err_size", 0) == size
        assert bool(end.get("files")) == (size > 8192)
        if size <= 8192:
            assert (len(end.get("out", "")), len(end.get("err", ""))) == (size, size)
        else:
            output = client.follow(f"x{size}")
            assert (output.out, output.err) == (b"x" * size, b"\0" * size)


def follow_much(node: Node, mib: int) -> None:
    client = node.client("me")
    chunk = os.urandom(1 << 20)
    (node.home / "chunk").write_bytes(chunk)
    client.sh("x", f"i=0; while [ $i -lt {mib} ]; do cat chunk; i=$((i+1)); done", live=True)
    before = high_water(node.pid("talker"))
    output = client.follow("x")
    assert output.sizes["out"] == mib << 20
    wanted = hashlib.sha256()
    for _ in range(mib):
        wanted.update(chunk)
    assert output.hashes["out"].digest() == wanted.digest()
    assert high_water(node.pid("talker")) - before < 24 << 20
    assert high_water(node.pid("keeper")) < 64 << 20
    client.tell("drop", "x")


def test_a_quarter_of_a_gibibyte_is_followed_in_bounded_memory(node: Node) -> None:
    follow_much(node, 256)


@pytest.mark.soak
def test_a_gibibyte_is_followed_in_bounded_memory(node: Node) -> None:
    follow_much(node, 1024)


def test_both_streams_at_once_come_whole(node: Node) -> None:
    client = node.client()
    script = "head -c 50000000 /dev/zero & head -c 50000000 /dev/zero | tr '\\0' e >&2; wait"
    client.sh("x", script, live=True)
    output = client.follow("x")
    assert output.sizes == {"out": 50_000_000, "err": 50_000_000}
    assert output.hashes["err"].digest() == hashlib.sha256(b"e" * 50_000_000).digest()


def test_a_client_that_does_not_read_costs_little_and_holds_up_nobody(node: Node) -> None:
    stuck = node.client("stuck")
    stuck.sh("x", "head -c 100000000 /dev/zero", live=True)
    for _ in range(5):
        stuck.open("output", "x")
    other = node.client("other")
    for n in range(20):
        began = time.monotonic()
        other.run("true", f"y{n}")
        assert time.monotonic() - began < 2
    assert high_water(node.pid("talker")) < 100 << 20
    # It reads at last: everything is there.
    assert stuck.gather(1).sizes["out"] == 100_000_000


def test_events_of_a_client_that_does_not_read_wait_on_the_log(node: Node) -> None:
    stuck = node.client("stuck", cpus=4)
    count = 1500
    text = "y" * 8000
    for n in range(count):
        stuck.order((f"x{n}", {"argv": ["printf", "%s", text]}))
    watcher = node.client("watcher")
    until("all done", lambda: watcher.settle()["queued"] == 0 and not watcher.settle()["runs"], 60)
    assert high_water(node.pid("talker")) < 80 << 20
    for n in range(count):
        assert len(stuck.ended(f"x{n}")["out"]) == 8000
    assert [event[0] for event in stuck.events] == sorted({event[0] for event in stuck.events})


# ---------------------------------------------------------------- terminals


def typed(node: Node, script: str, **fields: object):  # type: ignore[no-untyped-def]
    client = node.client()
    client.sh("x", script, tty=[80, 24], **fields)
    return client, client.open("tty", "x")


def read_until(client, stream: int, text: bytes, output: Output) -> None:  # type: ignore[no-untyped-def]
    while text not in output.out:
        head, body = client.next_of(stream)
        assert head["t"] == "data", (head, output.out)
        output.take(head, body)


def test_a_terminal_echoes_resizes_and_takes_ctrl_c(node: Node) -> None:
    client, stream = typed(
        node, "stty size; read line; echo got $line; read x; stty size; echo wait; sleep 300"
    )
    output = Output()
    read_until(client, stream, b"24 80\r\n", output)
    client.send({"t": "in"}, stream, b"hello\n")
    read_until(client, stream, b"hello\r\ngot hello\r\n", output)
    client.send({"t": "size", "c": 132, "r": 50}, stream)
    client.send({"t": "in"}, stream, b"\n")
    read_until(client, stream, b"50 132\r\nwait\r\n", output)
    client.send({"t": "in"}, stream, b"\x03")
    end = client.ended("x")
    assert (end["reason"], end["signal"]) == ("signal", 2)
    while (frame := client.next_of(stream))[0]["t"] == "data":
        output.take(*frame)
    assert output.out.endswith(b"^C")
    assert end["out"].encode("latin-1") == output.out


def test_the_last_of_a_terminals_output_comes_whole(node: Node) -> None:
    client, stream = typed(node, "seq 5000")
    output = client.gather(stream)
    assert output.out == b"".join(b"%d\r\n" % n for n in range(1, 5001))


def test_a_terminals_output_survives_a_killed_talker_and_nobody_watching(node: Node) -> None:
    client, stream = typed(node, "seq 3000; read x; seq 3001 6000")
    read_until(client, stream, b"3000\r\n", Output())
    owner = client.owner
    node.kill("talker")
    again = node.client(owner)
    stream = again.open("tty", "x")
    output = Output()
    read_until(again, stream, b"3000\r\n", output)
    again.send({"t": "in"}, stream, b"\n")
    while (frame := again.next_of(stream))[0]["t"] == "data":
        output.take(*frame)
    assert output.out == b"".join(b"%d\r\n" % n for n in range(1, 3001)) + b"\r\n" + b"".join(
        b"%d\r\n" % n for n in range(3001, 6001)
    )


def test_typing_at_a_program_that_does_not_read_holds_up_nobody(node: Node) -> None:
    client, stream = typed(node, "stty raw -echo; echo ready; sleep 300")
    read_until(client, stream, b"ready", Output())
    for _ in range(20):
        client.send({"t": "in"}, stream, b"z" * 50_000)
    began = time.monotonic()
    assert node.client("other").run("echo on", "y")["out"] == "on\n"
    assert time.monotonic() - began < 3
    client.tell("cancel", "x")
    client.ended("x")


def test_a_job_left_behind_on_a_terminal_is_ended(node: Node) -> None:
    client, stream = typed(node, "setsid sleep 300 & echo $!; exit 3")
    output = client.gather(stream)
    pid = int(output.out.split()[0])
    assert client.ended("x")["code"] == 3
    until("its end", lambda: not alive(pid))
    assert Path(node.state).exists()
