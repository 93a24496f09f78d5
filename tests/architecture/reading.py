"""Reads the code as text and syntax trees, without importing it; which rules hold is left to the tests beside it."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: The packages a person installs.
PACKAGES = ("liborch", "runaway", "expegit", "parasearch", "orchestra")


@dataclass(frozen=True)
class Module:
    """One file of code."""

    #: Dotted; a package has the name of its folder.
    name: str
    text: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        """The syntax tree, parsed once."""
        return _parse(self.text)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it: a folder's mark."""
        return not self.text.strip()


@dataclass(frozen=True)
class Use:
    """A name of another module that a file uses."""

    #: Dotted and resolved through the file's imports: `os.environ`, whatever it was imported as. Builtins are
    #: `builtins.open`, methods of anything `.read_text`, and waiting is `await`.
    name: str
    line: int
    #: Whether it runs only when a function is called.
    in_function: bool
    #: Whether only a type checker sees it.
    for_types: bool
    is_import: bool


@cache
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def modules() -> tuple[Module, ...]:
    """Return every module of the packages, sorted by name."""
    found = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            found.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return tuple(sorted(found, key=lambda module: module.name))


def covers(prefix: str, name: str) -> bool:
    """Whether a dotted name is `prefix` or lies inside it."""
    return name == prefix or name.startswith(prefix + ".")


def nearest(table: dict[str, object], name: str) -> str | None:
    """Return the longest key of a table that covers a dotted name."""
    return max((key for key in table if covers(key, name)), key=len, default=None)


def uses(module: Module) -> list[Use]:
    """Return every use of something from outside that the file makes, in order of line."""
    reader = _Reader(module)
    reader.visit(module.tree)
    return sorted(reader.found, key=lambda use: use.line)


class _Reader(ast.NodeVisitor):
    """Walks a file; knows what each imported name stands for, and whether it is inside a function."""

    def __init__(self, module: Module) -> None:
        self.found: list[Use] = []
        self._module = module
        self._aliases = dict(_aliases(module))
        self._depth = 0
        self._for_types = False
        #: Names that each function around bound itself: `def run(input): ...` has no use of the builtin.
        self._bound: list[set[str]] = []

    def _add(self, name: str, node: ast.AST, is_import: bool = False) -> None:
        line = getattr(node, "lineno", 0)
        self.found.append(Use(name, line, self._depth > 0, self._for_types, is_import))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node, is_import=True)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        source = _source(self._module, node)
        for alias in node.names:
            self._add(source if alias.name == "*" else f"{source}.{alias.name}", node, is_import=True)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            before, self._for_types = self._for_types, True
            for child in node.body:
                self.visit(child)
            self._for_types = before
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if isinstance(node, ast.AsyncFunctionDef):
            self._add("await", node)
        # Decorators and defaults run when the module is imported; annotations do not run at all.
        for now in (*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d)):
            self.visit(now)
        self._depth += 1
        self._bound.append(_bound_in(node))
        for later in node.body:
            self.visit(later)
        self._bound.pop()
        self._depth -= 1

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Await(self, node: ast.Await) -> None:
        self._add("await", node)
        self.generic_visit(node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        self._add("await", node)
        self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self._add("await", node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        # Without a seed a generator begins with the machine's own chance.
        written = ast.unparse(node.func)
        first, *_, last = written.split(".") * 2
        stands_for = self._aliases.get(first, "")
        if covers("random", stands_for) and last == "Random" and not node.args and not node.keywords:
            self._add("random.Random.unseeded", node)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in self._aliases:
            self._add(self._aliases[node.id], node)
        elif hasattr(builtins, node.id) and not any(node.id in names for names in self._bound):
            self._add(f"builtins.{node.id}", node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = [node.attr]
        base: ast.expr = node.value
        while isinstance(base, ast.Attribute):
            chain.append(base.attr)
            base = base.value
        if isinstance(base, ast.Name) and base.id in self._aliases:
            self._add(".".join([self._aliases[base.id], *reversed(chain)]), node)
        else:
            self._add(f".{node.attr}", node)
            self.visit(node.value)


def _bound_in(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return the names of a function's parameters and variables."""
    names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names | stored


def _source(module: Module, node: ast.ImportFrom) -> str:
    """Return the dotted name after `from`, relative ones resolved."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    up = node.level - 1 if module.is_package else node.level
    return ".".join(parts[: len(parts) - up] + ([node.module] if node.module else []))


def _aliases(module: Module) -> Iterator[tuple[str, str]]:
    """Yield (name in the file, what it stands for) for every import, wherever it is."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{_source(module, node)}.{alias.name}"
