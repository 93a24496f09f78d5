"""The client's half of a function call: what is sent of it, and what comes of what comes back.

A call is an execution like any other. Into its own folder on the node go two files: an archive of `functions_node.py` with
the cloudpickle of this machine (the node needs none of its own), and the pickled call. One file is fetched: the outcome.
Arguments are in no command line, no journal and no process list. Threads and futures are `executor.py`'s and `bridge.py`'s.

A pickle can do anything to whoever loads it. The outcome is loaded here, so whoever calls a function on a host trusts that host.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import marshal
import os
import pickle
import shutil
import stat
import sys
import tempfile
import threading
import uuid
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from liborch import functions_node
from liborch.drive.results import Result
from liborch.drive.transfers import Snapshots
from liborch.errors import FunctionDied, FunctionError, OrchestraError, SpecError
from liborch.specs import ExecutionSpec, Transfer

ARCHIVE = "function.pyz"
RULES = "rules"
#: So much of what a dead process wrote to stderr is told with its end.
_LAST_BYTES = 400
#: The first line of an outcome is no longer than this: a traceback may be long, but a host may also be hostile.
_MOST_HEAD_BYTES = 1 << 24
#: The date of everything in the archive: the same content is the same file, whenever it is made.
_NEVER = (1980, 1, 1, 0, 0, 0)


class RemoteTraceback(Exception):
    """The `__cause__` of an exception that a function raised on a node: the traceback there, as text in `tb`."""

    def __init__(self, tb: str) -> None:
        self.tb = tb
        super().__init__(tb)

    def __str__(self) -> str:
        return f"\n{self.tb}"


class BrokenFunction(FunctionDied, BrokenExecutor):
    """FunctionDied, for who knows it by the name that `concurrent.futures` has for it. It breaks no other call."""


def name_of(function: Callable[..., Any]) -> str:
    """What a function is called in errors and lists."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _cloudpickle() -> Any:
    try:
        import cloudpickle
    except ImportError as error:
        raise SpecError(
            "calling Python functions on a host needs cloudpickle: pip install 'orchestra-tools[functions]'"
        ) from error
    return cloudpickle


@functools.cache
def _archive() -> bytes:
    """Return the program that travels with every call."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:

        def put(name: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, _NEVER), content, zipfile.ZIP_DEFLATED)

        put("__main__.py", Path(functions_node.__file__).read_bytes())
        home = importlib.util.find_spec("cloudpickle")
        assert home is not None
        for folder in home.submodule_search_locations or ():
            for file in sorted(Path(folder).glob("*.py")):
                put(f"cloudpickle/{file.stem}.pyc", _compiled(file))
    return made.getvalue()


def _compiled(file: Path) -> bytes:
    """Return a module as bytecode that is used without asking for its source: compiling it anew doubles a small call's time.

    Only the version of Python that wrote it reads it; another one does not come that far.
    """
    source = file.read_bytes()
    unchecked = (1).to_bytes(4, "little")
    code = marshal.dumps(compile(source, file.name, "exec", dont_inherit=True))
    return importlib.util.MAGIC_NUMBER + unchecked + importlib.util.source_hash(source) + code


class Calls:
    """Calls under way, each with a private folder of this machine until `forget`.

    Args:
        python: The interpreter on the host.
    """

    def __init__(self, python: str) -> None:
        self._python = python
        self._lock = threading.Lock()
        self._made: Path | None = None

    def __repr__(self) -> str:
        return f"<Calls by {self._python}: {self._made or 'none yet'}>"

    def close(self) -> None:
        """Remove all that lies here of them."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)

    def _folder(self) -> Path:
        """The folder for all of them, among the system's temporary files; made when it is first needed."""
        with self._lock:
            if self._made is None:
                folder = Path(tempfile.mkdtemp(prefix="orchestra-"))
                (folder / RULES).write_text(f"*\n!/{functions_node.OUTCOME}\n")
                (folder / ARCHIVE).write_bytes(_archive())
                self._made = folder
            return self._made

    def pack(self, function: Callable[..., Any], calls: Any, *, many: bool = False) -> Call:
        """Pickle a call as it is now.

        Args:
            calls: (arguments, named arguments), or with `many` one tuple of arguments for each call.

        Raises:
            SpecError: There is no cloudpickle here.
            OSError: The disk refuses.
            Exception: Whatever pickling raises.
        """
        cloudpickle = _cloudpickle()
        folder = self._folder()
        call = Call(folder / uuid.uuid4().hex, name_of(function), self._python)
        call.folder.mkdir(mode=0o700)
        try:
            os.link(folder / ARCHIVE, call.folder / ARCHIVE)
            with open(
                os.open(call.folder / functions_node.CALL, os.O_WRONLY | os.O_CREAT, 0o600), "wb"
            ) as file:
                head = {"python": list(sys.version_info[:2]), "many": many}
                file.write(json.dumps(head).encode() + b"\n")
                cloudpickle.dump((function, calls), file)
        except BaseException:
            call.forget()
            raise
        return call


class Call:
    """One call: its specification, and what its Result means."""

    def __init__(self, folder: Path, function: str, python: str) -> None:
        self.folder = folder
        self.function = function
        self._python = python

    def __repr__(self) -> str:
        return f"<Call of {self.function}>"

    def spec(self, plain: ExecutionSpec) -> ExecutionSpec:
        """The execution: `plain` with this call's command and files."""
        transfer = Transfer(
            local_folder=str(self.folder),
            remote_folder=f"$RUNAWAY_PATH/{self.folder.name}",
            output_folder=str(self.folder / "back").replace("$", "$$"),
            fetch_ignore=str(self.folder.parent / RULES),
        )
        argv = (self._python, ARCHIVE)
        return msgspec.structs.replace(
            plain, argv=argv, transfer=transfer, label=plain.label or self.function
        )

    def forget(self) -> None:
        """Remove what lies here of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def conclude(self, result: Result) -> tuple[Any, BaseException | None]:
        """Return what the call returned, or what is to be raised. Blocking; loads what came from the node."""
        try:
            file = _open(self.folder / "back" / functions_node.OUTCOME)
        except OSError:
            return None, self._died(result)
        with file:
            return self._read(file, result.node)

    def _read(self, file: BinaryIO, node: str) -> tuple[Any, BaseException | None]:
        try:
            head = msgspec.json.decode(file.readline(_MOST_HEAD_BYTES), type=_Head)
        except msgspec.DecodeError as error:
            return None, self._error(node, f"what came back is no outcome: {error}")
        if head.kind == "not loaded":
            return None, self._caused(node, head, f"could not be loaded: {head.why}", _REACH)
        if head.kind == "not pickled":
            what = f"raised {head.why}" if head.why else f"returned a {head.what}"
            return None, self._caused(node, head, f"{what}, which cannot be pickled: {head.pickling}", _PLAIN)
        try:
            value = pickle.load(file)
        except Exception as error:
            what = f"raised {head.why}" if head.kind == "raised" else "returned a value"
            ours = self._caused(
                node, head, f"{what}, which cannot be loaded here: {type(error).__name__}: {error}", _PLAIN
            )
            ours.__context__ = error
            return None, ours
        if head.kind != "raised":
            return value, None
        if not isinstance(value, BaseException):
            return None, self._error(node, f"raised what is no exception here: {type(value).__name__}")
        value.__cause__ = RemoteTraceback(head.text)
        return None, value

    def _error(self, node: str, why: str, todo: str = "") -> FunctionError:
        return FunctionError(self.function, why, todo, node=node)

    def _caused(self, node: str, head: _Head, why: str, todo: str) -> FunctionError:
        error = self._error(node, why, todo)
        if head.text:
            error.__cause__ = RemoteTraceback(head.text)
        return error

    def _died(self, result: Result) -> OrchestraError:
        if result.exit_code == 127:
            return self._error(
                result.node, f"there is no {self._python}", "name an interpreter of that host with python="
            )
        stderr = result.stderr[-_LAST_BYTES:].decode(errors="replace").strip()
        return BrokenFunction(
            self.function, _how(result), node=result.node, execution=result.id, stderr=stderr
        )


class _Head(msgspec.Struct):
    """The first line of an outcome."""

    kind: str
    why: str = ""
    what: str = ""
    text: str = ""
    pickling: str = ""


_REACH = (
    "install there what it imports, or have it sent along with cloudpickle.register_pickle_by_value(module); "
    "an interpreter of that host is named with python="
)
_PLAIN = "have it return or raise something plainer"


def _open(path: Path) -> BinaryIO:
    """Open a file that came from a node. Raises OSError also for what is no plain file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(f"{path} is no file")
    return file


def _how(result: Result) -> str:
    """How an execution ended, in words."""
    if result.reason == "exit" and result.exit_code is not None:
        told = f"exit code {result.exit_code}"
    elif result.reason == "signal" and result.signal is not None:
        told = f"signal {result.signal}"
    else:
        told = result.reason
    return f"{told} ({result.why})" if result.why else told


class CallSnapshots(Snapshots):
    """What is sent of a call: its own two files, read when it is their turn, so that waiting calls take no memory."""

    def __init__(self) -> None:
        super().__init__(None)

    async def of(self, transfer: Transfer) -> Any:
        """Return the snapshot of a call. Raises SpecError, StorageError as `take_snapshot` does."""
        import asyncio

        return await asyncio.to_thread(_snapshot, Path(transfer.local_folder))


def _snapshot(folder: Path) -> Any:
    from liborch.transfer.listing import Found, Listing
    from liborch.transfer.snapshot import take_snapshot

    names: Sequence[str] = sorted((functions_node.CALL, ARCHIVE))
    found = [Found(name.encode(), "file", os.lstat(folder / name)) for name in names]
    return take_snapshot(folder, listing=Listing(folder, found))
