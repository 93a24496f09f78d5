"""Days of one batch in a faulty world: executions of minutes to hours, fed in as room comes, done again when they were lost.

Where `world.py` has seconds of everything a person can ask for, this has hundreds of hours of the one thing that people leave
alone: clients die and come back hours later, links are cut for longer than anybody waits, agents, nodes and state folders
are lost. What the ledger of `world.py` says holds here too, and besides:

* every execution ends with a verdict of its own, none is lost for good, and the verdict is that of its last attempt;
* an attempt is done again only when it was lost, and it was lost only where something happened that loses attempts;
* so none ran to its end twice unless an attempt of it was lost;
* at the end all room of all nodes is free again, by the node's word and by ours.
"""

from __future__ import annotations

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.policy import Policy
from liborch.sim.node import Plan
from liborch.sim.weather import Weather
from liborch.sim.world import World

HOUR_S = 3600.0
#: An attempt on a node out of reach for so long is done elsewhere.
GIVE_UP_S = 1800.0
#: Executions that are with the core at once, and how often it is looked whether there is room for more.
WINDOW = 60
FEED_S = 30.0
#: A client knows of a torn link, or of one that is back, within so many seconds.
NOTICED_S = 60.0
#: Reasons of ends that are the execution's own.
OWN_ENDS = ("exit", "signal", "oom", "walltime", "node")


def season(hours: float) -> Weather:
    """So many hours of bad luck."""
    return Weather(
        cancelled=0.01,
        slots=0.0,
        paused=0.01,
        transfer_fails=0.002,
        refused=0.002,
        tears=int(hours * 2),
        partitions=int(hours / 2),
        keeper_kills=int(hours / 5),
        reboots=int(hours / 10),
        state_losses=int(hours / 25),
        nodes_lost=1,
        nodes_given_up=0,
        crashes=int(hours / 2.5),
        drains=int(hours / 10),
    )


class Campaign(World):
    """See the module's text.

    Args:
        seed: What the history is made from.
        executions: How many there are.
        hours: How long the nodes have to do for them, about, and how long the weather is bad.
        nodes: How many nodes there are.
    """

    def __init__(self, seed: int, executions: int = 500, hours: float = 50.0, nodes: int = 5) -> None:
        self.hours = hours
        #: The rest of the work needs time of its own.
        self.patience_s = 2 * hours * HOUR_S
        self._planned = [f"e{number}" for number in range(executions)]
        self._fed = 0
        #: {(execution, attempt): the node it was given to}
        self.given: dict[tuple[str, int], str] = {}
        #: {(execution, attempt): when it was taken for lost}
        self.losses: dict[tuple[str, int], float] = {}
        #: {node: [(since, until)]}: when it was out of reach.
        self.outages: dict[str, list[tuple[float, float]]] = {}
        #: Nodes whose state folder was lost, once or more.
        self.wiped: set[str] = set()
        self.done_s = 0.0
        policy = Policy(first_attempts=1_000_000, give_up_s=GIVE_UP_S)
        super().__init__(seed, executions, nodes, season(hours), policy, machines=0)

    def _build(self, count: int) -> None:
        self._build_nodes(count)
        cores = sum(node.room.cpus for node in self.nodes.values())
        self._mean_s = 0.9 * self.hours * HOUR_S * cores / self.requests
        self._last_request = self.hours * HOUR_S
        self._brew(self._last_request)
        for _ in range(int(self.hours / 5)):
            self.later(self.rng.uniform(0.0, self._last_request), self._fill_disk)
        self.later(0.0, self._feed)

    def absence_s(self) -> float:
        """The command is typed again at once, after a coffee, or the next morning."""
        return self.rng.uniform(0.0, self.rng.choice((5.0, 5.0, 600.0, 10 * HOUR_S)))

    # ------------------------------------------------------------------ the batch

    def _feed(self) -> None:
        client = self.client
        room = WINDOW - len(client.machine.items)
        if not client.is_down and not client.machine.draining and room > 0:
            for x in self._planned[self._fed : self._fed + room]:
                # It is on record when it is submitted, so a client that dies of it has fed it.
                self._fed += 1
                self._submit(self._request(x))
                if client.is_down:
                    break
        if self._fed < len(self._planned):
            self.later(FEED_S, self._feed)

    def _request(self, x: str) -> ev.Submitted:
        rng = self.rng
        return ev.Submitted(
            x,
            batch="b1",
            cpus=rng.choice((1, 1, 1, 1, 2)),
            walltime_s=rng.choice((None, 8 * self._mean_s)),
            retries=1000,
            retry_on=("lost",),
            staged=rng.random() < 0.5,
            collected=rng.random() < 0.5,
        )

    def _plan(self, x: str, attempt: int, order: dict[str, object]) -> Plan:
        rng = self.rng
        reason, code = rng.choice((("exit", 0),) * 8 + (("exit", 1), ("signal", None)))
        return Plan(
            rng.expovariate(1 / self._mean_s), reason, code, rng.choice((0.0, 10.0)), rng.random() < 0.2
        )

    # ------------------------------------------------------------------ misfortune

    def _part(self) -> None:
        node = self._some_node()
        self._cut(node, self.rng.choice((3.0, 60.0, 600.0, 2 * HOUR_S)))

    def _cut(self, node: str, length_s: float) -> None:
        outages = self.outages.setdefault(node, [])
        since, until = self.now, self.now + length_s
        if outages and self.now <= outages[-1][1] + NOTICED_S:
            # Nobody saw it come back in between.
            earlier = outages.pop()
            since, until = earlier[0], max(until, earlier[1])
        outages.append((since, until))
        self._away[node] = until
        self.client.tear(node)

    def _reboot(self) -> None:
        node = self._some_node()
        self._cut(node, 120.0)
        self.nodes[node].kill_keeper("reboot: the node was restarted while it ran")

    def _fill_disk(self) -> None:
        """Often the keeper is killed just then: whoever makes room restarts more than that."""
        node = self.nodes[self._some_node()]
        node.fill_disk()
        length_s = self.rng.choice((10.0, 600.0, HOUR_S))

        def kill_keeper() -> None:
            node.kill_keeper()
            # The next one knows nothing of orders that came meanwhile: who gave them is told so.
            self.client.greeted_again(node.name)

        if self.rng.random() < 0.5:
            self.later(self.rng.uniform(0.0, length_s), kill_keeper)
        if self.rng.random() < 0.5:
            # And somebody types Ctrl-C to see what is wrong.
            self.later(self.rng.uniform(0.0, length_s), self._drain)
        self.later(length_s, node.free_disk)

    def _lose_state(self) -> None:
        node = self._some_node()
        self.wiped.add(node)
        self.client.tear(node)
        self.nodes[node].lose_state()

    def _calm_down(self) -> None:
        super()._calm_down()
        # Whoever sees a batch to its end goes to every node once more.
        self.client.post(ev.LinksWanted())

    # ------------------------------------------------------------------ the ledger

    def _on_start(self, node: str, x: str, attempt: int) -> None:
        self.starts[x, attempt] += 1
        assert self.starts[x, attempt] == 1, f"{x} attempt {attempt} started twice, now on {node}"
        over = self.finished.get(x)
        # What was taken for lost on a node out of reach knows nothing of it.
        assert over is None or (x, attempt) in self.losses, (
            f"{x} attempt {attempt} starts on {node} after {over}"
        )

    def on_action(self, action: act.AnyAction) -> None:
        """Every action decided on."""
        super().on_action(action)
        if isinstance(action, act.Hand):
            self.given[action.x, action.attempt] = action.node
        elif isinstance(action, act.Retry):
            assert action.reason == "lost", f"{action}, and only what is lost is done again"
            self._justify(action.x, action.attempt)
            self.losses[action.x, action.attempt] = self.now
        elif isinstance(action, act.Finish):
            assert action.state != "LOST", f"{action}"
            self.done_s = self.now

    def _justify(self, x: str, attempt: int) -> None:
        told = self.verdicts.get((x, attempt))
        if told is not None and told[0] == "lost":
            return
        node = self.given[x, attempt]
        if node in self.gone or node in self.wiped or (x, attempt) in self.nodes[node].forgotten:
            return
        for since, until in self.outages.get(node, ()):
            if since + GIVE_UP_S <= self.now <= until + NOTICED_S:
                return
        raise AssertionError(f"{x} attempt {attempt} is taken for lost on {node}, which said {told}")

    def _check_the_end(self) -> None:
        super()._check_the_end()
        assert len(self.finished) == len(self._planned)
        for (x, attempt), (reason, _code) in self.verdicts.items():
            over = self.finished[x]
            if reason in OWN_ENDS and (x, attempt) not in self.losses:
                assert attempt == over.attempts, f"{x} attempt {attempt} ended ({reason}), and again: {over}"
        for x, over in self.finished.items():
            lost = {attempt for each, attempt in self.losses if each == x}
            assert lost == set(range(1, over.attempts)), f"{over}: attempts {sorted(lost)} were lost"
        for node in self.client.machine.nodes.values():
            free = (node.free_cpus, node.free_memory, node.free_gpus)
            assert free == (node.cpus, node.memory_bytes, node.gpus), f"room of {node!r} is not free again"
