"""Who left a folder on which node."""

from __future__ import annotations

from liborch.core import actions as act
from liborch.drive.strays import Strays


def end(x: str, state: str) -> act.Finish:
    return act.Finish(x, state, "exit" if state == "SUCCEEDED" else "lost", None, 1, "")


def test_what_ended_on_the_node_it_was_sent_to_is_tidied_by_who_collects_it() -> None:
    strays = Strays()
    strays.note([act.Stage("a", "n1"), act.Stage("a", "n1"), end("a", "SUCCEEDED")])
    assert strays.on("n1") == []
    assert len(strays) == 0


def test_what_ended_elsewhere_may_have_left_a_folder_on_each_node_it_was_sent_to() -> None:
    strays = Strays()
    strays.note([act.Stage("a", "n1")])
    strays.note([act.Stage("a", "n2"), end("a", "SUCCEEDED")])
    assert (strays.on("n1"), strays.on("n2"), strays.on("n3")) == (["a"], ["a"], [])
    assert strays.nodes == {"n1", "n2"}


def test_what_was_lost_left_its_folder_where_it_was() -> None:
    strays = Strays()
    strays.note([act.Stage("a", "n1"), end("a", "LOST"), end("b", "LOST")])
    assert strays.on("n1") == ["a"]
    assert len(strays) == 1
