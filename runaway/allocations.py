"""Allocations as people see them: what batch systems tell, put beside what the journal knows of who asked for it and who uses it.

The batch system's queue is the truth about what there is; the journal only says what it is for. So allocations of clients that
were killed are found as well, and those of another machine of the same person.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from liborch.batch_systems.base import Sight
from liborch.drive.ask import is_driven
from liborch.drive.queues import LIVE, look
from liborch.errors import OrchestraError, SpecError, UnknownName
from liborch.journal import OrchestrationRow
from liborch.names import nearest
from liborch.places import Places
from liborch.profiles.find import load_all
from liborch.quantities import format_duration
from liborch.specs import AllocationSpec, Held, HostProfile
from liborch.ssh import Pool
from runaway.patience import asking, said_if_slow
from runaway.records import SCHEMA_VERSION, Records

#: Executions of one batch that are looked at for where they are.
_LOOKED_AT = 1000


@dataclass(frozen=True)
class Found:
    """One allocation."""

    profile: HostProfile
    sight: Sight
    #: Who asked for it; None: nobody in this journal.
    maker: OrchestrationRow | None
    #: Whether the maker is there.
    is_driven: bool
    #: Batches, and executions that are in none, that are on its nodes.
    users: Sequence[str] = ()

    @property
    def id(self) -> str:
        """The batch system's word for it."""
        return self.sight.id

    @property
    def is_held(self) -> bool:
        """A person asked for it, with `alloc`."""
        return self.maker is not None and self.maker.kind == "alloc"

    @property
    def node_count(self) -> int | None:
        """How many nodes it has, or was asked for; None: not known."""
        return len(self.sight.nodes) or (_noted(self.maker).get("nodes") if self.maker else None)

    @property
    def purpose(self) -> str:
        """Why it is there, in a few words."""
        if self.maker is None:
            return "asked for elsewhere"
        if self.is_held:
            return "held"
        return f"{'of' if self.is_driven else 'left by'} {self.maker.kind} {self.maker.id[:8]}"

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        maker = self.maker
        return {
            "schema_version": SCHEMA_VERSION,
            "host": self.profile.name,
            "id": self.id,
            "state": self.sight.state,
            "why": self.sight.why or None,
            "nodes": list(self.sight.nodes),
            "node_count": self.node_count,
            "left_s": self.sight.left_s,
            "held": self.is_held,
            "maker": None
            if maker is None
            else {"id": maker.id, "kind": maker.kind, "driven": self.is_driven},
            "used_by": list(self.users),
        }

    def as_row(self) -> list[str]:
        """The line for people, see `HEAD`."""
        left = "" if self.sight.left_s is None else format_duration(max(0.0, self.sight.left_s))
        count = self.node_count
        nodes = _short(self.sight.nodes) if self.sight.nodes else "" if count is None else f"({count})"
        users = ", ".join(each[:8] for each in self.users)
        about = "; ".join(
            filter(None, (self.purpose, users and f"used by {users}", self.sight.why and self._why))
        )
        return [self.id, self.profile.name, self.sight.state, nodes, left, about]

    @property
    def _why(self) -> str:
        return "" if self.sight.state == "active" else f"waits: {self.sight.why}"


HEAD = ["ID", "HOST", "STATE", "NODES", "LEFT", "WHAT"]


@dataclass
class Answers:
    """What every batch system that was asked said."""

    found: list[Found] = field(default_factory=list)
    errors: list[OrchestraError] = field(default_factory=list)


class Makers:
    """Who asked for what, and uses it, as the journal knows."""

    def __init__(self, records: Records) -> None:
        self._state = records.folders.state
        self._by_prefix = {
            hashlib.sha256(row.id.encode()).hexdigest()[:12]: row for row in records.journal.orchestrations()
        }
        self._on: dict[str, list[str]] = {}
        journal = records.journal
        for row in self._by_prefix.values():
            if row.state == "ended" or row.kind == "alloc":
                continue
            if row.kind == "batch":
                nodes = {(each.node, row.id) for each in journal.under_way(row.id, _LOOKED_AT)}
            else:
                nodes = {(each.node, each.id) for each in journal.executions(row.id, live=True)}
            for node, user in sorted(nodes, key=str):
                users = self._on.setdefault((node or "").partition("/")[2], [])
                if user not in users:
                    users.append(user)

    def of(self, profile: HostProfile, sight: Sight) -> Found:
        """One allocation, with what is known of it."""
        maker = self._by_prefix.get(sight.token[:12])
        driven = maker is not None and is_driven(self._state, maker.id)
        return Found(profile, sight, maker, driven, self._on.get(sight.id, ()))


@contextlib.asynccontextmanager
async def pooled(folders: Places, *, accept_new: bool = False) -> AsyncIterator[Pool]:
    """Connections, with the person's ssh configuration."""
    config = str(folders.ssh_config) if folders.ssh_config is not None else None
    async with Pool(config_file=config, accept_new=accept_new) as pool:
        yield pool


def clusters(folders: Places) -> list[HostProfile]:
    """Every profile with a batch system."""
    return [each for each in load_all(folders.profiles)[0] if each.batch_system != "none"]


async def ask_all(profiles: Sequence[HostProfile], pool: Pool, records: Records) -> Answers:
    """Ask the batch systems of these hosts, all at once; those that do not answer are in `errors`."""
    answers = Answers()
    with said_if_slow(asking([profile.name for profile in profiles])):
        told = await asyncio.gather(*(_ask_one(profile, pool) for profile in profiles))
    makers = Makers(records)
    for profile, answer in zip(profiles, told, strict=True):
        if isinstance(answer, OrchestraError):
            answers.errors.append(answer)
            continue
        answers.found += [makers.of(profile, sight) for sight in answer if sight.state in LIVE]
    return answers


async def _ask_one(profile: HostProfile, pool: Pool) -> list[Sight] | OrchestraError:
    try:
        return [sight for sight in (await look(profile, pool)).values() if sight.token]
    except OrchestraError as error:
        return error


def pick(text: str, found: Sequence[Found], *, host: str = "") -> Found:
    """Return the allocation that `text` names: its id, the beginning of what is unique in its name, or `last`.

    Raises:
        UnknownName: None, or several.
    """
    where = f" of {host}" if host else ""
    ask = f"`runaway alloc {host or 'HOST'}` asks for one"
    hint = "`runaway allocs` lists yours" if found else f"you have none{where}; {ask}"
    if text == "last":
        held = [each for each in found if each.is_held]
        if not held:
            raise UnknownName("allocation", text, hint=f"you hold none{where}; {ask}")
        return max(held, key=lambda each: each.maker.created_at if each.maker is not None else 0.0)
    named = [each for each in found if text in (each.id, each.id.partition(";")[0], _name_of(each))]
    if not named and len(text) >= 3:
        named = [
            each
            for each in found
            if _name_of(each).startswith(text) or (each.maker is not None and each.maker.id.startswith(text))
        ]
    if not named:
        raise UnknownName("allocation", text, nearest(text, (each.id for each in found)), hint=hint)
    if len(named) > 1:
        several = ", ".join(f"{each.id} of {each.profile.name}" for each in named)
        raise UnknownName("allocation", text, hint=f"several are called so: {several}; name the host as well")
    return named[0]


async def borrow(
    profile: HostProfile, text: str, folders: Places, *, accept_new: bool = False
) -> HostProfile:
    """The profile with which executions go into an allocation that is there, and nowhere else.

    Raises:
        UnknownName: There is none of that name.
        SpecError: It is over, or the host has no batch system.
        WorldError: Neither the batch system nor the journal says.
    """
    records = Records(folders)
    noted = [row for row in records.journal.orchestrations(kind="alloc") if _noted(row)]
    ids = [str(_noted(row)["id"]) for row in noted if text in (_noted(row)["id"], row.id)]
    async with pooled(folders, accept_new=accept_new) as pool:
        told = await look(profile, pool, ids[:1])
    makers = Makers(records)
    found = [makers.of(profile, sight) for sight in told.values() if sight.token and sight.state in LIVE]
    try:
        chosen = pick(text, found, host=profile.name)
    except UnknownName:
        over = next((sight for id, sight in told.items() if text == id or id in ids), None)
        if over is None and not ids:
            raise
        how = f" ({over.end or over.state})" if over is not None and (over.end or over.state) else ""
        raise SpecError(
            f"allocation {text} of {profile.name} is over{how}; ask for another: runaway alloc {profile.name}"
        ) from None
    spec = profile.allocation or AllocationSpec()
    spec = msgspec.structs.replace(spec, nodes=chosen.node_count or spec.nodes, least=1)
    return msgspec.structs.replace(profile, allocation=spec, held=Held(chosen.id, chosen.sight.token))


def _noted(row: OrchestrationRow) -> dict[str, Any]:
    """What `alloc` noted of the allocation it asked for; empty before it had an id."""
    details: dict[str, Any] = json.loads(row.details)
    noted: dict[str, Any] = details.get("allocation", {})
    return noted if noted.get("id") else {}


def _name_of(found: Found) -> str:
    return found.sight.token


def _short(nodes: Sequence[str]) -> str:
    shown = ",".join(nodes[:4])
    return shown if len(nodes) <= 4 else f"{shown} and {len(nodes) - 4} more"
