"""What is committed is there, whole, and can be asked for."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from pathlib import Path

import pytest

from liborch.errors import InvariantError, JournalError
from liborch.journal import Change, Group, Journal, NewExecution
from tests.journal.stories import begun, ending, entering, name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


def test_an_execution_enters_is_placed_and_ends(path: Path) -> None:
    with begun(path) as journal:
        journal.commit([entering(7)])
        entered = journal.execution(name(7))
        assert entered is not None
        assert (entered.state, entered.number, entered.label, entered.submitted_at) == (
            "waiting",
            7,
            "label 7",
            1007.0,
        )
        assert (entered.reason, entered.exit_code, entered.node, entered.attempt, entered.ended_at) == (
            None,
        ) * 5
        journal.commit([ending(7, exit_code=3)])
        ended = journal.execution(name(7))
        assert ended is not None
        assert (ended.state, ended.reason, ended.exit_code, ended.node) == ("succeeded", "exited", 3, "n1")
        assert (ended.attempt, ended.started_at, ended.ended_at) == (1, 2000.0, 3000.0)
        assert (ended.spec, ended.record, ended.orchestration) == ('{"argv":["true"]}', '{"cpu_s":0.1}', "o1")
        assert list(journal.groups("o1")) == [(1, 1007.0, b"entered"), (2, 3000.0, b"placed and ended")]
        assert list(journal.groups("o1", after=1)) == [(2, 3000.0, b"placed and ended")]


@pytest.mark.parametrize("count", [1, 2, 300])
def test_groups_of_any_size_arrive_whole(path: Path, count: int) -> None:
    with begun(path) as journal:
        journal.commit([entering(n) for n in range(count)])
        journal.commit(
            [
                Group(
                    "o1",
                    5.0,
                    count,
                    b"x",
                    (),
                    [Change(name(n), "placed", node=f"n{n}") for n in range(count)],
                )
            ]
        )
        final = [Change(name(n), "failed", "exited", n, ended_at=9.0) for n in range(count)]
        journal.commit([Group("o1", 9.0, count, b"y", (), final)])
        rows = journal.executions(newest_first=False)
        assert [(row.number, row.node, row.exit_code, row.state) for row in rows] == [
            (n, f"n{n}", n, "failed") for n in range(count)
        ]


def test_several_changes_of_one_execution_in_one_commit_leave_the_last_on_top(path: Path) -> None:
    with begun(path) as journal:
        first = Change(name(1), "placed", node="n1", attempt=1, reason="chosen", exit_code=5)
        again = Change(name(1), "placed", node="n2", attempt=2)
        journal.commit([entering(1), Group("o1", 1.0, 2, b"", (), [first, again])])
        row = journal.execution(name(1))
        assert row is not None
        assert (row.node, row.attempt, row.reason, row.exit_code) == ("n2", 2, "chosen", 5)


def test_a_verdict_lets_nothing_of_an_earlier_attempt_shine_through(path: Path) -> None:
    with begun(path) as journal:
        journal.commit([entering(1)])
        journal.commit(
            [Group("o1", 1.0, 1, b"", (), [Change(name(1), "waiting", "lost", 1, 9, "n1", 1, 5.0)])]
        )
        journal.commit([Group("o1", 2.0, 1, b"", (), [Change(name(1), "succeeded", None, 0, ended_at=7.0)])])
        row = journal.execution(name(1))
        assert row is not None
        assert (row.reason, row.exit_code, row.signal, row.node, row.started_at) == (None, 0, None, "n1", 5.0)


@pytest.mark.parametrize(
    "wrong",
    [
        Group("nobody", 1.0, 1, b""),
        Group("o1", 1.0, 1, b"", (), [Change("unknown", "placed")]),
        Group("o1", 1.0, 1, b"", (), [Change("unknown", "failed", ended_at=1.0)]),
        Group("o1", 1.0, 1, b"", [NewExecution(name(1), 99, "", "local", "{}")]),
        Group("o1", 1.0, 1, b"", [NewExecution("other", 1, "", "local", "{}")]),
        Group("o1", 1.0, 1, b"", [NewExecution("other", 1 << 32, "", "local", "{}")]),
    ],
)
def test_one_wrong_group_leaves_nothing_of_its_commit(path: Path, wrong: Group) -> None:
    with begun(path) as journal:
        journal.commit([entering(1)])
        with pytest.raises(InvariantError):
            journal.commit([entering(2), wrong, entering(3)])
        assert [row.number for row in journal.executions()] == [1]
        assert len(list(journal.groups("o1"))) == 1
        journal.commit([entering(2)])


def test_an_orchestration_is_begun_once_and_changes_hands(path: Path) -> None:
    with begun(path) as journal:
        row = journal.orchestration("o1")
        assert row is not None
        assert (row.kind, row.title, row.details, row.client_pid, row.state) == (
            "batch",
            "title of o1",
            "{}",
            os.getpid(),
            "driving",
        )
        with pytest.raises(InvariantError):
            journal.begin("o1", "exec", "")
        journal.end("o1", "left")
        assert [o.state for o in journal.orchestrations()] == ["left"]
        journal.take_over("o1")
        assert [o.state for o in journal.orchestrations()] == ["driving"]
        with pytest.raises(InvariantError):
            journal.end("o2", "ended")
        with pytest.raises(InvariantError):
            journal.take_over("o2")


def test_executions_are_listed_by_orchestration_state_life_and_order(path: Path) -> None:
    with begun(path, "o1", "o2") as journal:
        journal.commit([entering(n) for n in (1, 2, 3)] + [entering(n, "o2") for n in (1, 2)])
        journal.commit([ending(2), ending(1, "o2")])

        def ids(**how: object) -> list[str]:
            return [row.id for row in journal.executions(**how)]  # type: ignore[arg-type]

        assert ids() == [name(2, "o2"), name(1, "o2"), name(3), name(2), name(1)]
        assert ids(orchestration="o1", newest_first=False) == [name(1), name(2), name(3)]
        assert ids(live=True) == [name(2, "o2"), name(3), name(1)]
        assert ids(live=True, orchestration="o1", limit=1) == [name(3)]
        assert ids(states=["succeeded"]) == [name(1, "o2"), name(2)]
        assert ids(states=[]) == []
        assert ids(orchestration="o3") == []


def test_a_prefix_or_last_finds_ids(path: Path) -> None:
    with begun(path, "o1", "p2") as journal:
        journal.commit([entering(0xABC0), entering(0xABC1), entering(5, "p2")])
        assert journal.find("0000abc") == [name(0xABC0), name(0xABC1)]
        assert journal.find("0000ABC1") == [name(0xABC1)]
        assert journal.find("0000", limit=2) == [name(5, "p2"), name(0xABC0)]
        assert journal.find("last") == [name(5, "p2")]
        assert journal.find("f") == []
        assert journal.find_orchestrations("p") == ["p2"]
        assert journal.find_orchestrations("last") == ["p2"]


def test_what_was_attempted_more_than_once_is_found(path: Path) -> None:
    with begun(path, "o1", "o2") as journal:
        journal.commit([entering(number) for number in (1, 2)])
        journal.commit([entering(3, "o2")])
        again = [Change(name(2), "placed", attempt=3), Change(name(3, "o2"), "placed", attempt=2)]
        journal.commit([Group(each.id[-2:], 2000.0, 1, b"again", (), [each]) for each in again])
        assert journal.repeated("o1") == [(name(2), 3)]
        assert journal.repeated("o3") == []


def test_forgetting_leaves_the_others_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liborch.journal.store._FORGET_AT_ONCE", 3)
    with begun(path, "o1", "o2") as journal:
        journal.commit([entering(n) for n in range(7)] + [entering(n, "o2") for n in range(2)])
        assert journal.forget(["o1", "never"]) == 7
        assert [o.id for o in journal.orchestrations()] == ["o2"]
        assert [row.id for row in journal.executions(newest_first=False)] == [name(0, "o2"), name(1, "o2")]
        assert (len(list(journal.groups("o1"))), len(list(journal.groups("o2")))) == (0, 2)
        with pytest.raises(InvariantError):
            journal.commit([entering(9)])


def test_names_that_are_no_utf8_come_back_byte_for_byte(path: Path) -> None:
    odd = b"caf\xe9 \xff".decode(errors="surrogateescape")
    with begun(path) as journal:
        journal.begin("o2", "exec", odd)
        journal.commit([entering(1), Group("o1", 1.0, 1, b"", [NewExecution("x", 2, odd, "local", "{}")])])
        row = journal.execution("x")
        assert row is not None
        assert row.label == odd
        orchestration = journal.orchestration("o2")
        assert orchestration is not None
        assert orchestration.title == odd


def test_what_was_written_is_there_after_opening_again(path: Path) -> None:
    with begun(path) as journal:
        journal.commit([entering(1)])
    with Journal.open(path) as journal:
        assert journal.find("last") == [name(1)]
        assert journal.notes == []
        journal.commit([entering(2)])
        assert [seq for seq, _, _ in journal.groups("o1")] == [1, 2]


def test_files_are_private_from_the_first_instant_and_none_is_left_beside(path: Path) -> None:
    old = os.umask(0)
    try:
        with begun(path) as journal:
            journal.commit([entering(1)])
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(old)
    assert modes == dict.fromkeys(
        ("journal.db", "journal.db-wal", "journal.db-shm", "journal.db.lock"), 0o600
    )
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {file.name for file in path.parent.iterdir()} == {"journal.db", "journal.db.lock"}


def test_a_readonly_journal_that_does_not_exist_answers_with_nothing_and_makes_nothing(path: Path) -> None:
    journal = Journal.open(path, readonly=True)
    assert (
        journal.executions(),
        journal.orchestrations(),
        journal.find("last"),
        list(journal.groups("o1")),
    ) == ([], [], [], [])
    assert (journal.execution("x"), journal.orchestration("x")) == (None, None)
    assert not path.parent.exists()
    begun(path).close()
    assert [o.id for o in journal.orchestrations()] == ["o1"]
    journal.close()


def test_a_reader_reads_while_a_writer_writes(path: Path) -> None:
    with begun(path) as journal, Journal.open(path, readonly=True) as reader:
        for n in range(3):
            journal.commit([entering(n)])
            assert len(reader.executions()) == n + 1
        with pytest.raises(InvariantError):
            reader.commit([entering(9)])


def test_a_journal_removed_under_its_writer_is_an_error(path: Path) -> None:
    with begun(path) as journal:
        path.unlink()
        with pytest.raises(JournalError, match="removed or replaced"):
            journal.commit([entering(1)])


def test_a_payload_that_is_not_as_written_is_named(path: Path) -> None:
    with begun(path) as journal:
        journal.commit([entering(1), entering(2)])
    with sqlite3.connect(path) as db:
        db.execute("UPDATE events SET payload = 'entereD' WHERE place & 3 = 2")
    db.close()
    with Journal.open(path) as journal, pytest.raises(JournalError, match="group 2 of o1"):
        list(journal.groups("o1"))


def test_without_wal_everything_works_and_is_said(path: Path) -> None:
    with begun(path) as journal:
        journal.commit([entering(1)])
    with Journal.open(path, network=True) as journal:
        assert "network" in journal.notes[0]
        assert not journal.is_wal
        journal.commit([entering(2)])
        assert not path.with_name("journal.db-wal").exists()
        with Journal.open(path, readonly=True) as reader:
            assert len(reader.executions()) == 2
    new = path.with_name("other.db")
    with Journal.open(new, network=True) as journal:
        journal.begin("o1", "exec", "")
        journal.commit([entering(1)])
        assert not new.with_name("other.db-wal").exists()
    with Journal.open(path, network=False) as journal:
        assert journal.is_wal
        assert len(journal.executions()) == 2


def test_what_a_batch_has_in_common_is_kept_once_and_each_spec_is_read_whole(path: Path) -> None:
    common = '{"argv":["run"],"env":{"A":"1","B":"2"},"walltime_s":null}'
    with Journal.open(path) as journal:
        journal.begin("o1", "batch", "two", "{}", common)
        own = ('{"argv":["run","\\udc80"],"env":{"B":"3","C":"4"}}', "{}")
        new = [NewExecution(name(n), n, "", "local", text, "planned") for n, text in enumerate(own, start=1)]
        journal.commit([Group("o1", 1.0, 0, b"", new)])
        specs = [json.loads(row.spec) for row in journal.executions("o1", ["planned"], newest_first=False)]
        assert specs == [
            {"argv": ["run", "\udc80"], "env": {"A": "1", "B": "3", "C": "4"}, "walltime_s": None},
            {"argv": ["run"], "env": {"A": "1", "B": "2"}, "walltime_s": None},
        ]
        assert [row.number for row in journal.executions("o1", after=1)] == [2]
