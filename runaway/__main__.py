"""`runaway` on the command line: every command is imported when it is called, so that help and completion are quick."""

from __future__ import annotations

import sys

from liborch.command_line import run

#: {command: (module, one line of help)}; the module has a click command called `command`.
COMMANDS = {
    "exec": ("runaway.commands.exec", "Run a script or a command on a host and bring its results back."),
}


def main() -> None:
    """Run the command line; exits with its status."""
    sys.exit(run("runaway", "Run code on other machines as simply as on this one.", COMMANDS))


if __name__ == "__main__":
    main()
