"""What a batch leaves of each execution on this machine: `ecode`, `stdout` and `stderr` in its output folder, byte for byte.

Written before the verdict is on record, so a client killed in between writes them again, the same. No shell is run for it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from liborch import patterns
from liborch.drive.execution import Execution
from liborch.drive.results import Result
from liborch.errors import StorageError

#: What is told of an end that has no code.
NO_CODE = {"cancelled": "cancelled", "lost": "lost"}


class Outcomes:
    """Writes outcomes, of many executions at a time, in a thread.

    Args:
        outputs: The folder in which output too large for the journal was collected.
        here: The folder that relative output folders are in.
    """

    def __init__(self, outputs: Path, here: Path) -> None:
        self._outputs = outputs
        self._here = here

    async def __call__(self, ended: list[tuple[Execution, Result]]) -> None:
        """Write those that are wanted. Raises StorageError."""
        wanted = [
            (execution, result)
            for execution, result in ended
            if execution.spec.outcome_folder and result.started_at is not None
        ]
        if wanted:
            await asyncio.to_thread(self._write_all, wanted)

    def _write_all(self, ended: list[tuple[Execution, Result]]) -> None:
        for execution, result in ended:
            folder = self.folder(execution, result)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _write(folder / "ecode", f"{_code(result)}\n".encode())
                for name, short, data, size in (
                    ("stdout", "out", result.stdout, result.stdout_bytes),
                    ("stderr", "err", result.stderr, result.stderr_bytes),
                ):
                    collected = self._outputs / result.id / short
                    if len(data) < size and collected.exists():
                        shutil.copyfile(collected, folder / name)
                    else:
                        _write(folder / name, data)
            except OSError as error:
                raise StorageError(
                    "this machine",
                    error.filename or str(folder),
                    error.errno or 0,
                    "writing what an execution left",
                ) from error

    def folder(self, execution: Execution, result: Result) -> Path:
        """Where it goes, now that everything is known."""
        if result.output_folder:
            return Path(result.output_folder)
        spec = execution.spec
        values = {
            **spec.env,
            **(spec.transfer.variables if spec.transfer is not None else {}),
            **result.variables,
            "RUNAWAY_UUID": result.id,
            "RUNAWAY_ECODE": _code(result),
            "RUNAWAY_STDOUT": result.stdout.decode("latin-1"),
            "RUNAWAY_STDERR": result.stderr.decode("latin-1"),
            "RUNAWAY_NODES": result.node,
            "RUNAWAY_NODE_ID": result.node,
            "RUNAWAY_HANDLE_ID": str(result.slot),
        }
        text = patterns.parse_output(spec.outcome_folder, values).fill(values)
        return Path(os.path.join(self._here, text))


def _code(result: Result) -> str:
    return NO_CODE.get(result.state, str(result.exit_status))


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
