# one case, one line
"""WSGI (PEP 3333) over sockets, inline and in threads."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.integration.http.harness import Server, events, serving


@pytest.fixture(scope="module", params=["0", "4"], ids=["inline", "threads"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server inline, one with threads; both with the default reader."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving("tests.integration.http.wsgi_apps:application", directory, faults=True, threads=request.param) as server:
        yield server
    assert "garbage collected without being closed" not in server.log


@pytest.fixture(autouse=True)
def quiet(server: Server) -> None:
    """Wait until the clients of the previous test are gone, and clear its events."""
    server.quiet()


@pytest.mark.parametrize("name", ["hello", "echo", "stream?count=3&interval=0", "slow?seconds=0", "flask/"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_the_server_passes_wsgiref_validate(server: Server, name: str, method: str) -> None:
    """`wsgiref.validate` finds no violation by the server with any example application."""
    before = server.log
    with server.connect() as client:
        for body in (b"", b"abc"):
            client.send(f"{method} /valid/{name} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = client.answer(method)
            assert answer.status in (200, 404, 405), server.log[len(before) :]
            assert answer.whole
    assert "AssertionError" not in server.log[len(before) :]


def test_the_environ_follows_pep_3333(server: Server, request: pytest.FixtureRequest) -> None:
    """The environ has native latin-1 strings, every required key, and no key from an untrusted name."""
    with server.connect() as client:
        client.send(
            b"GET /environ/%C3%A9%2F?a=%20b HTTP/1.1\r\nHost: h.example:81\r\nProxy: evil\r\nCookie: a=1\r\nCookie: b=2\r\nX-Two: 1\r\nX-Two: 2\r\n"
            b"X_Under: x\r\nX-Obs: \xe9\r\nContent-Type: a/b\r\nScript-Name: /x\r\nPath-Info: /x\r\nRemote-User: x\r\n\r\n"
        )
        environ, kinds = json.loads(client.answer().body)

    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["SCRIPT_NAME"] + environ["PATH_INFO"] == "/environ/\xc3\xa9/"
    assert environ["QUERY_STRING"] == "a=%20b"
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["SERVER_NAME"]
    assert environ["SERVER_PORT"].isdigit()
    assert environ["HTTP_HOST"] == "h.example:81"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert environ["HTTP_X_TWO"] == "1,2"
    assert environ["HTTP_X_OBS"] == "\xe9"
    assert environ["CONTENT_TYPE"] == "a/b"
    assert environ["wsgi.version"] == [1, 0]
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["wsgi.input_terminated"] is True
    assert environ["wsgi.multithread"] is (request.node.callspec.params["server"] == "4")
    assert environ["wsgi.multiprocess"] is False
    assert environ["wsgi.run_once"] is False
    assert {"wsgi.input", "wsgi.errors", "wsgi.file_wrapper"} <= kinds.keys()
    assert not {"HTTP_PROXY", "HTTP_X_UNDER", "HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH", "REMOTE_USER"} & environ.keys()
    assert not environ.get("CONTENT_LENGTH")


def test_write_data_comes_before_the_iterable(server: Server) -> None:
    """Data of ``write()`` is sent before the data of the iterable."""
    assert server.get("/write").body == b"abc"
    assert server.get("/write?count=3&size=2").body == b"aaaaaabc"


def test_write_of_more_than_the_buffers_hold_arrives_whole(server: Server) -> None:
    """The client does not read while the application writes, and gets everything in the end."""
    with server.connect() as client:
        client.send(b"GET /write?count=200&size=65536 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = client.answer()
    assert answer.whole
    assert answer.body == b"a" * (200 * 65536) + b"bc"


@pytest.mark.parametrize(
    ("length", "body", "whole"), [(6, b"abcdef", True), (4, b"abcd", True), (2, b"ab", True), (9, b"abcdef", False)]
)
def test_write_respects_the_content_length(server: Server, length: int, *, body: bytes, whole: bool) -> None:
    """Bytes beyond the Content-Length are never sent; a short body closes the connection; the iterable is closed."""
    with server.connect() as client:
        client.send(f"GET /write-length?length={length} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        answer = client.answer()
        assert (answer.body, answer.whole) == (body, whole)
        client.end()
        assert client.rest() == b""
    if length != 2:  # otherwise write() raises into the application, and there is no iterable
        events(server, "closed")


@pytest.mark.parametrize("query", ["", "?length=2"])
def test_write_after_the_end_changes_no_other_response(server: Server, query: str) -> None:
    """The application calls ``write`` of a finished request: the next response is whole, and the connection stays open."""
    with server.connect() as client:
        for _ in range(3):
            client.send(f"GET /late-write{query} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            answer = client.answer()
            assert (answer.status, answer.body, answer.whole) == (200, b"ab", True)


@pytest.mark.parametrize("form", ["", "?list=1"])
def test_exc_info_before_the_headers_replaces_them(server: Server, form: str) -> None:
    """The old headers are dropped, including Content-Length."""
    answer = server.get("/replaced" + form)

    assert (answer.status, answer.body) == (503, b"later")
    assert answer.get("x-new") == ["1"]
    assert not answer.get("x-old")


def test_exc_info_after_the_headers_is_raised(server: Server) -> None:
    """start_response raises, and the client sees a truncated response."""
    answer = server.get("/too-late")

    assert (answer.status, answer.body, answer.whole) == (200, b"first", False)
    events(server, "closed")


@pytest.mark.parametrize("path", ["/twice", "/never", "/never?list=1"])
def test_start_response_must_be_called_once(server: Server, path: str) -> None:
    """A second call without exc_info, or no call, gives a 500."""
    assert server.get(path).status == 500
    if path != "/twice":
        events(server, "closed")


PIECES = {
    "it=a,b,c": (200, b"abc", True),
    "it=a,b,c&list=1": (200, b"abc", True),
    "it=a": (200, b"a", True),
    "it=a&length=1": (200, b"a", True),
    "it=": (200, b"", True),
    "it=&list=1": (200, b"", True),
    "it=-,-": (200, b"", True),
    "it=-,-&list=1": (200, b"", True),
    "it=-,a,-,b,-": (200, b"ab", True),
    "it=a,b&length=5": (200, b"ab", False),
    "it=a,b&length=5&list=1": (200, b"ab", False),
    "it=abc,def&length=4": (200, b"abcd", True),
    "it=abc,def&length=4&list=1": (200, b"abcd", True),
    "it=abc,def&length=3": (200, b"abc", True),
    "it=abc&length=0": (200, b"", True),
    "it=-,ab,-&length=2": (200, b"ab", True),
    "it=ab,!&length=2": (200, b"ab", True),
    "it=ab,^&length=2": (200, b"ab", True),
    "it=ab&length=2&badclose=1": (200, b"ab", True),
    "it=ab&length=2&status=304 Not": (304, b"", True),
    "it=!": (500, None, True),
    "it=^": (500, None, True),
    "it=-,!": (500, None, True),
    "it=a,!": (200, b"a", False),
    "it=a,^": (200, b"a", False),
    "it=a,!&length=2": (200, b"a", False),
    "it=a,b&badclose=1": (200, b"ab", True),
    "it=&badclose=1": (200, b"", True),
    "it=a,b&status=204 No": (204, b"", True),
    "it=a,b&status=304 Not": (304, b"", True),
    "it=a,b&list=1&status=204 No": (204, b"", True),
    "it=a,!&status=204 No": (204, b"", True),
}


@pytest.mark.parametrize("query", PIECES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_an_iterable_is_sent_and_closed_once(server: Server, query: str, method: str, version: str) -> None:
    """The iterable gives the expected body and is closed once in every case."""
    status, body, whole = PIECES[query]
    with server.connect() as client:
        client.send(
            f"{method} /pieces?{query.replace(' ', '%20')} HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n".encode()
        )
        answer = client.answer(method)
        if method == "GET":
            assert answer.status == status
            if body is not None:
                assert answer.body == body
            if version == "1.1" or "length" in query:
                assert answer.whole is whole
        else:
            assert answer.status in (status, 500)
            assert answer.body == b""
        if version == "1.0":
            assert not answer.chunked
        if status == 204:
            assert not answer.get("content-length")
        # A response with an error after its last byte may close the connection, or not.
        spoilt = "!" in query or "^" in query or "length=" in query
        if answer.whole and not spoilt and "close" not in answer.get("connection"):
            client.send(b"GET /pieces?it=z HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert client.answer().body == b"z"
            events(server, "closed", "closed")
        else:
            client.end()
            assert client.rest() == b""
            events(server, "closed")


@pytest.mark.parametrize(
    "query", ["pieces?it=abc&length=3", "listed?it=abc&length=3", "listed?it=abc", "listed?it=a,bc", "listed?it="]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_body_that_is_there_at_once_keeps_the_connection(server: Server, query: str, method: str) -> None:
    """Its iterator gives it in one piece, or is that of a list. It is closed each time, before the next request is served."""
    with server.connect() as client:
        for _ in range(3):
            client.send(f"{method} /{query} HTTP/1.1\r\nHost: a\r\n\r\n".encode() * 2)
            for _ in range(2):
                answer = client.answer(method)
                assert (answer.status, answer.whole) == (200, True)
                assert answer.body == (b"" if method == "HEAD" or query == "listed?it=" else b"abc")
        events(server, *["closed"] * 6)


@pytest.mark.parametrize("kind", ["exit", "interrupt", "base", "intended", "generator"])
@pytest.mark.parametrize("started", ["", "&started=1"])
def test_any_exception_is_a_500(server: Server, kind: str, started: str) -> None:
    """Any exception before the first byte gives a 500 without the application's headers, and the worker keeps serving."""
    answer = server.get(f"/raise?it={kind}{started}")

    assert answer.status == 500
    assert not answer.get("x-old")
    assert b"Traceback" not in answer.body
    assert server.get("/unread").body == b"unread"


BAD = {
    "CR LF in a value": "'200 OK', [('X-A', 'secret\\r\\nX-B: 1')], [b'x']",
    "LF in a value": "'200 OK', [('X-A', 'secret\\nX-B: 1')], [b'x']",
    "NUL in a value": "'200 OK', [('X-A', 'secret\\0')], [b'x']",
    "CR LF in a name": "'200 OK', [('X-secret\\r\\nX-B', '1')], [b'x']",
    "blank in a name": "'200 OK', [('X secret', '1')], [b'x']",
    "CR LF in the status": "'200 secret\\r\\nX-B: 1', [], [b'x']",
    "not latin-1": "'200 OK', [('X-A', 'secret\\u20ac')], [b'x']",
    "no phrase": "'200', [], [b'x']",
    "interim status": "'100 Continue', [], [b'x']",
    "a number as status": "200, [], [b'x']",
    "bytes as status": "b'200 OK', [], [b'x']",
    "bytes as header": "'200 OK', [(b'X-A', 'x')], [b'x']",
    "a number as value": "'200 OK', [('X-A', 1)], [b'x']",
    "None as value": "'200 OK', [('X-A', None)], [b'x']",
    "three in a header": "'200 OK', [('X-A', 'x', 'y')], [b'x']",
    "no headers": "'200 OK', None, [b'x']",
    "text as body": "'200 OK', [], ['x']",
    "text as iterable": "'200 OK', [], 'xyz'",
    "numbers as body": "'200 OK', [], [1, 2]",
    "None as iterable": "'200 OK', [], None",
    "a number as iterable": "'200 OK', [], 5",
    "text in a generator": "'200 OK', [], iter(['x'])",
    "a bad length": "'200 OK', [('Content-Length', 'x')], [b'x']",
    "a negative length": "'200 OK', [('Content-Length', '-1')], [b'x']",
    "two lengths": "'200 OK', [('Content-Length', '1'), ('Content-Length', '2')], [b'x']",
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_response_is_a_500(server: Server, name: str) -> None:
    """A violation of WSGI or HTTP gives a 500, and the invalid value is not logged."""
    before = len(server.log)
    answer = server.get("/headers-of?it=" + quote(BAD[name]))

    assert answer.status == 500
    assert not answer.get("x-b")
    text = server.log[before:].replace(quote(BAD[name]), "")
    assert "secret" not in "\n".join(line for line in text.splitlines() if "GET /" not in line)


GOOD: dict[str, tuple[Any, ...]] = {
    "'404 Nicht da', [], [b'x']": (404, b"x"),
    "'299 ', [], [b'x']": (299, b"x"),
    "'200 OK', [['X-A', '1']], [b'x']": (200, b"x"),
    "'200 OK', [('X-A', '\\xe9')], (b'x', b'y')": (200, b"xy"),
    "'200 OK', [('X-A', '')], iter([b'x', b'y'])": (200, b"xy"),
    "'200 OK', [], {b'x': 1}": (200, b"x"),
    "'200 OK', [('Connection', 'close')], [b'x']": (200, b"x"),
    "'200 OK', [('Transfer-Encoding', 'chunked'), ('Keep-Alive', '1'), ('Upgrade', 'x')], [b'x']": (200, b"x"),
    "'200 OK', [('Server', 'mine'), ('Date', 'mine')], [b'x']": (200, b"x"),
}


@pytest.mark.parametrize("it", GOOD)
def test_unusual_but_valid_responses_are_sent(server: Server, it: str) -> None:
    """Hop-by-hop fields are not sent."""
    answer = server.get("/headers-of?it=" + quote(it))

    assert (answer.status, answer.body) == GOOD[it]
    assert not answer.get("keep-alive") + answer.get("upgrade")
    if "xe9" in it:
        assert answer["x-a"] == "\xe9"
    if "mine" in it:
        assert (answer["server"], answer["date"]) == ("mine", "mine")
