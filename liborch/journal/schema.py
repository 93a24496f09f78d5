"""The tables of the journal, and the steps from older versions to this one.

The file's own header says what it is: `application_id` is ours, `user_version` is the schema's version. Both are read
before any table is touched.

`place` is the key of everything that belongs to an orchestration: its number in the upper bits, a running number in
the lower 32. So one orchestration is one range, in order, without an index.

`events` is append-only and the truth; `executions` and `specs` follow from it and are written in the same
transaction. Specs lie apart because an update rewrites its whole row, and a spec never changes. What the executions of
a batch have in common is told once, in `orchestrations.common`; their own specs are then JSON merge patches
(RFC 7396) of it, and are read whole.

`replaced` is 1 for an execution that another one of its orchestration was submitted instead of (what failed and is tried again
by `--resume`), or that is no longer wanted. It stays on record, and counts no more.
"""

from __future__ import annotations

import sqlite3

#: "orch" in ASCII.
APPLICATION_ID = 0x6F726368
#: Raised with every change of the tables; each step gets an entry in MIGRATIONS.
VERSION = 3

#: Bits of a place that number things inside one orchestration.
PLACE_BITS = 32

TABLES = (
    """CREATE TABLE orchestrations (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        title TEXT NOT NULL,
        details TEXT NOT NULL,
        client_host TEXT NOT NULL,
        client_pid INTEGER NOT NULL,
        created_at REAL NOT NULL,
        state TEXT NOT NULL,
        common TEXT
    )""",
    """CREATE TABLE events (
        place INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        count INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        payload BLOB NOT NULL
    )""",
    """CREATE TABLE executions (
        place INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL,
        reason TEXT,
        exit_code INTEGER,
        signal INTEGER,
        host TEXT NOT NULL,
        node TEXT,
        attempt INTEGER,
        label TEXT NOT NULL,
        submitted_at REAL NOT NULL,
        started_at REAL,
        ended_at REAL,
        record TEXT,
        replaced INTEGER
    )""",
    "CREATE TABLE specs (place INTEGER PRIMARY KEY, spec TEXT NOT NULL)",
    # What is going on now, found without reading a million ended rows.
    "CREATE INDEX live ON executions(place) WHERE ended_at IS NULL",
    # How a batch stands is counted here, a million in a tenth of a second; written once in an execution's life.
    "CREATE INDEX ended ON executions(place >> 32, replaced, state, ended_at) WHERE ended_at IS NOT NULL",
)

#: {version: statements that lead from it to the next}.
MIGRATIONS: dict[int, tuple[str, ...]] = {
    # Version 0 had no index of live executions.
    0: ("CREATE INDEX live ON executions(place) WHERE ended_at IS NULL",),
    # Version 1 had only whole specs.
    1: ("ALTER TABLE orchestrations ADD COLUMN common TEXT",),
    # Version 2 could not count what ended, nor tell what was done again by another execution.
    2: (
        "ALTER TABLE executions ADD COLUMN replaced INTEGER",
        "CREATE INDEX ended ON executions(place >> 32, replaced, state, ended_at) WHERE ended_at IS NOT NULL",
    ),
}


def create(db: sqlite3.Connection) -> None:
    """Make the tables in an empty file, in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for statement in TABLES:
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute("COMMIT")


def migrate(db: sqlite3.Connection) -> int:
    """Bring older tables to this version, in one transaction. Returns the version found."""
    db.execute("BEGIN IMMEDIATE")
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    for version in range(found, VERSION):
        for statement in MIGRATIONS[version]:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute("COMMIT")
    return found
