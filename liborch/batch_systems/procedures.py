"""Allocations by the shell procedures of a profile: start_allocation, cancel_allocation, get_node_handles, node_proxycommand.

There is no queue that could be asked, so one is made: a folder on the frontend for each allocation, named by its token, in which
a process of ours runs start_allocation, notes what it set, and says how it ended. So a `Procedures` is a batch system like the
others to whoever drives it:

========  ===============================================================================================================
submit    makes the folder (a token starts once, however often it is asked for), starts the process, and returns
query     reads the folders: `queued` while start_allocation runs, `active` from its end with the nodes of RUNAWAY_NODES until
          it is cancelled, `ended` afterwards, or when start_allocation failed. With `allocation_duration` over nothing is
          left of it (`left_s` 0), but it is not over: somebody has to cancel it
cancel    ends start_allocation if it still runs; runs cancel_allocation in the folder and with the variables that
          start_allocation left. What a start_allocation that failed, or was ended, had begun is cancelled as well; where
          it came no further than its first command, and had set nothing, there is nothing to cancel
========  ===============================================================================================================

It goes on when the client is killed, and the next client finds it. Beyond the Protocol there is what the nodes of an allocation
need: `outcome` (the variables and the folder that travel on), `handles` (get_node_handles, to be run on each node) and
`proxycommand`.

Scripts of procedures and their notes are `liborch.profiles.procedures`' own, what happens on the frontend is in `_procedures_shell`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from liborch.batch_systems import _procedures_shell as host
from liborch.batch_systems import _reading as reading
from liborch.batch_systems._reading import excerpt, heard, text_of, unclear
from liborch.batch_systems.base import (
    TIMEOUT_S,
    Accepted,
    Command,
    End,
    Limits,
    Output,
    Rejected,
    Request,
    Sight,
    State,
    Unclear,
)
from liborch.errors import ProcedureError, SpecError
from liborch.profiles import procedures as shell
from liborch.profiles.procedures import Outcome, quote
from liborch.specs import Procedures as Commands

#: Seconds that get_node_handles may take on a node before it is given up.
HANDLES_TIMEOUT_S: Final = 120.0
#: Seconds for which the end of cancel_allocation is awaited. It has no limit itself: it goes on on the frontend.
CANCEL_WAIT_S: Final = 20
#: Where an allocation is, by the word of its folder.
STATES: Final[dict[str, State]] = {
    "starting": "queued",
    "started": "active",
    "cancelling": "ending",
    "failed": "ended",
    "over": "ended",
    "vanished": "ended",
}

_ID = re.compile(r"0_([a-z0-9]{6,32})\Z")
_LINE = re.compile(rb"([a-z0-9]{6,32}) ([a-z]+) (\d{1,12}) (\d{1,3}) (\d{1,8})\n")
#: One command more than the person's: what start_allocation has to set.
_NODES_SET: Final = "case ${RUNAWAY_NODES-} in *[![:space:]]*) ;; *) false ;; esac"


@dataclass(frozen=True)
class Handles:
    """What get_node_handles left on a node."""

    #: Words of RUNAWAY_HANDLES, one slot each.
    words: tuple[str, ...]
    #: Variables and folder that travel on to the slots and the executions.
    outcome: Outcome


class Procedures:
    """Allocations by a profile's own commands.

    Args:
        commands: The profile's.
        variables: {RUNAWAY_NAME: value} that start_allocation begins with: the caller's own, RUNAWAY_PATH, ...
    """

    name = "procedures"
    #: Nodes are reached by ssh, through `proxycommand` if there is one.
    can_enter = False

    def __init__(self, commands: Commands, variables: Mapping[str, str] | None = None) -> None:
        self.commands = commands
        self.variables = dict(variables or {})
        for name, value in self.variables.items():
            if not re.fullmatch(r"RUNAWAY[A-Za-z0-9_]*", name) or "\0" in value:
                raise SpecError(
                    f"{name!r} is no variable that travels: its name begins with RUNAWAY, its value has no NUL"
                )

    def submit(self, request: Request) -> Command:
        """Render the start. How many nodes, and for how long, is start_allocation's to say.

        Raises:
            SpecError: There are options; nobody would read them.
        """
        if request.options:
            raise SpecError("options are for a batch system's submit command; put them into start_allocation")
        start = shell.render([*self.commands.start_allocation, _NODES_SET])
        cancel = shell.render(self.commands.cancel_allocation) if self.commands.cancel_allocation else ""
        return _script(host.submit(request.token, start, cancel, _exports(self.variables)))

    def parse_submit(self, output: Output) -> Accepted | Rejected | Unclear:
        """Read the id. That start_allocation fails is told by `parse_query`."""
        told = heard(output)
        if told is None:
            return unclear("the start of start_allocation", output)
        _, output = told
        match = re.fullmatch(r"(0_[a-z0-9]{6,32})\n", text_of(output.stdout))
        if output.code == 0 and match:
            return Accepted(match[1])
        if output.code == host.NO_ROOM:
            return Rejected(f"the frontend has no room for it: {excerpt(output.stderr)}", is_retriable=True)
        return unclear("the start of start_allocation", output)

    def query(self, ids: Sequence[str]) -> Command:
        """Ask for what is not over, and for `ids`."""
        return _script(host.query(_tokens(ids)))

    def parse_query(self, output: Output) -> dict[str, Sight] | Unclear:
        """Read the folders: a line, the note by its length, a line of the log, for each."""
        answer = heard(output)
        if answer is None or answer[1].code != 0:
            return unclear("the frontend", answer[1] if answer else output)
        now, output = answer
        told = output.stdout
        at = 0
        sights = {}
        while line := _LINE.match(told, at):
            note = told[line.end() : line.end() + int(line[5])]
            rest = line.end() + len(note)
            end_of_log = told.find(b"\n", rest + 1)
            if told[rest : rest + 1] != b"\n" or end_of_log < 0:
                break
            sight = self._sight(line, note, told[rest + 1 : end_of_log], now)
            if sight is None:
                break
            sights[sight.id] = sight
            at = end_of_log + 1
        return sights if at == len(told) else unclear("the frontend", output)

    def cancel(self, ids: Sequence[str]) -> Command:
        """Render the end of allocations. It goes on on the frontend when it takes longer, or the connection breaks."""
        return _script(host.cancel(_tokens(ids), CANCEL_WAIT_S))

    def parse_cancel(self, output: Output) -> Rejected | Unclear | None:
        """Read what became of each. A cancel_allocation that failed may be tried again."""
        answer = heard(output)
        if answer is None:
            return unclear("cancel_allocation", output)
        _, output = answer
        told = re.fullmatch(r"(?:[a-z0-9]{6,32} (?:\d{1,3}|-)\n)+", text_of(output.stdout))
        if output.code != 0 or told is None:
            return unclear("cancel_allocation", output)
        codes = dict(line.split(" ") for line in told[0].splitlines())
        if wrong := {token: code for token, code in codes.items() if code not in ("0", "-")}:
            token, code = next(iter(wrong.items()))
            return Rejected(
                f"cancel_allocation of 0_{token} ended with code {code}: {excerpt(output.stderr)}",
                is_retriable=True,
            )
        return Unclear("cancel_allocation has not ended yet") if "-" in codes.values() else None

    def limits(self, options: Sequence[str]) -> Command:
        """There are none to ask for."""
        return Command(("true",))

    def parse_limits(self, output: Output) -> Limits:
        """No limits."""
        return Limits()

    def enter(self, id: str, node: str, argv: Sequence[str]) -> tuple[str, ...]:
        """Raise SpecError: a profile with procedures has no way into a node but ssh."""
        raise SpecError("nodes of procedures are entered by ssh; say how with node_proxycommand")

    def outcome(self, id: str) -> Command:
        """Render the question for the variables and the folder that start_allocation left."""
        (token,) = _tokens([id])
        return _script(host.outcome(token))

    def parse_outcome(self, output: Output) -> Outcome | Unclear:
        """Read them."""
        answer = heard(output)
        if answer is None or answer[1].code != 0:
            return unclear("the frontend", answer[1] if answer else output)
        try:
            return shell.parse_outcome(answer[1].stdout)
        except ProcedureError as error:
            return Unclear(str(error))

    def handles(self, outcome: Outcome, node: str) -> Command:
        """Render get_node_handles, to be run on a node (not on the frontend), after what start_allocation left."""
        variables = shell.carry_on(outcome, {"RUNAWAY_NODE_ID": node})
        script = shell.render(self.commands.get_node_handles)
        return _script(host.once(script, _exports(variables), outcome.folder), HANDLES_TIMEOUT_S)

    def parse_handles(self, output: Output) -> Handles | Unclear:
        """Read what it left.

        Raises:
            ProcedureError: It failed, or did not set RUNAWAY_HANDLES.
        """
        name = "get_node_handles"
        answer = heard(output)
        if answer is None:
            return unclear(name, output)
        _, output = answer
        outcome = None
        try:
            outcome = shell.parse_outcome(output.stdout)
        except ProcedureError:
            # Of a procedure that failed the code says enough.
            if output.code == 0:
                return unclear(name, output)
        if output.code:
            raise shell.failure(name, self.commands.get_node_handles, output.code, outcome)
        assert outcome is not None
        return Handles(shell.words_of(outcome.variables, "RUNAWAY_HANDLES", name), outcome)

    def proxycommand(self, node: str) -> str:
        """Return the command for ssh's ProxyCommand to a node; "": it is reached directly.

        Raises:
            ProcedureError: The node's name could be read as an option or by the shell.
        """
        return (
            shell.proxycommand(self.commands.node_proxycommand, node)
            if self.commands.node_proxycommand
            else ""
        )

    def _sight(self, line: re.Match[bytes], note: bytes, log: bytes, now: int) -> Sight | None:
        """Read one folder; None: what it says is not understood."""
        token, word = line[1].decode(), line[2].decode()
        if word not in STATES:
            return None
        outcome = None
        if note:
            try:
                outcome = shell.parse_outcome(note)
            except ProcedureError:
                if word == "started":
                    return None
        nodes: tuple[str, ...] = ()
        left = None
        end: End = ""
        why = {"starting": "start_allocation runs", "cancelling": "cancel_allocation runs"}.get(word, word)
        if word == "started":
            # Each once, as often as it is named.
            nodes = (
                tuple(dict.fromkeys(shell.words_of(outcome.variables, "RUNAWAY_NODES", "")))
                if outcome
                else ()
            )
            duration = self.commands.allocation_duration_s
            left = None if duration is None else max(0.0, duration - max(0, now - int(line[3])))
        elif word == "failed":
            end, why = "failed", self._failure(int(line[4]), outcome, log)
        elif word == "vanished":
            end, why = "failed", "start_allocation was killed, or its frontend was started again"
        elif word == "over":
            end, why = "cancelled", "cancelled"
        return Sight(f"0_{token}", token, STATES[word], end, why, nodes, left)

    def _failure(self, code: int, outcome: Outcome | None, log: bytes) -> str:
        commands = self.commands.start_allocation
        if outcome and outcome.reached > len(commands):
            error: Exception = _missing(outcome)
        else:
            error = shell.failure("start_allocation", commands, code, outcome)
        return f"{error}; it printed: {excerpt(log)}" if log.strip() else str(error)


def _missing(outcome: Outcome) -> ProcedureError:
    """That RUNAWAY_NODES is missing, or has no words."""
    try:
        shell.words_of(outcome.variables, "RUNAWAY_NODES", "start_allocation")
    except ProcedureError as error:
        return error
    return ProcedureError("start_allocation", "did not set RUNAWAY_NODES")


def _tokens(ids: Sequence[str]) -> tuple[str, ...]:
    found = [_ID.match(id) for id in ids]
    if not all(found):
        raise ValueError("an id that is none of an allocation by procedures")
    return tuple(match[1] for match in found if match)


def _exports(variables: Mapping[str, str]) -> str:
    return "".join(f"export {name}={quote(value)}\n" for name, value in variables.items())


def _script(text: str, timeout_s: float = TIMEOUT_S) -> Command:
    return reading.shell(text, timeout_s=timeout_s)
