"""What a real Slurm answered, by kind and name (see `captured/slurm/README.md`), and a place to run our scripts without one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from liborch.batch_systems.base import Command, Output
from tests.batch_systems.captures import FOLDER


def answers(kind: str) -> dict[str, Output]:
    """{name: output} of one kind: submissions, queries, cancels, limits."""
    found = {}
    parts = re.split(r"^=== (\w+)\n", (FOLDER / "slurm" / f"{kind}.txt").read_text(), flags=re.MULTILINE)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        stdout, _, stderr = text.partition("--- stderr\n")
        found[name] = Output(0, stdout.encode(), stderr.encode())
    return found


def run_with(command: Command, folder: Path, programs: dict[str, str], **environment: str) -> Output:
    """Run one of our scripts with the system's own sh, where Slurm's programs are these shell scripts."""
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        command.argv, input=command.stdin, capture_output=True, check=False, cwd=folder, timeout=30,
        env={"PATH": f"{folder}:/usr/bin:/bin", "HERE": os.fspath(folder), **environment},
    )  # fmt: skip
    return Output(done.returncode, done.stdout, done.stderr)
