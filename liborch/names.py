"""Names as people type them: the nearest ones, and ids by a unique prefix or `last`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from liborch.errors import UnknownName

#: Candidates named in a message.
SHOWN = 4


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the names most like `name`, best first: case counts little, a missing or swapped letter too."""
    import difflib  # only mistakes need it

    folded: dict[str, str] = {}
    for candidate in known:
        folded.setdefault(candidate.casefold(), candidate)
    return [folded[near] for near in difflib.get_close_matches(name.casefold(), folded, n=most, cutoff=0.6)]


def resolve_prefix(text: str, ids: Sequence[str], kind: str = "execution") -> str:
    """Return the one id that `text` names: itself, a prefix of it, or `last`.

    Args:
        text: What the person typed.
        ids: Every id, oldest first; `last` is the last one.
        kind: What the ids are of, for the message.

    Raises:
        UnknownName: None, with the nearest; or several, with the candidates.
    """
    if not ids:
        raise UnknownName(kind, text, hint=f"there is no {kind} yet")
    if text in ids:
        return text
    if text == "last":
        return ids[-1]
    found = [one for one in dict.fromkeys(ids) if text and one.startswith(text)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownName(
            kind, text, nearest(text, (one[: len(text)] for one in ids)) if len(text) > 3 else ()
        )
    shown = ", ".join(found[-SHOWN:])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise UnknownName(kind, text, hint=f"several begin so: {shown}{more}; write more of it")
