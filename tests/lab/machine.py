"""One machine of the lab: a process tree in namespaces of its own.

Own network, mount, UTS, IPC, PID and cgroup namespace; own host name, `/root`, `/home`, `/tmp`, `/run`,
`/dev/shm`, `/usr/local/sbin`, accounts and boot id. The rest of the file system is the real one. Process 1
is a few lines of Python that reap orphans and read a pipe held by the lab: when the lab's process ends, however it ends,
the pipe closes, process 1 ends and the kernel removes everything in the namespaces.

What runs on the machine (sshd) and how it is reached is `hosts.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from tests.lab.claims import cgroup_roots

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Accounts besides root: name -> (uid, login shell).
ACCOUNTS = {
    "sue": (4001, "/bin/sh"),
    "bob": (4002, "/bin/bash"),
    "kim": (4003, "/bin/csh"),
    "finn": (4004, "/usr/bin/fish"),
    "nora": (4005, "/usr/sbin/nologin"),
}

_INIT = """
import os, signal
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError: pass
signal.signal(signal.SIGCHLD, reap)
while os.read(0, 1): pass
"""

_SETUP = """set -e
exec 2>&1
hostname {name}
bind() {{ mount --bind "$1" "$2"; }}
for file in passwd shadow group hosts hostname; do bind {etc}/$file /etc/$file; done
bind {folder}/root /root
bind {folder}/home /home
bind {folder}/sbin /usr/local/sbin
bind {folder}/boot_id /proc/sys/kernel/random/boot_id
mount -t tmpfs -o mode=1777,size=4g tmpfs /tmp
mount -t tmpfs -o mode=0755,size=64m tmpfs /run
mount -t tmpfs -o mode=1777,size=1g tmpfs /dev/shm
mkdir -p /run/sshd /run/lock
{cgroups}
cd /
echo booted
read go
ip -batch - <<'END'
{network}
END
echo ready
exec /usr/bin/python3 -I -S -c {init}
"""


@dataclass(frozen=True)
class Process:
    """A process of a machine."""

    #: Pid as the machine sees it.
    pid: int
    #: Pid as we see it.
    outer_pid: int
    argv: tuple[str, ...]
    state: str

    @property
    def command(self) -> str:
        """Command line, for matching and messages."""
        return " ".join(self.argv)


class Machine:
    """A namespaced machine. `boot`, use, `power_off`; home folders survive, everything else is new at each boot."""

    def __init__(
        self, name: str, folder: Path, cgroup: str, *, bridge: str, veth: str, network: list[str]
    ) -> None:
        self.name = name
        self.folder = folder
        self._cgroup = cgroup
        self._bridge = bridge
        self.veth = veth
        self._network = network
        self._unshare: subprocess.Popen[str] | None = None
        #: Pid of process 1, as we see it; 0 when powered off.
        self.init_pid = 0
        self._namespace = ""

    @property
    def etc(self) -> Path:
        """Files bound over those of /etc, plus sshd's."""
        return self.folder / "etc"

    def boot(self) -> None:
        """Start process 1 with fresh namespaces and plug the machine into the bridge."""
        (self.folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        joins, binds = [], []
        for root in cgroup_roots():
            group = root / self._cgroup
            group.mkdir(parents=True, exist_ok=True)
            for parent in (group.parent, group):
                for knob in ("cpuset.cpus", "cpuset.mems"):
                    if (parent / knob).exists() and not (parent / knob).read_text().strip():
                        (parent / knob).write_text((parent.parent / knob).read_text())
            joins.append(f"echo $$ > {group}/cgroup.procs")
            binds.append(f"bind {group} {root}")
        setup = _SETUP.format(
            name=self.name, etc=self.etc, folder=self.folder, cgroups="\n".join(binds),
            network="\n".join(self._network), init=shlex.quote(_INIT),
        )  # fmt: skip
        namespaces = "--net --mount --uts --ipc --pid --cgroup --fork --kill-child --mount-proc"
        command = "; ".join([*joins, f"exec unshare {namespaces} /bin/sh -c {shlex.quote(setup)}"])
        self._unshare = subprocess.Popen(
            ["/bin/sh", "-c", command], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}, start_new_session=True,
        )  # fmt: skip
        self._expect("booted")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        self.init_pid = int(children[0])
        self._namespace = os.readlink(f"/proc/{self.init_pid}/ns/pid")
        # A machine keeps its card over a reboot: with another one, nobody finds it before what they remember of the old one expires.
        card = hashlib.sha256(self.veth.encode()).hexdigest()
        card = "02:" + ":".join(card[at : at + 2] for at in range(0, 10, 2))
        ip(f"link add {self.veth} type veth peer name eth0 address {card} netns {self.init_pid}",
           f"link set {self.veth} master {self._bridge} up")  # fmt: skip
        self._say("go")
        self._expect("ready")

    def power_off(self) -> None:
        """Pull the plug: the link goes first, so that nobody is told, then every process is gone."""
        if self._unshare is None:
            return
        subprocess.run(["ip", "link", "del", self.veth], capture_output=True, check=False)
        if self.init_pid:
            os.kill(self.init_pid, signal.SIGKILL)
        assert self._unshare.stdin is not None
        assert self._unshare.stdout is not None
        self._unshare.stdin.close()
        self._unshare.wait(10)
        self._unshare.stdout.close()
        self._unshare, self.init_pid = None, 0

    def run(self, command: str, *, check: bool = True, input: str | None = None, timeout_s: float = 30,
            user: str | None = None) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a shell command on the machine as root (or `user`), without ssh, and return what it printed."""
        argv = [*self._enter(), "/bin/sh", "-c", command]
        if user is not None:
            argv = [*self._enter(), "/usr/sbin/runuser", "-u", user, "--", "/bin/sh", "-c", command]
        home = "/root" if user is None else f"/home/{user}"
        done = subprocess.run(
            argv, input=input, stdin=subprocess.DEVNULL if input is None else None, text=True,
            capture_output=True, timeout=timeout_s, env={"PATH": PATH, "HOME": home, "LANG": "C.UTF-8"}, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f"{self.name}: {command!r} exited {done.returncode}: {done.stderr}{done.stdout}"
            )
        return done

    def path(self, inside: str) -> Path:
        """Where we see a path of the machine; valid until it reboots."""
        return Path(f"/proc/{self.init_pid}/root/{inside.lstrip('/')}")

    def processes(self) -> list[Process]:
        """Every process on the machine, process 1 included."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                if os.readlink(f"/proc/{entry}/ns/pid") != self._namespace:
                    continue
                status = Path(f"/proc/{entry}/status").read_text()
                argv = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            words = (
                tuple(os.fsdecode(word) for word in argv.rstrip(b"\0").split(b"\0"))
                if argv
                else (fields["Name"],)
            )
            found.append(Process(int(fields["NSpid"].split()[-1]), int(entry), words, fields["State"][0]))
        return sorted(found, key=lambda process: process.pid)

    def pids_matching(self, text: str) -> list[int]:
        """Pids (as the machine sees them) whose command line holds `text`."""
        return [process.pid for process in self.processes() if text in process.command]

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Signal a process of the machine by its pid there. Gone already is fine."""
        for process in self.processes():
            if process.pid == pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.outer_pid, number)

    def bind(self, source: str | Path, target: str) -> None:
        """Put a file or folder of ours over one of the machine's, until `unbind` or reboot.

        `bind("/bin/false", "/usr/bin/python3.11")` breaks its python; `/bin/sh` hides nothing it needs itself.
        """
        self.run(f"mount --bind {shlex.quote(str(source))} {shlex.quote(target)}")

    def unbind(self, target: str) -> None:
        """Take the uppermost mount off `target`."""
        self.run(f"umount {shlex.quote(target)}")

    def fill_disk(self, folder: str, size: str = "1m", *, inodes: int = 0, leave: str = "0") -> None:
        """Mount a tmpfs of `size` over `folder` (made if missing) and fill all but `leave` bytes of it."""
        options = f"size={size},mode=0700" + (f",nr_inodes={inodes}" if inodes else "")
        where = shlex.quote(folder)
        self.run(
            f"mkdir -p {where}; mount -t tmpfs -o {options} tmpfs {where};"
            f"head -c {leave} /dev/zero > {where}/.leave;"
            f"cat /dev/zero > {where}/.full 2>/dev/null; rm {where}/.leave; true"
        )

    def free_disk(self, folder: str) -> None:
        """Make room again on what `fill_disk` filled."""
        self.run(f"rm -f {shlex.quote(folder)}/.full")

    def in_network(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run one of our programs inside the machine's network namespace only."""
        return subprocess.run(
            ["nsenter", "-t", str(self.init_pid), "-n", *argv], text=True, capture_output=True, check=True
        )

    def _enter(self) -> list[str]:
        if not self.init_pid:
            raise AssertionError(f"{self.name} is powered off")
        return ["nsenter", "-t", str(self.init_pid), "-m", "-u", "-i", "-n", "-p", "-C", "--wd=/"]

    def _say(self, line: str) -> None:
        assert self._unshare is not None
        assert self._unshare.stdin is not None
        self._unshare.stdin.write(line + "\n")
        self._unshare.stdin.flush()

    def _expect(self, word: str) -> None:
        assert self._unshare is not None
        assert self._unshare.stdout is not None
        line = self._unshare.stdout.readline().strip()
        if line != word:
            rest = self._unshare.stdout.read() if self._unshare.poll() is not None else ""
            raise RuntimeError(f"{self.name} did not boot: {line}\n{rest}")


def ip(*lines: str) -> None:
    """Run commands of `ip` in our own network namespace."""
    subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True, capture_output=True
    )


def write_accounts(etc: Path) -> None:
    """Write passwd, shadow and group: the system's own plus ACCOUNTS, none with a password."""
    passwd, shadow, group = (
        Path(f"/etc/{name}").read_text().splitlines() for name in ("passwd", "shadow", "group")
    )
    # Root's password is "impossible" instead of "locked": sshd refuses every login to a locked account.
    shadow = ["root:*:19000:0:99999:7:::" if line.startswith("root:") else line for line in shadow]
    passwd = ["root:x:0:0:root:/root:/bin/bash" if line.startswith("root:") else line for line in passwd]
    for name, (uid, shell) in ACCOUNTS.items():
        passwd.append(f"{name}:x:{uid}:{uid}:{name}:/home/{name}:{shell}")
        shadow.append(f"{name}:*:19000:0:99999:7:::")
        group.append(f"{name}:x:{uid}:")
    for file, lines in (("passwd", passwd), ("shadow", shadow), ("group", group)):
        (etc / file).write_text("\n".join(lines) + "\n")
        (etc / file).chmod(0o640 if file == "shadow" else 0o644)


def wait_until(what: str, true: object, timeout_s: float = 30) -> None:
    """Poll the callable `true` every 5 ms until it holds. Raises AssertionError naming `what`."""
    assert callable(true)
    end = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout_s} s for {what}")
        time.sleep(0.005)
