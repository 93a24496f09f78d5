"""Output on its way home: a sink per execution, in files of this machine, that a torn link continues where it stopped.

Small output that nobody follows never comes here: it travels in the verdict. Files: `<state>/outputs/<id>/stdout` and `stderr`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from liborch.errors import StorageError

#: Called with "out" or "err" and the bytes, in order.
OnOutput = Callable[[str, bytes], None]

_NAMES = {"out": "stdout", "err": "stderr"}


class Sink:
    """Where one execution's output is collected. Opened lazily: most executions say nothing."""

    def __init__(self, folder: Path, on_output: OnOutput | None = None, *, keep: bool = True) -> None:
        self.folder = folder
        self.on_output = on_output
        #: False: passed on only, nothing is written (somebody else keeps it).
        self.keep = keep
        self.offsets = {"out": 0, "err": 0}
        self._files: dict[str, int] = {}
        if keep:
            for name, file in _NAMES.items():
                with contextlib.suppress(OSError):
                    self.offsets[name] = (folder / file).stat().st_size

    def write(self, name: str, at: int, data: bytes) -> None:
        """Take in output that begins at byte `at`; what was taken in before is passed over. Raises StorageError."""
        known = self.offsets[name]
        if at + len(data) <= known:
            return
        if at < known:
            data = data[known - at :]
        if self.keep:
            self._store(name, data)
        self.offsets[name] = known + len(data)
        if self.on_output is not None:
            self.on_output(name, data)

    def _store(self, name: str, data: bytes) -> None:
        path = self.folder / _NAMES[name]
        try:
            if name not in self._files:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._files[name] = os.open(
                    path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
                )
            view = memoryview(data)
            while view:
                view = view[os.write(self._files[name], view) :]
        except OSError as error:
            # Cut back to a whole piece, so that the rest can follow when there is room again.
            if name in self._files:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._files[name], self.offsets[name])
            raise StorageError("this machine", str(path), error.errno or 0, "keeping output") from error

    def restart(self) -> None:
        """Begin again from the first byte: another attempt writes other output."""
        self.discard()
        self.offsets = {"out": 0, "err": 0}

    def close(self) -> None:
        """Close the files."""
        for fd in self._files.values():
            os.close(fd)
        self._files = {}

    def discard(self) -> None:
        """Remove what was kept: it is in the journal as well."""
        self.close()
        if self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def read(self, name: str, limit: int) -> bytes:
        """Return the first `limit` bytes of what was collected."""
        try:
            with (self.folder / _NAMES[name]).open("rb") as file:
                return file.read(limit)
        except OSError:
            return b""
