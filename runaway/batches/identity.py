"""Which execution is which, whatever file, line or order it comes from: for `--resume`. Pure.

An execution is its content: code, command, arguments, parameters, resources. Its place in a plan, its folder, its host and the
options that only say how it is driven are not. Several with the same content (`--repeats`, a line that stands there twice)
are told apart by counting: `...#1`, `...#2`. They are interchangeable, so it does not matter which is counted first.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from liborch.specs import Resources
from runaway.batches.sources import Plan, Planned

#: In what is hashed; another number when something else is hashed.
VERSION = 1

# Made once: `json.dumps` makes one for each text.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def identity(
    snapshot_id: str,
    command: Sequence[str],
    arguments: Sequence[str],
    parameters: Mapping[str, str],
    resources: Resources,
    node: str = "",
    node_count: int = 1,
) -> str:
    """Return the name of a content: 32 hexadecimal digits.

    Args:
        snapshot_id: Of the code that is sent; "": none is.
        command: The words before the arguments.
        arguments: The words after the command.
        parameters: In any order.
        resources: What was asked for; fields at their defaults do not count, so that a new kind of resource changes no name.
        node: Where it is to run, where that is part of what was asked for (`--each`); "": wherever.
        node_count: On how many nodes at once.
    """
    asked = {
        name: value
        for name, value in msgspec.structs.asdict(resources).items()
        if value != getattr(_NOTHING_ASKED, name)
    }
    content: list[object] = [VERSION, snapshot_id, list(command), list(arguments), dict(parameters), asked]
    if node:
        content.append(node)
    if node_count > 1:
        content.append(node_count)
    # ASCII with sorted keys: one text for one content; bytes that are no UTF-8 become escapes of their own.
    text = _encode(content)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


_NOTHING_ASKED = Resources()


def identities(
    plan: Plan,
    snapshot_id: str,
    command: Sequence[str],
    resources: Resources,
    nodes: Sequence[str] = (),
    node_count: int = 1,
) -> Iterator[tuple[str, Planned]]:
    """Yield each execution of a plan with its identity and, behind a `#`, which one with that content it is, from 1.

    They come in the order of the plan, and are counted in the order before shuffling, so that the same repetition has the same
    number whatever the order. `nodes`: with `--each`, where each repetition runs. `node_count`: on how many nodes at once.
    """

    def content(planned: Planned) -> str:
        node = nodes[planned.repetition] if nodes else ""
        return identity(
            snapshot_id, command, planned.arguments, planned.parameters, resources, node, node_count
        )

    seen = Occurrences()
    if not plan.is_shuffled:
        for planned in plan:
            yield seen.name(content(planned)), planned
        return
    numbers = array("Q", (seen.number(content(planned)) for planned in plan.unshuffled()))
    for planned in plan:
        yield f"{content(planned)}#{numbers[planned.index]}", planned


class Occurrences:
    """Counts how often each content came by; some 150 bytes for each different one."""

    def __init__(self) -> None:
        self._times: dict[bytes, int] = {}

    def number(self, content: str) -> int:
        """Return which occurrence of a content this is, from 1."""
        key = bytes.fromhex(content)
        times = self._times[key] = self._times.get(key, 0) + 1
        return times

    def name(self, content: str) -> str:
        """Return the identity of this occurrence: `content#k`."""
        return f"{content}#{self.number(content)}"
