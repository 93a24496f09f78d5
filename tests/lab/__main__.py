"""`python -m tests.lab [COUNT]`: hosts to try things on, until Ctrl-C."""

from __future__ import annotations

import signal
import sys

from tests.lab.hosts import Lab, unavailable


def main() -> int:
    """Build the lab, say how to use it, wait."""
    reason = unavailable()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Lab(count=int(sys.argv[1]) if len(sys.argv) > 1 else 3) as lab:
        print(f"hosts: {', '.join(host.alias for host in lab.hosts)}; ssh config: {lab.ssh_config}")
        print("try, in another terminal:\n")
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
