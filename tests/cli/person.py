"""A person at a shell: real `runaway` processes with a home, a journal and an agent of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

RUNAWAY = str(Path(sys.executable).with_name("runaway"))


class Person:
    """Types commands in `folder`. `close` ends what was started, the agent included."""

    def __init__(self, root: Path, ssh_config: Path | None = None) -> None:
        self.root = root
        self.home = root / "home"
        self.folder = root / "work"
        for each in (self.home, self.folder):
            each.mkdir(parents=True)
        self.state = root / "state"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RUNAWAY", "ORCHESTRA", "XDG_"))},
            "HOME": str(self.home),
            "XDG_STATE_HOME": str(self.state),
            "XDG_CACHE_HOME": str(root / "cache"),
            "XDG_CONFIG_HOME": str(root / "config"),
            "ORCHESTRA_AGENT_STATE": str(root / "agent"),
            "TERM": "dumb",
        }
        if ssh_config is not None:
            self.environment["ORCHESTRA_SSH_CONFIG"] = str(ssh_config)
        self._started: list[subprocess.Popen[bytes]] = []

    def write(self, name: str, text: str) -> Path:
        """Make a file in the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(
        self, *words: str | bytes, cwd: Path | None = None, timeout_s: float = 60, **variables: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Type a command and wait for its end."""
        return subprocess.run(
            [RUNAWAY, *words],
            cwd=cwd or self.folder,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
        )

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Type a command and go on."""
        options = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **options,
        }
        started: subprocess.Popen[bytes] = subprocess.Popen(
            [RUNAWAY, *words], cwd=self.folder, env=self.environment, start_new_session=True, **options
        )
        self._started.append(started)
        return started

    def json(self, *words: str) -> Any:
        """What a command says with --json."""
        done = self.run(*words, "--json")
        assert done.stdout, done.stderr.decode()
        return json.loads(done.stdout)

    def executions(self) -> list[dict[str, Any]]:
        """Every execution on record, newest first."""
        done = self.run("ps", "--all", "--json")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def wait_state(self, *states: str, timeout_s: float = 30) -> dict[str, Any]:
        """The newest execution once it is in one of these states."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = self.executions()[:1]
            return bool(found) and found[0]["state"] in states

        wait_until(f"an execution that is {' or '.join(states)}", there, timeout_s)
        return found[0]

    def agents(self) -> list[int]:
        """Pids of this person's agent on this machine."""
        return self._processes("orch-")

    def in_background(self) -> list[int]:
        """Pids of this person's commands that nobody waits for."""
        return [pid for pid in self._processes("runaway") if os.getsid(pid) == pid]

    def _processes(self, name_begins: str) -> list[int]:
        mark = f"ORCHESTRA_AGENT_STATE={self.environment['ORCHESTRA_AGENT_STATE']}".encode()
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if (
                    Path(f"/proc/{name}/comm").read_text().startswith(name_begins)
                    and mark in Path(f"/proc/{name}/environ").read_bytes()
                ):
                    found.append(int(name))
            except OSError:
                continue
        return found

    def close(self) -> None:
        """End what is left."""
        for each in self._started:
            if each.poll() is None:
                each.kill()
            each.communicate()
        for pid in (*self.in_background(), *self.agents()):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def running(person: Person, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that does not outlive the test, whatever goes wrong."""
    with person.start(*words) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(what: str, is_so: Callable[[], bool], timeout_s: float = 30) -> None:
    """Return when something is so; fail when it is not so for too long."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not in {timeout_s} s")
        time.sleep(0.02)


def lines(data: bytes) -> Sequence[str]:
    """The lines of an output."""
    return data.decode().splitlines()
