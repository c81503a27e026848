# one case, one line
"""ASGI: applications that take their time, streams that have nothing to say yet, and where an application is mounted."""

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
"""Seconds that are more than a body_timeout of three, and the second between two looks at it."""


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    """Each loop."""
    return str(request.param)


@pytest.fixture(scope="module")
def running(loop: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits three seconds for a body."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving("tests.integration.http.asgi_apps:app", directory, loop=loop, body_timeout=3) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    """That server, without events of the test before."""
    running.quiet()
    return running


def ask(client: Client, path: str, *lines: str, method: str = "GET") -> None:
    """Send a request head."""
    client.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode())


def send_some(client: Client, total: int) -> int:
    """Send as much of ``total`` bytes as the server takes for now; how many are left."""
    client.sock.settimeout(0.3)
    left = total
    try:
        while left:
            left -= client.sock.send(b"x" * min(65536, left))
    except TimeoutError:
        return left
    raise AssertionError("the server has taken it all")


def hears_nothing(client: Client, seconds: float) -> None:
    """Nothing comes, not even the end."""
    client.sock.settimeout(seconds)
    with pytest.raises(TimeoutError):
        client.receive()
    client.sock.settimeout(10)


def test_an_upload_waits_for_the_application(server: Server) -> None:
    """It is not the client who is late when the application works between two pieces."""
    with server.connect() as client:
        ask(client, "/busy?after=1", f"Content-Length: {UPLOAD}", method="POST")
        left = send_some(client, UPLOAD)
        hears_nothing(client, LONGER)
        server.get("/-/release")
        client.send(b"x" * left)
        assert client.answer().body == b"%d" % UPLOAD
    events(server, "working")


@pytest.mark.heavy
def test_an_expectation_waits_for_the_application(server: Server) -> None:
    """Nor where the client has been told nothing yet; its time begins with 100 Continue, and then all of it."""
    with server.connect() as client, server.connect() as silent:
        for one in (client, silent):
            ask(one, "/busy?after=0", "Content-Length: 3", "Expect: 100-continue", method="POST")
        hears_nothing(client, LONGER)
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
def test_refused_bodies_are_not_in_hand(tmp_path: Path, interface: str, framing: str) -> None:
    """What was refused with 413 does not count towards ``limit_concurrency``."""
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


def test_a_stream_without_a_body_hears_its_client_go(server: Server) -> None:
    """The start of an answer makes it a stream; there need not be a first piece."""
    with server.connect() as client:
        ask(client, "/quiet")
        events(server, "started")
    events(server, "heard")


def test_a_stream_that_starts_when_its_client_has_gone(server: Server) -> None:
    """An application that listens hears of it at once."""
    with server.connect() as client:
        ask(client, "/quiet-late")
        events(server, "listening")
    events(server, "heard")
    server.get("/-/release")
    events(server, "started")


@pytest.mark.parametrize("path", ["/quiet", "/quiet-late"])
def test_a_stream_without_a_body_hears_the_drain(loop: str, tmp_path: Path, path: str) -> None:
    """A stream that has nothing to say does not keep its worker until the graceful timeout."""
    directory = Path(os.path.relpath(tmp_path))
    with serving("tests.integration.http.asgi_apps:app", directory, loop=loop, graceful_timeout=60, stream_grace=0.5) as server:
        with server.connect() as client:
            ask(client, path)
            events(server, "started" if path == "/quiet" else "listening")
            if path == "/quiet-late":
                server.get("/-/release")
                events(server, "started")
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_log("http.disconnect was heard")
            assert server.process.wait(30) == 0
        server.wait_for_log("lifespan.shutdown was heard")
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
def test_path_and_raw_path_have_the_prefix(mounted: Server, target: str, path: str, raw_path: bytes) -> None:
    """Both of them, once, whether or not the proxy has left it there; also for a request that was remembered."""
    with mounted.connect() as client:
        for _ in range(2):
            ask(client, target)
            scope: dict[str, Any] = {key: value[1] for key, value in json.loads(client.answer().body).items()}
            seen = [ast.literal_eval(scope[key]) for key in ("root_path", "path", "raw_path")]
            assert seen == ["/scope", path, raw_path]


def test_path_of_a_websocket_has_the_prefix(tmp_path: Path) -> None:
    with serving("tests.integration.http.ws_apps:app", Path(os.path.relpath(tmp_path)), root_path="/scope") as server:
        assert isinstance(server.address, str)
        with unix_connect(server.address, "ws://host/x") as client:
            scope = client.recv(timeout=10)
    for part in ("'root_path': '/scope'", "'path': '/scope/x'", "'raw_path': b'/scope/x'"):
        assert part in scope
