"""From a spec to the order an agent understands: only what differs from an agent's own defaults."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from liborch.core import events as ev
from liborch.profiles import procedures
from liborch.specs import ExecutionSpec, Transfer

# Made once: `json.dumps` makes one for each text.
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode_spec = msgspec.json.Decoder(ExecutionSpec).decode


def order_of(
    spec: ExecutionSpec, *, folder: str | None, variables: dict[str, str], lease: str = ""
) -> dict[str, Any]:
    """Return the order's own part.

    Args:
        folder: Where it runs, as the host expanded it; None: in the home folder.
        variables: RUNAWAY_* of this execution, under what the spec sets itself.
        lease: The slot it runs in.
    """
    resources = spec.resources
    order: dict[str, Any] = {}
    if spec.procedure:
        order["argv"] = list(procedures.argv(spec.procedure, spec.argv))
        order["outcome"] = True
    else:
        order["argv"] = list(spec.argv)
    env = {**variables, **spec.env}
    if env:
        order["env"] = env
    if folder is not None:
        order["cwd"] = folder
    for name, value in (
        ("cpus", resources.cpus),
        ("mem", resources.memory_bytes),
        ("gpus", resources.gpus),
        ("numa", resources.numa),
        ("wall", spec.walltime_s),
        ("tty", list(spec.tty) if spec.tty else None),
        ("lease", lease),
        ("keep", spec.keep_survivors),
        ("live", spec.live),
    ):
        if value or (name == "numa" and value is not None):
            order[name] = value
    if spec.grace_s != 10.0:
        order["grace"] = spec.grace_s
    return order


def spec_to_json(spec: ExecutionSpec) -> str:
    """Text for the journal. The standard library's JSON, because arguments may hold bytes that are no UTF-8."""
    return _encode(msgspec.to_builtins(spec))


def spec_from_json(text: str) -> ExecutionSpec:
    """The spec again. Raises msgspec.ValidationError, ValueError when it is not one."""
    try:
        return _decode_spec(text)
    except msgspec.DecodeError:
        # Bytes that are no UTF-8: only the standard library takes their surrogates. Or it is none: then this says so.
        return msgspec.convert(json.loads(text), ExecutionSpec)


def own_part(spec: ExecutionSpec, common: dict[str, Any]) -> str:
    """What a spec says beside what all of its batch say: a JSON merge patch of `common` (as `msgspec.to_builtins` gives it)."""
    return _encode(_differences(msgspec.to_builtins(spec), common))


def _differences(own: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = {name: None for name in common if name not in own}
    for name, value in own.items():
        shared = common.get(name)
        if value == shared:
            continue
        patch[name] = (
            _differences(value, shared) if isinstance(value, dict) and isinstance(shared, dict) else value
        )
    return patch


def remote_folder(transfer: Transfer, directory: str) -> str:
    """The remote folder with our own variable filled in; the host expands the rest."""
    text = transfer.remote_folder
    for name in ("${RUNAWAY_PATH}", "$RUNAWAY_PATH"):
        text = text.replace(name, directory)
    return text


def submitted(x: str, spec: ExecutionSpec, batch: str, lease: str, *, is_slot: bool = False) -> ev.Submitted:
    """The core's view of a spec."""
    resources = spec.resources
    transfer = spec.transfer
    return ev.Submitted(
        x,
        batch,
        resources.counted_cpus,
        resources.memory_bytes,
        resources.gpus,
        spec.priority,
        spec.walltime_s,
        spec.retries,
        spec.retry_on,
        staged=transfer is not None,
        collected=transfer is not None or bool(spec.post),
        nodes=spec.nodes,
        lease=lease,
        is_slot=is_slot,
        node_count=spec.node_count,
    )
