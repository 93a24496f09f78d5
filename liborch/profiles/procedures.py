"""The shell procedures of a profile: a list of commands -> one script; what the script noted -> variables and a folder.

Pure: nothing is run here. A procedure is what the 2020 runaway calls `start_allocation`, `cancel_allocation`,
`get_node_handles` and `execution`. The rules its commands can rely on:

* they share one bash: what one of them defines, exports, or changes to is there for the next;
* the first that fails ends the list, with its code; `exit 3` ends it with 3; a syntax error is a failure of that command
  alone, the ones before it have run;
* afterwards, also after a failure or `exit`, every variable that begins with RUNAWAY, exported or not, and the working
  directory are noted, byte for byte, in the file that OUTCOME_VARIABLE names. They are the environment and the folder of
  what comes next (frontend -> node -> slot -> execution). Nothing is read from what the commands print.

The note is rewritten after each command. So a command that replaces the shell (`exec ./run`), sets an EXIT trap of its own,
or is killed leaves the state before it.

Where there is no bash the script runs in `sh`, with the same rules. What cannot work there is what the commands themselves
need bash for: `[[ ]]`, arrays, `source`, `function`, `<(...)`, `$'...'`, `pipefail`; some of these end a POSIX shell at once,
with code 2.

Left to whoever runs the script: the environment and folder to start in, an empty standard input (a command that reads must not
wait for ever), the file for the note (mode 0600, in a folder of ours), and ending the process group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from liborch.errors import ProcedureError

#: Variable that names the file for the note, an absolute path. It is taken out of the commands' environment.
OUTCOME_VARIABLE = "ORCHESTRA_OUTCOME"
#: Variables whose names begin so are noted.
PREFIX = "RUNAWAY"
#: Largest note taken, in bytes; what execve could hand on anyway.
MAX_OUTCOME = 4 << 20
_MAGIC = b"orchestra outcome 1"

# Only builtins, so that it is quick and works with any PATH. `command` passes by functions of the same name; `>|` passes
# by `set -C`. Written by bash through `${!RUNAWAY@}`, which other shells cannot even parse, hence the eval; elsewhere the names come from
# `set`, whose lines may be parts of values: such a name is noted only if it is a variable as well.
_HEAD = r"""
__orchestra_file=${ORCHESTRA_OUTCOME-}
unset ORCHESTRA_OUTCOME
__orchestra_at=0
__orchestra_one() {
    case $1 in *[!A-Za-z0-9_]*) return 0 ;; esac
    eval "if [ -n \"\${$1+x}\" ]; then command printf '%s=%s\\0' \"\$1\" \"\${$1}\"; fi"
}
__orchestra_names() {
    if [ -n "${BASH_VERSION-}" ]; then
        eval 'for __orchestra_name in "${!RUNAWAY@}"; do __orchestra_one "$__orchestra_name"; done'
    else
        set | while IFS= read -r __orchestra_name; do
            case $__orchestra_name in RUNAWAY*=*) __orchestra_one "${__orchestra_name%%=*}" ;; esac
        done
    fi
}
__orchestra_note() {
    [ -n "$__orchestra_file" ] || return 0
    {
        command printf 'orchestra outcome 1\0%s\0' "$__orchestra_at"
        command pwd
        command printf '\0'
        __orchestra_names
        command printf '\0'
    } >| "$__orchestra_file" || :
}
trap '__orchestra_note' EXIT
"""

# Not `eval ... || exit`: that would switch off the commands' own `set -e`.
_EACH = """
__orchestra_at={number}
eval {quoted}
__orchestra_code=$?
[ "$__orchestra_code" -eq 0 ] || exit "$__orchestra_code"
__orchestra_note
"""

#: Runs a script (first argument) with arguments (the rest) in bash, or in sh where there is no bash.
_LAUNCH = 'if command -v bash >/dev/null 2>&1; then exec bash -c "$@"; fi; exec sh -c "$@"'


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a procedure left behind."""

    #: {name: value} of every variable that begins with RUNAWAY. Bytes that are no UTF-8 are surrogate escapes.
    variables: dict[str, str] = field(default_factory=dict)
    #: The working directory.
    folder: str = ""
    #: Number, from 1, of the last command that was begun; 0: none.
    reached: int = 0


def render(commands: Sequence[str]) -> str:
    """Return the script of a procedure, for bash or sh. Its positional parameters are whatever it is started with.

    Empty commands do nothing, but count.

    Raises:
        ProcedureError: A command holds a NUL character.
    """
    parts = [_HEAD]
    for number, command in enumerate(commands, 1):
        if "\0" in command:
            raise ProcedureError("", f"command {number} holds a NUL character")
        parts.append(_EACH.format(number=number, quoted=quote(command)))
    return "".join([*parts, "exit 0\n"])


def argv(commands: Sequence[str], arguments: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command that runs a procedure: bash if the host has it, else sh. `"$@"` in it is `arguments`.

    The script is one argument, so commands of more than about 120 KiB in all do not fit (Linux's limit for one).
    """
    return ("/bin/sh", "-c", _LAUNCH, "sh", render(commands), "procedure", *arguments)


def parse_outcome(raw: bytes) -> Outcome:
    """Read back the note.

    Raises:
        ProcedureError: It is cut short or not ours: the disk was full, or the shell was killed while writing it.
    """
    fields = raw[: MAX_OUTCOME + 1].split(b"\0")
    if len(raw) > MAX_OUTCOME:
        raise ProcedureError("", f"noted more than {MAX_OUTCOME >> 20} MiB of variables")
    # MAGIC, number, folder, NAME=value..., an empty one; then nothing follows the last NUL.
    if (
        len(fields) < 5
        or fields[0] != _MAGIC
        or fields[-2:] != [b"", b""]
        or not re.fullmatch(rb"[0-9]{1,9}", fields[1])
    ):
        raise ProcedureError("", "the note of its variables is cut short or not ours")
    variables: dict[str, str] = {}
    for entry in fields[3:-2]:
        name, equals, value = entry.partition(b"=")
        if not equals or not re.fullmatch(rb"RUNAWAY[A-Za-z0-9_]*", name):
            raise ProcedureError("", "the note of its variables is cut short or not ours")
        variables[_text(name)] = _text(value)
    return Outcome(variables, _text(fields[2].removesuffix(b"\n")), int(fields[1]))


def carry_on(outcome: Outcome, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the next procedure: what the last one left, then what is new, which wins."""
    return {**outcome.variables, **extra}


def words_of(variables: Mapping[str, str], name: str, procedure: str) -> tuple[str, ...]:
    """Return the words of RUNAWAY_NODES or RUNAWAY_HANDLES, one node or slot each, as often as they stand there.

    Blanks, tabs and line ends part them; those around them do no harm.

    Raises:
        ProcedureError: The procedure did not set it, or it has no words.
    """
    if name not in variables:
        raise ProcedureError(
            procedure, f"did not set {name}", f"a command such as `export {name}='first second'`"
        )
    words = tuple(variables[name].split())
    if not words:
        raise ProcedureError(procedure, f"set {name} to nothing", "one word for each, separated by blanks")
    return words


def proxycommand(template: str, node: str) -> str:
    """Put a node's id into `node_proxycommand`, for `$RUNAWAY_NODE_ID` and `${RUNAWAY_NODE_ID}`.

    The command is the person's, run by a shell of ours; the id is the host's, so only letters, digits and `._:-` are taken.

    Raises:
        ProcedureError: The id could be read as an option or by the shell.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,254}", node):
        raise ProcedureError(
            "start_allocation",
            f"named the node {node[:80]!r} in RUNAWAY_NODES",
            "letters, digits and ._:- only",
        )
    return re.sub(r"\$(?:RUNAWAY_NODE_ID(?![A-Za-z0-9_])|\{RUNAWAY_NODE_ID\})", lambda _: node, template)


def failure(procedure: str, commands: Sequence[str], code: int, outcome: Outcome | None) -> ProcedureError:
    """Return the error for a procedure that ended with a code other than 0, naming the command that did it."""
    number = outcome.reached if outcome else 0
    if not 1 <= number <= len(commands):
        return ProcedureError(procedure, f"ended with code {code}", code=code)
    shown = " ".join(commands[number - 1].split())
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ProcedureError(
        procedure, f"ended with code {code} at command {number} of {len(commands)}: {shown!r}", code=code
    )


def quote(text: str) -> str:
    """Quote text as one word of any POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def join_arguments(arguments: Iterable[str]) -> str:
    """Return RUNAWAY_ARGUMENTS: the arguments with a blank between.

    Profiles use it unquoted (`./$RUNAWAY_SCRIPT_PATH $RUNAWAY_ARGUMENTS`), where the shell splits it again at blanks. Arguments
    that hold some arrive whole through `"$@"`.
    """
    return " ".join(arguments)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
