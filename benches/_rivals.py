"""Other ways to run one program many times, for `batch.py`: each runs `PROGRAM LINE` for every line and says how long it took.

A rival that is not installed says why it is skipped. Those from PyPI live in `build/peers`, made by `make peers`, each driven
by a small program in `peers/` which checks what came back. Only running is timed where a rival has servers to start first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import _lab

PEERS = _lab.ROOT / "build" / "peers" / "bin"
#: Seconds after which a rival is taken to hang.
MOST_S = 120
SLOTS = 4


class NotHere(Exception):
    """A rival that cannot be tried on this machine; the text says why."""


@dataclass(frozen=True)
class Rivals:
    """Args: the lab's ssh configuration; a folder for what rivals write."""

    ssh_config: Path
    folder: Path

    def xargs(self, program: str, lines: Sequence[str]) -> float:
        """`xargs -P4 -n1`: no ssh, nothing collected, nothing on record."""
        return self._timed(["xargs", f"-P{SLOTS}", "-n1", program], lines)

    def xargs_ssh(self, program: str, lines: Sequence[str]) -> float:
        """`xargs ssh`, every ssh through one ControlMaster that is up already."""
        control = self.folder / "control"
        ssh = ["ssh", "-F", str(self.ssh_config), "-o", f"ControlPath={control}"]
        if not control.exists():
            master = [*ssh, "-o", "ControlMaster=yes", "-fN", "h1"]
            subprocess.run(master, check=True, stderr=subprocess.DEVNULL)
        return self._timed(["xargs", f"-P{SLOTS}", "-n1", *ssh, "h1", program], lines)

    def parallel_ssh(self, program: str, lines: Sequence[str]) -> float:
        """GNU parallel over ssh; its log has every one with its status.

        Raises:
            NotHere: It is not installed.
            SystemExit: Something failed.
        """
        if shutil.which("parallel") is None:
            raise NotHere("GNU parallel is not installed: apt-get install parallel, or make peers")
        log = self.folder / "parallel.log"
        ssh = f"ssh -F {self.ssh_config}"
        argv = ["parallel", "--ssh", ssh, "-S", f"{SLOTS}/h1", "--joblog", str(log), program, "{}"]
        seconds = self._timed(argv, lines)
        with log.open() as rows:
            done = sum(row.split("\t")[6] == "0" for row in list(rows)[1:])
        _expect("GNU parallel", done, len(lines))
        return seconds

    def peer(self, name: str, program: str, lines: Sequence[str]) -> float:
        """A program of `peers/`, under the python of `build/peers`.

        Raises:
            NotHere: `build/peers` lacks what it imports.
            SystemExit: Something failed.
        """
        python = PEERS / "python"
        if not python.exists():
            raise NotHere("build/peers is not there: make peers")
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        script = Path(__file__).with_name("peers") / f"{name}.py"
        done = subprocess.run(
            [str(python), str(script), program],
            input="\n".join(lines),
            capture_output=True,
            text=True,
            cwd=folder,
            # Parsl looks its own programs up there.
            env={**os.environ, "PATH": f"{PEERS}:{os.environ['PATH']}"},
            timeout=MOST_S,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
            if "ModuleNotFoundError" in last[0]:
                raise NotHere(f"{last[0]}: make peers")
            raise SystemExit(f"{name} ended with status {done.returncode}: {last[0]}")
        told = json.loads(done.stdout.splitlines()[-1])
        _expect(name, told["done"], len(lines))
        return float(told["seconds"])

    def close(self) -> None:
        """End the ControlMaster."""
        control = self.folder / "control"
        if control.exists():
            argv = ["ssh", "-F", str(self.ssh_config), "-o", f"ControlPath={control}", "-O", "exit", "h1"]
            subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)

    def _timed(self, argv: Sequence[str], lines: Sequence[str]) -> float:
        began = time.perf_counter()
        done = subprocess.run(
            argv, input="\n".join(lines), text=True, capture_output=True, timeout=MOST_S, check=False
        )
        seconds = time.perf_counter() - began
        # Each of them says with its status that all went well.
        if done.returncode:
            raise SystemExit(f"{argv[0]} ended with status {done.returncode}: {done.stderr[-500:]}")
        return seconds


def _expect(name: str, done: int, wanted: int) -> None:
    if done != wanted:
        raise SystemExit(f"{name} did {done} of {wanted}")
