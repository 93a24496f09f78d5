"""What SCRIPT on the command line means: a file of this machine and how to run it, or a command of the host."""

from __future__ import annotations

import difflib
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from liborch.errors import SpecError

#: How to run a file that does not say so itself.
INTERPRETERS = {
    ".py": "python3",
    ".sh": "sh",
    ".bash": "bash",
    ".R": "Rscript",
    ".r": "Rscript",
    ".jl": "julia",
    ".pl": "perl",
}


@dataclass(frozen=True)
class Script:
    """What to run."""

    #: The folder that is sent; None: a command of the host, nothing is sent.
    folder: Path | None
    #: Path of the script below the folder, or the command itself.
    path: str
    #: The words before the arguments.
    argv: tuple[str, ...]


def find_script(text: str, cwd: Path) -> Script:
    """Decide what SCRIPT is.

    A file below the current folder is a script, and the current folder goes with it. An absolute path elsewhere is a script
    when its ending says how to run it (then its own folder goes), else a command of the host. A bare
    word that is no file here is a command on the host's PATH.

    Raises:
        SpecError: There is no such file, it is a folder, or nothing says how to run it.
    """
    if not text:
        raise SpecError("SCRIPT is empty: name a file, or a command of the host")
    path = Path(os.path.abspath(cwd / text))
    inside = path.is_relative_to(cwd)
    if path.is_dir() and (inside or "/" in text):
        raise SpecError(f"{text} is a folder; name the script in it")
    if path.is_file() and (inside or not os.path.isabs(text) or path.suffix in INTERPRETERS):
        folder = cwd if inside else path.parent
        relative = str(path.relative_to(folder))
        return Script(folder, relative, how_to_run(path, relative))
    if "/" in text and not os.path.isabs(text):
        raise SpecError(f"there is no file {text} here{_near(path)}")
    if os.path.isabs(text) and (inside or path.suffix in INTERPRETERS):
        raise SpecError(f"there is no file {text}{_near(path)}")
    if path.suffix in INTERPRETERS:
        raise SpecError(f"there is no file {text} in {cwd}{_near(path)}")
    return Script(None, text, (text,))


def how_to_run(path: Path, relative: str) -> tuple[str, ...]:
    """The words that run a file on the host, where only the file itself is known to be.

    Raises:
        SpecError: Neither exec bit nor first line nor ending says how.
    """
    first = _first_line(path)
    executable = os.access(path, os.X_OK)
    if first.startswith(b"#!") and not executable:
        words = shlex.split(first[2:].decode("utf-8", "replace"))
        if words:
            return (*words, relative)
    if executable and (first.startswith((b"#!", b"\x7fELF")) or path.suffix not in INTERPRETERS):
        return (f"./{relative}",)
    if path.suffix in INTERPRETERS:
        return (INTERPRETERS[path.suffix], relative)
    raise SpecError(
        f"{path} is no program: give it an exec bit (chmod +x), a first line such as #!/usr/bin/env python3, "
        f"or an ending of {', '.join(INTERPRETERS)}"
    )


def _first_line(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.readline(512)
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from error


def _near(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"; there is no folder {path.parent}"
    near = difflib.get_close_matches(path.name, names, 1)
    return f"; did you mean {near[0]}?" if near else ""
