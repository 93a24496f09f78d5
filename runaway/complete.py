"""What could come next on a command line: words for the shells' completion. Starts in a few bare interpreters' time.

`runaway --complete WORD...` prints one candidate per line; the last WORD is the one being typed. Neither asyncio nor YAML is
imported, and click only where an option was or is being typed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

#: What follows each command: words of these kinds.
_OPERANDS = {
    "exec": ("host", "file"),
    "batch": ("host", "file"),
    "results": ("batch",),
    "show": ("id or batch",),
    "logs": ("id",),
    "attach": ("id or batch",),
    "wait": ("id or batch*",),
    "explain": ("live or batch",),
    "kill": ("live or batch*",),
    "pause": ("live",),
    "resume": ("live",),
    "fetch": ("id",),
    "clean": ("host or id*",),
    "doctor": ("host",),
    "alloc": ("host",),
    "allocs": ("host*",),
    "release": ("allocation*",),
    "nodes": ("host",),
    "shell": ("host",),
    "hosts": ("hosts", "host*"),
    "completion": ("shell",),
}
#: Options whose values are looked up.
_NAMES = {"--batch": "batch", "--alloc": "allocation", "--exec": "live", "--host": "host", "-H": "host"}
SHELLS = ("bash", "zsh", "fish")
#: Ids offered: the newest ones, or, once something is typed, the first that begin so.
MOST_IDS = 50


def candidates(words: Sequence[str], commands: Mapping[str, tuple[str, str]]) -> list[str]:
    """Words that begin with the last of `words`, the others being what was typed before it."""
    typed = words[-1] if words else ""
    before = list(words[:-1])
    if not before:
        return [name for name in commands if name.startswith(typed)]
    command = before[0]
    if command not in commands or "--" in before:
        return []
    if typed.startswith("-"):
        return [option for option in _options(commands[command][0], before) if option.startswith(typed)]
    operands = before[1:]
    if any(word.startswith("-") for word in operands):
        values = _values(commands[command][0], before)
        if before[-1] in values:
            if before[-1] in _NAMES:
                return [word for word in _words(_NAMES[before[-1]], typed) if word.startswith(typed)]
            return [value for value in values[before[-1]] if value.startswith(typed)]
        operands = [
            word for last, word in pairwise(before) if last not in values and not word.startswith("-")
        ]
    kinds = _OPERANDS.get(command, ())
    at = len(operands)
    kind = kinds[min(at, len(kinds) - 1)] if kinds and (at < len(kinds) or kinds[-1].endswith("*")) else ""
    return [word for word in _words(kind.rstrip("*"), typed) if word.startswith(typed)]


def _words(kind: str, typed: str) -> list[str]:
    if kind == "hosts":
        return ["list", "check", "show"]
    if kind == "shell":
        return list(SHELLS)
    if kind == "allocation":
        return _allocations()
    found: list[str] = []
    if "host" in kind:
        found += _hosts()
    if "id" in kind or "live" in kind or "batch" in kind:
        found += _ids(typed, kind)
    return found


def _hosts() -> list[str]:
    from liborch.places import places
    from liborch.profiles.names import known_hosts_names
    from runaway.places import ssh_config_of

    folders = places(dict(os.environ))
    return known_hosts_names(folders.profiles, ssh_config_of(folders))


def _allocations() -> list[str]:
    """Those that were asked for here and not released; what else is in the queue only the batch system knows."""
    import json
    import sqlite3

    from liborch.places import places

    journal = places(dict(os.environ)).journal
    query = f"SELECT details FROM orchestrations WHERE kind = 'alloc' AND state != 'ended' ORDER BY number DESC LIMIT {MOST_IDS}"
    try:
        db = sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True, timeout=0.2)
        noted = [json.loads(row[0]).get("allocation", {}) for row in db.execute(query)]
    except (sqlite3.Error, ValueError):
        return []
    ids = [str(each["id"]) for each in noted if each.get("id")]
    return [*dict.fromkeys(ids), *(["last"] if ids else [])]


def _ids(typed: str, kind: str) -> list[str]:
    """Ids of executions (`id`, `live`), of batches, or of both."""
    import sqlite3

    from liborch.places import places

    # The journal's own reader checks more, and takes longer to import than a key press may.
    # No id begins with an l: then all there are stand for `last`.
    prefix = "" if "last".startswith(typed) else typed
    span = (prefix, prefix + "\uffff")
    # A range and not LIKE: that would not use the index, and an old id is completed like a new one.
    begins = f"id >= ? AND id < ? ORDER BY {{}} DESC LIMIT {MOST_IDS}"
    ended = "ended_at IS NULL AND " if "live" in kind else ""
    found: list[str] = []
    journal = places(dict(os.environ)).journal
    try:
        db = sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True, timeout=0.2)
        if "batch" in kind:
            over = "state != 'ended' AND " if "live" in kind else ""
            query = f"SELECT id FROM orchestrations WHERE kind = 'batch' AND {over}"
            found += (str(row[0]) for row in db.execute(query + begins.format("number"), span))
        if kind != "batch":
            # Newest first, of a million: whoever typed nothing yet is shown the end of the table.
            walk = "" if prefix else "INDEXED BY live" if ended else "NOT INDEXED"
            query = f"SELECT id FROM executions {walk} WHERE {ended}"
            found += (str(row[0]) for row in db.execute(query + begins.format("place"), span))
    except (sqlite3.Error, ValueError):
        return []  # A key press is no place for a message.
    return [*dict.fromkeys(found), *(["last"] if found else [])]


def _options(module: str, before: Sequence[str]) -> list[str]:
    params = _command(module, before).params
    return ["--help", *(name for param in params for name in param.opts if name.startswith("--"))]


def _values(module: str, before: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{option that takes a value: the values there are, if they are few}."""
    import click

    return {
        name: tuple(map(str, param.type.choices)) if isinstance(param.type, click.Choice) else ()
        for param in _command(module, before).params
        if isinstance(param, click.Option) and not param.is_flag
        for name in param.opts
    }


def _command(module: str, before: Sequence[str]) -> click.Command:
    from importlib import import_module

    import click

    command: click.Command = import_module(module).command
    if isinstance(command, click.Group) and len(before) > 1:
        command = command.commands.get(before[1], command)
    return command


SCRIPTS = {
    "bash": """_runaway() {
    local IFS=$'\\n' words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    COMPREPLY=($(runaway --complete "${words[@]}" 2>/dev/null))
    if [ ${#COMPREPLY[@]} -eq 0 ]; then COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")); fi
}
complete -o filenames -F _runaway runaway
""",
    "zsh": """#compdef runaway
_runaway() {
    local -a found
    found=("${(@f)$(runaway --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n ${found[1]} ]]; then compadd -- "${found[@]}"; else _files; fi
}
compdef _runaway runaway
""",
    "fish": """function __runaway_complete
    set -l words (commandline -opc) (commandline -ct)
    runaway --complete $words[2..-1] 2>/dev/null
end
complete -c runaway -f -a '(__runaway_complete)'
complete -c runaway -n '__fish_seen_subcommand_from exec' -F
""",
}


def main(words: Sequence[str], commands: Mapping[str, tuple[str, str]]) -> int:
    """Print candidates; returns the exit status."""
    for word in candidates(words, commands):
        sys.stdout.write(word + "\n")
    return 0
