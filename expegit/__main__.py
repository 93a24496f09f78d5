"""`expegit` on the command line: every command is imported when it is called."""

from __future__ import annotations

import sys

from liborch.command_line import run

#: {command: (module, one line of help)}; the module has a click command called `command`.
COMMANDS = {
    "init": ("expegit.commands.init", "Make a campaign."),
    "clone": ("expegit.commands.clone", "Bring a campaign from elsewhere."),
    "status": ("expegit.commands.status", "Say what is in a campaign, and what is not yet pushed."),
    "sync": ("expegit.commands.sync", "Pull and push until both sides hold everything."),
    "pull": ("expegit.commands.pull", "Take over what others recorded."),
    "push": ("expegit.commands.push", "Give others what is recorded here."),
    "run": ("expegit.commands.run", "Run the experiment, and record its executions as they end."),
    "exec": ("expegit.commands.exec", "List, show, tag and remove executions."),
    "import": ("expegit.commands.import_", "Record what a batch left."),
}


def main() -> None:
    """Run the command line; exits with its status."""
    sys.exit(run("expegit", "Keep a campaign of experiments in git.", COMMANDS))


if __name__ == "__main__":
    main()
