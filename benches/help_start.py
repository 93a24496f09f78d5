"""How long `runaway --help` takes, beside the bare interpreter it runs in."""

from __future__ import annotations

import sys
from pathlib import Path

import _lab
import _turns

ROUNDS = 15


def main() -> None:
    runaway = str(Path(sys.executable).with_name("runaway"))
    with _lab.own_folders() as environment:

        def show_help() -> float:
            seconds, text = _turns.program_time([runaway, "--help"], environment)
            if b"exec" not in text or b"Usage" not in text:
                raise SystemExit(f"this is no help: {text[:200]!r}")
            return seconds

        def bare() -> float:
            return _turns.program_time([sys.executable, "-c", "pass"], environment)[0]

        found = _turns.medians(_turns.in_turns(ROUNDS, ours=show_help, bare=bare))
    _lab.report(
        "help_start",
        round(found["ours"], 4),
        "s",
        ratio=round(found["ours"] / found["bare"], 2),
        better="lower",
        command="runaway --help, beside python -c pass",
        bare_ms=_turns.milliseconds(found["bare"]),
    )


if __name__ == "__main__":
    main()
