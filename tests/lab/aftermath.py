"""What must be true after a round of `durability.py`: nothing lost, nothing twice, nothing left."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from liborch.drive.recording import decode
from liborch.journal import ExecutionRow, Journal
from tests.lab.hosts import Host

if TYPE_CHECKING:
    from tests.lab.durability import Round

#: After its client has ended, what served it on a node ends within so many seconds.
QUIET_S = 10.0


def look(tried: Round) -> None:
    """All of it. Raises AssertionError."""
    results = results_of(tried)
    ran_once(tried, results)
    outputs_are_right(tried, results)
    for host in tried.hosts:
        nothing_left(host, tried)
    state = tried.person.state / "orchestra"
    with Journal.open(state / "journal.db", readonly=True) as journal:
        known = {each.id for each in journal.orchestrations()}
    for name in ("locks", "drivers"):
        # A client that was killed before its batch was on record leaves the empty file of its lock, and nobody comes after it.
        left = [path.name for path in (state / name).glob("*") if name != "locks" or path.name in known]
        assert left == [], f"left in {name}: {left}"
    hidden = list(tried.person.folder.rglob(".*"))
    assert hidden == [], f"left in the person's folder: {hidden}"


def results_of(tried: Round) -> dict[int, ExecutionRow]:
    """{execution: its result}, of which there is exactly one."""
    path = tried.person.state / "orchestra" / "journal.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with Journal.open(path, readonly=True) as journal:
        batches = journal.orchestrations(kind="batch")
        assert len(batches) == 1, f"{len(batches)} batches on record"
        rows = journal.executions(batches[0].id)
    found = defaultdict(list)
    for row in rows:
        found[int(row.label.split()[1])].append(row)
    results = {}
    for work in tried.schedule.works:
        states = [(row.state, row.reason, row.attempt) for row in found[work.number]]
        good = [row for row in found[work.number] if row.state == "succeeded"]
        assert len(good) == 1, f"{work} has on record {states}"
        # What could not be brought to a node is no verdict, and was done again.
        others = [row for row in found[work.number] if row is not good[0]]
        assert all(row.started_at is None for row in others), f"{work} has on record {states}"
        results[work.number] = good[0]
    assert len(found) == len(results)
    return results


def ran_once(tried: Round, results: dict[int, ExecutionRow]) -> None:
    """Each ran to its end, and once; more often only as often as attempts were really lost."""
    ledgers = defaultdict(list)
    for host in tried.hosts:
        ledger = host.home / f"ledger-{tried.tag}"
        for line in ledger.read_text().splitlines() if ledger.exists() else ():
            word, number, pid = line.split()
            ledgers[int(number)].append((word, host.alias, pid))
    again = 0
    for number, row in results.items():
        words = Counter(word for word, _host, _pid in ledgers[number])
        attempts = row.attempt or 0
        told = f"execution {number}, {row.id}, {attempts} attempts on record: {ledgers[number]}"
        if not 1 <= words["end"] <= words["begin"] <= attempts:
            raise AssertionError("\n".join([told, *records_of(tried, row.id)]))
        again += attempts - 1
    from tests.lab.durability import SLOTS

    deadly = tried.schedule.count("keeper") * SLOTS + tried.schedule.count("execution")
    # A node whose disk is full cannot start one a second.
    full_s = sum(fault.length_s + 3 for fault in tried.schedule.faults if fault.kind == "node disk")
    deadly += int(full_s)
    assert again <= deadly, f"{again} attempts were repeated; at most {deadly} were lost"


def not_over(tried: Round, most: int = 2) -> list[str]:
    """What is on record of some that are not over; of some that did not do well when all are."""
    with Journal.open(tried.person.state / "orchestra" / "journal.db", readonly=True) as journal:
        batches = journal.orchestrations(kind="batch")
        rows = journal.executions(batches[0].id) if batches else []
    left = [row for row in rows if row.ended_at is None] or [row for row in rows if row.state != "succeeded"]
    told = [f"{len(left)} are not over, or not well, such as:"] if left else []
    for row in left[:most]:
        told += [f" {row.id}: {row.state} ({row.reason}), attempt {row.attempt}", *records_of(tried, row.id)]
    return told


def records_of(tried: Round, x: str) -> list[str]:
    """Everything that the journal and the nodes' logs say about an execution, for people."""
    from tests.lab.durability import AGENT_FOLDER

    told = []
    with Journal.open(tried.person.state / "orchestra" / "journal.db", readonly=True) as journal:
        batch = journal.orchestrations(kind="batch")[0]
        for number, at, payload in journal.groups(batch.id):
            recorded = decode(payload)
            told += [
                f"  {at:.3f} group {number}: {event} (acknowledging {recorded.acks})"
                for event in recorded.events
                if getattr(event, "x", None) == x
                or type(event).__name__ in ("LinkLost", "Restarted")
                or any(held[0] == x for held in getattr(event, "holding", ()))
            ]
    for host in tried.hosts:
        for log in sorted(host.path(AGENT_FOLDER).rglob("log.*")):
            lines = log.read_bytes().rstrip(b"\0").split(b"\n")
            told += [
                f"  {host.alias} {log.name}:{n}: {line[:300].decode()}"
                for n, line in enumerate(lines)
                if x.encode() in line
            ]
    return told


def outputs_are_right(tried: Round, results: dict[int, ExecutionRow]) -> None:
    """What each left is there, whole and its own; cut only where its node's disk was full, and that is on record."""
    for work in tried.schedule.works:
        folder = tried.person.folder / "out" / str(work.number)
        there = {path.name: path.read_bytes() if path.is_file() else b"a folder" for path in folder.glob("*")}
        expected = {
            "ecode": b"0\n",
            "stdout": b"out %d\n" % work.number + b"x" * work.size_bytes,
            "stderr": b"err %d\n" % work.number,
        }
        if tried.schedule.sends:
            expected["made"] = b"%d\n" % work.number
        why = json.loads(results[work.number].record or "{}").get("why", "")
        if tried.schedule.count("node disk") and ("disk is full" in why or "output may be cut" in why):
            for name in ("stdout", "stderr"):
                # What found no room is missing, wherever it was.
                bytes_left = iter(expected[name])
                if name in there and all(byte in bytes_left for byte in there[name]):
                    expected[name] = there[name]
        wrong = {
            name: (len(there.get(name, b"")), there.get(name, b"absent")[-80:])
            for name in expected.keys() | there.keys()
            if there.get(name) != expected.get(name)
        }
        if wrong:
            told = records_of(tried, results[work.number].id)
            raise AssertionError("\n".join([f"{folder}: {wrong}; on record: {why!r}", *told]))
    folders = {path.name for path in (tried.person.folder / "out").iterdir()}
    assert folders == {str(work.number) for work in tried.schedule.works}


def nothing_left(host: Host, tried: Round) -> None:
    """On a node: no process but an agent that waits, no folder, no capture file of an execution."""
    deadline = time.monotonic() + QUIET_S
    while (left := strangers(host)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"left running on {host.alias}: {left}"
    folder = host.home / "orchestra"
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert not folder.exists(), f"left on {host.alias}: {len(paths)} files, such as {paths[:10]}"
    from tests.lab.durability import AGENT_FOLDER

    ids = {row.id for row in results_of(tried).values()}
    state = host.path(AGENT_FOLDER)
    kept = [path for path in state.rglob("*") if path.name.split(".")[0] in ids]
    assert not kept, f"left in the agent's folder of {host.alias}: {kept[:20]}"


def strangers(host: Host) -> list[str]:
    """Processes of a host that are neither its own nor one keeper and one talker."""
    found = []
    agents: Counter[str] = Counter()
    for process in host.processes():
        try:
            name = Path(f"/proc/{process.outer_pid}/comm").read_text().strip()
        except OSError:
            continue
        if process.pid == 1:
            continue
        # An sshd waits long for a client that was killed while its packets were dropped; what we run below it is seen by itself.
        if name == "sshd":
            continue
        if name in ("orch-keeper", "orch-talker"):
            agents[name] += 1
            if agents[name] == 1:
                continue
        if process.state != "Z":
            found.append(f"{process.pid} {process.command[:120]}")
    return found
