"""WSGI applications for the tests, chosen by the first segment of the path.

``/-/events`` returns the recorded events and clears them.
"""

import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from wsgiref.util import shift_path_info
from wsgiref.validate import validator

from example_apps import echo, flask_app, hello_wsgi, slow, stream

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

EVENTS: list[str] = []
BARRIER = threading.Barrier(4, timeout=10)
WRITES: list[Callable[[bytes], object]] = []
KEPT: list[Any] = []
VIEWS: list[Any] = []
VALID = {
    "hello": validator(hello_wsgi.app),
    "echo": validator(echo.application),
    "stream": validator(stream.application),
    "slow": validator(slow.application),
    "flask": validator(flask_app.app),
}
TEXT = [("Content-Type", "text/plain")]


class IntendedError(Exception):
    """Raised by an application on purpose."""


class Pieces:
    """An iterable that records its close; a piece that is an exception is raised."""

    def __init__(self, *pieces: Any, close_error: Exception | None = None) -> None:
        self._pieces = iter(pieces)
        self._close_error = close_error

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        piece = next(self._pieces)
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def close(self) -> None:
        """PEP 3333: the server calls it in every case."""
        EVENTS.append("closed")
        if self._close_error is not None:
            raise self._close_error


class ClosingList(list[bytes]):
    """A list that records its close."""

    def close(self) -> None:
        """Record the call."""
        EVENTS.append("closed")


class Listed:
    """An iterable whose pieces are in a list; records its close."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    def close(self) -> None:
        """Record the call."""
        EVENTS.append("closed")


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Call the application that the path names."""
    if environ["PATH_INFO"] == "/-/events":
        text = json.dumps(EVENTS).encode()
        EVENTS.clear()
        start_response("200 OK", [*TEXT, ("Content-Length", str(len(text)))])
        return [text]
    name = str(shift_path_info(environ)).replace("-", "_")
    if name == "valid":
        return VALID[str(shift_path_info(environ))](environ, start_response)
    query = {key: values[0] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
    result: Iterable[bytes] = globals()[f"on_{name}"](environ, start_response, query)
    return result


def on_environ(environ: Environ, start_response: StartResponse, _: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    kinds = {key: type(value).__name__ for key, value in environ.items()}
    text = {key: value for key, value in environ.items() if isinstance(value, (str, bool, tuple))}
    return [json.dumps([text, kinds]).encode()]


def on_write(_: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    write = start_response("200 OK", TEXT)
    for _number in range(int(query.get("count", "1"))):
        write(b"a" * int(query.get("size", "1")))
    write(b"")
    write(b"b")
    return [b"c"]


def on_write_length(_: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    write = start_response("200 OK", [("Content-Length", query["length"])])
    write(b"abc")
    return ClosingList([b"def"])


def on_late_write(_: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """Within the response, call the ``write`` of the previous request."""
    write = start_response("200 OK", [("Content-Length", query["length"])] if "length" in query else TEXT)
    write(b"a")
    for late in WRITES:
        with suppress(Exception):
            late(b"late")
    WRITES[:] = [write]
    return [b"b"]


def on_replaced(_: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """exc_info before anything is sent: it replaces the first headers."""
    start_response("200 OK", [("X-Old", "1"), ("Content-Length", "100")])
    try:
        raise IntendedError  # noqa: TRY301  # exc_info is the point
    except IntendedError:
        start_response("503 Later", [("X-New", "1")], sys.exc_info())
    return [b"later"] if "list" in query else Pieces(b"la", b"ter")


def on_too_late(_: Environ, start_response: StartResponse, __: Any) -> Iterable[bytes]:
    """exc_info after something was sent: start_response raises."""
    start_response("200 OK", TEXT)
    try:
        yield b"first"
        try:
            raise IntendedError  # noqa: TRY301  # exc_info is the point
        except IntendedError:
            start_response("500 No", TEXT, sys.exc_info())
        EVENTS.append("not raised")
        yield b"second"
    finally:
        EVENTS.append("closed")


def on_twice(_: Environ, start_response: StartResponse, __: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    start_response("200 OK", TEXT)
    return [b"x"]


def on_never(_: Environ, __: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    return ClosingList([b"x"]) if "list" in query else Pieces(b"x")


def on_headers_of(_: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """Return the status, headers and result that the test sends as an expression."""
    status, headers, result = eval(query["it"])  # the test sends this expression
    start_response(status, headers)
    return result  # type: ignore[no-any-return]


def on_pieces(environ: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """Yield the pieces that the test names; "!" raises, "^" exits."""
    length = query.get("length")
    start_response(query.get("status", "200 OK"), [*TEXT, *([("Content-Length", length)] if length else [])])
    special: dict[str, Any] = {"!": IntendedError(), "^": SystemExit(3), "-": b""}
    pieces = [special.get(name, name.encode()) for name in query.get("it", "").split(",") if name]
    if query.get("list"):
        return ClosingList(pieces)
    return Pieces(*pieces, close_error=IntendedError() if "badclose" in query else None)


def on_raise(_: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    if "started" in query:
        start_response("200 OK", [("X-Old", "1")])
    raise {"exit": SystemExit(1), "interrupt": KeyboardInterrupt(), "base": BaseException("x"), "intended": IntendedError(),
           "generator": GeneratorExit()}[query["it"]]  # fmt: skip


def on_fifo(_: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """Yield a first piece, and a second one when the test has opened the FIFO."""
    start_response("200 OK", TEXT)
    yield b"first"
    with Path(query["path"]).open("rb") as fifo:
        fifo.read()
    yield b"second"


def on_endless(_: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """Yield many pieces; write the number of each to a file."""
    start_response("200 OK", TEXT)
    size = int(query.get("size", "65536"))
    with Path(query["path"]).open("r+b", buffering=0) as file:
        try:
            for number in range(int(query.get("count", "1000000"))):
                os.pwrite(file.fileno(), b"%12d" % number, 0)
                yield b"x" * size
        finally:
            EVENTS.append("closed")


def on_file(environ: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """Return a file with ``wsgi.file_wrapper``; if the test names a FIFO, wait first until it is opened and closed."""
    if "fifo" in query:
        Path(query["fifo"]).read_bytes()
    length = query.get("length")
    start_response(query.get("status", "200 OK"), [*TEXT, *([("Content-Length", length)] if length else [])])
    file: Any = Path(query["path"]).open("rb")  # noqa: SIM115  # closed by the wrapper
    if "memory" in query:
        with file:
            file = io.BytesIO(file.read())
    file.seek(int(query.get("offset", "0")))

    class RecordingFile:
        """The file; records its close, and on request whether it was read."""

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def close(self) -> None:
            if "record_read" in query and file.tell():
                EVENTS.append("read")
            file.close()
            EVENTS.append("closed")

    wrapper: Iterable[bytes] = environ["wsgi.file_wrapper"](RecordingFile(), 8192)
    return wrapper


def on_input(environ: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """Return the result of a method of wsgi.input."""
    start_response("200 OK", TEXT)
    stream = environ["wsgi.input"]
    return [
        repr((eval(query["it"], {"input": stream}), environ.get("CONTENT_LENGTH"))).encode()
    ]  # the test sends this expression


def on_keep(environ: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """Keep wsgi.input beyond the call; raise if the test says so."""
    KEPT[:] = [environ["wsgi.input"]]
    if "raise" in query:
        raise IntendedError
    start_response("200 OK", TEXT)
    return [b"kept"]


def on_view(environ: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """Prevent that wsgi.input can be closed: keep a view of its bytes until the next such request, or take its file away."""
    while VIEWS:
        VIEWS.pop().release()
    stream = environ["wsgi.input"]
    if query["of"] == "memory":
        VIEWS.append(stream.getbuffer())
    elif query["of"] == "disk":
        stream.detach().close()
    start_response("200 OK", TEXT)
    return [b"kept"]


def on_kept(_: Environ, start_response: StartResponse, __: Any) -> Iterable[bytes]:
    """Return whether the kept input is closed."""
    start_response("200 OK", TEXT)
    return [json.dumps([stream.closed for stream in KEPT]).encode()]


def on_listed(_: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """Return an iterable like Django's responses: its iterator is that of a list."""
    length = query.get("length")
    start_response("200 OK", [*TEXT, *([("Content-Length", length)] if length else [])])
    return Listed([name.encode() for name in query.get("it", "").split(",") if name])


def on_size(environ: Environ, start_response: StartResponse, _: Any) -> Iterable[bytes]:
    """Return the length and the sum of the body."""
    count = total = 0
    while data := environ["wsgi.input"].read(100_000):
        count += len(data)
        total += sum(data)
    start_response("200 OK", TEXT)
    return [b"%d %d %s" % (count, total, environ["CONTENT_LENGTH"].encode())]


def on_unread(_: Environ, start_response: StartResponse, __: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return [b"unread"]


def on_barrier(_: Environ, start_response: StartResponse, __: Any) -> Iterable[bytes]:
    """Respond when four requests have arrived."""
    BARRIER.wait()
    start_response("200 OK", TEXT)
    return [b"together"]


def on_order(environ: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """Record the beginning and the end of each request."""
    EVENTS.append(f"begin {query['it']}")
    start_response("200 OK", TEXT)
    for _ in range(5):
        yield query["it"].encode() * 10
    EVENTS.append(f"end {query['it']}")
