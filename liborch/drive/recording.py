"""The form in which events go into the journal, and come back when another client takes over."""

from __future__ import annotations

import msgspec

from liborch.core import events as ev


class Recorded(msgspec.Struct, array_like=True):
    """A group of events as the journal keeps it."""

    now: float
    events: list[ev.AnyEvent]
    acks: dict[str, int]


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Recorded).decode
#: A group without events.
NOTHING = encode(Recorded(0.0, [], {}))
