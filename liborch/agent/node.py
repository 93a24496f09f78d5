"""Facts about the node this runs on: name, boot, cores, memory, GPUs, and where our files are."""

import json
import os
import socket
import subprocess
import uuid


def name():
    """The node's own host name."""
    return socket.gethostname() or "node"


def boot_id():
    """Changes with every boot; with a pid and a start time it names a process for good."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def allocation():
    """The batch system's word for the allocation that this agent serves; "": the node is no part of one."""
    return os.environ.get("ORCHESTRA_ALLOCATION", "")


def state_folder():
    """Where the agent of this user on this node keeps its log, sockets and captures.

    The folder carries the node's name, since a home may be shared between nodes, and the allocation's, since two of them may
    have parts of one node. ORCHESTRA_AGENT_STATE overrides it.
    """
    given = os.environ.get("ORCHESTRA_AGENT_STATE")
    if given:
        return given
    home = os.environ.get("HOME") or os.path.expanduser("~")
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(home, ".local", "state")
    safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in name())
    if allocation():
        safe += "@" + "".join(c if c.isalnum() or c in "-._" else "_" for c in allocation())
    return os.path.join(base, "orchestra", "nodes", safe)


def make_state_folder():
    """Create the state folder, mode 0700, and return it. Raises OSError; refuses a folder that others may enter."""
    folder = state_folder()
    old = os.umask(0o077)
    try:
        os.makedirs(os.path.join(folder, "captures"), exist_ok=True)
    finally:
        os.umask(old)
    info = os.stat(folder)
    if info.st_uid != os.getuid():
        raise PermissionError(1, "belongs to somebody else", folder)
    if info.st_mode & 0o077:
        os.chmod(folder, 0o700)
    return folder


def sign(lock):
    """Write our pid into a lock file, for people and tests who look for the holder."""
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except OSError:
        pass  # A full disk is no reason not to serve.


def still_holds(lock, path):
    """Whether a lock file is still the one found under its name: else the folder was removed, and perhaps made anew."""
    try:
        mine, there = os.fstat(lock), os.stat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # A disk that answers with errors may come back.
    return (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev)


def state_id(folder):
    """A name for this state folder's contents: a new one tells a client that what it left here is gone."""
    path = os.path.join(folder, "id")
    try:
        with open(path) as file:
            text = file.read().strip()
        if text:
            return text
    except OSError:
        pass
    text = uuid.uuid4().hex
    temporary = "%s.%d" % (path, os.getpid())
    with open(temporary, "w") as file:
        file.write(text)
    os.rename(temporary, path)
    return text


def probe(path):
    """Whether a folder could be made and written at `path`, and what room is there: for people who ask why not."""
    found = path
    while not os.path.isdir(found) and os.path.dirname(found) != found:
        found = os.path.dirname(found)
    try:
        room = os.statvfs(found)
    except OSError as error:
        return {"error": "%s: %s" % (found, os.strerror(error.errno or 0))}
    if room.f_flag & os.ST_RDONLY:
        return {"error": "%s is read-only" % found}
    if not os.access(found, os.W_OK | os.X_OK):
        return {"error": "%s cannot be written" % found}
    return {"free_bytes": room.f_bavail * room.f_frsize, "free_inodes": room.f_favail if room.f_files else -1}


def cores():
    """CPU numbers this user may run on."""
    try:
        return sorted(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return list(range(os.cpu_count() or 1))


def memory_bytes():
    """Physical memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


def numa_nodes():
    """[[cpu numbers of NUMA node 0], ...]; one entry when the node does not say."""
    found = []
    base = "/sys/devices/system/node"
    allowed = set(cores())
    try:
        names = sorted(
            (n for n in os.listdir(base) if n.startswith("node") and n[4:].isdigit()),
            key=lambda n: int(n[4:]),
        )
        for entry in names:
            with open(os.path.join(base, entry, "cpulist")) as file:
                found.append([cpu for cpu in parse_cpu_list(file.read()) if cpu in allowed])
    except (OSError, ValueError):
        found = []
    return found if any(found) else [sorted(allowed)]


def parse_cpu_list(text):
    """`0-3,8` -> [0, 1, 2, 3, 8]."""
    out = []
    for part in text.strip().split(","):
        if not part:
            continue
        low, _, high = part.partition("-")
        out.extend(range(int(low), int(high or low) + 1))
    return out


def gpus():
    """UUIDs of the GPUs, NVIDIA's or AMD's, in the order the tools list them; empty where there are none."""
    for command, pick in (
        (["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"], _plain_lines),
        (["rocm-smi", "--showuniqueid", "--json"], _rocm_ids),
    ):
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=10,
            )
        except (OSError, subprocess.SubprocessError):
            continue
        if done.returncode == 0:
            return pick(done.stdout.decode("utf-8", "replace"))
    return []


def _plain_lines(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def _rocm_ids(text):
    try:
        cards = json.loads(text)
    except ValueError:
        return []
    return [str(card.get("Unique ID", name)) for name, card in sorted(cards.items())]
