# one case, one line
"""WSGI: a bad client or a faulty application does not affect the requests of others."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.integration.client import Client
from tests.integration.command import eventually
from tests.integration.http.harness import Server, events, serving

APP = "tests.integration.http.wsgi_apps:application"


@pytest.fixture(scope="module", params=["0", "1"], ids=["inline", "thread"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that calls the application inline, and one with a single thread."""
    with serving(APP, Path(os.path.relpath(tmp_path_factory.mktemp("s"))), faults=True, threads=request.param) as server:
        yield server


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 30 MB."""
    path = tmp_path_factory.mktemp("big") / "file"
    path.write_bytes(bytes(range(250)) * 120_000)
    return path


def ask(client: Client, path: str, *lines: str, method: str = "GET") -> None:
    """Send a request without a body."""
    client.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode())


def returning(*it: object) -> str:
    """The path that makes the application return these values; texts are expressions."""
    return "/headers-of?it=" + quote(f"({', '.join(map(str, it))})")


def opened(fifo: Path) -> int:
    """The FIFO, opened for writing once a reader has opened it."""
    descriptor = -1

    def look() -> bool:
        nonlocal descriptor
        with contextlib.suppress(OSError):  # ENXIO, fifo(7)
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        return descriptor >= 0

    eventually(look, "no process reads the FIFO")
    return descriptor


def sockets(server: Server) -> int:
    """The number of open sockets of the server."""
    directory = f"/proc/{server.process.pid}/fd"
    count = 0
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"{directory}/{name}").startswith("socket:")
    return count


def test_a_disconnect_during_the_call_frees_the_thread(big: Path, tmp_path: Path) -> None:
    """The client disconnects before the file is returned; the only thread then serves the next request."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Server(APP, "127.0.0.1:0", threads=1) as server:
        before = sockets(server)
        for _ in range(3):
            with server.connect() as client:
                ask(client, f"/file?path={big}&fifo={fifo}")
                with open(opened(fifo), "wb"):
                    client.reset()
                    eventually(lambda: sockets(server) == before, "the server does not notice the reset")
            events(server, "closed")
            eventually(lambda: sockets(server) == before, "a connection stays open")
        assert server.get("/pieces?it=x").body == b"x"


def test_a_slow_reader_of_a_file_does_not_block_other_requests(server: Server, big: Path) -> None:
    """Sending a file needs neither the application nor a thread."""
    with server.connect(receive_buffer=4096) as client:
        ask(client, f"/file?path={big}", "Connection: close")
        length = int(client.head()["content-length"])
        for _ in range(20):
            assert server.get("/pieces?it=x").body == b"x"
        assert client.rest() == big.read_bytes()
        assert length == big.stat().st_size


@pytest.mark.parametrize("threads", [0, 1])
def test_head_does_not_consume_an_endless_response(tmp_path: Path, threads: int) -> None:
    """The server stops iterating, since HEAD sends no body; the connection and the worker continue."""
    counter = tmp_path / "counter"
    counter.touch()
    with serving(APP, Path(os.path.relpath(tmp_path)), threads=threads, graceful_timeout=1) as server, server.connect() as client:
        ask(client, f"/endless?path={counter}&size=10&count={10**15}", method="HEAD")
        answer = client.answer("HEAD")
        assert (answer.status, answer.get("content-length")) == (200, [])
        ask(client, "/pieces?it=x")
        assert client.answer().body == b"x"
        assert server.json("/-/events") == ["closed", "closed"]


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("piece", [b"", b"x"])
def test_204_and_304_have_no_content_length(server: Server, status: str, piece: bytes) -> None:
    """RFC 9110 8.6: no Content-Length with 204, and none with 304 that a 200 would not have."""
    with server.connect() as client:
        for _ in range(2):
            ask(client, returning(repr(status), [], (piece,)))
            answer = client.answer()
            assert answer.status == int(status[:3])
            assert answer.get("content-length") == answer.get("transfer-encoding") == []
        ask(client, "/pieces?it=x", "Connection: close")
        assert client.answer().body == b"x"
        assert client.rest() == b""


@pytest.mark.parametrize("piece", [None, "", 0, "text"])
def test_a_piece_that_is_not_bytes_is_an_error(server: Server, piece: object) -> None:
    """PEP 3333: an iterable yields bytes. Another type is an error of the application, as the first piece and later."""
    log_start = len(server.log)
    with server.connect() as client:
        ask(client, returning("'200 OK'", [], f"iter([{piece!r}])"))
        answer = client.answer()
        assert (answer.status, answer["connection"]) == (500, "close")
        assert client.rest() == b""
    with server.connect() as client:
        ask(client, returning("'200 OK'", [], f"iter([b'a', {piece!r}, b'b'])"))
        answer = client.answer()
        assert (answer.status, answer.body, answer.whole) == (200, b"a", False)
    eventually(lambda: server.log[log_start:].count("the body must be bytes") >= 2, "the error is not logged twice")
    assert server.get("/pieces?it=x").body == b"x"
