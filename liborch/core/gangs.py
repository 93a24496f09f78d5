"""Executions on several nodes at once: gangs. Placed together, ended together, over together.

Each node's part is a rank: an item of its own to its agent, with the execution itself as rank 0 (`things.Gang`). The ranks
start as soon as each node can; how they find each other is theirs.

====================================  =================================================================================
a rank ends with success              the others go on; it waits for them in COLLECTING, its room is free
a rank ends otherwise                 that is the execution's verdict; the others are ended
all have ended                        another attempt where the policy wants one; else results are brought from all nodes
all results are here                  the execution is over
a rank cannot be told to its node     nobody's failure: the others are ended, and all of it goes back to the queue
====================================  =================================================================================
"""

from __future__ import annotations

from liborch.core import actions as act
from liborch.core import verdict
from liborch.core.placement import Placement
from liborch.core.tables import AT_NODE
from liborch.core.things import Gang, Item, Node


class Gangs(Placement):
    """See the module's text. Base of `Orchestration`, which has the door."""

    # ------------------------------------------------------------------ what the machine does

    def _move(self, item: Item, edge: str) -> None:
        """Take an item along an edge."""
        raise NotImplementedError

    def _requeue(self, item: Item) -> None:
        """An item waits again."""
        raise NotImplementedError

    def _back_to_queue(self, item: Item, edge: str) -> None:
        """An item leaves its node without having run."""
        raise NotImplementedError

    @staticmethod
    def _loss(node: Node) -> str:
        """Why what was on a node that is given up is over."""
        raise NotImplementedError

    @staticmethod
    def _count_cut_off(item: Item, reason: str) -> None:
        """An allocation's end costs none of the attempts that a person allowed."""
        if reason == "allocation":
            item.cut_offs += item.started_at is not None
            item.retries += 1
        else:
            item.cut_offs = 0

    def _asks_another(self, item: Item, reason: str, code: int | None) -> bool:
        """Whether an attempt that ended so is followed by another."""
        raise NotImplementedError

    # ------------------------------------------------------------------ together

    def _place_gang(self, lead: Item) -> bool:
        nodes = self._choose_several(lead)
        if nodes is None:
            return False
        if self._reserved is not None and self._reserved[0] is lead:
            self._unreserve()
        self.queue.remove(lead)
        for member, node in zip(Gang(lead, nodes).members, nodes, strict=True):
            self.items[member.x] = member
            member.node = node
            self._take_room(member)
            self._put_on(member, node)
        return True

    def _choose_several(self, lead: Item) -> list[Node] | None:
        """Different nodes with room, in the order they became known."""
        count = lead.node_count
        kept = self._kept_from(lead)
        found: list[Node] = []
        if lead.nodes:
            known = (self.nodes.get(name) for name in dict.fromkeys(lead.nodes))
            found = [node for node in known if node is not None and node.is_open and node.takes(lead)]
            found = [node for node in found if node.number not in kept or self._may_pass(lead, node)]
        else:
            skip = set(kept)
            while len(found) < count:
                number = self._index.best(lead.cpus, lead.memory_bytes, lead.gpus, skip, self._gone_by(lead))
                if number < 0:
                    break
                skip.add(number)
                found.append(self._by_number[number])
            if len(found) < count:
                found += [node for node in kept.values() if node.takes(lead) and self._may_pass(lead, node)]
        if len(found) < count:
            return None
        return sorted(found[:count], key=lambda node: node.number)

    def _end_gang(self, gang: Gang) -> None:
        """A person wants its end."""
        if gang.is_cancelled or gang.is_over:
            return
        gang.is_cancelled = True
        for member in gang.members:
            self._end_rank(member)

    def _end_rank(self, item: Item) -> None:
        node = item.node
        if item.gang is None or item.state == "COLLECTING" or node is None:
            return
        if self._is_unsaid(item):
            if item.state == "STAGING":
                self._out.append(act.Unstage(item.x, node.name))
            self._rank_over(item, "cancelled", None, "before it started")
        elif item.state in AT_NODE and not item.cancelling:
            item.cancelling = True
            if node.link == "OPEN":
                self._out.append(act.Cancel(item.x, item.attempt, node.name))

    # ------------------------------------------------------------------ one after the other

    @staticmethod
    def _is_unsaid(item: Item) -> bool:
        """Whether the agent was never told of it: then it can go elsewhere."""
        return item.state == "STAGING" or (item.state == "PLACED" and not item.state_id)

    def _over(self, item: Item, reason: str, code: int | None, why: str) -> None:
        """An attempt ended on its node, and nothing is to be brought from there."""
        if item.gang is not None:
            self._rank_over(item, reason, code, why)
            return
        self._leave_node(item)
        self._conclude(item, reason, code, why)

    def _rank_over(
        self,
        item: Item,
        reason: str,
        code: int | None,
        why: str,
        *,
        has_results: bool = False,
        is_free: bool = False,
    ) -> None:
        """A rank has ended. `has_results`: they are on its node; `is_free`: the node could not be told, which is no attempt."""
        gang = item.gang
        assert gang is not None
        if has_results:
            self._give_room_back(item)
            gang.awaited.add(item.x)
        else:
            self._leave_node(item)
        item.ended = (reason, code)
        self._move(item, "rank_over")
        gang.running -= 1
        # Ending the others may end the last of them here and now, which then sees to the rest.
        is_last = gang.is_over
        if gang.verdict is None and verdict.final_state(reason, code) != "SUCCEEDED":
            gang.verdict = (reason, code, _tell(item, gang, why))
            gang.goes_back = is_free
            for other in gang.members:
                self._end_rank(other)
        if is_last:
            self._gang_over(gang)

    def _lose_rank(self, item: Item, why: str) -> None:
        """Its node is given up."""
        if item.state == "COLLECTING":
            self._rank_home(item, f"its results are lost with the node: {why}")
        else:
            assert item.node is not None
            self._over(item, "cancelled" if item.cancelling else self._loss(item.node), None, why)

    def _gang_over(self, gang: Gang) -> None:
        lead = gang.members[0]
        if self._wants_another(gang, lead):
            assert gang.verdict is not None
            self._disband(gang)
            self._move(lead, "retry")
            # Agents start an attempt once, and what is still being brought is for this one. What could not even be told to
            # a node costs none of those allowed.
            self._out.append(act.Retry(lead.x, lead.attempt, gang.verdict[0]))
            lead.attempt += 1
            lead.retries += gang.goes_back
            self._count_cut_off(lead, gang.verdict[0])
            lead.started_at = None
            lead.cancelling = False
            self._requeue(lead)
            if not self._is_possible(lead):
                # Nodes went while its last ranks were being ended.
                self._conclude(lead, "refused", None, self._why_impossible(lead))
            return
        if gang.is_cancelled and gang.goes_back:
            gang.verdict = ("cancelled", None, "before it started")
        for member in gang.members:
            if member.x in gang.awaited and member.node is not None and member.node.link == "OPEN":
                self._out.append(act.Collect(member.x, member.node.name))
        if not gang.awaited:
            self._gang_home(gang)

    def _wants_another(self, gang: Gang, lead: Item) -> bool:
        if gang.verdict is None or gang.is_cancelled:
            return False
        if gang.goes_back:
            return True
        reason, code, _why = gang.verdict
        return self._asks_another(lead, reason, code)

    def _rank_home(self, item: Item, why: str) -> None:
        """A rank's results are here, or will never be."""
        gang, ended = item.gang, item.ended
        assert gang is not None
        if item.x not in gang.awaited:
            return
        gang.awaited.discard(item.x)
        gang.why = gang.why or why
        self._leave_node(item)
        item.ended = ended
        if gang.is_over and not gang.awaited:
            self._gang_home(gang)

    def _gang_home(self, gang: Gang) -> None:
        self._disband(gang)
        reason, code, why = gang.verdict or ("exit", 0, "")
        self._conclude(gang.members[0], reason, code, why or gang.why)

    def _disband(self, gang: Gang) -> None:
        """Only the execution itself is left."""
        for member in gang.members:
            self._leave_node(member)
            member.ended = None
            member.gang = None
            if member.rank:
                del self.items[member.x]


def _tell(item: Item, gang: Gang, why: str) -> str:
    where = f"rank {item.rank} on {gang.names[item.rank]} ended first"
    return f"{where}: {why}" if why else where
