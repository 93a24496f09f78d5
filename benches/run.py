"""Runs every bench in this folder and keeps what it measured, as JSON lines.

A bench is a script here, other than this one and `table.py`, whose name does not begin with an underscore. It first
checks that the work was really done, then prints one JSON object per measure on its standard output:

    {"bench": "help_start", "value": 0.061, "unit": "s", "ratio": 3.9, "better": "lower", "target": 5,
     "checked": true, "command": "runaway --help, beside python -c pass"}

`ratio` is null where a measure stands alone; `target` is compared with the ratio where there is one, else with the
value. `{"bench": ..., "skipped": "why"}` says that a measure cannot be taken here. What the numbers mean beside their
targets is left to `table.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NOT_BENCHES = {"run.py", "table.py", "__init__.py", "conftest.py"}


def find_benches(folder: Path, names: list[str]) -> list[Path]:
    """Return the scripts to run, in order of name; only those called by `names`, when there are any.

    Raises:
        SystemExit: A name that is no bench.
    """
    scripts = {
        path.stem: path
        for path in sorted(folder.glob("*.py"))
        if path.name not in NOT_BENCHES and path.name[0] != "_"
    }
    unknown = [name for name in names if name not in scripts]
    if unknown:
        raise SystemExit(f"no bench {', '.join(unknown)}; there are: {', '.join(scripts) or 'none yet'}")
    return [scripts[name] for name in names or scripts]


def problem_of(line: str) -> str | None:
    """Return what is wrong with a bench's line, or None when it can be shown in a table."""
    try:
        measure: Any = json.loads(line)
    except ValueError:
        return "not JSON"
    if not isinstance(measure, dict) or not isinstance(measure.get("bench"), str):
        return "no object with a text in `bench`"
    if "skipped" in measure:
        return None
    for key in ("value", "unit", "better", "checked", "command"):
        if key not in measure:
            return f"no `{key}`"
    if measure["better"] not in ("higher", "lower"):
        return "`better` is neither `higher` nor `lower`"
    if measure["checked"] is not True:
        return "`checked` is not true: a measure of work nobody verified is worth nothing"
    return None


def run_bench(script: Path) -> tuple[list[str], list[str]]:
    """Run one script; return its good lines and what went wrong. Its standard error passes through."""
    lines: list[str] = []
    problems: list[str] = []
    done = subprocess.run(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    for line in done.stdout.splitlines():
        if not line.strip():
            continue
        problem = problem_of(line)
        if problem is None:
            lines.append(line)
        else:
            problems.append(f"{script.name}: {problem}: {line[:120]}")
    if done.returncode:
        problems.append(f"{script.name}: ended with status {done.returncode}")
    elif not lines and not problems:
        problems.append(f"{script.name}: measured nothing")
    return lines, problems


def main() -> int:
    """Run the benches named on the command line, or all; 0 when each of them measured something."""
    parser = argparse.ArgumentParser(description="run the benches and keep their JSON lines")
    parser.add_argument("--output", type=Path, default=Path("build/bench.jsonl"), help="where the lines go")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the benches are")
    parser.add_argument("bench", nargs="*", help="only these, by file name without .py")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    with options.output.open("w") as output:
        for script in find_benches(options.folder, options.bench):
            began = time.monotonic()
            lines, wrong = run_bench(script)
            for line in lines:
                output.write(line + "\n")
            output.flush()
            problems += wrong
            print(
                f"{script.name}: {len(lines)} measured in {time.monotonic() - began:.1f} s", file=sys.stderr
            )
    for problem in problems:
        print(f"bench: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
