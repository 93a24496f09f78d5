"""Where things lie in a campaign's tree, and what `campaign.toml` says. Pure: texts and paths, no files.

::

    campaign.toml                         what this is: layout, name, how to run the experiment, where large files go
    experiment                            the experiment's commit (a submodule)
    executions/3f/2a/3f2a.../record.json  what is known of an execution, for people and programs
    executions/3f/2a/3f2a.../stdout       what it wrote, byte for byte; `stderr` beside it
    executions/3f/2a/3f2a.../data/        the results it left

No folder has more than 256 others in it before there are millions, so a commit costs what is new in it, not what is there.
Every execution has a folder of its own and is written by whoever ran it, so two people's histories can always be merged.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from liborch.errors import CampaignError
from liborch.quantities import parse_size

#: The layout that this program writes, and the newest that it reads.
LAYOUT: Final = 1
SETTINGS: Final = "campaign.toml"
EXPERIMENT: Final = "experiment"
EXECUTIONS: Final = "executions"
RECORD: Final = "record.json"
STDOUT, STDERR, DATA = "stdout", "stderr", "data"
#: Files from this size are no business of git itself, in bytes.
LARGE_FROM_BYTES: Final = 1 << 20

_ID = re.compile(r"[a-z0-9]{4}[a-z0-9._-]{0,116}\Z")
#: What may be done with large files.
_LARGE = ("lfs", "git", "host", "refuse")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What `campaign.toml` says."""

    name: str
    #: Address of the experiment's repository; "./": this repository itself, on another branch.
    experiment_url: str = ""
    #: The program at the experiment's root, or the command line, that an execution runs.
    script: str = "run"
    #: A command for the shell, run in the campaign's folder after new results came; "": none.
    analysis: str = ""
    #: Files of data from this size go where `large` says.
    large_from_bytes: int = LARGE_FROM_BYTES
    #: "lfs", "git", "host" (they stay there), or "refuse".
    large: str = "lfs"


def folder_of(x: str) -> str:
    """Return the folder of an execution in the tree. Raises CampaignError for what is no id."""
    if not _ID.match(x):
        raise CampaignError(
            "",
            f"{x!r} is no id of an execution: four small letters or digits, then dots and dashes, too, are expected",
        )
    return f"{EXECUTIONS}/{x[:2]}/{x[2:4]}/{x}"


def read_settings(text: bytes, where: str) -> Settings:
    """Parse `campaign.toml`.

    Raises:
        CampaignError: It is no TOML, lacks what it must have, or is of a newer layout: names the key, and what was expected.
    """
    try:
        found = tomllib.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CampaignError(where, f"{SETTINGS} is no TOML: {error}") from error
    layout = found.get("layout")
    if type(layout) is not int or layout < 1:
        raise CampaignError(where, f"{SETTINGS}: `layout` should be a whole number from 1, it is {layout!r}")
    if layout > LAYOUT:
        raise CampaignError(
            where,
            f"the campaign is of layout {layout}, this program knows up to {LAYOUT}: install a newer one",
        )
    experiment = _table(found, "experiment", where)
    data = _table(found, "data", where)
    size = data.get("large_from", LARGE_FROM_BYTES)
    large = _text(data, "large", "lfs", where, "data.")
    if large not in _LARGE:
        raise CampaignError(
            where, f"{SETTINGS}: data.large should be one of {', '.join(_LARGE)}, it is {large!r}"
        )
    return Settings(
        name=_text(found, "name", "", where),
        experiment_url=_text(experiment, "url", "", where, "experiment."),
        script=_text(experiment, "script", "run", where, "experiment."),
        analysis=_text(found, "analysis", "", where),
        large_from_bytes=size if type(size) is int else parse_size(str(size)),
        large=large,
    )


def write_settings(settings: Settings) -> bytes:
    """Return `campaign.toml` for these, with a word on each."""
    lines = [
        f"layout = {LAYOUT}",
        f"name = {_quoted(settings.name)}",
        "# A command for the shell, run here after new results came.",
        f"analysis = {_quoted(settings.analysis)}",
        "",
        "[experiment]",
        "# Where its code comes from, and what an execution runs: a program at its root, or a command line.",
        f"url = {_quoted(settings.experiment_url)}",
        f"script = {_quoted(settings.script)}",
        "",
        "[data]",
        '# Where files from this size go: "lfs", "git", "host" (they stay where they were made), or "refuse".',
        f"large_from = {settings.large_from_bytes}",
        f"large = {_quoted(settings.large)}",
    ]
    return ("\n".join(lines) + "\n").encode()


def _table(found: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = found.get(key, {})
    if not isinstance(value, dict):
        raise CampaignError(where, f"{SETTINGS}: `{key}` should be a table, [{key}]")
    return value


def _text(found: Mapping[str, Any], key: str, default: str, where: str, prefix: str = "") -> str:
    value = found.get(key, default)
    if not isinstance(value, str):
        raise CampaignError(where, f"{SETTINGS}: {prefix}{key} should be a text, it is {value!r}")
    return value


def _quoted(text: str) -> str:
    # A TOML basic string is a JSON string, but for DEL, which JSON leaves as it is.
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")
