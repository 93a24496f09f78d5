"""The content store of one directory on a host: what was sent, by hash. Standard library only, Python 3.6 and newer.

Its job: keep contents under their sha256, tell what is missing, hand contents out verified, and delete what no
folder needs any more. It knows nothing of folders (`folder.py`) and nothing of frames (`worker.py`).

Layout, all in `DIRECTORY/.orchestra/`::

    made                    the ancestors of DIRECTORY that we made ourselves, to be removed when all is gone
    store/lock              shared by those who read or add, exclusive for who deletes
    store/packs/N.pack      many small contents in one file: records of sha256 | size | bytes. Few inodes
    store/packs/N.idx       where each lies; missing when the writer was killed, then made again from the pack
    store/large/HASH        one large content each
    store/incoming/HASH     a large content of which the rest has not arrived yet
    store/snapshots/HASH    the manifest of a snapshot
    index/, tmp/, kept/     see `folder.py`

Contents are verified against their hash whenever they are read, so a file torn by a power cut is noticed, dropped
and sent again. Paths are bytes throughout: a node's locale must not decide which names exist.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import struct

try:
    from . import files as _files
except ImportError:
    import files as _files

#: Contents up to this many bytes go into packs.
SMALL = 128 << 10
MAGIC = b"orchestra pack 1\n"
RECORD = struct.Struct(">32sI")
PLACE = struct.Struct(">32sQI")
#: ioctl of Linux that makes a file share another's blocks, where the file system can.
FICLONE = 0x40049409


class Missing(Exception):
    """A content that was thought to be in the store is not there, or no longer what its name says."""


class Pack:
    """A pack being written. Readable only when closed; whatever was added is kept even if the writer is killed."""

    def __init__(self, folder):
        self.path = folder + b"/" + _files.token() + b".pack"
        self.places = []
        self.buffer = [MAGIC]
        self.buffered = 0
        self.at = len(MAGIC)
        self.fd = os.open(self.path, _files.WRITE_FLAGS, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX)  # says: its writer lives

    def add(self, digest, data):
        """Add one content."""
        self.buffer.append(RECORD.pack(digest, len(data)))
        self.buffer.append(data)
        self.places.append((digest, self.at + RECORD.size, len(data)))
        self.at += RECORD.size + len(data)
        self.buffered += len(data) + RECORD.size
        if self.buffered >= _files.PIECE:
            self.flush()

    def flush(self):
        """Hand what was added to the kernel."""
        with _files.Attempt(self.path, "storing what arrived"):
            _files.write_all(self.fd, b"".join(self.buffer))
        self.buffer = []
        self.buffered = 0

    def close(self):
        """Write the index: from now on others may read it."""
        if self.fd >= 0:
            try:
                self.flush()
                with _files.Attempt(self.path, "storing what arrived"):
                    write_index(self.path, self.places)
            finally:
                os.close(self.fd)
                self.fd = -1


def write_index(pack, places):
    """Write where the contents of a pack lie."""
    _files.replace_file(pack[:-5] + b".idx", b"".join(PLACE.pack(*place) for place in places))


def read_index(pack):
    """Return [(digest, offset, size)] of a pack. One whose writer was killed is indexed again; None: being written."""
    try:
        return list(PLACE.iter_unpack(_files.read_file(pack[:-5] + b".idx")))
    except (FileNotFoundError, struct.error):
        pass
    fd = os.open(pack, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None
        places = []
        size = os.fstat(fd).st_size
        if size > len(MAGIC):
            data = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
            at = len(MAGIC)
            while at + RECORD.size <= size:
                digest, length = RECORD.unpack_from(data, at)
                at += RECORD.size
                if at + length > size or hashlib.sha256(data[at : at + length]).digest() != digest:
                    break
                places.append((digest, at, length))
                at += length
            data.close()
        write_index(pack, places)
        return places
    finally:
        os.close(fd)


class Store:
    """What lies in one directory. `open` it before use, `close` it afterwards."""

    def __init__(self, directory):
        self.directory = directory
        self.base = directory + b"/.orchestra"
        self.root = self.base + b"/store"
        self.packs = self.root + b"/packs"
        self.large = self.root + b"/large"
        self.incoming = self.root + b"/incoming"
        self.snapshots = self.root + b"/snapshots"
        self.index = self.base + b"/index"
        self.tmp = self.base + b"/tmp"
        self.kept = self.base + b"/kept"
        self._lock = _files.Lock(self.root + b"/lock")
        self._where = {}
        self._large = set()
        #: Large contents whose hash was checked in this very conversation.
        self._checked = set()
        self._fds = {}
        self._pack = None

    def open(self):
        """Make what is missing, keep others from deleting, and read what is there. Raises Trouble."""
        with _files.Attempt(self.base, "making the store"):
            while True:
                made = _files.make_directories(self.directory)
                for each in (
                    self.base,
                    self.root,
                    self.packs,
                    self.large,
                    self.incoming,
                    self.snapshots,
                    self.index,
                    self.tmp,
                    self.kept,
                ):
                    _files.make_directories(each, 0o700)
                try:
                    if made:
                        _files.replace_file(self.base + b"/made", b"\0".join(made))
                    self._lock.acquire(exclusive=False)
                    break
                except FileNotFoundError:
                    continue  # somebody cleaned up between two lines: once more
        with _files.Attempt(self.root, "reading the store"):
            self._load()

    def exists(self):
        """Whether anything was ever stored here."""
        return os.path.isdir(self.root)

    def _load(self):
        self._where = {}
        for name in os.listdir(self.packs):
            if name.endswith(b".pack"):
                path = self.packs + b"/" + name
                for digest, at, size in read_index(path) or ():
                    self._where[digest] = (path, at, size)
        self._large = {bytes.fromhex(name.decode()) for name in os.listdir(self.large) if len(name) == 64}

    def close(self):
        """Finish what was being written and let others delete again."""
        try:
            self.finish_pack()
        finally:
            for fd in self._fds.values():
                os.close(fd)
            self._fds = {}
            self._lock.release()

    def __contains__(self, digest):
        return digest in self._where or digest in self._large

    def add_small(self, digest, data):
        """Keep a content whose hash was checked by the caller. Raises Trouble."""
        if self._pack is None:
            with _files.Attempt(self.packs, "storing what arrived"):
                self._pack = Pack(self.packs)
        self._pack.add(digest, data)

    def finish_pack(self):
        """Make the contents added so far readable. Raises Trouble."""
        if self._pack is not None:
            pack = self._pack
            self._pack = None
            pack.close()
            for digest, at, size in pack.places:
                self._where[digest] = (pack.path, at, size)

    def read_small(self, digest):
        """Return a content. Raises Missing when it is not there or not what it should be, Trouble otherwise."""
        if digest not in self._where:
            raise Missing(digest)
        path, at, size = self._where[digest]
        with _files.Attempt(path, "reading the store"):
            if path not in self._fds:
                if len(self._fds) >= 64:
                    os.close(self._fds.popitem()[1])
                self._fds[path] = os.open(path, _files.READ_FLAGS)
            data = os.pread(self._fds[path], size, at)
        if hashlib.sha256(data).digest() != digest:
            del self._where[digest]
            raise Missing(digest)
        return data

    def place_large(self, digest, target, mode, move):
        """Put a large content where `target`, a name that does not exist, says. Raises Missing or Trouble.

        With `move` the store gives it away, which costs no second copy.
        """
        source = self.large + b"/" + digest.hex().encode()
        if move:
            self._large.discard(digest)
            with _files.Attempt(target, "putting files in place"):
                try:
                    os.chmod(source, mode & ~_files.umask())
                    os.rename(source, target)
                    return
                except FileNotFoundError:
                    if not os.path.isdir(os.path.dirname(target)):
                        raise
                    raise Missing(digest)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
        with _files.Attempt(source, "reading the store"):
            try:
                reading = os.open(source, _files.READ_FLAGS)
            except FileNotFoundError:
                self._large.discard(digest)
                raise Missing(digest)
        try:
            with _files.Attempt(target, "putting files in place"):
                writing = os.open(target, _files.WRITE_FLAGS, mode)
            try:
                with _files.Attempt(target, "putting files in place"):
                    try:
                        fcntl.ioctl(writing, FICLONE, reading)
                        return
                    except OSError:
                        pass  # most file systems cannot: copy
                    if digest in self._checked:
                        _files.copy(reading, writing)
                    if digest in self._checked or _files.copy_hashed(reading, writing) == digest:
                        if move:
                            os.unlink(source)
                        return
                os.unlink(target)
            finally:
                os.close(writing)
        finally:
            os.close(reading)
        self._large.discard(digest)
        os.unlink(source)
        raise Missing(digest)

    def receive(self, digest, size):
        """Return an Incoming for a large content, continuing an earlier one where it stopped."""
        return Incoming(self, digest, size)

    def arrived(self, digest):
        """Note a large content as stored, its hash checked."""
        self._large.add(digest)
        self._checked.add(digest)

    def manifest(self, name):
        """Return a snapshot's manifest, or None. One that is not what its name says counts as absent."""
        try:
            data = _files.read_file(self.snapshots + b"/" + name)
        except FileNotFoundError:
            return None
        return data if hashlib.sha256(data).hexdigest().encode() == name else None

    def keep_manifest(self, name, data):
        """Keep a manifest the caller verified. Raises Trouble."""
        with _files.Attempt(self.snapshots, "storing the manifest"):
            _files.replace_file(self.snapshots + b"/" + name, data)

    def collect(self, live_manifests):
        """Delete what no live snapshot needs; with none left, the whole store and the directories we made for it.

        Skipped while somebody reads or adds: who finishes last deletes. `live_manifests` is called under the lock and
        returns {snapshot name: [digests]}. The store is closed already. Returns whether it ran. Raises Trouble.
        """
        with _files.Attempt(self.root, "cleaning the store"):
            try:
                if not self._lock.acquire(exclusive=True, wait=False):
                    return False
            except FileNotFoundError:
                return True  # somebody else removed the store
            deleted = False
            try:
                live = live_manifests()
                if live:
                    self._prune(live)
                else:
                    for each in (self.packs, self.large, self.incoming, self.snapshots, self.tmp):
                        _files.remove_tree(each)
                    self._lock.release(delete=True)
                    deleted = True
            finally:
                self._lock.release()
            if deleted:
                self._remove_base()
        return True

    def _prune(self, live):
        needed = set()
        for digests in live.values():
            needed.update(digests)
        for name in os.listdir(self.snapshots):
            if name not in live:
                os.unlink(self.snapshots + b"/" + name)
        names = {digest.hex().encode() for digest in needed}
        for folder, kept in ((self.large, names), (self.incoming, ())):
            for name in os.listdir(folder):
                if name not in kept:
                    os.unlink(folder + b"/" + name)
        for name in os.listdir(self.tmp):
            _files.remove_tree(self.tmp + b"/" + name)
        for name in os.listdir(self.packs):
            if name.endswith(b".pack"):
                path = self.packs + b"/" + name
                places = read_index(path)
                if places is not None and not any(place[0] in needed for place in places):
                    os.unlink(path)
                    os.unlink(path[:-5] + b".idx")

    def _remove_base(self):
        try:
            made = _files.read_file(self.base + b"/made").split(b"\0")
        except FileNotFoundError:
            made = []
        for each in (self.root, self.index, self.kept):
            _files.remove_empty(each)
        if os.path.isdir(self.index) or os.path.isdir(self.kept) or os.path.isdir(self.root):
            return
        if made:
            os.unlink(self.base + b"/made")
        if _files.remove_empty(self.base):
            for each in reversed(made):
                if not _files.remove_empty(each):
                    break


class Incoming:
    """A large content on its way in. What arrived stays when the way breaks; the hash decides when it is whole."""

    def __init__(self, store, digest, size):
        self.store = store
        self.digest = digest
        self.size = size
        self.path = store.incoming + b"/" + digest.hex().encode()
        with _files.Attempt(self.path, "storing what arrived"):
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                # Somebody else receives the same content right now: do not wait for them, nor disturb them.
                os.close(self.fd)
                self.path += b"." + _files.token()
                self.fd = os.open(self.path, os.O_RDWR | _files.WRITE_FLAGS & ~os.O_WRONLY, 0o600)
            self.hash = hashlib.sha256()
            self.at = 0
            if os.fstat(self.fd).st_size > size:
                os.ftruncate(self.fd, 0)
            while True:
                piece = os.read(self.fd, _files.PIECE)
                if not piece:
                    break
                self.hash.update(piece)
                self.at += len(piece)
        #: Where the sender has to go on.
        self.start = self.at

    def write(self, data):
        """Take the next bytes; the caller updates `hash` with them. Raises Trouble."""
        with _files.Attempt(self.path, "storing what arrived"):
            _files.write_all(self.fd, data)
        self.at += len(data)

    def finish(self):
        """Return whether the whole content arrived and is what its hash says; if so it is in the store now."""
        self.close()
        if self.at != self.size or self.hash.digest() != self.digest:
            os.unlink(self.path)
            return False
        with _files.Attempt(self.path, "storing what arrived"):
            os.rename(self.path, self.store.large + b"/" + self.digest.hex().encode())
        self.store.arrived(self.digest)
        return True

    def close(self):
        """Stop here; what arrived stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
