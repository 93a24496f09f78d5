"""Every error Orchestra raises, and whose turn it is.

::

    OrchestraError
    +-- YourTurn                    the person can mend it: a file, an option, a request
    |   +-- SpecError               a request that cannot be: resources, arguments, script
    |   |   +-- TooLarge            asks for more than any node has
    |   |   +-- TemplateError       a template of arguments or folders: file, line, column, how to write it
    |   |   `-- FunctionError       a Python function, or its outcome, that cannot travel: which, where, how to mend it
    |   +-- ProfileError            a host profile: file, line, key, what was expected
    |   +-- TraceError              a workload trace: file, line, field, what was expected
    |   +-- PatternError            an unknown $RUNAWAY_... name in a folder pattern
    |   +-- QuantityError           "1h30m", "4GiB": text that is no duration or size
    |   +-- CampaignError           no campaign, one of a newer layout, a damaged record: where, what, how to mend it
    |   +-- UnknownName             no such host, execution, batch; names the nearest
    |   `-- Conflict                somebody else holds it (another client drives this batch)
    +-- WorldError                  the world did not do its part; `retriable` says whether to try again
    |   +-- HostUnreachable         no answer, refused, reset, name does not resolve
    |   +-- HostKeyUnknown          nobody vouched for this key yet
    |   +-- HostKeyChanged          the key is not the one on record: file and line
    |   +-- AuthenticationRefused   the host said no
    |   +-- AgentError              the agent could not be started or broke the protocol
    |   +-- TransferError           a file could not be sent, fetched or verified
    |   +-- ProcedureError          a shell procedure of a profile failed, or did not set what it must
    |   +-- StorageError            disk full, read-only, permission denied: path and errno
    |   +-- ExecutionLost           an execution's verdict cannot be known any more
    |   +-- FunctionDied            the process of a Python function ended without an outcome
    |   +-- GitError                git, or the other side of it, refused: the command, where, what it said
    |   `-- JournalError            the journal is damaged, foreign, or newer than this program
    `-- InvariantError              a promise we made to ourselves broke; nobody catches it, please report
        `-- IllegalTransition       an edge that is not in the table, with the thing's whole story

Each carries fields, not only text; ``exit_status`` is what a command line ends with.
Foreign exceptions become ours at the border, ``raise ... from``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence


class OrchestraError(Exception):
    """Root of the tree. `exit_status` is the command line's."""

    exit_status = 1


class YourTurn(OrchestraError):
    """The person who asked can mend it."""

    exit_status = 2


class WorldError(OrchestraError):
    """The world did not do its part."""

    exit_status = 255
    #: Whether trying again, without anybody changing anything, is sensible.
    retriable = True


class InvariantError(OrchestraError):
    """A promise we made to ourselves broke. Nobody catches it."""

    exit_status = 70


class SpecError(YourTurn):
    """A request that cannot be carried out by anybody."""


class TooLarge(SpecError):
    """A request for more than any node has."""

    def __init__(self, asked: str, largest: str) -> None:
        self.asked = asked
        self.largest = largest
        super().__init__(f"asks for {asked}, more than any node has; the largest: {largest}")


class TemplateError(SpecError):
    """A template that means two things or none: where, what was expected, and how the text itself is written."""

    def __init__(
        self, where: str, line: int, column: int, problem: str, expected: str, *, literal: str = ""
    ) -> None:
        self.where = where
        self.line = line
        self.column = column
        self.problem = problem
        self.expected = expected
        self.literal = literal
        text = f"{where}, line {line}, column {column}: {problem}; expected {expected}"
        super().__init__(f"{text}. As plain text, write {literal}" if literal else text)


class FunctionError(SpecError):
    """A Python function that cannot be called on a host, or whose outcome cannot come back."""

    def __init__(self, function: str, why: str, todo: str = "", *, node: str = "") -> None:
        self.function = function
        self.why = why
        self.todo = todo
        self.node = node
        text = f"{function}{f' on {node}' if node else ''}: {why}"
        super().__init__(f"{text}; {todo}" if todo else text)


class ProfileError(YourTurn):
    """A host profile that cannot be used: where, what was found, what was expected."""

    def __init__(
        self, file: str, line: int | None, key: str | None, problem: str, expected: str = ""
    ) -> None:
        self.file = file
        self.line = line
        self.key = key
        self.problem = problem
        self.expected = expected
        where = file if line is None else f"{file}:{line}"
        text = f"{where}: {f'{key}: ' if key else ''}{problem}"
        super().__init__(f"{text}; expected {expected}" if expected else text)


class TraceError(YourTurn):
    """A workload trace that cannot be read or replayed: which file, line and field, what was found, what was expected."""

    def __init__(self, file: str, line: int | None, field: str, problem: str, expected: str = "") -> None:
        self.file = file
        self.line = line
        self.field = field
        self.problem = problem
        self.expected = expected
        where = file if line is None else f"{file}:{line}"
        text = f"{where}: {f'{field}: ' if field else ''}{problem}"
        super().__init__(f"{text}; expected {expected}" if expected else text)


class PatternError(YourTurn):
    """A folder pattern names a variable that will not exist."""

    def __init__(self, pattern: str, name: str, known: Iterable[str] = (), hint: str = "") -> None:
        self.pattern = pattern
        self.name = name
        self.known = tuple(known)
        nearest = f"; known: {', '.join(sorted(self.known))}" if self.known else ""
        super().__init__(f"{pattern!r}: ${name} is not known{nearest}{f'; {hint}' if hint else ''}")


class QuantityError(YourTurn):
    """Text that is no duration, size or count."""


class UnknownName(YourTurn):
    """No such host, execution or batch."""

    def __init__(self, kind: str, name: str, nearest: Sequence[str] = (), hint: str = "") -> None:
        self.kind = kind
        self.name = name
        self.nearest = tuple(nearest)
        near = f"; did you mean {' or '.join(self.nearest)}?" if self.nearest else ""
        super().__init__(f"no {kind} {name!r}{near}{f'; {hint}' if hint else ''}")


class Conflict(YourTurn):
    """Somebody else holds what was asked for."""

    exit_status = 75


class CampaignError(YourTurn):
    """A campaign is not what it should be, or not there."""

    def __init__(self, where: str, why: str) -> None:
        self.where = where
        self.why = why
        super().__init__(f"{where}: {why}" if where else why)


class HostUnreachable(WorldError):
    """A host did not answer, refused, hung up, or its name does not resolve."""

    def __init__(
        self,
        host: str,
        address: str,
        why: str,
        *,
        attempt: int = 1,
        attempts: int = 1,
        next_s: float | None = None,
        retriable: bool = True,
    ) -> None:
        self.host = host
        self.address = address
        self.why = why
        self.attempt = attempt
        self.attempts = attempts
        self.next_s = next_s
        self.retriable = retriable
        text = f"{host} ({address}) {why}"
        if attempts > 1:
            text += f"; attempt {attempt} of {attempts}"
        if next_s is not None:
            text += f", next in {next_s:.0f} s"
        super().__init__(text)


class HostKeyUnknown(WorldError):
    """Nobody vouched for this host's key yet. Never accepted silently."""

    retriable = False

    def __init__(self, host: str, address: str, fingerprint: str, files: Sequence[str]) -> None:
        self.host = host
        self.address = address
        self.fingerprint = fingerprint
        self.files = tuple(files)
        super().__init__(
            f"{host} ({address}): host key {fingerprint} is not in {', '.join(self.files) or 'any known_hosts file'}; "
            f"compare the fingerprint with the host's administrator, then run `ssh {host}` once, or pass --accept-new"
        )


class HostKeyChanged(WorldError):
    """The host's key is not the one on record: a reinstalled host, or somebody in between."""

    retriable = False

    def __init__(
        self, host: str, address: str, fingerprint: str, recorded: str, file: str, line: int
    ) -> None:
        self.host = host
        self.address = address
        self.fingerprint = fingerprint
        self.recorded = recorded
        self.file = file
        self.line = line
        super().__init__(
            f"{host} ({address}): HOST KEY CHANGED. Recorded {recorded} at {file}:{line}, got {fingerprint}. "
            f"Nothing was sent. If the host was reinstalled, delete that line and verify the new key"
        )


class AuthenticationRefused(WorldError):
    """The host refused every way to log in that was tried."""

    retriable = False

    def __init__(self, host: str, address: str, user: str, why: str) -> None:
        self.host = host
        self.address = address
        self.user = user
        super().__init__(
            f"{host} ({address}) refused the login of {user}: {why}; try `ssh {host}` to see why"
        )


class AgentError(WorldError):
    """The agent could not be started on a node, or what came back was not its protocol."""

    def __init__(self, host: str, why: str, *, detail: str = "", retriable: bool = False) -> None:
        self.host = host
        self.why = why
        self.detail = detail
        self.retriable = retriable
        super().__init__(f"{host}: {why}{f' ({detail})' if detail else ''}")


class TransferError(WorldError):
    """A file could not be sent, fetched or verified. `refused` names entries not accepted from a node."""

    def __init__(
        self, why: str, *, path: str = "", refused: Sequence[str] = (), retriable: bool = False
    ) -> None:
        self.path = path
        self.why = why
        self.refused = tuple(refused)
        self.retriable = retriable
        super().__init__(f"{path}: {why}" if path else why)


class ProcedureError(WorldError):
    """A shell procedure of a profile failed, or did not set what it must. `code` is its exit code, None if that was 0."""

    retriable = False

    def __init__(self, procedure: str, why: str, expected: str = "", *, code: int | None = None) -> None:
        self.procedure = procedure
        self.why = why
        self.expected = expected
        self.code = code
        text = f"{procedure or 'procedure'}: {why}"
        super().__init__(f"{text}; expected {expected}" if expected else text)


class StorageError(WorldError):
    """The disk is full, read-only, or refuses: which path, which errno, on which side."""

    def __init__(self, where: str, path: str, code: int, doing: str = "") -> None:
        self.where = where
        self.path = path
        self.code = code
        self.doing = doing
        super().__init__(f"{where}: {path}: {os.strerror(code)}{f' while {doing}' if doing else ''}")

    @property
    def is_full(self) -> bool:
        """Whether it passes when somebody makes room."""
        return self.code in (errno.ENOSPC, errno.EDQUOT)


class ExecutionLost(WorldError):
    """What an execution did can no longer be known."""

    retriable = False

    def __init__(self, execution: str, why: str) -> None:
        self.execution = execution
        self.why = why
        super().__init__(f"execution {execution} is lost: {why}")


class FunctionDied(WorldError):
    """The process of a Python function ended without an outcome. `execution` is its id, `stderr` the end of what it wrote."""

    retriable = False

    def __init__(
        self, function: str, why: str, *, node: str = "", execution: str = "", stderr: str = ""
    ) -> None:
        self.function = function
        self.why = why
        self.node = node
        self.execution = execution
        self.stderr = stderr
        text = f"{function}{f' on {node}' if node else ''}: its process ended without an outcome: {why}"
        super().__init__(f"{text}; the last it wrote: {stderr}" if stderr else text)


class GitError(WorldError):
    """A git command did not do what it was asked to."""

    exit_status = 1

    def __init__(
        self, command: str, where: str, said: str, status: int = 0, *, retriable: bool = False
    ) -> None:
        self.command = command
        self.where = where
        self.said = said
        self.status = status
        self.retriable = retriable
        super().__init__(f"{command} (in {where}): {said or f'ended with status {status}'}")


class JournalError(WorldError):
    """The journal is damaged, foreign, or newer than this program. Never rebuilt silently."""

    retriable = False

    def __init__(self, file: str, why: str, todo: str = "") -> None:
        self.file = file
        self.why = why
        super().__init__(f"{file}: {why}{f'; {todo}' if todo else ''}")


class IllegalTransition(InvariantError):
    """An edge that is not in the table."""

    def __init__(self, kind: str, name: str, state: str, event: str, story: Sequence[str] = ()) -> None:
        self.kind = kind
        self.name = name
        self.state = state
        self.event = event
        self.story = tuple(story)
        told = "".join(f"\n  {line}" for line in self.story)
        super().__init__(f"{kind} {name}: no edge from {state} on {event}{told}")
