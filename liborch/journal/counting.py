"""How many, and which of many: questions about batches that are answered without reading each of their executions.

A batch may hold a million. What ended is counted in an index of its own; of what has not, only those that were submitted are
looked at, a few thousand at most (`liborch.drive.feeding`), since what is planned comes behind them.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterator

from liborch.journal.reading import _EXECUTIONS, Reader
from liborch.journal.rows import ExecutionRow
from liborch.journal.schema import PLACE_BITS

#: Rows read at a time, so that a writer's log may be shortened meanwhile.
_ROWS_AT_ONCE = 500
#: The journal's words for an execution that is over.
FINAL_STATES = ("succeeded", "failed", "cancelled", "lost")


class Counter(Reader):
    """The questions. What was done again by another execution (`replaced`) is not counted."""

    def counts(self, orchestration: str) -> dict[str, int]:
        """{state: how many executions of an orchestration are in it}; `planned` among them."""
        number = self._number(orchestration)
        if number is None:
            return {}
        low, high = number << PLACE_BITS, (number + 1) << PLACE_BITS
        found: Counts[str] = Counts(
            dict(
                self._ask(
                    "SELECT state, count(*) FROM executions INDEXED BY ended"
                    " WHERE place >> 32 = ? AND replaced IS NULL AND ended_at IS NOT NULL GROUP BY state",
                    (number,),
                )
            )
        )
        live = "FROM executions INDEXED BY live WHERE ended_at IS NULL AND place >= ? AND place < ?"
        border = self._first_planned(number)
        found.update(dict(self._ask(f"SELECT state, count(*) {live} GROUP BY state", (low, border))))
        found["planned"] += self._ask(f"SELECT count(*) {live}", (border, high))[0][0]
        return {state: count for state, count in found.items() if count}

    def under_way(self, orchestration: str, limit: int) -> list[ExecutionRow]:
        """Those that have left the queue and have not ended, in order of submission."""
        return self._submitted(orchestration, "e.state NOT IN ('planned', 'waiting')", limit)

    def waiting(self, orchestration: str, limit: int) -> list[ExecutionRow]:
        """Those that were submitted and wait, in order of submission."""
        return self._submitted(orchestration, "e.state = 'waiting'", limit)

    def _submitted(self, orchestration: str, which: str, limit: int) -> list[ExecutionRow]:
        number = self._number(orchestration)
        if number is None:
            return []
        query = (
            _EXECUTIONS.format(index="INDEXED BY live")
            + f" WHERE e.ended_at IS NULL AND e.place >= ? AND e.place < ? AND {which} ORDER BY e.place LIMIT ?"
        )
        first = self._first_planned(number)
        rows = self._ask(query, (number << PLACE_BITS, first, limit))
        return [self._row(row, ExecutionRow) for row in rows]

    def _first_planned(self, number: int) -> int:
        """The place of an orchestration's first planned execution, or the end of its places."""
        rows = self._ask(
            "SELECT place FROM executions INDEXED BY live WHERE ended_at IS NULL AND place >= ? AND place < ?"
            " AND state = 'planned' ORDER BY place LIMIT 1",
            (number << PLACE_BITS, (number + 1) << PLACE_BITS),
        )
        return int(rows[0][0]) if rows else (number + 1) << PLACE_BITS

    def last_failures(self, orchestration: str, limit: int) -> list[ExecutionRow]:
        """Those that failed or were lost most recently, the latest first."""
        number = self._number(orchestration)
        if number is None:
            return []
        places: list[tuple[float, int]] = []
        for state in ("failed", "lost"):
            places += self._ask(
                "SELECT ended_at, place FROM executions INDEXED BY ended WHERE place >> 32 = ? AND replaced IS NULL"
                " AND state = ? AND ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT ?",
                (number, state, limit),
            )
        places = sorted(places, reverse=True)[:limit]
        marks = ",".join("?" * len(places))
        rows = self._ask(
            _EXECUTIONS.format(index="") + f" WHERE e.place IN ({marks})", [place for _, place in places]
        )
        found = {row[2]: self._row(row, ExecutionRow) for row in rows}
        return [found[place & ((1 << PLACE_BITS) - 1)] for _, place in places]

    def ended_since(self, orchestration: str, at: float) -> list[tuple[float, str]]:
        """(when, id) of those that ended later than `at`, in order of their ends."""
        number = self._number(orchestration)
        found: list[tuple[float, str]] = []
        for state in FINAL_STATES if number is not None else ():
            found += self._ask(
                "SELECT ended_at, id FROM executions INDEXED BY ended WHERE place >> 32 = ? AND replaced IS NULL"
                " AND state = ? AND ended_at IS NOT NULL AND ended_at > ?",
                (number, state, at),
            )
        return sorted(found)

    def live_outside(self, kind: str) -> list[ExecutionRow]:
        """Executions that have not ended, of every orchestration that is not of this kind, newest first."""
        # By orchestration, so that a million planned ones are stepped over and not read.
        found: list[ExecutionRow] = []
        for (number,) in self._ask(
            "SELECT number FROM orchestrations WHERE kind != ? AND EXISTS (SELECT 1 FROM executions INDEXED BY live"
            " WHERE ended_at IS NULL AND place >= number << 32 AND place < (number + 1) << 32) ORDER BY number DESC",
            (kind,),
        ):
            rows = self._ask(
                _EXECUTIONS.format(index="INDEXED BY live")
                + " WHERE e.ended_at IS NULL AND e.place >= ? AND e.place < ? ORDER BY e.place DESC",
                (number << PLACE_BITS, (number + 1) << PLACE_BITS),
            )
            found += (self._row(row, ExecutionRow) for row in rows)
        return found

    def newest_outside(self, kind: str, limit: int) -> list[ExecutionRow]:
        """The executions submitted last of every orchestration that is not of this kind, newest first."""
        found: list[ExecutionRow] = []
        for (id,) in self._ask("SELECT id FROM orchestrations WHERE kind != ? ORDER BY number DESC", (kind,)):
            found += self.executions(id, limit=limit - len(found))
            if len(found) >= limit:
                break
        return found

    def find_batches(self, prefix: str, limit: int = 10) -> list[str]:
        """Ids of batches that begin with a prefix, sorted; `last`: the newest orchestration, when it is one."""
        if prefix == "last":
            rows = self._ask("SELECT id, kind FROM orchestrations ORDER BY number DESC LIMIT 1", ())
            return [id for id, kind in rows if kind == "batch"]
        low = prefix.lower()
        query = (
            "SELECT id FROM orchestrations WHERE kind = 'batch' AND id >= ? AND id < ? ORDER BY id LIMIT ?"
        )
        return [row[0] for row in self._ask(query, (low, low + "\U0010ffff", limit))]

    def each_result(self, orchestration: str, *, replaced: bool = False) -> Iterator[ExecutionRow]:
        """Every execution of an orchestration in order of submission, read piece by piece; none twice.

        Args:
            replaced: Also those that another one was submitted instead of.
        """
        number = self._number(orchestration)
        if number is None:
            return
        last, end = (number << PLACE_BITS) - 1, (number + 1) << PLACE_BITS
        query = (
            _EXECUTIONS.format(index="NOT INDEXED")
            + " WHERE e.place > ? AND e.place < ?"
            + ("" if replaced else " AND e.replaced IS NULL")
            + " ORDER BY e.place LIMIT ?"
        )
        while rows := self._ask(query, (last, end, _ROWS_AT_ONCE)):
            for row in rows:
                yield self._row(row, ExecutionRow)
            last = (number << PLACE_BITS) + rows[-1][2]
