"""What a campaign keeps of an execution: `record.json`, for people and programs. Pure.

Times are UTC, as ISO 8601 texts with a Z. What a newer program wrote into a record and this one does not know stays in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from liborch.errors import CampaignError


class Code(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which code ran."""

    #: The experiment's commit; of a snapshot: the one it was made on.
    commit: str = ""
    #: The commit of the exact working tree that ran; "": the commit as it is.
    snapshot: str = ""
    #: What was run, from the experiment's root.
    script: str = ""


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One try."""

    node: str = ""
    started: str = ""
    ended: str = ""
    reason: str = ""
    exit_code: int | None = None


class Left(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file of results that stays somewhere else."""

    path: str
    host: str
    #: Absolute, there.
    at: str
    size_bytes: int
    sha256: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An execution as a campaign knows it."""

    id: str
    #: "new", "running", "succeeded", "failed", "cancelled", "lost".
    state: str = "new"
    code: Code = Code()
    #: The arguments, one by one.
    arguments: tuple[str, ...] = ()
    #: The same by name, where they have names.
    parameters: dict[str, Any] = {}
    #: cpus, memory_bytes, gpus, walltime_s, nodes: what was asked for.
    resources: dict[str, Any] = {}
    host: str = ""
    node: str = ""
    attempts: int = 0
    created: str = ""
    started: str = ""
    ended: str = ""
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    peak_memory_bytes: int | None = None
    #: Numbers and texts the execution reported.
    metrics: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    #: Who asked for it: `Name <address>`, as git says it.
    who: str = ""
    left: tuple[Left, ...] = ()


def write_record(record: Record, before: bytes | None = None) -> bytes:
    """Return a record's text. `before`: the text it replaces, of which unknown fields stay."""
    fields: dict[str, Any] = msgspec.to_builtins(record)
    if before is not None:
        known = {field.name for field in msgspec.structs.fields(Record)}
        fields |= {name: value for name, value in _fields(before, record.id).items() if name not in known}
    return _text(fields)


def read_record(text: bytes, where: str) -> Record:
    """Parse a record.

    Raises:
        CampaignError: It is damaged: names where, and what was expected.
    """
    try:
        return msgspec.json.decode(text, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CampaignError(where, f"is no record of an execution: {error}") from error


def merge(base: bytes | None, ours: bytes | None, theirs: bytes | None) -> bytes | None:
    """Merge three texts of a record field by field; None when both changed the same one, or one is damaged."""
    try:
        parts = [{} if text is None else _fields(text, "") for text in (base, ours, theirs)]
        return _text(_merged(*parts))
    except (CampaignError, _BothChanged):
        return None


class _BothChanged(Exception):
    """Two values for one field."""


def _merged(base: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    missing = object()
    found: dict[str, Any] = {}
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        was, our, their = (side.get(name, missing) for side in (base, ours, theirs))
        if our == their or their == was:
            value = our
        elif our == was:
            value = their
        elif isinstance(our, dict) and isinstance(their, dict):
            value = _merged(was if isinstance(was, dict) else {}, our, their)
        elif isinstance(our, list) and isinstance(their, list) and name == "tags":
            before = was if isinstance(was, list) else []
            gone = [tag for tag in before if tag not in our or tag not in their]
            value = sorted({*our, *their} - set(gone))
        else:
            raise _BothChanged(name)
        if value is not missing:
            found[name] = value
    return found


def _fields(text: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CampaignError(where, f"is no record of an execution: {error}") from error
    if not isinstance(found, dict):
        raise CampaignError(where, "is no record of an execution: no JSON object")
    return found


def _text(fields: Mapping[str, Any]) -> bytes:
    """In the order of `Record`, what is unknown behind it by name: the same fields are the same bytes."""
    order = {field.name: at for at, field in enumerate(msgspec.structs.fields(Record))}
    names = sorted(fields, key=lambda name: (order.get(name, len(order)), name))
    return (json.dumps({name: fields[name] for name in names}, indent=2, ensure_ascii=False) + "\n").encode(
        "utf-8", "surrogatepass"
    )
