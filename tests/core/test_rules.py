"""Any event at any moment, true or not: the invariants hold, nothing ends twice, replay rebuilds the state."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.core.machine import Orchestration
from liborch.sim.describe import describe

NODES = st.sampled_from(("n1", "n2", "n3"))
NAMES = st.sampled_from(tuple("abcdefgh"))
ATTEMPTS = st.sampled_from((1, 1, 1, 2))
REASONS = st.sampled_from(
    (("exit", 0), ("exit", 1), ("oom", None), ("lost", None), ("cancelled", None), ("node", None))
)
HELD = st.sampled_from(("queued", "running", "paused", "hold", "held"))


class AnyEventAtAnyMoment(RuleBasedStateMachine):
    """A machine told whatever comes to mind."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Orchestration(None, random.Random(3))
        self.now = 0.0
        self.record: list[tuple[ev.AnyEvent, float]] = []
        self.live: set[str] = set()

    def tell(self, event: ev.AnyEvent) -> None:
        self.record.append((event, self.now))
        if isinstance(event, ev.Submitted):
            self.live.add(event.x)
        for action in self.machine.handle(event, self.now):
            if isinstance(action, act.Finish):
                # Raises when it was over already.
                self.live.remove(action.x)
            elif isinstance(action, act.Hand | act.Stage | act.Pause | act.Recall):
                node = self.machine.nodes[action.node]
                assert node.link == "OPEN", f"{action} goes nowhere"
                assert node.state == "USABLE", f"{action} goes to a node that is given up"

    @rule(seconds=st.sampled_from((0.0, 0.01, 0.3, 40.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.tell(ev.Tick())

    @rule(node=NODES)
    def a_node_is_added(self, node: str) -> None:
        self.tell(ev.NodeAdded(node, "lab"))

    @rule(
        x=NAMES,
        cpus=st.integers(1, 4),
        memory=st.integers(0, 2),
        gpus=st.sampled_from((0, 1, 0.5, 0.4)),
        priority=st.integers(0, 1),
        walltime=st.sampled_from((None, 5.0, 50.0)),
        retry_on=st.sampled_from(((), ("lost", "node", "exit:1"))),
        staged=st.booleans(),
        collected=st.booleans(),
        nodes=st.sampled_from(((), (), ("n1",), ("n2", "n3"))),
        batch=st.sampled_from(("", "b")),
        lease=st.sampled_from(("", "", "", "a", "b")),
        is_slot=st.booleans(),
    )
    def somebody_submits(self, x: str, cpus: int, memory: int, gpus: float, priority: int, walltime: float | None,
                         retry_on: tuple[str, ...], staged: bool, collected: bool, nodes: tuple[str, ...], batch: str,
                         lease: str, is_slot: bool) -> None:  # fmt: skip
        if lease:
            cpus, memory, gpus, is_slot, nodes = 1, 0, 0, False, ()
        event = ev.Submitted(x, batch, cpus, memory, gpus, priority, walltime, 1, retry_on, staged and not is_slot,
                             collected, nodes, lease if lease != x else "", is_slot)  # fmt: skip
        self.tell(event)

    @precondition(lambda self: self.machine.nodes)
    @rule(
        data=st.data(),
        state_id=st.sampled_from(("s1", "s1", "s2")),
        room=st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(0, 1)),
        holding=st.lists(st.tuples(NAMES, ATTEMPTS, HELD), max_size=4),
    )
    def a_link_opens(self, data: st.DataObject, state_id: str, room: tuple[int, int, int],
                     holding: list[tuple[str, int, str]]) -> None:  # fmt: skip
        node = data.draw(st.sampled_from(sorted(self.machine.nodes)))
        self.tell(ev.LinkOpened(node, state_id, *room, tuple(holding)))

    @precondition(lambda self: self.machine.nodes)
    @rule(
        data=st.data(),
        kind=st.sampled_from((ev.LinkLost, ev.LinkLost, ev.LinkLost, ev.LinkRefused, ev.NodeLost)),
    )
    def a_link_or_node_fails(
        self, data: st.DataObject, kind: type[ev.LinkLost | ev.LinkRefused | ev.NodeLost]
    ) -> None:
        self.tell(kind(data.draw(st.sampled_from(sorted(self.machine.nodes))), "chance"))

    @rule()
    def links_are_wanted(self) -> None:
        self.tell(ev.LinksWanted())

    @rule()
    def nothing_new_is_to_start(self) -> None:
        self.tell(ev.Draining())

    @rule()
    def another_client_takes_over(self) -> None:
        self.tell(ev.Restarted())

    @rule(
        x=NAMES,
        kind=st.sampled_from((ev.CancelAsked, ev.SlotAbandoned, ev.PauseAsked, ev.ResumeAsked, ev.Collected)),
    )
    def somebody_asks(self, x: str, kind: type[ev.CancelAsked]) -> None:
        self.tell(kind(x))

    @rule(x=NAMES, node=NODES, fails=st.booleans())
    def files_arrive(self, x: str, node: str, fails: bool) -> None:
        self.tell(ev.StageFailed(x, "disk full", node) if fails else ev.Staged(x, node))

    @rule(x=NAMES, attempt=ATTEMPTS, kind=st.sampled_from((ev.Started, ev.Paused, ev.Continued, ev.Recalled)))
    def an_agent_says(self, x: str, attempt: int, kind: type[ev.Started]) -> None:
        self.tell(kind(x, attempt))

    @rule(x=NAMES, attempt=ATTEMPTS, reason=REASONS, left=st.booleans())
    def an_agent_says_it_ended(
        self, x: str, attempt: int, reason: tuple[str, int | None], left: bool
    ) -> None:
        self.tell(ev.Ended(x, attempt, *reason, left))

    @rule(x=NAMES, attempt=ATTEMPTS)
    def an_agent_refuses(self, x: str, attempt: int) -> None:
        self.tell(ev.Refused(x, attempt, "no room"))

    @invariant()
    def what_always_holds(self) -> None:
        self.machine.check()
        assert set(self.machine.items) == self.live
        for x in self.live:
            assert self.machine.explain(x), f"nothing explains {self.machine.items[x]!r}"

    def teardown(self) -> None:
        rebuilt = Orchestration(None, random.Random(3))
        for event, now in self.record:
            rebuilt.handle(event, now)
        assert describe(rebuilt) == describe(self.machine)


TestAnyEventAtAnyMoment = AnyEventAtAnyMoment.TestCase
TestAnyEventAtAnyMoment.settings = settings(
    max_examples=120, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
