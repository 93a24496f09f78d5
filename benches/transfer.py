"""Sending through a real sshd: 10,000 small files and one of 1 GiB beside tar, unchanged and changed ones beside rsync.

    python benches/transfer.py [files] [megabytes]

Each measure has a connection of its own, on both sides. Ours takes the snapshot within the measured time, while the
link is opened, as the command line does; it reaches an agent that runs already. All contents are compared by hash
afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _lab
import _turns

from liborch.drive.targets import targets_of
from liborch.places import places
from liborch.specs import HostProfile
from liborch.ssh import Pool
from liborch.transfer.send import send
from liborch.transfer.snapshot import take_snapshot

ROUNDS = 5
LARGE_ROUNDS = 5
FOLDERS = 100
HOST = "h1"
#: Everything on the host lies here, in memory: what a disk's journal happens to do would be most of what is measured.
THERE = "/tmp/bench"


@dataclass
class Sent:
    """One send of ours."""

    #: From the first look at the folder to the last word of the host, connecting included.
    seconds: float
    report: Any


def make_small(folder: Path, count: int) -> None:
    """Files of 1 to 4 KiB that nothing can compress, in 100 folders, older than any clock's grain."""
    chance = random.Random(count)
    past = time.time() - 3600
    for number in range(count):
        path = folder / f"d{number % FOLDERS:02}" / f"f{number:05}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randint(1024, 4096)))
        os.utime(path, (past, past))


def make_large(folder: Path, megabytes: int) -> None:
    """One file of random bytes."""
    folder.mkdir(parents=True)
    with (folder / "large").open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1 << 20))


def fingerprint(folder: str, host: Any = None) -> str:
    """The hash of all names and contents of a tree, here or on the host."""
    command = f"cd {shlex.quote(folder)} && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    if host is not None:
        return str(host.run(command, timeout_s=120).stdout)
    return subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout


class Bench:
    """One lab host, the trees, and the ways to send one."""

    def __init__(self, lab: Any, environment: dict[str, str]) -> None:
        self.host = lab.host(HOST)
        self.config = str(lab.ssh_config)
        self.ssh = ["ssh", "-F", self.config]
        self.environment = environment
        self.trees = Path(environment["XDG_CACHE_HOME"] + "-trees")
        #: As much as is sent.
        self.warm_bytes = 0

    def remove(self, *names: str) -> None:
        """Have nothing on the host, and nothing waiting for the disk.

        Leaves memory that was just written. A virtual machine's host takes back what lay free for some seconds, and
        writing into that costs three times as much: it would be a matter of luck who of the two has to.
        """
        self.host.run(" ".join(["rm -rf", *(f"{THERE}/{name}" for name in names)]))
        os.sync()
        self.host.run(
            f"mkdir -p {THERE}; head -c {self.warm_bytes} /dev/zero > {THERE}/warm; rm {THERE}/warm"
        )

    def check(self, tree: str, name: str) -> None:
        """Raises SystemExit unless the host's folder holds what the tree does."""
        if fingerprint(str(self.trees / tree)) != fingerprint(f"{THERE}/{name}", self.host):
            raise SystemExit(f"what arrived in {name} is not what was sent")

    def tar(self, tree: str) -> float:
        """Seconds of tar | ssh tar into an empty folder."""
        self.remove("tar")
        receive = f"mkdir -p {THERE}/tar && tar x -C {THERE}/tar"
        pipe = f"tar c -C {self.trees / tree} . | {shlex.join([*self.ssh, HOST, receive])}"
        return _turns.program_time(["bash", "-o", "pipefail", "-c", pipe])[0]

    def rsync(self, tree: str) -> float:
        """Seconds of rsync to what an earlier one left there."""
        shell = shlex.join(self.ssh)
        return _turns.program_time(
            ["rsync", "-a", "-e", shell, f"{self.trees / tree}/", f"{HOST}:{THERE}/rsync/"]
        )[0]

    def send(self, tree: str, *, first: bool = False, sole: bool = False) -> Sent:
        """Send to the fixed folder `ours` on a connection of its own.

        Args:
            first: Nothing of it is there, and no hash of it is known here.
            sole: The host needs it for one execution, as `runaway exec` says when nothing shall stay; otherwise for more.
        """
        if first:
            self.remove("ours", "home")
            shutil.rmtree(places(self.environment).cache, ignore_errors=True)
        return asyncio.run(self._send(self.trees / tree, sole))

    async def _send(self, folder: Path, sole: bool) -> Sent:
        cache = places(self.environment).cache
        began = time.perf_counter()
        taking = asyncio.ensure_future(asyncio.to_thread(take_snapshot, folder, cache=cache))
        async with Pool(config_file=self.config) as pool:
            link = await targets_of(HostProfile(name=HOST, ssh=HOST))[0].open(pool)
            snapshot = await taking
            stream = link.open_stream("transfer")
            report = await send(
                stream, snapshot, f"{THERE}/ours", directory=f"{THERE}/home", sole=sole, host=HOST
            )
            seconds = time.perf_counter() - began
            await stream.close()
            await link.close()
        return Sent(seconds, report)


def in_rounds(rounds: int, ours: Callable[[], Sent], theirs: Callable[[], float]) -> dict[str, Any]:
    """Take ours and theirs in turns, after a round that does not count: it warms caches, and fills memory once.

    Returns:
        `ours` and `theirs`, in seconds, and the `reports` of ours.
    """
    taken = [(ours(), theirs()) for _ in range(rounds + 1)][1:]
    return {
        "ours": [one.seconds for one, _ in taken],
        "theirs": [other for _, other in taken],
        "reports": [one.report for one, _ in taken],
    }


def tell(name: str, what: str, taken: dict[str, Any], **more: Any) -> None:
    """Report the ratio of the medians."""
    ours, theirs = statistics.median(taken["ours"]), statistics.median(taken["theirs"])
    lists = {f"{key}_ms": [_turns.milliseconds(x) for x in taken[key]] for key in ("ours", "theirs")}
    _lab.report(
        name,
        round(ours, 4),
        "s",
        ratio=round(ours / theirs, 3),
        better="lower",
        command=f"benches/transfer.py: {what}",
        **more,
        **lists,
    )


def small(bench: Bench, count: int) -> None:
    """The first send of many small files, then again with nothing and with one file changed."""
    make_small(bench.trees / "small", count)
    bench.warm_bytes = count * 4096
    taken = in_rounds(ROUNDS, lambda: bench.send("small", first=True), lambda: bench.tar("small"))
    bench.check("small", "ours")
    bench.check("small", "tar")
    if any(report.sent_files != count for report in taken["reports"]):
        raise SystemExit(f"a first send must send {count} files: {taken['reports']}")
    tell("send_small", f"first send of {count} files, beside tar c | ssh tar x", taken)
    if shutil.which("rsync") is None:
        for name in ("resend_unchanged", "resend_unchanged_time", "resend_one"):
            _lab.skip(name, "there is no rsync here")
        return
    resend(bench, count)


def resend(bench: Bench, count: int) -> None:
    """What is on the host already, beside rsync."""
    bench.rsync("small")
    taken = in_rounds(ROUNDS, lambda: bench.send("small"), lambda: bench.rsync("small"))
    bench.check("small", "ours")
    bench.check("small", "rsync")
    sent_bytes = sum(report.sent_bytes for report in taken["reports"])
    _lab.report(
        "resend_unchanged",
        sent_bytes,
        "B",
        better="lower",
        command=f"benches/transfer.py: file bytes sent by {ROUNDS} sends of {count} unchanged files",
    )
    tell("resend_unchanged_time", f"{count} unchanged files, beside rsync", taken)
    changed = bench.trees / "small" / "d00" / "f00000"
    sizes = itertools.count(5000)

    def change() -> None:
        # Another size each time: rsync takes files of one size and one second for the same.
        changed.write_bytes(os.urandom(next(sizes)))

    def change_and_send() -> Sent:
        change()
        return bench.send("small")

    taken = in_rounds(ROUNDS, change_and_send, lambda: bench.rsync("small"))
    bench.send("small")
    bench.check("small", "ours")
    bench.check("small", "rsync")
    if any(report.sent_files != 1 or report.sent_bytes > 6000 for report in taken["reports"]):
        raise SystemExit(f"one changed file must be sent, and nothing else: {taken['reports']}")
    tell("resend_one", f"one changed file of {count}, beside rsync", taken)


def large(bench: Bench, megabytes: int) -> None:
    """The first send of one large file, for one execution as `runaway exec` does."""
    make_large(bench.trees / "large", megabytes)
    bench.warm_bytes = megabytes << 20
    taken = in_rounds(
        LARGE_ROUNDS, lambda: bench.send("large", first=True, sole=True), lambda: bench.tar("large")
    )
    bench.check("large", "ours")
    bench.check("large", "tar")
    if any(report.sent_bytes != megabytes << 20 for report in taken["reports"]):
        raise SystemExit(f"a first send must send everything: {taken['reports']}")
    tell("send_large", f"first send of one file of {megabytes} MiB, beside tar c | ssh tar x", taken)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    megabytes = int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    with _lab.lab() as lab, _lab.own_folders(lab.ssh_config) as environment:
        bench = Bench(lab, environment)
        small(bench, count)
        large(bench, megabytes)


if __name__ == "__main__":
    main()
