"""`runaway` on the command line: every command is imported when it is called, so that help and completion are quick."""

from __future__ import annotations

import sys

#: {command: (module, one line of help)}; the module has a click command called `command`.
COMMANDS = {
    "exec": ("runaway.commands.exec", "Run a script or a command on a host and bring its results back."),
    "batch": ("runaway.commands.batch", "Run a script many times, wherever a slot is free."),
    "plan": ("runaway.commands.plan", "Say how a batch would run, without starting anything."),
    "ps": ("runaway.commands.ps", "List running and recent executions and batches."),
    "show": ("runaway.commands.show", "Show everything that is known of an execution or a batch."),
    "logs": (
        "runaway.commands.logs",
        "Print what an execution has written, or a batch in the background said.",
    ),
    "results": ("runaway.commands.results", "Write a table of a batch: parameters, ends, times, metrics."),
    "attach": ("runaway.commands.attach", "Follow an execution or a batch to its end, whoever started it."),
    "wait": ("runaway.commands.wait", "Wait until executions or batches have ended."),
    "explain": ("runaway.commands.explain", "Say why an execution or a batch is not further than it is."),
    "kill": ("runaway.commands.kill", "End executions, or whole batches."),
    "pause": ("runaway.commands.pause", "Stop the processes of an execution for a while."),
    "resume": ("runaway.commands.resume", "Let a paused execution go on."),
    "fetch": ("runaway.commands.fetch", "Fetch results again, or for the first time."),
    "clean": ("runaway.commands.clean", "Remove what executions left, here and on hosts."),
    "alloc": ("runaway.commands.alloc", "Hold nodes of a cluster for later commands."),
    "allocs": ("runaway.commands.allocs", "List allocations that are queued or active, and who uses them."),
    "release": ("runaway.commands.release", "Give allocations back."),
    "nodes": ("runaway.commands.nodes", "Show the nodes of a host: slots, who uses them, why others wait."),
    "shell": (
        "runaway.commands.shell",
        "Open a terminal on a host, in an allocation, or beside an execution.",
    ),
    "hosts": ("runaway.commands.hosts", "List, show and check the hosts that can be named."),
    "doctor": ("runaway.commands.doctor", "Try everything that a host has to do for us."),
    "completion": ("runaway.commands.completion", "Print the completion script of a shell."),
}


def main() -> None:
    """Run the command line; exits with its status."""
    if sys.argv[1:2] == ["--complete"]:
        # Pressed with a key: not even click is imported for it.
        from runaway.complete import main as complete

        sys.exit(complete(sys.argv[2:], COMMANDS))
    from liborch.command_line import run

    sys.exit(run("runaway", "Run code on other machines as simply as on this one.", COMMANDS))


if __name__ == "__main__":
    main()
