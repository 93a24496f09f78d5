"""At most one start per attempt, every verdict kept until acknowledged, whoever is killed when."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.agent.harness import Client, Node, alive, high_water, until


def ledger(node: Node) -> Path:
    """A file to which every start of `leave_a_line` adds a line."""
    return node.home / "ledger"


def leave_a_line(node: Node, x: str, then: str = "") -> str:
    return f"echo {x} >> {ledger(node)}; {then}"


def starts(node: Node) -> dict[str, int]:
    counted: dict[str, int] = {}
    for line in ledger(node).read_text().split():
        counted[line] = counted.get(line, 0) + 1
    return counted


def test_the_same_order_twice_starts_once(node: Node) -> None:
    client = node.client()
    for _ in range(3):
        client.sh("x", leave_a_line(node, "x"))
    client.order(("y", {"argv": ["true"]}), ("y", {"argv": ["true"]}))
    client.ended("x")
    client.ended("y")
    client.sh("x", leave_a_line(node, "x"))
    client.settle()
    assert starts(node) == {"x": 1}
    assert (client.count("ended", "x"), client.count("ended", "y")) == (1, 1)


def test_two_clients_with_the_same_orders_start_each_once_and_the_newer_is_told_all(node: Node) -> None:
    names = [f"x{n}" for n in range(40)]
    older = node.client("both", cpus=2)
    for name in names:
        older.sh(name, leave_a_line(node, name))
    newer = node.client("both", cpus=2)
    for name in names:
        newer.sh(name, leave_a_line(node, name))
    for name in names:
        newer.ended(name)
    assert newer.count("ended") == 40
    assert starts(node) == dict.fromkeys(names, 1)
    with pytest.raises((EOFError, BrokenPipeError)):
        older.event("never", "x0")


def test_another_attempt_of_the_same_execution_is_another_start(node: Node) -> None:
    client = node.client()
    client.order(("x", 1, {"argv": ["false"]}), ("x", 2, {"argv": ["true"]}))
    assert [client.ended("x", 1)["code"], client.ended("x", 2)["code"]] == [1, 0]


def test_missed_events_come_again_after_the_last_acknowledged_none_lost_none_doubled(node: Node) -> None:
    client = node.client("me", cpus=2)
    for n in range(30):
        client.sh(f"x{n}", "true")
    for n in range(30):
        client.ended(f"x{n}")
    numbers = [event[0] for event in client.events]
    middle = numbers[len(numbers) // 2]
    client.ack(middle)
    client.settle()
    client.close()
    again = node.client("me", middle)
    assert [event[0] for event in again.events] == [number for number in numbers if number > middle]
    assert again.events == [event for event in client.events if event[0] > middle]
    # Live events go on where the replay ended.
    again.run("true", "more")
    assert again.events[-1][0] == numbers[-1] + 1


def test_a_killed_talker_loses_nothing(node: Node) -> None:
    client = node.client("me", cpus=2)
    client.sh("long", leave_a_line(node, "long", "sleep 0.5; echo end"))
    client.event("started", "long")
    keeper = node.pid("keeper")
    node.kill("talker")
    with pytest.raises((EOFError, BrokenPipeError)):
        client.event("ended", "long")
    again = node.client("me")
    assert [entry[:2] for entry in again.attached["holding"]] == [["long", 1]] or again.count("ended")
    assert again.ended("long")["out"] == "end\n"
    assert node.pid("keeper") == keeper
    assert starts(node) == {"long": 1}


def test_a_killed_keepers_executions_are_lost_their_processes_reaped_its_queue_goes_on(node: Node) -> None:
    client = node.client("me", cpus=1)
    client.sh("runs", leave_a_line(node, "runs", "echo before; setsid sleep 300 & sleep 300"))
    client.sh("waits", leave_a_line(node, "waits", "echo there"))
    client.event("started", "runs")
    until("its processes", lambda: len(node.marked("runs")) >= 3)
    node.kill("keeper")
    # The talker brings another keeper by itself.
    end = client.ended("runs")
    assert (end["reason"], end["code"], end["signal"]) == ("lost", None, None)
    assert end["why"].startswith("keeper:")
    assert end["out"] == "before\n"
    assert client.ended("waits")["out"] == "there\n"
    assert node.marked("runs") == []
    assert starts(node) == {"runs": 1, "waits": 1}


def test_a_keeper_that_comes_back_knows_how_many_may_run(node: Node) -> None:
    client = node.client("me", cpus=1)
    client.sh("first", "sleep 300")
    for n in range(4):
        client.sh(f"x{n}", f"mkdir {node.home}/alone && sleep 0.05 && rmdir {node.home}/alone")
    client.event("started", "first")
    # The keeper starts on the queue before any client speaks to it.
    node.kill("talker")
    node.kill("keeper")
    again = node.client("me", cpus=1)
    assert [again.ended(f"x{n}")["code"] for n in range(4)] == [0, 0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_random_kills_of_talker_and_keeper_never_start_twice_nor_lose_a_verdict(
    node: Node, seed: int
) -> None:
    chance = random.Random(seed)
    names = [f"x{n}" for n in range(60)]
    client = node.client("me", cpus=2)
    ended: dict[str, dict[str, object]] = {}
    events: list[int] = []

    def hand_over(to: Client) -> None:
        for name in names:
            if name not in ended:
                to.sh(name, leave_a_line(node, name, "exit 5"))

    hand_over(client)
    for _ in range(200):
        try:
            client.ping()
            client.settle()
        except (EOFError, BrokenPipeError):
            pass
        for event in client.events:
            if event[0] > (events[-1] if events else 0):
                events.append(event[0])
                if event[2] == "ended":
                    assert event[3] not in ended
                    ended[event[3]] = event[5]
        if len(ended) == len(names):
            break
        victim = chance.choice(("talker", "keeper", ""))
        if victim and node.pid(victim) and len(ended) < 50:
            node.kill(victim)
        if victim == "talker" or not alive(client.process.pid):
            client.kill()
            client = node.client("me", events[-1] if events else 0, cpus=2)
            hand_over(client)
        elif victim == "keeper":
            hand_over(client)
    assert sorted(ended) == sorted(names)
    counted = starts(node)
    assert max(counted.values()) == 1
    for name, end in ended.items():
        assert (end["reason"], end["code"]) in (("exit", 5), ("lost", None)), (name, end)
        if end["reason"] == "exit":
            assert counted[name] == 1


def test_a_recalled_order_never_starts_and_one_that_started_is_not_recalled(node: Node) -> None:
    client = node.client(cpus=1)
    client.sh("runs", "sleep 0.5")
    client.event("started", "runs")
    for n in range(20):
        client.sh(f"q{n}", leave_a_line(node, f"q{n}"))
    client.tell("recall", "runs", *(f"q{n}" for n in range(0, 20, 2)), "unknown")
    for n in range(1, 20, 2):
        client.ended(f"q{n}")
    client.ended("runs")
    client.settle()
    assert client.count("recalled") == 10
    assert client.count("recalled", "runs") == client.count("recalled", "unknown") == 0
    assert starts(node) == {f"q{n}": 1 for n in range(1, 20, 2)}
    # Taken back, it may be handed over again.
    client.sh("q0", leave_a_line(node, "q0"))
    client.ended("q0")


def test_recall_against_start_leaves_each_order_with_one_outcome(node: Node) -> None:
    client = node.client(cpus=2)
    for n in range(200):
        client.sh(f"x{n}", "true")
        client.tell("recall", f"x{n}")
    client.settle()
    until(
        "an outcome of each",
        lambda: client.ping() and client.count("ended") + client.count("recalled") == 200,
    )
    outcomes = [event[3] for event in client.events if event[2] in ("ended", "recalled")]
    assert len(set(outcomes)) == 200


def test_what_was_cancelled_before_it_came_never_starts(node: Node) -> None:
    client = node.client()
    client.tell("cancel", "x")
    client.sh("x", leave_a_line(node, "x"))
    end = client.ended("x")
    assert (end["reason"], end["why"]) == ("cancelled", "before it came")
    client.settle()
    assert client.count("ended", "x") == 1
    assert not ledger(node).exists()


def test_an_owner_that_stays_away_longer_than_its_lease_is_ended(node: Node) -> None:
    client = node.client("short", cpus=1, lease_s=0.3)
    other = node.client("other", cpus=1)
    client.sh("x", "sleep 300")
    client.sh("waiting", leave_a_line(node, "waiting"))
    client.event("started", "x")
    # While it is there, nothing ends.
    until("three leases", lambda: other.settle()["runs"][0]["seconds"] > 0.9)
    client.close()
    until("the end of its execution", lambda: not other.settle()["runs"])
    assert not ledger(node).exists()
    assert node.marked("x") == []
    until("its place on record gone", lambda: ["F", "short"] in node.log())


def test_log_segments_go_once_they_are_acknowledged_and_numbers_go_on(node: Node) -> None:
    client = node.client("me", cpus=4)
    padding = "p" * 60_000
    for n in range(300):
        client.order((f"x{n}", {"argv": ["true"], "env": {"PAD": padding}}))
        client.ended(f"x{n}")
        client.ack()
    client.settle()
    assert len(list(node.state.glob("log.*"))) <= 2
    last = client.events[-1][0]
    assert last >= 300
    # A keeper that starts on a log without any event left counts on, past what is on no log.
    node.replace_keeper(client)
    client.run("true", "after")
    assert client.events[-1][0] > last


@pytest.mark.soak
def test_twenty_thousand_acknowledged_executions_leave_a_small_log_and_a_small_keeper(node: Node) -> None:
    run_many(node, 20_000)


def test_two_thousand_acknowledged_executions_leave_a_small_log_and_a_small_keeper(node: Node) -> None:
    run_many(node, 2_000)


def run_many(node: Node, count: int) -> None:
    client = node.client("me", cpus=4)
    sent = done = 0
    grown = []
    while done < count:
        while sent < count and sent - done < 64:
            client.order((f"x{sent}", {"argv": ["/bin/true"], "wall": 86400}))
            sent += 1
        client.ended(f"x{done}")
        done += 1
        if done % 100 == 0:
            client.ack(max(event[0] for event in client.events))
            if done > 500 or done == count:
                client.events = client.events[-200:]
        if done % 1000 == 0:
            client.settle()
            grown.append(high_water(node.pid("keeper")))
    assert sum(path.stat().st_size for path in node.state.glob("log.*")) < 17 << 20
    assert len(node.captures()) <= 8
    assert grown[-1] < grown[0] + (2 << 20)


def test_an_agent_of_another_version_is_used_while_it_works_and_makes_room_when_idle(node: Node) -> None:
    old = node.client("me", code_hash="version-1")
    old.sh("x", "sleep 0.5; echo whole")
    old.event("started", "x")
    keeper, talker = node.pid("keeper"), node.pid("talker")
    new = node.connect("version-2")
    assert new.hello["hash"] == "version-1"
    assert new.ask("retire", "retiring")["yes"] is False
    new.attach("me")
    assert new.ended("x")["out"] == "whole\n"
    new.ack()
    assert new.ask("retire", "retiring")["yes"] is True
    until("the old agent's end", lambda: not alive(keeper) and not alive(talker))
    newest = node.client("me", new.events[-1][0], code_hash="version-2")
    assert newest.hello["hash"] == "version-2"
    assert newest.run("echo more", "y")["out"] == "more\n"
    assert newest.events[-1][0] > new.events[-1][0]


def test_a_keeper_ignores_what_a_terminal_or_a_careless_person_sends(node: Node) -> None:
    client = node.client()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(node.pid("keeper"), number)
    assert client.run("echo on")["out"] == "on\n"
