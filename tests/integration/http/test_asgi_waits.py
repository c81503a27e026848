# one case, one line
"""ASGI: slow applications, streams without a first piece, and mounted applications."""

import ast
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import unix_connect

from tests.integration.client import Client
from tests.integration.http.harness import Server, events, serving

UPLOAD = 3_000_000
LONGER = 4.2
"""Seconds: longer than a body_timeout of 3, plus the second between two checks."""


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    """Each event loop."""
    return str(request.param)


@pytest.fixture(scope="module")
def running(loop: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a body timeout of three seconds."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving("tests.integration.http.asgi_apps:app", directory, loop=loop, body_timeout=3) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    """The same server, without the clients and events of the previous test."""
    running.quiet()
    return running


def ask(client: Client, path: str, *lines: str, method: str = "GET") -> None:
    """Send a request head."""
    client.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode())


def send_some(client: Client, total: int) -> int:
    """Send as many of ``total`` bytes as the server accepts for now; return how many are left."""
    client.sock.settimeout(0.3)
    left = total
    try:
        while left:
            left -= client.sock.send(b"x" * min(65536, left))
    except TimeoutError:
        return left
    raise AssertionError("the server has accepted everything")


def assert_silent(client: Client, seconds: float) -> None:
    """The server sends nothing, not even the end of the connection."""
    client.sock.settimeout(seconds)
    with pytest.raises(TimeoutError):
        client.receive()
    client.sock.settimeout(10)


@pytest.mark.heavy
def test_the_body_timeout_does_not_run_while_the_application_works(server: Server) -> None:
    """The client is not late when the application works between two pieces."""
    with server.connect() as client:
        ask(client, "/busy?after=1", f"Content-Length: {UPLOAD}", method="POST")
        left = send_some(client, UPLOAD)
        assert_silent(client, LONGER)
        server.get("/-/release")
        client.send(b"x" * left)
        assert client.answer().body == b"%d" % UPLOAD
    events(server, "working")


@pytest.mark.heavy
def test_the_body_timeout_begins_with_100_continue(server: Server) -> None:
    """The timeout does not run before 100 Continue is sent; then it runs in full."""
    with server.connect() as client, server.connect() as silent:
        for one in (client, silent):
            ask(one, "/busy?after=0", "Content-Length: 3", "Expect: 100-continue", method="POST")
        assert_silent(client, LONGER)
        began = time.monotonic()
        server.get("/-/release")
        for one in (client, silent):
            assert one.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"abc")
        assert client.answer().body == b"3"
        assert silent.answer().status == 408
        assert time.monotonic() - began > 2.95
    events(server, "working", "working", "disconnect after 0")


@pytest.mark.parametrize("interface", ["wsgi", "asgi"])
@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_refused_bodies_do_not_count_towards_limit_concurrency(tmp_path: Path, interface: str, framing: str) -> None:
    """A request that was refused with 413 does not count towards ``limit_concurrency``."""
    app = {"wsgi": "tests.integration.http.apps:recorder", "asgi": "tests.integration.http.apps:recorder_asgi"}[interface]
    with serving(app, Path(os.path.relpath(tmp_path)), limit_concurrency=2, limit_request_body=10) as server:
        clients = [server.connect() for _ in range(5)]
        for client in clients:
            ask(client, "/p", framing, method="POST")
            if "chunked" in framing:
                client.send(b"64\r\n" + b"x" * 100 + b"\r\n0\r\n\r\n")
            assert client.answer().status == 413
        for _ in range(4):
            assert server.get("/x").status == 200
        for client in clients:
            client.sock.close()
        assert server.get("/x").status == 200


def test_a_stream_without_a_first_piece_is_notified_of_the_disconnect(server: Server) -> None:
    """A started response is a stream, even before its first piece."""
    with server.connect() as client:
        ask(client, "/quiet")
        events(server, "started")
    events(server, "disconnected")


def test_a_waiting_application_is_notified_of_the_disconnect_at_once(server: Server) -> None:
    """The application gets the disconnect before it starts its response."""
    with server.connect() as client:
        ask(client, "/quiet-late")
        events(server, "listening")
    events(server, "disconnected")
    server.get("/-/release")
    events(server, "started")


@pytest.mark.parametrize("path", ["/quiet", "/quiet-late"])
def test_a_drain_ends_a_silent_stream_early(loop: str, tmp_path: Path, path: str) -> None:
    """A stream that sends nothing does not keep its worker until the graceful timeout."""
    directory = Path(os.path.relpath(tmp_path))
    with serving("tests.integration.http.asgi_apps:app", directory, loop=loop, graceful_timeout=60, stream_grace=0.5) as server:
        with server.connect() as client:
            ask(client, path)
            events(server, "started" if path == "/quiet" else "listening")
            if path == "/quiet-late":
                server.get("/-/release")
                events(server, "started")
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_log("http.disconnect was received")
            assert server.process.wait(30) == 0
        server.wait_for_log("lifespan.shutdown was received")
        assert "still open" not in server.log


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose application is mounted below /scope."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving("tests.integration.http.asgi_apps:app", directory, root_path="/scope") as server:
        yield server


@pytest.mark.parametrize(
    ("target", "path", "raw_path"),
    [
        ("/x", "/scope/x", b"/scope/x"),
        ("/%C3%A9%2Fy?a=b", "/scope/é/y", b"/scope/%C3%A9%2Fy"),
        ("/", "/scope/", b"/scope/"),
        ("/scope/x", "/scope/x", b"/scope/x"),
        ("/scope", "/scope", b"/scope"),
        ("/scopes", "/scope/scopes", b"/scope/scopes"),
    ],
)
def test_path_and_raw_path_have_the_root_path_once(mounted: Server, target: str, path: str, raw_path: bytes) -> None:
    """Both have the prefix once, whether or not the proxy has stripped it; also when the connection has cached the request."""
    with mounted.connect() as client:
        for _ in range(2):
            ask(client, target)
            scope: dict[str, Any] = {key: value[1] for key, value in json.loads(client.answer().body).items()}
            seen = [ast.literal_eval(scope[key]) for key in ("root_path", "path", "raw_path")]
            assert seen == ["/scope", path, raw_path]


def test_the_path_of_a_websocket_has_the_root_path(tmp_path: Path) -> None:
    with serving("tests.integration.http.ws_apps:app", Path(os.path.relpath(tmp_path)), root_path="/scope") as server:
        assert isinstance(server.address, str)
        with unix_connect(server.address, "ws://host/x") as client:
            scope = client.recv(timeout=10)
    for part in ("'root_path': '/scope'", "'path': '/scope/x'", "'raw_path': b'/scope/x'"):
        assert part in scope
