"""httptools (llhttp, in C) and h11 (pure Python) behind one small interface: a sound head in, its fields out.

No policy: `http1` has judged the head before, and frames the body by itself. Chunked bodies are not theirs either:
llhttp does not say where in a buffer a message ended, both accept sizes and extensions that must be refused, and one
strict decoder answers alike for both.
"""

from typing import Any

import h11

from forkserve.http.http1 import Headers, ParseHeaders

try:
    import httptools
except ImportError:  # no wheel and no compiler: h11 alone serves, more slowly
    httptools = None  # type: ignore[assignment, unused-ignore]  # the name must exist

_LOWER: dict[bytes, bytes] = {}
_LOWER_KEPT = 1024


def new_parser(choice: str) -> ParseHeaders:
    """A parser for one connection.

    Args:
        choice: ``auto``, ``httptools`` or ``h11``.

    Raises:
        ModuleNotFoundError: httptools was asked for and is not installed.
    """
    if choice == "httptools" and httptools is None:
        raise ModuleNotFoundError("httptools is not installed: pip install httptools, or use --http h11")
    return parse_with_h11 if choice == "h11" or httptools is None else HttptoolsParser()


class HttptoolsParser:
    """One llhttp parser, kept for as long as the messages it reads have no body: only then is it ready for the next head."""

    __slots__ = ("_complete", "_headers", "_parser")

    def __init__(self) -> None:
        self._parser: Any = None
        self._complete = False
        self._headers: Headers = []

    def __call__(self, head: bytes) -> Headers:
        """Implements `ParseHeaders`."""
        headers: Headers = []
        self._headers = headers
        parser = self._parser if self._complete else httptools.HttpRequestParser(self)
        self._complete = False
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._complete = False
        except httptools.HttpParserError as error:
            raise ValueError(str(error)) from error
        self._parser = parser
        if b" \r\n" in head or b"\t\r\n" in head:  # llhttp strips blanks in front of a value only
            return [(name, value.rstrip(b" \t")) for name, value in headers]
        return headers

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools for each field."""
        lower = _LOWER.get(name)
        if lower is None:
            lower = name.lower()
            if len(_LOWER) < _LOWER_KEPT:
                _LOWER[name] = lower
        self._headers.append((lower, value))

    def on_message_complete(self) -> None:
        """Called by httptools when no body follows, so that the parser can read another head."""
        self._complete = True


def parse_with_h11(head: bytes) -> Headers:
    """Implements `ParseHeaders` with h11."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head) + 1)
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise ValueError(str(error)) from error
    if not isinstance(event, h11.Request):
        raise ValueError("h11 found no request in a whole head")  # noqa: TRY004 - not about types
    return list(event.headers)
