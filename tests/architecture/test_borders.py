"""Where the world may be touched: files, sockets, processes, clocks, chance, the environment, folder by folder.

The table says which part may do what, and why; everything else may not. The core's row is empty on purpose: what it
needs comes in with an event, `now` and `rng`.
"""

from __future__ import annotations

import pytest

from tests.architecture.reading import Module, Use, covers, modules, nearest, uses


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_OS_FILES = _words(
    "access chmod chown close copy_file_range dup fchmod fdatasync fdopen fstat fsync ftruncate link listdir lseek "
    "lstat makedirs mkdir mkfifo open pread pwrite read readlink readv remove removedirs rename renames replace rmdir "
    "scandir sendfile stat statvfs symlink sync truncate umask unlink utime walk fwalk write writev"
)
_OS_PROCESSES = _words(
    "_exit abort fork forkpty kill killpg pidfd_open popen posix_spawn posix_spawnp setpgid setsid system wait wait3 "
    "wait4 waitid waitpid nice sched_setaffinity"
)
_PATH_METHODS = _words(
    "read_text read_bytes write_text write_bytes iterdir rglob touch symlink_to hardlink_to expanduser is_file is_dir "
    "unlink rmdir mkdir lchmod samefile"
)

#: What touching the world looks like: names of modules, of their functions, of builtins and of methods.
TOUCHES: dict[str, tuple[str, ...]] = {
    "await": ("await", "asyncio", "anyio", "trio"),
    "files": (
        *(
            "builtins.open",
            "io.open",
            "io.FileIO",
            "shutil",
            "tempfile",
            "mmap",
            "fcntl",
            "glob",
            "fileinput",
        ),
        *(f"os.{name}" for name in _OS_FILES),
        *(
            "os.path.exists",
            "os.path.isfile",
            "os.path.isdir",
            "os.path.getsize",
            "os.path.getmtime",
            "os.path.realpath",
        ),
        *(f".{name}" for name in _PATH_METHODS),
    ),
    "sockets": (
        *("socket", "ssl", "select", "selectors", "socketserver", "http", "urllib.request", "asyncssh"),
        *("asyncio.open_connection", "asyncio.open_unix_connection", "asyncio.start_server"),
        "asyncio.start_unix_server",
    ),
    "processes": (
        *("subprocess", "multiprocessing", "pty", "signal"),
        *(f"os.{name}" for name in _OS_PROCESSES),
        *("os.execv", "os.execve", "os.execvp", "os.execvpe", "os.execl", "os.execlp"),
        *("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
    ),
    "threads": ("threading", "concurrent", "queue", "_thread", "asyncio.to_thread", ".run_in_executor"),
    "clocks": (
        *("time", "sched", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.date.today"),
        *("asyncio.sleep", "asyncio.timeout", "asyncio.wait_for"),
    ),
    "chance": ("random", "secrets", "uuid.uuid1", "uuid.uuid4", "os.urandom", "os.getrandom"),
    "environment": (
        *(
            "os.environ",
            "os.environb",
            "os.getenv",
            "os.getenvb",
            "os.putenv",
            "os.chdir",
            "os.getcwd",
            "os.getcwdb",
        ),
        *("sys.argv", "pathlib.Path.home", "pathlib.Path.cwd", "os.path.expanduser", "os.path.expandvars"),
        *("getpass.getuser", "pwd", "os.getlogin"),
    ),
    "terminal": (
        *(
            "builtins.print",
            "builtins.input",
            "sys.stdin",
            "sys.stdout",
            "sys.stderr",
            "termios",
            "tty",
            "curses",
        ),
        *("rich", "click", "os.get_terminal_size", "shutil.get_terminal_size", "os.isatty"),
    ),
    "ending": ("sys.exit", "builtins.exit", "builtins.quit", "os._exit", "os.abort"),
    "database": ("sqlite3",),
    "logging": ("logging", "structlog", "warnings"),
}
#: Names of the above that touch nothing: a constant, a question, a generator whose seed is given.
HARMLESS = frozenset(
    {
        "random.Random",
        "signal.SIGINT",
        "signal.SIGKILL",
        "signal.SIGTERM",
        "signal.Signals",
        "socket.gethostname",
        "subprocess.list2cmdline",
    }
)

#: part -> {what it may touch: why}. The longest name that fits a module holds, alone.
MAY_TOUCH: dict[str, dict[str, str]] = {
    "liborch": {},
    "liborch.core": {},
    "liborch.agent": {
        **dict.fromkeys(
            (
                "files",
                "sockets",
                "processes",
                "threads",
                "clocks",
                "chance",
                "environment",
                "terminal",
                "ending",
                "logging",
            ),
            "it is a program of its own, and the node's files, processes and clocks are its work",
        )
    },
    "liborch.journal": {
        "await": "the writer hands futures to the driver",
        "database": "SQLite is what it remembers with",
        "files": "makes its folder and files private from the start, locks, notices network file systems",
        "threads": "commits off the event loop",
        "clocks": "when an orchestration was made, for people to read; backing off a full disk",
        "processes": "the pid in a lock, so that a conflict can say who holds it",
    },
    "liborch.ssh": {
        "await": "connections are awaited",
        "sockets": "connections are its work",
        "processes": "`ssh -G` resolves the person's configuration; ProxyCommand",
        "files": "known_hosts and keys, to name file and line",
        "threads": "`ssh -G` and files that may be on a slow home, off the event loop",
        "clocks": "deadlines, back-off and keepalive",
        "chance": "jitter of the back-off",
        "environment": "SSH_AUTH_SOCK, HOME and USER, read as `ssh` itself reads them",
        "logging": "asyncssh's own warnings are kept off the person's terminal",
    },
    "liborch.transfer": {
        "await": "streams are awaited",
        "files": "reads what goes out, writes what comes back",
        "processes": "`git ls-files`, the only listing that is always right; a worker for `local`",
        "sockets": "the socket pair to a local worker",
        "threads": "hashing and writing off the event loop",
        "clocks": "age of cached hashes, pace of progress",
        "chance": "temporary names nobody can guess",
    },
    "liborch.transfer.listing": {
        "files": "reads what goes out",
        "processes": "`git ls-files`, the only listing that is always right",
        "environment": "git is started with ours, less what a hook sets for another repository",
    },
    "liborch.profiles": {"files": "profiles are files"},
    "liborch.profiles.names": {
        "files": "aliases come from the person's ssh configuration and what it includes",
        "environment": "`~` in an Include, as `ssh` itself reads it",
    },
    "liborch.batch_systems": {},
    "liborch.drive": {
        "await": "it is the asyncio side",
        "files": "reads the packed agent, writes output that is not kept in memory",
        "sockets": "the pipe to a local agent",
        "processes": "starts the local agent",
        "threads": "work that would hold the event loop",
        "clocks": "it is where `now` comes from",
        "chance": "it is where `rng` and the ids of executions come from",
    },
    "liborch.sim": {
        "await": "its loop runs coroutines in virtual time",
        "chance": "seeded generators; a world can be played again",
        "clocks": "stands in for them",
        "sockets": "a loop without any still has to have a selector",
        "threads": "a loop has to say what it does about them",
    },
    "liborch.sim.swf": {
        **dict.fromkeys(("files", "terminal", "ending"), "a command of its own: `python -m liborch.sim.swf`"),
        "clocks": "how many jobs it replays per second",
        "processes": "our pid in the name of a file until it is whole",
    },
    **{
        command: dict.fromkeys(
            TOUCHES, "commands are where the environment, the terminal and exit codes belong"
        )
        for command in ("runaway", "expegit", "parasearch", "orchestra")
    },
    "liborch.host": {
        "await": "hosts, slots and executions are awaitables",
        "chance": "ids of executions and orchestrations are random",
    },
    "liborch.executor": {"threads": "it is one of `concurrent.futures`' executors"},
    "liborch.bridge": {
        "await": "one side of it is the event loop",
        "threads": "the other side is whatever thread submits; callbacks and unpickling keep off the loop",
        "files": "a forked child lets go of its parent's connections",
    },
    "liborch.functions": {
        "await": "reads what is sent off the event loop",
        "threads": "the same; its errors are those of `concurrent.futures`, too",
        "files": "the pickled call and its outcome are files, among the system's temporary ones",
        "chance": "their names",
    },
    "liborch.functions_node": {
        "files": "it runs on the node, where call and outcome are files",
        **dict.fromkeys(
            ("processes", "ending"), "a child that a function forked and forgot leaves no outcome"
        ),
    },
    "liborch.places": {"environment": "the one place of the library that reads where the person's files are"},
    "liborch.command_line": {
        "terminal": "what the command lines share: parsing and printing errors is its work",
        "environment": "whether --json was asked for is known before words are parsed, and when they cannot be",
    },
    "liborch.drive.local": {
        "await": "it is the asyncio side",
        "processes": "starts the local agent",
        "environment": "an execution of `local` gets the caller's environment, as one over ssh gets the login's",
        "files": "finds the agent's own files",
    },
    # Runs on the client, where it turns the agent's files into the one that is sent.
    "liborch.agent.pack": {"files": "reads the agent's own files"},
}

#: These start or stand in for programs that read the environment themselves, and must see what those would see.
AS_PROGRAMS_DO = (
    "liborch.ssh",
    "liborch.profiles.names",
    "liborch.transfer.listing",
    # `open_host("name")` finds the same profiles and journal as the commands do, without being told where.
    "liborch.places",
    "liborch.drive.local",
)
#: Are of the commands: lies in the library because they share it; is a command of the library's own.
OF_COMMANDS = ("liborch.command_line", "liborch.sim.swf")
#: What runs on the node rather than here, and so need not answer to the rule about commands below.
ON_NODES = ("liborch.agent", "liborch.functions_node")


def wrong_touches(module: Module) -> list[str]:
    """Return where a module touches what its part may not."""
    part = nearest(dict(MAY_TOUCH), module.name)
    allowed = MAY_TOUCH[part] if part else {}
    wrong = []
    for use in uses(module):
        if use.for_types or _is_harmless(module, use):
            continue
        for what, names in TOUCHES.items():
            if what not in allowed and any(covers(name, use.name) for name in names):
                wrong.append(f"{module.name}:{use.line}: {use.name} ({what}) is not for {part}")
    return wrong


def _is_harmless(module: Module, use: Use) -> bool:
    """Whether a use is of something harmless, or the import of a module of which only that is used."""
    if use.name in HARMLESS:
        return True
    if not use.is_import or not any(covers(use.name, name) for name in HARMLESS):
        return False
    return all(
        other.name in HARMLESS
        for other in uses(module)
        if not other.is_import and covers(use.name, other.name)
    )


def test_the_world_is_touched_only_where_the_table_says() -> None:
    assert [problem for module in modules() for problem in wrong_touches(module)] == []


def test_only_commands_know_the_environment_the_terminal_and_exit_codes() -> None:
    # The table above could be widened in passing; this says which rows of it may never be.
    commands = ("runaway", "expegit", "parasearch", "orchestra")
    for part, allowed in MAY_TOUCH.items():
        if any(covers(name, part) for name in (*commands, *ON_NODES, *OF_COMMANDS)):
            continue
        assert {"terminal", "ending"} & set(allowed) == set(), part
        assert "environment" not in allowed or part in AS_PROGRAMS_DO, part


def test_the_core_may_touch_nothing() -> None:
    assert MAY_TOUCH["liborch.core"] == {}
    assert not [part for part in MAY_TOUCH if part.startswith("liborch.core.")]


@pytest.mark.parametrize(
    "text",
    [
        "async def f(): pass",
        "import asyncio",
        "def f(p):\n    return open(p)",
        "import os\nx = os.environ['HOME']",
        "from os import environ",
        "from os import environ as e",
        "import os as o\ndef f():\n    o.unlink('x')",
        "import time",
        "from time import monotonic",
        "import random\nx = random.random()",
        "import random\nx = random.Random()",
        "from random import Random\nx = Random()",
        "from random import randrange",
        "import socket\nx = socket.socket()",
        "import subprocess\nsubprocess.run([])",
        "import logging",
        "import sqlite3",
        "from datetime import datetime\nx = datetime.now()",
        "import uuid\nx = uuid.uuid4()",
        "def f(path):\n    return path.read_text()",
        "import sys\nsys.exit(1)",
        "print('x')",
        "import threading",
        "import signal\nsignal.signal(2, None)",
    ],
)
def test_a_touch_in_the_core_is_found(text: str) -> None:
    assert wrong_touches(Module("liborch.core.machine", text))


@pytest.mark.parametrize(
    "text",
    [
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import random\ndef f(rng: random.Random) -> int: return rng.randrange(3)",
        "import random\ndef f(rng: random.Random) -> float: return rng.random()",
        "import random\nx = random.Random(0)",
        "import heapq\nfrom collections import deque\nimport math",
        "import os\nx = os.strerror(2)",
        "import uuid\nx = uuid.UUID(int=3)",
        "import signal\nx = signal.Signals(9).name",
        "import socket\nx = socket.gethostname()",
        "def f(opened): return opened.open",
        "def f(input): return input",
    ],
)
def test_what_touches_nothing_is_left_alone(text: str) -> None:
    assert wrong_touches(Module("liborch.core.machine", text)) == []
