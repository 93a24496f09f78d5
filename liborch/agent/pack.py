"""Turns the agent's modules into the one file that is sent to a node. Runs on the client.

The file is a zip that Python runs as it is; on the node it unpacks itself once into `agent-HASH/`, so that
Python's compiled modules are found again at every later start.
"""

from __future__ import annotations

import functools
import hashlib
import io
from pathlib import Path

#: What stays here: everything else in this folder is the agent.
_OURS = ("__init__", "pack")

# Old enough for any Python to say that it is too old.
_MAIN = """\
import os, shutil, sys, tempfile, zipfile
def main(target, code_hash):
    if sys.version_info < (3, 6):
        sys.stderr.write("python3 here is %d.%d; the agent needs 3.6 or newer\\n" % sys.version_info[:2])
        return 64
    packed = sys.path[0]
    if not os.path.exists(os.path.join(target, "entry.py")):
        parent = os.path.dirname(target)
        made = tempfile.mkdtemp(prefix=".unpack-", dir=parent)
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(made)
        try:
            os.rename(made, target)
        except OSError:
            shutil.rmtree(made, True)
    try:
        os.unlink(packed)
    except OSError:
        pass
    sys.path.insert(0, target)
    import relay
    return relay.main([code_hash])
sys.exit(main(sys.argv[1], sys.argv[2]))
"""


@functools.cache
def packed() -> tuple[str, bytes]:
    """Return (hash, file). The same modules give the same bytes on every machine."""
    import zipfile  # only a host that has no agent yet needs it

    here = Path(__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (
            *((path.name, path.read_bytes()) for path in _modules(here)),
            ("__main__.py", _MAIN.encode()),
        ):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
    return _hash(here), buffer.getvalue()


@functools.cache
def agent_hash() -> str:
    """The name of this version of the agent: computed from its modules, not from the packed file, so it is cheap."""
    return _hash(Path(__file__).parent)


def _modules(here: Path) -> list[Path]:
    return sorted(path for path in here.glob("*.py") if path.stem not in _OURS)


def _hash(here: Path) -> str:
    digest = hashlib.sha256(_MAIN.encode())
    for path in _modules(here):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
