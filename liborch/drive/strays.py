"""Where executions left folders that no collecting will tidy: on nodes they were sent to and did not end on.

Told by the actions of the core, live ones and those of a client that is gone, so that whoever sees a batch to its end knows all
of them. Tidying is `driver.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable

from liborch.core import actions as act
from liborch.core.things import rank_id


class Strays:
    """See the module's text."""

    def __init__(self) -> None:
        #: {execution that is not over: nodes its files were sent to}
        self._sent: dict[str, tuple[str, ...]] = {}
        #: {execution that is over: nodes that may have a folder of it}
        self._left: dict[str, tuple[str, ...]] = {}
        #: Nodes that were ever given anything.
        self.nodes: set[str] = set()

    def __repr__(self) -> str:
        return f"<Strays: {len(self._left)} left, {len(self._sent)} under way>"

    def note(self, actions: Iterable[act.AnyAction]) -> None:
        """Take in what was decided."""
        for action in actions:
            if isinstance(action, act.Hand):
                self.nodes.add(action.node)
            elif isinstance(action, act.Stage):
                self.nodes.add(action.node)
                nodes = self._sent.get(action.x, ())
                if action.node not in nodes:
                    self._sent[action.x] = (*nodes, action.node)
            elif isinstance(action, act.Finish):
                self._finish(action.x, action.state)
                rank = 1
                while self._finish(rank_id(action.x, rank), action.state):
                    rank += 1

    def _finish(self, x: str, state: str) -> bool:
        """Whether anything of it was sent anywhere."""
        nodes = self._sent.pop(x, ())
        # One that was collected is tidied where it ended; only a lost one is not.
        if len(nodes) > 1 or (nodes and state == "LOST"):
            self._left[x] = nodes
        return bool(nodes)

    def on(self, node: str) -> list[str]:
        """Executions that are over, and may have left a folder on a node."""
        return [x for x, nodes in self._left.items() if node in nodes]

    def __len__(self) -> int:
        """How many executions left something."""
        return len(self._left)
