"""Response heads as values: what an application gave, checked (RFC 9110 sections 6 and 8). Pure.

A framing makes bytes of them. Applications send the same few fields again and again, so a field is checked once and then kept
(`_FIELDS`); a field that cannot be sent is never kept. Most applications even send the same few heads again and again: a head
whose fields were all known is kept as a whole (`_HEADS`). A head with a field of its own, such as a fresh cookie, is unlikely to
come again, and would only push out heads that do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from forkserve.http.message.errors import PHRASES, ResponseError

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++")
_VALUE = re.compile(r"[^\r\n\0]*+")
_STATUS = re.compile(r"[2-5][0-9]{2} [\t\x20-\x7e\x80-\xff]*+")
_NUMBER = re.compile(r"[0-9]{1,18}")

Header = tuple[str, str] | tuple[bytes, bytes]
"""A field as an application gives it."""
Field = tuple[bytes, bytes]
"""A field that may be sent: its name as the application writes it, and its value."""
Kind = type[str] | type[bytes]

_FIELDS: dict[Kind, dict[Header, Field]] = {str: {}, bytes: {}}
"""By kind: header to its field."""
_LENGTHS: dict[Kind, dict[Header, tuple[int, Field]]] = {str: {}, bytes: {}}
"""By kind: Content-Length to its number and its field."""
_FIELDS_KEPT = 2048
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
    """Return the code and the phrase of WSGI's status, such as ``200 OK``.

    Raises:
        ResponseError: It is not three digits from 200 on, a blank and a phrase.
    """
    known = _STATUSES.get(status)
    if known is None:
        if not isinstance(status, str) or _STATUS.fullmatch(status) is None:
            raise ResponseError("the status must be three digits from 200 on, a blank, and a phrase without control characters")
        known = int(status[:3]), status[4:].encode("latin-1")
        if len(_STATUSES) < _FIELDS_KEPT:
            _STATUSES[status] = known
    return known


def read_code(code: int) -> tuple[int, bytes]:
    """Return the code and the phrase of ASGI's status, such as 200.

    Raises:
        ResponseError: It is no number from 200 to 599.
    """
    known = _CODES.get(code)
    if known is None:
        if not isinstance(code, int) or not 200 <= code <= 599:
            raise ResponseError("the status must be a number from 200 to 599")
        known = _CODES[int(code)] = int(code), PHRASES.get(code, "").encode()
    return known


class ResponseHead:
    """A response head: status and fields of the application, and what they mean for the framing.

    Args:
        code: The status code.
        phrase: The reason phrase, which HTTP/1.1 sends.
        kind: The type of names and values: strings in latin-1 (WSGI) or bytes (ASGI).

    Attributes:
        fields: The fields in the order given, without those that only the server may send.
        content_length: The length of the body in bytes, if the application gave it.
        close: Whether the application sent ``Connection: close``.
        own_date: Whether there is a Date among the fields; `own_server` is the same for Server.
        plain: Whether there is a body, and no ``Connection: close``.
        shared: Whether all responses that repeat it have this object. It is never changed then.
        encoded: What HTTP/1.1 makes of a shared head, kept here by that framing.
    """

    __slots__ = (
        "_kind", "close", "code", "content_length", "encoded", "fields", "own_date", "own_server", "phrase", "plain", "shared",
    )  # fmt: skip

    def __init__(self, code: int, phrase: bytes, kind: Kind) -> None:
        self.code = code
        self.phrase = phrase
        self._kind = kind
        self.fields: list[Field] = []
        self.content_length: int | None = None
        self.close = False
        self.own_date = False
        self.own_server = False
        self.plain = code not in BODILESS
        self.shared = False
        self.encoded = b""

    def add(self, headers: Iterable[Header]) -> bool:
        """Add the application's headers; return whether all of them were known before.

        Raises:
            ResponseError: They are no pairs of the right kind, a name is no token, a value holds CR, LF, NUL or something outside
                latin-1, or there is more than one length.
        """
        fields, known, lengths = self.fields, _FIELDS[self._kind], _LENGTHS[self._kind]
        all_known = True
        for header in headers:
            try:
                field = known.get(header)
                if field is None and header in lengths:
                    self._take_length(*lengths[header])
                    continue
            except TypeError:  # a list instead of a tuple
                field = None
            if field is None:
                all_known = False
                self._read(header)
            else:
                fields.append(field)
        return all_known

    def with_length(self, length: int) -> ResponseHead:
        """Return a copy that also has a Content-Length; this head may be shared."""
        head = self._copy()
        head.fields.append((b"Content-Length", b"%d" % length))
        head.content_length = length
        return head

    def with_own(self, name: bytes, value: bytes) -> ResponseHead:
        """Return a copy that also has a field of the server's, or this head if the application has given that field."""
        lower = name.lower()
        if any(key.lower() == lower for key, _ in self.fields):
            return self
        head = self._copy()
        head.fields.append((name, value))
        head.content_length = self.content_length
        return head

    def _copy(self) -> ResponseHead:
        head = ResponseHead(self.code, self.phrase, self._kind)
        head.fields = self.fields.copy()
        head.close = self.close
        head.own_date = self.own_date
        head.own_server = self.own_server
        head.plain = self.plain
        return head

    def _read(self, header: Header) -> None:
        try:
            name, value = (_as_text(part, self._kind) for part in header)
            field = name.encode("latin-1"), value.encode("latin-1")
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
            self._take_length(int(value), field)
            _keep(_LENGTHS[self._kind], header, field, (int(value), field))
        elif lower == "connection":
            self.close |= "close" in value.lower()
            self.plain &= not self.close
        elif lower not in _DROPPED:
            self.fields.append(field)
            if lower == "date":
                self.own_date = True
            elif lower == "server":
                self.own_server = True
            else:
                _keep(_FIELDS[self._kind], header, field, field)

    def _take_length(self, length: int, field: Field) -> None:
        if self.content_length is not None:
            raise ResponseError("more than one Content-Length")
        self.content_length = length
        if self.code != 204:  # RFC 9110 8.6
            self.fields.append(field)


def _keep(kept: dict[Header, Any], header: Header, field: Field, known: object) -> None:
    if len(field[0]) + len(field[1]) <= _LONGEST_KEPT and header.__class__ is tuple:
        if len(kept) >= _FIELDS_KEPT:
            kept.clear()
        kept[header] = known


def read_head(status: Any, headers: Iterable[Header], kind: Kind) -> ResponseHead:
    """Return the head that an application gave, perhaps a shared one.

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
            head.shared = True
            kept[key] = head
    return head


def _as_text(part: str | bytes, kind: Kind) -> str:
    if not isinstance(part, kind):
        raise TypeError(type(part))
    return part if isinstance(part, str) else part.decode("latin-1")
