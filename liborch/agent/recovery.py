"""What a keeper does about an earlier one's work when it starts: read the log, reap what still runs, write its verdicts.

An attempt that was claimed and has no verdict is lost, whatever became of its process: nobody waited for it, so nobody
knows. Its processes are ended first, told by their mark, by the capture files they have open, by the cgroups they are in.
Where the node was restarted there is nothing to end, and a foreign process may well have the old number.
"""

import os
import signal
import time

try:
    from . import processes, starts
except ImportError:
    import processes
    import starts

#: How long to go on ending what an earlier keeper left, in seconds: looks, with these pauses after each.
_LOOKS_S = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0)


def reap(marks, folder, enforcer):
    """Kill every process with these marks, of an earlier keeper. `folder`: that of the capture files."""
    for wait_s in _LOOKS_S:
        known = processes.writers_below(os.fsencode(folder))
        for pid in enforcer.inside():
            fields = processes.stat_fields(pid)
            if fields is not None:
                known[pid] = fields[4]
        found = processes.members(marks, (), known)
        if not found:
            return
        for pid, start in found.items():
            processes.send(pid, start, signal.SIGKILL)
        time.sleep(wait_s)


def recover(ledger, captures, enforcer, boot, tag):
    """Bring the ledger up to date; returns (orders that still wait, as {key: order}, keys of holds that were granted).

    Raises OSError when the log cannot be opened.
    """
    past = ledger.read()
    ledger.begin(boot)
    if past.claims:
        reap(
            {starts.mark(key, tag) for key, (_slot, claimed) in past.claims.items() if claimed == boot},
            captures.folder,
            enforcer,
        )
    for key, (slot, claimed) in past.claims.items():
        order = past.orders.pop(key, None)
        if order is None:
            continue
        if claimed == boot:
            why = "keeper: its keeper process was killed while it ran"
        else:
            why = "reboot: the node was restarted while it ran"
        fields = starts.ended_fields(None, None, "lost", why)
        # What it wrote is there, all or a part.
        output = captures.rescue(slot, key, bool(order.get("live") or order.get("tty") or order.get("lease")))
        output.pop("why", None)
        fields.update(output)
        fields["slot"] = slot
        ledger.event(order["o"], "ended", order["x"], order["a"], fields)
        ledger.close_order(key)
    captures.sweep((), slots=True)
    return past.orders, [key for key in past.held if key in past.orders]
