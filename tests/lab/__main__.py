"""`python -m tests.lab [COUNT]`: hosts to try things on, until Ctrl-C. `python -m tests.lab slurm`: a cluster, h1 its frontend."""

from __future__ import annotations

import signal
import sys

from tests.lab import slurm
from tests.lab.hosts import Lab, unavailable
from tests.lab.slurm import SlurmCluster

_PROFILE = """name: cluster
ssh: h1
batch_system: slurm
allocation: {nodes: 3, walltime: 10m, most: 2}
"""


def main() -> int:
    """Build the lab, say how to use it, wait."""
    words = sys.argv[1:]
    with_slurm = words == ["slurm"]
    reason = unavailable() or (slurm.unavailable() if with_slurm else None)
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lab = Lab(count=4 if with_slurm else int(words[0]) if words else 3)
    with SlurmCluster(lab) if with_slurm else lab:
        print(f"hosts: {', '.join(host.alias for host in lab.hosts)}; ssh config: {lab.ssh_config}")
        print("try, in another terminal:\n")
        if with_slurm:
            profile = lab.folder / "config" / "orchestra" / "hosts" / "cluster.yaml"
            profile.parent.mkdir(parents=True)
            profile.write_text(_PROFILE)
            config = lab.folder / "config"
            print(
                f"  XDG_CONFIG_HOME={config} ORCHESTRA_SSH_CONFIG={lab.ssh_config} runaway exec cluster hostname"
            )
            print(f"  ssh -F {lab.ssh_config} h1 squeue\n")
        else:
            print(f"  ORCHESTRA_SSH_CONFIG={lab.ssh_config} runaway exec h1 hostname")
            print(f"  ssh -F {lab.ssh_config} h1")
            print(f"  ip link set {lab.host('h1').veth} down     # cuts h1 off; `up` restores it\n")
        print("Ctrl-C removes everything.", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("removing the lab")
    return 0


if __name__ == "__main__":
    sys.exit(main())
