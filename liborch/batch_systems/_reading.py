"""What the dialects share: reading answers strictly, and keeping the words of a submission that are ours.

Left to each dialect: what its answers look like. Left to `base`: what an answer means.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from liborch.batch_systems.base import PATIENCE_S, TIMEOUT_S, Command, Output, Rejected, Unclear, is_id
from liborch.errors import SpecError

#: Characters of a program's words that reach a message.
SHOWN: Final = 240
#: What `timeout` ends with when it ended a command.
_OUT_OF_TIME: Final = 124
#: What a shell, `env` and `timeout` end with, and say, when there is no such program.
_NO_PROGRAM: Final = 127
_MISSING = re.compile(r"no such file or directory|not found", re.IGNORECASE)

_HEARD = re.compile(rb"(?:\A|\n)orch-begin\|(\d{9,11})\n(.*)orch-end\|(\d{1,3})\n\Z", re.DOTALL)
_NODE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}\Z")
_DURATION = re.compile(r"(?:(\d{1,6})[:-])?(?:(\d{1,9}):)?(\d{1,9})(?::(\d{1,2}))?\Z")

#: What reading a structure that is not what it should be raises. A deep enough nesting is one of the ways.
NOT_UNDERSTOOD: Final = (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError)

#: What a system says when it refuses for certain, and whether asking later may help.
Refusals = Sequence[tuple[re.Pattern[str], bool]]


def refusals(*pairs: tuple[str, bool]) -> Refusals:
    """Compile a table of refusals, the first that fits holds."""
    return [(re.compile(text, re.IGNORECASE), retriable) for text, retriable in pairs]


def shell(*lines: str, timeout_s: float = TIMEOUT_S) -> Command:
    """Return a command that runs lines of sh, with messages in English and times in UTC. See `heard` for the answer.

    The script is one group in braces: cut off on its way it is no script, and nothing runs. Any login shell will do.
    """
    script = (
        "{",
        "LC_ALL=C LANG=C TZ=UTC; export LC_ALL LANG TZ",
        # What a login shell said may have no line end.
        "echo orch-begin >&2; printf '\\norch-begin|%s\\n' $(date +%s)",
        "(",
        *lines,
        ")",
        'echo "orch-end|$?"',
        "} </dev/null",
        "",
    )
    return Command(("sh",), "\n".join(script).encode("utf-8", "surrogateescape"), timeout_s)


def submission(
    words: Sequence[str],
    token: str,
    holder: Sequence[str] = (),
    *,
    script: str = "",
    first: Sequence[str] = (),
    patience_s: float = PATIENCE_S,
) -> Command:
    """Return the submission of the holder, as a script on the standard input of `words`; without a holder just run them.

    `script`: lines of sh instead of the holder. `first` are lines of sh before it; the words they leave in `$@` come last.
    """
    line = f"timeout -k 2 {patience_s:.0f} {shlex.join(words)}" + (' "$@"' if first else "")
    if not holder:
        return shell(*first, line)
    end = f"orch-{token}-end"
    body = script.splitlines() or [f"exec {shlex.join(holder)}"]
    return shell(*first, f"{line} <<'{end}'", "#!/bin/sh", *body, end)


def heard(output: Output) -> tuple[int, Output] | None:
    """Return (the frontend's clock, what the lines themselves said and ended with); None: it is not all here.

    What a login shell says before, on either of its outputs, is not theirs, and dropped.
    """
    if output.code is None or output.is_cut:
        return None
    match = _HEARD.search(output.stdout)
    if match is None:
        return None
    return int(match[1]), Output(int(match[3]), match[2], output.stderr.rpartition(b"orch-begin\n")[2])


def text_of(raw: bytes) -> str:
    """Return what a program printed, as text; what is no UTF-8 becomes a mark that no strict pattern takes."""
    return raw.decode("utf-8", "replace")


def excerpt(*raws: bytes) -> str:
    """Return the beginning of what a program said, on one line, fit for a message."""
    for raw in raws:
        lines = (" ".join(line.split()) for line in text_of(raw[:8192]).splitlines())
        words = "; ".join(line for line in lines if line)
        shown = "".join(char for char in words if char.isprintable())
        if shown:
            return shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + "..."
    return "nothing"


def unclear(what: str, output: Output) -> Unclear:
    """Return that an answer is none: how the command ended and the beginning of what it said."""
    if output.code is None:
        return Unclear(f"{what} did not end in time, or its connection broke")
    if output.code == _OUT_OF_TIME and not output.stdout.strip() and not output.stderr.strip():
        return Unclear(f"{what} did not end in time")
    said = excerpt(output.stderr, output.stdout)
    if output.is_cut:
        return Unclear(f"{what} printed more than is read; it began: {said}")
    return Unclear(f"{what} ended with code {output.code} and said: {said}")


def is_whole(output: Output) -> bool:
    """Whether the command ended and all it printed is here."""
    return output.code is not None and not output.is_cut


def not_understood(what: str, error: Exception, output: Output) -> Unclear:
    """Return that an answer that was read broke with one of `NOT_UNDERSTOOD`."""
    return Unclear(f"{what} answered what is not understood ({error!r}): {excerpt(output.stdout)}")


def refused(output: Output, table: Refusals) -> Rejected | None:
    """Return the refusal if the command failed with words that are known to mean one."""
    if not is_whole(output) or output.code == 0:
        return None
    for raw in (output.stderr, output.stdout):
        said = text_of(raw)
        for pattern, retriable in table:
            if pattern.search(said):
                return Rejected(excerpt(raw), retriable)
    if output.code == _NO_PROGRAM and _MISSING.search(text_of(output.stderr)):
        here = "is this its frontend, and the program on the PATH of a login that runs a command?"
        return Rejected(f"{excerpt(output.stderr)}; {here}")
    return None


def checked_ids(ids: Iterable[str]) -> tuple[str, ...]:
    """Return ids that may be part of a command.

    Raises:
        ValueError: One is none; nobody may have let it through.
    """
    found = tuple(ids)
    for each in found:
        if not is_id(each):
            raise ValueError(f"{each[:80]!r} is no id of an allocation")
    return found


def is_node(text: str) -> bool:
    """Whether a program's word may be the name of a node."""
    return _NODE.match(text) is not None


def seconds_of(text: str) -> float | None:
    """Read `SS`, `MM:SS`, `HH:MM:SS`, `DD:HH:MM:SS`, `DD-HH:MM:SS`; None for anything else."""
    match = _DURATION.match(text.strip())
    if match is None:
        return None
    parts = [int(part) for part in re.split("[:-]", text.strip())]
    seconds = 0
    for part, unit in zip(reversed(parts), (1, 60, 3600, 86400), strict=False):
        seconds += part * unit
    return float(seconds)


_SIZES: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def bytes_of(text: str, default: str = "") -> int | None:
    """Read `4gb`, `146800640kb`, `16G`, `512`: powers of 1024; a number alone counts in `default`. None for anything else."""
    match = re.match(r"(\d{1,18}(?:\.\d{1,6})?)\s*([kmgtp]?)(?:i?b)?\Z", text.strip(), re.IGNORECASE)
    if match is None:
        return None
    unit = match[2].lower() or ("" if "b" in text.lower() else default.lower())
    return int(float(match[1]) * 1024 ** _SIZES[unit])


def clock_of(seconds: float) -> str:
    """Write seconds, rounded up, as HH:MM:SS; hours may be more than 24."""
    whole = max(1, -int(-seconds // 1))
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def option_of(word: str, known: Iterable[str], *, attached: str = "") -> str:
    """Return which of the options `known` a word is, with its value or without; "" for none.

    `attached`: letters of one-letter options whose value may follow at once, as in `-nNAME`.
    """
    key = word.split("=", 1)[0]
    if key in (names := list(known)):
        return key
    if key.startswith("--") and len(key) > 3:
        # Long options may be shortened.
        return next((name for name in names if name.startswith(key)), "")
    if len(word) > 2 and word[0] == "-" and word[1] in attached and word[:2] in names:
        return word[:2]
    return ""


def keep_ours(command: str, options: Sequence[str], ours: Mapping[str, str], *, attached: str = "") -> None:
    """Refuse options of the person that are ours to set, or that make the command do something else.

    Args:
        command: For the message.
        options: The person's words.
        ours: {option: what sets it instead, or why it cannot be}.
        attached: Letters of one-letter options whose value may follow at once, as in `-nNAME`; only those the
            command knows no longer option of the same beginning for.

    Raises:
        SpecError: Names the option and what to do.
    """
    for word in options:
        if "\0" in word or "\n" in word:
            raise SpecError(f"{word[:60]!r} in the options of {command} holds a line end or a NUL")
        if found := option_of(word, ours, attached=attached):
            raise SpecError(f"{word[:60]!r} cannot be an option of {command}: {ours[found]}")
