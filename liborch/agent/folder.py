"""An execution's folder on a host: what we put there, what the execution made, what was there before.

Its job: bring a folder to the state of a snapshot writing only what differs (`Placing`), tell later what was made or
changed (`scan`, `Index.state`), and take away again what we made (`clean`). Contents come from `store.py`; which files
are wanted is the client's to decide. Standard library only, Python 3.6 and newer.

A manifest is a list of records, path and meaning, each ended by a NUL byte, sorted by path::

    f SIZE SHA256 | x SIZE SHA256 | l TARGET | d          a file, an executable, a link, an empty folder

The index of a folder, `DIRECTORY/.orchestra/index/HASH` (of the folder's path), is one line of JSON, then records in
the same form, `ROLE KIND SIZE MTIME CTIME INODE SHA256`. Roles::

    o    ours: we put it there
    q    ours, but the same bytes were there before us: survives cleaning
    p    there before us: survives cleaning, comes back only when changed
    e    made by an earlier execution in this folder: goes when cleaned, comes back only when changed

When one of our names is taken by something else, ours wins, since an execution must see exactly the code that was
submitted; the other is moved to `DIRECTORY/.orchestra/kept/HASH/`, named in the report, and moved back by `clean`.

The index is written before anything in an existing folder is touched and again when all is in place, so that a kill
in between never makes a file of ours look like one of the person's.
"""

import errno
import hashlib
import json
import os
import re
import stat
import time

try:
    from . import store as _store
except ImportError:
    import store as _store

Attempt = _store.Attempt
Trouble = _store.Trouble

#: Nanoseconds below the microsecond that mark a modification time set by us: the kernel's own clock practically never
#: yields it, so a change within the same tick of the clock, leaving the size alone, still shows.
MARK_NS = 7
#: In place of a snapshot's name in the index of a folder that is being changed.
UNDER_WAY = b"under-way"


class Entry:
    """One line of a manifest."""

    __slots__ = ("digest", "kind", "path", "size", "target")

    def __init__(self, path, kind, size=0, digest=b"", target=b""):
        self.path = path
        self.kind = kind
        self.size = size
        self.digest = digest
        self.target = target


#: A part of a path that leaves its folder, is empty, or is ours.
_BAD_PART = re.compile(rb"(?:\A|/)(?:\.|\.\.|\.orchestra)?(?:/|\Z)")


def is_safe(path):
    """Whether a path stays inside its folder, away from what is ours: no empty part, no `.`, no `..`."""
    return _BAD_PART.search(path) is None


def parse_manifest(data):
    """Return the entries of a manifest. Raises ValueError."""
    fields = data.split(b"\0")
    if fields.pop() != b"" or len(fields) % 2:
        raise ValueError("the manifest is cut")
    entries = []
    bad = _BAD_PART.search
    for at in range(0, len(fields), 2):
        path = fields[at]
        if bad(path):
            raise ValueError("%r is no path inside a folder" % path)
        kind, _, rest = fields[at + 1].partition(b" ")
        if kind == b"f" or kind == b"x":
            size, _, digest = rest.partition(b" ")
            entries.append(Entry(path, kind.decode(), int(size), bytes.fromhex(digest.decode())))
        elif kind == b"l" and rest:
            entries.append(Entry(path, "l", 0, hashlib.sha256(rest).digest(), rest))
        elif kind == b"d" and not rest:
            entries.append(Entry(path, "d"))
        else:
            raise ValueError("%r: unknown kind of entry" % path)
    return entries


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


class Index:
    """What is known of a folder: who put which file there, and how it looked then."""

    def __init__(self, folder):
        self.folder = folder
        self.made = False
        self.made_directories = []
        self.snapshot = b""
        #: [path, where it is kept, role]: what was moved aside.
        self.displaced = []
        #: {path: (role, kind, size, mtime_ns, ctime_ns, inode, digest)}
        self.records = {}

    @classmethod
    def load(cls, path, folder):
        """Return the index in a file; None when there is none. Raises ValueError for one that cannot be read."""
        try:
            data = _store.read_file(path)
        except FileNotFoundError:
            return None
        line, _, rest = data.partition(b"\n")
        head = json.loads(line.decode())
        index = cls(folder)
        index.made = head["made"]
        index.made_directories = [to_bytes(each) for each in head["made_directories"]]
        index.snapshot = to_bytes(head["snapshot"])
        index.displaced = [[to_bytes(name), to_bytes(at), role] for name, at, role in head["displaced"]]
        fields = rest.split(b"\0")
        for at in range(0, len(fields) - 1, 2):
            role, kind, size, mtime, ctime, inode, digest = fields[at + 1].split(b" ")
            index.records[fields[at]] = (
                role.decode(),
                kind.decode(),
                int(size),
                int(mtime),
                int(ctime),
                int(inode),
                digest,
            )
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
        }
        parts = [json.dumps(head).encode("ascii"), b"\n"]
        for name, (role, kind, size, mtime, ctime, inode, digest) in self.records.items():
            parts.append(
                b"%s\0%s %s %d %d %d %d %s\0"
                % (name, role.encode(), kind.encode(), size, mtime, ctime, inode, digest)
            )
        with Attempt(path, "writing the folder's index"):
            _store.replace_file(path, b"".join(parts))

    def note(self, path, role, kind, status, digest=b""):
        """Record how an entry looks."""
        self.records[path] = (
            role,
            kind,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
            digest,
        )

    def same_stat(self, path, kind, status):
        """Whether an entry looks exactly as recorded, so that its content cannot have changed."""
        record = self.records.get(path)
        return record is not None and record[1:6] == (
            kind,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
        )

    def state(self, path, kind, status):
        """Return "m" made, "c" changed, "u" sent and unchanged, "b" there before and unchanged."""
        record = self.records.get(path)
        if record is None:
            return "m"
        role, known_kind, size, mtime, _ctime, _inode, digest = record
        sent = role in "oq"
        same = "u" if sent else "b"
        if kind == "d" and known_kind == "d":
            return same
        if kind == known_kind and self.same_stat(path, kind, status):
            return same
        if not sent:
            return same if (kind, status.st_size, status.st_mtime_ns) == (known_kind, size, mtime) else "c"
        if kind != known_kind:
            return "c"
        if kind != "l" and status.st_size != size:
            return "c"
        return same if content_digest(self.folder + b"/" + path, kind) == digest else "c"


def content_digest(path, kind):
    """Return the sha256, in hex, of a file's bytes or a link's target; b"" when it cannot be read."""
    try:
        if kind == "l":
            return hashlib.sha256(os.readlink(path)).hexdigest().encode()
        fd = os.open(path, _store.READ_FLAGS)
    except OSError:
        return b""
    try:
        running = hashlib.sha256()
        while True:
            piece = os.read(fd, _store.PIECE)
            if not piece:
                return running.hexdigest().encode()
            running.update(piece)
    except OSError:
        return b""
    finally:
        os.close(fd)


def to_text(raw):
    """Bytes of a name as JSON can carry them."""
    return raw.decode("utf-8", "surrogateescape")


def to_bytes(text):
    """The bytes of a name that came in JSON, whatever this process's locale."""
    return text.encode("utf-8", "surrogateescape")


def names_for(store, folder):
    """Return (index file, folder for what is moved aside) of a folder."""
    name = hashlib.sha256(folder).hexdigest()[:32].encode()
    return store.index + b"/" + name, store.kept + b"/" + name


def lock_for(store, folder):
    """Return the lock that keeps two from placing into, or cleaning, one folder at once."""
    return _store.Lock(names_for(store, folder)[0] + b".lock")


def is_current(store, folder, snapshot):
    """Whether a folder holds exactly what the index says that snapshot put there, and nothing new: no work to do.

    Compares the index as text, without making sense of each line: this is all that sending unchanged code costs.
    """
    try:
        line, _, rest = _store.read_file(names_for(store, folder)[0]).partition(b"\n")
        if json.loads(line.decode())["snapshot"] != to_text(snapshot):
            return False
    except (FileNotFoundError, ValueError, KeyError, TypeError, UnicodeError):
        return False
    fields = rest.split(b"\0")
    records = dict(zip(fields[::2], fields[1::2]))
    try:
        for path, kind, status in scan(folder):
            meta = records.pop(path, b"")
            if kind == "d" and meta[2:4] == b"d ":
                continue
            if status is None or not meta[2:].startswith(
                b"%s %d %d %d %d "
                % (kind.encode(), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            ):
                return False
    except Trouble:
        return False
    return not any(meta[:1] in (b"o", b"q") for meta in records.values())


class Placing:
    """Brings a folder to the state of a manifest. Hold `lock_for` and an open store meanwhile.

    `needed` maps each digest that has to be written somewhere to its entries; `write_small` may be called as contents
    arrive when the folder is `fresh` (they go to a hidden place first); `finish` does the rest and puts all in place.
    """

    def __init__(self, store, folder, snapshot, entries, move_large):
        self.store = store
        self.folder = folder
        self.entries = entries
        self.move_large = move_large
        self.written = 0
        self.displaced = []
        self._index_path, self._kept = names_for(store, folder)
        self._umask = _store.umask()
        self._real = set()
        old = None
        with Attempt(self._index_path, "reading the folder's index"):
            try:
                old = Index.load(self._index_path, folder)
            except (ValueError, KeyError, TypeError, UnicodeError):
                pass  # torn by a power cut: what is there counts as the person's
        self.index = old or Index(folder)
        #: Named in the index only when all is in place: until then the folder holds no snapshot.
        self._snapshot = snapshot
        self.index.snapshot = UNDER_WAY
        self.fresh = not os.path.lexists(folder)
        self.needed = {}
        self._others = []
        #: Where files are written first: a whole folder when fresh, else single files to be renamed.
        self._temporary = store.tmp
        if self.fresh:
            self.index.records = {}
            self.index.made = True
            for entry in entries:
                self._need(entry)
        else:
            self._compare()
        self._count = 0
        self._open_path = None
        self._open_fd = -1

    def _need(self, entry):
        if entry.kind in "fx":
            self.needed.setdefault(entry.digest, []).append(entry)
        else:
            self._others.append(entry)

    def _compare(self):
        index = self.index
        if not os.path.isdir(self.folder):
            raise Trouble(self.folder, errno.ENOTDIR, "putting files in place")
        old = index.records
        known = bool(old) or index.made
        wanted = {entry.path: entry for entry in self.entries}
        fresh = Index(self.folder)
        records = fresh.records
        folders = []
        for path, kind, status in scan(self.folder):
            if status is None:
                continue
            record = old.get(path)
            entry = wanted.get(path)
            if entry is not None and self._is_there(entry, kind, status, record):
                ours = known and (record is None or record[0] in "oe")
                fresh.note(path, "o" if ours else "q", kind, status, entry.digest.hex().encode())
                del wanted[path]
            elif record is not None and record[0] == "o" and kind == record[1] == "d":
                records[path] = record
                folders.append(path)
            elif record is not None and record[0] == "o" and index.same_stat(path, kind, status):
                if entry is None:
                    with Attempt(self.folder + b"/" + path, "removing a file that is no longer sent"):
                        os.unlink(self.folder + b"/" + path)
                else:
                    fresh.records[path] = record
            else:
                role = "e" if known and (record is None or record[0] in "oe") else "p"
                fresh.note(path, role, kind, status)
        index.records = records
        for entry in self.entries:
            if entry.path in wanted:
                self._need(entry)
        for path in sorted(folders, reverse=True):
            # Ours of an earlier snapshot: gone when nothing is in it. One still needed is made again.
            if _store.remove_empty(self.folder + b"/" + path):
                del records[path]

    def _is_there(self, entry, kind, status, record):
        if entry.kind != kind:
            return False
        if kind == "d":
            return True
        digest = entry.digest.hex().encode()
        if kind != "l" and status.st_size != entry.size:
            return False
        if record is not None and record[6] and self.index.same_stat(entry.path, kind, status):
            return record[6] == digest
        return content_digest(self.folder + b"/" + entry.path, kind) == digest

    def begin(self):
        """Prepare the place files go to. Call once, before the first write. Raises Trouble."""
        with Attempt(self.folder, "making the folder"):
            if self.fresh:
                parent = os.path.dirname(self.folder)
                self.index.made_directories = _store.make_directories(parent)
            else:
                parent = self.folder
        same_device = os.stat(parent).st_dev == os.stat(self.store.tmp).st_dev
        if self.fresh:
            if not same_device:
                self._temporary = parent
            self._root = self._temporary + b"/.orchestra-" + _store.token()
            with Attempt(self._root, "making the folder"):
                os.mkdir(self._root)
        else:
            if not same_device:
                # Another file system: a rename from the store's would not be one step.
                self._temporary = self.folder + b"/.orchestra"
                self._kept = self.folder + b"/.orchestra"
                with Attempt(self._temporary, "making the folder"):
                    _store.make_directories(self._temporary, 0o700)
            self._root = self.folder
            if self.needed or self._others:
                # Intent: a kill from here on leaves files of ours that the index knows as ours.
                for entry in self.entries:
                    record = self.index.records.get(entry.path)
                    if record is None:
                        self.index.records[entry.path] = ("o", entry.kind, -1, 0, 0, 0, b"")
                self.index.save(self._index_path)
        self._stamp = time.time_ns() if hasattr(time, "time_ns") else int(time.time() * 1e9)
        self._stamp -= self._stamp % 1000 - MARK_NS

    # -- writing ------------------------------------------------------------------------------------------------

    def write_small(self, digest, data):
        """Write a content to every place that needs it. Raises Trouble."""
        for entry in self.needed.pop(digest, ()):
            self._write_file(entry, data)

    def _parent(self, path):
        """Return an open folder to write an entry of `path` into, made where absent."""
        parent = os.path.dirname(path)
        if parent != self._open_path:
            self._make_real(parent)
            if self._open_fd >= 0:
                os.close(self._open_fd)
                self._open_fd = -1
                self._open_path = None
            self._open_fd = os.open(self._root + b"/" + parent, _store.DIRECTORY_FLAGS)
            self._open_path = parent
        return self._open_fd

    def _make_real(self, path):
        """Make sure a folder of ours is a real folder, no link: whatever else has its name is moved aside."""
        if not path or path in self._real:
            return
        self._make_real(os.path.dirname(path))
        full = self._root + b"/" + path
        try:
            os.mkdir(full)
            made = True
        except FileExistsError:
            made = False
            if not stat.S_ISDIR(os.lstat(full).st_mode):
                self._move_aside(path)
                os.mkdir(full)
                made = True
        if made:
            self.index.note(path, "o", "d", os.lstat(full))
        self._real.add(path)

    def _write_file(self, entry, data):
        path = entry.path
        mode = 0o777 if entry.kind == "x" else 0o666
        try:
            if self.fresh:
                at = path.rfind(b"/")
                parent = path[:at] if at > 0 else b""
                directory = self._open_fd if parent == self._open_path else self._parent(path)
                fd = os.open(path[at + 1 :], _store.WRITE_FLAGS, mode, dir_fd=directory)
                try:
                    self._fill(fd, data)
                    self._note(entry, os.fstat(fd))
                finally:
                    os.close(fd)
            else:
                self._parent(path)
                temporary = self._temporary + b"/" + _store.token()
                try:
                    fd = os.open(temporary, _store.WRITE_FLAGS, mode)
                    try:
                        self._fill(fd, data)
                    finally:
                        os.close(fd)
                    self._swap(temporary, entry)
                except BaseException:
                    discard(temporary)
                    raise
        except OSError as error:
            raise Trouble(
                self._root + b"/" + path, error.errno or errno.EIO, "putting files in place"
            ) from error
        self.written += 1

    def _fill(self, fd, data):
        if data:
            _store.write_all(fd, data)
        os.utime(fd, ns=(self._stamp, self._stamp))

    def _note(self, entry, status):
        self.index.note(entry.path, "o", entry.kind, status, entry.digest.hex().encode())

    def _swap(self, temporary, entry):
        """Rename a finished file over its place; what we did not put there, or what was changed since, moves aside."""
        full = self._root + b"/" + entry.path
        directory = self._parent(entry.path)
        name = os.path.basename(entry.path)
        try:
            there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is not None:
            record = self.index.records.get(entry.path)
            untouched = (
                record is not None
                and record[0] == "o"
                and self.index.same_stat(entry.path, kind_of(there), there)
            )
            if stat.S_ISDIR(there.st_mode) or not untouched:
                self._move_aside(entry.path)
        os.rename(temporary, full)
        self._note(entry, os.lstat(full))

    def _move_aside(self, path):
        record = self.index.records.get(path)
        role = record[0] if record is not None and record[0] in "pq" else "e"
        _store.make_directories(self._kept, 0o700)
        at = self._kept + b"/" + _store.token()
        os.rename(self._root + b"/" + path, at)
        self.index.displaced.append([path, at, role])
        self.displaced.append((path, at))
        below = path + b"/"
        for name in [each for each in self.index.records if each.startswith(below)]:
            if self.index.records[name][2] >= 0:
                del self.index.records[name]
        self.index.save(self._index_path)

    def finish(self):
        """Write everything not yet written and put it in place. Raises Missing (try again later) or Trouble."""
        for digest in list(self.needed):
            entries = self.needed[digest]
            if entries[0].size <= _store.SMALL:
                self.write_small(digest, self.store.read_small(digest))
            else:
                self._write_large(digest)
        for entry in self._others:
            full = self._root + b"/" + entry.path
            with Attempt(full, "putting files in place"):
                if entry.kind == "d":
                    self._make_real(entry.path)
                else:
                    self._write_link(entry)
            self.written += 1
        self._others = []
        self.index.snapshot = self._snapshot
        if self.fresh:
            # First the index, then the folder: a folder of ours without an index would look like the person's.
            self.index.save(self._index_path)
            with Attempt(self.folder, "putting the folder in place"):
                os.rename(self._root, self.folder)
            self._root = self.folder
        else:
            self.index.records = {
                path: record for path, record in self.index.records.items() if record[2] >= 0
            }
            self.index.save(self._index_path)

    def _write_large(self, digest):
        entries = self.needed[digest]
        while entries:
            entry = entries[-1]
            full = self._root + b"/" + entry.path
            mode = 0o777 if entry.kind == "x" else 0o666
            with Attempt(full, "putting files in place"):
                self._parent(entry.path)
            target = full if self.fresh else self._temporary + b"/" + _store.token()
            try:
                self.store.place_large(digest, target, mode, self.move_large and len(entries) == 1)
                with Attempt(full, "putting files in place"):
                    os.utime(target, ns=(self._stamp, self._stamp))
                    if self.fresh:
                        self._note(entry, os.lstat(target))
                    else:
                        self._swap(target, entry)
            except BaseException:
                discard(target)
                raise
            entries.pop()
            self.written += 1
        del self.needed[digest]

    def _write_link(self, entry):
        directory = self._parent(entry.path)
        if self.fresh:
            os.symlink(entry.target, os.path.basename(entry.path), dir_fd=directory)
            self._note(entry, os.lstat(self._root + b"/" + entry.path))
            return
        temporary = self._temporary + b"/" + _store.token()
        os.symlink(entry.target, temporary)
        try:
            self._swap(temporary, entry)
        except BaseException:
            discard(temporary)
            raise

    def abandon(self):
        """Take back what is not in place yet."""
        if self._open_fd >= 0:
            os.close(self._open_fd)
            self._open_fd = -1
            self._open_path = None
        if self.fresh and getattr(self, "_root", self.folder) != self.folder:
            _store.remove_tree(self._root)


def discard(path):
    """Delete a temporary file if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
