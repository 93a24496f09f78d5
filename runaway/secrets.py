"""What is never shown: values whose names look like secrets. Pure.

The journal keeps them in an execution's spec, which needs them to run and which only its owner can read; nothing that prints does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

#: Stands for a value that is not shown.
HIDDEN = "***"

_SECRET = re.compile(
    r"(?i)(secret|token|passw|passphrase|credential|private|cookie|(^|[_-])(api|access|auth|ssh|aws|sas)?[_-]?(key|pass|pwd|pw|auth)($|[_-]))"
)
_ASSIGNED = re.compile(r"(-{0,2}[A-Za-z_][\w.-]*)(=)(.+)", re.DOTALL)
#: user:password@ in an address.
_ADDRESS = re.compile(r"(\w+://[^/\s:@]+:)[^/\s@]+@")


def is_secret(name: str) -> bool:
    """Whether a name says that its value is nobody's business."""
    return _SECRET.search(name) is not None


def hide_values(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables, secret values replaced."""
    return {
        name: HIDDEN if is_secret(name) else _ADDRESS.sub(rf"\1{HIDDEN}@", value)
        for name, value in variables.items()
    }


def hide_words(words: Sequence[str]) -> list[str]:
    """A command line, with `--token=x`, `--token x`, `TOKEN=x` and passwords in addresses replaced."""
    shown: list[str] = []
    hide_next = False
    for word in words:
        assigned = _ASSIGNED.fullmatch(word)
        if hide_next and not word.startswith("-"):
            shown.append(HIDDEN)
        elif assigned and is_secret(assigned.group(1)):
            shown.append(f"{assigned.group(1)}={HIDDEN}")
        else:
            shown.append(_ADDRESS.sub(rf"\1{HIDDEN}@", word))
        hide_next = word.startswith("-") and "=" not in word and is_secret(word)
    return shown
