"""What a batch leaves of each execution on this machine: `ecode`, `stdout` and `stderr` in its output folder, byte for byte.

Written before the verdict is on record, so a client killed in between writes them again, the same. No shell is run for it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Protocol

from liborch import patterns
from liborch.core.things import lead_of
from liborch.drive.execution import Execution
from liborch.drive.results import Result
from liborch.errors import StorageError
from liborch.specs import ExecutionSpec

#: What is told of an end that has no code.
NO_CODE = {"cancelled": "cancelled", "lost": "lost"}


class Ended(Protocol):
    """An execution, as far as its outcome depends on it."""

    @property
    def spec(self) -> ExecutionSpec:
        """What was asked for."""


class Outcomes:
    """Writes outcomes, of many executions at a time, in a thread.

    Args:
        outputs: The folder in which output too large for the journal was collected.
        here: The folder that relative output folders are in.
    """

    def __init__(self, outputs: Path, here: Path) -> None:
        self._outputs = outputs
        self._here = here
        self._parsed: dict[str, patterns.Pattern] = {}

    async def __call__(self, ended: list[tuple[Execution, Result]]) -> list[StorageError]:
        """Write those that are wanted; returns why some could not be, for reasons that no waiting mends.

        Raises:
            StorageError: The disk is full. The same may be tried again.
        """
        wanted = [
            (execution, result)
            for execution, result in ended
            if execution.spec.outcome_folder
            and result.started_at is not None
            # Else it was written before its post command ran, which may have done with it what it liked.
            and result.post_status is None
        ]
        return await asyncio.to_thread(self._write_all, wanted) if wanted else []

    def _write_all(self, ended: list[tuple[Execution, Result]]) -> list[StorageError]:
        errors = []
        for execution, result in ended:
            try:
                self.write(execution, result)
            except StorageError as error:
                if error.is_full:
                    raise
                errors.append(error)
        return errors

    def write(self, execution: Execution, result: Result) -> str:
        """Write what one left; returns the folder. From any thread. Raises StorageError."""
        folder = self.folder(execution, result)
        self._write_into(folder, result)
        for each in result.ranks:
            rank = lead_of(each.id)[1]
            if rank:
                self._write_into(f"{folder}/rank{rank}", each)
        return folder

    def _write_into(self, folder: str, result: Result) -> None:
        try:
            os.makedirs(folder, exist_ok=True)
            _write(f"{folder}/ecode", b"%s\n" % _code(result).encode())
            for name, data, size in (
                ("stdout", result.stdout, result.stdout_bytes),
                ("stderr", result.stderr, result.stderr_bytes),
            ):
                collected = self._outputs / result.id / name if len(data) < size else None
                # It is not there when it was lost with its node.
                if collected is not None and collected.exists():
                    shutil.copyfile(collected, f"{folder}/{name}")
                else:
                    _write(f"{folder}/{name}", data)
        except OSError as error:
            raise StorageError(
                "this machine",
                error.filename or str(folder),
                error.errno or 0,
                "writing what an execution left",
            ) from error

    def folder(self, execution: Ended, result: Result) -> str:
        """Where it goes, now that everything is known."""
        if result.output_folder:
            return result.output_folder
        spec = execution.spec
        values = variables_of(execution, result)
        # Which names are known is the same for all of a batch; so is the pattern, mostly.
        pattern = self._parsed.get(spec.outcome_folder)
        if pattern is None:
            if len(self._parsed) > 100:
                self._parsed.clear()
            pattern = self._parsed[spec.outcome_folder] = patterns.parse_output(spec.outcome_folder, values)
        return os.path.join(self._here, pattern.fill(values))


def variables_of(execution: Ended, result: Result) -> dict[str, str]:
    """The variables of an execution that is over, among them all RUNAWAY_* of its own."""
    spec = execution.spec
    return {
        **spec.env,
        **(spec.transfer.variables if spec.transfer is not None else {}),
        **result.variables,
        "RUNAWAY_UUID": result.id,
        "RUNAWAY_ECODE": _code(result),
        "RUNAWAY_STDOUT": result.stdout.decode("latin-1"),
        "RUNAWAY_STDERR": result.stderr.decode("latin-1"),
        "RUNAWAY_NODES": " ".join(each.node for each in result.ranks) or result.node,
        "RUNAWAY_NODE_ID": result.node,
        "RUNAWAY_HANDLE_ID": str(result.slot),
    }


def _code(result: Result) -> str:
    return NO_CODE.get(result.state, str(result.exit_status))


def _write(path: str, data: bytes) -> None:
    """Like `Path.write_bytes`, at a third of its price: three of these are most of what an ended execution costs here."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)
