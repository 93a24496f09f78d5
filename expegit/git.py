"""The git program, for what it does best: remotes with the person's own ssh and credentials, packs, working trees.

Objects and refs are read and merged through pygit2 (`store.py`, `merging.py`). Whatever a campaign's repository says, nothing of
it is run: no hooks, no file system monitor, no `ext::` addresses. What a person has configured for all repositories (ssh,
credential helpers, git-lfs) is used as it is.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from liborch.errors import GitError, StorageError

#: Before every command: above all, nothing that came with a repository, or was put beside it, is run.
_SAFE = (
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "protocol.ext.allow=never"),
    *("-c", "submodule.recurse=false"),
    *("-c", "gc.autoDetach=false"),
    *("-c", "advice.detachedHead=false"),
    # What is recorded or fetched stays one file, a pack, however little it is: `store.py` joins them.
    *("-c", "fastimport.unpackLimit=1"),
    *("-c", "transfer.unpackLimit=1"),
)
#: Variables that would have git look somewhere else than at the folder it is told; set where a hook calls us.
_FOREIGN = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
)


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """stdout without the last newline."""
        return self.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a git command: the person's, in plain English, and silent where nobody can answer."""
    found = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    found["LC_ALL"] = "C.UTF-8"
    if not sys.stdin.isatty():
        found.setdefault("GIT_TERMINAL_PROMPT", "0")
    return {**found, **(extra or {})}


@dataclass(frozen=True)
class Git:
    """Git in a folder: of a working tree, or of a bare repository."""

    folder: Path

    def run(
        self,
        *words: str,
        stdin: bytes | None = None,
        extra: dict[str, str] | None = None,
        fine: tuple[int, ...] = (0,),
    ) -> Done:
        """Run a command to its end.

        Args:
            words: Without the `git` in front.
            extra: More environment.
            fine: Exit statuses that are no error.

        Raises:
            GitError: It ended with another status, or there is no git.
            StorageError: Its folder cannot be entered.
        """
        try:
            done = subprocess.run(
                ["git", *_SAFE, *words],
                cwd=self.folder,
                env=environment(extra),
                # Without input of its own it may ask the person, who sits at the terminal.
                input=stdin,
                capture_output=True,
                check=False,
            )
        except FileNotFoundError as error:
            if error.filename == "git":
                raise GitError("git", str(self.folder), "there is no git here; install it") from error
            raise StorageError("this machine", str(self.folder), error.errno or 0, "entering") from error
        except OSError as error:
            raise StorageError(
                "this machine", str(self.folder), error.errno or 0, "running git in"
            ) from error
        said = done.stderr.decode("utf-8", "backslashreplace").strip()
        if done.returncode not in fine:
            raise GitError(shlex.join(["git", *words]), str(self.folder), said, done.returncode)
        return Done(done.returncode, done.stdout, said)

    def answers(self, *words: str) -> bool:
        """Whether a question is answered with yes (status 0)."""
        return self.run(*words, fine=tuple(range(256))).status == 0

    def text(self, *words: str) -> str:
        """What a command prints, without the last newline. Raises GitError."""
        return self.run(*words).text
