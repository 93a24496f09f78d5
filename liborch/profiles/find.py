"""A name on the command line -> a HostProfile: built in, a profile, or whatever `ssh` would make of it.

Where profiles are is passed in, in order of precedence; the command line knows the environment. Whether an ssh alias
resolves is for `liborch.ssh` to find out: a bare word may be in DNS. `near_hosts` has what to say when it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from liborch.errors import ProfileError, SpecError, UnknownName
from liborch.names import nearest
from liborch.profiles.names import LOCAL, known_hosts_names, profile_files, skim_names
from liborch.profiles.targets import parse_target
from liborch.specs import HostProfile


def find_host(name: str, folders: Sequence[Path], ssh_config: Path | None = None) -> HostProfile:
    """Return what `name` stands for.

    In this order: `local`; folder by folder, the file NAME.yaml or NAME.yml (the document of that name, or its only one), then
    a document of that name in any other file; an ssh alias or user@name:port. Other profiles that are broken do not matter.

    Args:
        name: As typed.
        folders: Folders of profiles; the first that has the name wins. Those that do not exist are passed over.
        ssh_config: The person's ssh configuration, for naming near misses only.

    Raises:
        ProfileError: The profile is there and cannot be used, or two files of a folder have it.
        UnknownName: No profile, and nothing `ssh` would accept.
    """
    if name == LOCAL:
        return HostProfile(name=LOCAL, ssh=LOCAL)
    for folder in folders:
        profile = _in_folder(name, folder)
        if profile is not None:
            return profile
    try:
        parse_target(name)
    except SpecError as error:
        raise UnknownName("host", name, near_hosts(name, folders, ssh_config), hint=str(error)) from None
    return HostProfile(name=name, ssh=name)


def near_hosts(name: str, folders: Sequence[Path], ssh_config: Path | None = None) -> list[str]:
    """Return known hosts whose names are like `name`, best first: for the message that it does not resolve."""
    return [near for near in nearest(name, known_hosts_names(folders, ssh_config)) if near != name]


def _load(path: Path) -> list[HostProfile]:
    # Imported when there is a file to read: YAML and its tables cost more than the rest of a short command.
    from liborch.profiles.load import load_file

    return load_file(path)


def load_all(folders: Sequence[Path]) -> tuple[list[HostProfile], list[ProfileError]]:
    """Return every profile, the first of each name, and what is wrong with the files that have none: for `hosts list`."""
    profiles: dict[str, HostProfile] = {}
    errors = []
    for folder in folders:
        for path in profile_files(folder):
            try:
                for profile in _load(path):
                    profiles.setdefault(profile.name, profile)
            except ProfileError as error:
                errors.append(error)
    return list(profiles.values()), errors


def _in_folder(name: str, folder: Path) -> HostProfile | None:
    files = profile_files(folder)
    own = [path for path in files if path.stem == name]
    if len(own) > 1:
        _ambiguous(name, own)
    for path in own:
        profiles = _load(path)
        named = next((profile for profile in profiles if profile.name == name), None)
        if named or len(profiles) == 1:
            return named or profiles[0]
    # Parsing every file to look for one name would be slow, and would make one broken file everybody's trouble.
    mentioned = [path for path in files if path not in own and name in skim_names(path)]
    found = [(path, profile) for path in mentioned for profile in _load(path) if profile.name == name]
    if len(found) > 1:
        _ambiguous(name, [path for path, _ in found])
    return found[0][1] if found else None


def _ambiguous(name: str, paths: Sequence[Path]) -> None:
    problem = f"{name!r} is described here and in {', '.join(str(path) for path in paths[1:])}"
    raise ProfileError(str(paths[0]), None, "name", problem, "one profile of that name in a folder")
