"""Commands that go on in the background (`runaway batch --detach`): when they let go of the terminal, and what becomes of their output.

The command divides in two before it has done anything, by a fork. The copy does the work, in a session of its own, so neither
Ctrl-C nor the end of the terminal reaches it, nor anything it starts. The person's end waits, passes signals on, and returns when
the copy says that the work stands: from then on the copy writes into a file. A copy that ends before was no background yet: its
messages are on the terminal, its exit status is the command's.

A fork and not a second start of the program: what was read cannot be read twice (standard input, `<(...)`), and every option would
have to survive the way there. It comes before any thread, connection or event loop, so there is nothing that a fork breaks.
`runaway exec --detach` needs none of this: one execution is its node's affair once it is handed over, a batch has to be fed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from liborch.errors import StorageError
from liborch.journal.storage import make_private_folder
from runaway.messages import Messages

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def log_path(state: Path, orchestration: str) -> Path:
    """The file with what a command says in the background."""
    return state / "drivers" / f"{orchestration}.log"


class Background:
    """The copy's side: it has yet to let go of the terminal."""

    def __init__(self, waiting: int, inherited: set[int]) -> None:
        self._waiting = waiting
        self._inherited = inherited

    def let_go(self, messages: Messages, log: Path, last_words: str) -> None:
        """The work stands: print `last_words`, write into `log` from now on, and let the person's end return.

        Raises:
            StorageError: The file cannot be written.
        """
        try:
            make_private_folder(log.parent)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                "this machine", str(log), error.errno or 0, "going to the background"
            ) from error
        # Whoever reads may be gone by now, and is not needed.
        with contextlib.suppress(OSError):
            print(last_words, flush=True)
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for own, given in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(own, given)
        os.close(output)
        os.close(nothing)
        # What a shell lent us (`<(...)`, a lock) would be in use for as long as we are.
        for descriptor in self._inherited:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        messages.go_to_log()
        with contextlib.suppress(OSError):
            os.write(self._waiting, b".")
        os.close(self._waiting)


def divide(work: Callable[[Background], int]) -> int:
    """Do `work` in a copy of this process; returns, in both, the exit status: 0 once the work stands. Call it before any thread is.

    Raises what `work` raises, in the copy.
    """
    inherited = _open_descriptors()
    waiting, telling = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    copy = os.fork()
    if copy:
        os.close(telling)
        return _wait_until_it_stands(copy, waiting)
    os.close(waiting)
    os.setsid()
    # Nobody is there to be asked: a connection that would ask fails, and says what it lacks.
    os.environ["SSH_ASKPASS_REQUIRE"] = "never"
    return work(Background(telling, inherited))


def _open_descriptors() -> set[int]:
    """What is open beyond stdin, stdout and stderr."""
    found = set()
    for name in os.listdir("/dev/fd"):
        # The one that listed them is closed again.
        if int(name) > 2 and os.path.lexists(f"/dev/fd/{name}"):
            found.add(int(name))
    return found


def _wait_until_it_stands(copy: int, waiting: int) -> int:
    before = {
        number: signal.signal(number, lambda number, _frame: _pass_on(copy, number)) for number in _PASSED_ON
    }
    told = os.read(waiting, 1)
    for number, handler in before.items():
        signal.signal(number, handler)
    if told:
        return 0
    _, status = os.waitpid(copy, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _pass_on(copy: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(copy, number)
