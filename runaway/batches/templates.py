"""Template strings: `{a;b}+{c;d}` -> ac, ad, bc, bd. Pure; nothing is expanded until it is asked for.

::

    template     = alternatives
    alternatives = product { ";" product }
    product      = part { "+" part }
    part         = quoted | { text | group | placeholder }
    group        = "{" product ";" product { ";" product } "}"
    placeholder  = "{" name "}"                   only names of parameters that were given
    quoted       = "'" { character | "''" } "'"   `''` is one apostrophe
    text         = anything else

* The right-most of a product varies fastest. Blanks around `;`, around a joining `+` and at both ends do not count;
  blanks in quoted parts do. Text and groups may stand side by side without `+`: `--epochs={1;2} --lr={3;4}`.
* Without a `;` there is exactly one string: braces around no `;` of their own are text (`{"k":1}`, `${NAME}`, `{}`).
* `+` joins where it stands beside a group, a placeholder or a quoted part. Elsewhere it is text: `1e+3`, `a+b`.
* A single quote begins something at the start of a part or of a word. A quoted part is all of its part; further right in the
  text, quotes stay, for `words` to take off. An apostrophe between two letters is text, always: `it's`.
* Between double quotes nothing means anything but placeholders, and they stay: `--name "a;b"`, `{"k":"a;b"}`.

What could be meant in two ways is an error that says where, and how to write it: `{a;b` (never closed), `{a}+{b;c}` (one
alternative), `a+b+{c;d}` (text or joined?), `'--x ' {1;2}` (a `+` is missing).

Any text, blanks and all, is written literally between single quotes, with each apostrophe in it doubled: see `quote`.

Splitting the strings into words is left to `words`, which template goes with which parameters to `sources`.
"""

from __future__ import annotations

import re
import shlex
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import prod
from typing import NoReturn

from liborch.errors import TemplateError

#: What counts as a blank, here and between words; a no-break space is a letter like others.
BLANKS = " \t\r\n"
#: Stands around a placeholder's name in what `at` returns. No argument can hold one.
MARK = "\0"
#: Groups within groups; more is no template that anybody wrote.
DEEPEST = 50

_SPECIAL = re.compile(r"[;{}+'\"]")
_BRACED_NAME = re.compile(r"\{([^\W\d][\w.-]*)\}")
_DOUBLE_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
#: A quote opens after one of these, at the start, or after a blank.
_BEFORE_QUOTE = BLANKS + ";{}+=([,:"


def quote(text: str) -> str:
    """Return a template of which `text` is the only string."""
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True, slots=True)
class _Text:
    """One string, or a placeholder's name between two marks."""

    value: str
    count: int = 1

    def at(self, index: int) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class _Choice:
    """One of several, in order."""

    options: tuple[_Node, ...]
    count: int
    #: Index behind the last string of each option.
    ends: tuple[int, ...]

    def at(self, index: int) -> str:
        which = bisect_right(self.ends, index)
        return self.options[which].at(index - (self.ends[which - 1] if which else 0))


@dataclass(frozen=True, slots=True)
class _Product:
    """One of each, joined; the right-most varies fastest."""

    factors: tuple[_Node, ...]
    count: int

    def at(self, index: int) -> str:
        pieces = []
        for factor in reversed(self.factors):
            index, here = divmod(index, factor.count)
            pieces.append(factor.at(here))
        return "".join(reversed(pieces))


_Node = _Text | _Choice | _Product


def _choice(options: list[_Node]) -> _Node:
    if len(options) == 1:
        return options[0]
    ends = tuple(accumulate(option.count for option in options))
    return _Choice(tuple(options), ends[-1], ends)


def _product(factors: list[_Node]) -> _Node:
    if len(factors) == 1:
        return factors[0]
    if all(isinstance(factor, _Text) for factor in factors):
        return _Text("".join(factor.at(0) for factor in factors))
    return _Product(tuple(factors), prod(factor.count for factor in factors))


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: how many strings, and each of them when asked for."""

    text: str
    _node: _Node
    #: Parameters that it names.
    names: frozenset[str] = frozenset()
    #: Whether some `;` is in no braces.
    has_top_alternatives: bool = False

    @property
    def count(self) -> int:
        """How many strings it stands for; known without expanding any."""
        return self._node.count

    @property
    def has_alternatives(self) -> bool:
        """Whether there was a `;` that meant something."""
        return not isinstance(self._node, _Text)

    def at(self, index: int) -> str:
        """Return one string, `index` from 0 below `count`. A placeholder is its name between two MARKs."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self._node.at(index)

    def __iter__(self) -> Iterator[str]:
        return map(self._node.at, range(self.count))


def in_shell(text: str) -> str:
    """Return how to type a text so that a shell leaves it as it is; in double quotes where single ones would be hard to read."""
    return f'"{text}"' if not re.search(r'["$`\\!]', text) else shlex.quote(text)


def parse(
    text: str,
    names: Collection[str] = (),
    *,
    where: str = "template",
    line: int = 1,
    typed: bool = False,
) -> Template:
    """Parse a template.

    Args:
        text: As the person wrote it.
        names: Parameters there are; `{name}` stands for the value of one.
        where: What the text is or which file it comes from, for messages.
        line: Number of its first line there.
        typed: It was typed in a shell, so messages say how to write things there.

    Raises:
        TemplateError: It could be meant in more than one way, or in none.
    """
    # Nothing in it can mean anything: nearly every line of a long file.
    if ";" not in text and "+" not in text and (not names or "{" not in text):
        stripped = text.strip(BLANKS)
        if not stripped.startswith(("'", "{")) and MARK not in text:
            return Template(text, _Text(stripped))
    return _Parser(text, names, where, line, typed).template()


@dataclass(slots=True)
class _Token:
    """A character that may mean something (`kind` is it), or `text`, `quoted`, `name`."""

    kind: str
    #: Text as it stands, what is between the quotes, or the name.
    value: str
    #: Where in the template.
    at: int
    #: As it was written.
    raw: str


@dataclass(slots=True)
class _Item:
    """A piece of a product: `text`, `quoted`, `name`, `group` or `+`."""

    kind: str
    node: _Node
    #: The token that it begins with.
    token: int

    @property
    def is_blank(self) -> bool:
        return self.kind == "text" and not self.node.at(0).strip(BLANKS)


@dataclass(slots=True)
class _Scope:
    """The inside of a brace while its end is being looked for."""

    opened: int
    semicolons: list[int] = field(default_factory=list)


class _Parser:
    """Tokens first, then which brace belongs to which, then the tree."""

    def __init__(self, text: str, names: Collection[str], where: str, line: int, typed: bool) -> None:
        self.text = text
        self.known = names
        self.where = where
        self.line = line
        self.typed = typed
        self.used: set[str] = set()
        self.tokens: list[_Token] = []
        #: Quotes that look like the first of two.
        self.unclosed: list[int] = []
        #: {token of a `{`: (token of its `}`, its own semicolons)}.
        self.braces: dict[int, tuple[int, list[int]]] = {}

    def template(self) -> Template:
        if MARK in self.text:
            self.fail(self.text.index(MARK), "a NUL character, which no program can be given", "text")
        self.lex()
        semicolons = self.match_braces()
        if self.unclosed and any(token.kind == ";" for token in self.tokens):
            char = self.text[self.unclosed[0]]
            self.fail(self.unclosed[0], f"this {char} is never closed", f"another {char}")
        node = self.alternatives(0, len(self.tokens), semicolons, 0)
        return Template(self.text, node, frozenset(self.used), bool(semicolons))

    def fail(self, at: int, problem: str, expected: str, literal: str = "") -> NoReturn:
        """Complain about the character at `at`; `literal` is how to write what may have been meant."""
        before = self.text[:at]
        column = at - (before.rfind("\n") + 1) + 1
        if not literal:
            whole = self.text.strip(BLANKS)
            literal = quote(whole) if len(whole) <= 80 else "'...'"
        if self.typed:
            literal = in_shell(literal)
        raise TemplateError(
            self.where, self.line + before.count("\n"), column, problem, expected, literal=literal
        )

    # Tokens.

    def lex(self) -> None:
        text, start, at = self.text, 0, 0
        no_more: set[str] = set()
        while found := _SPECIAL.search(text, at):
            at, char = found.start(), found.group()
            if char in "'\"":
                end = self.closing(at, char) if char not in no_more and self.opens(at, char) else -1
                if end < 0:
                    if char not in no_more and self.opens(at, char):
                        self.unclosed.append(at)
                        no_more.add(char)
                    at += 1
                    continue
                self.add_text(start, at)
                if char == "'":
                    value = text[at + 1 : end].replace("''", "'")
                    self.tokens.append(_Token("quoted", value, at, text[at : end + 1]))
                else:
                    self.double_quoted(at, end + 1)
                start = at = end + 1
                continue
            self.add_text(start, at)
            end = self.name(at) if char == "{" else -1
            if end < 0:
                self.tokens.append(_Token(char, char, at, char))
                end = at + 1
            start = at = end
        self.add_text(start, len(text))

    def add_text(self, start: int, end: int) -> None:
        if start < end:
            piece = self.text[start:end]
            self.tokens.append(_Token("text", piece, start, piece))

    def opens(self, at: int, char: str) -> bool:
        if not at:
            return True
        before = self.text[at - 1]
        return not before.isalnum() if char == '"' else before in _BEFORE_QUOTE

    def closing(self, at: int, char: str) -> int:
        """Return where the quote ends that begins at `at`, -1: nowhere."""
        text = self.text
        if char == '"':
            found = _DOUBLE_QUOTED.match(text, at)
            return found.end() - 1 if found else -1
        end = text.find("'", at + 1)
        while end >= 0:
            if text.startswith("''", end):
                end = text.find("'", end + 2)
            elif end > at + 1 and text[end - 1].isalnum() and text[end + 1 : end + 2].isalnum():
                end = text.find("'", end + 1)
            else:
                break
        return end

    def double_quoted(self, start: int, end: int) -> None:
        """Text as it stands, but for names."""
        at = start
        while (found := self.text.find("{", at, end)) >= 0 and self.known:
            self.add_text(start, found)
            behind = self.name(found, in_quotes=True)
            start, at = (found, found + 1) if behind < 0 else (behind, behind)
        self.add_text(start, end)

    def name(self, at: int, *, in_quotes: bool = False) -> int:
        """Take a placeholder, if there is one; return where it ends, -1: there is none."""
        found = _BRACED_NAME.match(self.text, at) if self.known else None
        if not found or self.text[max(at - 1, 0) : at] == "$":
            return -1
        name = found.group(1)
        if name not in self.known:
            if in_quotes:
                return -1
            self.fail(
                at,
                f"no parameter is called {name!r}",
                f"{{name}} with one of {', '.join(sorted(self.known))}",
                quote(found.group()),
            )
        self.used.add(name)
        self.tokens.append(_Token("name", name, at, found.group()))
        return found.end()

    # Braces.

    def match_braces(self) -> list[int]:
        """Find which brace belongs to which; return the semicolons outside all of them."""
        top = _Scope(-1)
        open_scopes: list[_Scope] = []
        strays = []
        for number, token in enumerate(self.tokens):
            if token.kind == "{":
                open_scopes.append(_Scope(number))
            elif token.kind == "}" and open_scopes:
                scope = open_scopes.pop()
                self.braces[scope.opened] = (number, scope.semicolons)
            elif token.kind == "}":
                strays.append(token)
            elif token.kind == ";":
                (open_scopes[-1] if open_scopes else top).semicolons.append(number)
        for scope in open_scopes:
            if scope.semicolons:
                self.fail(
                    self.tokens[scope.opened].at, "this { is never closed", "a } behind the last alternative"
                )
        if strays and top.semicolons:
            self.fail(strays[0].at, "this } closes nothing", "a { before the first alternative")
        return top.semicolons

    # The tree.

    def alternatives(self, start: int, end: int, semicolons: list[int], depth: int) -> _Node:
        if depth > DEEPEST:
            self.fail(self.tokens[start - 1].at, f"groups within more than {DEEPEST} others", "fewer")
        bounds = [start - 1, *semicolons, end]
        return _choice([self.product(bounds[n] + 1, bounds[n + 1], depth) for n in range(len(bounds) - 1)])

    def product(self, start: int, end: int, depth: int) -> _Node:
        items = self.items(start, end, depth)
        joints = [n for n, item in enumerate(items) if item.kind == "+" and self.joins(items, n)]
        plain = [item for n, item in enumerate(items) if item.kind == "+" and n not in joints]
        if joints and plain:
            self.fail(
                self.tokens[plain[0].token].at,
                "this + may be text or join two parts",
                "quotes around text that holds one",
                "'+'",
            )
        parts = []
        bounds = [-1, *joints, len(items)]
        for n in range(len(bounds) - 1):
            part = items[bounds[n] + 1 : bounds[n + 1]]
            if joints and all(item.is_blank for item in part):
                self.fail(
                    self.tokens[items[joints[max(n - 1, 0)]].token].at,
                    "this + has nothing on one side",
                    "text, a group or a quoted part",
                    "'+'",
                )
            parts.append(self.part(part, joined=bool(joints)))
        return _product(parts)

    def items(self, start: int, end: int, depth: int) -> list[_Item]:
        """Tokens of a product; groups become nodes, and what is within braces that are text becomes text."""
        items = []
        closers: set[int] = set()
        number = start
        while number < end:
            token = self.tokens[number]
            close, semicolons = self.braces.get(number, (-1, []))
            if semicolons:
                node = self.alternatives(number + 1, close, semicolons, depth + 1)
                items.append(_Item("group", node, number))
                number = close + 1
                continue
            if close >= 0:
                closers.add(close)
            closers.discard(number)
            if token.kind == "name":
                items.append(_Item("name", _Text(MARK + token.value + MARK), number))
            elif token.kind in ("quoted", "+") and not closers:
                items.append(_Item(token.kind, _Text(token.value), number))
            else:
                items.append(_Item("text", _Text(token.raw), number))
            number += 1
        return items

    def joins(self, items: list[_Item], at: int) -> bool:
        """Whether a `+` stands beside something that is no text."""
        for step in (-1, 1):
            near = self.beside(items, at, step)
            if near is None:
                continue
            kind = items[near].kind
            if kind in ("group", "name"):
                return True
            if kind == "quoted":
                beyond = self.beside(items, near, step)
                if beyond is None or items[beyond].kind == "+":
                    return True
        return False

    @staticmethod
    def beside(items: list[_Item], at: int, step: int) -> int | None:
        at += step
        while 0 <= at < len(items) and items[at].is_blank:
            at += step
        return at if 0 <= at < len(items) else None

    def part(self, items: list[_Item], *, joined: bool) -> _Node:
        while items and items[0].is_blank:
            items = items[1:]
        while items and items[-1].is_blank:
            items = items[:-1]
        if not items:
            return _Text("")
        self.check_part(items, joined=joined)
        if len(items) == 1 and items[0].kind == "quoted":
            return items[0].node
        nodes: list[_Node] = []
        for n, item in enumerate(items):
            node = _Text(self.tokens[item.token].raw) if item.kind == "quoted" else item.node
            if item.kind in ("text", "+"):
                value = node.at(0)
                value = value if n else value.lstrip(BLANKS)
                node = _Text(value if n < len(items) - 1 else value.rstrip(BLANKS))
            nodes.append(node)
        return _product(nodes)

    def check_part(self, items: list[_Item], *, joined: bool) -> None:
        first = self.tokens[items[0].token]
        if len(items) > 1:
            behind = None
            if items[0].kind == "quoted":
                behind = next(item for item in items[1:] if not item.is_blank)
            for one, two in pairwise(items):
                if one.kind == "group" and two.kind == "quoted":
                    behind = two
            if behind is not None:
                double = (
                    '"' + first.value + '"' if items[0].kind == "quoted" and '"' not in first.value else ""
                )
                token = self.tokens[behind.token]
                self.fail(
                    token.at + len(token.raw) - len(token.raw.lstrip(BLANKS)),
                    "a quoted part stands beside something else",
                    "+ between the two"
                    + (f", or double quotes around one word of the command: {double}" if double else ""),
                )
        close, _ = self.braces.get(items[0].token, (-1, []))
        if first.kind == "{" and close == items[-1].token:
            inside = [item for item in items[1:-1] if not item.is_blank]
            is_quoted = len(inside) == 1 and self.tokens[inside[0].token].kind == "quoted"
            if joined or is_quoted:
                self.fail(
                    first.at,
                    "braces around one alternative",
                    "several with ; between, or no braces",
                    quote(self.text[first.at : self.tokens[close].at + 1]),
                )
