"""The agent runs on whatever python3 a node has: standard library only, Python 3.6 and newer."""

from __future__ import annotations

import ast
import sys

import pytest

from tests.architecture.reading import Module, covers, modules, uses

OLDEST = (3, 6)
#: Lies among the agent's files and runs on the client, where it makes one file of the others.
ON_CLIENT = ("liborch.agent.pack",)

#: Standard library that Python 3.6 does not have: names of modules and functions.
NEWER = (
    *(
        "dataclasses",
        "contextvars",
        "importlib.resources",
        "importlib.metadata",
        "zoneinfo",
        "graphlib",
        "tomllib",
    ),
    *(
        "asyncio.run",
        "asyncio.to_thread",
        "asyncio.create_task",
        "asyncio.get_running_loop",
        "asyncio.timeout",
    ),
    *("asyncio.TaskGroup", "functools.cache", "functools.cached_property", "functools.singledispatchmethod"),
    *("shlex.join", "math.prod", "math.dist", "math.isqrt", "math.comb", "math.lcm", "itertools.pairwise"),
    *("itertools.batched", "contextlib.nullcontext", "contextlib.asynccontextmanager", "contextlib.aclosing"),
    *(
        "contextlib.chdir",
        "typing.Protocol",
        "typing.Literal",
        "typing.Final",
        "typing.TypedDict",
        "types.NoneType",
    ),
    *(
        "time.time_ns",
        "time.monotonic_ns",
        "time.perf_counter_ns",
        "time.clock_gettime_ns",
        "time.thread_time",
    ),
    *(
        "os.posix_spawn",
        "os.posix_spawnp",
        "os.pidfd_open",
        "os.memfd_create",
        "os.copy_file_range",
        "os.preadv",
    ),
    *(
        "os.pwritev",
        "os.waitstatus_to_exitcode",
        "os.eventfd",
        "os.splice",
        "os.setns",
        "os.unshare",
        "os.login_tty",
    ),
    *("signal.pidfd_send_signal", "signal.raise_signal", "signal.strsignal", "signal.valid_signals"),
    *(
        "socket.send_fds",
        "socket.recv_fds",
        "socket.create_server",
        "threading.excepthook",
        "threading.get_native_id",
    ),
    *(
        "sys.unraisablehook",
        "sys.orig_argv",
        "sys.stdlib_module_names",
        "queue.SimpleQueue",
        "hashlib.file_digest",
    ),
    *(
        "pathlib.Path.unlink.missing_ok",
        "random.randbytes",
        "builtins.aiter",
        "builtins.anext",
        "builtins.breakpoint",
    ),
    *("builtins.EncodingWarning", "builtins.ExceptionGroup", "builtins.BaseExceptionGroup"),
)
#: Methods of anything, newer than 3.6. (`fromisoformat` came with 3.7, `removeprefix` with 3.9, `bit_count` with 3.10.)
NEWER_METHODS = (
    ".removeprefix",
    ".removesuffix",
    ".fromisoformat",
    ".bit_count",
    ".hardlink_to",
    ".is_relative_to",
    ".readlink",
    ".reconfigure",
)
#: Keyword arguments newer than 3.6: (what is called, keyword).
NEWER_KEYWORDS = (
    *(
        (f"subprocess.{name}", word)
        for name in ("run", "Popen", "check_output", "call", "check_call")
        for word in ("text", "process_group")
    ),
    ("subprocess.run", "capture_output"),
    *((f"shutil.{name}", "dirs_exist_ok") for name in ("copytree",)),
    (".unlink", "missing_ok"),
    (".hexdigest", "sep"),
    ("builtins.zip", "strict"),
    ("hashlib.sha256", "usedforsecurity"),
    ("hashlib.md5", "usedforsecurity"),
    ("hashlib.blake2b", "usedforsecurity"),
    ("ast.parse", "feature_version"),
    ("tarfile.extractall", "filter"),
)


def agent_modules() -> list[Module]:
    """Return the modules that travel to a node."""
    return [m for m in modules() if m.name.startswith("liborch.agent.") and m.name not in ON_CLIENT]


def foreign_imports(module: Module, siblings: frozenset[str]) -> list[str]:
    """Return imports of neither the standard library nor the agent's own modules."""
    wrong = []
    for use in uses(module):
        if not use.is_import:
            continue
        own = use.name.startswith("liborch.agent.") and use.name.split(".")[2] in siblings
        top = use.name.split(".")[0]
        if not own and top not in sys.stdlib_module_names and use.name not in siblings:
            wrong.append(f"{module.name}:{use.line} imports {use.name}")
        elif top == "__future__" and use.name.endswith(".annotations"):
            wrong.append(f"{module.name}:{use.line}: annotations of the future came with 3.7")
    return wrong


def too_new(module: Module) -> list[str]:
    """Return what a Python of 3.6 could not parse or would not find."""
    try:
        ast.parse(module.text, feature_version=OLDEST)
    except SyntaxError as error:
        return [f"{module.name}:{error.lineno}: {error.msg}"]
    guarded = _guarded_lines(module.tree)
    wrong = [
        f"{module.name}:{use.line}: {use.name} is newer than Python 3.6; guard it with hasattr or try"
        for use in uses(module)
        if any(covers(name, use.name) for name in (*NEWER, *NEWER_METHODS)) and use.line not in guarded
    ]
    wrong += [
        f"{module.name}:{node.lineno}: {name}({word}=...) is newer than Python 3.6"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        for name, word in NEWER_KEYWORDS
        if _called(node, name) and any(keyword.arg == word for keyword in node.keywords)
    ]
    return wrong


def _called(node: ast.Call, name: str) -> bool:
    last = name.rpartition(".")[2]
    if name.startswith("."):
        return isinstance(node.func, ast.Attribute) and node.func.attr == last
    written = ast.unparse(node.func)
    return written in (name, name.removeprefix("builtins."))


def _guarded_lines(tree: ast.Module) -> frozenset[int]:
    """Return the lines that run only after looking whether the name is there: under `hasattr`, or in a `try` for it."""
    asked = {"hasattr(", "version_info"}
    for line in tree.body:
        # _HAS_SPAWN = hasattr(os, "posix_spawn")
        if isinstance(line, ast.Assign) and "hasattr(" in ast.unparse(line.value):
            asked.update(ast.unparse(target) for target in line.targets)
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp) and any(word in ast.unparse(node.test) for word in asked):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.Try) and any(_catches_absence(handler) for handler in node.handlers):
            lines.update(range(node.lineno, node.handlers[0].lineno))
    return frozenset(lines)


def _catches_absence(handler: ast.ExceptHandler) -> bool:
    return handler.type is not None and any(
        name in ast.unparse(handler.type) for name in ("ImportError", "AttributeError", "ModuleNotFoundError")
    )


def test_the_agent_imports_only_the_standard_library_and_itself() -> None:
    siblings = frozenset(module.name.split(".")[2] for module in agent_modules())
    assert "frames" in siblings
    assert [problem for module in agent_modules() for problem in foreign_imports(module, siblings)] == []


def test_the_agent_runs_on_python_3_6() -> None:
    assert [problem for module in agent_modules() for problem in too_new(module)] == []


@pytest.mark.parametrize(
    "text",
    [
        "import msgspec",
        "from liborch.errors import SpecError",
        "from . import pack",
        "def f():\n    import yaml",
        "from __future__ import annotations",
    ],
)
def test_a_foreign_import_in_the_agent_is_found(text: str) -> None:
    assert foreign_imports(Module("liborch.agent.node", text), frozenset({"frames", "node"}))


def test_the_agents_two_ways_to_import_its_own_are_fine() -> None:
    text = "import json\ntry:\n    from . import frames\nexcept ImportError:\n    import frames"
    assert foreign_imports(Module("liborch.agent.node", text), frozenset({"frames", "node"})) == []


@pytest.mark.parametrize(
    "text",
    [
        "if (n := 3): pass",
        "def f(a, /): pass",
        "import dataclasses",
        "from dataclasses import dataclass",
        "import subprocess\nsubprocess.run(['x'], capture_output=True)",
        "import subprocess\nsubprocess.Popen(['x'], text=True)",
        "import os\nos.posix_spawn('x', ['x'], {})",
        "from os import pidfd_open",
        "import time\ntime.monotonic_ns()",
        "'x'.removeprefix('y')",
        "import shlex\nshlex.join([])",
        "match x:\n    case 1: pass",
        "for a, b in zip(x, y, strict=True): pass",
    ],
)
def test_what_python_3_6_does_not_know_is_found(text: str) -> None:
    assert too_new(Module("liborch.agent.node", text))


@pytest.mark.parametrize(
    "text",
    [
        "x = f'{1}'",
        "import os\nif hasattr(os, 'pidfd_open'):\n    os.pidfd_open(1)",
        "import os\n_HAS = hasattr(os, 'posix_spawn')\ndef f():\n    if _HAS:\n        os.posix_spawn('x', [], {})",
        "import os\ntry:\n    spawn = os.posix_spawn\nexcept AttributeError:\n    spawn = None",
        "import subprocess\nsubprocess.Popen(['x'], universal_newlines=True)",
        "import os\ndef f(): return os.fork()",
    ],
)
def test_what_python_3_6_knows_or_was_asked_about_is_left_alone(text: str) -> None:
    assert too_new(Module("liborch.agent.node", text)) == []
