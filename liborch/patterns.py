"""Folders with `$RUNAWAY_...` in them: parsed before anything starts, filled in when the values are there. Pure.

A name is everything from `RUNAWAY` to the last letter, digit or underscore: `$RUNAWAY_NODE_ID` is never `$RUNAWAY_NODE` and
`_ID`, whichever of them is set. `${RUNAWAY_UUID}_x` ends a name where it should end. `$$` is a dollar sign.

There are two moments. The remote folder is needed before the execution, so only BEFORE and the caller's own RUNAWAY*
variables can be in it. The output folder is filled in afterwards, and AFTER can be in it too. A name that will not be known
is an error right away, not after hours of computing.

Other names, like `$HOME`: in a remote folder they are left for the host to expand. In an output folder they are an error: the
caller's shell expands them (in double quotes), and a mistyped one must not silently make a folder called `$HOEM`.

A value never leads out of the folder that the person wrote down: what it adds is never a `..`, and never makes a path
absolute. One value on each side is our own and absolute: RUNAWAY_PATH in remote folders (the host expands the variables in
it), RUNAWAY_LOCAL_FOLDER in output folders. When a value that is known before breaks the rule, that is an error. A value
from the host breaks it when the results are already there, so then it is changed instead: `..` becomes `__`, a leading
slash goes. So do line ends at its end, and NULs. Components longer than a file name may be are cut, and get a digest so that
different ones stay different.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from liborch.errors import PatternError
from liborch.names import nearest

#: Set by us, known before the execution.
BEFORE = (
    "RUNAWAY_PATH",
    "RUNAWAY_UUID",
    "RUNAWAY_SCRIPT_PATH",
    "RUNAWAY_LOCAL_FOLDER",
    "RUNAWAY_REMOTE",
    "RUNAWAY_LEAVE",
    "RUNAWAY_SEND_HASH",
    "RUNAWAY_ARGUMENTS",
)
#: Known after it, partly from the host.
AFTER = (
    "RUNAWAY_ECODE",
    "RUNAWAY_STDOUT",
    "RUNAWAY_STDERR",
    "RUNAWAY_PWD",
    "RUNAWAY_NODES",
    "RUNAWAY_NODE_ID",
    "RUNAWAY_HANDLE_ID",
    "RUNAWAY_OUTPUT_FOLDER",
    "RUNAWAY_FEATURES",
)
#: The one value on each side that is ours, and absolute by nature.
_REMOTE_ROOT = "RUNAWAY_PATH"
_OUTPUT_ROOT = "RUNAWAY_LOCAL_FOLDER"
#: Bytes of a file name, and of the part of a path that one value makes.
_MOST_NAME = 255
_MOST_VALUE = 1024

_TOKEN = re.compile(r"\$(?:\$|\{([^}]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a pattern: text as it is, or a variable."""

    text: str
    is_name: bool = False


@dataclass(frozen=True, slots=True)
class Pattern:
    """A folder whose names are all known to become known."""

    #: As the person wrote it.
    text: str
    pieces: tuple[Piece, ...]
    #: Whether it is for the host: dollar signs that are left are the host's to expand.
    is_remote: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The variables in it, each once, in order."""
        return tuple(dict.fromkeys(piece.text for piece in self.pieces if piece.is_name))

    @property
    def root(self) -> str:
        """The variable that may be an absolute path, at the beginning."""
        return _REMOTE_ROOT if self.is_remote else _OUTPUT_ROOT

    @property
    def needs_outcome(self) -> bool:
        """Whether it can only be filled in after the execution."""
        return any(name in AFTER for name in self.names)

    def check(self, values: Mapping[str, str]) -> None:
        """Judge the values known before the execution, so that `fill` cannot fail after it.

        Raises:
            PatternError: One is missing, would lead out of the folder, or in a remote folder would be expanded by the host.
        """
        _fill(self, {**values, **{name: "x" for name in self.names if name in AFTER}}, strict=True)

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the folder.

        Args:
            values: At least those of `names` that are known before. Of those in AFTER, a missing one counts as empty.

        Raises:
            PatternError: As `check`. Never when `needs_outcome` and `check` passed: then bad values are changed instead.
        """
        late = {name: _tame(values.get(name, "")) for name in self.names if name in AFTER}
        return _fill(self, {**values, **late}, strict=not late)


def parse_output(text: str, environment: Mapping[str, str], *, env_read: bool = True) -> Pattern:
    """Parse the pattern of an output folder, on this machine.

    Args:
        text: As typed; a path, `.` for instance.
        environment: The caller's environment; its RUNAWAY* variables are known.
        env_read: False: they are not (`--no-env-read`).

    Raises:
        PatternError: A name that will not be known, or is not one of ours.
    """
    pieces = _parse(text, _known(BEFORE + AFTER, environment, env_read), environment)
    for piece in pieces:
        if piece.is_name and not piece.text.startswith("RUNAWAY"):
            hint = "in an output folder only RUNAWAY variables are filled in; let your shell expand others (in double quotes)"
            raise PatternError(text, piece.text, hint=hint)
    return Pattern(text, pieces)


def parse_remote(text: str, environment: Mapping[str, str], *, env_read: bool = True) -> Pattern:
    """Parse the pattern of a remote folder. Names that do not begin with RUNAWAY are left for the host.

    Raises:
        PatternError: A name that will not be known before the execution.
    """
    for match in _TOKEN.finditer(text):
        if match.group() == "$$":
            raise PatternError(
                text,
                "$",
                hint="a folder on a host cannot have a dollar sign in its name: the host would expand it",
            )
    pieces = _parse(text, _known(BEFORE, environment, env_read), environment)
    kept = tuple(
        Piece("${" + piece.text + "}") if piece.is_name and not piece.text.startswith("RUNAWAY") else piece
        for piece in pieces
    )
    return Pattern(text, kept, is_remote=True)


def caller_variables(environment: Mapping[str, str], *, env_read: bool = True) -> dict[str, str]:
    """Return the RUNAWAY* variables of the caller that travel with an execution; those we set ourselves are left out."""
    if not env_read:
        return {}
    ours = {*BEFORE, *AFTER}
    return {
        name: value
        for name, value in environment.items()
        if re.fullmatch(r"RUNAWAY\w*", name, re.ASCII) and name not in ours
    }


def _known(ours: Iterable[str], environment: Mapping[str, str], env_read: bool) -> tuple[str, ...]:
    return (*ours, *caller_variables(environment, env_read=env_read))


def _parse(text: str, known: tuple[str, ...], environment: Mapping[str, str]) -> tuple[Piece, ...]:
    if not text:
        raise PatternError(text, "", hint="the folder is empty; write . for this one")
    if "\0" in text:
        raise PatternError(text, "", hint="a folder cannot hold a NUL character")
    pieces: list[Piece] = []
    end = 0
    for match in _TOKEN.finditer(text):
        pieces.append(Piece(text[end : match.start()]))
        end = match.end()
        braced, bare = match.groups()
        name = bare if braced is None else braced
        if name is None:
            pieces.append(Piece("$"))
            continue
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise PatternError(text, "{" + name + "}", hint="between the braces goes a name, nothing else")
        if name.startswith("RUNAWAY") and name not in known:
            raise PatternError(text, name, known, hint=_hint(name, known, environment))
        pieces.append(Piece(name, is_name=True))
    pieces.append(Piece(text[end:]))
    return tuple(piece for piece in pieces if piece.text)


def _hint(name: str, known: tuple[str, ...], environment: Mapping[str, str]) -> str:
    if name in AFTER:
        return "it is only known after the execution, and this folder is needed before"
    if name in environment:
        return "it is set in your environment, which --no-env-read leaves out"
    inside = max((one for one in known if name.startswith(one)), key=len, default="")
    if inside:
        return (
            f"if you mean {inside} and then {name[len(inside) :]!r}, write ${{{inside}}}{name[len(inside) :]}"
        )
    near = nearest(name, known, 1)
    return (
        f"did you mean ${near[0]}?"
        if near
        else "variables of your environment that begin with RUNAWAY are known too"
    )


def _fill(pattern: Pattern, values: Mapping[str, str], *, strict: bool) -> str:
    """Fill in, and judge what values add, where it stands in the path.

    Args:
        pattern: To fill.
        values: One for each name.
        strict: Raise when a value leads out of the folder; else change it.
    """

    def complain(what: str, name: str) -> None:
        if strict:
            hint = f"its value {values[name][:60]!r} {what}; write that part in the option itself"
            raise PatternError(pattern.text, name, hint=hint)

    # Every value between two NULs, which nothing else holds: what a value adds is told apart from what the person wrote,
    # an empty value (`$RUNAWAY_TAG/x`, `${RUNAWAY_TAG}..`) as well.
    marked = ""
    names = []
    for piece in pattern.pieces:
        text = _checked(pattern, piece.text, values) if piece.is_name else piece.text
        if piece.is_name and piece.text != pattern.root:
            names.append(piece.text)
            text = f"\0{text}\0"
        marked += text
    plain = marked.replace("\0", "")
    if plain.startswith("/") and not marked.startswith("/"):
        complain("makes the path absolute", names[0])
        marked = re.sub(r"^[\0/]+", lambda found: found.group().replace("/", ""), marked)
    components = []
    marks = 0
    for component in marked.split("/"):
        inside = marks % 2 == 1 or "\0" in component
        marks += component.count("\0")
        component = component.replace("\0", "")
        if component == ".." and inside:
            complain("adds a `..`", names[(marks - 1) // 2])
            component = "__"
        components.append(_cut(component) if inside else component)
    return "/".join(components) or "."


def _checked(pattern: Pattern, name: str, values: Mapping[str, str]) -> str:
    """The value of a name, if it can be in a path at all."""
    if name not in values:
        raise PatternError(pattern.text, name, hint="it was never set")
    value = values[name]
    if pattern.is_remote and name != pattern.root and re.search(r"[$`\\]", value):
        raise PatternError(
            pattern.text, name, hint=f"its value {value[:60]!r} holds what the host would expand"
        )
    if "\0" in value or len(value) > 4096:
        raise PatternError(pattern.text, name, hint="its value cannot be part of a file name")
    return value


def _tame(value: str) -> str:
    """Make a value from the host usable in a path: no NUL, no line ends at its end, bounded."""
    value = value.replace("\0", "").rstrip("\r\n")
    return value if len(value) <= _MOST_VALUE else f"{value[:_MOST_VALUE]}-{_digest(value)}"


def _cut(component: str) -> str:
    """Shorten one component to what a file name may have, in bytes; different ones stay different."""
    raw = component.encode("utf-8", "surrogateescape")
    if len(raw) <= _MOST_NAME:
        return component
    digest = _digest(component)
    return f"{raw[: _MOST_NAME - len(digest) - 1].decode('utf-8', 'ignore')}-{digest}"


def _digest(text: str) -> str:
    import hashlib  # only long names need it

    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]
