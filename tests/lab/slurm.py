"""A real Slurm on the lab's hosts: slurmctld on h1, the frontend, a slurmd on each other host.

In a test (plugin `tests/lab/plugin.py`, marker `lab`)::

    @pytest.mark.lab
    def test_something(slurm_lab):            # session-wide, h1 and three nodes: leave the queue empty
        assert slurm_lab.run("sinfo -h -o %D").stdout == "3\\n"

    @pytest.mark.lab
    def test_something_rough(make_slurm_lab): # a cluster of one's own, for tests that kill, drain, restart
        cluster = make_slurm_lab(2, MinJobAge=2)

By hand: `with SlurmCluster(Lab(4)) as cluster: ...`. A node's slurmd is on the same machine as its sshd, so `ssh h2` and a step on
node h2 see the same processes. `cluster.lab.ssh_config` has aliases `n-h2`, ... which go through the frontend (ProxyJump).

- Partitions: `main` (default, at most a day), `high` (takes nodes from `main`, which is requeued), `short` (at most a minute),
  `closed` (down), `admins` (nobody's). Nodes have `cpus` CPUs and 4000 MB, whatever the machine has; with `gpus` so many of gres/gpu.
- Authentication is auth/none: inside the namespaces everybody is who they say. With `accounting=True` there is a slurmdbd with a
  database of its own, the account `lab` of root and bob, and QOS and limits are enforced; else sacct and sacctmgr say that there
  is none. With `confined=True` steps are confined and ended by control groups, as on most clusters; it needs version 1 of them.
- `cluster.run("squeue")` is a command on the frontend without ssh, `cluster.ask(Slurm().query([]))`
  one of ours; `.kill_controller()`, `.start_controller()`, `.kill_node("h2")`, `.start_node("h2")`, `.drain("h2")`, `.resume("h2")`, `.fake("sbatch", script)`, `.rpcs()`, `.clear()`.

Everything runs in the hosts' namespaces and ends with the lab; files are in the lab's folder.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from liborch.batch_systems.base import Command, Output
from tests.lab.hosts import Host, Lab
from tests.lab.machine import PATH, wait_until

#: Programs that a cluster is made of.
_PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "squeue", "srun", "sacct", "sdiag")

_CONFIG = """ClusterName=lab
SlurmctldHost={frontend}({address})
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmctldPidFile=/run/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile=/run/slurmd.pid
SlurmdSpoolDir=/run/slurmd
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
ReturnToService=2
InactiveLimit=0
KillWait=2
MessageTimeout=10
SlurmctldTimeout=10
SlurmdTimeout=10
MinJobAge=300
MaxJobCount=1000
DefMemPerCPU=500
"""
_GPUS = "GresTypes=gpu\n"
#: A GPU is a device that is there; nothing opens these.
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
_CONFINED = {"ProctrackType": "proctrack/cgroup", "TaskPlugin": "task/cgroup"}
_CGROUPS = "CgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\nCgroupPlugin=cgroup/v1\nConstrainCores=yes\n"
_ACCOUNTING = {
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "AccountingStorageEnforce": "associations,limits,qos",
    "AccountingStorageTRES": "gres/gpu",
}
_DATABASE = """DbdHost={frontend}
AuthType=auth/none
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
PidFile=/run/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""
#: A database that is gone with the lab need not be safe, nor ask who is there.
_MARIADB = (
    "mariadbd --no-defaults --user=root --datadir=/tmp/slurm-database --skip-networking --skip-grant-tables --skip-log-bin "
    "--socket=/run/mysqld/mysqld.sock --pid-file=/run/mysqld/pid --innodb-buffer-pool-size=64M --innodb-log-file-size=8M "
    "--innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=0 --innodb-lock-wait-timeout=900"
)
_ACCOUNTS = """add cluster lab
add account lab Description=lab Organization=lab
add user root,bob Account=lab
"""
_PARTITIONS = """NodeName={nodes} CPUs={cpus} RealMemory={memory_mb}{gres} State=UNKNOWN
PartitionName=DEFAULT Nodes={nodes} State=UP OverSubscribe=NO
PartitionName=main Default=YES PriorityTier=1 GraceTime={grace_s} MaxTime=1-00:00:00 DefaultTime=10
PartitionName=high PriorityTier=10 MaxTime=1-00:00:00 PreemptMode=OFF
PartitionName=short PriorityTier=1 MaxTime=1 MaxNodes=2
PartitionName=closed PriorityTier=1 State=DOWN
PartitionName=admins PriorityTier=1 AllowGroups=nogroup
"""


class SlurmCluster:
    """Slurm on the hosts of a lab. Use with `with`, or `start` and `stop`; the lab starts and stops with it."""

    def __init__(self, lab: Lab, *, cpus: int = 4, memory_mb: int = 4000, gpus: int = 0,
                 shared_home: bool = False, confined: bool = False, accounting: bool = False, grace_s: int = 0,
                 **settings: object) -> None:  # fmt: skip
        """`settings` are slurm.conf's. `grace_s`: how long what is preempted in `main` may go on."""
        self.lab = lab
        self.cpus = cpus
        self.memory_mb = memory_mb
        self.gpus = gpus
        self._shared_home = shared_home
        self.confined = confined
        self._accounting = accounting
        self._grace_s = grace_s
        self._settings = {
            **(_CONFINED if confined else {}),
            **(_ACCOUNTING if accounting else {}),
            **settings,
        }

    @property
    def frontend(self) -> Host:
        """Where slurmctld is, and where people log in."""
        return self.lab.hosts[0]

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes, which are those of their hosts."""
        return [host.alias for host in self.lab.hosts[1:]]

    def start(self) -> SlurmCluster:
        """Start the lab and Slurm; all nodes are idle on return. Cleans up after itself when it fails."""
        self.lab.start()
        try:
            self._write()
            for host in self.lab.hosts:
                self._mount(host)
            if self._accounting:
                self._start_accounting()
            self.start_controller()
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(self.start_node, self.nodes))
            idle = dict.fromkeys(self.nodes, "idle")
            wait_until("all nodes idle", _paced(lambda: self.states() == idle))
        except BaseException:
            self.stop()
            raise
        for node in self.nodes:
            host = self.lab.host(node)
            self.lab.add_alias(
                f"n-{node}", HostName=host.address, Port=host.port, ProxyJump=self.frontend.alias
            )
        return self

    def stop(self) -> None:
        """Remove all of it. Safe to call twice."""
        self.lab.stop()

    def __enter__(self) -> SlurmCluster:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(
        self, command: str, *, check: bool = True, input: str | None = None, user: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the frontend, without ssh."""
        return self.frontend.run(command, check=check, input=input, user=user)

    def ask(self, command: Command, *, login: str = "", timeout_s: float = 30) -> Output:
        """Run a dialect's command on the frontend: as root without ssh, which is quicker, or over ssh as `login`."""
        argv = [*self.frontend._enter(), *command.argv]
        if login:
            config = str(self.lab.ssh_config)
            argv = ["ssh", "-F", config, "-l", login, self.frontend.alias, shlex.join(command.argv)]
        environment = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}
        try:
            done = subprocess.run(
                argv,
                input=command.stdin,
                capture_output=True,
                check=False,
                timeout=timeout_s,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return Output(None)
        return Output(done.returncode, done.stdout, done.stderr)

    def states(self) -> dict[str, str]:
        """{node: what sinfo says of it}; empty while the controller does not answer."""
        told = self.run("sinfo -h -N -p main -o '%N %T'", check=False).stdout.splitlines()
        return {node: state for node, _, state in (line.partition(" ") for line in told)}

    def queue(self) -> dict[str, str]:
        """{id: state} of everybody's, finished ones left out."""
        told = self.run("squeue -h -a -o '%i %T'").stdout.splitlines()
        return {id: state for id, _, state in (line.partition(" ") for line in told)}

    def clear(self) -> None:
        """Cancel everything and wait until the queue is empty and the nodes idle."""
        self.run("scancel $(squeue -h -a -o %A) 2>/dev/null", check=False)
        wait_until("the queue to be empty", _paced(lambda: not self.queue()))

    def start_controller(self) -> None:
        """Start slurmctld with the state it left; it answers on return."""
        self.frontend.run("slurmctld")
        wait_until("slurmctld", _paced(lambda: self.run("scontrol ping", check=False).returncode == 0))

    def sacctmgr(self, *lines: str) -> None:
        """Change the accounting, line by line; the controller knows on return."""
        done = self.run("sacctmgr --immediate", input="".join(f"{line}\n" for line in lines))
        if "error" in done.stdout + done.stderr:
            raise AssertionError(f"sacctmgr: {done.stdout}{done.stderr}")

    def forget(self) -> None:
        """Restart slurmctld as one that knows of nothing that ever was submitted."""
        self.kill_controller()
        shutil.rmtree(self.lab.folder / "slurm" / "state")
        (self.lab.folder / "slurm" / "state").mkdir()
        self.start_controller()

    def kill_controller(self) -> None:
        """Kill slurmctld with SIGKILL. What it had not saved is forgotten."""
        self._kill(self.frontend, "/run/slurmctld.pid")

    def save(self, id: str) -> None:
        """Wait until the controller has written down what it knows by now of an allocation; else a kill makes it forget."""
        mark = f"saved-{id}-{time.monotonic_ns()}"
        self.run(f"scontrol update job={id} comment={mark}")
        state = self.lab.folder / "slurm" / "state" / "job_state"
        wait_until(f"{id} saved", lambda: state.exists() and mark.encode() in state.read_bytes())

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self.lab.host(node).run(f"mkdir -p /run/slurmd; exec slurmd -N {node}")

    def kill_node(self, node: str, *, steps: bool = False) -> None:
        """Kill a node's slurmd with SIGKILL; with `steps` also its stepds, while what they started lives on."""
        host = self.lab.host(node)
        self._kill(host, "/run/slurmd.pid")
        for process in host.processes() if steps else ():
            if process.argv[0].startswith("slurmstepd"):
                host.kill(process.pid)

    def drain(self, node: str, reason: str = "lab") -> None:
        """Let nothing new start on a node."""
        self.run(f"scontrol update nodename={node} state=drain reason={shlex.quote(reason)}")

    def resume(self, node: str) -> None:
        """Take a node back into service."""
        self.run(f"scontrol update nodename={node} state=resume")

    def rpcs(self, user: str = "root") -> int:
        """Requests to slurmctld from a user's commands since `forget_rpcs`; this question is one as well."""
        text = self.run("sdiag").stdout.partition("statistics by user")[2]
        found = re.search(rf"^\s*{user}\s*\(\s*\d+\) count:(\d+)", text, re.MULTILINE)
        return int(found[1]) if found else 0

    def forget_rpcs(self) -> None:
        """Count from here."""
        self.run("sdiag --reset")

    @contextlib.contextmanager
    def fake(self, program: str, script: str) -> Iterator[None]:
        """Put a shell script before one of Slurm's programs, on the frontend; the real one is at /usr/bin."""
        path = self.frontend.sbin / program
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        try:
            yield
        finally:
            path.unlink()

    def _write(self) -> None:
        folder = self.lab.folder / "slurm"
        (folder / "etc").mkdir(parents=True)
        (folder / "state").mkdir()
        text = _CONFIG.format(frontend=self.frontend.alias, address=self.frontend.address, folder=folder)
        gres = ""
        if self.gpus:
            text += _GPUS
            gres = f" Gres=gpu:{self.gpus}"
            files = _DEVICES[: self.gpus]
            (folder / "etc" / "gres.conf").write_text("".join(f"Name=gpu File={file}\n" for file in files))
        text = _replaced(text, self._settings)
        text += _PARTITIONS.format(
            nodes=",".join(self.nodes),
            cpus=self.cpus,
            memory_mb=self.memory_mb,
            gres=gres,
            grace_s=self._grace_s,
        )
        (folder / "etc" / "slurm.conf").write_text(text)
        if self.confined:
            (folder / "etc" / "cgroup.conf").write_text(_CGROUPS)
        if self._accounting:
            database = folder / "etc" / "slurmdbd.conf"
            database.write_text(_DATABASE.format(frontend=self.frontend.alias, folder=folder))
            database.chmod(0o600)

    def _start_accounting(self) -> None:
        folder = self.lab.folder / "slurm"
        server = _MARIADB.format(folder=folder)
        # slurmdbd keeps procedures in the database, which need its own tables.
        tables = "/usr/share/mysql/mysql_system_tables.sql"
        self.run("mkdir /tmp/slurm-database")
        self.run(
            f"(echo 'create database mysql;\nuse mysql;'; cat {tables}) | {server} --bootstrap 2>{folder}/mariadb.log"
        )
        # Debian's libmariadb looks for its server there.
        self.run(f"mkdir -p /run/mysqld; setsid {server} >{folder}/mariadb.log 2>&1 </dev/null &")
        wait_until("the database", lambda: self.frontend.path("/run/mysqld/mysqld.sock").exists())
        self.run("slurmdbd")
        answers = "sacctmgr -n show cluster"
        wait_until("slurmdbd", _paced(lambda: self.run(answers, check=False).returncode == 0))
        self.sacctmgr(*_ACCOUNTS.splitlines())

    def _mount(self, host: Host) -> None:
        """Give a host the cluster's configuration, where every command looks for it."""
        host.bind(self.lab.folder / "slurm" / "etc", "/etc/slurm")
        if self._shared_home and host is not self.frontend:
            host.bind(self.frontend.home, "/root")

    def _kill(self, host: Host, pid_file: str) -> None:
        pid = int(host.path(pid_file).read_text())
        host.kill(pid)
        wait_until(f"the end of {pid}", lambda: pid not in [each.pid for each in host.processes()])


def _paced(true: Callable[[], bool]) -> Callable[[], bool]:
    """Ask no more often than 20 times a second: each question is a process or two."""

    def asked() -> bool:
        if true():
            return True
        time.sleep(0.05)
        return False

    return asked


def _replaced(text: str, settings: Mapping[str, object]) -> str:
    """Return slurm.conf with some settings changed, or added."""
    for key, value in settings.items():
        line = f"{key}={value}"
        text, count = re.subn(rf"^{key}=.*$", line, text, flags=re.MULTILINE)
        text += "" if count else f"{line}\n"
    return text


def unavailable() -> str | None:
    """Why there can be no Slurm here; None when there can. What the lab needs is asked by `hosts.unavailable`."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    return (
        f"Slurm in the lab needs {', '.join(missing)} (apt-get install slurm-wlm slurmdbd mariadb-server-core)"
        if missing
        else None
    )
