"""httptools (llhttp, in C) and h11 (pure Python) behind one small interface: valid header lines in, names and values out.

No policy: `http1` and `fields` check the lines before, and the values behind. Neither parser sees a request line, a body or the
fields that frame a body: llhttp does not say where in a buffer a message ended and refuses a tab in front of "chunked", h11 folds
two lengths into one, each accepts chunk sizes that must be refused, and with both the response must be the same.
"""

from forkserve.http.message.fields import Headers, ParseLines

try:
    import httptools
except Exception:  # noqa: BLE001 - no wheel and no compiler, or half installed: h11 is used alone, which is slower
    httptools = None  # type: ignore[assignment, unused-ignore]  # the name must exist

_FRAMING = (b"content-length", b"transfer-encoding")


def new_parser(choice: str) -> ParseLines:
    """Return the parser to use.

    Args:
        choice: ``auto``, ``httptools`` or ``h11``.

    Raises:
        ModuleNotFoundError: httptools is chosen and not installed.
    """
    if choice == "httptools" and httptools is None:
        raise ModuleNotFoundError("httptools is not installed: pip install httptools, or use --http h11")
    return parse_with_h11 if choice == "h11" or httptools is None else parse_with_httptools


class _Collector:
    """The callbacks of httptools."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))  # llhttp leaves the blanks behind a value


def parse_with_httptools(lines: list[bytes]) -> Headers:
    """Implements `ParseLines` with httptools."""
    return _without_framing(lines, _run_httptools)


def parse_with_h11(lines: list[bytes]) -> Headers:
    """Implements `ParseLines` with h11."""
    return _without_framing(lines, _run_h11)


def _without_framing(lines: list[bytes], parse: ParseLines) -> Headers:
    headers: Headers = []
    shown: list[bytes] = []
    for line in lines:  # most often a single one
        name, _, value = line.partition(b":")
        name = name.lower()
        headers.append((name, value.strip(b" \t")))
        if name not in _FRAMING:
            shown.append(line)
    if not shown:
        return headers
    if len(shown) == len(lines):
        return parse(lines)
    read = iter(parse(shown))
    return [pair if pair[0] in _FRAMING else next(read) for pair in headers]


def _run_httptools(lines: list[bytes]) -> Headers:
    collector = _Collector()
    try:
        httptools.HttpRequestParser(collector).feed_data(b"GET / HTTP/1.1\r\n%b\r\n\r\n" % b"\r\n".join(lines))
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise ValueError(str(error)) from error
    return collector.headers


def _run_h11(lines: list[bytes]) -> Headers:
    import h11  # noqa: PLC0415 - slow to import, and seldom needed

    head = b"\r\n".join((b"GET / HTTP/1.0", *lines, b"", b""))
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head) + 1)
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise ValueError(str(error)) from error
    assert isinstance(event, h11.Request)  # the head is whole
    return list(event.headers)
