"""Wire frames between a client and the agent: sans-IO, standard library only, Python 3.6 and newer.

A frame is a fixed header, a JSON head and raw bytes::

    version u8 | stream u32 | head length u32 | body length u32 | head (JSON object, ASCII) | body

Stream 0 is the control stream (hand over, cancel, events...). Every other stream is opened by the client and
carries one conversation, a transfer or the output of one execution; the agent's talker forwards its frames
unread to the process that serves it, so bulk data never passes through the part that decides.

Flow control: on each stream but 0, a side may have at most ``WINDOW`` bytes of frames under way. The receiver hands
back credit as it consumes (``{"t": "credit", "n": bytes}``, itself free of charge). `Window` keeps the count.

Both sides use this file: the client imports it, the packed agent carries a copy.
"""

import json
import struct

#: Version of the frame layout; a frame of another version is refused.
VERSION = 1
#: Largest JSON head, in bytes.
MAX_HEAD = 4 << 20
#: Largest body, in bytes. Senders cut bulk data into pieces of CHUNK.
MAX_BODY = 1 << 20
#: How much bulk data goes into one frame, in bytes: small enough that control frames are never kept waiting long.
CHUNK = 256 << 10
#: Uncredited bytes allowed on one stream and direction.
WINDOW = 4 << 20

HEADER = struct.Struct(">BIII")


class FrameError(Exception):
    """The bytes are not a frame of ours: wrong version, over a limit, or no JSON object."""


def encode(stream, head, body=b""):
    """Return one frame as bytes. Raises FrameError when a limit is passed."""
    packed = json.dumps(head, separators=(",", ":")).encode("ascii")
    if len(packed) > MAX_HEAD or len(body) > MAX_BODY:
        raise FrameError("frame too large: head %d bytes, body %d bytes" % (len(packed), len(body)))
    return HEADER.pack(VERSION, stream, len(packed), len(body)) + packed + body


def parse_head(raw):
    """Return the JSON object in a frame's head. Raises FrameError."""
    try:
        head = json.loads(raw.decode("ascii"))
    except ValueError as error:
        raise FrameError("frame head is no JSON: %s" % error)
    if not isinstance(head, dict):
        raise FrameError("frame head is no JSON object")
    return head


class Decoder:
    """Cuts a byte stream into frames, whatever the pieces it arrives in."""

    def __init__(self):
        self._buffer = bytearray()

    def feed(self, data):
        """Take in bytes; return the list of whole frames as (stream, raw head, body, raw frame length)."""
        buffer = self._buffer
        buffer += data
        frames = []
        at = 0
        size = len(buffer)
        while size - at >= HEADER.size:
            version, stream, head_size, body_size = HEADER.unpack_from(buffer, at)
            if version != VERSION:
                raise FrameError("frame version %d, expected %d" % (version, VERSION))
            if head_size > MAX_HEAD or body_size > MAX_BODY:
                raise FrameError("frame too large: head %d bytes, body %d bytes" % (head_size, body_size))
            end = at + HEADER.size + head_size + body_size
            if end > size:
                break
            middle = at + HEADER.size + head_size
            # Through a view: a slice of the buffer itself would be a copy to copy from.
            with memoryview(buffer) as view:
                frames.append(
                    (stream, bytes(view[at + HEADER.size : middle]), bytes(view[middle:end]), end - at)
                )
            at = end
        if at:
            del buffer[:at]
        return frames

    @property
    def pending(self):
        """Bytes of an incomplete frame held back."""
        return len(self._buffer)


class Window:
    """How much may still be sent on one stream in one direction."""

    def __init__(self, size=WINDOW):
        self.left = size

    def spend(self, count):
        """Count bytes as under way; the caller waits while `left` is not positive."""
        self.left -= count

    def credit(self, count):
        """Take back what the receiver consumed."""
        self.left += count
