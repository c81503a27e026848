# one case, one line
"""ASGI over sockets: large and slow bodies in both directions, early responses, 100-continue, lifespan."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.client import Client
from tests.integration.http.harness import Server, events, serving, settled


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on each loop."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving("tests.integration.http.asgi_apps:app", directory, loop=request.param) as server:
        yield server


@pytest.fixture(autouse=True)
def quiet(server: Server) -> None:
    """Wait until the clients of the previous test are gone, and clear its events."""
    server.quiet()


def ask(client: Client, path: str, *lines: str, method: str = "GET") -> None:
    """Send a request head."""
    client.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode())


def test_send_waits_while_the_client_does_not_read(server: Server) -> None:
    """``send`` does not return while the client does not read, and memory stays flat; then the client gets the whole response."""
    before = server.memory()
    with server.connect(receive_buffer=4096) as client:
        ask(client, "/pour?count=100", "Connection: close")
        assert settled(lambda: int(server.json("/-/count"))) < 20
        assert server.memory() - before < 4 << 20
        answer = client.answer()
        assert len(answer.body) == 100 * 65536
        assert answer.whole


def test_a_waiting_send_raises_when_the_client_disconnects(server: Server) -> None:
    """A ``send`` that waits for a slow client raises an OSError when the client disconnects."""
    with server.connect(receive_buffer=4096) as client:
        ask(client, "/pour?count=300")
        settled(lambda: int(server.json("/-/count")))
        client.reset()
    events(server, "OSError")


def test_a_reset_after_the_whole_response_is_not_logged(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The client has the whole response, so its reset is no error (HAProxy resets like this when it checks a server)."""
    with Server("tests.integration.http.asgi_apps:app", "127.0.0.1:0", loop=request.node.callspec.params["server"]) as server:
        with server.connect() as client:
            ask(client, f"/late-end?gate={tmp_path}/gate", "Connection: close")
            assert client.answer().body == b"ok"
            client.reset()
        (tmp_path / "gate").touch()
        assert server.json("/-/events") == []
        assert "exception" not in server.log


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_upload_waits_while_the_application_does_not_receive(server: Server, framing: str) -> None:
    """The client can send only a little ahead; then the whole body arrives."""
    total = 20_000_000
    before = server.memory()
    with server.connect() as client:
        ask(client, "/wait", f"Content-Length: {total}" if framing == "length" else "Transfer-Encoding: chunked", method="POST")
        if framing == "chunked":
            client.send(b"%x\r\n" % total)
        client.sock.settimeout(0.3)
        sent = 0
        try:
            while sent < total:
                sent += client.sock.send(b"x" * min(65536, total - sent))
        except TimeoutError:
            pass
        assert sent < 2_000_000
        assert server.memory() - before < 2 << 20
        client.sock.settimeout(10)
        server.get("/-/release")
        client.send(b"x" * (total - sent) + (b"\r\n0\r\n\r\n" if framing == "chunked" else b""))
        assert client.answer().body == b"%d %d" % (total, total * ord("x"))


@pytest.mark.parametrize("path", ["/early", "/early?read=1"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("size", [10, 30_000_000])
def test_an_early_response_is_sent_without_reading_the_body(server: Server, path: str, framing: str, size: int) -> None:
    """The response is sent at once, even if the client never sends its body; the body is never parsed as the next request."""
    with server.connect() as client:
        ask(client, path, f"Content-Length: {size}" if framing == "length" else "Transfer-Encoding: chunked", method="POST")
        answer = client.answer()
        assert (answer.status, answer.body) == (413, b"early")
        if size > 100_000 or framing == "chunked":
            assert answer["connection"] == "close"
    if "read" in path:
        events(server, "disconnect")


def test_a_small_unread_body_is_drained_and_the_connection_stays_open(server: Server) -> None:
    """A client that sends its body before it reads gets the response and no reset, if the body is small enough to be drained."""
    body = (b"GET /do HTTP/1.1\r\nHost: a\r\n\r\n" * 2000)[:50_000]
    with server.connect() as client:
        ask(client, "/early", f"Content-Length: {len(body)}", method="POST")
        client.send(body)
        assert client.answer().body == b"early"
        ask(client, "/body", "Connection: close")
        assert client.answer().body == b"0 0"
        assert client.rest() == b""
    assert server.json("/-/events") == []


def test_an_early_response_reaches_a_client_within_a_large_upload(server: Server) -> None:
    """A client that is still sending 3 MB reads the response before it notices that the connection is closed."""
    with server.connect() as client:
        ask(client, "/early", "Content-Length: 3000000", method="POST")
        client.send_apart([b"x" * 60_000 for _ in range(50)])
        assert client.answer().body == b"early"


def test_continue_is_sent_at_the_first_receive(server: Server) -> None:
    """100 Continue is sent when the application calls ``receive``, and not before."""
    with server.connect() as client:
        for _ in range(2):
            ask(client, "/wait", "Content-Length: 3", "Expect: 100-continue", method="POST")
            client.sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.receive()
            client.sock.settimeout(10)
            server.get("/-/release")
            assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"abc")
            answer = client.answer()
            assert (answer.body, answer.interim) == (b"3 294", [])


def test_an_early_response_sends_no_continue_and_closes(server: Server) -> None:
    """If the application responds without reading, no 100 is sent; the connection closes, since body and next request look alike."""
    with server.connect() as client:
        ask(client, "/early", "Content-Length: 3", "Expect: 100-continue", method="POST")
        answer = client.answer()
        assert (answer.status, answer.interim, answer["connection"]) == (413, [], "close")
        assert client.rest() == b""


def test_http_1_0_gets_no_continue(server: Server) -> None:
    """RFC 9110 10.1.1: HTTP/1.0 never gets 100 Continue, with or without its body."""
    with server.connect() as client:
        client.send(b"POST /body HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc")
        answer = client.answer()
        assert (answer.body, answer.interim) == (b"3 294", [])
        assert client.rest() == b""
    with server.connect() as client:
        client.send(b"POST /body HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        client.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.receive()


def test_pipelined_responses_are_in_order(server: Server) -> None:
    """The second of two pipelined requests waits for the first."""
    with server.connect() as client:
        ask(client, "/wait")
        ask(client, "/after")
        server.get("/-/release")
        assert [client.answer().body for _ in range(2)] == [b"0 0", b"done"]
    events(server, *[repr({"type": "http.disconnect"})] * 2)


def test_memory_for_pipelined_requests_is_bounded(server: Server) -> None:
    """A client that sends requests and reads no responses cannot make the server buffer all requests."""
    request = b"GET /after HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 2000 + b"\r\n\r\n"
    before = server.memory()
    with server.connect() as client:
        ask(client, "/wait")
        client.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.send(request * 10_000)
        assert server.memory() - before < 2 << 20
        server.get("/-/release")


def test_slow_bodies_do_not_block_other_connections(server: Server) -> None:
    """50 connections send their bodies in reverse order; each gets its response at once."""
    clients = [server.connect() for _ in range(50)]
    for client in clients:
        ask(client, "/body", "Content-Length: 1", method="POST")
    for client in reversed(clients):
        client.send(b"a")
        assert client.answer().body == b"1 97"
        client.sock.close()


def test_a_half_closed_client_gets_all_pipelined_responses(server: Server) -> None:
    """A client that half-closes after several requests gets all responses, whenever the server notices the half-close."""
    for _ in range(50):
        with server.connect() as client:
            for _ in range(3):
                ask(client, "/body")
            client.end()
            assert [client.answer().body for _ in range(3)] == [b"0 0"] * 3
            assert client.rest() == b""


@pytest.mark.parametrize("app", ["raising", "returning"])
@pytest.mark.parametrize("lifespan", ["auto", "off"])
def test_an_application_without_lifespan_is_served(tmp_path: Path, app: str, lifespan: str) -> None:
    """An application without lifespan support is served with `auto` and `off`."""
    with serving(f"tests.integration.http.asgi_apps:{app}", tmp_path, lifespan=lifespan) as server:
        assert server.get().status == 200


@pytest.mark.parametrize(("app", "text"), [("raising", "no lifespan here"), ("returning", "lifespan")])
def test_lifespan_on_requires_lifespan_support(tmp_path: Path, app: str, text: str) -> None:
    """With ``on``, an application without lifespan support is an error."""
    with pytest.raises(AssertionError, match=text):
        Server(f"tests.integration.http.asgi_apps:{app}", f"unix:{tmp_path / 's'}", lifespan="on")


@pytest.mark.parametrize("lifespan", ["auto", "on"])
def test_a_failed_startup_is_shown_and_nothing_is_served(tmp_path: Path, lifespan: str) -> None:
    """The failure message of the application is shown, and the server exits."""
    began = time.monotonic()
    with pytest.raises(AssertionError, match="the database is away"):
        Server("tests.integration.http.asgi_apps:failing", f"unix:{tmp_path / 's'}", lifespan=lifespan)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("app", ["bad_end", "raising_end"])
def test_a_failed_shutdown_is_logged(tmp_path: Path, app: str) -> None:
    """A failed shutdown is logged, and the server still exits with 0."""
    with serving(f"tests.integration.http.asgi_apps:{app}", tmp_path, faults=True) as server:
        assert server.get().status == 200
    assert "could not save" in server.log


def test_a_slow_shutdown_is_cut_at_the_graceful_timeout(tmp_path: Path) -> None:
    """A shutdown may take only the rest of the graceful timeout."""
    with serving("tests.integration.http.asgi_apps:endless_end", tmp_path, graceful_timeout=1) as server:
        assert server.get().status == 200
        began = time.monotonic()
    assert 0.8 < time.monotonic() - began < 20
    assert "lifespan shutdown is cut short after " in server.log
