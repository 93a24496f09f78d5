"""A batch that everything goes wrong for: clients, agents, connections, links, disks and executions die at random instants.

A seed says what the batch looks like and what happens when (`Schedule`); instants are of the wall clock, so the same seed meets
the batch in other states each time: a seed that failed once is tried several times. `Round` lets it happen, starting the
same command with --resume whenever the client is gone. What must be true afterwards is in `aftermath.py`.

By hand: `python -m tests.lab.durability SEED [--soak] [--times N]`.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from liborch.journal import Journal
from tests.cli.person import Person
from tests.lab.hosts import Host, Lab

#: What can happen, and how often beside the others.
KINDS = {
    "client": 6,  # killed, and started again at once
    "client twice": 2,  # killed again while it takes over
    "keeper": 2,
    "talker": 2,
    "sessions": 2,  # every connection's sshd killed
    "sshd": 1,  # and the one that listens, for a while
    "execution": 3,  # killed from outside
    "cut": 2,  # the link is down for a while
    "drop": 1,  # every packet is dropped for a while
    "reset": 1,  # every connection is reset
    "client disk": 1,  # full for a while
    "node disk": 1,  # the agent's, full for a while
}
#: Kinds that end an attempt for good: it is to be tried again.
DEADLY = ("keeper", "execution")
SLOTS = 4
#: The person's disk, and each agent's.
DISK = "96m"
AGENT_FOLDER = "/root/.local/state/orchestra"
#: A round that is not over so long after its last fault will never be, in seconds.
PATIENCE_S = 60.0

RUN = """\
ledger="$HOME/ledger-$4"
echo "begin $1 $$" >> "$ledger"
echo "out $1"
head -c "$3" /dev/zero | tr '\\0' x
echo "err $1" >&2
sleep "$2"
{made}echo "end $1 $$" >> "$ledger"
"""


@dataclass(frozen=True, order=True)
class Fault:
    """Something that happens at an instant."""

    #: Seconds after the first start of the client.
    at_s: float
    kind: str
    #: Index of the host it happens to, where it happens to one.
    host: int
    #: How long it lasts, where it does.
    length_s: float


@dataclass(frozen=True)
class Work:
    """One execution."""

    number: int
    takes_s: float
    #: Bytes of its stdout beside one line.
    size_bytes: int


@dataclass(frozen=True)
class Schedule:
    """All of a seed."""

    seed: int
    hosts: int
    #: Whether the script is sent, and results are fetched.
    sends: bool
    works: tuple[Work, ...]
    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, seed: int, *, soak: bool = False) -> Schedule:
        """What a seed means."""
        rng = random.Random(seed)
        hosts = rng.randint(1, 3)
        sends = rng.random() < 0.6
        sizes = [0] * 8 + [20_000, 200_000]
        works = tuple(
            Work(number, round(rng.uniform(0, 0.3), 3), rng.choice(sizes))
            for number in range(200 if soak else 60)
        )
        whole_s = 1.0 + sum(work.takes_s for work in works) / (SLOTS * hosts)
        most_s = 60.0 if soak else 2.0
        faults = []
        for _ in range(rng.randint(6, 14) if soak else rng.randint(3, 5)):
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            # Mostly short: long ones only make a round long.
            length_s = min(most_s, 0.3 + rng.expovariate(1.0 if not soak else 0.2))
            if soak and kind in ("cut", "drop") and rng.random() < 0.15:
                length_s = rng.uniform(most_s / 3, most_s)
            faults.append(
                Fault(round(rng.uniform(0.3, whole_s), 3), kind, rng.randrange(hosts), round(length_s, 3))
            )
        return cls(seed, hosts, sends, works, tuple(sorted(faults)))

    def __str__(self) -> str:
        head = f"seed {self.seed}: {len(self.works)} executions on {self.hosts} hosts, the script is {'sent' if self.sends else 'there'}"
        return "\n".join(
            [
                head,
                *(
                    f"  {fault.at_s:6.3f} s  {fault.kind} on h{fault.host + 1} ({fault.length_s:.1f} s)"
                    for fault in self.faults
                ),
            ]
        )

    def count(self, *kinds: str) -> int:
        """How many faults of these kinds there are."""
        return sum(fault.kind in kinds for fault in self.faults)


@dataclass
class Round:
    """One batch, and what happens to it. `run` returns when the client says that all succeeded."""

    schedule: Schedule
    lab: Lab
    person: Person
    #: Makes one ledger of each round on the same hosts.
    tag: str
    #: Statuses of the clients that ended by themselves.
    statuses: list[int] = field(default_factory=list)
    #: What was said, by all of them.
    said: str = ""
    starts: int = 0
    #: (when, what) as it happened.
    happened: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began = 0.0
        self._client: subprocess.Popen[bytes] | None = None
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._log = open(self.person.root / "said", "ab")  # noqa: SIM115

    @property
    def hosts(self) -> list[Host]:
        """Those that take part."""
        return self.lab.hosts[: self.schedule.hosts]

    @property
    def command(self) -> list[str]:
        """What the person types."""
        script = "run.sh" if self.schedule.sends else f"/root/run-{self.tag}"
        names = ",".join(host.alias for host in self.hosts)
        return [
            "batch", names, script, "-A", "../lines", "-O", "../folders", "--slots", str(SLOTS),
            "--retries", "20", "--retry-on", "lost,signal,node",
        ]  # fmt: skip

    def prepare(self) -> None:
        """Write what the person has, and what is on the hosts."""
        works = self.schedule.works
        lines = "".join(f"{w.number} {w.takes_s} {w.size_bytes} {self.tag}\n" for w in works)
        (self.person.root / "lines").write_text(lines)
        (self.person.root / "folders").write_text("".join(f"out/{work.number}\n" for work in works))
        if self.schedule.sends:
            self.person.write("run.sh", RUN.format(made='echo "$1" > made\n'))
        for host in self.hosts:
            script = host.home / f"run-{self.tag}"
            script.write_text("#!/bin/sh\n" + RUN.format(made=""))
            script.chmod(0o755)

    def run(self) -> None:
        """Let it all happen. Raises AssertionError when it does not end."""
        self.prepare()
        self._began = time.monotonic()
        for fault in self.schedule.faults:
            self._at(fault.at_s, lambda fault=fault: self._do(fault))
        self._start()
        last_s = max(fault.at_s + fault.length_s for fault in self.schedule.faults)
        try:
            while not (self._is_over() and not self._due):
                now = time.monotonic() - self._began
                assert now < last_s + PATIENCE_S, "it never ends"
                if self._due and self._due[0][0] <= now:
                    heapq.heappop(self._due)[2]()
                else:
                    time.sleep(0.01)
        finally:
            self._heal()
        self._tidy()

    def close(self) -> None:
        """End the client, and whatever is wrong with the hosts."""
        self._log.close()
        self.person.close()

    def wipe(self) -> None:
        """Remove what should not be on the hosts, so that the next round is not blamed for it."""
        self.person.close()
        for host in self.hosts:
            for pid in [*pids_named(host, "orch-keeper"), *pids_named(host, "orch-talker")]:
                host.kill(pid)
            for pid in host.pids_matching(self.tag):
                host.kill(pid)
            host.run(f"rm -rf /root/orchestra {AGENT_FOLDER}/nodes")

    def story(self) -> str:
        """What there is to tell of a round that failed."""
        said = (self.person.root / "said").read_text(errors="replace")[-6000:]
        return "\n".join([str(self.schedule), "what happened:", *self.happened, "what was said:", said])

    # ------------------------------------------------------------------ the client

    def _start(self) -> None:
        # One that was killed before anything was on record left nothing to go on with.
        resume = ["--resume"] if self.starts and self._is_on_record() else []
        self.starts += 1
        self._note(f"client starts {' '.join(resume)}")
        self._client = self.person.start(*self.command, *resume, stdout=self._log, stderr=self._log)

    def _is_on_record(self) -> bool:
        done = self.person.run("ps", "--batches", "--all", "--json")
        return done.returncode != 0 or bool(done.stdout.strip())

    def _is_over(self) -> bool:
        """Whether the client says that all succeeded; one that ended otherwise is started again."""
        assert self._client is not None
        status = self._client.poll()
        if status is None:
            return False
        if status == 0:
            return True
        self._note(f"client ended with {status}")
        self.statuses.append(status)
        assert len(self.statuses) < 40, "the client ends again and again"
        time.sleep(0.2)
        self._start()
        return False

    def _kill_client(self) -> None:
        assert self._client is not None
        if self._client.poll() is None:
            self._client.kill()
            self._client.wait()
            self._start()

    def _tidy(self) -> None:
        """Hosts that were out of reach at the end keep what was sent there; the client said so, and what to do."""
        with Journal.open(self.person.state / "orchestra" / "journal.db", readonly=True) as journal:
            batch = journal.orchestrations(kind="batch")[0]
        if batch.state == "left":
            done = self.person.run("attach", batch.id)
            self._note(f"tidied later: {done.returncode}")

    # ------------------------------------------------------------------ faults

    def _at(self, when_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when_s, next(self._order), what))

    def _after(self, length_s: float, what: Callable[[], object], text: str) -> None:
        def end() -> None:
            what()
            self._note(text)

        self._at(time.monotonic() - self._began + length_s, end)

    def _note(self, text: str) -> None:
        self.happened.append(f"  {time.monotonic() - self._began:6.3f} s  {text}")

    def _do(self, fault: Fault) -> None:
        host = self.hosts[fault.host]
        self._note(f"{fault.kind} on {host.alias}")
        match fault.kind:
            case "client":
                self._kill_client()
            case "client twice":
                self._kill_client()
                self._after(fault.length_s, self._kill_client, "client killed again")
            case "keeper" | "talker":
                for pid in pids_named(host, f"orch-{fault.kind}"):
                    host.kill(pid)
            case "sessions":
                listener = host._sshd_pid()
                for process in host.processes():
                    if process.argv[0].startswith("sshd:") and process.pid != listener:
                        host.kill(process.pid)
            case "sshd":
                host.stop_sshd(sessions=True)
                self._after(fault.length_s, lambda: start_sshd(host), "sshd is back")
            case "execution":
                for pid in host.pids_matching(self.tag)[:1]:
                    host.kill(pid)
            case "cut":
                host.cut()
                self._after(fault.length_s, host.restore, "link restored")
            case "drop":
                host.drop_packets()
                self._after(fault.length_s, host.restore, "packets pass")
            case "reset":
                host.reset_connections()
            case "client disk":
                fill(self.person.root)
                self._after(fault.length_s, lambda: free(self.person.root), "room on the client's disk")
            case "node disk":
                fill(host.path(AGENT_FOLDER))
                self._after(fault.length_s, lambda: free(host.path(AGENT_FOLDER)), "room on the node's disk")
            case _:
                raise AssertionError(fault.kind)

    def _heal(self) -> None:
        free(self.person.root)
        for host in self.hosts:
            host.restore()
            free(host.path(AGENT_FOLDER))
            start_sshd(host)


def start_sshd(host: Host) -> None:
    """Have a host listen again, unless it does."""
    if host._sshd_pid() == 0:
        host.start_sshd()


def pids_named(host: Host, name: str) -> list[int]:
    """Pids, as the host sees them, of its processes of that name."""
    found = []
    for process in host.processes():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process.outer_pid}/comm").read_text().strip() == name:
                found.append(process.pid)
    return found


def fill(folder: Path) -> None:
    """Leave no byte on the disk that a folder is on."""
    with contextlib.suppress(OSError), open(folder / ".full", "ab", buffering=0) as file:
        while True:
            file.write(b"\0" * (1 << 16))


def free(folder: Path) -> None:
    """Make room again."""
    with contextlib.suppress(OSError):
        (folder / ".full").unlink()


@contextlib.contextmanager
def durable_lab() -> Iterator[Lab]:
    """Three hosts whose agents have disks of their own, small enough to be filled."""
    with Lab(count=3) as lab:
        for host in lab.hosts:
            host.run(f"mkdir -p {AGENT_FOLDER}; mount -t tmpfs -o mode=0700,size={DISK} tmpfs {AGENT_FOLDER}")
        yield lab


@contextlib.contextmanager
def durable_person(lab: Lab, root: Path) -> Iterator[Person]:
    """Somebody whose files are all on one small disk."""
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(root)], check=True)
    try:
        yield Person(root, lab.ssh_config)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def try_seed(lab: Lab, seed: int, root: Path, *, soak: bool = False, tag: str = "") -> Round:
    """One round, and what must be true afterwards. Raises AssertionError with the whole story."""
    from tests.lab.aftermath import look, not_over

    schedule = Schedule.of(seed, soak=soak)
    with durable_person(lab, root) as person:
        tried = Round(schedule, lab, person, tag=f"s{seed}{tag}")
        try:
            tried.run()
            look(tried)
        except AssertionError as error:
            left = not_over(tried)
            tried.wipe()
            raise AssertionError(
                "\n".join([str(error), tried.story(), *left, f"again: python -m tests.lab.durability {seed}"])
            ) from error
        finally:
            tried.close()
    return tried


def main() -> int:
    """Try seeds, and tell what became of each."""
    parser = argparse.ArgumentParser(description="rounds of everything going wrong")
    parser.add_argument("seed", type=int, nargs="+")
    parser.add_argument("--soak", action="store_true", help="200 executions, more faults, longer ones")
    parser.add_argument("--times", type=int, default=1, help="each so often")
    options = parser.parse_args()
    failed = 0
    with durable_lab() as lab, tempfile.TemporaryDirectory() as folder:
        for seed in options.seed:
            for turn in range(options.times):
                began = time.monotonic()
                try:
                    tried = try_seed(
                        lab, seed, Path(folder) / f"{seed}-{turn}", soak=options.soak, tag=f"t{turn}"
                    )
                except AssertionError as error:
                    failed += 1
                    print(error, flush=True)
                else:
                    print(
                        f"seed {seed}: well in {time.monotonic() - began:.1f} s, {tried.starts} clients",
                        flush=True,
                    )
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main())
