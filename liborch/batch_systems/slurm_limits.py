"""Limits that Slurm tells of: those of the partition from the controller, those of the person from the accounting.

What is not there, or not understood, is no limit: a submission that goes too far is refused, and its words say why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from liborch.batch_systems._reading import seconds_of
from liborch.batch_systems.base import Limits

_ASSOC: Final = ("Account", "Partition", "MaxSubmitJobs", "MaxJobs", "MaxWall", "MaxTRES", "DefaultQOS")
_QOS: Final = ("Name", "MaxSubmitJobsPerUser", "MaxJobsPerUser", "MaxWall", "MaxTRES")

#: A limit found: (field of `Limits`, value, where it comes from).
_Found = tuple[str, float, str]


def script(options: Sequence[str]) -> list[str]:
    """Return lines of sh that ask. The options' partition, account and QOS are told again, for the answer to choose by."""
    chosen = {
        "partition": _value(options, "--partition", "-p"),
        "account": _value(options, "--account", "-A"),
        "qos": _value(options, "--qos", "-q"),
    }
    told = "|".join(f"{key}={value}" for key, value in chosen.items() if re.match(r"[\w.,+-]*\Z", value))
    user = '"$(id -un)"'
    return [
        f"echo 'orch-chosen|{told}'",
        "scontrol --oneliner show partition",
        # The accounting is another program, which need not be there nor answer.
        "echo orch-user",
        f"timeout 5 sacctmgr -nP show user {user} format=DefaultAccount",
        "echo orch-assoc",
        f"timeout 5 sacctmgr -nP show assoc user={user} format={','.join(_ASSOC)}",
        "echo orch-qos",
        f"timeout 5 sacctmgr -nP show qos format={','.join(_QOS)}",
    ]


def read(told: str) -> Limits:
    """Read what was answered; the least of what applies holds."""
    chosen: dict[str, str] = {}
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in told.splitlines():
        if line.startswith("orch-chosen|"):
            chosen = dict(word.split("=", 1) for word in line.split("|")[1:] if "=" in word)
            lines = sections.setdefault("partition", [])
        elif line in ("orch-user", "orch-assoc", "orch-qos"):
            lines = sections.setdefault(line.removeprefix("orch-"), [])
        else:
            lines.append(line)
    partitions = _partitions(sections.get("partition", []), chosen.get("partition", ""))
    found = _of_partitions(partitions)
    account = chosen.get("account") or next(iter(sections.get("user", [])), "")
    assoc = _assoc(sections.get("assoc", []), account, [part["PartitionName"] for part in partitions])
    if assoc:
        where = f"account {assoc['Account']}"
        found += _of_person(assoc, ("MaxSubmitJobs", "MaxJobs"), where)
    wanted = {
        chosen.get("qos") or (assoc or {}).get("DefaultQOS", ""),
        *(part.get("QoS", "") for part in partitions),
    }
    for line in sections.get("qos", []):
        qos = dict(zip(_QOS, line.split("|"), strict=False))
        if qos["Name"] and qos["Name"] in wanted:
            found += _of_person(qos, ("MaxSubmitJobsPerUser", "MaxJobsPerUser"), f"QOS {qos['Name']}")
    return _least(found)


def _partitions(lines: Sequence[str], wanted: str) -> list[dict[str, str]]:
    """The partitions that are asked for, or the default one."""
    known = []
    for line in lines:
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "PartitionName" in words:
            known.append(words)
    if wanted:
        return [part for part in known if part["PartitionName"] in wanted.split(",")]
    return [part for part in known if part.get("Default") == "YES"]


def _of_partitions(partitions: Sequence[dict[str, str]]) -> list[_Found]:
    """Where several will do, the widest counts."""
    widest: dict[str, _Found] = {}
    for part in partitions:
        where = f"partition {part['PartitionName']}"
        limits = [
            ("most_walltime_s", _seconds(part.get("MaxTime", "")), f"{where}: MaxTime"),
            *(
                ("most_nodes", _number(part.get(key, "")), f"{where}: {key}")
                for key in ("MaxNodes", "TotalNodes")
            ),
        ]
        least: dict[str, _Found] = {}
        for field, value, source in limits:
            limit = float("inf") if value is None else value
            if field not in least or limit < least[field][1]:
                least[field] = (field, limit, source)
        for field, found in least.items():
            if field not in widest or found[1] > widest[field][1]:
                widest[field] = found
    return [found for found in widest.values() if found[1] != float("inf")]


def _assoc(lines: Sequence[str], account: str, partitions: Sequence[str]) -> dict[str, str] | None:
    """The person's association that applies: of the account, for the partition if there is one."""
    rows = [
        dict(zip(_ASSOC, line.split("|"), strict=False))
        for line in lines
        if line.count("|") == len(_ASSOC) - 1
    ]
    rows = [row for row in rows if row["Account"] == account] or (rows if len(rows) == 1 else [])
    exact = [row for row in rows if row["Partition"] in partitions and row["Partition"]]
    general = [row for row in rows if not row["Partition"]]
    return next(iter(exact or general), None)


def _of_person(row: dict[str, str], keys: tuple[str, str], where: str) -> list[_Found]:
    """Limits in a line of sacctmgr's."""
    nodes = re.search(r"(?:\A|,)node=([0-9]+)", row.get("MaxTRES", ""))
    told = (
        ("most_submitted", keys[0], _number(row.get(keys[0], ""))),
        ("most_active", keys[1], _number(row.get(keys[1], ""))),
        ("most_walltime_s", "MaxWall", _seconds(row.get("MaxWall", ""))),
        ("most_nodes", "MaxTRES", _number(nodes[1]) if nodes else None),
    )
    return [(field, value, f"{where}: {key}") for field, key, value in told if value is not None]


def _least(found: Sequence[_Found]) -> Limits:
    least: dict[str, _Found] = {}
    for each in found:
        if each[0] not in least or each[1] < least[each[0]][1]:
            least[each[0]] = each

    def count(field: str) -> int | None:
        return int(least[field][1]) if field in least else None

    return Limits(
        most_submitted=count("most_submitted"),
        most_active=count("most_active"),
        most_walltime_s=least["most_walltime_s"][1] if "most_walltime_s" in least else None,
        most_nodes=count("most_nodes"),
        sources={field: source for field, _, source in least.values()},
    )


def _number(text: str) -> float | None:
    return float(text) if re.match(r"[0-9]{1,12}\Z", text) else None


def _seconds(text: str) -> float | None:
    """A walltime as Slurm writes it in its settings: `1-00:00:00`, `01:00:00`; UNLIMITED and "" are none."""
    return seconds_of(text) if ":" in text else None


def _value(options: Sequence[str], long: str, short: str) -> str:
    """The last value of an option, in any of its four spellings."""
    value = ""
    for at, word in enumerate(options):
        if word in (long, short) and at + 1 < len(options):
            value = options[at + 1]
        elif word.startswith(long + "="):
            value = word.removeprefix(long + "=")
        elif word.startswith(short) and not word.startswith("--") and len(word) > 2:
            value = word.removeprefix(short)
    return value
