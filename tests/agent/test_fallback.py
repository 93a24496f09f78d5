"""The fallback for nodes without python3, in dash and in busybox: what the real agent promises, it promises, too."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from liborch.drive.link import AgentLink
from liborch.drive.local import LocalShell
from liborch.drive.shell_link import ShellLink
from tests.agent import contract

_TOOLS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Node:
    """A machine with nothing but a shell and its usual companions: a PATH and a home of its own."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        programs = folder / "bin"
        programs.mkdir()
        if kind == "busybox":
            binary = shutil.which("busybox")
            if binary is None:
                pytest.skip("no busybox here (Debian: busybox-static)")
            subprocess.run([binary, "--install", "-s", programs], check=True)
            path = str(programs)
        else:
            os.symlink(shutil.which("dash") or "/bin/sh", programs / "sh")
            path = f"{programs}:{_TOOLS}"
        self.env = {
            "PATH": path,
            "HOME": str(self.home),
            "ORCHESTRA_AGENT_STATE": str(folder / "agent"),
            "LANG": "C.UTF-8",
        }
        self.shell = LocalShell(self.env)

    async def link(self) -> ShellLink:
        """Open another link."""
        link = ShellLink("node", self.shell)
        await link.start()
        return link

    @property
    def state(self) -> Path:
        """Where the fallback keeps its files."""
        return self.folder / "agent-sh"

    def end(self) -> None:
        """End the keeper and what is left of executions, by the pids they told."""
        pids = [
            *self.state.glob("runs/*/pid"),
            *self.state.glob("runs/*/claim/by"),
            self.state / "keeper" / "by",
        ]
        for file in pids:
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = file.read_text().split()
                pid = int(words[0] if file.name == "pid" else words[1])
                if f"ORCHESTRA_AGENT_STATE={self.folder}/agent" in Path(f"/proc/{pid}/environ").read_text(
                    errors="replace"
                ):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture(params=["dash", "busybox"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path, request.param)
    yield made  # type: ignore[misc]
    made.end()


@pytest.fixture
async def link(node: Node) -> AsyncIterator[ShellLink]:
    opened = await node.link()
    yield opened
    await contract.end_all(opened)
    await opened.close()
    await node.shell.close()


@pytest.mark.parametrize("story", contract.STORIES, ids=lambda story: story.__name__)
async def test_the_fallback_keeps_the_contract(
    link: ShellLink, story: Callable[[AgentLink], Awaitable[None]]
) -> None:
    await story(link)
