"""What a node does to processes whose login is over: asked once, before the first process of ours that is to outlive one.

systemd-logind with `KillUserProcesses=yes` ends all that a login started when it ends, the agent and its executions among it.
Where the account lingers, a scope of its user manager is not touched, and the agent is begun in one. Where it does not, nothing of
ours helps, and the client is told (`ends_with_login` in the greeting). Without logind's mark in the environment nothing is asked.
"""

import os
import pwd
import subprocess

#: Seconds that a question to logind, or its answer, may take.
PATIENCE_S = 3.0
#: Says that a relay is in a scope already.
IN_SCOPE = "ORCHESTRA_IN_SCOPE"

_PROPERTIES = ("KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers")


def _ask(*words):
    """{property: value} as loginctl tells; empty when it tells nothing."""
    try:
        done = subprocess.run(
            ["loginctl", "show-user"] + list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_S,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def ends_with_login():
    """Return (whether what this login leaves is ended with it, whether the account lingers)."""
    if not os.environ.get("XDG_SESSION_ID") or os.environ.get(IN_SCOPE):
        return False, False
    told = _ask(*["--property=%s" % name for name in _PROPERTIES])
    if told.get("KillUserProcesses") != "yes":
        return False, False
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False, False
    only = told.get("KillOnlyUsers", "").split()
    if (only and user not in only) or user in told.get("KillExcludeUsers", "").split():
        return False, False
    return True, _ask(str(os.getuid()), "--property=Linger").get("Linger") == "yes"


def enter_scope(arguments):
    """Run a command in place of this process, in a scope of the user manager; returns only where that cannot be."""
    runtime = "/run/user/%d" % os.getuid()
    if "XDG_RUNTIME_DIR" not in os.environ and os.path.isdir(runtime):
        os.environ["XDG_RUNTIME_DIR"] = runtime
    scope = ["systemd-run", "--user", "--scope", "--quiet", "--collect"]
    try:
        # It may be there without a user manager that answers.
        tried = subprocess.run(
            scope + ["true"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_S,
        )
        if tried.returncode == 0:
            os.environ[IN_SCOPE] = "1"
            os.execvp(scope[0], scope + arguments)
    except (OSError, subprocess.SubprocessError):
        pass
    os.environ.pop(IN_SCOPE, None)
