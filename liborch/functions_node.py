"""The node's half of a function call: loads it, calls it, leaves its outcome in a file. `liborch.functions` is the other half.

It travels as `__main__.py` of an archive that also holds cloudpickle, beside a file `call`: a line of JSON, then a pickle.
What comes of it goes into a file `outcome` of the same shape. What the function prints stays its own output.

Standard library only, and written so that any Python 3 in use can at least read it: which Python this is has to be told by
itself, before anything of another version is loaded.
"""

import json
import os
import pickle
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    # For who checks types: importing it takes as long as a small call.
    from typing import Any, BinaryIO, Dict

CALL = "call"
OUTCOME = "outcome"


def write(path: str, head: "Dict[str, Any]", thing: "Any" = None, dump: "Any" = None) -> None:
    """Write an outcome, whole or not at all. Raises whatever pickling raises."""
    temporary = path + ".part"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(head).encode() + b"\n")
        if dump is not None:
            dump(thing, file, pickle.HIGHEST_PROTOCOL)
    os.replace(temporary, path)


def write_pickled(path: str, head: "Dict[str, Any]", thing: "Any") -> None:
    """Write an outcome that carries something. Raises whatever cloudpickle raises for what it cannot pickle."""
    try:
        # Enough for most, and starts sooner.
        write(path, head, thing, pickle.dump)
    except Exception:
        import cloudpickle

        write(path, head, thing, cloudpickle.dump)


def told(error: BaseException) -> str:
    """Return an error in one line."""
    import traceback

    return traceback.format_exception_only(type(error), error)[-1].strip()


def text_of(error: BaseException) -> str:
    """Return the traceback of an error, without the lines of this file."""
    import traceback

    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
    return "".join(traceback.format_exception(type(error), error, trace))


def load(call: "BinaryIO", head: "Dict[str, Any]") -> "Any":
    """Load what is to be called. Raises ImportError for the wrong Python, and whatever unpickling raises."""
    if list(sys.version_info[:2]) != head["python"]:
        raise ImportError(
            "a function travels between equal Pythons only: it comes from Python {}.{}, ".format(
                *head["python"]
            )
            + f"and {sys.executable} there is Python {sys.version.split()[0]}"
        )
    return pickle.load(call)


def main() -> None:
    """Make the call that lies in the working folder."""
    own = os.getpid()
    outcome = os.path.abspath(OUTCOME)
    with open(CALL, "rb") as call:
        head = json.loads(call.readline().decode())
        try:
            function, calls = load(call, head)
        except BaseException as error:
            write(outcome, {"kind": "not loaded", "why": told(error), "text": text_of(error)})
            return
    answer = {"kind": "value"}
    value = None  # type: Any
    try:
        if head["many"]:
            value = [function(*words) for words in calls]
        else:
            arguments, named = calls
            del calls
            value = function(*arguments, **named)
    except BaseException as error:
        answer = {"kind": "raised", "why": told(error), "text": text_of(error)}
        value = error
    # A child that it forked and forgot comes by here as well.
    if os.getpid() != own:
        os._exit(0)
    try:
        write_pickled(outcome, answer, value)
    except Exception as error:
        if answer["kind"] == "value":
            answer = {"what": type(value).__name__, "text": text_of(error)}
        write(outcome, dict(answer, kind="not pickled", pickling=told(error)))


if __name__ == "__main__":
    main()
