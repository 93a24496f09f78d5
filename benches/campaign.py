"""What a campaign costs: recording beside `git add -A && git commit`, and eight who record and sync at once.

    python benches/campaign.py [record] [sync]

Recording: 10,000 executions, a record and three small files each, in commits of a thousand; the others write the same files into a
working tree and commit them. Ten times as many show whether it gets slower. Syncing: eight clones, each recording 200 executions
in groups of five and syncing after each group, with one bare repository over a real sshd.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import _lab

from expegit import creating
from expegit.layout import folder_of
from expegit.records import Record, write_record
from expegit.store import Campaign
from expegit.syncing import sync

COUNT, GROUP, TIMES = 10_000, 1000, 10
CLONES, EACH, SYNCED = 8, 200, 5
HOST = "h1"


def made(count: int) -> Iterator[tuple[str, bytes]]:
    """The files of so many executions, by path."""
    for number in range(count):
        x = str(uuid.uuid4())
        folder = folder_of(x)
        arguments = ("--lr", f"{number / 1000}", "--seed", str(number))
        yield (
            f"{folder}/record.json",
            write_record(Record(id=x, state="succeeded", arguments=arguments, exit_code=0)),
        )
        yield f"{folder}/stdout", b"epoch 1 of 3\n" * 3 + b"%d\n" % number
        yield f"{folder}/stderr", b""
        yield f"{folder}/data/metrics.json", b'{"loss": %d}\n' % number


def git(folder: Path, *words: str) -> str:
    """What git prints. Raises CalledProcessError."""
    return subprocess.run(
        ["git", *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def record(folder: Path) -> None:
    """Report `campaign_record` and `campaign_flat`."""
    plain = folder / "plain"
    plain.mkdir()
    git(plain, "init", "-q")
    files = list(made(COUNT))
    began = time.perf_counter()
    for path, content in files:
        target = plain / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    git(plain, "add", "-A")
    git(plain, "commit", "-q", "-m", "Everything")
    plain_s = time.perf_counter() - began

    campaign = creating.init("", folder / "campaign")
    taken = []
    for _ in range(TIMES):
        files = list(made(COUNT))
        began = time.perf_counter()
        per_group = 4 * GROUP
        for at in range(0, len(files), per_group):
            campaign.commit(files[at : at + per_group], f"{GROUP} executions")
        taken.append(time.perf_counter() - began)
    if len(campaign.ids()) != COUNT * TIMES or git(campaign.folder, "status", "--porcelain"):
        raise SystemExit("not everything was recorded")
    git(campaign.folder, "fsck", "--connectivity-only")
    _lab.report(
        "campaign_record",
        round(taken[0], 2),
        "s",
        ratio=round(taken[0] / plain_s, 3),
        better="lower",
        command=f"benches/campaign.py: {COUNT} executions recorded, beside writing them and git add -A && git commit ({plain_s:.2f} s)",
    )
    _lab.report(
        "campaign_flat",
        round(taken[-1], 2),
        "s",
        ratio=round(taken[-1] / taken[0], 3),
        better="lower",
        command=f"benches/campaign.py: executions {COUNT * (TIMES - 1) + 1:,} to {COUNT * TIMES:,}, beside the first {COUNT:,}",
        each_s=[round(each, 2) for each in taken],
    )


def work(address: str, folder: str) -> None:
    """One of the eight: a process of its own."""
    campaign = creating.clone(address, Path(folder))
    tries = 0
    for _ in range(EACH // SYNCED):
        campaign.commit(made(SYNCED), f"{SYNCED} executions")
        tries += sync(campaign).tries
    print(tries, flush=True)


def share(folder: Path) -> None:
    """Report `campaign_sync`."""
    with _lab.lab() as lab:
        os.environ["GIT_SSH_COMMAND"] = f"ssh -F {lab.ssh_config}"
        hub = f"/tmp/{folder.name}-hub.git"
        first = creating.init("", folder / "first")
        lab.host(HOST).run(f"git init -q --bare -b main {hub}")
        address = f"{HOST}:{hub}"
        git(first.folder, "remote", "add", "origin", address)
        sync(first)
        began = time.perf_counter()
        running = [
            subprocess.Popen(
                [sys.executable, __file__, "--work", address, str(folder / f"clone{number}")],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(CLONES)
        ]
        said = [process.communicate()[0] for process in running]
        took = time.perf_counter() - began
        if any(process.returncode for process in running):
            raise SystemExit(f"not everybody came through: {[process.returncode for process in running]}")
        for number in range(CLONES):
            campaign = Campaign(folder / f"clone{number}")
            sync(campaign)
            if len(campaign.ids()) != CLONES * EACH or git(campaign.folder, "status", "--porcelain"):
                raise SystemExit(f"clone {number} has {len(campaign.ids())} executions")
            git(campaign.folder, "fsck", "--strict")
        lab.host(HOST).run(f"git -C {hub} fsck --strict")
        _lab.report(
            "campaign_sync",
            round(took, 1),
            "s",
            better="lower",
            command=f"benches/campaign.py: {CLONES} clones, each {EACH} executions in groups of {SYNCED}, synced after each, over ssh",
            pushes=CLONES * EACH // SYNCED,
            came_too_late=sum(int(text) for text in said),
        )


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
        return
    wanted = sys.argv[1:] or ["record", "sync"]
    with tempfile.TemporaryDirectory(prefix="orchestra-campaign-") as name:
        os.environ["HOME"] = name
        Path(name, ".gitconfig").write_text("[user]\n\tname = A Bench\n\temail = bench@example.org\n")
        if "record" in wanted:
            record(Path(name))
        if "sync" in wanted:
            share(Path(name))


if __name__ == "__main__":
    main()
