"""Where each execution of a batch runs on its host, and where its results go here.

A folder is a pattern (see `liborch.patterns`) in which `$RUNAWAY_PARAM_...` and `$RUNAWAY_REPETITION` may stand too.

* `--output-folder/-o` and `--remote-folder/-r` hold one pattern for all executions, or a template (see `templates`) that makes one
  for each: `-o 'out/{a;b;c}'`.
* `--outputs-file/-O` and `--remotes-file/-R` have one a line (each line a template too, as in an arguments file). They belong to the
  executions in the order of the plan before shuffling. With `--repeats` there may also be one for each before it is repeated.

Any other count is an error. So are two executions with the same output folder, since the results of one would be lost: what is only
known afterwards (`$RUNAWAY_ECODE`, the node) cannot tell them apart, `$RUNAWAY_UUID` always does. All of it is found before
anything starts. A folder on the host may be shared.

Left to others: filling the patterns in when everything is known, and writing there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from liborch.errors import PatternError, SpecError
from liborch.patterns import BEFORE, Pattern, caller_variables, parse_output, parse_remote
from liborch.profiles.procedures import join_arguments
from runaway.batches.grids import variable_of
from runaway.batches.lines import STDIN, Lines, TemplateLines, read_text
from runaway.batches.sources import Plan, Planned
from runaway.batches.templates import Template, parse

DEFAULT_OUTPUT = "batch/$RUNAWAY_UUID"
DEFAULT_REMOTE = "$RUNAWAY_PATH/$RUNAWAY_UUID"

_UUID = "RUNAWAY_UUID"
_STAND_INS = dict.fromkeys(BEFORE, "x")


@dataclass(frozen=True, slots=True)
class _Texts:
    """Patterns of one kind: as many as `source` has, and how many executions in a row share one."""

    source: Template | TemplateLines
    #: 0: one for all.
    share: int
    #: Which option they come from.
    option: str

    def of(self, planned: Planned) -> str:
        return self.source.at(planned.index // self.share if self.share else 0)


class Folders:
    """The folders of a plan. Made by `make_folders`, which has checked them."""

    def __init__(
        self,
        plan: Plan,
        outputs: _Texts,
        remotes: _Texts,
        environment: Mapping[str, str],
        env_read: bool,
        common: Mapping[str, str],
    ) -> None:
        self._plan = plan
        self._outputs = outputs
        self._remotes = remotes
        self._environment = dict(environment)
        self._env_read = env_read
        self._own = {variable_of(name): "" for name in plan.parameters} | {"RUNAWAY_REPETITION": "0"}
        self._common = {
            **caller_variables(environment, env_read=env_read),
            **dict.fromkeys(self._own, ""),
            **common,
        }
        # One pattern for all is parsed once, one for each when it is asked for.
        self._parsed = lru_cache(maxsize=2)(self._parse)

    def output(self, planned: Planned) -> Pattern:
        """Return the pattern of where its results go; relative to the folder the command was started in."""
        return self._parsed(self._outputs.of(planned), False)

    def remote(self, planned: Planned) -> Pattern:
        """Return the pattern of where it runs on its host."""
        return self._parsed(self._remotes.of(planned), True)

    def values(self, planned: Planned, **known: str) -> dict[str, str]:
        """Return the names that are known before it starts, less those of `common` and `known` that were not given.

        Args:
            planned: The execution.
            known: More of them, such as RUNAWAY_UUID.
        """
        arguments = {"RUNAWAY_ARGUMENTS": join_arguments(planned.arguments)}
        return {**self._common, **planned.variables, **arguments, **known}

    def results_in(self, folder: str, here: str) -> tuple[str, ...]:
        """Return the folders directly in `folder` that output folders lie in: what is there is results, not code.

        Args:
            folder: The folder that is sent.
            here: The folder that relative ones are in.
        """
        source = self._outputs.source
        tops: set[str] = set()
        for index in range(source.count if self._outputs.share else 1):
            fixed, dollar, _ = source.at(index).partition("$")
            whole = os.path.normpath(os.path.join(here, fixed + ("x" if dollar else "")))
            first, slash, _ = os.path.relpath(whole, folder).partition("/")
            # A pattern that begins with a name has no folder of its own; one that leads out is no matter of ours.
            if first not in (".", "..") and (slash or not dollar):
                tops.add(first)
        return tuple(sorted(tops))

    def in_use(self, planned: Iterable[Planned], here: str) -> Iterator[tuple[Planned, Path]]:
        """Yield executions whose output folder exists and is not empty (or is no folder), with it.

        Folders that get a name of their own (`$RUNAWAY_UUID`), or one that is only known afterwards, are not looked for.

        Args:
            planned: Those that are about to run.
            here: The folder that relative ones are in.
        """
        if not self._outputs.share and _has_own_name(self.output(self._plan.at(0))):
            return
        for one in planned:
            pattern = self.output(one)
            if _has_own_name(pattern):
                continue
            folder = Path(here, pattern.fill(self._stand_ins(one)))
            if _is_used(folder):
                yield one, folder

    def check_unused(self, planned: Iterable[Planned], here: str) -> None:
        """Raise SpecError, naming the first, when there is something `in_use`."""
        for one, folder in self.in_use(planned, here):
            raise SpecError(
                f"the output folder {folder} of execution {one.index + 1} ({_shown(one)}) exists and is not empty; name another "
                "folder, remove it, continue the batch it is from with --resume, or say --into-existing"
            )

    def check(self) -> None:
        """Look at every pattern, with the values there will be.

        Raises:
            PatternError: An unknown name, or a value that leads out of the folder.
            SpecError: Two executions have the same output folder.
        """
        first = self._plan.at(0)
        for planned in (
            [first] if self._is_alike(self._remotes, self.remote(first)) else self._plan.unshuffled()
        ):
            self.remote(planned).check(self._stand_ins(planned))
        pattern = self.output(first)
        is_alike = self._is_alike(self._outputs, pattern)
        seen: dict[str, int] = {}
        for planned in [first] if is_alike and _UUID in pattern.names else self._plan.unshuffled():
            pattern = self.output(planned)
            values = self._stand_ins(planned)
            if pattern.needs_outcome or _UUID in pattern.names:
                pattern.check(values)
            if _UUID in pattern.names:
                continue
            folder = os.path.normpath(pattern.fill(values))
            other = seen.setdefault(folder, planned.index)
            if other != planned.index:
                raise self._clash(self._plan.at(other), planned, folder)

    def _is_alike(self, texts: _Texts, pattern: Pattern) -> bool:
        """Whether a pattern is the same for all, and so are the values in it but for the id."""
        return not texts.share and {*self._own, "RUNAWAY_ARGUMENTS"}.isdisjoint(pattern.names)

    def _clash(self, one: Planned, two: Planned, folder: str) -> SpecError:
        pattern = self.output(two)
        shown = os.path.normpath(pattern.text) if pattern.needs_outcome else folder
        return SpecError(
            f"{self._outputs.option}: execution {one.index + 1} ({_shown(one)}) and execution {two.index + 1} ({_shown(two)}) "
            f"{'may' if pattern.needs_outcome else 'would'} both have the output folder {shown}; "
            "add $RUNAWAY_UUID, or what tells them apart, to it"
        )

    def _stand_ins(self, planned: Planned) -> dict[str, str]:
        """Values as far as they are known; the others are words that cannot lead anywhere."""
        return {**_STAND_INS, **self.values(planned)}

    def _parse(self, text: str, is_remote: bool) -> Pattern:
        read = parse_remote if is_remote else parse_output
        known = {**caller_variables(self._environment, env_read=self._env_read), **self._own}
        try:
            return read(text, known)
        except PatternError as error:
            # Says that it is there, but was not to be read.
            if not self._env_read and error.name in self._environment:
                read(text, {**self._environment, **self._own}, env_read=False)
            raise


def make_folders(
    plan: Plan,
    *,
    output_folder: str | None = None,
    outputs_file: str | None = None,
    remote_folder: str | None = None,
    remotes_file: str | None = None,
    environment: Mapping[str, str],
    env_read: bool = True,
    common: Mapping[str, str] | None = None,
    stdin: BinaryIO | None = None,
) -> Folders:
    """Read and check the folders of a plan.

    Args:
        plan: What is executed.
        output_folder: Of `--output-folder`; None: DEFAULT_OUTPUT.
        outputs_file: FILE of `--outputs-file`.
        remote_folder: Of `--remote-folder`; None: DEFAULT_REMOTE.
        remotes_file: FILE of `--remotes-file`.
        environment: The caller's; its RUNAWAY* variables may stand in patterns.
        env_read: False: they may not (`--no-env-read`).
        common: Names with the same value for every execution: RUNAWAY_SCRIPT_PATH, RUNAWAY_LOCAL_FOLDER and so on.
        stdin: Standard input, for the FILE `-`.

    Raises:
        SpecError: Another count than there are executions, two with the same output folder, a file that cannot be read.
        PatternError: A name that will not be known, or a value that leads out of the folder.
    """
    outputs = _texts(
        plan, "--output-folder", output_folder, DEFAULT_OUTPUT, "--outputs-file", outputs_file, stdin
    )
    remotes = _texts(
        plan, "--remote-folder", remote_folder, DEFAULT_REMOTE, "--remotes-file", remotes_file, stdin
    )
    folders = Folders(plan, outputs, remotes, environment, env_read, common or {})
    folders.check()
    return folders


def _texts(
    plan: Plan,
    option: str,
    text: str | None,
    default: str,
    file_option: str,
    file: str | None,
    stdin: BinaryIO | None,
) -> _Texts:
    if file is None:
        source: Template | TemplateLines = parse(default if text is None else text, where=option, typed=True)
        if source.count == 1:
            return _Texts(source, 0, option)
        where = option
    elif text is not None:
        raise SpecError(f"{option} and {file_option} at once; expected one of them")
    else:
        name = "standard input" if file == STDIN else file
        where = f"{file_option} {file}"
        source = TemplateLines(Lines(read_text(file, file_option, stdin), name))
    for count, share in ((plan.count, 1), (plan.distinct, plan.repeats)):
        if source.count == count:
            return _Texts(source, share, where)
    expected = str(plan.count) if plan.repeats == 1 else f"{plan.count} (or {plan.distinct}, before repeats)"
    raise SpecError(
        f"{where}: {source.count} folders for {plan.count} executions; expected {expected}, one for each, "
        f"or one pattern for all with {option}"
    )


def _is_used(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        # Also when one of the folders above it is a file: either way nothing can go there.
        return True
    except OSError as error:
        raise SpecError(f"the output folder {folder} cannot be read: {error.strerror}") from error


def _shown(planned: Planned) -> str:
    text = join_arguments(planned.arguments)
    return (text if len(text) <= 60 else text[:57] + "...") or "no arguments"


def _has_own_name(pattern: Pattern) -> bool:
    """Whether a folder gets a name of its own, or one that is only known afterwards."""
    return pattern.needs_outcome or _UUID in pattern.names
