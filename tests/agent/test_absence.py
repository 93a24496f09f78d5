"""A node that is its owner's for a time only: who sees to it that what runs there ends before, when that one is away."""

from __future__ import annotations

from tests.agent.harness import Node

ASKED = "trap 'echo saved > saved; exit 0' TERM; touch ready; while :; do sleep 0.05; done"


def reason_once_over(node: Node, x: str) -> str:
    """Why an execution of "me" ended, told to "me" once nothing of it runs."""
    other = node.client("somebody else")
    while node.marked(x):
        other.settle()
    back = node.connect()
    back.attach("me")
    return str(back.ended(x)["reason"])


def test_what_runs_for_a_client_that_is_away_is_asked_to_end_before_the_node_is_gone(node: Node) -> None:
    client = node.client("me", cpus=1)
    client.sh("x", ASKED, cwd=str(node.home), grace=30)
    client.sh("next", "echo never")
    client.event("started", "x")
    client.tell("depart", left=5.0, grace=4.0)
    client.settle()
    client.close()
    other = node.client("somebody else")
    other.sh("theirs", "sleep 3", cwd=str(node.home))
    back = node.connect()
    # It comes back when all is over, as one does whose machine slept.
    while node.marked("x"):
        other.settle()
    back.attach("me")
    end = back.ended("x")
    assert end["reason"] == "allocation"
    assert "about to be over" in end["why"]
    assert (node.home / "saved").read_text() == "saved\n"
    assert back.ended("next")["reason"] == "allocation"
    assert other.ended("theirs")["reason"] == "exit"


def test_a_client_that_is_there_decides_by_itself(node: Node) -> None:
    client = node.client(cpus=1)
    client.sh("x", "sleep 1.2; echo done")
    client.tell("depart", left=0.6, grace=0.5)
    assert client.ended("x")["reason"] == "exit"


def test_a_client_that_is_lost_at_the_last_moment_is_stood_in_for(node: Node) -> None:
    client = node.client("me", cpus=1)
    client.sh("x", "sleep 300", cwd=str(node.home))
    client.event("started", "x")
    client.tell("depart", left=60.0, grace=60.0)
    client.settle()
    assert node.marked("x")
    client.close()
    assert reason_once_over(node, "x") == "allocation"


def test_the_last_word_counts_also_for_a_keeper_that_was_started_anew(node: Node) -> None:
    client = node.client("me", cpus=1)
    client.sh("lost", "sleep 300")
    client.event("started", "lost")
    client.tell("depart", left=1e6, grace=1.0)
    client.tell("depart", left=60.0, grace=60.0)
    node.replace_keeper(client)
    client.sh("x", "sleep 300")
    client.event("started", "x")
    client.close()
    assert reason_once_over(node, "x") == "allocation"
