"""Takes away from a host what we made there: an execution's results, its folder, the store when nothing needs it.

Its job: `clean` with what a person asked to leave. Files that were in a folder before us survive every choice, and
what we had moved aside returns to its place. Standard library only, Python 3.6 and newer.
"""

import os

try:
    from . import files as _files
    from . import folder as _folder
    from . import index as _index
    from . import store as _store
except ImportError:
    import files as _files
    import folder as _folder
    import index as _index
    import store as _store

Attempt = _files.Attempt


class Cleaned:
    """What `clean` did: how many entries it removed, which came back, which could not and lie where."""

    def __init__(self):
        self.removed = 0
        self.restored = []
        self.kept = []


def clean(directory, folder, leave, keep_store):
    """Remove what we made in a folder, as far as `leave` ("nothing", "code", "everything") says.

    Args:
        keep_store: Leave contents in the store that no folder needs now: more executions of that code are waiting.

    Returns:
        Cleaned. Raises Trouble; cleaning again continues where it stopped.
    """
    report = Cleaned()
    store = _store.Store(directory)
    if leave == "everything" or not store.exists():
        return report
    lock = _index.lock_for(store, folder)
    index_path = _index.names_for(store, folder)[0]
    with Attempt(index_path, "cleaning"):
        try:
            lock.acquire(exclusive=True)
        except FileNotFoundError:
            return report
        gone = False
        try:
            index = _index.Index.load(index_path, folder)
            if index is not None and leave == "code":
                _remove_results(store, index, report)
                _restore_code(store, index, folder)
            elif index is not None:
                _remove_all(index, report)
                os.unlink(index_path)
            gone = not os.path.exists(index_path)
        finally:
            lock.release(delete=gone)
    if not keep_store:
        store.collect(lambda: live_manifests(store))
    return report


def live_manifests(store):
    """Return {snapshot: [digests]} of every folder that has an index."""
    live = {}
    for name in os.listdir(store.index):
        if name.endswith((b".lock", b".tmp")):
            continue
        index = _index.Index.load(store.index + b"/" + name, b"")
        snapshot = index.snapshot if index is not None else b"?"
        if snapshot not in live:
            data = store.manifest(snapshot)
            live[snapshot] = (
                [entry.digest for entry in _folder.parse_manifest(data)] if data is not None else []
            )
    return live


def _remove_all(index, report):
    folder = index.folder
    if not os.path.isdir(folder):
        pass
    elif index.made:
        report.removed = sum(1 for _ in _index.scan(folder))
        _files.remove_tree(folder)
    else:
        _remove(index, report, keep="pq")
    for path, at, role in index.displaced:
        if role == "e":
            _files.remove_tree(at)
        elif os.path.lexists(folder + b"/" + path):
            report.kept.append((path, at))
        elif os.path.lexists(at):
            _files.make_directories(os.path.dirname(folder + b"/" + path))
            os.rename(at, folder + b"/" + path)
            report.restored.append(path)
        _files.remove_empty(os.path.dirname(at))
    if not index.made:
        _files.remove_empty(folder + b"/.orchestra")
    for each in reversed(index.made_directories):
        if not _files.remove_empty(each):
            break


def _remove_results(store, index, report):
    store.open()
    try:
        _remove(index, report, keep="opq", changed=lambda digest: bytes.fromhex(digest.decode()) in store)
    finally:
        store.close()


def _remove(index, report, keep, changed=None):
    """Delete entries unless their role is in `keep`; of ours also those `changed` agrees to when they were changed."""
    folders = []
    for path, kind, status in list(_index.scan(index.folder)):
        role = index.role(path) or "m"
        if role in keep:
            if role != "o" or changed is None or kind == "d" or status is None:
                continue
            if index.state(path, kind, status) != "c" or not changed(index.digest(path)):
                continue
        if kind == "d":
            folders.append(path)
        elif kind != "u":
            os.unlink(index.folder + b"/" + path)
            report.removed += 1
    for path in reversed(folders):
        if _files.remove_empty(index.folder + b"/" + path):
            report.removed += 1


def _restore_code(store, index, folder):
    store.open()
    try:
        data = store.manifest(index.snapshot)
        if data is None or not os.path.isdir(folder):
            return
        placing = _folder.Placing(store, folder, index, index.snapshot, _folder.parse_manifest(data), False)
        for digest in list(placing.needed):
            if digest not in store:
                del placing.needed[digest]
        try:
            placing.begin()
            placing.finish()
        except _store.Missing:
            pass  # torn in the store: the next send brings it again
        finally:
            placing.abandon()
    finally:
        store.close()
