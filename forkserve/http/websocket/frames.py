"""The frames of a WebSocket client (RFC 6455 5, RFC 7692 7), read step by step. Pure.

The websockets library's reader takes all frames that have come at once, holds each whole before it unmasks and inflates it, and
keeps feeding a decompressor after the end of its stream. So a client could decide how long the loop stands still and how much
memory is used. Here a step reads at most one frame and inflates at most `STEP` bytes; the caller decides how many steps it takes.
A message needs one buffer, whatever the number of its fragments.
"""

from __future__ import annotations

import zlib
from codecs import getincrementaldecoder
from io import BytesIO, StringIO
from math import inf
from typing import TYPE_CHECKING, Any

try:
    from websockets.speedups import apply_mask
except ImportError:  # built without its C part
    from websockets.utils import apply_mask

if TYPE_CHECKING:
    from collections.abc import Callable

    from websockets.extensions.permessage_deflate import PerMessageDeflate

STEP = 1 << 13
"""Bytes that one step inflates, and bytes that come out of it."""
FRAGMENT = 64
"""Bytes that a fragment counts at least against the limit of its message: an empty one takes memory, too."""
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_OPCODES = frozenset((CONT, TEXT, BINARY, CLOSE, PING, PONG))
_WHOLE = frozenset((0x80 | TEXT, 0x80 | BINARY))
_TAIL = b"\0\0\xff\xff"  # RFC 7692 7.2.2: what the sender has left out
_utf8 = getincrementaldecoder("utf-8")

Event = tuple[int, bytes | str]
"""Opcode and payload: a whole message (TEXT, BINARY), a PING or a PONG. For CLOSE the payload is the masked frame itself."""


class FrameError(Exception):
    """The client has broken the protocol, or a limit.

    Args:
        code: The close code (RFC 6455 7.4.1).
        reason: The close reason.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class FrameReader:
    """Reads what one client sends: `feed` it, then call `step` until it is ``hungry``.

    Args:
        limit: Bytes that a message may have, inflated; 0 for any number.
        deflate: The extension, if it has been agreed on.
    """

    __slots__ = (
        "_added",
        "_at",
        "_data",
        "_decode",
        "_deflate",
        "_deflated",
        "_fin",
        "_in_frame",
        "_inflate",
        "_inflating",
        "_kind",
        "_left",
        "_limit",
        "_mask",
        "_pieces",
        "_size",
        "hungry",
    )  # fmt: skip

    def __init__(self, limit: int, deflate: PerMessageDeflate | None) -> None:
        self.hungry = True  # nothing can be done before more bytes come
        self._limit = limit or inf
        self._deflate = deflate
        self._data = b""
        self._at = 0  # what lies before it has been read
        # The data frame under way
        self._in_frame = False
        self._fin = False
        self._mask = b""
        self._left = 0  # bytes of payload that are missing
        self._added = 0  # bytes that the frame has added to the message
        self._deflated = b""
        self._inflating = False  # the decompressor holds more output
        # The message under way
        self._kind = 0
        self._size = 0  # what counts against the limit
        self._inflate: Any = None  # its decompressor, if it is compressed
        self._decode: Any = None  # decodes it, if it is text
        self._pieces: Any = None  # BytesIO or StringIO

    def feed(self, data: bytes) -> None:
        """Add bytes from the client."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0
        self.hungry = False

    def whole_message(self, data: bytes) -> bytes | str | None:
        """Read the usual: a message that is a single frame, uncompressed, at most 65535 bytes long, and has come in one piece.

        Args:
            data: Bytes from the client.

        Returns:
            The message, or None for anything else: then nothing has been read, and the bytes are for `feed`.
        """
        size = len(data)
        if self._data or self._kind or size < 6:
            return None
        second = data[1]
        if second == size + 122 and size < 132:  # the mask bit, and the payload's size in 7 bits
            start = 6
        elif second == 0xFE and int.from_bytes(data[2:4], "big") == size - 8:
            start = 8
        else:
            return None
        first = data[0]
        if first not in _WHOLE or size - start > self._limit:
            return None
        payload = apply_mask(data[start:], data[start - 4 : start])
        if first == 0x80 | BINARY:
            return payload
        try:
            return payload.decode()
        except UnicodeDecodeError:
            return None

    def step(self) -> Event | None:
        """Do a bounded piece of work: read a frame, or a part of one.

        Returns:
            The message or control frame that is complete now, or None.

        Raises:
            FrameError: No more can be read from this client.
        """
        event = self._step()
        if self._at == len(self._data):
            self._data, self._at = b"", 0
            self.hungry = not self._inflating
        return event

    def _step(self) -> Event | None:
        if not self._in_frame:
            event = self._read_head()
            if not self._in_frame:
                return event
        if self._inflating:
            return self._add(self._inflate_more())
        piece = self._data[self._at : self._at + (self._left if self._inflate is None else min(self._left, STEP))]
        if self._left and not piece:
            self.hungry = True
            return None
        self._at += len(piece)
        self._left -= len(piece)
        data = apply_mask(piece, self._mask)
        if self._left and (turn := len(piece) & 3):
            self._mask = self._mask[turn:] + self._mask[:turn]
        if self._inflate is None:
            return self._add(data)
        self._deflated = data + _TAIL if self._fin and not self._left else data
        return self._add(self._inflate_more())

    def _read_head(self) -> Event | None:
        """Begin a data frame. A control frame, or a whole uncompressed message in one frame, is read at once."""
        data, at = self._data, self._at
        have = len(data) - at
        if have >= 2:
            first, second = data[at], data[at + 1]
            opcode, size = first & 15, second & 127
            if first not in _WHOLE or second < 0x80 or self._kind:
                self._check_head(first, second, opcode, size)
            start = at + (6 if size < 126 else 8 if size == 126 else 14)
            if start <= len(data):
                if size > 125:
                    size = int.from_bytes(data[at + 2 : start - 4], "big")
                if opcode < CLOSE:
                    return self._begin(first, opcode, start, size)
                if start + size <= len(data):
                    self._at = end = start + size
                    return opcode, data[at:end] if opcode == CLOSE else apply_mask(data[start:end], data[start - 4 : start])
        self.hungry = True
        return None

    def _check_head(self, first: int, second: int, opcode: int, size: int) -> None:
        """Check the first two bytes of a frame.

        Raises:
            FrameError: 1002: they are invalid.
        """
        reserved = first & 0x70
        if reserved == 0x40 and self._deflate is not None and opcode in (TEXT, BINARY):
            reserved = 0
        if reserved:
            why = "reserved bits must be 0"
        elif opcode not in _OPCODES:
            why = "invalid opcode"
        elif not second & 0x80:
            why = "incorrect masking"
        elif opcode >= CLOSE and size > 125:
            why = "control frame too long"
        elif opcode >= CLOSE and first < 0x80:
            why = "fragmented control frame"
        elif opcode < CLOSE and (opcode == CONT) != bool(self._kind):
            why = "expected a continuation frame" if self._kind else "unexpected continuation frame"
        else:
            return
        raise FrameError(1002, why)

    def _begin(self, first: int, opcode: int, start: int, size: int) -> Event | None:
        if size > self._limit - self._size:
            raise FrameError(1009, "the message is too big")
        data = self._data
        self._mask = data[start - 4 : start]
        if first == 0x80 | opcode and opcode and start + size <= len(data):
            self._at = start + size
            payload = apply_mask(data[start : self._at], self._mask)
            return opcode, payload if opcode == BINARY else _decoded(payload.decode)
        if opcode:
            self._kind = opcode
            self._decode = _utf8().decode if opcode == TEXT else None
            self._pieces = BytesIO() if opcode == BINARY else StringIO()
            self._inflate = self._decompressor() if first & 0x40 else None
        self._in_frame = True
        self._fin = first >= 0x80
        self._left = size
        self._added = 0
        self._at = start
        return None

    def _decompressor(self, *, fresh: bool = False) -> Any:
        deflate = self._deflate
        assert deflate is not None
        if fresh or deflate.remote_no_context_takeover:
            deflate.decoder = zlib.decompressobj(wbits=-deflate.remote_max_window_bits)
        return deflate.decoder

    def _inflate_more(self) -> bytes:
        inflate = self._inflate
        try:
            out: bytes = inflate.decompress(self._deflated, STEP)
        except zlib.error as error:
            raise FrameError(1002, "decompression failed") from error
        self._deflated = inflate.unconsumed_tail
        if inflate.eof:
            # RFC 7692 7.2.3.4 allows it. Bytes behind the end are a new stream, which this decompressor would collect.
            self._deflated = inflate.unused_data
            self._inflate = self._decompressor(fresh=True)
        self._inflating = bool(self._deflated) or len(out) == STEP
        return out

    def _add(self, data: bytes) -> Event | None:
        """Add to the message; return it if it is complete."""
        self._size += len(data)
        self._added += len(data)
        if self._size > self._limit:
            raise FrameError(1009, "the message is too big")
        ends = not (self._left or self._inflating)
        last = ends and self._fin
        self._pieces.write(data if self._decode is None else _decoded(self._decode, data, last))
        if not ends:
            return None
        self._in_frame = False
        if not last:
            self._size += max(0, FRAGMENT - self._added)
            return None
        event = self._kind, self._pieces.getvalue()
        self._kind = self._size = 0
        self._pieces = self._decode = self._inflate = None
        return event


def message_frame(opcode: int, payload: bytes) -> bytes:
    """Return an uncompressed message of the server as one frame.

    Args:
        opcode: TEXT or BINARY.
        payload: The message; text is UTF-8.
    """
    first, size = 0x80 | opcode, len(payload)
    if size < 126:
        return (first << 8 | size).to_bytes(2, "big") + payload
    if size < 1 << 16:
        return (first << 24 | 126 << 16 | size).to_bytes(4, "big") + payload
    return (first << 72 | 127 << 64 | size).to_bytes(10, "big") + payload


def _decoded(decode: Callable[..., str], *arguments: object) -> str:
    try:
        return decode(*arguments)
    except UnicodeDecodeError as error:
        raise FrameError(1007, "invalid UTF-8") from error
