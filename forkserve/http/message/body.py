"""Request bodies: which of the client's bytes belong to this message (RFC 9112 sections 6 and 7). Pure."""

import re

from forkserve.http.message.errors import RequestError
from forkserve.http.message.fields import TOKEN
from forkserve.http.message.http1 import RequestLimits

_SIZE = rb"([0-9A-Fa-f]{1,16})"
_PLAIN = rb"[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]*+"
_QUOTED = rb'"' + _PLAIN + rb"(?:\\[\t\x20-\x7e\x80-\xff]" + _PLAIN + rb')*"'
_BLANK = rb"[\t\x20]*+"
# No group is possessive: before Python 3.11.5 those that contain alternatives match wrongly. Each part begins with a character
# that the part before it cannot contain, so the time is linear.
# RFC 9112 7.1.1. Bad whitespace (BWS) must be accepted, but only in front of a delimiter or a value.
_CHUNK_LINE = re.compile(
    _SIZE
    + rb"((?:" + _BLANK + rb";" + _BLANK + TOKEN + rb"++"
    + rb"(?:" + _BLANK + rb"=" + _BLANK + rb"(?:" + TOKEN + rb"++|" + _QUOTED + rb"))?)*)"
)  # fmt: skip
_TRAILER = re.compile(TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+")
_LONGEST_CHUNK_LINE = 4096
_EXTENSIONS_IN_ALL = 65536
LINES = 32
"""Lines of a chunked body that are read at a time: that takes little time, however small the chunks are."""


class LengthBody:
    """A body of a known length.

    Attributes:
        left: The number of bytes that are still to come.
        done: Whether the last byte has been read.
    """

    __slots__ = ("done", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = not length

    def feed(self, data: bytes, start: int) -> tuple[bytes, int]:
        """Return the bytes of the body in ``data`` from ``start`` on, and where they end."""
        size = len(data)
        end = min(size, start + self.left)
        self.left -= end - start
        self.done = not self.left
        return (data if end - start == size else data[start:end]), end


class ChunkedBody:
    """A chunked body. Strict: anything that two servers could read in two ways is refused.

    Chunk extensions are ignored but counted. Trailers are checked, counted and dropped: they are never merged into
    the headers that the application already has (RFC 9110 6.5.1).

    Args:
        limits: The limits of body and trailers.
    """

    __slots__ = (
        "_extensions",
        "_held",
        "_in_trailers",
        "_left",
        "_limits",
        "_total",
        "_trailer_bytes",
        "_trailer_lines",
        "done",
    )

    left = None

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._held = b""  # part of a line, or of the CR LF behind a chunk
        self._left = -1  # bytes of the current chunk to come, with the two of its CR LF; -1: its size line comes first
        self._in_trailers = False
        self._extensions = self._total = self._trailer_bytes = self._trailer_lines = 0
        self.done = False

    def feed(self, data: bytes, start: int) -> tuple[bytes, int]:
        """Return the decoded bytes in ``data`` from ``start`` on, and the position up to which ``data`` has been read.

        If ``data`` contains more than `LINES` lines, the position is before its end though the body continues: call this again.

        Raises:
            RequestError: 400, 413 or 431.
        """
        if self._held:
            data = self._held + data[start:]
            offset, position = len(self._held) - start, 0
            self._held = b""
        else:
            offset, position = 0, start
        pieces: list[bytes] = []
        lines = 0
        while position < len(data) and not self.done:
            if self._left > 0:
                position = self._read_chunk(data, position, pieces)
                continue
            if lines == LINES:
                break
            lines += 1
            end = data.find(b"\n", position)
            line_end = len(data) if end < 0 else end
            if line_end - position > _LONGEST_CHUNK_LINE:
                raise RequestError(431 if self._in_trailers else 400, "a line of the chunked body is too long")
            if b"\r" in data[position : line_end - 1]:
                raise RequestError(400, "the chunked body is malformed")
            if end < 0:
                self._held = data[position:]
                position = len(data)
                break
            if data[end - 1 : end] != b"\r" or end == position:
                raise RequestError(400, "a line of the chunked body does not end in CR LF")
            line = data[position : end - 1]
            position = end + 1
            if self._in_trailers:
                self._read_trailer(line)
            else:
                self._read_size(line)
        return b"".join(pieces), position - offset

    def _read_chunk(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        end = min(len(data), position + self._left)
        content_end = min(end, position + self._left - 2)
        if content_end > position:
            pieces.append(data[position:content_end])
        # The last two bytes of what is left are the CR LF behind the chunk, which may come apart.
        for at in range(max(position, position + self._left - 2), end):
            if data[at] != (13 if position + self._left - at == 2 else 10):
                raise RequestError(400, "a chunk is not followed by CR LF")
        self._left -= end - position
        if not self._left:
            self._left = -1
        return end

    def _read_size(self, line: bytes) -> None:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise RequestError(400, "the size of a chunk is malformed")
        self._extensions += len(match[2])
        if self._extensions > _EXTENSIONS_IN_ALL:
            raise RequestError(400, "too many chunk extensions")
        size = int(match[1], 16)
        self._total += size
        if self._total > self._limits.body:
            raise RequestError(413, "the request body is too large")
        if size:
            self._left = size + 2
        else:
            self._in_trailers = True

    def _read_trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._trailer_lines += 1
        self._trailer_bytes += len(line) + 2
        if self._trailer_lines > self._limits.fields or self._trailer_bytes > self._limits.head:
            raise RequestError(431, "too many trailer fields")
        if _TRAILER.fullmatch(line) is None:
            raise RequestError(400, "a trailer field is malformed")
