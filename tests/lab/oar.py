"""OAR 2.5.9, Debian's, on the hosts of a lab: server, database and frontend on h1, every host a node of two cores.

    with Lab(2) as lab, OarServer(lab) as oar:
        oar.run("oarsub 'sleep 60'")            # on h1, as bob: OAR takes nothing from root

Nothing is installed: Debian's packages are unpacked into build/oar (2 MB) and laid over /usr of the lab's hosts only, with an
account `oar` that only they have. The database is the machine's own PostgreSQL, run by that account in memory of h1. Jobs run
without cpusets, as the lab's hosts have no control groups that OAR 2.5 knows.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

from tests.lab.debs import unpack
from tests.lab.hosts import Host, Lab
from tests.lab.machine import wait_until

ROOT = Path(__file__).resolve().parents[2]
#: Where the packages are unpacked.
PREFIX = ROOT / "build" / "oar"
_PACKAGES = (
    "liboar-perl", "oar-common", "oar-server", "oar-server-pgsql", "oar-node", "oar-user", "oar-user-pgsql",
    "libdbi-perl", "libdbd-pg-perl", "libsort-versions-perl", "libjson-perl",
)  # fmt: skip
#: Account that only the lab's hosts have.
UID = 4900
_FOR_PEOPLE = ("oarnodes", "oardel", "oarstat", "oarsub", "oarhold", "oarresume", "oarsh")
_FOR_OAR = ("Almighty", "oarnotify", "oarproperty", "oarnodesetting", "oarremoveresource")

_SETTINGS = {
    "DB_HOSTNAME": "h1",
    "DB_BASE_PASSWD": "oar",
    "DB_BASE_PASSWD_RO": "oar",
    "SERVER_HOSTNAME": "h1",
    "DEPLOY_HOSTNAME": "h1",
    "COSYSTEM_HOSTNAME": "h1",
    "LOG_FILE": "/run/oar/oar.log",
    "SCHEDULER_JOB_SECURITY_TIME": "1",
    "FINAUD_FREQUENCY": "0",
    # Jobs have names of cpusets, which oarsh asks for, but no cpusets: what would make them does nothing.
    "JOB_RESOURCE_MANAGER_PROPERTY_DB_FIELD": "cpuset",
    "JOB_RESOURCE_MANAGER_FILE": "/etc/oar/nothing.pl",
    "CPUSET_PATH": "",
}


def unavailable() -> str | None:
    """Why there is no OAR here, or None. Unpacks it the first time."""
    if shutil.which("pg_ctlcluster") is None:
        return "OAR needs PostgreSQL: apt-get install postgresql"
    if (PREFIX / "usr/sbin/Almighty").exists():
        return None
    return unpack("OAR", _PACKAGES, PREFIX)


class OarServer:
    """OAR on a lab's hosts. `start`, then `run`; it ends with the hosts' processes."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        #: What is laid over the hosts' /usr, and what they share.
        self.folder = lab.folder / "oar"

    @property
    def server(self) -> Host:
        """The host of the server, which is the frontend as well."""
        return self.lab.hosts[0]

    def start(self) -> OarServer:
        """Bring it up: every node is alive on return."""
        self._copy()
        for host in self.lab.hosts:
            self._equip(host)
        self._start_database()
        self.server.run("/usr/sbin/oar-server")
        wait_until("the server", lambda: "Almighty" in self.server.run("ps ax").stdout, 20)
        for name in ("host", "cpu", "core"):
            self.server.run(f"oarproperty -a {name} {'-c' if name == 'host' else ''}", timeout_s=60)
        core = 0
        for host in self.lab.hosts:
            for _ in range(2):
                core += 1
                self.server.run(
                    f"oarnodesetting -a -h {host.name} -p host={host.name} -p cpu={core} -p core={core} -p cpuset={core}",
                    timeout_s=60,
                )
        wait_until(
            "every node", lambda: self.run("oarnodes -s").stdout.count("Alive") >= 2 * len(self.lab.hosts), 30
        )
        return self

    def stop(self) -> None:
        """Kill its daemons and what runs in its jobs."""
        for host in self.lab.hosts:
            for word in ("Almighty", "postgres", "oar"):
                for pid in host.pids_matching(word):
                    host.kill(pid)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> OarServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(
        self, command: str, *, check: bool = True, timeout_s: float = 30, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the frontend, as bob."""
        return self.server.run(f"cd ~; {command}", check=check, timeout_s=timeout_s, input=input, user="bob")

    def log(self) -> str:
        """What the server logged."""
        file = self.server.path("/run/oar/oar.log")
        return file.read_text(errors="replace") if file.exists() else ""

    def _copy(self) -> None:
        """Copy the programs, with the rights that installing them gives."""
        self.folder.mkdir()
        self.folder.chmod(0o755)
        shutil.copytree(PREFIX / "usr", self.folder / "usr", symlinks=True)
        for name, mode in (*((f"bin/{n}", 0o6755) for n in _FOR_PEOPLE), *((f"sbin/{n}", 0o6750) for n in _FOR_OAR),
                           ("lib/oar/oardodo/oardodo", 0o6750)):  # fmt: skip
            program = self.folder / "usr" / name
            shutil.chown(program, 0, UID)
            program.chmod(mode)
        home = self.folder / "home"
        (home / ".ssh").mkdir(parents=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", home / ".ssh/id_rsa"], check=True)
        key = (home / ".ssh/id_rsa.pub").read_text()
        (home / ".ssh/authorized_keys").write_text(f'environment="OAR_KEY=1" {key}')
        (home / ".ssh/config").write_text(
            "Host *\nForwardX11 no\nStrictHostKeyChecking no\nPasswordAuthentication no\n"
        )
        profile = 'export PATH="/usr/lib/oar/oardodo:$PATH"\n'
        for name in (".bash_profile", ".bashrc", ".batch_job_bashrc"):
            (home / name).write_text(profile if "batch" not in name else "")
        for path in (home, *home.rglob("*")):
            shutil.chown(path, UID, UID)
            path.chmod(0o755 if path.is_dir() and path.name != ".ssh" else 0o700 if path.is_dir() else 0o600)
        etc = self.folder / "etc"
        shutil.copytree(PREFIX / "usr/share/oar/oar-server", etc)
        settings = (PREFIX / "usr/share/oar/oar-common/oar.conf").read_text().splitlines()
        kept = [line for line in settings if line.split("=")[0].lstrip("#") not in _SETTINGS]
        kept += [f'{key}="{value}"' for key, value in _SETTINGS.items() if value]
        (etc / "oar.conf").write_text("\n".join(kept) + "\n")
        shutil.chown(etc / "oar.conf", UID, 0)
        (etc / "oar.conf").chmod(0o600)
        (etc / "nothing.pl").write_text("exit 0;\n")
        for name in ("prologue", "epilogue", "server_prologue", "server_epilogue"):
            (etc / name).write_text("#!/bin/sh\nexit 0\n")
            (etc / name).chmod(0o755)
        sshd = (PREFIX / "usr/share/oar/oar-node/sshd_config").read_text()
        gone = ("UsePrivilegeSeparation", "KeepAlive", "Protocol", "XAuthLocation")
        lines = [line for line in sshd.splitlines() if not line.startswith(gone)]
        (etc / "sshd_config").write_text("\n".join([*lines, "UsePAM no", "StrictModes no"]) + "\n")
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", etc / "oar_ssh_host_rsa_key"], check=True
        )

    def _equip(self, host: Host) -> None:
        for file, line in (
            ("passwd", f"oar:x:{UID}:{UID}::/var/lib/oar:/usr/lib/oar/oarsh_shell"),
            ("shadow", "oar:*:19000:0:99999:7:::"),
            ("group", f"oar:x:{UID}:"),
        ):
            with (host.etc / file).open("a") as writing:
                writing.write(line + "\n")
        for part in ("bin", "sbin", "lib", "share"):
            host.run(f"mount -t overlay overlay -o lowerdir={self.folder}/usr/{part}:/usr/{part} /usr/{part}")
        # What is below /var/lib can be written through this one only.
        host.run(f"mkdir -p /run/oar-home && mount --bind {self.folder}/home /run/oar-home")
        # Places to mount on, without making any on this machine; what the lab has put over /etc comes on top again.
        for part in ("etc", "var/lib"):
            (PREFIX / "places" / part / "oar").mkdir(parents=True, exist_ok=True)
            host.run(f"mount -t overlay overlay -o lowerdir={PREFIX}/places/{part}:/{part} /{part}")
        for name in ("passwd", "shadow", "group", "hosts", "hostname"):
            host.run(f"mount --bind {host.etc}/{name} /etc/{name}")
        host.run(f"mount --bind {self.folder}/etc /etc/oar && mount --bind /run/oar-home /var/lib/oar")
        host.run(f"mkdir -p /run/oar /run/sshd && chown {UID}:{UID} /run/oar && chmod 755 /run/oar")
        host.run(
            "exec /usr/sbin/sshd -f /etc/oar/sshd_config -o PidFile=/run/oar/sshd.pid -E /run/oar/sshd.log"
        )

    def _start_database(self) -> None:
        binaries = next(Path("/usr/lib/postgresql").glob("*/bin"))
        self.server.run(f"install -d -o {UID} -g {UID} /run/oar/db")
        as_oar = f"setpriv --reuid {UID} --regid {UID} --clear-groups env HOME=/run/oar"
        self.server.run(f"{as_oar} {binaries}/initdb -D /run/oar/db -U oar -A trust -N", timeout_s=60)
        options = shlex.quote(
            "-c fsync=off -c listen_addresses=* -c unix_socket_directories=/run/oar -c shared_buffers=8MB"
        )
        self.server.run("echo 'host all all all trust' >> /run/oar/db/pg_hba.conf")
        self.server.run(
            f"{as_oar} {binaries}/pg_ctl -D /run/oar/db -w -l /run/oar/db.log -o {options} start",
            timeout_s=60,
        )
        psql = f"{binaries}/psql -q -h /run/oar -U oar"
        self.server.run(f"{psql} -d postgres -c 'create database oar' -c 'create role oar_ro login'")
        for file in ("pg_structure.sql", "default_data.sql", "pg_default_admission_rules.sql"):
            self.server.run(f"{psql} -d oar -f /usr/lib/oar/database/{file}", timeout_s=60)
        self.server.run(f"{psql} -d oar -c 'grant select on all tables in schema public to oar_ro'")
