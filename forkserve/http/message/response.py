"""Response heads: what an application gave, checked and framed (RFC 9110 section 6 and 8, RFC 9112 section 6). Pure.

Applications send the same few header lines again and again, so a line is checked and written out once and then kept
(`_LINES`); what cannot be sent never gets in there. Most send even the same few heads again and again: one whose lines were all
known is kept as a whole (`_HEADS`). A head with a line of its own, such as a fresh cookie, has no reason to come again, and would
only push out those that do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from forkserve.http.message.errors import PHRASES, RequestError, ResponseError

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++")
_VALUE = re.compile(r"[^\r\n\0]*+")
_STATUS = re.compile(r"[2-5][0-9]{2} [\t\x20-\x7e\x80-\xff]*+")
_NUMBER = re.compile(r"[0-9]{1,18}")

Header = tuple[str, str] | tuple[bytes, bytes]
Kind = type[str] | type[bytes]

Known = bytes | tuple[int, bytes]
_LINES: dict[Kind, dict[Header, Known]] = {str: {}, bytes: {}}
"""By kind: header to its line, ready to be sent; a Content-Length to its number and its line."""
_LINES_KEPT = 2048
_LONGEST_KEPT = 256
_STATUSES: dict[str, tuple[int, bytes]] = {}
_CODES: dict[int, tuple[int, bytes]] = {}
_HEADS: dict[Kind, dict[tuple[Any, ...], ResponseHead]] = {str: {}, bytes: {}}
"""By kind: status and headers to the head that they make."""
_HEADS_KEPT = 512

BODILESS = (204, 304)
"""Final statuses without a body (RFC 9110 6.4.1)."""

# Hop-by-hop fields are the server's own (RFC 9110 7.6.1).
_DROPPED = frozenset(("keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"))


def read_status(status: str) -> tuple[int, bytes]:
    """The code and the status line of WSGI's status, such as ``200 OK``.

    Raises:
        ResponseError: It is not three digits from 200 on, a blank and a phrase.
    """
    known = _STATUSES.get(status)
    if known is None:
        if not isinstance(status, str) or _STATUS.fullmatch(status) is None:
            raise ResponseError("the status must be three digits from 200 on, a blank, and a phrase without control characters")
        known = int(status[:3]), f"HTTP/1.1 {status}\r\n".encode("latin-1")
        if len(_STATUSES) < _LINES_KEPT:
            _STATUSES[status] = known
    return known


def read_code(code: int) -> tuple[int, bytes]:
    """The code and the status line of ASGI's status, such as 200.

    Raises:
        ResponseError: It is no number from 200 to 599.
    """
    known = _CODES.get(code)
    if known is None:
        if not isinstance(code, int) or not 200 <= code <= 599:
            raise ResponseError("the status must be a number from 200 to 599")
        known = _CODES[int(code)] = int(code), f"HTTP/1.1 {int(code)} {PHRASES.get(code, '')}\r\n".encode()
    return known


class ResponseHead:
    """A response head: the application's fields, and what they say about the framing.

    Args:
        code: The status code.
        line: The status line, with its CR LF.
        kind: What names and values are: strings in latin-1 (WSGI) or bytes (ASGI).

    Attributes:
        block: All lines in one, if the head is shared by all answers that repeat it; it is never changed then.
        plain: Whether there is a body, and nothing against another request on the connection.
    """

    __slots__ = ("_kind", "block", "close", "code", "content_length", "lines", "own_date", "own_server", "plain")

    def __init__(self, code: int, line: bytes, kind: Kind) -> None:
        self.code = code
        self._kind = kind
        self.lines = [line]
        self.block = b""
        self.content_length: int | None = None
        self.close = False
        self.own_date = False
        self.own_server = False
        self.plain = code not in BODILESS

    def add(self, headers: Iterable[Header]) -> bool:
        """Take the application's headers; tells whether all of them were known before.

        Raises:
            ResponseError: They are no pairs of the right kind, a name is no token, a value holds CR, LF, NUL or something outside
                latin-1, or there is more than one length.
        """
        lines, known = self.lines, _LINES[self._kind]
        all_known = True
        for header in headers:
            try:
                line = known.get(header)
            except TypeError:  # a list instead of a tuple
                line = None
            if line.__class__ is bytes:
                lines.append(line)
            elif line is None:
                all_known = False
                self._read(header)
            else:
                self._take_length(*line)
        return all_known

    def share(self) -> None:
        """From here on other answers have this head too."""
        self.block = b"".join(self.lines)

    def own(self) -> ResponseHead:
        """This head, or if others have it too a copy: one that may be changed."""
        if not self.block:
            return self
        head = ResponseHead(self.code, b"", self._kind)
        head.lines = self.lines.copy()
        head.content_length = self.content_length
        return head  # the rest is as it was: what is not never gets shared

    def _read(self, header: Header) -> None:
        try:
            name, value = (_as_text(part, self._kind) for part in header)
            line = f"{name}: {value}\r\n".encode("latin-1")
        except (TypeError, ValueError) as error:
            kinds = "bytes" if self._kind is bytes else "strings in latin-1"
            raise ResponseError(f"a header is not a pair of {kinds}") from error
        if _NAME.fullmatch(name) is None:
            raise ResponseError("a header name is not a token")
        if _VALUE.fullmatch(value) is None:
            raise ResponseError("a header value holds CR, LF or NUL")
        lower = name.lower()
        if lower == "content-length":
            if _NUMBER.fullmatch(value) is None:
                raise ResponseError("Content-Length is not a number")
            self._take_length(int(value), line)
            self._keep(header, (int(value), line), line)
        elif lower == "connection":
            self.close |= "close" in value.lower()
            self.plain &= not self.close
        elif lower not in _DROPPED:
            self.lines.append(line)
            if lower == "date":
                self.own_date = True
            elif lower == "server":
                self.own_server = True
            else:
                self._keep(header, line, line)

    def _keep(self, header: Header, known: Known, line: bytes) -> None:
        if len(line) <= _LONGEST_KEPT and header.__class__ is tuple:
            lines = _LINES[self._kind]
            if len(lines) >= _LINES_KEPT:
                lines.clear()
            lines[header] = known

    def _take_length(self, length: int, line: bytes) -> None:
        if self.content_length is not None:
            raise ResponseError("more than one Content-Length")
        self.content_length = length
        if self.code != 204:  # RFC 9110 8.6
            self.lines.append(line)

    def add_length(self, length: int) -> None:
        """Say how long the body is, where the application did not."""
        self.content_length = length
        self.lines.append(b"Content-Length: %d\r\n" % length)

    def finish(self, hop: bytes, ending: Ending) -> bytes:
        """The whole head, with its empty line.

        Args:
            hop: The lines about this connection: Connection and Transfer-Encoding.
            ending: The lines that every answer has.
        """
        self.lines.append(hop)
        self.lines.append(
            ending.without(date=self.own_date, server=self.own_server) if self.own_date or self.own_server else ending.whole
        )
        return b"".join(self.lines)


def read_head(status: Any, headers: Iterable[Header], kind: Kind) -> ResponseHead:
    """The head that an application tells, perhaps shared.

    Args:
        status: WSGI's or ASGI's status.
        headers: The application's headers.
        kind: Which of the two it is: strings (WSGI) or bytes (ASGI).

    Raises:
        ResponseError: It cannot be sent.
    """
    key = (status, *headers)
    try:
        head = _HEADS[kind].get(key)
    except TypeError:  # a list instead of a tuple
        head = None
    if head is None:
        head = ResponseHead(*(read_status if kind is str else read_code)(status), kind)
        if head.add(key[1:]):
            kept = _HEADS[kind]
            if len(kept) >= _HEADS_KEPT:
                kept.clear()
            head.share()
            kept[key] = head
    return head


def _as_text(part: str | bytes, kind: Kind) -> str:
    if not isinstance(part, kind):
        raise TypeError(type(part))
    return part if isinstance(part, str) else part.decode("latin-1")


class Ending:
    """The end of every response head: configured headers, Date and Server, and the empty line. Made anew each second.

    Args:
        common: Configured header lines.
        date: The Date line, or nothing.
        server: The Server line, or nothing.
    """

    __slots__ = ("_common", "_date", "_server", "whole")

    def __init__(self, common: bytes, date: bytes, server: bytes) -> None:
        self._common, self._date, self._server = common, date, server
        self.whole = self.without(date=False, server=False)

    def without(self, *, date: bool, server: bool) -> bytes:
        """The same for an application that gives its own Date or Server."""
        return b"".join((self._common, b"" if date else self._date, b"" if server else self._server, b"\r\n"))


HOP_LINES = {
    ("1.1", True): b"",
    ("1.0", True): b"Connection: keep-alive\r\n",
    ("1.1", False): b"Connection: close\r\n",
    ("1.0", False): b"Connection: close\r\n",
}
"""By the client's version and whether the connection stays open."""
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def error_answer(error: RequestError, method: str, ending: Ending) -> bytes:
    """The whole answer to a request that cannot be served: plain text, and the connection closes.

    Args:
        error: What is wrong.
        method: The method, if it is known, else an empty string; HEAD gets no body.
        ending: The lines that every answer has.
    """
    body = f"{error.status} {PHRASES.get(error.status, '')}: {error.detail}\n".encode("ascii")
    head = ResponseHead(*read_code(error.status), str)
    head.add((("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *error.headers))
    data = head.finish(HOP_LINES["1.1", False], ending)
    return data if method == "HEAD" else data + body
