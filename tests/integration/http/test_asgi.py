# one case, one line
"""ASGI 3 over sockets: HTTP connection scope, receive and send, lifespan."""

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.integration.client import Client
from tests.integration.http.harness import Server, events, happened, serving

START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
BODY: dict[str, Any] = {"type": "http.response.body", "body": b"x"}
MORE: dict[str, Any] = {"type": "http.response.body", "body": b"m", "more_body": True}


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on each loop."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving("tests.integration.http.asgi_apps:app", directory, faults=True, loop=request.param) as server:
        yield server
    assert "lifespan.shutdown was received" in server.log


@pytest.fixture(autouse=True)
def quiet(server: Server) -> None:
    """Wait until the clients of the previous test are gone, and clear its events."""
    server.quiet()


def do(*steps: Any, again: bool = False) -> str:
    """The path that makes the application execute these steps."""
    return "/do?it=" + quote(repr(steps)) + ("&again=1" if again else "")


def ask(client: Client, path: str, *lines: str, method: str = "GET", body: bytes = b"") -> None:
    """Send a request."""
    head = [f"{method} {path} HTTP/1.1", "Host: a", *lines, *([f"Content-Length: {len(body)}"] if body else []), "", ""]
    client.send("\r\n".join(head).encode() + body)


def scope_of(client: Client) -> tuple[dict[str, str], dict[str, Any]]:
    """Types and values of the scope in the response."""
    shown = json.loads(client.answer().body)
    return {key: kind for key, (kind, _) in shown.items()}, {key: ast.literal_eval(text) for key, (_, text) in shown.items()}


def test_the_scope_has_every_key_with_its_type(server: Server) -> None:
    """The HTTP scope has every key of the specification, with its type."""
    with server.connect() as client:
        client.send(
            b"POST /scope/%C3%A9%2Fx?a=%20b HTTP/1.1\r\nHost: h:81\r\nX-B: 1\r\nx-A: \xe9\r\nX-B: 2\r\nX_C: 3\r\nContent-Length: 0\r\n\r\n"
        )
        kinds, scope = scope_of(client)

    assert scope["type"] == "http"
    assert scope["asgi"]["version"] == "3.0"
    assert scope["asgi"]["spec_version"] in ("2.3", "2.4", "2.5")
    assert scope["http_version"] == "1.1"
    assert scope["method"] == "POST"
    assert scope["scheme"] == "http"
    assert scope["path"] == "/scope/é/x"
    assert scope["raw_path"] == b"/scope/%C3%A9%2Fx"
    assert scope["query_string"] == b"a=%20b"
    assert scope["root_path"] == ""
    assert [list(pair) for pair in scope["headers"]] == [
        [b"host", b"h:81"],
        [b"x-b", b"1"],
        [b"x-a", b"\xe9"],
        [b"x-b", b"2"],
        [b"content-length", b"0"],
    ]
    assert scope["client"] is None  # a unix socket
    assert len(scope["server"]) == 2
    assert scope["server"][0].endswith("/s")
    assert scope["server"][1] is None
    assert scope["extensions"] == {}  # in particular no extension that sends a path or a descriptor as a body
    assert kinds["state"] == "dict"


def test_changes_to_one_scope_do_not_reach_the_next_scope(server: Server) -> None:
    """The next scope does not contain changes to an earlier scope; the state is copied, and its values are shared."""
    with server.connect() as client:
        seen = []
        for _ in range(3):
            ask(client, "/scope", "X: y")
            seen.append(scope_of(client)[1])
    for scope in seen:
        assert scope["headers"] == seen[0]["headers"]
        assert scope["state"]["number"] == 8
        assert "mine" not in scope["state"]
    counts = [scope["state"]["shared"]["count"] for scope in seen]
    assert counts == [counts[0], counts[0] + 1, counts[0] + 2]


def test_the_lifespan_scope_has_type_version_and_state(server: Server) -> None:
    """The lifespan scope has the keys of the specification."""
    with server.connect() as client:
        ask(client, "/scope")
        lifespan = scope_of(client)[1]["state"]["lifespan"]
    assert lifespan.keys() == {"type", "asgi", "state"}
    assert ast.literal_eval(lifespan["asgi"])["version"] == "3.0"


def test_the_scope_of_an_http_1_0_request_has_no_headers(server: Server) -> None:
    """The scope shows version 1.0, no headers and an empty query string."""
    with server.connect() as client:
        client.send(b"GET /scope HTTP/1.0\r\n\r\n")
        scope = scope_of(client)[1]
    assert (scope["http_version"], scope["headers"], scope["query_string"]) == ("1.0", [], b"")


def test_an_empty_body_is_one_message(server: Server) -> None:
    """Without a body, ``receive`` returns one empty last piece."""
    path = do("receive", START, BODY)
    assert server.get(path).body == b"x"
    events(server, "{'type': 'http.request', 'body': b'', 'more_body': False}", "end")


@pytest.mark.parametrize("size", [1, 65536, 5_000_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_of_any_size_arrives_whole(server: Server, size: int, framing: str) -> None:
    """The body arrives whole, and the connection stays open."""
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    with server.connect() as client:
        if framing == "length":
            ask(client, "/body", method="POST", body=body)
        else:
            ask(client, "/body", "Transfer-Encoding: chunked", method="POST")
            for start in range(0, size, 99_999):
                piece = body[start : start + 99_999]
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            client.send(b"0\r\nX-Trailer: y\r\n\r\n")
        assert client.answer().body == b"%d %d" % (size, sum(body))
        ask(client, "/body")
        assert client.answer().body == b"0 0"


def test_receive_returns_disconnect_after_the_response(server: Server) -> None:
    """``receive`` returns ``http.disconnect`` every time once the response is complete, even while the client stays connected."""
    with server.connect() as client:
        for _ in range(2):
            ask(client, "/after")
            assert client.answer().body == b"done"
            seen = happened(server, 2)
            assert [ast.literal_eval(text)["type"] for text in seen] == ["http.disconnect"] * 2
        ask(client, "/two-tasks")
        assert client.answer().body == b"two"
        assert happened(server, 2)[-1] == "http.disconnect"


@pytest.mark.parametrize(
    ("path", "expected"), [("/listen", ("http.request False", "disconnect", "OSError")), ("/leave", ("left",))]
)
def test_a_disconnect_reaches_receive_and_send(server: Server, path: str, expected: tuple[str, ...]) -> None:
    """``receive`` returns ``http.disconnect``, and ``send`` raises an OSError; no error is logged."""
    log_start = len(server.log)
    with server.connect() as client:
        ask(client, path)
        client.until(b"first")
        client.reset()
    events(server, *expected)
    assert "ERROR" not in server.log[log_start:]


def test_a_truncated_body_is_never_complete(server: Server) -> None:
    """If the client resets the connection within the body, the application gets ``http.disconnect``."""
    for framing in ("Content-Length: 10", "Transfer-Encoding: chunked"):
        with server.connect() as client:
            ask(client, "/body", framing, method="POST")
            client.send(b"5\r\nabcde\r\n"[3 if framing[0] == "C" else 0 :][: 5 if framing[0] == "C" else 10])
            client.reset()
        events(server, "disconnect after 5")


def test_a_half_closed_client_gets_its_response(server: Server) -> None:
    """A client that has half-closed the connection still gets its response."""
    with server.connect() as client:
        ask(client, do("receive", "release", START, MORE, BODY), "Connection: close")
        client.end()
        server.get("/-/release")
        answer = client.answer()
        assert (answer.body, answer.whole) == (b"mx", True)
        assert client.rest() == b""
    events(server, "{'type': 'http.request', 'body': b'', 'more_body': False}", "end")


WRONG = {
    "body before start": ((BODY,), 500, None),
    "nothing": ((), 500, None),
    "only a start": ((START,), 500, None),
    "start twice": ((START, START, BODY), None, None),
    "unknown type": (({"type": "http.response.nonsense"}, START, BODY), None, None),
    "path to send": ((START, {"type": "http.response.pathsend", "path": "/etc/hostname"}), 500, None),
    "descriptor to send": ((START, {"type": "http.response.zerocopysend", "file": 0}), 500, None),
    "raises before start": (("raise",), 500, None),
    "raises after start": ((START, "raise"), 500, None),
    "exits": (("exit",), 500, None),
    "cancels itself": (("cancel",), 500, None),
    "raises within": ((START, MORE, "raise"), 200, False),
    "exits within": ((START, MORE, "exit"), 200, False),
    "returns within": ((START, MORE), 200, False),
    "raises after the end": ((START, BODY, "raise"), 200, True),
    "sends after the end": ((START, BODY, BODY), 200, True),
    "too little": ((START | {"headers": [(b"content-length", b"5")]}, BODY), 200, False),
    "too little in pieces": ((START | {"headers": [(b"content-length", b"5")]}, MORE, BODY), 200, False),
    "too much": ((START | {"headers": [(b"content-length", b"1")]}, MORE, BODY), 200, True),
    "too much at once": ((START | {"headers": [(b"content-length", b"1")]}, BODY | {"body": b"xyz"}), 200, True),
    "CR LF in a value": ((START | {"headers": [(b"a", b"b\r\nc: d")]}, BODY), 500, None),
    "CR LF in a name": ((START | {"headers": [(b"a\r\nb", b"c")]}, BODY), 500, None),
    "NUL in a value": ((START | {"headers": [(b"a", b"\0")]}, BODY), 500, None),
    "text as header": ((START | {"headers": [("a", "b")]}, BODY), 500, None),
    "not pairs": ((START | {"headers": [(b"a",)]}, BODY), 500, None),
    "bad length": ((START | {"headers": [(b"content-length", b"x")]}, BODY), 500, None),
    "interim status": ((START | {"status": 100}, BODY), 500, None),
    "switching protocols": ((START | {"status": 101}, BODY), 500, None),
    "status out of range": ((START | {"status": 1000}, BODY), 500, None),
    "text as status": ((START | {"status": "200"}, BODY), 500, None),
    "text as body": ((START, BODY | {"body": "x"}), 500, None),
    "no type": (({},), 500, None),
    "no status": (({"type": "http.response.start"}, BODY), 500, None),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_invalid_response_raises_and_the_client_notices(server: Server, name: str) -> None:
    """An invalid message raises into the application; the client gets a 500 or a truncated response."""
    steps, status, whole = WRONG[name]
    with server.connect() as client:
        ask(client, do(*steps, again=True))
        answer = client.answer()
        if status is not None:
            assert answer.status == status
        if whole is not None:
            assert answer.whole is whole
            assert answer.body in (b"x", b"m", b"mx")
        if status == 500:
            assert b"Traceback" not in answer.body
        client.end()
        assert client.rest() == b""
    assert server.get(do(START, BODY)).body == b"x"


RIGHT = {
    "no headers key": (({"type": "http.response.start", "status": 200}, BODY), 200, b"x"),
    "no body key": ((START, {"type": "http.response.body"}), 200, b""),
    "pieces": ((START, MORE, MORE, BODY), 200, b"mmx"),
    "empty pieces": ((START, MORE | {"body": b""}, MORE, MORE | {"body": b""}, {"type": "http.response.body"}), 200, b"m"),
    "bytearray": ((START, BODY | {"body": bytearray(b"ab")}), 200, b"ab"),
    "a tuple of lists as headers": ((START | {"headers": ([b"a", b"b"],)}, BODY), 200, b"x"),
    "upper-case name": ((START | {"headers": [(b"Content-Length", b"1")]}, BODY), 200, b"x"),
    "length and pieces": ((START | {"headers": [(b"content-length", b"3")]}, MORE, MORE, BODY), 200, b"mmx"),
    "204 with a body": ((START | {"status": 204}, BODY), 204, b""),
    "304 with a length": ((START | {"status": 304, "headers": [(b"content-length", b"9")]}, BODY | {"body": b""}), 304, b""),
    "unknown status": ((START | {"status": 299}, BODY), 299, b"x"),
    "hop-by-hop": (
        (START | {"headers": [(b"transfer-encoding", b"chunked"), (b"keep-alive", b"1"), (b"upgrade", b"x")]}, BODY),
        200,
        b"x",
    ),
    "asks for chunks itself": ((START | {"headers": [(b"Transfer-Encoding", b"chunked")]}, MORE, BODY), 200, b"mx"),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("name", RIGHT)
def test_unusual_but_valid_responses_are_sent(server: Server, name: str, method: str, version: str) -> None:
    """The response is framed for its version and method; the connection stays open if it can."""
    steps, status, body = RIGHT[name]
    with server.connect() as client:
        client.send(f"{method} {do(*steps)} HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n".encode())
        answer = client.answer(method)
        assert (answer.status, answer.body, answer.whole) == (status, b"" if method == "HEAD" else body, True)
        assert not answer.get("keep-alive") + answer.get("upgrade")
        assert not (answer.chunked and version == "1.0")
        if "close" not in answer.get("connection"):
            ask(client, do(START, BODY), "Connection: close")
            assert client.answer().body == b"x"
        else:
            assert version == "1.0"
        assert client.rest() == b""
    assert "ResponseError" not in "".join(server.json("/-/events"))
