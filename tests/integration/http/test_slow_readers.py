"""Clients that read or send more slowly than the server could, and the memory that they cost.

Places where bytes wait for a client, and what bounds them:

- data given to a transport: `outgoing.PIECE` (asyncio's and TLS's transports copy it);
- lists, pieces and ``send()`` data of an application: its own objects, counted once for all connections (`Buffered`), and beyond
  ``--limit-buffered`` in temporary files;
- an inline generator: ``wsgi.OUTPUT_IN_MEMORY``, then it waits; a thread: `threads.PIECES_AHEAD`;
- request bodies: ``wsgi.BODY_IN_MEMORY`` and ``--limit-buffered``, then a file; ASGI: `asgi.BODY_AHEAD`.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import Client, unread
from tests.integration.command import eventually
from tests.integration.http.flood_apps import LARGE, SHARED, large
from tests.integration.http.harness import Server, serving
from tests.integration.http.test_timeouts import certificate, trusting  # noqa: F401 - pytest looks for fixtures here

WSGI, ASGI = "tests.integration.http.flood_apps:application", "tests.integration.http.flood_apps:asgi"
MB = 1 << 20
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "inline": (WSGI, {}),
    "thread": (WSGI, {"threads": 2}),
    "asgi": (ASGI, {}),
    "inline-asyncio": (WSGI, {"loop": "asyncio"}),
    "asgi-asyncio": (ASGI, {"loop": "asyncio"}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def served(kind: str, directory: Path, **settings: Any) -> contextlib.AbstractContextManager[Server]:
    app, more = KINDS[kind]
    return serving(app, directory, **more, **settings)


def ask(client: Client, path: str, *lines: str) -> None:
    client.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode())


@contextlib.contextmanager
def asking(server: Server, *paths: str) -> Iterator[list[Client]]:
    """Clients that have sent a request and received the first byte of the response."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in paths]
        for client, path in zip(clients, paths, strict=True):
            ask(client, path)
        for client in clients:
            client.sock.recv(1)  # of the status line
        yield clients


@every_kind
@pytest.mark.parametrize("path", ["/shared", "/shared-in-pieces"])
def test_a_body_shared_by_many_clients_is_not_copied(kind: str, path: str, tmp_path: Path) -> None:
    """100 clients that do not read share one object of 5 MB; each of them gets all of it once it reads."""
    with served(kind, tmp_path) as server:
        server.get()
        before = server.memory()
        with asking(server, *[path] * 100) as clients:
            assert server.get().status == 200
            assert server.memory() - before < 60 * MB  # 500 with one copy for each client
            for client in clients[::33]:
                client.held = b"H"
                assert client.answer().body.strip(b"<>") == SHARED


@pytest.mark.parametrize(
    "kind", ["inline", "thread", "asgi-asyncio", *(pytest.param(k, marks=pytest.mark.heavy) for k in ("asgi", "inline-asyncio"))]
)
def test_bodies_beyond_the_limit_are_stored_in_files(kind: str, tmp_path: Path) -> None:
    """Memory does not grow beyond the limit; other requests are answered, and every client gets its own body."""
    paths = [f"/large/{number}" for number in range(40)]
    with served(kind, tmp_path, limit_buffered="4m") as server:
        server.get()
        before = server.memory()
        files = server.descriptors()
        with asking(server, *paths) as clients:
            assert server.get().status == 200
            assert server.memory() - before < 30 * MB  # 80 without files
            assert server.descriptors() > files + 60  # connections and files
            for client, path in zip(clients, paths, strict=True):
                client.held = b"H"
                assert client.answer().body == large(path)
                ask(client, "/")
                assert client.answer().body == b"ok"
        eventually(lambda: server.descriptors() <= files + 2, "files are left open")


def test_unread_write_data_does_not_block_the_worker(tmp_path: Path) -> None:
    """Data of ``write()`` is buffered like a list: the call ends, and other requests are served."""
    with served("inline", tmp_path) as server, asking(server, "/written/1", "/written/2") as clients:
        assert server.get().status == 200
        for client, path in zip(clients, ("/written/1", "/written/2"), strict=True):
            client.held = b"H"
            assert client.answer().body == large(path) + b"end"


@pytest.mark.parametrize("kind", ["inline", "asgi-asyncio"])
def test_a_connection_closes_only_after_its_buffered_responses(kind: str, tmp_path: Path) -> None:
    """The last response of a connection, and a response to a half-closed client, are whole, also after other responses."""
    with served(kind, tmp_path, half_close="answer") as server:
        for lines, ends, count in ((("Connection: close",), False, 1), ((), True, 1), ((), True, 3)):
            with server.connect() as client:
                for _ in range(count):
                    ask(client, "/large/x", *lines)
                client.sock.recv(1)
                client.held = b"H"
                if ends:
                    client.end()
                for _ in range(count):
                    assert client.answer().body == large("/large/x")
                assert client.rest() == b""


@pytest.mark.parametrize(
    ("app", "loop"),
    [
        (WSGI, "uvloop"),
        (ASGI, "asyncio"),
        *(pytest.param(*more, marks=pytest.mark.heavy) for more in ((WSGI, "asyncio"), (ASGI, "uvloop"))),
    ],
)
def test_every_byte_arrives_over_tls(app: str, loop: str, tmp_path: Path, certificate: Path) -> None:  # noqa: F811 - the fixture
    """TLS encrypts its input at once, so it gets small pieces; every byte arrives."""
    context = trusting(certificate)
    with Server(app, "127.0.0.1:0", certfile=certificate, keyfile=certificate, loop=loop, limit_buffered="1m") as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.connect(tls=context, receive_buffer=4096)) for _ in range(6)]
            for number, client in enumerate(clients):
                ask(client, f"/large/{number}")
                ask(client, f"/large/{number}", "Connection: close")
            for number, client in enumerate(clients):
                for _ in range(2):
                    assert client.answer().body == large(f"/large/{number}")
        assert server.get(tls=context).status == 200


def test_a_full_disk_costs_only_the_response_that_needs_it(tmp_path: Path) -> None:
    """If no file can be written, that client loses its response, and the log names the setting; other responses stay whole."""
    with served("inline", tmp_path, limit_buffered="1m") as server:
        assert server.get("/limit-files/65536").body == b"limited"
        with asking(server, "/large/1") as kept, server.connect() as client:
            ask(client, "/large/2")
            server.wait_for_log("--limit-buffered")
            assert "GET /large/2: what the client has not taken cannot be stored in " in server.log
            assert not client.answer().whole
            assert server.get().status == 200
            kept[0].held = b"H"
            assert kept[0].answer().body == large("/large/1")


def test_a_request_body_on_a_full_disk_gets_507(tmp_path: Path) -> None:
    """The error may show within the body, at its end, or when the file is closed; each time the client gets 507, and one line is logged."""
    with served("inline", tmp_path) as server:
        assert server.get("/limit-files/600000").body == b"limited"
        for more in (1, 5000, 200_000):
            with server.connect() as client:
                body = bytes(600_000 + more)
                with contextlib.suppress(ConnectionError):  # refused before the body is complete
                    client.send(b"POST /digest HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                assert client.answer().status == 507
        assert server.get().status == 200
        assert server.log.count("the request body cannot be stored") == 3
        assert "Traceback" not in server.log


@pytest.mark.parametrize("kind", ["inline", "thread", "inline-asyncio"])
def test_slow_request_bodies_are_stored_in_files_beyond_the_limit(kind: str, tmp_path: Path) -> None:
    """Request bodies count towards the limit: beyond it they are stored in files while still small; later the memory is free again."""
    body = bytes(range(250)) * 1600
    with served(kind, tmp_path, limit_buffered="2m") as server:
        server.get()
        before = server.memory()
        for _ in range(2):
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(server.connect()) for _ in range(60)]
                for client in clients:
                    client.send(b"POST /digest HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:-1])
                for client in clients:
                    eventually(lambda client=client: unread(client.sock) == 0)
                assert server.get().status == 200
                assert server.memory() - before < 16 * MB  # 24 in memory
                for client in clients:
                    client.send(body[-1:])
                    assert client.answer().body == hashlib.sha256(body).hexdigest().encode()


def test_the_large_bodies_have_the_expected_size(tmp_path: Path) -> None:
    """The bodies of these tests have their size and differ from each other."""
    assert len(large("/large/1")) == LARGE
    assert large("/large/1") != large("/large/2")
