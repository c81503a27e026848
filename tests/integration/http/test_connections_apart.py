"""What connections share, or keep of their last request, never reaches the request of another one, nor the next request."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.client import Client
from tests.integration.http.harness import Server, serving

KINDS = {
    "inline": ("ends", 0, "auto"),
    "threads": ("ends", 4, "auto"),
    "python": ("ends", 0, "python"),
    "asgi": ("ends_asgi", 0, "auto"),
}


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    app, threads, reader = KINDS[request.param]
    with Server(f"tests.integration.http.apps:{app}", "127.0.0.1:0", threads=threads, http=reader) as server:
        yield server


def own(client: Client, path: str) -> list[object]:
    return [client.sock.getsockname()[1], path]


def test_each_request_sees_its_own_client(server: Server) -> None:
    """Connections take turns; some heads repeat and some do not, and the apps change what they are given."""
    clients = [server.connect() for _ in range(3)]
    for number in range(200):
        client = clients[number % 3]
        path = "/same" if number % 20 < 9 else f"/{number}"
        assert client.get(path).json == own(client, path)
    for client in clients:
        client.sock.close()


def test_another_version_of_http_on_the_same_connection(server: Server) -> None:
    """The next request does not get what the last one had."""
    with server.connect() as client:
        for line in ("Connection: keep-alive", "X-Other: 1", "Connection: keep-alive"):
            for version in ("1.1", "1.0", "1.0"):
                client.send(f"GET /v HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n{line}\r\n\r\n".encode())
                assert client.answer().json == own(client, "/v")


def test_standard_error_that_an_app_replaces_for_a_while(tmp_path: Path) -> None:
    """A connection that is opened later does not get what the app has closed."""
    with serving("tests.integration.http.apps:errors", Path(os.path.relpath(tmp_path))) as server:

        def ask(path: str, version: str) -> object:
            with server.connect() as client:
                client.send(f"GET {path} HTTP/{version}\r\nHost: a\r\n\r\n".encode())
                return client.answer().json

        ask("/replace", "1.1")
        assert ask("/", "1.0") is True  # the first one of this version
        ask("/restore", "1.1")
        assert ask("/", "1.0") is True
