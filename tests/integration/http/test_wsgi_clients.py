# one case, one line
"""WSGI: one client's conduct, or one application's fault, and what becomes of the requests of others."""

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
    """A server that calls the application on its loop, and one that has a single thread for it."""
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
    """The path that makes the application answer so; texts are expressions."""
    return "/headers-of?it=" + quote(f"({', '.join(map(str, it))})")


def opened(fifo: Path) -> int:
    """A FIFO, opened for writing when somebody reads it."""
    descriptor = -1

    def look() -> bool:
        nonlocal descriptor
        with contextlib.suppress(OSError):  # ENXIO, fifo(7)
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        return descriptor >= 0

    eventually(look, "nobody reads the FIFO")
    return descriptor


def sockets(server: Server) -> int:
    """How many sockets the server has open."""
    directory = f"/proc/{server.process.pid}/fd"
    count = 0
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"{directory}/{name}").startswith("socket:")
    return count


def test_a_file_for_a_client_that_went_during_the_call(big: Path, tmp_path: Path) -> None:
    """The only thread is free again for the next request."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Server(APP, "127.0.0.1:0", threads=1) as server:
        before = sockets(server)
        for _ in range(3):
            with server.connect() as client:
                ask(client, f"/file?path={big}&fifo={fifo}")
                with open(opened(fifo), "wb"):
                    client.reset()
                    eventually(lambda: sockets(server) == before, "the reset is not noticed")
            events(server, "closed")
            eventually(lambda: sockets(server) == before, "a connection is left")
        assert server.get("/pieces?it=x").body == b"x"


def test_a_slow_reader_of_a_file_keeps_nobody_waiting(server: Server, big: Path) -> None:
    """A file needs no application, and so no turn and no thread."""
    with server.connect(receive_buffer=4096) as client:
        ask(client, f"/file?path={big}", "Connection: close")
        length = int(client.head()["content-length"])
        for _ in range(20):
            assert server.get("/pieces?it=x").body == b"x"
        assert client.rest() == big.read_bytes()
        assert length == big.stat().st_size


@pytest.mark.parametrize("threads", [0, 1])
def test_head_of_an_endless_answer(tmp_path: Path, threads: int) -> None:
    """Without a body to send, the application is not asked for it for ever; the connection and the worker go on."""
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
def test_a_tuple_where_no_body_may_be(server: Server, status: str, piece: bytes) -> None:
    """RFC 9110 8.6: no Content-Length with 204, and none with 304 that a 200 would not have had."""
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
def test_a_piece_that_is_no_bytes(server: Server, piece: object) -> None:
    """PEP 3333: an iterable yields bytes. Anything else is the application's error, the first time and later."""
    said = len(server.log)
    with server.connect() as client:
        ask(client, returning("'200 OK'", [], f"iter([{piece!r}])"))
        answer = client.answer()
        assert (answer.status, answer["connection"]) == (500, "close")
        assert client.rest() == b""
    with server.connect() as client:
        ask(client, returning("'200 OK'", [], f"iter([b'a', {piece!r}, b'b'])"))
        answer = client.answer()
        assert (answer.status, answer.body, answer.whole) == (200, b"a", False)
    eventually(lambda: server.log[said:].count("the body must be bytes") >= 2, "it is not logged twice")
    assert server.get("/pieces?it=x").body == b"x"
