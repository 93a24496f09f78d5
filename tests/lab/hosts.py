"""Several hosts on one machine: network namespaces, each with its own real sshd. Needs root, iproute2, openssh-server.

In a test (plugin `tests/lab/plugin.py`, marker `lab`)::

    @pytest.mark.lab
    def test_something(lab):                  # session-wide, three hosts h1 h2 h3: leave them as found
        assert lab.ssh("h1", "hostname").stdout == "h1\\n"

    @pytest.mark.lab
    def test_something_rough(make_lab):       # fresh hosts, for tests that cut, fill, reboot
        lab = make_lab(1, MaxSessions=1)

By hand: `with Lab(count=3) as lab: ...`, or `make lab`. Several labs may be up at once; whatever a crashed test run left
is removed by the next one (`claims.py`).

What there is:

- `lab.ssh_config`: a file for `ssh -F`, with `Host h1`, `h2`, ... (user root, key login, known_hosts with the right keys),
  `behind2` (h2 at an address that only h1 reaches, ProxyJump h1) and `behind3` (h3, through behind2, so two hops).
  `lab.add_alias(name, Key=value...)` adds more, `lab.delay_proxy(host, delay_s, rate)` one that is far away.
- Accounts with the same key: root, sue (sh), bob (bash), kim (csh), finn (fish), nora (nologin).
- `host.run("cmd")` runs as root on the host without ssh; `.home`, `.path("/tmp/x")` are its files seen from here;
  `.processes()`, `.pids_matching(text)`, `.kill(pid)` use the host's own pids; `.sshd_log()`.
- Faults: `.cut()`, `.drop_packets()`, `.lose_packets(0.05)`, `.drop_after(bytes)`, all ended by `.restore()`;
  `.reset_connections()`; `.stop_sshd(sessions=True)`, `.start_sshd(MaxSessions=1)`, `.change_host_key()`;
  `.reboot()` (processes, /tmp, /run gone, new boot id; home kept); `.fill_disk("/root/x", "1m")`; `.bind(ours, theirs)`.
- `/usr/local/sbin` of a host (first on PATH) is `host.sbin`; `.add_gpus()` puts a stub nvidia-smi there.
- Control groups: a host sees a tree of its own, in which its sessions live and may make groups.

A host's python is `/usr/bin/python3`; it has no route to the internet, the clock and the kernel are shared.
"""

from __future__ import annotations

import atexit
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.lab import claims
from tests.lab.machine import ACCOUNTS, Machine, ip, wait_until, write_accounts

_SSHD = {
    "Port": "22",
    "LogLevel": "VERBOSE",
    "UsePAM": "no",
    "PermitRootLogin": "prohibit-password",
    "PasswordAuthentication": "no",
    "KbdInteractiveAuthentication": "no",
    "PrintMotd": "no",
    "AcceptEnv": "LANG LC_*",
    "Subsystem": "sftp /usr/lib/openssh/sftp-server",
    "PidFile": "/run/sshd.pid",
}

_NVIDIA_SMI = """#!/bin/sh
case "$*" in
*--query-gpu=uuid*csv*noheader*)
    echo GPU-aaaaaaaa-0000-0000-0000-000000000000
    echo GPU-bbbbbbbb-1111-1111-1111-111111111111 ;;
*index,uuid,memory.total*csv*noheader*)
    echo "0, GPU-aaaaaaaa-0000-0000-0000-000000000000, 81559 MiB"
    echo "1, GPU-bbbbbbbb-1111-1111-1111-111111111111, 81559 MiB" ;;
*-L*)
    echo "GPU 0: NVIDIA Lab 80GB (UUID: GPU-aaaaaaaa-0000-0000-0000-000000000000)"
    echo "GPU 1: NVIDIA Lab 80GB (UUID: GPU-bbbbbbbb-1111-1111-1111-111111111111)" ;;
*) echo "nvidia-smi of the lab: not known: $*" >&2; exit 2 ;;
esac
"""


class Host(Machine):
    """A machine with sshd. See the module's docstring for what can be done to it."""

    port = 22

    def __init__(self, lab: Lab, index: int, options: dict[str, object]) -> None:
        number = lab.number
        self.alias = f"h{index}"
        #: Address on the outer network, which everybody reaches.
        self.address = f"10.213.{number}.{10 + index}"
        network = ["link set lo up", "link set eth0 up", f"addr add {self.address}/24 dev eth0"]
        #: Addresses on inner networks: 10.214.N joins h1 and h2, 10.215.N joins h2 and h3.
        self.inner = [
            f"10.{213 + link}.{number}.{10 + index}"
            for link in (index - 1, index)
            if 1 <= link <= 2 and index <= 3
        ]
        network += [f"addr add {address}/24 dev eth0" for address in self.inner]
        super().__init__(
            self.alias, lab.folder / self.alias, f"olab-{number}/{self.alias}",
            bridge=f"olab-{number}", veth=f"olab-{number}-{index}", network=network,
        )  # fmt: skip
        self.sshd_options = dict(options)
        self._lab = lab

    @property
    def home(self) -> Path:
        """Root's home, as seen from here. Kept over reboots."""
        return self.folder / "root"

    @property
    def sbin(self) -> Path:
        """What is /usr/local/sbin on the host, as seen from here."""
        return self.folder / "sbin"

    def home_of(self, account: str) -> Path:
        """An account's home, as seen from here."""
        return self.home if account == "root" else self.folder / "home" / account

    def build(self) -> None:
        """Make the host's files, boot it, start its sshd."""
        for name in ("root", "home", "sbin", "etc"):
            (self.folder / name).mkdir(parents=True)
        self.home.chmod(0o700)
        for account, (uid, _) in ACCOUNTS.items():
            home = self.home_of(account)
            home.mkdir(mode=0o755)
            shutil.chown(home, uid, uid)
        write_accounts(self.etc)
        (self.etc / "hostname").write_text(self.name + "\n")
        names = "".join(f"10.213.{self._lab.number}.{10 + i} h{i}\n" for i in range(1, self._lab.count + 1))
        (self.etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{names}")
        (self.etc / "authorized_keys").write_bytes(self._lab.key.with_suffix(".pub").read_bytes())
        self._make_key()
        self.boot()
        self.start_sshd()

    @property
    def public_key(self) -> str:
        """The host key in use now: type and base64."""
        return " ".join((self.etc / "host_key.pub").read_text().split()[:2])

    def start_sshd(self, **options: object) -> None:
        """Start sshd; `options` (sshd_config keys; `extra=["line", ...]`) are kept for later starts. Ready on return."""
        self.sshd_options.update(options)
        settings = {
            **_SSHD,
            "HostKey": self.etc / "host_key",
            "AuthorizedKeysFile": self.etc / "authorized_keys",
        }
        extra = self.sshd_options.get("extra", [])
        assert isinstance(extra, Iterable)
        settings.update({key: value for key, value in self.sshd_options.items() if key != "extra"})
        lines = [f"{key} {value}" for key, value in settings.items()] + list(extra)
        (self.etc / "sshd_config").write_text("\n".join(lines) + "\n")
        joins = "".join(f"echo $$ > {root}/cgroup.procs;" for root in claims.cgroup_roots())
        # A fresh session and no descriptor of ours: a daemon started by hand on a host looks like this as well.
        self.run(
            f"rm -f /run/sshd.pid; {joins} exec /usr/sbin/sshd -f {self.etc}/sshd_config -E {self.etc}/sshd.log"
        )
        # sshd writes its pid after it listens.
        wait_until(f"sshd of {self.name}", lambda: self._sshd_pid() > 0)

    def stop_sshd(self, *, sessions: bool = False) -> None:
        """Kill the listener; with `sessions` every sshd process of the host, and so every connection."""
        listener = self._sshd_pid()
        for process in self.processes():
            if process.pid == listener or (sessions and process.argv[0].startswith("sshd:")):
                self.kill(process.pid)
        wait_until("sshd's end", lambda: listener not in [process.pid for process in self.processes()])
        self.path("/run/sshd.pid").unlink(missing_ok=True)

    def sshd_log(self) -> str:
        """All that sshd logged so far (LogLevel VERBOSE)."""
        return (self.etc / "sshd.log").read_text(errors="replace")

    def change_host_key(self) -> None:
        """New host key, sshd restarted. `lab.trust()` would make it known."""
        self.stop_sshd()
        self._make_key()
        self.start_sshd()

    def reboot(self, *, sshd: bool = True) -> None:
        """Pull the plug and boot again: new PID namespace and boot id, /tmp and /run empty, homes kept."""
        self.power_off()
        self.boot()
        if sshd:
            self.start_sshd()

    def cut(self) -> None:
        """Take the link down, until `restore`."""
        ip(f"link set {self.veth} down")

    def restore(self) -> None:
        """End every fault of the network."""
        ip(f"link set {self.veth} up")
        self.in_network("iptables", "-F")
        subprocess.run(
            ["nsenter", "-t", str(self.init_pid), "-n", "tc", "qdisc", "del", "dev", "eth0", "root"],
            capture_output=True, check=False,
        )  # fmt: skip

    def drop_packets(self) -> None:
        """Drop every packet both ways, silently, until `restore`."""
        self.in_network("iptables", "-I", "INPUT", "-j", "DROP")
        self.in_network("iptables", "-I", "OUTPUT", "-j", "DROP")

    def drop_after(self, size_bytes: int) -> None:
        """Drop the packets of each connection that has carried so many bytes from the host, until `restore`."""
        match = f"-m connbytes --connbytes {size_bytes}: --connbytes-dir reply --connbytes-mode bytes"
        self.in_network("iptables", "-I", "INPUT", *match.split(), "-j", "DROP")

    def lose_packets(self, probability: float) -> None:
        """Lose packets at random both ways, until `restore`."""
        match = f"-m statistic --mode random --probability {probability}"
        for chain in ("INPUT", "OUTPUT"):
            self.in_network("iptables", "-I", chain, *match.split(), "-j", "DROP")

    def limit_rate(self, rate: str) -> None:
        """Slow what leaves the host down to `rate` as tc writes it ("1mbit"), until `restore`."""
        self.in_network(*f"tc qdisc replace dev eth0 root tbf rate {rate} burst 32kbit latency 400ms".split())

    def reset_connections(self) -> None:
        """Reset (RST) every connection to sshd that is open now."""
        self.in_network("ss", "-K", "sport", "=", f":{self.port}")

    def add_gpus(self) -> None:
        """Put a stub nvidia-smi that shows two GPUs on root's PATH."""
        stub = self.sbin / "nvidia-smi"
        stub.write_text(_NVIDIA_SMI)
        stub.chmod(0o755)

    def _make_key(self) -> None:
        key = self.etc / "host_key"
        for file in (key, key.with_suffix(".pub")):
            file.unlink(missing_ok=True)
        keygen(key)

    def _sshd_pid(self) -> int:
        try:
            return int(self.path("/run/sshd.pid").read_text())
        except (OSError, ValueError):
            return 0


class Lab:
    """Hosts h1..hN and an ssh configuration to reach them. Use with `with`, or `start` and `stop`."""

    def __init__(self, count: int = 3, **sshd_options: object) -> None:
        self.count = count
        self._sshd_options = sshd_options
        self.number = -1
        self.hosts: list[Host] = []
        self._aliases: dict[str, dict[str, object]] = {}
        self._trusted: dict[str, str] = {}
        self._proxies: list[subprocess.Popen[str]] = []

    @property
    def folder(self) -> Path:
        """Where the lab keeps its files; gone after `stop`."""
        return claims.ROOT / str(self.number)

    @property
    def key(self) -> Path:
        """The private key that every account accepts."""
        return self.folder / "id_ed25519"

    @property
    def ssh_config(self) -> Path:
        """For `ssh -F` and ORCHESTRA_SSH_CONFIG."""
        return self.folder / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        """Named as UserKnownHostsFile by `ssh_config`."""
        return self.folder / "known_hosts"

    def start(self) -> Lab:
        """Build all hosts; they accept logins on return. Cleans up after itself when it fails."""
        self.number = claims.claim()
        atexit.register(self.stop)
        try:
            keygen(self.key)
            bridge = f"olab-{self.number}"
            ip(
                f"link add {bridge} address 02:00:00:00:{self.number:02x}:01 type bridge",
                f"addr add 10.213.{self.number}.1/24 dev {bridge}",
                f"link set {bridge} up",
            )
            self.hosts = [Host(self, i, self._sshd_options) for i in range(1, self.count + 1)]
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(Host.build, self.hosts))
            for host in self.hosts:
                self._aliases[host.alias] = {"HostName": host.address, "Port": host.port}
            if self.count >= 2:
                self._aliases["behind2"] = {"HostName": self.hosts[1].inner[0], "ProxyJump": "h1"}
            if self.count >= 3:
                self._aliases["behind3"] = {"HostName": self.hosts[2].inner[0], "ProxyJump": "behind2"}
            self._write_config()
            self.trust()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Remove the lab: processes, network, files. Safe to call twice."""
        atexit.unregister(self.stop)
        for proxy in self._proxies:
            proxy.kill()
            proxy.communicate()
        self._proxies.clear()
        for host in self.hosts:
            host.power_off()
        self.hosts.clear()
        if self.number >= 0:
            claims.remove(self.number)
            self.number = -1

    def __enter__(self) -> Lab:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def host(self, alias: str) -> Host:
        """The host of that name."""
        return next(host for host in self.hosts if host.alias == alias)

    def trust(self) -> None:
        """Write the current keys of all hosts to `known_hosts`."""
        self._trusted.update(
            {address: host.public_key for host in self.hosts for address in (host.address, *host.inner)}
        )
        self.known_hosts.write_text("".join(f"{name} {key}\n" for name, key in self._trusted.items()))

    def add_alias(self, name: str, **options: object) -> str:
        """Add `Host name` with ssh_config options; returns the name."""
        self._aliases[name] = options
        self._write_config()
        return name

    def delay_proxy(self, host: str, delay_s: float, rate: float | None = None) -> str:
        """Return an alias of `host` through a proxy that delays bytes by `delay_s` each way (`rate`: bytes/s)."""
        target = self.host(host)
        proxy = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("proxy.py")),
             target.address, str(target.port), str(delay_s), str(rate or 0)],
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._proxies.append(proxy)
        assert proxy.stdout is not None
        port = int(proxy.stdout.readline())
        self._trusted[f"[127.0.0.1]:{port}"] = target.public_key
        self.trust()
        return self.add_alias(f"{host}-far{len(self._proxies)}", HostName="127.0.0.1", Port=port)

    def ssh(
        self, host: str, command: str, *, check: bool = True, timeout_s: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run a command through the real ssh client."""
        return subprocess.run(
            ["ssh", "-F", str(self.ssh_config), host, command], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=check, timeout=timeout_s,
        )  # fmt: skip

    def _write_config(self) -> None:
        lines: list[str] = []
        for name, options in self._aliases.items():
            lines += [f"Host {name}", *(f"    {key} {value}" for key, value in options.items()), ""]
        lines += [
            "Host *",
            "    User root",
            f"    IdentityFile {shlex.quote(str(self.key))}",
            "    IdentitiesOnly yes",
            "    IdentityAgent none",
            f"    UserKnownHostsFile {self.known_hosts}",
            "    GlobalKnownHostsFile /dev/null",
            "    BatchMode yes",
            "    ControlPath none",
        ]
        self.ssh_config.write_text("\n".join(lines) + "\n")


def keygen(path: Path) -> None:
    """Make an ed25519 key pair without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path)], check=True)


def unavailable() -> str | None:
    """Why no lab can be built here; None when it can."""
    import os

    if os.geteuid() != 0:
        return "the lab needs root"
    programs = (
        "/usr/sbin/sshd",
        "/usr/bin/ssh",
        "/usr/bin/python3",
        "ip",
        "iptables",
        "ss",
        "unshare",
        "nsenter",
        "ssh-keygen",
    )
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        return f"the lab needs {', '.join(missing)} (apt-get install openssh-server openssh-client iproute2 iptables python3 util-linux)"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None
