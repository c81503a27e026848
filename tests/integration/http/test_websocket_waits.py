# one case, one line
"""WebSocket: slow applications and impatient clients."""

import os
import select
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.integration.client import Client
from tests.integration.http.harness import Server, events, serving
from tests.integration.http.test_websocket import PING, PONG, TEXT, frame, handshake, received, shake

PATIENCE = 5
BUSY = 8.2
"""Seconds: longer than ping interval, ping timeout, and two checks."""


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that pings its clients every second."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving(
        "tests.integration.http.ws_apps:app", directory, loop=request.param, ws_ping_interval=1, ws_ping_timeout=1
    ) as server:
        yield server


@pytest.fixture(autouse=True)
def quiet(server: Server) -> None:
    """Wait until the clients of the previous test are gone, and clear its events."""
    server.quiet()


def answer_pings(clients: Iterable[Client], seconds: float) -> None:
    """Answer pings for a while; no other frame may arrive."""
    by_socket = {client.sock: client for client in clients}
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for ready in select.select(list(by_socket), [], [], left)[0]:
            opcode, payload = received(by_socket[ready])
            assert opcode == PING, (opcode, payload)
            by_socket[ready].send(frame(PONG, payload))


@pytest.mark.heavy
def test_no_ping_timeout_while_messages_wait_for_the_application(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """While the queue is full the server reads no pongs, so it must not take the client for dead."""
    messages = [frame(TEXT, b"hi")] * 40
    directory = Path(os.path.relpath(tmp_path))
    options = {"loop": request.node.callspec.params["server"], "ws_ping_interval": 1, "ws_ping_timeout": PATIENCE}
    with (
        serving("tests.integration.http.ws_apps:app", directory, **options) as server,
        server.connect() as together,
        server.connect() as apart,
    ):
        shake(together, "/wait")
        together.send(b"".join(messages))
        shake(apart, "/wait")
        for message in messages:
            apart.send(message)
        answer_pings((together, apart), BUSY)
        server.get("/-/release")
        for client in (together, apart):
            client.send(frame(TEXT))
            while (answer := received(client))[0] == PING:
                client.send(frame(PONG, answer[1]))
            assert answer == (TEXT, b"80")


@pytest.mark.heavy
def test_a_client_that_answers_no_ping_is_disconnected(server: Server) -> None:
    """Once the queue has room again, a client without pongs is disconnected."""
    with server.connect() as client:
        shake(client, "/wait")
        client.send(frame(TEXT, b"hi") * 40)
        server.get("/-/release")
        assert received(client)[0] == PING
        assert client.rest() == b""
    events(server, "1006 ''")


@pytest.mark.heavy
def test_a_client_that_reads_nothing_is_disconnected_behind_a_full_queue(server: Server) -> None:
    """No pong can be read while the queue is full, but the server sees that the client reads nothing."""
    with server.connect(receive_buffer=4096) as client:
        shake(client)
        client.sock.settimeout(1)
        with pytest.raises((TimeoutError, OSError)):
            client.sock.sendall(frame(TEXT, b"x" * 10_000) * 2000)
        events(server, "OSError")


@pytest.mark.parametrize("behind", [b"", frame(TEXT, b"hi")], ids=["nothing", "a frame"])
def test_a_half_close_before_accept_is_a_disconnect(server: Server, behind: bytes) -> None:
    """No message can arrive any more: the application is notified, and the connection ends."""
    with server.connect() as client:
        client.send(handshake("/hesitate?receive=1") + behind)
        events(server, "hesitating")
        client.end()
        events(server, "websocket.disconnect")
        assert client.rest() == b""


def test_an_accept_after_a_half_close_raises(server: Server) -> None:
    """The accept is not sent."""
    with server.connect() as client:
        client.send(handshake("/hesitate"))
        events(server, "hesitating")
        client.end()
        assert client.rest() == b""
        server.get("/-/release")
        events(server, "websocket.disconnect", "OSError")
