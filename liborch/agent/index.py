"""The index of a folder on a host: who put which file there, and how it looked then.

Its job: remember that (`Index`), list a folder (`scan`), and tell from both what is ours, what an execution made or
changed, and what was there before. Who writes files is `folder.py`; who deletes them, `clean.py`.

`DIRECTORY/.orchestra/index/HASH` (of the folder's path) is one line of JSON, then for each entry its path and
`ROLE KIND SIZE MTIME CTIME INODE SHA256`, each ended by a NUL byte. Roles::

    o    ours: we put it there
    q    ours, but the same bytes were there before us: survives cleaning
    p    there before us: survives cleaning, comes back only when changed
    e    made by an earlier execution in this folder: goes when cleaned, comes back only when changed

The descriptions stay text in memory, too: most are only ever compared, and a folder may have many.
Standard library only, Python 3.6 and newer.
"""

import hashlib
import json
import os
import stat

try:
    from . import files as _files
except ImportError:
    import files as _files

Attempt = _files.Attempt
Trouble = _files.Trouble

#: In place of a snapshot's name in the index of a folder that is being changed.
UNDER_WAY = b"under-way"


def to_text(raw):
    """Bytes of a name as JSON can carry them."""
    return raw.decode("utf-8", "surrogateescape")


def to_bytes(text):
    """The bytes of a name that came in JSON, whatever this process's locale."""
    return text.encode("utf-8", "surrogateescape")


def kind_of(status):
    """Return f, x, l, d or s (socket, pipe, device) for a stat."""
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return "x" if mode & stat.S_IXUSR else "f"
    if stat.S_ISDIR(mode):
        return "d"
    return "l" if stat.S_ISLNK(mode) else "s"


def scan(folder):
    """Yield (path, kind, stat) of everything below a folder, following no link, leaving out what is ours.

    A folder that cannot be read comes with kind "u". Raises Trouble only for the folder itself.
    """
    stack = [b""]
    while stack:
        inside = stack.pop()
        prefix = inside + b"/" if inside else b""
        try:
            with os.scandir(folder + b"/" + inside) as listing:
                for item in listing:
                    if item.name == b".orchestra":
                        continue
                    try:
                        status = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    path = prefix + item.name
                    kind = kind_of(status)
                    if kind == "d":
                        stack.append(path)
                    yield path, kind, status
        except OSError as error:
            if not inside:
                raise Trouble(folder, error.errno, "listing the folder")
            yield inside, "u", None


def content_digest(path, kind):
    """Return the sha256, in hex, of a file's bytes or a link's target; b"" when it cannot be read."""
    try:
        if kind == "l":
            return hashlib.sha256(os.readlink(path)).hexdigest().encode()
        fd = os.open(path, _files.READ_FLAGS)
    except OSError:
        return b""
    try:
        running = hashlib.sha256()
        while True:
            piece = os.read(fd, _files.PIECE)
            if not piece:
                return running.hexdigest().encode()
            running.update(piece)
    except OSError:
        return b""
    finally:
        os.close(fd)


def looks(kind, status):
    """Describe an entry so that a file whose content may have changed is described differently."""
    return b"%s %d %d %d %d " % (
        kind.encode(),
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    )


class Index:
    """What is known of a folder."""

    def __init__(self, folder):
        self.folder = folder
        #: Whether the folder was not there before us, and which of its ancestors were not.
        self.made = False
        self.made_directories = []
        #: What the folder holds; UNDER_WAY while it is being changed.
        self.snapshot = b""
        #: [path, where it is kept, role]: what was moved aside.
        self.displaced = []
        #: {path: description}, as in the file.
        self.records = {}
        self._intended = set()

    @classmethod
    def load(cls, path, folder):
        """Return the index in a file; None when there is none, or it was torn by a power cut.

        Without an index nothing in a folder can be told from the person's own files, and is left alone.
        """
        try:
            line, _, rest = _files.read_file(path).partition(b"\n")
            head = json.loads(line.decode())
            index = cls(folder)
            index.made = head["made"]
            index.made_directories = [to_bytes(each) for each in head["made_directories"]]
            index.snapshot = to_bytes(head["snapshot"])
            index.displaced = [[to_bytes(name), to_bytes(at), role] for name, at, role in head["displaced"]]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        fields = rest.split(b"\0")
        if len(fields) != 2 * head["count"] + 1:
            return None
        index.records = dict(zip(fields[::2], fields[1::2]))
        return index

    def save(self, path):
        """Write the index in one step. Raises Trouble."""
        head = {
            "version": 1,
            "folder": to_text(self.folder),
            "made": self.made,
            "made_directories": [to_text(each) for each in self.made_directories],
            "snapshot": to_text(self.snapshot),
            "displaced": [[to_text(name), to_text(at), role] for name, at, role in self.displaced],
            "count": len(self.records),
        }
        parts = [json.dumps(head).encode("ascii") + b"\n"]
        for record in self.records.items():
            parts.extend(record)
        with Attempt(path, "writing the folder's index"):
            _files.replace_file(path, parts[0] + b"".join(b"%s\0" % part for part in parts[1:]))

    def note(self, path, role, kind, status, digest=b""):
        """Record how an entry looks; `digest` is the sha256, in hex, of its content."""
        self.records[path] = role.encode() + b" " + looks(kind, status) + digest

    def intend(self, path, kind):
        """Record that an entry will be ours, before it is."""
        self.records[path] = b"o " + kind.encode() + b" -1 0 0 0 "
        self._intended.add(path)

    def drop_intents(self):
        """Forget what was intended but never came to be."""
        for path in self._intended:
            if path in self.records and self.is_intent(path):
                del self.records[path]

    def is_intent(self, path):
        """Whether an entry was never seen, only intended."""
        return self.records[path][4:7] == b"-1 "

    def role(self, path):
        """Return the role of an entry, "" when it is not known."""
        return self.records.get(path, b"")[:1].decode()

    def digest(self, path):
        """Return the sha256, in hex, of what an entry held; b"" when it was not looked at."""
        return self.records.get(path, b"").rpartition(b" ")[2]

    def same_stat(self, path, kind, status):
        """Whether an entry looks exactly as recorded, so that its content cannot have changed."""
        return self.records.get(path, b"")[2:].startswith(looks(kind, status))

    def state(self, path, kind, status):
        """Return "m" made, "c" changed, "u" sent and unchanged, "b" there before and unchanged."""
        record = self.records.get(path)
        if record is None:
            return "m"
        role, known_kind, size, mtime, _ctime, _inode, digest = record.split(b" ")
        sent = role in b"oq"
        same = "u" if sent else "b"
        if kind.encode() != known_kind:
            return "c"
        if kind == "d" or self.same_stat(path, kind, status):
            return same
        if not sent:
            # Its content was never read: another inode or change of mode alone does not make it a result.
            return same if (status.st_size, status.st_mtime_ns) == (int(size), int(mtime)) else "c"
        if kind != "l" and status.st_size != int(size):
            return "c"
        return same if content_digest(self.folder + b"/" + path, kind) == digest else "c"

    def is_current(self, snapshot):
        """Whether the folder holds exactly what that snapshot put there, and nothing new: no work to do."""
        if self.snapshot != snapshot:
            return False
        left = dict(self.records)
        try:
            for path, kind, status in scan(self.folder):
                record = left.pop(path, b"")
                if kind == "d" and record[2:4] == b"d ":
                    continue
                if status is None or not record[2:].startswith(looks(kind, status)):
                    return False
        except Trouble:
            return False
        return not any(record[:1] in b"oq" for record in left.values())


def names_for(store, folder):
    """Return (index file, folder for what is moved aside) of a folder."""
    name = hashlib.sha256(folder).hexdigest()[:32].encode()
    return store.index + b"/" + name, store.kept + b"/" + name


def lock_for(store, folder):
    """Return the lock that keeps two from placing into, or cleaning, one folder at once."""
    return _files.Lock(names_for(store, folder)[0] + b".lock")
