"""Asking a person something that no option said. Programs are not asked: they get an error that names the option."""

from __future__ import annotations

import signal
import sys


def ask_person(question: str) -> str | None:
    """Return what is answered, in lower case; None: nobody is there to ask. Blocks. Raises KeyboardInterrupt for Ctrl-C."""
    if not sys.stdin.isatty():
        return None
    # An event loop would take the first Ctrl-C for itself, and the question would go on waiting.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print(question, end=" ", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower()
    finally:
        signal.signal(signal.SIGINT, before)
