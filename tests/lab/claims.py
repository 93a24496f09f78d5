"""Numbers for labs: who owns which, and removing what a dead owner left.

A lab takes a number N from 0 to 199. N decides its subnets (10.213.N.0/24 and two inner ones), its bridge
(`olab-N`), its folder (`/var/lib/orchestra-lab/N`) and its control groups, so that several labs, one per
test process, live side by side. The owner is recorded by pid and start time; a number whose owner is gone
is cleaned and given out again. Nothing is ever looked for by a process's name.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/var/lib/orchestra-lab")
MOST_LABS = 200


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None when there is no such process (or only its zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def cgroup_roots() -> list[Path]:
    """Mounted control group hierarchies in which groups can be made (several with v1, one with v2)."""
    roots = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options = line.split()[:4]
        wanted = {"memory", "pids", "freezer", "cpu", "cpuset"} & set(options.split(","))
        if (kind == "cgroup2" and where == "/sys/fs/cgroup") or (kind == "cgroup" and wanted):
            roots.append(Path(where))
    return [root for root in roots if os.access(root, os.W_OK)]


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    ROOT.mkdir(parents=True, exist_ok=True)
    with open(ROOT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _owner_lives(folder: Path) -> bool:
    try:
        owner = json.loads((folder / "owner.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(start_time(owner["pid"]) == owner["start"])


def claim() -> int:
    """Take a free number, after removing what dead owners left behind. Raises RuntimeError when all are taken."""
    with _locked():
        for folder in ROOT.iterdir():
            if folder.name.isdigit() and not _owner_lives(folder):
                remove(int(folder.name))
        # Starting at the pid spreads the numbers, so that a subnet is not reused right after its lab is gone.
        for i in range(MOST_LABS):
            number = (os.getpid() + i) % MOST_LABS
            folder = ROOT / str(number)
            if not folder.exists():
                folder.mkdir()
                owner = {"pid": os.getpid(), "start": start_time(os.getpid())}
                (folder / "owner.json").write_text(json.dumps(owner))
                return number
    raise RuntimeError(f"all {MOST_LABS} labs are taken; see {ROOT}")


def remove(number: int) -> None:
    """Remove all traces of a lab: bridge, control groups, folder. Its processes ended with their owner's pipe."""
    subprocess.run(["ip", "link", "del", f"olab-{number}"], capture_output=True, check=False)
    for root in cgroup_roots():
        top = root / f"olab-{number}"
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    shutil.rmtree(ROOT / str(number), ignore_errors=True)
