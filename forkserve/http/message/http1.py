"""HTTP/1 request heads: where a head ends, and the meaning of its request line (RFC 9112). The other lines are in `fields`.

Pure: bytes in, values out. The reader in this module is the judge: every head that is refused is refused here, so status and
message are the same whichever reader is chosen (`readers`).
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from forkserve.http.message.errors import RequestError
from forkserve.http.message.fields import TOKEN, Fields, split_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.config.settings import Settings

    ReadHead = Callable[[bytes], tuple["Target", Fields]]
    ReadOrdinary = Callable[[bytes], tuple["Target", Fields] | None]

_TOKEN = re.compile(TOKEN + rb"++")
_ABSOLUTE = re.compile(rb"(https?|wss?)://([^/?]*)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_IN_TARGETS = bytes(set(range(0x21, 0x7F)) - {ord("#")})  # visible ASCII
_IN_FIELDS = bytes({0x09, *range(0x20, 0x7F), *range(0x80, 0x100)})  # RFC 9110 5.5

TRIALS, TRIED = 64, 3
"""Of so many heads in a row that differ, at most these are kept, to see whether the next one is the same."""
VERSIONS = {b"HTTP/1.1": "1.1", b"HTTP/1.0": "1.0"}
LONGEST_METHOD = 32
METHODS = {
    method: method.decode()
    for method in (
        b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND UNBIND "
        b"ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK UNLINK QUERY"
    ).split()
}


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
    """A request line: method and target. Never changed.

    Attributes:
        method: The method.
        line: Method and target as they were sent.
        raw_path: The path as it was sent.
        query: The query without the question mark.
        authority: The authority; None unless the target has the absolute form.
    """

    __slots__ = ("authority", "line", "method", "query", "raw_path")

    def __init__(self, method: str, line: bytes, path_and_query: bytes, authority: bytes | None) -> None:
        self.method = method
        self.line = line
        self.authority = authority
        self.raw_path, _, self.query = path_and_query.partition(b"?")

    @property
    def raw(self) -> str:
        """The target as it was sent."""
        return self.line[len(self.method) + 1 :].decode("ascii")

    @property
    def path(self) -> bytes:
        """The path, percent-decoded."""
        return unquote_to_bytes(self.raw_path) if b"%" in self.raw_path else self.raw_path

    def put_line(self, environ: dict[str, Any]) -> None:
        """Add the keys of the request line to an environ."""
        environ["REQUEST_METHOD"] = self.method
        # PEP 3333: environ strings are bytes decoded as latin-1. A path begins with a slash or is empty; RAW_URI shows that the
        # request is about the whole server.
        path = self.path.decode("latin-1")
        environ["PATH_INFO"] = "" if path == "*" else path
        environ["QUERY_STRING"] = self.query.decode("ascii")
        environ["REQUEST_URI"] = environ["RAW_URI"] = self.raw

    def put_scope(self, scope: dict[str, Any]) -> None:
        """Set the keys of the request line in an ASGI scope."""
        scope["method"] = self.method
        scope["path"] = self.path.decode("utf-8", "replace")
        scope["raw_path"] = self.raw_path
        scope["query_string"] = self.query


class LastHead:
    """What a connection keeps of the last request head, for a client that sends the same one again and again.

    Attributes:
        repeats: Whether the last head was the same as the one before.
        fields: Its field section, while it is kept.
        environ: A place for the environ made of a head that repeats.
    """

    __slots__ = ("environ", "fields", "repeats")

    def __init__(self) -> None:
        self.repeats = False
        self.fields: Fields | None = None
        self.environ: dict[str, Any] | None = None


class HeadReader(LastHead):
    """Collects the heads of one connection, which may come in pieces, and reads them.

    A client that polls sends the same head again and again, so the last one is kept. Where heads differ, few are: when the next
    one takes its place, what was kept is no longer in the processor's cache. With 1,000 connections a request took a fifth more.

    Args:
        limits: How much is accepted.
        read_head: Reads a whole head, which ends with its empty line.
        read_ordinary: Reads bytes that may be one ordinary head and nothing else; returns None if they are not.

    Attributes:
        buffer: The part of a head that has come.
    """

    __slots__ = ("_last", "_limits", "_lines", "_misses", "_read", "_read_head", "_read_ordinary", "_scanned", "buffer")

    def __init__(self, limits: RequestLimits, read_head: ReadHead, read_ordinary: ReadOrdinary | None = None) -> None:
        super().__init__()
        self._limits = limits
        self._read_head = read_head
        self._read_ordinary = read_ordinary or _nothing
        self._last: bytes | None = None
        self._read: tuple[Target, Fields]  # from that head
        self._misses = 0  # heads since one that repeated, modulo `TRIALS`
        self.buffer = bytearray()
        self._scanned = 0
        self._lines = 0

    def read_whole(self, data: bytes) -> tuple[Target, Fields] | None:
        """Return what `read` returns if the bytes are one ordinary head and nothing else; None if they may not be."""
        if data == self._last:
            self.repeats = True
            return self._read
        read = self._read_ordinary(data)
        if read is not None:
            self._keep(data, read)
        return read

    def _keep(self, head: bytes, read: tuple[Target, Fields]) -> None:
        if self.repeats:
            self.repeats = False
            self._misses = 0
        self._misses = misses = (self._misses + 1) % TRIALS
        if misses < TRIED:
            self._last, self._read, self.fields = head, read, read[1]
            self.environ = None
        elif misses == TRIED:
            self._last = self.fields = self.environ = None
            del self._read

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
        """Return the request line and the fields of a whole head; the same objects if it is the one that is kept.

        Raises:
            RequestError: As `read_head`.
        """
        if head == self._last:
            self.repeats = True
            return self._read
        read = self._read_head(head)
        self._keep(head, read)
        return read


def _nothing(data: bytes) -> None:
    """Read nothing: there is no reader of ordinary heads."""


def read_head(limits: RequestLimits, head: bytes) -> tuple[Target, Fields]:
    """Return the request line and the fields of a whole head, which ends with its empty line.

    Raises:
        RequestError: The head is invalid or larger than the limits, or asks for something that is not supported.
    """
    lines = head.split(b"\r\n")
    if not lines[0]:  # RFC 9112 2.2: one empty line before the request line is skipped
        if not lines[1]:
            raise RequestError(400, "more than one empty line before the request line")
        return read_head(limits, head[2:])
    if len(lines[0]) > limits.line:
        raise RequestError(414, "the request line is too long")
    target, version = read_request_line(lines[0])
    plain = is_plain(head, lines)
    if not plain or len(head) > limits.head or len(lines) - 3 > limits.fields or limits.field:
        check_size(limits, head)
    if not plain:
        raise RequestError(400, "a header field is malformed")
    return target, finish(target, Fields(version, split_lines(lines[1:-2])))


def finish(target: Target, fields: Fields) -> Fields:
    """Return the fields of a request, judged together with its target.

    Raises:
        RequestError: They contradict each other, or ask for something that is not supported.
    """
    if target.authority is not None:
        fields = fields.with_authority(target.authority)
    if fields.refusal is not None:
        raise fields.refusal
    return fields


def is_plain(head: bytes, lines: list[bytes]) -> bool:
    """Return whether a head contains no control characters but tabs and line ends, each of which is a CR LF.

    Args:
        head: The head.
        lines: The same, split at each CR LF.
    """
    return head.translate(None, _IN_FIELDS) == b"\r\n" * (len(lines) - 1)


def check_size(limits: RequestLimits, head: bytes) -> None:
    """See that a head is within the limits, apart from the one of its first line.

    Raises:
        RequestError: 431.
    """
    if len(head) > limits.head:
        raise RequestError(431, "the request head is too large")
    if head.count(b"\n") - 2 > limits.fields:
        raise RequestError(431, "too many header fields")
    if limits.field and max(map(len, head.split(b"\r\n")[1:])) > limits.field:
        raise RequestError(431, "a header field is too large")


def read_request_line(line: bytes) -> tuple[Target, str]:
    """Return the target and the version of a request line (RFC 9112 section 3).

    Raises:
        RequestError: 400: a part is malformed, or the form of the target does not fit the method. 501: an unsupported method.
            505: an unsupported version.
    """
    parts = line.split(b" ")
    version = VERSIONS.get(parts[-1])
    if line.translate(None, _IN_TARGETS) == b"  " and version is not None and parts[0] in METHODS and parts[1].startswith(b"/"):
        return Target(METHODS[parts[0]], line[:-9], parts[1], None), version  # the usual case, found fast
    if b"\r" in line or b"\n" in line:
        raise RequestError(400, "a line does not end in CR LF")
    if len(parts) != 3 or version is None:
        if len(parts) == 3 and parts[2].startswith(b"HTTP/"):
            raise RequestError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        raise RequestError(400, "the request line is not METHOD TARGET VERSION")
    return read_target(parts[0], parts[1]), version


def read_target(method: bytes, raw: bytes) -> Target:
    """Return the target of a request.

    Args:
        method: The method.
        raw: The target as it was sent.

    Raises:
        RequestError: As `read_request_line`.
    """
    known = METHODS.get(method)
    if known is None and (len(method) > LONGEST_METHOD or _TOKEN.fullmatch(method) is None):
        raise RequestError(400, "the method is malformed")
    if not raw or raw.translate(None, _IN_TARGETS):
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
    if known is None:
        raise RequestError(501, "this method is not supported")
    return Target(known, b"%b %b" % (method, raw), path, authority)
