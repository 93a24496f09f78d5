"""`runaway results`: one row per execution of a batch, with its parameters, how it ended and the metrics it wrote.

Rows are read and written piece by piece, whatever their number. Columns of parameters and metrics are those of all executions, so
a table with a head (csv, parquet) takes two passes; jsonl one.
"""

from __future__ import annotations

import csv
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import msgspec

from liborch.drive.orders import spec_from_json
from liborch.errors import PatternError, SpecError, StorageError
from liborch.journal import ExecutionRow, OrchestrationRow
from liborch.specs import ExecutionSpec
from runaway.batches.outcomes import Outcomes
from runaway.batches.summary import details_of_row
from runaway.messages import Messages
from runaway.records import FINAL, Records, result_of_row
from runaway.secrets import hide_values

#: A file of metrics that is larger is none, in bytes.
MOST_METRICS_BYTES = 1 << 20
#: Rows of a parquet file that are in memory together.
GROUP_ROWS = 10_000
FORMATS = ("csv", "jsonl", "parquet")
#: Columns that every execution has: {name: what parquet calls their kind}.
COLUMNS = {
    "id": "string",
    "state": "string",
    "reason": "string",
    "exit_code": "int64",
    "signal": "int64",
    "host": "string",
    "node": "string",
    "slot": "int64",
    "started": "timestamp",
    "duration_s": "float64",
    "cpu_s": "float64",
    "peak_memory_bytes": "int64",
    "attempts": "int64",
    "output_folder": "string",
}

Value = str | int | float | bool | None
Row = dict[str, Value]


@dataclass(frozen=True)
class _Held:
    """An execution as far as its outcome folder depends on it."""

    spec: ExecutionSpec


class Table:
    """The rows of a batch.

    Args:
        everything: Also executions that another one was submitted instead of.
    """

    def __init__(self, records: Records, batch: OrchestrationRow, *, everything: bool = False) -> None:
        self._records = records
        self._batch = batch
        self._everything = everything
        here = Path(details_of_row(records, batch).get("cwd") or "/")
        self._outcomes = Outcomes(records.folders.state / "outputs", here)
        #: Files of metrics that could not be read: {path: why}. The first few.
        self.unreadable: dict[str, str] = {}

    def __iter__(self) -> Iterator[Row]:
        for row in self._records.journal.each_result(self._batch.id, replaced=self._everything):
            yield self._row(row)

    def _row(self, row: ExecutionRow) -> Row:
        result = result_of_row(row)
        ended = row.state in FINAL
        spec = spec_from_json(row.spec)
        # In a batch each kind of waiting is one.
        state = "waiting" if row.state in ("planned", "placed") else row.state
        found: Row = {
            "id": row.id,
            "state": state,
            "reason": row.reason,
            "exit_code": result.exit_code,
            "signal": result.signal,
            "host": row.host,
            "node": row.node,
            "slot": result.slot,
            "started": iso(row.started_at),
            "duration_s": result.duration_s,
            "cpu_s": result.cpu_s,
            "peak_memory_bytes": result.peak_memory_bytes,
            "attempts": row.attempt if ended else None,
            "output_folder": None,
        }
        for name, text in hide_values(spec.parameters).items():
            found[f"param.{name}"] = text
        if not ended or result.started_at is None:
            return found
        if spec.outcome_folder or result.output_folder:
            with suppress(PatternError):
                folder = self._outcomes.folder(_Held(spec), result)
                found["output_folder"] = folder
                self._add_metrics(found, f"{folder}/metrics.json")
        for name, value in read_features(result.variables.get("RUNAWAY_FEATURES", "")):
            found[f"metric.{name}"] = value
        return found

    def _add_metrics(self, found: Row, path: str) -> None:
        try:
            data = read_small(path)
            if data is not None:
                for name, value in flat(msgspec.json.decode(data, type=dict[str, Any])):
                    found[f"metric.{name}"] = value
        except (OSError, ValueError, msgspec.DecodeError, RecursionError) as error:
            if len(self.unreadable) < 5:
                self.unreadable[path] = str(error)


def iso(at: float | None) -> str | None:
    """`2026-05-01T10:21:03.250Z`."""
    if at is None:
        return None
    whole = int(at // 1)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((at - whole) * 1000):03d}Z"


def read_small(path: str) -> bytes | None:
    """A file that is not too large; None: there is none. Raises OSError, ValueError."""
    try:
        # What a person's program left there may be a pipe: it is not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is no file")
        if status.st_size > MOST_METRICS_BYTES:
            raise ValueError(f"has {status.st_size} bytes; at most {MOST_METRICS_BYTES} are read")
        return file.read(MOST_METRICS_BYTES)


def read_features(text: str) -> Iterator[tuple[str, Value]]:
    """What is in RUNAWAY_FEATURES: lines `key=value`, or one value, which is then called `features`."""
    for line in text.splitlines():
        name, equal, value = line.partition("=")
        if equal and name.strip():
            yield name.strip(), number(value.strip())
        elif line.strip():
            yield "features", number(line.strip())


def number(text: str) -> Value:
    """The number that a text is, else the text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def flat(value: dict[str, Any], before: str = "") -> Iterator[tuple[str, Value]]:
    """Names and values, nested ones as `loss.train`; lists as JSON text."""
    for name, each in value.items():
        if isinstance(each, dict):
            yield from flat(each, f"{before}{name}.")
        else:
            yield f"{before}{name}", json.dumps(each) if isinstance(each, list) else each


# ---------------------------------------------------------------------- writing


def write_results(text: str, *, format: str, output: str | None, everything: bool, messages: Messages) -> int:
    """Write the table of a batch; returns the exit status. Raises OrchestraError."""
    records = Records()
    table = Table(records, records.find_batch(text), everything=everything)
    if format == "parquet":
        if output is None and sys.stdout.isatty():
            raise SpecError("parquet is no text: name a file with --output, or write into a pipe")
        parquet = _parquet()
        with _opened(output) as file:
            count = _write_parquet(parquet, table, file)
    else:
        write = _write_csv if format == "csv" else _write_jsonl
        with _opened(output) as file, _text(file) as out:
            count = write(table, out)
    for path, why in table.unreadable.items():
        messages.error(f"no metrics of {path}: {why}")
    if output is not None:
        messages.stage(f"{count} executions in {output}")
    return 0


@contextmanager
def _opened(output: str | None) -> Iterator[BinaryIO]:
    """Where it goes: stdout, or a file that is there whole or not at all. Raises StorageError."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    draft = f"{output}.part-{os.getpid()}"
    try:
        try:
            with open(draft, "xb") as file:
                yield file
            os.replace(draft, output)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft)
    except OSError as error:
        raise StorageError("this machine", output, error.errno or 0, "writing results") from error


@contextmanager
def _text(file: BinaryIO) -> Iterator[TextIO]:
    """Text of it, in which bytes that are no UTF-8 are as they were."""
    import io

    out = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    try:
        yield out
        out.flush()
    finally:
        with suppress(ValueError):
            out.detach()


def names_in(rows: Iterable[Row]) -> list[str]:
    """Every column there is: those all have, parameters as they were first seen, metrics by name."""
    found: dict[str, None] = {}
    for row in rows:
        found.update(dict.fromkeys(row))
    metrics = sorted(name for name in found if name.startswith("metric."))
    return [*COLUMNS, *(name for name in found if name.startswith("param.")), *metrics]


def _write_csv(table: Table, out: TextIO) -> int:
    writer = csv.DictWriter(out, names_in(table), restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    count = 0
    for count, row in enumerate(table, start=1):  # noqa: B007 - how many there were
        writer.writerow(row)
    return count


def _write_jsonl(table: Table, out: TextIO) -> int:
    count = 0
    for count, row in enumerate(table, start=1):  # noqa: B007 - how many there were
        out.write(json.dumps(row) + "\n")
    return count


def _parquet() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SpecError(
            "--format parquet needs pyarrow, which is not installed: pip install 'orchestra-tools[parquet]'; "
            "csv and jsonl need nothing"
        ) from error
    return pyarrow


def _write_parquet(arrow: Any, table: Table, file: BinaryIO) -> int:
    kinds = kinds_of(table)
    types = {
        "string": arrow.string(),
        "int64": arrow.int64(),
        "float64": arrow.float64(),
        "bool": arrow.bool_(),
        "timestamp": arrow.timestamp("ms", tz="UTC"),
    }
    schema = arrow.schema([(name, types[kind]) for name, kind in kinds.items()])
    count = 0
    with arrow.parquet.ParquetWriter(file, schema) as writer:
        group: list[Row] = []

        def flush() -> None:
            columns = [
                arrow.array([_MAKE[kind](row.get(name)) for row in group], types[kind])
                for name, kind in kinds.items()
            ]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
            group.clear()

        for count, row in enumerate(table, start=1):  # noqa: B007 - how many there were
            group.append(row)
            if len(group) == GROUP_ROWS:
                flush()
        if group:
            flush()
    return count


def kinds_of(rows: Iterable[Row]) -> dict[str, str]:
    """{column: its kind}: of parameters and metrics the narrowest that holds every value."""
    seen: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in COLUMNS and value is not None:
                # Parameters are text on record; what is written as a number is one.
                exact = _exact(value) if isinstance(value, str) and name.startswith("param.") else value
                seen.setdefault(name, set()).add(_kind(exact))
            elif name not in COLUMNS:
                seen.setdefault(name, set())
    kinds = dict(COLUMNS)
    for name, found in seen.items():
        if len(found) == 1:
            [kinds[name]] = found
        elif found == {"int64", "float64"}:
            kinds[name] = "float64"
        else:
            kinds[name] = "string"
    return {name: kinds[name] for name in names_in([dict.fromkeys(kinds)])}


def _kind(value: Value) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int) and abs(value) < 1 << 63:
        return "int64"
    return "float64" if isinstance(value, float) else "string"


def _exact(text: str) -> Value:
    """The number that a text is, if nothing is lost by it: `007` stays a text."""
    if text != "0" and text.lstrip("-").startswith("0") and not text.lstrip("-").startswith("0."):
        return text
    return number(text) if text.isascii() and "_" not in text else text


def _as_time(value: Value) -> Any:
    from datetime import datetime

    return None if value is None else datetime.fromisoformat(str(value))


def _as_text(value: Value) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


_MAKE: dict[str, Callable[[Value], Any]] = {
    "string": _as_text,
    "int64": lambda value: None if value is None else int(value),
    "float64": lambda value: None if value is None else float(value),
    "bool": lambda value: value,
    "timestamp": _as_time,
}
