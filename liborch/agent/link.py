"""A worker's line to its client: frames over two blocking descriptors, and calls made beside reading them.

Its job: `Link`, which keeps within the window of each direction, and `Background`, a thread that makes calls in order.
What frames mean is `worker.py`'s. Standard library only, Python 3.6 and newer.
"""

import os
import queue
import threading

try:
    from . import files as _files
    from . import frames as _frames
except ImportError:
    import files as _files
    import frames as _frames

#: Credit is handed back in portions of this many bytes.
PORTION = _frames.WINDOW // 4


class Closed(Exception):
    """The client is gone, or said that it is done."""


class Link:
    """Frames in and out over two blocking descriptors, within the window of each direction."""

    def __init__(self, stream, reading, writing):
        self.stream = stream
        self.reading = reading
        self.writing = writing
        self._window = _frames.Window()
        self._change = threading.Condition()
        self._out = threading.Lock()
        self._closed = False
        self._frames = queue.Queue()
        self._owed = 0
        reader = threading.Thread(target=self._read)
        reader.daemon = True
        reader.start()

    def _read(self):
        # Not frames.Decoder: read to measure, each body is copied once on its way in.
        source = os.fdopen(self.reading, "rb", PORTION, closefd=False)
        header = _frames.HEADER
        try:
            while True:
                raw = source.read(header.size)
                if len(raw) < header.size:
                    break
                version, _stream, head_size, body_size = header.unpack(raw)
                if version != _frames.VERSION or head_size > _frames.MAX_HEAD or body_size > _frames.MAX_BODY:
                    break
                head = _frames.parse_head(source.read(head_size))
                body = source.read(body_size)
                if len(body) < body_size:
                    break
                if head.get("t") == "credit":
                    with self._change:
                        self._window.credit(int(head["n"]))
                        self._change.notify()
                else:
                    self._frames.put((head, body, header.size + head_size + body_size))
        except (OSError, _frames.FrameError, KeyError, ValueError):
            pass
        with self._change:
            self._closed = True
            self._change.notify()
        self._frames.put(None)

    def receive(self):
        """Return (head, body). Raises Closed."""
        item = self._frames.get()
        if item is None or item[0].get("t") == "close":
            self._frames.put(None)
            raise Closed()
        head, body, length = item
        self._owed += length
        if self._owed >= PORTION:
            self._write(_frames.encode(self.stream, {"t": "credit", "n": self._owed}))
            self._owed = 0
        return head, body

    def send(self, head, body=b""):
        """Send one frame, waiting for window. Raises Closed."""
        data = _frames.encode(self.stream, head, body)
        with self._change:
            while self._window.left <= 0 and not self._closed:
                self._change.wait()
            if self._closed:
                raise Closed()
            self._window.spend(len(data))
        self._write(data)

    def _write(self, data):
        with self._out:
            try:
                _files.write_all(self.writing, data)
            except OSError:
                raise Closed()


class Background:
    """Makes calls in a thread, in order: writing files and hashing both let other threads run meanwhile."""

    def __init__(self):
        self._queue = queue.Queue(maxsize=8)
        self._trouble = None
        self._thread = None

    def put(self, call, *arguments):
        """Have a call made. Raises what went wrong with an earlier one."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run)
            self._thread.daemon = True
            self._thread.start()
        if self._trouble is not None:
            raise self._trouble
        self._queue.put((call, arguments))

    def _run(self):
        while True:
            call, arguments = self._queue.get()
            if call is not None and self._trouble is None:
                try:
                    call(*arguments)
                except Exception as trouble:
                    self._trouble = trouble
            self._queue.task_done()
            if call is None:
                return

    def wait(self):
        """Wait until all calls are made. Raises what went wrong."""
        self._queue.join()
        if self._trouble is not None:
            raise self._trouble

    def close(self):
        """Make the calls that were put, then end the thread."""
        if self._thread is not None:
            self._queue.put((None, ()))
            self._thread.join()
            self._thread = None
