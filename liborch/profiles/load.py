"""A profile file -> `HostProfile`s: our form, several to a file, and the 2020 runaway's, unchanged.

The two forms are told apart, document by document, by their keys: one that holds a key only the 2020 form has is of
that form. The tables below are the reference for what may stand in a profile; `fields` says how values are read, `nodes`
what YAML is accepted. Finding the file of a host is left to `find`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from liborch.errors import ProfileError, SpecError
from liborch.profiles import nodes
from liborch.profiles.fields import (
    Key,
    Place,
    choice,
    read_command,
    read_commands,
    read_duration,
    read_gpus,
    read_list,
    read_mapping,
    read_size,
    read_text,
    read_texts,
    whole_number,
)
from liborch.profiles.names import LOCAL
from liborch.profiles.nodes import Scalar, parse_documents, read_documents, shown
from liborch.profiles.targets import parse_target
from liborch.specs import (
    ENTERED,
    AllocationSpec,
    BatchSystem,
    HostProfile,
    NodeSpec,
    Procedures,
    SlotSpec,
)


def load_file(path: str | Path) -> list[HostProfile]:
    """Return every profile of a file, in order; at least one. `source` is the path.

    A document without `name` takes the file's, when it is the only one.

    Raises:
        ProfileError: The file, or a value in it, cannot be used; names file, line, key and what was expected.
    """
    return _profiles(str(path), read_documents(str(path)))


def load_bytes(file: str, raw: bytes) -> list[HostProfile]:
    """As `load_file`, for content that was read already; `file` is for messages and the default name."""
    return _profiles(file, parse_documents(file, raw))


def _profiles(file: str, documents: list[nodes.Node]) -> list[HostProfile]:
    default = Path(file).stem if len(documents) == 1 else None
    found: dict[str, int] = {}
    profiles = []
    for root in documents:
        place = Place(file, root)
        profile = _read_2020(place, default) if _is_2020(root) else _read_ours(place, default)
        if profile.name in found:
            problem = f"{shown(profile.name)} is described twice (first in line {found[profile.name]})"
            raise ProfileError(file, root.line, "name", problem, "a name of its own for each document")
        found[profile.name] = root.line
        profiles.append(profile)
    return profiles


def _read_name(place: Place) -> str:
    name = read_text(place)
    if "/" in name or name.startswith("-") or name != name.strip() or len(name) > 200:
        place.fail(
            f"found {shown(name)}",
            "a name without slashes, a leading dash or outer blanks, 200 characters at most",
        )
    return name


def _read_own_name(place: Place) -> str:
    name = _read_name(place)
    if name == LOCAL:
        place.fail(
            f"{LOCAL} is built in", "another name (`ssh: local` describes this machine under a name of yours)"
        )
    return name


def _read_target(place: Place) -> str:
    text = read_text(place)
    try:
        parse_target(text)
    except SpecError as error:
        place.fail(str(error))
    return text


def _read_directory_2020(place: Place) -> str:
    """As `_read_directory`; a relative folder was below the home folder, where a login begins."""
    text = read_text(place)
    return _read_directory(place) if text.startswith(("/", "$", "~")) else f"$HOME/{text}"


def _read_directory(place: Place) -> str:
    """A folder on the host. Variables are expanded there, a leading `~` is not, so it becomes `$HOME`."""
    expected = (
        "an absolute folder on the host, or one that begins with a variable: /scratch/me, $HOME/orchestra"
    )
    if isinstance(place.node, Scalar) and place.node.plain and place.node.text == "~":
        place.fail("found ~, which is YAML's word for no value", "$HOME")
    text = read_text(place)
    if text == "~" or text.startswith("~/"):
        text = "$HOME" + text[1:]
    if not text.startswith(("/", "$")):
        place.fail(f"found {shown(text)}", expected)
    return text


_SLOT_KEYS = {
    "count": Key(whole_number(1)),
    "cpus": Key(whole_number(1)),
    "gpus": Key(read_gpus),
    "memory": Key(read_size),
}


def _read_slots(place: Place) -> SlotSpec:
    """A number per node, `auto`, or what each slot holds."""
    if isinstance(place.node, Scalar) and not place.node.is_null:
        if place.node.text == "auto":
            return SlotSpec()
        return SlotSpec(
            count=whole_number(1, "`auto`, a mapping with count, cpus, gpus, memory, or a whole number")(
                place
            )
        )
    values = read_mapping(place, _SLOT_KEYS)
    if "memory" in values:
        values["memory_bytes"] = values.pop("memory")
    return SlotSpec(**values)


_ALLOCATION_KEYS = {
    "nodes": Key(whole_number(1)),
    "walltime": Key(read_duration),
    "least": Key(whole_number(1)),
    "most": Key(whole_number(1)),
    "options": Key(read_texts),
}


def _read_allocation(place: Place) -> AllocationSpec:
    values = read_mapping(place, _ALLOCATION_KEYS)
    if "walltime" in values:
        values["walltime_s"] = values.pop("walltime")
    return AllocationSpec(**values)


_NODE_KEYS = {"ssh": Key(_read_target, required=True), "slots": Key(_read_slots)}


def _read_node(place: Place) -> NodeSpec:
    if isinstance(place.node, Scalar):
        return NodeSpec(ssh=_read_target(place))
    return NodeSpec(**read_mapping(place, _NODE_KEYS))


def _read_nodes(place: Place) -> tuple[NodeSpec, ...]:
    made = read_list(place, _read_node, "a list such as [desk1, {ssh: gpu1, slots: {gpus: 1}}]")
    if not made:
        place.fail("the list is empty", "at least one node")
    seen: set[str] = set()
    for index, node in enumerate(made, 1):
        if node.ssh in seen:
            assert isinstance(place.node, nodes.Sequence)
            place.item(index, place.node.items[index - 1]).fail(
                f"the node {shown(node.ssh)} is there twice", "each node once"
            )
        seen.add(node.ssh)
    return made


def _read_proxycommand(place: Place) -> str:
    """A command for ssh's ProxyCommand, perhaps empty: nodes are then reached directly."""
    text = read_command(place)
    if "\n" in text or "\r" in text:
        place.fail("holds a line end", "one command on one line")
    return text.strip()


_PROCEDURE_KEYS = {
    "start_allocation": Key(read_commands, required=True),
    "cancel_allocation": Key(read_commands),
    "get_node_handles": Key(read_commands, required=True),
    "node_proxycommand": Key(_read_proxycommand),
    "allocation_duration": Key(read_duration),
}


def _read_procedures(place: Place) -> Procedures:
    values = read_mapping(place, _PROCEDURE_KEYS)
    if "allocation_duration" in values:
        values["allocation_duration_s"] = values.pop("allocation_duration")
    return Procedures(**values)


#: Our form.
KEYS = {
    "name": Key(_read_own_name),
    "ssh": Key(_read_target),
    "directory": Key(_read_directory),
    "batch_system": Key(choice(get_args(BatchSystem))),
    "allocation": Key(_read_allocation),
    "slots": Key(_read_slots),
    "connect": Key(choice(("ssh", "batch_system"))),
    "execution": Key(read_commands),
    "nodes": Key(_read_nodes),
    "procedures": Key(_read_procedures),
}
#: The 2020 form. There every key was required; here only what cannot be guessed is.
KEYS_2020 = {
    "name": Key(_read_name),
    "ssh_configuration": Key(_read_target, required=True),
    "node_proxycommand": Key(_read_proxycommand),
    "start_allocation": Key(read_commands, required=True),
    "cancel_allocation": Key(read_commands),
    "allocation_duration": Key(whole_number(1, "a whole number of minutes")),
    "get_node_handles": Key(read_commands, required=True),
    "directory": Key(_read_directory_2020, required=True),
    "execution": Key(read_commands, required=True),
}
#: Keys that only one form has, and where the same thing goes in the other.
_ONLY_2020 = {
    "ssh_configuration": "in this form it is `ssh`",
    **{
        key: f"in this form it goes below `procedures`: `procedures: {{{key}: ...}}`"
        for key in _PROCEDURE_KEYS
    },
}
_ONLY_OURS = {
    **dict.fromkeys(
        KEYS.keys() - KEYS_2020.keys(),
        "the 2020 form, which this file has (see its other keys), knows no such key",
    ),
    "ssh": "in the 2020 form, which this file has, it is `ssh_configuration`",
}
#: Keys of runaway profiles older than 2020.
_OLDER = {
    "ssh_config": "it is `ssh_configuration` since 2020",
    "host_directory": "it is `directory` since 2020",
    "before_execution": "put its commands in front of those of `execution`",
    "after_execution": "put its commands behind those of `execution`",
}


def _is_2020(root: nodes.Node) -> bool:
    """Whether a document is of the 2020 form.

    A single key of a procedure, put at the top by mistake, does not make it so when `ssh` is there: the error then tells
    where it goes.
    """
    if not isinstance(root, nodes.Mapping):
        return False
    keys = {key.text for key, _ in root.pairs}
    return "ssh_configuration" in keys or (
        bool(keys & _PROCEDURE_KEYS.keys()) and not keys & {"ssh", "nodes", "batch_system"}
    )


def _name(place: Place, values: dict[str, Any], default: str | None) -> str:
    name = values.pop("name", default)
    if name is None:
        place.fail("the key name is missing", "`name: ...` in each document of a file that has several")
    assert isinstance(name, str)
    if not values.get("ssh_configuration") and name == LOCAL:
        place.fail(f"a profile without `name` takes the file's, and {LOCAL} is built in", "`name: ...`")
    return name


def _read_ours(place: Place, default: str | None) -> HostProfile:
    values = read_mapping(place, KEYS, _ONLY_2020 | _OLDER)
    values["name"] = _name(place, values, default)
    system = values.get("batch_system", "none")

    def at(key: str) -> Place:
        assert isinstance(place.node, nodes.Mapping)
        return next(place.below(key, found) for name, found in place.node.pairs if name.text == key)

    if "ssh" not in values:
        if "nodes" not in values:
            place.fail(
                "the key ssh is missing", "`ssh: ALIAS` (or user@name:port, or local), or `nodes: [...]`"
            )
        values["ssh"] = values["nodes"][0].ssh
    if system == "none" and "allocation" in values:
        at("allocation").fail(
            "there is no batch system to ask",
            "`batch_system: slurm` (or another) beside it, or no allocation",
        )
    if system == "none" and values.get("connect") == "batch_system":
        at("connect").fail(
            "there is no batch system to connect through", "`batch_system: slurm` (or another) beside it"
        )
    if system not in ENTERED and values.get("connect") == "batch_system":
        at("connect").fail(
            f"nodes of {system} cannot be entered through it: its programs for that work from inside an allocation only",
            "`connect: ssh`, or nothing",
        )
    if system != "none" and "nodes" in values:
        at("nodes").fail(
            f"the nodes of this host come from its batch system ({system})",
            "no list of nodes, or no batch_system",
        )
    if system == "procedures" and "procedures" not in values:
        at("batch_system").fail(
            "the procedures are missing", "`procedures: {start_allocation: [...], get_node_handles: [...]}`"
        )
    if system != "procedures" and "procedures" in values:
        at("procedures").fail(f"batch_system is {system}", "`batch_system: procedures`")
    return HostProfile(source=place.file, **values)


def _read_2020(place: Place, default: str | None) -> HostProfile:
    values = read_mapping(place, KEYS_2020, _ONLY_OURS | _OLDER)
    name = _name(place, values, default)
    minutes = values.get("allocation_duration")
    return HostProfile(
        name=name,
        ssh=values["ssh_configuration"],
        directory=values["directory"],
        batch_system="procedures",
        execution=values["execution"],
        procedures=Procedures(
            start_allocation=values["start_allocation"],
            cancel_allocation=values.get("cancel_allocation", ()),
            get_node_handles=values["get_node_handles"],
            node_proxycommand=values.get("node_proxycommand", ""),
            allocation_duration_s=None if minutes is None else minutes * 60.0,
        ),
        source=place.file,
    )
