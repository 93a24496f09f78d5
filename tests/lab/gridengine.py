"""Son of Grid Engine 8.1.9, Debian's, on the hosts of a lab: qmaster on h1, an execd on every host.

    with Lab(3) as lab, GridEngine(lab) as grid:
        grid.run("qsub -b y sleep 60")          # on h1, as root
        grid.wait_until("r")                    # a state of qstat's

Nothing is installed: Debian's packages are unpacked into build/gridengine (9 MB, two seconds, once), and laid over /usr/lib of
the lab's hosts only. The packages' own dependencies would bring a mail server.

What there is: a queue `all.q` with `slots` on each host, parallel environments `per_node` (one slot on each node) and
`smp` (all on one node), quick scheduling, wrappers of the q-programs in /usr/local/sbin of each host.
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
PREFIX = ROOT / "build" / "gridengine"
_PACKAGES = (
    "gridengine-master", "gridengine-exec", "gridengine-client", "gridengine-common",
    "libhwloc15", "libjemalloc2", "libmunge2", "libdb5.3",
)  # fmt: skip
_PROGRAMS = ("qsub", "qstat", "qdel", "qconf", "qacct", "qrsh", "qhost", "qhold", "qrls", "qmod", "qalter")

_BOOTSTRAP = """admin_user none
default_domain none
ignore_fqdn true
spooling_method classic
spooling_lib libspoolc
spooling_params {root}/default/common;{root}/spool/qmaster
binary_path /usr/lib/gridengine
qmaster_spool_dir {root}/spool/qmaster
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
jvm_threads 0
"""
_SCHEDULER = """algorithm default
schedule_interval 0:0:1
maxujobs 0
queue_sort_method load
job_load_adjustments NONE
load_adjustment_decay_time 0:0:0
load_formula np_load_avg
schedd_job_info true
flush_submit_sec 1
flush_finish_sec 1
params none
reprioritize_interval 0:0:0
halftime 168
usage_weight_list cpu=1.0
compensation_factor 5.0
weight_user 0.25
weight_project 0.25
weight_department 0.25
weight_job 0.25
weight_tickets_functional 0
weight_tickets_share 0
share_override_tickets TRUE
share_functional_shares TRUE
max_functional_jobs_to_schedule 200
report_pjob_tickets TRUE
max_pending_tasks_per_job 50
halflife_decay_list none
policy_hierarchy OFS
weight_ticket 0.01
weight_waiting_time 0.0
weight_deadline 3600000
weight_urgency 0.1
weight_priority 1.0
max_reservation 0
default_duration INFINITY
"""
_QUEUE = """qname all.q
hostlist {hosts}
seq_no 0
load_thresholds NONE
suspend_thresholds NONE
nsuspend 1
suspend_interval 00:05:00
priority 0
min_cpu_interval 00:00:01
processors UNDEFINED
qtype BATCH INTERACTIVE
ckpt_list NONE
pe_list per_node smp
rerun FALSE
slots {slots}
tmpdir /tmp
shell /bin/sh
prolog NONE
epilog NONE
shell_start_mode posix_compliant
starter_method NONE
suspend_method NONE
resume_method NONE
terminate_method NONE
notify 00:00:60
owner_list NONE
user_lists NONE
xuser_lists NONE
subordinate_list NONE
complex_values NONE
projects NONE
xprojects NONE
calendar NONE
initial_state default
s_rt INFINITY
h_rt 24:00:00
s_cpu INFINITY
h_cpu INFINITY
s_fsize INFINITY
h_fsize INFINITY
s_data INFINITY
h_data INFINITY
s_stack INFINITY
h_stack INFINITY
s_core INFINITY
h_core INFINITY
s_rss INFINITY
h_rss INFINITY
s_vmem INFINITY
h_vmem INFINITY
"""
_ENVIRONMENT = """pe_name {name}
slots 999
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule {rule}
control_slaves TRUE
job_is_first_task FALSE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""


def unavailable() -> str | None:
    """Why there is no Grid Engine here, or None. Unpacks it the first time.

    Raises:
        Nothing: what fails is the reason.
    """
    if (PREFIX / "usr/lib/gridengine/sge_qmaster").exists():
        return None
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return "Grid Engine is unpacked from Debian's packages: needs apt-get and dpkg-deb"
    return unpack("Grid Engine", _PACKAGES, PREFIX)


class GridEngine:
    """Grid Engine on a lab's hosts. `start`, then `run`; it ends with the hosts' processes."""

    def __init__(self, lab: Lab, slots: int = 2) -> None:
        self.lab = lab
        self.slots = slots
        #: SGE_ROOT, the same folder seen from every host.
        self.root = lab.folder / "sge"

    @property
    def master(self) -> Host:
        """The host of the qmaster, which is the frontend as well."""
        return self.lab.hosts[0]

    def start(self) -> GridEngine:
        """Bring it up: every host is a queue instance that takes jobs on return."""
        self._write_files()
        self._initialise()
        self.run("sge_qmaster", timeout_s=60)
        for host in self.lab.hosts:
            # The master's own host is an administrative one already.
            self.run(f"qconf -ah {host.name}", check=host is not self.master)
            self.run(f"qconf -as {host.name}")
        self._configure()
        for host in self.lab.hosts:
            self.run("sge_execd", host=host, timeout_s=60)
        wait_until("every execd", lambda: all(" -NA- " not in line for line in self._instances()))
        return self

    def stop(self) -> None:
        """Kill its daemons and what runs in its jobs."""
        for host in self.lab.hosts:
            for pid in (*host.pids_matching("sge_"), *host.pids_matching(str(self.root))):
                host.kill(pid)
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> GridEngine:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(
        self, command: str, *, host: Host | None = None, check: bool = True, timeout_s: float = 30, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command on the frontend (or another host) as root, with the programs of Grid Engine on PATH."""
        return (host or self.master).run(command, check=check, timeout_s=timeout_s, input=input)

    def states(self) -> dict[str, str]:
        """{id: state} of every job, as qstat prints it."""
        lines = self.run("qstat -u '*'").stdout.splitlines()[2:]
        return {line.split()[0]: line.split()[4] for line in lines}

    def messages(self) -> str:
        """What its daemons logged."""
        return "".join(path.read_text(errors="replace") for path in self.root.rglob("messages"))

    def _instances(self) -> list[str]:
        told = self.run("qstat -f").stdout.splitlines()
        return [f" {' '.join(line.split())} " for line in told if line.startswith("all.q@")]

    def _write_files(self) -> None:
        common = self.root / "default" / "common"
        for folder in (
            common,
            self.root / "spool" / "qmaster" / "job_scripts",
            self.root / "spool" / "execd",
        ):
            folder.mkdir(parents=True)
        # What the hosts see has to lie in the lab's folder: wherever our own is, they may have something else there.
        self.prefix = self.lab.folder / "gridengine-files"
        shutil.copytree(PREFIX, self.prefix, symlinks=True)
        for name in ("util", "templates"):
            (self.root / name).symlink_to(self.prefix / "usr/share/gridengine" / name)
        (common / "bootstrap").write_text(_BOOTSTRAP.format(root=self.root))
        (common / "act_qmaster").write_text(self.master.name + "\n")
        for host in self.lab.hosts:
            # Its programs look for each other in /usr/lib/gridengine, which only the hosts shall have.
            host.run(f"mount -t overlay overlay -o lowerdir={self.prefix}/usr/lib:/usr/lib /usr/lib")
            for name in (*_PROGRAMS, "sge_qmaster", "sge_execd", "spoolinit", "spooldefaults"):
                program = f"/usr/lib/gridengine/{name}"
                wrapper = host.sbin / name
                wrapper.write_text(
                    f"#!/bin/sh\nexport SGE_ROOT={shlex.quote(str(self.root))} SGE_CELL=default "
                    "SGE_QMASTER_PORT=6444 SGE_EXECD_PORT=6445 LD_LIBRARY_PATH=/usr/lib/gridengine\n"
                    f'exec {program} "$@"\n'
                )
                wrapper.chmod(0o755)

    def _initialise(self) -> None:
        base = self.prefix / "usr/share/gridengine"
        settings = (base / "default-configuration").read_text()
        for old, new in (
            ("/var/spool/gridengine/execd", f"{self.root}/spool/execd"),
            ("min_uid                1000", "min_uid 0"),
            ("min_gid                1000", "min_gid 0"),
            ("load_report_time       00:00:40", "load_report_time 00:00:01"),
            ("/usr/bin/mail", "/bin/true"),
        ):
            assert old in settings
            settings = settings.replace(old, new)
        (self.root / "configuration").write_text(settings)
        common = f"{self.root}/default/common"
        for command in (
            f"spoolinit classic libspoolc '{common};{self.root}/spool/qmaster' init",
            f"spooldefaults configuration {self.root}/configuration",
            f"spooldefaults complexes {base}/util/resources/centry",
            f"spooldefaults usersets {base}/util/resources/usersets",
            "spooldefaults managers root",
        ):
            self.run(command)

    def _configure(self) -> None:
        hosts = " ".join(host.name for host in self.lab.hosts)
        (self.root / "scheduler").write_text(_SCHEDULER)
        self.run(f"qconf -Msconf {self.root}/scheduler")
        for name, rule in (("per_node", "1"), ("smp", "$pe_slots")):
            (self.root / name).write_text(_ENVIRONMENT.format(name=name, rule=rule))
            self.run(f"qconf -Ap {self.root}/{name}")
        (self.root / "queue").write_text(_QUEUE.format(hosts=hosts, slots=self.slots))
        for host in self.lab.hosts:
            self.run(f"qconf -sel | grep -qx {host.name} || qconf -Ae {self._host_file(host)}")
        self.run(f"qconf -Aq {self.root}/queue")

    def _host_file(self, host: Host) -> Path:
        file = self.root / f"host_{host.name}"
        settings = ("load_scaling", "complex_values", "user_lists", "xuser_lists", "projects", "xprojects")
        lines = [
            f"hostname {host.name}",
            *(f"{name} NONE" for name in (*settings, "usage_scaling", "report_variables")),
        ]
        file.write_text("\n".join(lines) + "\n")
        return file
