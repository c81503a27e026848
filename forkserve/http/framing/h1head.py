"""Response heads as HTTP/1.1 sends them (RFC 9112 sections 4 to 6), and the fields that the server adds. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkserve.http.message.errors import PHRASES
from forkserve.http.message.response import ResponseHead, read_code

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from forkserve.http.message.errors import RequestError
    from forkserve.http.message.response import Field

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE = ((b"Connection", b"close"),)
PERSISTENCE: dict[tuple[str, bool], tuple[Field, ...]] = {
    ("1.1", True): (),
    ("1.0", True): ((b"Connection", b"keep-alive"),),
    ("1.1", False): _CLOSE,
    ("1.0", False): _CLOSE,
}
"""The Connection field, by the client's version and whether the connection stays open (RFC 9112 9.3)."""
CHUNKED: tuple[Field, ...] = ((b"Transfer-Encoding", b"chunked"),)


def encode_fields(fields: Iterable[Field]) -> bytes:
    """Return field lines."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


class CommonFields:
    """The fields that every response has: configured ones, Date and Server. Made again each second.

    Args:
        configured: The fields of ``--header``.
        date: The value of Date, or nothing to send none.
        server: The value of Server, or nothing to send none.

    Attributes:
        encoded: All of them as lines, with the empty line that ends the head.
    """

    __slots__ = ("_configured", "_date", "_server", "encoded")

    def __init__(self, configured: Sequence[Field], date: bytes, server: bytes) -> None:
        self._configured, self._date, self._server = configured, date, server
        self.encoded = encode_fields(self.beside(own_date=False, own_server=False)) + b"\r\n"

    def beside(self, *, own_date: bool, own_server: bool) -> list[Field]:
        """Return the fields for an application that may have sent its own Date or Server."""
        fields = list(self._configured)
        if self._date and not own_date:
            fields.append((b"Date", self._date))
        if self._server and not own_server:
            fields.append((b"Server", self._server))
        return fields


def encode_head(head: ResponseHead, added: Sequence[Field], common: CommonFields) -> bytes:
    """Return a whole head, with its empty line.

    Args:
        head: The application's.
        added: The fields about this connection: Connection and Transfer-Encoding.
        common: The fields that every response has.
    """
    lines = head.encoded
    if not lines:
        lines = b"HTTP/1.1 %d %b\r\n" % (head.code, head.phrase) + encode_fields(head.fields)
        if head.shared:
            head.encoded = lines
    if added:
        lines += encode_fields(added)
    if head.own_date or head.own_server:
        return lines + encode_fields(common.beside(own_date=head.own_date, own_server=head.own_server)) + b"\r\n"
    return lines + common.encoded


def error_answer(error: RequestError, method: str, common: CommonFields) -> bytes:
    """Return the whole response to a request that cannot be served: plain text, and the connection closes.

    Args:
        error: What is wrong.
        method: The method, if it is known, else an empty string; HEAD gets no body.
        common: The fields that every response has.
    """
    body = f"{error.status} {PHRASES.get(error.status, '')}: {error.detail}\n".encode("ascii")
    head = ResponseHead(*read_code(error.status), str)
    head.add((("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *error.headers))
    data = encode_head(head, _CLOSE, common)
    return data if method == "HEAD" else data + body
