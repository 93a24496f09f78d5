"""The keeper: owns a node's slots and log; takes orders, starts what fits, and tells how it ended.

One thread does everything that matters. It talks to one talker over `keeper.sock` and trusts only the log: killed and
started again it reads the log, reaps what its predecessor left running and says so (`lost`), and goes on with the queue.

An execution here: queued -> running (<-> paused) -> [ending: TERM, then KILL until nothing is left] -> ended.
"claimed" is on the log before a process exists; "ended" is on the log before anybody is told.

Here are the loop and what the talker's messages do. Starting is `starts.py`'s, ending `ends.py`'s, the record `ledger.py`'s.
"""

import collections
import os
import select
import signal
import time

try:
    from . import (
        absence,
        captures,
        doors,
        ends,
        enforce,
        grants,
        ledger,
        line,
        node,
        orders,
        recovery,
        slots,
        starts,
        strays,
        timers,
    )
except ImportError:  # packed: the modules lie side by side
    import absence
    import captures
    import doors
    import ends
    import enforce
    import grants
    import ledger
    import line
    import node
    import orders
    import recovery
    import slots
    import starts
    import strays
    import timers

key_of = orders.key_of
ended_fields = starts.ended_fields

#: Seconds without work, talker or unsaid things after which the keeper ends.
IDLE_S = 300.0
#: An execution still running after this is announced as started; shorter ones say it with their end.
ANNOUNCE_S = 0.25
#: After an order that cannot be started none is tried for so long, in seconds: trouble must not use up all that waits.
REST_S = 1.0
#: How often a disk that took no more is tried again, and our own folder looked for while something runs.
RETRY_S = 1.0
#: How often capture files that nobody asked for are looked at.
SWEEP_S = 3600.0


class Keeper:
    """See the module's text. `run()` returns when the keeper has nothing left to do."""

    def __init__(self, folder, lock, idle_s=IDLE_S):
        self.folder = folder
        self.lock = lock
        self.idle_s = idle_s
        self.queues = slots.Queues()
        self.runs = {}
        self.holds = {}
        #: {lease: hold} given back while something still runs there.
        self.leaving = {}
        #: Started, not yet long enough to be announced, in order of their start.
        self.fresh = collections.deque()
        self.terminals = {}
        #: Owners with a client just now.
        self.present = frozenset()
        self.retiring = False
        self.rested_at = 0.0
        self.gone = False
        self.busy_since = time.monotonic()
        self.poll = select.epoll()
        self.line = line.Line(self.poll, self._on_message, self._on_talker_gone)
        self.timers = timers.Timers(time.monotonic)
        self.room = slots.Room(*grants.enter(folder))
        self.cores = enforce.Cores(node.numa_nodes())
        #: Names this agent among all that ever ran here, in marks of processes and names of cgroups.
        self.tag = node.state_id(folder)[:12]
        self.enforcer = enforce.Enforcer("%d-%s" % (os.getuid(), self.tag))
        self.captures = captures.Captures(os.path.join(folder, "captures"))
        self.starter = starts.Starter(node.name(), self.tag, self.captures, self.enforcer)
        self.ledger = ledger.Ledger(folder)
        self.absence = absence.Absence(
            self.ledger.owners, self.timers, lambda name: name in self.present, self._leave_owner
        )
        self.strays = strays.Strays(self.tag)
        self.ends = ends.Ends(self.ledger, self.timers, self.strays, self.captures, self.runs, self._free)

    def recover(self):
        """Rebuild from the log. Raises OSError when it cannot be opened."""
        waiting, held = recovery.recover(self.ledger, self.captures, self.enforcer, node.boot_id(), self.tag)
        if self.ledger.capacity:
            self.room.resize(*self.ledger.capacity)
        for key in held:
            # Its client has been told; nothing else has taken room yet.
            self._take_hold(waiting.pop(key), key)
        for key, order in waiting.items():
            self.queues.add(order["o"], key, order)

    # ---------------------------------------------------------------- orders

    def on_order(self, message):
        """Accept orders: on the log first, then in the queue. Known ones are dropped: handing over is idempotent."""
        name = message["owner"]
        common = message.get("common") or {}
        accepted = []
        wrong = {}
        seen = set()
        # There may be room again, and nobody should be sent away for what was so some seconds ago.
        self.ledger.retry()
        for item, order in zip(message["orders"], orders.unfold(name, common, message["orders"])):
            key = key_of(order["x"], order["a"])
            if self.ledger.knows(key) or key in seen:
                continue
            seen.add(key)
            accepted.append((item, key, order))
            why = orders.problem(order)
            if why:
                wrong[key] = why
        good = [item for item, key, _order in accepted if key not in wrong]
        if good:
            self.ledger.accept(name, common, good)
        for _item, key, order in accepted:
            if key in wrong:
                self._refuse(order, wrong[key])
            else:
                self._queue(order, key)

    def _queue(self, order, key):
        lease = order.get("lease")
        why = self.room.why_never(*orders.wishes(order)) or self.cores.why_never(order.get("numa"))
        if lease is not None:
            if lease in self.holds:
                self._start(order, key)
            else:
                self._refuse(order, "the slot %s is not held any more" % lease)
        elif why:
            self._refuse(order, why)
        else:
            self.queues.add(order["o"], key, order)

    def _refuse(self, order, why):
        self.ledger.event(order["o"], "refused", order["x"], order["a"], {"why": why})
        self.ledger.close_order(key_of(order["x"], order["a"]))

    def fill(self):
        """Start what fits. What cannot be started, or be put on record before, ends: another node may do it."""
        room = self.room
        for message in self.ledger.take_put_off():
            self._on_message(message)
        while room.used_cpus < room.cpus and self.queues and time.monotonic() >= self.rested_at:
            order = self.queues.pop_fitting(lambda o: room.fits(*orders.wishes(o)) and self.ledger.may_go(o))
            if order is None:
                return
            key = key_of(order["x"], order["a"])
            if self.ledger.stuck:
                self._end_queued(order, key, self.ledger.why_stuck(), reason="node")
                self._rest()
            elif order.get("hold"):
                hold = self._take_hold(order, key)
                detail = {"slot": hold.slot, "cores": list(hold.cores), "gpus": hold.gpus}
                self.ledger.event(order["o"], "held", order["x"], order["a"], detail)
            else:
                self._start(order, key)

    def _start(self, order, key):
        """Claim, then start."""
        run = starts.Run(order, key)
        hold = self.holds.get(order.get("lease"))
        needs = orders.needs(order)
        if hold is not None:
            needs = hold.needs
            run.slot, gpus, run.cores = hold.slot, hold.gpus, hold.cores
        else:
            run.slot, gpus = self.room.take(*orders.wishes(order))
            run.room = needs + (gpus,)
            run.cores = self.cores.take(order.get("cpus"), order.get("numa"))
        run.grace_s = float(order.get("grace", 10.0))
        self.ledger.claim(run.x, run.a, run.slot)
        self.runs[key] = run
        try:
            if self.ledger.stuck:
                raise OSError(self.ledger.stuck, os.strerror(self.ledger.stuck), self.folder)
            own_files = bool(order.get("live") or order.get("tty")) or hold is not None
            run.capture = self.captures.open(run.slot, key, own_files)
            self.starter.start(run, gpus, needs[2])
        except (OSError, ValueError, TypeError) as error:
            verdict = self.starter.why_not(run, error)
            if verdict["reason"] == "node":
                self._rest()
            self.ends.not_started(run, verdict)
            return
        if run.terminal is not None:
            self.terminals[run.terminal] = run
            self.poll.register(run.terminal, select.EPOLLIN)
        self.ends.begin(run)
        self.fresh.append(run)

    def _rest(self):
        self.rested_at = time.monotonic() + REST_S
        self.timers.at(REST_S, self.fill)

    def _free(self, run):
        """Nothing of a run is left: its room is somebody else's."""
        if run.terminal is not None:
            self._leave_terminal(run.terminal)
            os.close(run.terminal)
        if run.room is not None:
            self.cores.give_back(run.cores)
            self.room.give_back(run.slot, *run.room)
        elif run.order.get("lease") not in self.holds:
            self._release_when_empty(run.order.get("lease"))

    def announce(self, now):
        """Say which executions have started and still run."""
        while self.fresh and now - self.fresh[0].started >= ANNOUNCE_S:
            run = self.fresh.popleft()
            if not run.main_gone:
                detail = {
                    "start": round(run.started_wall, 6),
                    "slot": run.slot,
                    "pid": run.pid,
                    "means": run.means,
                    "cores": list(run.cores),
                }
                self.ledger.event(run.owner, "started", run.x, run.a, detail)

    # ---------------------------------------------------------------- holds

    def _take_hold(self, order, key):
        slot, gpus = self.room.take(*orders.wishes(order))
        cores = self.cores.take(order.get("cpus"), order.get("numa"))
        hold = self.holds[order["x"]] = slots.Hold(order["o"], key, slot, orders.needs(order), gpus, cores)
        return hold

    def on_unhold(self, message):
        """Give the room of a hold back; what runs in it is ended."""
        lease = message["lease"]
        hold = self.holds.pop(lease, None)
        if hold is None:
            if lease in self.leaving:
                return
            for key in self.queues.keys_of(message["owner"]):
                if self.queues.get(key)["x"] == lease:
                    self.queues.remove(key)
                    self.ledger.close_order(key)
            self.ledger.event(message["owner"], "unheld", lease, 1, {})
            return
        self._leave_hold(lease, hold, "its slot was given back")

    def _leave_hold(self, lease, hold, why):
        self.leaving[lease] = hold
        for run in list(self.runs.values()):
            if run.order.get("lease") == lease:
                self.ends.end(run, "cancelled", why)
        self._release_when_empty(lease)

    def _release_when_empty(self, lease):
        hold = self.leaving.get(lease)
        if hold is None or any(run.order.get("lease") == lease for run in self.runs.values()):
            return
        del self.leaving[lease]
        self.cores.give_back(hold.cores)
        self.room.give_back(hold.slot, *hold.needs + (hold.gpus,))
        self.ledger.event(hold.owner, "unheld", lease, 1, {})
        self.ledger.close_order(hold.key)

    # ---------------------------------------------------------------- owners that are away

    def _leave_owner(self, name, reason, why, grace_s):
        """End what is an owner's who is away; returns whether it was forgotten, too, as nothing of it runs."""
        self._end_all_of(name, reason, why, grace_s)
        if reason != "cancelled" or any(run.owner == name for run in self.runs.values()):
            return False
        self.ledger.write_forget(name)
        return True

    def _end_all_of(self, name, reason, why, grace_s=None):
        for key in self.queues.keys_of(name):
            self._end_queued(self.queues.remove(key), key, why, reason)
        for run in list(self.runs.values()):
            if run.owner == name:
                run.grace_s = run.grace_s if grace_s is None else min(run.grace_s, grace_s)
                self.ends.end(run, reason, why)
        for lease, hold in list(self.holds.items()):
            if hold.owner == name:
                del self.holds[lease]
                self._leave_hold(lease, hold, why)

    def _end_queued(self, order, key, why, reason="cancelled"):
        self.ledger.claimed.add(key)
        fields = ended_fields(None, None, reason, why)
        self.ledger.event(order["o"], "ended", order["x"], order["a"], fields)
        self.ledger.close_order(key)

    # ---------------------------------------------------------------- messages from the talker

    def _on_message(self, message):
        getattr(self, "on_" + message["t"])(message)

    def _on_talker_gone(self):
        self.present = frozenset()

    def _resize(self, name, capacity):
        """Take what a client says of the room here. One who says nothing has what there is, unless others cut it for what they run."""
        shared = any(run.owner != name for run in self.runs.values())
        shared = shared or any(hold.owner != name for hold in self.holds.values())
        shared = shared or len(self.queues) > len(self.queues.keys_of(name))
        told = (capacity.get("cpus"), capacity.get("memory_bytes"))
        self.room.resize(told[0], told[1], shared, capacity.get("gpus"))
        self.cores.are_unsure = bool(node.allocation()) and self.room.cpus < len(node.cores())
        if any(told) or not shared:
            self.ledger.set_capacity(*told)

    def on_attach(self, message):
        """A client is there: take its acknowledgement, tell what is held for it."""
        name = message["owner"]
        owner = self.ledger.owner(name)
        owner.saw()
        if message.get("lease_s"):
            owner.lease_s = float(message["lease_s"])
            self.absence.expire()
        self._resize(name, message.get("capacity") or {})
        if message.get("env"):
            self.starter.set_environment(message["env"])
        self.on_ack(message)
        holding = [
            [order["x"], order["a"], "hold" if order.get("hold") else "queued"]
            for order in (self.queues.get(key) for key in self.queues.keys_of(name))
        ]
        holding += [
            [run.x, run.a, "paused" if run.paused_at is not None else "running"]
            for run in self.runs.values()
            if run.owner == name
        ]
        holding += [[lease, 1, "held"] for lease, hold in self.holds.items() if hold.owner == name]
        self.line.send_events(self.ledger.take_unsent())
        self.line.reply(
            {
                "t": "attached",
                "req": message["req"],
                "last": self.ledger.event_number,
                "holding": holding,
                "room": self.describe(),
                "pid": os.getpid(),
            }
        )
        # What no log holds cannot be read from there by the talker.
        self.ledger.unsent += [
            (name, number, text, ended) for number, text, ended in self.ledger.unwritten(name)
        ]

    def on_present(self, message):
        """Which owners have a client just now."""
        for name in self.present.union(message["owners"]):
            if name in self.ledger.owners:
                self.ledger.owners[name].saw()
        self.present = frozenset(message["owners"])

    def on_depart(self, message):
        """The node is an owner's for a time only."""
        self.absence.depart(message["owner"], message["left"], message["grace"])

    def on_ack(self, message):
        """Forget what the owner has."""
        self.ledger.acknowledge(message["owner"], int(message.get("n") or message.get("ack") or 0))

    def on_drop(self, message):
        """The client has the output of these attempts: remove the capture files that were their own."""
        for x, attempt in message["ids"]:
            if key_of(x, attempt) not in self.runs:
                self.captures.remove(key_of(x, attempt))

    def on_recall(self, message):
        """Take back orders that have not started."""
        for x, attempt in message["ids"]:
            key = key_of(x, attempt)
            if key in self.queues and not self.ledger.puts_off(key, message):
                order = self.queues.remove(key)
                self.ledger.event(order["o"], "recalled", x, attempt, {})
                self.ledger.close_order(key)

    def on_cancel(self, message):
        """End executions, queued or running. What was never heard of must not start when it comes."""
        for x, attempt in message["ids"]:
            if x in self.holds:
                self.on_unhold({"owner": message["owner"], "lease": x})
                continue
            key = key_of(x, attempt)
            run = self.runs.get(key)
            if key in self.queues:
                if not self.ledger.puts_off(key, message):
                    self._end_queued(self.queues.remove(key), key, "before it started")
            elif run is not None:
                if message.get("grace") is not None:
                    self.ends.hurry(run, float(message["grace"]))
                self.ends.end(run, "cancelled", "cancelled")
            elif not self.ledger.knows(key):
                self._end_queued({"o": message["owner"], "x": x, "a": attempt}, key, "before it came")

    def _runs_of(self, message):
        found = (self.runs.get(key_of(x, attempt)) for x, attempt in message["ids"])
        return [run for run in found if run is not None]

    def on_pause(self, message):
        """Stop every process of running executions."""
        for run in self._runs_of(message):
            if self.ends.pause(run):
                self.ledger.event(run.owner, "paused", run.x, run.a, {})

    def on_resume(self, message):
        """Let paused executions go on."""
        for run in self._runs_of(message):
            if self.ends.resume(run):
                self.ledger.event(run.owner, "resumed", run.x, run.a, {})

    def on_follow(self, message):
        """Somebody reads the output while it is written: it must not land in a file that is used again."""
        run = self.runs.get(key_of(message["x"], message["a"]))
        reply = {"t": "following", "req": message["req"], "known": False, "paths": ["", ""], "tty": False}
        if run is not None and run.capture is not None:
            try:
                reply["paths"] = list(run.capture.give_up())
                reply["known"] = True
            except OSError:
                pass  # A disk that lets no name be changed: the output comes with the end.
        reply["tty"] = reply["known"] and run.terminal is not None
        self.line.reply(reply, run.terminal if reply["tty"] else None)

    def on_signal(self, message):
        """Send a signal to every process of a running execution."""
        run = self.runs.get(key_of(message["x"], message["a"]))
        if run is not None:
            self.ends.signal(run, int(message["number"]))

    def on_forget(self, message):
        """An owner that will not come back."""
        self._end_all_of(message["owner"], "cancelled", "forgotten")
        self.ledger.owner(message["owner"]).lease_s = 0.0
        self.absence.expire()

    def on_status(self, message):
        """Everything this node does, for people."""
        now = time.monotonic()
        self.line.reply(
            {
                "t": "status",
                "req": message["req"],
                "pid": os.getpid(),
                "room": self.describe(),
                "runs": [
                    {
                        "x": run.x,
                        "a": run.a,
                        "owner": run.owner,
                        "slot": run.slot,
                        "pid": run.pid,
                        "seconds": round(now - run.started, 3),
                        "paused": run.paused_at is not None,
                        "means": run.means,
                        "cores": list(run.cores),
                    }
                    for run in self.runs.values()
                ],
                "queued": len(self.queues),
                "holds": list(self.holds),
                "sync_error": self.ledger.why_unsynced(),
                "stuck": self.ledger.why_stuck() if self.ledger.stuck else "",
            }
        )

    def on_retire(self, message):
        """A newer agent wants this place: leave if nothing would be lost by it."""
        self.retiring = not self.runs and not self.queues and not self.holds and not self.ledger.stuck
        self.line.reply({"t": "retiring", "req": message["req"], "yes": self.retiring})

    def describe(self):
        """The node's room, for clients."""
        room = self.room
        return {
            "cpus": room.cpus,
            "used_cpus": room.used_cpus,
            "memory_bytes": room.memory_bytes,
            "used_memory": room.used_memory,
            "gpus": room.gpus,
            "free_gpus": room.free_gpus,
            "shared_gpus": {gpu: parts / slots.GPU_PARTS for gpu, parts in room.shared.items()},
            "numa": self.cores.sizes(),
            "means": self.enforcer.means(),
        }

    # ---------------------------------------------------------------- the loop

    def run(self, listener):
        """Serve until idle."""
        wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_out)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        self.poll.register(wake_in, select.EPOLLIN)
        self.poll.register(listener.fileno(), select.EPOLLIN)
        self._look_around()
        self._sweep()
        self.fill()
        while not self._is_done():
            for fd, mask in self._wait():
                if fd == wake_in:
                    os.read(wake_in, 4096)
                    self.ends.wait_children()
                elif fd == listener.fileno():
                    self.line.take(listener.accept()[0])
                elif fd in self.terminals:
                    self._pump(fd)
                elif fd == self.line.fd:
                    self.line.on_ready(mask)
            now = time.monotonic()
            self.timers.run_due(now)
            if self.fresh and now - self.fresh[0].started >= ANNOUNCE_S:
                self.announce(now)
            self.fill()
            if self.ledger.unsent and time.monotonic() >= self.ledger.tell_at(len(self.queues)):
                self.line.send_events(self.ledger.take_unsent())
        self.enforcer.close()
        self.ledger.close()

    def _wait(self):
        until = self.timers.next() or time.monotonic() + 30.0
        if self.fresh:
            until = min(until, self.fresh[0].started + ANNOUNCE_S)
        if self.ledger.unsent:
            until = min(until, self.ledger.tell_at(len(self.queues)))
        return self.poll.poll(max(0.0, until - time.monotonic()) + 0.0005)

    def _pump(self, fd):
        if captures.move_terminal(fd, self.terminals[fd].capture.out) is None:
            self._leave_terminal(fd)

    def _leave_terminal(self, fd):
        if self.terminals.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def _sweep(self):
        self.captures.sweep(self.runs)
        self.timers.at(SWEEP_S, self._sweep)

    def _look_around(self):
        """See whether the disk takes more again, and whether our folder is still ours."""
        self.ledger.retry()
        self.gone = not doors.still_ours(self.folder, "keeper", self.lock)
        if self.gone:
            # Whoever looks for us finds another agent, or none: what we run would be run twice.
            for key in list(self.queues.keys()):
                self.queues.remove(key)
            for run in list(self.runs.values()):
                self.ends.end(run, "cancelled", "the agent's folder was removed")
        busy = self.runs or self.queues or self.ledger.stuck
        self.timers.at(RETRY_S if busy else 10 * RETRY_S, self._look_around)

    def _is_done(self):
        busy = self.runs or self.queues or self.holds
        if busy or (self.line.is_open and not self.retiring):
            self.busy_since = time.monotonic()
            return self.gone and not self.runs
        return self.retiring or self.gone or time.monotonic() - self.busy_since > self.idle_s


def serve(folder, ready):
    """Be the keeper of this state folder; returns at once when there is one already. `ready(text)` says how it went."""
    try:
        lock = doors.claim(folder, "keeper")
        if lock is None:
            ready("ok")
            return
        keeper = Keeper(folder, lock)
        keeper.recover()
        listener = doors.listen(folder, "keeper")
    except OSError as error:
        ready("%s: %s" % (error.filename or folder, os.strerror(error.errno or 0)))
        return
    ready("ok")
    keeper.run(listener)
    grants.leave(folder, lock, any(owner.ended for owner in keeper.ledger.owners.values()))
