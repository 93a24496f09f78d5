"""Names of hosts, found fast: for completion and lists. Neither YAML nor specs are imported, files are only skimmed.

The full truth about a profile is `load`'s; here a file that cannot be read or understood simply gives its own name.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

#: The built-in host: this machine.
LOCAL = "local"
#: Of profile files.
SUFFIXES = (".yaml", ".yml")
#: Bytes skimmed of a profile or an ssh configuration, files of a folder, files included by an ssh configuration.
_MOST_BYTES = 1 << 20
_MOST_FILES = 2000
_MOST_INCLUDED = 500

#: Patterns, and what `ssh` or a shell could not be given as a name.
_NO_ALIAS = re.compile(r"[*?!\s\x00-\x1f\x7f]|^-|^$")
_NAME_LINE = re.compile(
    rb"^(?:---[ \t]*)?(?:\{[ \t]*)?(?:name|\"name\"|'name')[ \t]*:[ \t]+(.+?)[ \t]*$", re.MULTILINE
)


def profile_files(folder: Path) -> list[Path]:
    """Return the profile files of a folder by name, `.yaml` before `.yml`; none when there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MOST_FILES), strict=False)]
    except OSError:
        return []
    return sorted(
        (folder / name for name in names if name.endswith(SUFFIXES) and not name.startswith(".")),
        key=lambda path: (path.stem, path.suffix),
    )


def skim_names(path: Path) -> list[str]:
    """Return the names of the profiles in a file, without parsing it; the file's own when none is seen."""
    names = []
    for found in _NAME_LINE.finditer(_head(path)):
        text = found.group(1).decode("utf-8", "replace")
        quoted = re.match(r"\"([^\"]*)\"|'([^']*)'", text)
        plain = next(filter(None, quoted.groups()), "") if quoted else re.split(r"\s#|,|\}", text)[0].strip()
        if plain and plain.isprintable():
            names.append(plain)
    return names or [path.stem]


def known_hosts_names(folders: Sequence[Path], ssh_config: Path | None = None) -> list[str]:
    """Return every name a person may use: `local`, profiles in order of folders, then ssh aliases. Each once.

    A profile in a file of another name is there under its own name; `find_host` takes the file's as well.
    """
    names = [LOCAL]
    for folder in folders:
        for path in profile_files(folder):
            names += skim_names(path)
    if ssh_config is not None:
        names += ssh_aliases(ssh_config)
    return list(dict.fromkeys(names))


def ssh_aliases(ssh_config: Path) -> list[str]:
    """Return the names after `Host` in an ssh configuration and what it includes, those with wildcards left out.

    Relative Include paths are below the folder of `ssh_config`, as they are below `~/.ssh` for ssh. Files that cannot be
    read are passed over, each file is read once, so a file that includes itself ends.
    """
    return list(dict.fromkeys(_aliases(ssh_config, ssh_config.parent, set())))


def _aliases(path: Path, base: Path, seen: set[str]) -> Iterator[str]:
    real = os.path.realpath(path)
    if real in seen or len(seen) > _MOST_INCLUDED:
        return
    seen.add(real)
    for raw in _head(path).decode("utf-8", "replace").splitlines():
        words = _words(raw)
        match words[0].lower() if words else "":
            case "host":
                yield from (word for word in words[1:] if not _NO_ALIAS.search(word))
            case "include":
                for word in words[1:]:
                    pattern = os.path.join(base, os.path.expanduser(word))
                    for found in sorted(glob.glob(pattern)):
                        yield from _aliases(Path(found), base, seen)
            case _:
                pass


def _words(line: str) -> list[str]:
    """Words of a line of an ssh configuration: `Key value`, `Key=value`, double quotes, comments."""
    line = line.strip()
    if not line or line.startswith("#"):
        return []
    found = re.match(r"(\w+)(?:\s*=\s*|\s+)(.*)", line)
    if not found:
        return []
    words = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|([^\s"]+)', found.group(2))]
    comment = next((at for at, word in enumerate(words) if word.startswith("#")), len(words))
    return [found.group(1), *words[:comment]]


def _head(path: Path) -> bytes:
    try:
        # Not blocking: opening a fifo for reading would wait for its writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
            return stream.read(_MOST_BYTES) or b""
    except (OSError, ValueError):
        return b""
