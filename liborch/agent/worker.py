"""Serves one transfer stream on a node: receives code, sends results back, cleans up. Python 3.6, standard library.

Started by the talker with the stream's number as only argument; frames come in on descriptor 0 and go out on
descriptor 1. `{"t": "close"}` or the end of input ends it. It knows nothing of executions or of the keeper.

One conversation after another, each begun by the client::

    send      C {"t": "send", "directory", "folder", "snapshot", "sole"}
              W {"t": "want"} when the manifest is not known   C {"t": "manifest", "last"} + piece
              W {"t": "missing", "parts": [[k, offset]], "last"} + u32 numbers of contents
              C {"t": "small", "k": [..], "s": [sizes]} + bytes   {"t": "large", "k", "at"} + piece   {"t": "sent"}
              W "missing" again when something did not arrive whole, else
              W {"t": "done", "written", "displaced": [[path, where]], "fresh"}
    fetch     C {"t": "fetch", "directory", "folder", "sent"}
              W {"t": "list", "last"} + records: path NUL "KIND STATE SIZE MTIME_NS[ TARGET]" NUL
              C {"t": "wanted", "parts": [[k, offset, sha256 of those bytes]], "last"} + u32 numbers of entries
              W {"t": "small", "k": [..], "s": [sizes]} + sha256 of each, then bytes
                {"t": "large", "k", "at", "end", "sha"} + piece     {"t": "gone", "k", "why"}     {"t": "done"}
    clean     C {"t": "clean", "directory", "folder", "leave", "keep_store"}
              W {"t": "done", "removed", "restored": [..], "kept": [[path, where]]}

Contents are numbered in the order in which they first appear in the manifest, entries of a listing as listed.
Anything that goes wrong is answered by one `{"t": "error", "kind", "path", "errno", "doing", "why"}`; frames the
client had under way for that conversation are then read and dropped up to its `{"t": "sent"}`.
"""

import gc
import hashlib
import os
import stat
import struct
import sys

try:
    from . import clean as _clean
    from . import files as _files
    from . import folder as _folder
    from . import frames as _frames
    from . import index as _index
    from . import link as _link
    from . import store as _store
except ImportError:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import clean as _clean
    import files as _files
    import folder as _folder
    import frames as _frames
    import index as _index
    import link as _link
    import store as _store

to_bytes = _index.to_bytes
to_text = _index.to_text


class Refused(Exception):
    """A request that cannot be carried out, in words."""


def numbers(body):
    """Return the u32 numbers in a body."""
    return struct.unpack(">%dI" % (len(body) // 4), body)


def absolute(head, key):
    """Return a path of a request. Raises Refused for a relative one."""
    path = to_bytes(head[key])
    if not path.startswith(b"/"):
        raise Refused("%s %r is not an absolute path" % (key, head[key]))
    return os.path.normpath(path)


# -- receiving code ---------------------------------------------------------------------------------------------


def serve_send(link, head):
    """Receive a snapshot and put it into a folder."""
    folder = absolute(head, "folder")
    snapshot = head["snapshot"].encode("ascii")
    store = _store.Store(absolute(head, "directory"))
    lock = placing = None
    store.open()
    try:
        with _files.Attempt(store.index, "locking the folder"):
            wanted_lock = _index.lock_for(store, folder)
            wanted_lock.acquire(exclusive=True)
            lock = wanted_lock
        with _files.Attempt(folder, "reading the folder's index"):
            known = _index.Index.load(_index.names_for(store, folder)[0], folder)
            if known is not None and known.is_current(snapshot):
                link.send({"t": "done", "written": 0, "fresh": False, "displaced": []})
                return
        entries = _receive_manifest(link, store, snapshot)
        placing = _folder.Placing(store, folder, known, snapshot, entries, bool(head["sole"]))
        placing.begin()
        contents = {}
        for entry in entries:
            if entry.kind in "fx":
                contents.setdefault(entry.digest, entry)
        receiving = Receiving(link, store, placing, list(contents.values()))
        try:
            while True:
                receiving.round()
                try:
                    placing.finish()
                    break
                except _store.Missing:
                    continue  # what the store had was torn: it is dropped now, ask for it
        finally:
            receiving.close()
        link.send(
            {
                "t": "done",
                "written": placing.written,
                "fresh": placing.fresh,
                "displaced": [[to_text(path), to_text(at)] for path, at in placing.displaced],
            }
        )
    finally:
        try:
            if placing is not None:
                placing.abandon()
        finally:
            if lock is not None:
                lock.release(delete=not os.path.exists(_index.names_for(store, folder)[0]))
            store.close()


def _receive_manifest(link, store, snapshot):
    data = store.manifest(snapshot)
    if data is None:
        link.send({"t": "want"})
        pieces = []
        while True:
            head, body = link.receive()
            pieces.append(body)
            if head["last"]:
                break
        data = b"".join(pieces)
        if hashlib.sha256(data).hexdigest().encode() != snapshot:
            raise Refused("the manifest is not the one of snapshot %s" % to_text(snapshot))
        store.keep_manifest(snapshot, data)
    try:
        return _folder.parse_manifest(data)
    except ValueError as error:
        raise Refused(str(error))


class Receiving:
    """Asks for contents and takes them in, small ones into a pack and, when the folder is new, at once into place."""

    def __init__(self, link, store, placing, contents):
        self.link = link
        self.store = store
        self.placing = placing
        self.contents = contents
        self.incoming = {}
        self.failed = set()
        self.files = _link.Background()
        self.hashes = _link.Background()

    def round(self):
        """Ask for what is missing until all is there. Raises Refused when a file keeps changing under the client."""
        while True:
            wanted = [
                k
                for k, entry in enumerate(self.contents)
                if entry.digest in self.placing.needed and entry.digest not in self.store
            ]
            if not wanted and not self.failed:
                return
            if self.failed:
                names = [to_text(self.contents[k].path) for k in sorted(self.failed)]
                raise Refused({"changed": names})
            self._ask(wanted)
            self._take()
            self.store.finish_pack()

    def _ask(self, wanted):
        parts = []
        for k in wanted:
            entry = self.contents[k]
            if entry.size > _store.SMALL:
                incoming = self.store.receive(entry.digest, entry.size)
                self.incoming[k] = incoming
                if incoming.start:
                    parts.append([k, incoming.start])
        step = _frames.CHUNK // 4
        for at in range(0, len(wanted), step):
            portion = wanted[at : at + step]
            last = at + step >= len(wanted)
            self.link.send(
                {"t": "missing", "parts": parts if last else [], "last": last},
                struct.pack(">%dI" % len(portion), *portion),
            )

    def _take(self):
        while True:
            head, body = self.link.receive()
            kind = head["t"]
            if kind == "small":
                self._take_small(head["k"], head["s"], body)
            elif kind == "large":
                self._take_large(head["k"], head["at"], body)
            elif kind == "sent":
                self.files.wait()
                return
            else:
                raise Refused("unexpected frame %r" % kind)

    def _take_small(self, which, sizes, body):
        at = 0
        good = []
        for k, size in zip(which, sizes):
            data = body[at : at + size]
            at += size
            digest = self.contents[k].digest
            if hashlib.sha256(data).digest() != digest:
                self.failed.add(k)
                continue
            self.store.add_small(digest, data)
            good.append((digest, data))
        if self.placing.fresh:
            self.files.put(self._place, good)

    def _place(self, contents):
        for digest, data in contents:
            self.placing.write_small(digest, data)

    def _take_large(self, k, at, body):
        incoming = self.incoming[k]
        if at != incoming.at or at + len(body) > incoming.size:
            raise Refused("a piece of %r came out of order" % self.contents[k].path)
        incoming.write(body)
        self.hashes.put(incoming.hash.update, body)
        if incoming.at == incoming.size:
            self.hashes.wait()
            del self.incoming[k]
            if not incoming.finish() and not incoming.start:
                self.failed.add(k)
            # One that was continued may be torn in its first part: it is asked for again, from the start.

    def close(self):
        """Keep what arrived of large contents."""
        self.files.close()
        self.hashes.close()
        for incoming in self.incoming.values():
            incoming.close()


# -- sending results --------------------------------------------------------------------------------------------


def serve_fetch(link, head):
    """List what was made or changed in a folder and send what the client wants of it."""
    folder = absolute(head, "folder")
    store = _store.Store(absolute(head, "directory"))
    index_path = _index.names_for(store, folder)[0]
    with _files.Attempt(index_path, "reading the folder's index"):
        index = _index.Index.load(index_path, folder) or _index.Index(folder)
    entries = []
    records = []
    size = 0
    folders = []
    filled = set()
    for path, kind, status in _index.scan(folder):
        state = "m" if status is None else index.state(path, kind, status)
        filled.add(os.path.dirname(path))
        if kind == "d" and state == "m":
            folders.append(path)
        if kind == "d" or state == "b" or (state == "u" and not head["sent"]):
            continue
        if status is None:
            record = b"%s\0u m 0 0\0" % path
        elif kind == "l":
            try:
                target = os.readlink(folder + b"/" + path)
            except OSError:
                continue
            record = b"%s\0l %s 0 0 %s\0" % (path, state.encode(), target)
        else:
            record = b"%s\0%s %s %d %d\0" % (
                path,
                kind.encode(),
                state.encode(),
                status.st_size,
                status.st_mtime_ns,
            )
        entries.append((path, status.st_size if status is not None else 0))
        records.append(record)
        size += len(record)
        if size >= _frames.CHUNK:
            link.send({"t": "list", "last": False}, b"".join(records))
            records = []
            size = 0
    link.send({"t": "list", "last": False}, b"".join(records))
    # Folders that hold something come with what they hold.
    empty = [path for path in folders if path not in filled]
    entries.extend((path, 0) for path in empty)
    for at in range(0, len(empty), 64):
        link.send(
            {"t": "list", "last": False}, b"".join(b"%s\0d m 0 0\0" % path for path in empty[at : at + 64])
        )
    link.send({"t": "list", "last": True})
    wanted = []
    parts = {}
    while True:
        answer, body = link.receive()
        wanted.extend(numbers(body))
        for k, offset, prefix in answer["parts"]:
            parts[k] = (offset, prefix)
        if answer["last"]:
            break
    Sending(link, folder, entries).run(wanted, parts)


class Sending:
    """Reads wanted files and sends them, many small ones to a frame, large ones in pieces."""

    def __init__(self, link, folder, entries):
        self.link = link
        self.folder = folder
        self.entries = entries
        self.which = []
        self.sizes = []
        self.digests = []
        self.data = []
        self.pending = 0

    def run(self, wanted, parts):
        """Send everything wanted, then say so."""
        directory = None
        directory_fd = -1
        for k in wanted:
            path, size = self.entries[k]
            parent, name = os.path.split(path)
            try:
                if parent != directory:
                    if directory_fd >= 0:
                        os.close(directory_fd)
                        directory_fd = -1
                    directory = None
                    directory_fd = os.open(self.folder + b"/" + parent, _files.DIRECTORY_FLAGS)
                    directory = parent
                fd = os.open(name, _files.READ_FLAGS | os.O_NONBLOCK, dir_fd=directory_fd)
                try:
                    if not stat.S_ISREG(os.fstat(fd).st_mode):
                        self.link.send({"t": "gone", "k": k, "why": "it is no file any more"})
                    elif size > _store.SMALL:
                        self.flush()
                        self._large(k, fd, *parts.get(k, (0, "")))
                    else:
                        self._small(k, fd)
                finally:
                    os.close(fd)
            except OSError as error:
                self.link.send({"t": "gone", "k": k, "why": os.strerror(error.errno)})
        if directory_fd >= 0:
            os.close(directory_fd)
        self.flush()
        self.link.send({"t": "done"})

    def _small(self, k, fd):
        data = os.read(fd, _store.SMALL + 1)
        if len(data) > _store.SMALL:
            # It grew since it was listed.
            os.lseek(fd, 0, os.SEEK_SET)
            self.flush()
            self._large(k, fd, 0, "")
            return
        self.which.append(k)
        self.sizes.append(len(data))
        self.digests.append(hashlib.sha256(data).digest())
        self.data.append(data)
        self.pending += len(data)
        if self.pending >= _frames.CHUNK or len(self.which) >= 1024:
            self.flush()

    def flush(self):
        """Send the small files read so far."""
        if self.which:
            self.link.send(
                {"t": "small", "k": self.which, "s": self.sizes}, b"".join(self.digests + self.data)
            )
            self.which, self.sizes, self.digests, self.data, self.pending = [], [], [], [], 0

    def _large(self, k, fd, offset, prefix):
        running = hashlib.sha256()
        at = 0
        while at < offset:
            piece = os.read(fd, min(_files.PIECE, offset - at))
            if not piece:
                break
            running.update(piece)
            at += len(piece)
        if at != offset or (offset and running.hexdigest() != prefix):
            # What the client kept is not the beginning of this file: from the start.
            os.lseek(fd, 0, os.SEEK_SET)
            running = hashlib.sha256()
            at = 0
        while True:
            piece = os.read(fd, _frames.CHUNK)
            running.update(piece)
            end = not piece
            self.link.send(
                {"t": "large", "k": k, "at": at, "end": end, "sha": running.hexdigest() if end else ""}, piece
            )
            at += len(piece)
            if end:
                return


# -- cleaning, and the loop -------------------------------------------------------------------------------------


def serve_clean(link, head):
    """Remove what we made."""
    report = _clean.clean(
        absolute(head, "directory"), absolute(head, "folder"), head["leave"], bool(head["keep_store"])
    )
    link.send(
        {
            "t": "done",
            "removed": report.removed,
            "restored": [to_text(path) for path in report.restored],
            "kept": [[to_text(path), to_text(at)] for path, at in report.kept],
        }
    )


SERVICES = {"send": serve_send, "fetch": serve_fetch, "clean": serve_clean}


def serve(link):
    """Serve conversations until the client is done."""
    while True:
        try:
            head, _body = link.receive()
        except _link.Closed:
            return
        service = SERVICES.get(head.get("t"))
        if service is None:
            continue  # left over from a conversation that failed
        error = None
        try:
            service(link, head)
        except _link.Closed:
            return
        except _files.Trouble as trouble:
            error = {
                "kind": "storage",
                "path": to_text(trouble.path),
                "errno": trouble.code,
                "doing": trouble.doing,
            }
        except Refused as refused:
            detail = refused.args[0]
            if isinstance(detail, dict):
                error = {"kind": "changed", "paths": detail["changed"]}
            else:
                error = {"kind": "refused", "why": detail}
        except Exception as bug:
            error = {"kind": "bug", "why": "%s: %s" % (type(bug).__name__, bug)}
        if error is not None:
            try:
                link.send(dict(error, t="error"))
            except _link.Closed:
                return


def main(argv):
    """Serve the stream whose number is argv[1] on descriptors 0 and 1."""
    gc.disable()  # nothing here makes cycles, and a large listing would be walked again and again
    serve(_link.Link(int(argv[1]), 0, 1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
