"""Text from elsewhere made fit for a person's terminal. For command lines; nothing else prints."""

from __future__ import annotations


def neutral(text: str) -> str:
    """Return the text with whatever could steer a terminal written as an escape: names and errors come from other machines."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )
