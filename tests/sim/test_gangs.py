"""The faulty world with executions on several nodes at once: what was promised of one holds for all ranks of a gang."""

from __future__ import annotations

import random

import msgspec
import pytest

from liborch.core import actions as act
from liborch.core import events as ev
from liborch.errors import InvariantError
from liborch.sim.world import World


class GangWorld(World):
    """A third of what is asked for runs on two or three nodes."""

    def __init__(self, seed: int, requests: int) -> None:
        self._lots = random.Random(seed)
        self.gangs: set[str] = set()
        super().__init__(seed, requests)

    def _submit(self, request: ev.Submitted) -> None:
        if not request.is_slot and not request.lease and self._lots.random() < 0.3:
            request = msgspec.structs.replace(request, node_count=self._lots.choice((2, 2, 3)))
            self.gangs.add(request.x)
        super()._submit(request)

    def _on_start(self, node: str, x: str, attempt: int) -> None:
        super()._on_start(node, x, attempt)
        lead = x.split("-r")[0]
        is_left = (x, attempt) in self.left_behind
        if lead in self.finished and node not in self.given_up and not is_left:
            raise InvariantError(f"{x} attempt {attempt} starts on {node} after {self.finished[lead]}")

    def on_action(self, action: act.AnyAction) -> None:
        if isinstance(action, act.Finish) and action.x in self.gangs:
            told = [self.verdicts.get((f"{action.x}{rank}", action.attempts)) for rank in ("", "-r1", "-r2")]
            if action.reason in ("exit", "signal", "oom", "walltime", "node"):
                assert (action.reason, action.code) in told, f"{action}: its nodes said {told}"
            if action.state == "SUCCEEDED":
                assert set(told) <= {("exit", 0), None}, f"{action}: its nodes said {told}"
                assert told.count(("exit", 0)) >= 2
            action = msgspec.structs.replace(action, reason="gang")
        super().on_action(action)


@pytest.mark.parametrize("seed", range(10))
def test_a_faulty_world_with_gangs_keeps_its_promises(seed: int) -> None:
    world = GangWorld(seed, 300)
    world.run()
    assert world.gangs <= set(world.finished)
