"""Imports point one way, and heavy ones wait until somebody needs them."""

from __future__ import annotations

import subprocess
import sys

from tests.architecture.reading import PACKAGES, Module, covers, modules, nearest, uses

BASE = ("liborch.errors", "liborch.quantities", "liborch.specs", "liborch.names")
#: What acts on the world beside the driver; each knows the core's events and actions at most, never another one of these.
BORDERS = ("liborch.journal", "liborch.ssh", "liborch.transfer", "liborch.profiles", "liborch.batch_systems")
FRAMES = ("liborch.agent.frames",)

#: What each part of ours may import of ours, beside itself. The longest name that fits a module holds.
COMMANDS_USE = (
    "liborch",
    "liborch.host",
    "liborch.places",
    "liborch.patterns",
    "liborch.command_line",
    "liborch.plain_text",
    "liborch.drive",
    *BASE,
    *BORDERS,
)

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "liborch.errors": (),
    "liborch.quantities": ("liborch.errors",),
    "liborch.names": ("liborch.errors",),
    "liborch.specs": ("liborch.errors", "liborch.quantities"),
    "liborch.core": BASE,
    "liborch.agent": (),
    "liborch.journal": (*BASE, "liborch.core"),
    "liborch.ssh": (*BASE, "liborch.core"),
    "liborch.transfer": (*BASE, "liborch.core", *FRAMES),
    "liborch.profiles": BASE,
    "liborch.batch_systems": (*BASE, "liborch.core"),
    # A profile's shell procedures are rendered, and their notes read, in one place; both sides are pure.
    "liborch.batch_systems.procedures": (*BASE, "liborch.batch_systems", "liborch.profiles.procedures"),
    "liborch.batch_systems._procedures_shell": ("liborch.profiles.procedures",),
    "liborch.drive": (*BASE, "liborch.core", "liborch.patterns", "liborch.places", *BORDERS, "liborch.agent"),
    # Doubles stand in for anything of the library; nothing of the library knows them.
    "liborch.sim": ("liborch.*",),
    # The front door: what people embed.
    "liborch": (*BASE, "liborch.drive", "liborch.executor", "liborch.host"),
    "liborch.patterns": ("liborch.errors", "liborch.names"),
    "liborch.places": (),
    # Ties the front door to what it stands on.
    "liborch.host": (*BASE, "liborch.core", "liborch.drive", "liborch.places", *BORDERS),
    # The same for programs that are not asyncio: the public side, its thread and loop, what it pickles, what runs on the node.
    "liborch.executor": (*BASE, "liborch.bridge", "liborch.drive", "liborch.functions", "liborch.places"),
    "liborch.bridge": (*BASE, "liborch.drive", "liborch.host"),
    "liborch.functions": (*BASE, "liborch.drive", "liborch.functions_node", "liborch.transfer"),
    "liborch.functions_node": (),
    # What the command lines share.
    "liborch.command_line": ("liborch", "liborch.errors", "liborch.plain_text"),
    "liborch.plain_text": (),
    # Commands parse, call and print: they reach the world through the driver, and read the journal for `ps`.
    "runaway": (*COMMANDS_USE, "liborch.core"),
    # A campaign runs batches, and records what they left.
    "expegit": (*COMMANDS_USE, "runaway"),
    "parasearch": COMMANDS_USE,
    "orchestra": ("liborch", *BASE, "liborch.drive", "liborch.journal", "runaway", "expegit", "parasearch"),
}

#: Modules that only `--simulate` starts, and so the only ones outside tests that may import liborch.sim.
SIMULATORS: tuple[str, ...] = ("runaway.simulate", "parasearch.simulate")


def wrong_imports(module: Module, known: frozenset[str]) -> list[str]:
    """Return what a module imports against the table. `known`: the names of all modules."""
    part = nearest(dict(MAY_IMPORT), module.name)
    if part is None or (part == "liborch" and module.name != "liborch"):
        return [f"{module.name} is not in the table MAY_IMPORT: add it, and what it may import"]
    wrong = []
    for use in uses(module):
        if not use.is_import or not any(covers(package, use.name) for package in PACKAGES):
            continue
        # `from liborch.core import machine` names a module, `from liborch.core import Event` a name in one.
        target = use.name if use.name in known else use.name.rpartition(".")[0]
        if covers("liborch.sim", target) and not covers("liborch.sim", module.name):
            if module.name not in SIMULATORS:
                wrong.append(f"{module.name}:{use.line} imports {target}: only tests and --simulate may")
            continue
        if not any(reaches(allowed, target) for allowed in (part, *MAY_IMPORT[part])):
            may = ", ".join(MAY_IMPORT[part]) or "nothing of ours"
            wrong.append(f"{module.name}:{use.line} imports {target}; {part} may import {may}")
    return wrong


def reaches(allowed: str, target: str) -> bool:
    """Whether an entry of the table stands for a module. `liborch` is the front door alone, not all that lies behind it."""
    if allowed == "liborch":
        return target == "liborch"
    return covers(allowed.removesuffix(".*"), target)


def early_asyncssh(module: Module) -> list[str]:
    """Return where a module imports asyncssh other than in a function of liborch.ssh."""
    found = [
        use for use in uses(module) if use.is_import and covers("asyncssh", use.name) and not use.for_types
    ]
    if not covers("liborch.ssh", module.name):
        return [f"{module.name}:{use.line}: only liborch.ssh imports asyncssh" for use in found]
    return [
        f"{module.name}:{use.line}: import asyncssh inside a function: it costs 0.3 s"
        for use in found
        if not use.in_function
    ]


def test_imports_point_one_way() -> None:
    known = frozenset(module.name for module in modules())
    assert [problem for module in modules() for problem in wrong_imports(module, known)] == []


def test_an_import_against_the_direction_is_found() -> None:
    known = frozenset(
        {"liborch", "liborch.core", "liborch.core.machine", "liborch.drive", "liborch.specs", "liborch.sim"}
    )
    for name, text in (
        ("liborch.core.machine", "from liborch import drive"),
        ("liborch.core.machine", "def late():\n    from liborch.drive import Host"),
        ("liborch.core.machine", "from ..drive import Host"),
        ("liborch.core.machine", "import liborch"),
        ("liborch.specs", "from liborch.core.machine import Orchestration"),
        ("liborch.drive", "from liborch.sim import World"),
        ("runaway", "import liborch.sim"),
        ("runaway", "from liborch.agent import frames"),
        ("liborch", "import runaway"),
        ("liborch.novelty", ""),
        ("liborch.novelty.part", ""),
    ):
        assert wrong_imports(Module(name, text), known), (name, text)
    for name, text in (
        ("liborch.core.machine", "from liborch.specs import Resources\nfrom .tables import EDGES"),
        ("liborch.drive.loop", "from liborch.core.machine import Orchestration"),
        ("liborch.sim.world", "from liborch.drive import Host\nfrom liborch.core import machine"),
        ("runaway.exec", "import liborch\nfrom liborch import open_host"),
        ("runaway.simulate", "from liborch.sim import World"),
    ):
        assert wrong_imports(Module(name, text), known) == [], (name, text)


def test_asyncssh_is_imported_in_one_folder_and_late() -> None:
    assert [problem for module in modules() for problem in early_asyncssh(module)] == []


def test_an_early_or_stray_import_of_asyncssh_is_found() -> None:
    assert early_asyncssh(Module("liborch.ssh.pool", "import asyncssh"))
    assert early_asyncssh(Module("liborch.drive.loop", "def f():\n    from asyncssh import connect"))
    assert early_asyncssh(Module("liborch.ssh.pool", "def f():\n    import asyncssh")) == []
    assert early_asyncssh(Module("liborch.ssh.pool", "if TYPE_CHECKING:\n    import asyncssh")) == []


def test_importing_the_library_and_the_command_loads_nothing_heavy() -> None:
    names = [
        name for name in ("liborch", "runaway.__main__") if any(module.name == name for module in modules())
    ]
    code = f"import sys, {', '.join(names)}\nprint(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


#: Imports that cost more than a bare interpreter's start, or close to it.
HEAVY = ("asyncssh", "cryptography", "optuna", "pygit2", "rich", "dulwich", "numpy")
