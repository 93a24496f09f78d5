"""Puts a snapshot into a folder on a host.

Its job: bring a folder to the state of a snapshot, writing only what differs (`Placing`). Contents come from
`store.py`; what is remembered of it is `index.py`'s, taking it away again `clean.py`'s. Standard library only, Python
3.6 and newer.

A manifest is a list of records, path and meaning, each ended by a NUL byte, sorted by path::

    f SIZE SHA256 | x SIZE SHA256 | l TARGET | d          a file, an executable, a link, an empty folder

When one of our names is taken by something else, ours wins, since an execution must see exactly the code that was
submitted; the other is moved to `DIRECTORY/.orchestra/kept/HASH/`, named in the report, and moved back by `clean`.

The index is written before anything in an existing folder is touched and again when all is in place, so that a kill
in between never makes a file of ours look like one of the person's.
"""

import errno
import hashlib
import os
import re
import stat
import time

try:
    from . import files as _files
    from . import index as _index
    from . import store as _store
except ImportError:
    import files as _files
    import index as _index
    import store as _store

Attempt = _files.Attempt
Trouble = _files.Trouble

#: Nanoseconds below the microsecond that mark a modification time set by us: the kernel's own clock practically never
#: yields it, so a change within the same tick of the clock, leaving the size alone, still shows.
MARK_NS = 7


class Entry:
    """One line of a manifest."""

    __slots__ = ("digest", "hex", "kind", "path", "size", "target")

    def __init__(self, path, kind, size=0, digest=b"", target=b"", text=b""):
        self.path = path
        self.kind = kind
        self.size = size
        self.digest = digest
        #: The digest in hex, as manifests and indexes have it.
        self.hex = text or digest.hex().encode()
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
            entries.append(Entry(path, kind.decode(), int(size), bytes.fromhex(digest.decode()), b"", digest))
        elif kind == b"l" and rest:
            entries.append(Entry(path, "l", 0, hashlib.sha256(rest).digest(), rest))
        elif kind == b"d" and not rest:
            entries.append(Entry(path, "d"))
        else:
            raise ValueError("%r: unknown kind of entry" % path)
    return entries


class Placing:
    """Brings a folder to the state of a manifest. Hold `index.lock_for` and an open store meanwhile.

    `needed` maps each digest that has to be written somewhere to its entries; `write_small` may be called as contents
    arrive when the folder is `fresh` (they go to a hidden place first); `finish` does the rest and puts all in place.
    """

    def __init__(self, store, folder, index, snapshot, entries, move_large):
        self.store = store
        self.folder = folder
        self.entries = entries
        self.move_large = move_large
        self.written = 0
        self.displaced = []
        self._index_path, self._kept = _index.names_for(store, folder)
        self._real = set()
        self.index = index or _index.Index(folder)
        #: Named in the index only when all is in place: until then the folder holds no snapshot.
        self._snapshot = snapshot
        self.index.snapshot = _index.UNDER_WAY
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
        fresh = _index.Index(self.folder)
        records = fresh.records
        folders = []
        for path, kind, status in _index.scan(self.folder):
            if status is None:
                continue
            record = old.get(path)
            entry = wanted.get(path)
            if (
                record is not None
                and entry is not None
                and kind == entry.kind
                and record[:1] in b"oq"
                and record == record[:2] + _index.looks(kind, status) + entry.hex
            ):
                # Nearly every file of nearly every send ends here.
                records[path] = record
                del wanted[path]
                continue
            role = index.role(path)
            if entry is not None and self._is_there(entry, kind, status):
                ours = known and role in ("", "o", "e")
                fresh.note(path, "o" if ours else "q", kind, status, entry.hex)
                del wanted[path]
            elif role == "o" and kind == "d" and old[path][2:4] == b"d ":
                records[path] = old[path]
                folders.append(path)
            elif role == "o" and index.same_stat(path, kind, status):
                if entry is None:
                    with Attempt(self.folder + b"/" + path, "removing a file that is no longer sent"):
                        os.unlink(self.folder + b"/" + path)
                else:
                    records[path] = old[path]
            else:
                fresh.note(path, "e" if known and role in ("", "o", "e") else "p", kind, status)
        index.records = records
        for entry in self.entries:
            if entry.path in wanted:
                self._need(entry)
        for path in sorted(folders, reverse=True):
            # Ours of an earlier snapshot: gone when nothing is in it. One still needed is made again.
            if _files.remove_empty(self.folder + b"/" + path):
                del records[path]

    def _is_there(self, entry, kind, status):
        if entry.kind != kind:
            return False
        if kind == "d":
            return True
        digest = entry.hex
        if kind != "l" and status.st_size != entry.size:
            return False
        known = self.index.digest(entry.path)
        if known and self.index.same_stat(entry.path, kind, status):
            return known == digest
        return _index.content_digest(self.folder + b"/" + entry.path, kind) == digest

    def begin(self):
        """Prepare the place files go to. Call once, before the first write. Raises Trouble."""
        with Attempt(self.folder, "making the folder"):
            if self.fresh:
                parent = os.path.dirname(self.folder)
                self.index.made_directories = _files.make_directories(parent)
            else:
                parent = self.folder
        same_device = os.stat(parent).st_dev == os.stat(self.store.tmp).st_dev
        if self.fresh:
            if not same_device:
                self._temporary = parent
            self._root = self._temporary + b"/.orchestra-" + _files.token()
            with Attempt(self._root, "making the folder"):
                os.mkdir(self._root)
        else:
            if not same_device:
                # Another file system: a rename from the store's would not be one step.
                self._temporary = self.folder + b"/.orchestra"
                self._kept = self.folder + b"/.orchestra"
                with Attempt(self._temporary, "making the folder"):
                    _files.make_directories(self._temporary, 0o700)
            self._root = self.folder
            if self.needed or self._others:
                # Intent: a kill from here on leaves files of ours that the index knows as ours.
                for entry in self.entries:
                    if entry.path not in self.index.records:
                        self.index.intend(entry.path, entry.kind)
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
            self._open_fd = os.open(self._root + b"/" + parent, _files.DIRECTORY_FLAGS)
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
                fd = os.open(path[at + 1 :], _files.WRITE_FLAGS, mode, dir_fd=directory)
                try:
                    self._fill(fd, data)
                    self._note(entry, os.fstat(fd))
                finally:
                    os.close(fd)
            else:
                self._parent(path)
                temporary = self._temporary + b"/" + _files.token()
                try:
                    fd = os.open(temporary, _files.WRITE_FLAGS, mode)
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
            _files.write_all(fd, data)
        os.utime(fd, ns=(self._stamp, self._stamp))

    def _note(self, entry, status):
        self.index.note(entry.path, "o", entry.kind, status, entry.hex)

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
            untouched = self.index.role(entry.path) == "o" and self.index.same_stat(
                entry.path, _index.kind_of(there), there
            )
            if stat.S_ISDIR(there.st_mode) or not untouched:
                self._move_aside(entry.path)
        os.rename(temporary, full)
        self._note(entry, os.lstat(full))

    def _move_aside(self, path):
        role = self.index.role(path)
        role = role if role in ("p", "q") else "e"
        _files.make_directories(self._kept, 0o700)
        at = self._kept + b"/" + _files.token()
        os.rename(self._root + b"/" + path, at)
        self.index.displaced.append([path, at, role])
        self.displaced.append((path, at))
        below = path + b"/"
        for name in [each for each in self.index.records if each.startswith(below)]:
            if not self.index.is_intent(name):
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
            self.index.drop_intents()
            self.index.save(self._index_path)

    def _write_large(self, digest):
        entries = self.needed[digest]
        while entries:
            entry = entries[-1]
            full = self._root + b"/" + entry.path
            mode = 0o777 if entry.kind == "x" else 0o666
            with Attempt(full, "putting files in place"):
                self._parent(entry.path)
            target = full if self.fresh else self._temporary + b"/" + _files.token()
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
        temporary = self._temporary + b"/" + _files.token()
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
            _files.remove_tree(self._root)


def discard(path):
    """Delete a temporary file if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
