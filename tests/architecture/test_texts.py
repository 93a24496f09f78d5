"""What can be said of every file by reading it: it opens with its job, is short enough, and uses our words."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.architecture.reading import PACKAGES, ROOT, Module, covers, modules

MOST_LINES = 600
#: Files that may be longer, and why cutting them would not make them easier to read.
LONG: dict[str, str] = {}

#: Words of GLOSSARY.md's "avoid" column that no class or function of the core may be named with. Outside the core they
#: have rightful owners (Slurm's job, asyncio's task, git's remote), so only the clearest are kept out of the rest.
AVOIDED_IN_CORE = (
    "Job",
    "Task",
    "Worker",
    "Handle",
    "Token",
    "Daemon",
    "Server",
    "Remote",
    "Callback",
    "Message",
    "Array",
)
AVOIDED = ("Job", "Daemon", "Optimizer")
#: Who may name things so: a batch system's own word, where we talk to it.
OWNERS = {"liborch.batch_systems": ("Job",)}
#: The door of the core.
NOT_NAMES = ("handle",)

#: Spelled the American way in half of the world's code; one spelling makes searching find everything.
MISSPELLED = re.compile(r"\bcancel(?:ed|ing|ation)\b", re.IGNORECASE)


def named_things(tree: ast.Module) -> list[tuple[str, int]]:
    """Return the classes and functions of a file, with their lines."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [(node.name, node.lineno) for node in ast.walk(tree) if isinstance(node, kinds)]


def words_of(name: str) -> set[str]:
    """`JobQueue`, `job_queue` -> {"Job", "Queue"}."""
    return {word.capitalize() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def avoided_names(module: Module) -> list[str]:
    """Return names in a module that the glossary keeps for something else."""
    avoid = set(AVOIDED_IN_CORE if covers("liborch.core", module.name) else AVOIDED)
    for part, words in OWNERS.items():
        if covers(part, module.name):
            avoid -= set(words)
    return [
        f"{module.name}:{line}: {name} uses {', '.join(sorted(words_of(name) & avoid))}; see GLOSSARY.md"
        for name, line in named_things(module.tree)
        if name not in NOT_NAMES and words_of(name) & avoid
    ]


def exported(module: Module) -> list[str] | None:
    """Return a module's `__all__`, or None when it has none.

    Raises:
        AssertionError: It is not a plain list or tuple of texts, so nobody can read it.
    """
    for node in module.tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            value = node.value
            assert isinstance(value, ast.List | ast.Tuple), f"{module.name}: __all__ is not a plain list"
            names = [
                item.value
                for item in value.elts
                if isinstance(item, ast.Constant) and isinstance(item.value, str)
            ]
            assert len(names) == len(value.elts), f"{module.name}: __all__ holds more than texts"
            return names
    return None


def exported_twice(found: tuple[Module, ...]) -> list[str]:
    """Return public names that more than one package's front exports, or one of them twice."""
    counted: Counter[str] = Counter()
    for module in found:
        if module.is_package:
            counted.update(exported(module) or [])
    return sorted(name for name, times in counted.items() if times > 1)


def written() -> list[Path]:
    """Return the files of code and prose that are part of the repository."""
    command = [
        "git",
        "ls-files",
        "-z",
        "-co",
        "--exclude-standard",
        "--",
        "*.py",
        "*.md",
        "*.sh",
        "Makefile",
        ".ci",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def test_every_module_opens_with_a_docstring() -> None:
    silent = [
        module.name for module in modules() if not module.is_empty and not ast.get_docstring(module.tree)
    ]
    assert silent == []


def test_every_package_says_what_it_is_for() -> None:
    # Also the empty ones, once there is something beside them.
    full = {module.name.rpartition(".")[0] for module in modules() if not module.is_empty}
    silent = [m.name for m in modules() if m.is_package and m.name in full and not ast.get_docstring(m.tree)]
    assert silent == []


def test_no_file_grows_beyond_what_fits_a_head() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in written()
        if path.suffix == ".py"
    }
    assert {
        name: length for name, length in lengths.items() if length > MOST_LINES and name not in LONG
    } == {}
    # A reason that is no longer needed goes.
    assert [name for name in LONG if lengths.get(name, 0) <= MOST_LINES] == []


def test_each_public_name_is_exported_once() -> None:
    assert exported_twice(modules()) == []


def test_a_name_exported_twice_is_found() -> None:
    one = Module("liborch", '__all__ = ["Host", "Slot"]', is_package=True)
    two = Module("liborch.drive", '__all__ = ("Host",)', is_package=True)
    assert exported_twice((one, two)) == ["Host"]
    assert exported_twice((one,)) == []


def test_names_are_those_of_the_glossary() -> None:
    assert [problem for module in modules() for problem in avoided_names(module)] == []


def test_a_name_of_the_avoided_kind_is_found() -> None:
    assert avoided_names(Module("liborch.core.queue", "class JobQueue: pass"))
    assert avoided_names(Module("liborch.core.queue", "def start_worker(): pass"))
    assert avoided_names(Module("liborch.drive", "class Jobs: pass")) == []
    assert avoided_names(Module("liborch.drive", "class Job: pass"))
    assert avoided_names(Module("liborch.batch_systems.slurm", "def parse_job(): pass")) == []
    assert avoided_names(Module("liborch.core.machine", "def handle(self): pass")) == []


def test_cancelled_is_spelled_one_way() -> None:
    here = Path(__file__).resolve()
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {found.group()}"
        for path in written()
        if path != here
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if (found := MISSPELLED.search(line))
    ]
    assert wrong == []


@pytest.mark.parametrize("word", ["canceled", "Canceling", "cancelation"])
def test_the_other_spelling_is_found(word: str) -> None:
    assert MISSPELLED.search(f"it was {word}.")
    assert not MISSPELLED.search("cancelled, cancelling, cancellation, cancel")


def test_the_glossary_has_each_word_once() -> None:
    rows = [
        line.split("|")[1].strip()
        for line in (ROOT / "GLOSSARY.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    words = [word for word in rows if word != "word"]
    assert len(words) > 30
    assert [word for word, times in Counter(words).items() if times > 1] == []


def test_every_package_is_installed_typed_and_checked() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for package in PACKAGES:
        if (ROOT / package / "__init__.py").exists():
            assert len(re.findall(rf'packages = \[[^\]]*"{package}"', text)) == 2, (
                f"{package}: name it for the wheel and for mypy"
            )
