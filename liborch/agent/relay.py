"""The relay: one per SSH channel or local pipe. Gives its stdin and stdout to the talker, then sleeps until that lets go.

It starts the talker when there is none. What goes wrong before a talker is reached is said in one frame
(`{"t": "failed", ...}`) on stdout.
"""

import array
import json
import os
import socket
import sys
import time

try:
    from . import frames, logins, node
except ImportError:
    import frames
    import logins
    import node

#: Variables of the login that mean nothing, or worse, to an execution that outlives it.
_LEFT_OUT = (
    "SSH_AUTH_SOCK",
    "SSH_CONNECTION",
    "SSH_CLIENT",
    "SSH_TTY",
    "SHLVL",
    "_",
    "OLDPWD",
    logins.IN_SCOPE,
)


def connect(folder):
    """Return a socket connected to the talker of this state folder, or None."""
    # By relative name: the path of a socket is limited to some hundred bytes, a home folder's is not.
    os.chdir(folder)
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.connect("talker.sock")
        return line
    except OSError:
        line.close()
        return None
    finally:
        os.chdir("/")


def daemonise(serve, folder, error_file):
    """Run `serve(folder, ready)` in a process of its own session; return what it said when it was ready ("ok" or why not)."""
    said_in, said_out = os.pipe()
    first = os.fork()
    if first == 0:
        status = 1
        try:
            os.setsid()
            if os.fork() == 0:
                os.close(said_in)
                _detach(folder, error_file, said_out)

                def ready(text):
                    os.write(said_out, text.encode("utf-8", "replace"))
                    os.close(said_out)

                serve(folder, ready)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            try:
                sys.stderr.flush()
            finally:
                os._exit(status)
    os.close(said_out)
    os.waitpid(first, 0)
    text = b""
    while True:
        piece = os.read(said_in, 4096)
        if not piece:
            break
        text += piece
    os.close(said_in)
    return text.decode("utf-8", "replace") or "it ended before it was ready; see %s" % os.path.join(
        folder, error_file
    )


def _detach(folder, error_file, keep):
    """Let go of everything inherited but one descriptor."""
    null = os.open(os.devnull, os.O_RDWR)
    errors = os.open(os.path.join(folder, error_file), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(errors, 2)
    # A client's channel left open here would never end for it.
    try:
        inherited = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        inherited = range(3, 4096)
    for fd in inherited:
        if fd > 2 and fd != keep:
            try:
                os.close(fd)
            except OSError:
                pass
    os.chdir("/")


def _fail(**fields):
    os.write(1, frames.encode(0, dict(fields, t="failed")))
    return 0


def main(arguments):
    """Serve one channel; the exit status says nothing that the frames have not."""
    code_hash = arguments[0] if arguments else ""
    try:
        folder = node.make_state_folder()
    except OSError as error:
        return _fail(
            why=os.strerror(error.errno or 0),
            errno=error.errno or 0,
            path=str(error.filename or node.state_folder()),
        )
    line = connect(folder)
    tries = 0
    ends_with_login = False
    if line is None:
        ends_with_login, lingers = logins.ends_with_login()
        if lingers:
            entry = os.path.join(os.path.dirname(os.path.abspath(__file__)), "entry.py")
            logins.enter_scope([sys.executable, "-I", "-S", entry] + arguments)
    while line is None:
        import talker

        said = daemonise(lambda where, ready: talker.serve(where, ready, code_hash), folder, "talker.err")
        if said != "ok":
            return _fail(why=said, errno=0, path=folder)
        line = connect(folder)
        tries += 1
        if line is None:
            if tries > 20:
                return _fail(
                    why="the agent does not answer on its socket",
                    errno=0,
                    path=os.path.join(folder, "talker.sock"),
                )
            time.sleep(0.05)
    # As bytes, whatever this login's locale makes of them.
    environment = {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, value in os.environb.items()
        if os.fsdecode(name) not in _LEFT_OUT
    }
    greeting = json.dumps({"env": environment, "hash": code_hash, "ends_with_login": ends_with_login}).encode(
        "ascii"
    )
    line.sendmsg(
        [len(greeting).to_bytes(4, "big")],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]).tobytes())],
    )
    line.sendall(greeting)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    while True:
        try:
            if not line.recv(16):
                return 0
        except OSError:
            return 0
