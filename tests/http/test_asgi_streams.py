"""ASGI over sockets: large and slow bodies in both directions, early answers, 100-continue, lifespan."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.harness import Client, Server, serving, wait_until


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on each loop."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving("tests.http.asgi_apps:app", directory, loop=request.param) as server:
        yield server


@pytest.fixture(autouse=True)
def quiet(server: Server) -> None:
    """No events of the test before."""
    server.json("/-/events")


def ask(client: Client, path: str, *lines: str, method: str = "GET") -> None:
    """Send a request head."""
    client.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode())


def stuck(client: Client, total: int) -> int:
    """Send until the server takes no more; how much that was."""
    sent = 0
    client.socket.settimeout(0.3)
    try:
        while sent < total:
            sent += client.socket.send(b"x" * min(65536, total - sent))
    except TimeoutError:
        pass
    finally:
        client.socket.settimeout(10)
    return sent


def test_a_slow_reader_pauses_send(server: Server) -> None:
    """``send`` does not return while the client does not read; nothing piles up; then all of it arrives."""
    before = server.memory()
    with server.connect(receive_buffer=4096) as client:
        ask(client, "/pour?count=300", "Connection: close")
        counts: list[int] = []

        def settled() -> bool:
            seen = server.json("/-/events")
            counts.extend(int(number) for number in seen)
            return not seen and bool(counts)

        # Each look takes the number away; the application puts it back only if it goes on (and then fails, for there is none).
        answer = client.head()
        assert answer.chunked
        wait_until(settled)
        assert max(counts) < 50
        assert server.memory() - before < 4 << 20
