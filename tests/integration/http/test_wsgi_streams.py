# one case, one line
"""WSGI over sockets: streams, files and request bodies, slow clients and clients that go."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.integration.client import Client
from tests.integration.command import eventually
from tests.integration.http.harness import Server, events, serving, settled


@pytest.fixture(scope="module", params=["0", "4"], ids=["inline", "threads"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server inline, one with threads."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving("tests.integration.http.wsgi_apps:application", directory, faults=True, threads=request.param) as server:
        yield server


@pytest.fixture(autouse=True)
def quiet(server: Server) -> None:
    """No events of the test before."""
    server.quiet()


def ask(client: Client, path: str, *lines: str, method: str = "GET", body: bytes = b"") -> None:
    """Send a request."""
    head = [f"{method} {path} HTTP/1.1", "Host: a", *lines, *([f"Content-Length: {len(body)}"] if body else []), "", ""]
    client.send("\r\n".join(head).encode() + body)


def test_pieces_go_out_as_they_are_made(server: Server, tmp_path: Path) -> None:
    """The first piece is there before the second is made."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with server.connect() as client:
        ask(client, f"/fifo?path={fifo}")
        answer = client.head()
        assert answer.chunked
        assert client.until(b"first\r\n") == b"5\r\nfirst\r\n"
        fifo.open("wb").close()
        assert client.until(b"\r\n0\r\n\r\n").endswith(b"6\r\nsecond\r\n0\r\n\r\n")


def test_http_1_0_gets_a_stream_until_the_end(server: Server) -> None:
    """Without chunks: the end of the connection is the end of the body."""
    with server.connect() as client:
        client.send(b"GET /pieces?it=a,b,c HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = client.answer()
        assert (answer.body, answer["connection"], answer.chunked) == (b"abc", "close", False)


@pytest.mark.heavy
def test_a_slow_reader_holds_the_generator(server: Server, tmp_path: Path) -> None:
    """A generator is not asked for more than the buffers hold; then all of it arrives."""
    counter = tmp_path / "counter"
    counter.touch()
    with server.connect(receive_buffer=4096) as client:
        ask(client, f"/endless?path={counter}&count=300", "Connection: close")
        assert settled(lambda: int(counter.read_bytes() or 0)) < 60  # 65536 bytes each: 1 MiB, and what the kernel holds
        answer = client.answer()
        assert len(answer.body) == 300 * 65536
        assert answer.whole
    events(server, "closed")


def test_the_generator_of_a_client_that_goes_is_closed(server: Server, tmp_path: Path) -> None:
    """No piece is made for nobody, for long."""
    counter = tmp_path / "counter"
    counter.touch()
    with server.connect() as client:
        ask(client, f"/endless?path={counter}&count=100000")
        client.exactly(1 << 20)
        client.reset()
    events(server, "closed")


def test_one_at_a_time(server: Server, request: pytest.FixtureRequest) -> None:
    """Inline, a request lasts until its iterator is closed, and no other begins within."""
    with server.connect() as one, server.connect() as two, server.connect() as three:
        for name, client in (("1", one), ("2", two), ("3", three)):
            ask(client, f"/order?it={name}")
        for name, client in (("1", one), ("2", two), ("3", three)):
            assert client.answer().body == name.encode() * 50
    happened = server.json("/-/events")
    if request.node.callspec.params["server"] == "0":
        for begin, end in zip(happened[::2], happened[1::2], strict=True):
            assert begin.replace("begin", "end") == end
    assert sorted(happened) == sorted(f"{what} {name}" for what in ("begin", "end") for name in "123")


def test_threads_run_together(server: Server, request: pytest.FixtureRequest) -> None:
    """Four threads are in four requests at once."""
    if request.node.callspec.params["server"] == "0":
        return
    clients = [server.connect() for _ in range(4)]
    for client in clients:
        ask(client, "/barrier")
    for client in clients:
        assert client.answer().body == b"together"
        client.sock.close()


def test_pipelined_streams_are_in_order(server: Server) -> None:
    """Answers of any kind come one after the other."""
    with server.connect() as client:
        for path in ("/pieces?it=a,b", "/unread", "/pieces?it=c,d&list=1", "/pieces?it=e"):
            ask(client, path)
        assert [client.answer().body for _ in range(4)] == [b"ab", b"unread", b"cd", b"e"]


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file larger than any buffer, whose bytes tell where they are."""
    path = tmp_path_factory.mktemp("file") / "big"
    path.write_bytes(b"".join(b"%015d\n" % number for number in range(1_000_000)))
    return path


FILES = {
    "": b"abcdefghij",
    "&offset=6": b"ghij",
    "&length=10": b"abcdefghij",
    "&length=4": b"abcd",
    "&length=0": b"",
    "&length=20": b"abcdefghij",  # not whole
    "&offset=10": b"",
    "&offset=50": b"",
    "&offset=5&length=5": b"fghij",
    "&status=304%20Not": b"",
}


@pytest.mark.parametrize("memory", ["", "&memory=1"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("query", FILES)
def test_file(server: Server, tmp_path: Path, memory: str, method: str, query: str) -> None:
    """A file goes out from where it stands, as much as its Content-Length says; it is closed in every case."""
    path = tmp_path / "file"
    path.write_bytes(b"abcdefghij")
    with server.connect() as client:
        ask(client, f"/file?path={path}{query}{memory}", method=method)
        answer = client.answer(method)
        assert answer.body == (FILES[query] if method == "GET" else b"")
        if method == "GET":
            assert answer.whole is (query != "&length=20")
        if "length=" in query:
            assert answer["content-length"] == query.rpartition("=")[2]
        client.end()
        assert client.rest() == b""
    events(server, "closed")


def test_files_without_sendfile(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With it switched off they are read instead, and the answers are the same to the byte."""
    path = tmp_path / "file"
    path.write_bytes(b"abcdefghij")

    def answers(one: Server) -> list[bytes]:
        found = []
        for method in ("GET", "HEAD"):
            for query in FILES:
                with one.connect() as client:
                    ask(client, f"/file?path={path}{query}", "Connection: close", method=method)
                    found.append(re.sub(rb"Date: [^\r]*", b"Date:", client.rest()))
        return found

    threads = request.node.callspec.params["server"]
    directory = Path(os.path.relpath(tmp_path))
    with serving(
        "tests.integration.http.wsgi_apps:application", directory, faults=True, threads=threads, sendfile="no"
    ) as without:
        assert answers(server) == answers(without)
        for one, reads in ((server, 0), (without, 1)):
            events(one, *["closed"] * 2 * len(FILES))
            assert one.get(f"/file?path={path}&told=1").body == b"abcdefghij"
            events(one, *["read"] * reads, "closed")


def test_a_file_and_the_next_request(server: Server, tmp_path: Path) -> None:
    """A connection lives on behind a file; what was pipelined behind it is answered behind it."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with server.connect() as client:
        for _ in range(3):
            ask(client, f"/file?path={path}")
        ask(client, "/unread")
        assert [client.answer().body for _ in range(4)] == [b"content", b"content", b"content", b"unread"]
    events(server, *["closed"] * 3)


def test_a_large_file_and_a_slow_reader(server: Server, big_file: Path) -> None:
    """A large file arrives whole, and is not taken into memory."""
    before = server.memory()
    with server.connect(receive_buffer=4096) as client:
        ask(client, f"/file?path={big_file}")
        answer = client.head()
        assert int(answer["content-length"]) == big_file.stat().st_size
        first = client.exactly(100_000)
        assert server.memory() - before < 4 << 20
        assert first + client.exactly(big_file.stat().st_size - 100_000) == big_file.read_bytes()
        ask(client, "/unread")
        assert client.answer().body == b"unread"
    events(server, "closed")


def test_a_file_for_a_client_that_goes(server: Server, big_file: Path) -> None:
    """The file is closed, and no descriptor is left."""
    open_before, said = server.descriptors(), len(server.log)
    for _ in range(3):
        with server.connect(receive_buffer=4096) as client:
            ask(client, f"/file?path={big_file}")
            client.exactly(100_000)
            client.reset()
    events(server, *["closed"] * 3)
    eventually(lambda: server.descriptors() <= open_before)
    assert "ERROR" not in server.log[said:]  # it is not the application's fault


BODY = b"one\ntwo\n\nlast"
INPUT = {
    "input.read()": BODY,
    "input.read(-1)": BODY,
    "input.read(None)": BODY,
    "input.read(5)": BODY[:5],
    "input.read(0)": b"",
    "input.read(1000000)": BODY,
    "[input.read(5), input.read(), input.read(), input.read(5)]": [BODY[:5], BODY[5:], b"", b""],
    "input.readline()": b"one\n",
    "input.readline(2)": b"on",
    "[input.readline() for _ in range(6)]": [b"one\n", b"two\n", b"\n", b"last", b"", b""],
    "input.readlines()": [b"one\n", b"two\n", b"\n", b"last"],
    "input.readlines(4)": [b"one\n"],
    "list(input)": [b"one\n", b"two\n", b"\n", b"last"],
    "[next(iter(input)), input.readline(), input.read()]": [b"one\n", b"two\n", b"\nlast"],
}


@pytest.mark.parametrize("it", INPUT)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_input(server: Server, it: str, framing: str) -> None:
    """Every method of wsgi.input, and CONTENT_LENGTH also after a chunked body."""
    with server.connect() as client:
        if framing == "length":
            ask(client, "/input?it=" + quote(it), method="POST", body=BODY)
        else:
            ask(client, "/input?it=" + quote(it), "Transfer-Encoding: chunked", method="POST")
            client.send_apart([b"5\r\n" + BODY[:5] + b"\r\n", b"8;x=y\r\n" + BODY[5:] + b"\r\n0\r\nX: y\r\n\r\n"])
        given, length = ast.literal_eval(client.answer().body.decode())
        assert given == INPUT[it]
        assert length == str(len(BODY))


@pytest.mark.parametrize(
    "it", ["input.read()", "input.readline()", "b''.join(input.readlines())", "b''.join(input)", "input.read(5)"]
)
def test_no_input(server: Server, it: str) -> None:
    """A request without a body has an empty input."""
    given, length = ast.literal_eval(server.get("/input?it=" + quote(it)).body.decode())

    assert (given, length or "0") == (b"", "0")


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("size", [0, 1, 512 * 1024 - 1, 512 * 1024 + 1, 5_000_001])
def test_large_bodies(server: Server, framing: str, size: int) -> None:
    """A body of any size is whole, and does not stay in memory."""
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    before = server.memory()
    with server.connect() as client:
        if framing == "length":
            ask(client, "/size", f"Content-Length: {size}", method="POST")
            client.send(body)
        else:
            ask(client, "/size", "Transfer-Encoding: chunked", method="POST")
            for start in range(0, size, 77_777):
                piece = body[start : start + 77_777]
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            client.send(b"0\r\n\r\n")
        assert client.answer().body == b"%d %d %d" % (size, sum(body), size)
        assert server.memory() - before < 4 << 20
        ask(client, "/unread")
        assert client.answer().body == b"unread"


def test_an_application_need_not_read(server: Server) -> None:
    """What it leaves unread is never taken for the next request."""
    smuggled = b"GET /order?it=smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    with server.connect() as client:
        ask(client, "/unread", method="POST", body=smuggled)
        ask(client, "/pieces?it=next")
        assert [client.answer().body for _ in range(2)] == [b"unread", b"next"]
    events(server, "closed")


def test_continue(server: Server) -> None:
    """100 Continue is sent once the head has passed all checks, and not if the body is there already or is not wanted."""
    with server.connect() as client:
        for _ in range(2):
            ask(client, "/size", "Content-Length: 3", "Expect: 100-continue", method="POST")
            assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"abc")
            assert client.answer().body == b"3 294 3"
    with server.connect() as client:
        ask(client, "/size", "Content-Length: 2000000000", "Expect: 100-continue", method="POST")
        answer = client.answer()
        assert (answer.status, answer.interim) == (413, [])
        assert client.rest() == b""
    with server.connect() as client:
        client.send(b"POST /size HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        client.send(b"abc")
        answer = client.answer()
        assert (answer.body, answer.interim) == (b"3 294 3", [])


def test_a_slow_body_does_not_hold_the_application(server: Server) -> None:
    """While one client sends its body, others are served, also inline."""
    with server.connect() as slow:
        ask(slow, "/size", "Content-Length: 3", method="POST")
        slow.send(b"a")
        assert server.get("/unread").body == b"unread"
        slow.send(b"bc")
        assert slow.answer().body == b"3 294 3"


def test_a_client_that_goes_within_its_body(server: Server) -> None:
    """The application is not called; nothing is left behind."""
    before = server.descriptors()
    for size in (3, 2_000_000):
        with server.connect() as client:
            ask(client, "/order?it=never", f"Content-Length: {size + 1}", method="POST")
            client.send(b"x" * size)
            client.reset()
    eventually(lambda: server.descriptors() <= before)
    assert server.json("/-/events") == []
