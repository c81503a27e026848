"""HTTP/1 request heads: where a head ends, and the meaning of its request line (RFC 9112). The other lines are in `fields`.

Pure: bytes in, values out. The raw bytes are checked here, before a parser sees them: parsers differ (each of llhttp and h11
accepts heads that the other refuses), and with both the response must be the same. A parser only splits lines that have been
found valid; if it refuses one nevertheless, the response is 400.

Two things repeat so often that they are kept: a connection keeps its last head, as clients mostly send the same fields again
(`HeadReader`), and the process keeps recent request lines (`TARGETS`).
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from forkserve.http.message.errors import RequestError
from forkserve.http.message.fields import TOKEN, Fields, LineReader, ParseLines

if TYPE_CHECKING:
    from forkserve.config.settings import Settings

_TOKEN = re.compile(TOKEN + rb"++")
_TARGET = re.compile(rb"[\x21\x22\x24-\x7e]++")  # visible ASCII without "#"
_ABSOLUTE = re.compile(rb"(https?|wss?)://([^/?]*)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)")

VERSIONS = {b"HTTP/1.1": "1.1", b"HTTP/1.0": "1.0"}
LONGEST_METHOD = 32
# The methods that llhttp knows. With both parsers the response to others is 501: the installed parser must not matter to apps.
METHODS = frozenset(
    b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND "
    b"UNBIND ACL REPORT MKACTIVITY CHECKOUT "
    b"MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK UNLINK QUERY".split()
)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """How much of a request is accepted.

    Attributes:
        line: Bytes of the request line.
        fields: The number of header fields.
        head: Bytes of the whole head.
        body: Bytes of the body.
        field: Bytes of a header field; 0 means that only `head` limits it.
    """

    line: int
    fields: int
    head: int
    body: int
    field: int = 0

    @classmethod
    def of(cls, settings: Settings) -> RequestLimits:
        """Return the limits that the settings give."""
        return cls(
            line=settings.limit_request_line,
            fields=settings.limit_request_fields,
            head=settings.limit_request_head,
            body=settings.limit_request_body or sys.maxsize,
            field=settings.limit_request_field_size,
        )


class Target:
    """A request line: method and target. Shared by all requests with the same line; never changed.

    Attributes:
        method: The method.
        line: Method and target as they were sent.
        path: The path, percent-decoded.
        raw_path: The path as it was sent.
        query: The query without the question mark.
        authority: The authority; None unless the target has the absolute form.
        environ: The keys that the request line contributes to a WSGI environ.
        scope: The keys that it contributes to an ASGI scope.
    """

    __slots__ = ("authority", "environ", "line", "method", "path", "query", "raw_path", "scope")

    def __init__(self, method: bytes, raw: bytes, path_and_query: bytes, authority: bytes | None) -> None:
        self.method = method.decode("ascii")
        self.line = method + b" " + raw
        self.authority = authority
        self.raw_path, _, self.query = path_and_query.partition(b"?")
        self.path = unquote_to_bytes(self.raw_path) if b"%" in self.raw_path else self.raw_path
        uri = raw.decode("ascii")
        # PEP 3333: a path begins with a slash or is empty; RAW_URI shows that the request is about the whole server.
        path = b"" if raw == b"*" else self.path
        # PEP 3333: environ strings are bytes decoded as latin-1.
        self.environ = {
            "REQUEST_METHOD": self.method,
            "PATH_INFO": path.decode("latin-1"),
            "QUERY_STRING": self.query.decode("ascii"),
            "REQUEST_URI": uri,
            "RAW_URI": uri,
        }
        # ASGI: the path is text, decoded as UTF-8.
        self.scope = {
            "method": self.method,
            "path": self.path.decode("utf-8", "replace"),
            "raw_path": self.raw_path,
            "query_string": self.query,
        }


TARGETS: dict[bytes, Target] = {}
_TARGETS_KEPT = 1024
_LONGEST_KEPT = 256


class HeadReader:
    """Reads the heads of one connection: finds the end of each, checks it, and keeps the last one.

    Args:
        limits: How much is accepted.
        parse: Splits header lines.

    Attributes:
        buffer: The part of a head that has come.
    """

    __slots__ = ("_fields", "_limits", "_lines", "_scanned", "_section", "_tail", "buffer")

    def __init__(self, limits: RequestLimits, parse: ParseLines) -> None:
        self._limits = limits
        self._section = LineReader(parse)
        self._tail = b""
        self._fields: Fields | None = None
        self.buffer = bytearray()
        self._scanned = 0
        self._lines = 0

    def feed(self, data: bytes) -> tuple[bytes | None, bytes]:
        """Take bytes of a head that comes in pieces; return the whole head, or None, and the bytes behind it.

        Every byte is scanned once, however small the pieces are. A head that is too large, or contains a bare CR or LF, is
        refused at once: its end may never come.

        Raises:
            RequestError: 400, 414 or 431.
        """
        buffer = self.buffer
        buffer += data
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if end >= 0:
            head, rest = bytes(buffer[: end + 4]), bytes(buffer[end + 4 :])
            buffer.clear()
            self._scanned = self._lines = 0
            return head, rest
        limits, start = self._limits, max(0, self._scanned - 1)
        self._lines += buffer.count(b"\n", self._scanned)
        self._scanned = len(buffer)
        # A CR at the very end may yet get its LF.
        if _BARE.search(buffer, start, len(buffer) - 1 if buffer.endswith(b"\r") else len(buffer)):
            raise RequestError(400, "a line does not end in CR LF")
        leading = buffer.startswith(b"\r\n")
        if self._lines > leading + 1 + limits.fields:
            raise RequestError(431, "too many header fields")
        if self._lines <= leading and len(buffer) - buffer.endswith(b"\r") > limits.line + 2 * leading:
            raise RequestError(414, "the request line is too long")
        if len(buffer) > limits.head:
            raise RequestError(431, "the request head is too large")
        return None, b""

    def read(self, head: bytes) -> tuple[Target, Fields]:
        """Return the request line and the fields of a whole head, which ends with its empty line.

        Raises:
            RequestError: The head is invalid or larger than the limits, or asks for something that is not supported.
        """
        # Many clients send everything from the version on again to the letter. The rest in front of it is the request line, and
        # nothing more, if that is a known one.
        if self._fields is not None and head.endswith(self._tail):
            target = TARGETS.get(head[: -len(self._tail)])
            if target is not None:
                return target, self._fields
        line_end = head.find(b"\r\n")
        tail = head[line_end - 8 :]
        if line_end == 0:  # RFC 9112 2.2: one empty line before the request line is skipped
            head = head[2:]
            line_end = head.find(b"\r\n")
            tail = head[line_end - 8 :]
            if line_end <= 0:
                raise RequestError(400, "more than one empty line before the request line")
        if line_end > self._limits.line:
            raise RequestError(414, "the request line is too long")
        version = VERSIONS.get(tail[:8])
        start = head[: line_end - 8]
        target = TARGETS.get(start)
        if version is None or target is None:
            version, target = _read_request_line(head[:line_end])
        if tail == self._tail and self._fields is not None and target.authority is None:
            return target, self._fields
        self._check_size(head)
        fields = Fields(version, self._section.read(head[line_end + 2 : -4]))
        if target.authority is not None:
            fields = fields.with_authority(target.authority)
        if fields.refusal is not None:
            raise fields.refusal
        self._tail, self._fields = tail, fields if target.authority is None else None
        return target, fields

    def _check_size(self, head: bytes) -> None:
        limits = self._limits
        if len(head) > limits.head:
            raise RequestError(431, "the request head is too large")
        if head.count(b"\n") - 2 > limits.fields:
            raise RequestError(431, "too many header fields")
        if limits.field and max(map(len, head.split(b"\r\n")[1:])) > limits.field:
            raise RequestError(431, "a header field is too large")


def _read_request_line(line: bytes) -> tuple[str, Target]:
    if _BARE.search(line):
        raise RequestError(400, "a line does not end in CR LF")
    parts = line.split(b" ")
    version = VERSIONS.get(parts[-1])
    if len(parts) != 3 or version is None:
        if len(parts) == 3 and parts[2].startswith(b"HTTP/"):
            raise RequestError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        raise RequestError(400, "the request line is not METHOD TARGET VERSION")
    return version, read_target(line[:-8])


def read_target(start: bytes) -> Target:
    """Split ``METHOD TARGET`` and the blank behind them (RFC 9112 section 3).

    Raises:
        RequestError: 400: a part is malformed, or the form of the target does not fit the method. 501: an unsupported method.
    """
    method, _, raw = start[:-1].partition(b" ")
    if len(method) > LONGEST_METHOD or _TOKEN.fullmatch(method) is None:
        raise RequestError(400, "the method is malformed")
    if _TARGET.fullmatch(raw) is None:
        raise RequestError(400, "the request target is malformed")
    if method == b"CONNECT":
        raise RequestError(501, "this server is no proxy: CONNECT is not supported")
    authority = None
    path = raw
    if raw == b"*":
        if method != b"OPTIONS":
            raise RequestError(400, "the target * goes with OPTIONS only")
    elif not raw.startswith(b"/"):
        form = _ABSOLUTE.fullmatch(raw)
        if form is None or not form[2]:
            raise RequestError(400, "the request target is malformed")
        authority = form[2]
        path = (form[3] or b"/") + (form[4] or b"")
    if method not in METHODS:
        raise RequestError(501, "this method is not supported")
    target = Target(method, raw, path, authority)
    if len(start) <= _LONGEST_KEPT and authority is None:  # an authority must be compared with the Host field each time
        if len(TARGETS) >= _TARGETS_KEPT:
            TARGETS.clear()
        TARGETS[start] = target
    return target
