"""What goes out with a script, and where it comes back to: checked before anything starts, for `exec` and `batch` alike."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from liborch import patterns
from liborch.drive.transfers import Snapshots
from liborch.errors import SpecError
from liborch.places import Places
from liborch.profiles.procedures import join_arguments
from liborch.specs import Leave, Transfer
from runaway.messages import Messages
from runaway.scripts import Script

if TYPE_CHECKING:
    from liborch.transfer.snapshot import Snapshot

#: Where an execution runs on the host, unless the person says.
REMOTE_FOLDER = "$RUNAWAY_PATH/$RUNAWAY_UUID"


class BrokenOff(Exception):
    """Ctrl-C while the folder was read."""


@dataclass(frozen=True)
class Sending:
    """The folder of a script, and how it travels.

    Args:
        remote: The host, or hosts, as the person named them.
        own: RUNAWAY* variables of the caller, and what else the patterns may name.
        output_folder: A pattern.
        shared: More than one execution needs it.
        results: Folders in it that hold results of executions: never sent.
    """

    folder: Path
    script: Script
    remote: str
    own: dict[str, str]
    environment: dict[str, str]
    env_read: bool
    send_ignore: Path | None
    fetch_ignore: Path | None
    leave: Leave
    stay: bool
    shared: bool = False
    results: tuple[str, ...] = ()

    def transfer(
        self, x: str, arguments: tuple[str, ...], snapshot: str, *, remote_folder: str, output_folder: str
    ) -> Transfer:
        """What travels with one execution. Raises PatternError for a name in one of the folders that will not be known.

        Args:
            snapshot: Its id; "" before there is one.
        """
        leave: Leave = "everything" if self.stay and self.leave == "nothing" else self.leave
        known = {
            **self.own,
            "RUNAWAY_UUID": x,
            "RUNAWAY_REMOTE": self.remote,
            "RUNAWAY_LEAVE": leave,
            "RUNAWAY_SCRIPT_PATH": self.script.path,
            "RUNAWAY_LOCAL_FOLDER": str(self.folder),
            "RUNAWAY_SEND_HASH": snapshot,
            "RUNAWAY_ARGUMENTS": join_arguments(arguments),
        }
        # The host's own folder is not known yet: its name stays, and is filled in when it is.
        where = patterns.parse_remote(remote_folder, self.environment, env_read=self.env_read).fill(
            {**known, "RUNAWAY_PATH": "${RUNAWAY_PATH}"}
        )
        output = patterns.parse_output(output_folder, self.environment, env_read=self.env_read)
        output.check({**known, "RUNAWAY_PATH": "/"})
        return Transfer(
            local_folder=str(self.folder),
            remote_folder=where,
            output_folder=os.path.abspath(output_folder) if "$" not in output_folder else output_folder,
            variables=known,
            send_ignore=str(self.send_ignore) if self.send_ignore else None,
            fetch_ignore=str(self.fetch_ignore) if self.fetch_ignore else None,
            results=self.results,
            snapshot=snapshot,
            leave=leave,
            fetch=not self.stay,
            shared=self.shared,
        )

    async def pack(self, snapshots: Snapshots, messages: Messages, folders: Places) -> Snapshot:
        """Take the snapshot, in a thread.

        Raises:
            BrokenOff: Ctrl-C. There is no execution yet that could be cancelled; the thread may go on reading.
            StorageError, SpecError: The folder cannot be read.
        """
        from liborch.transfer.snapshot import take_snapshot

        messages.stage("packing")
        taking = asyncio.ensure_future(
            asyncio.to_thread(
                take_snapshot,
                self.folder,
                send_ignore=self.send_ignore,
                cache=folders.cache,
                results=self.results,
            )
        )
        interrupted = asyncio.Event()
        loop = asyncio.get_running_loop()
        before = signal.getsignal(signal.SIGINT)
        loop.add_signal_handler(signal.SIGINT, interrupted.set)
        asking = asyncio.ensure_future(interrupted.wait())
        try:
            await asyncio.wait([taking, asking], return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, before)
        if not taking.done():
            raise BrokenOff
        snapshot = taking.result()
        given = str(self.send_ignore) if self.send_ignore else None
        snapshots.put(str(self.folder), given, snapshot, self.results)
        for left in snapshot.left_out:
            messages.detail(f"not sent: {os.fsdecode(left.path)}: {left.reason}")
        return snapshot


def refuse_home(folder: Path, environment: dict[str, str]) -> None:
    """Raises SpecError rather than send a whole home folder, or the whole machine."""
    if folder in (Path("/"), Path(environment.get("HOME", "/"))) and not (folder / ".sendignore").exists():
        raise SpecError(
            f"this would send all of {folder}: go to the folder of the script, or write a .sendignore that says what stays"
        )


def ignore_file(text: str | None, option: str, cwd: Path) -> Path | None:
    """The file that an option names. Raises SpecError when there is none."""
    if text is None:
        return None
    path = Path(os.path.abspath(cwd / text))
    if not path.is_file():
        raise SpecError(f"{option}: there is no file {text}")
    return path
