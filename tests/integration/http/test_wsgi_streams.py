# one case, one line
"""WSGI over sockets: streams, files and request bodies, slow clients and disconnecting clients."""

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
    """Wait until the clients of the previous test are gone, and clear its events."""
    server.quiet()


def ask(client: Client, path: str, *lines: str, method: str = "GET", body: bytes = b"") -> None:
    """Send a request."""
    head = [f"{method} {path} HTTP/1.1", "Host: a", *lines, *([f"Content-Length: {len(body)}"] if body else []), "", ""]
    client.send("\r\n".join(head).encode() + body)


def test_each_piece_is_sent_at_once(server: Server, tmp_path: Path) -> None:
    """The client gets the first piece before the application makes the second."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with server.connect() as client:
        ask(client, f"/fifo?path={fifo}")
        answer = client.head()
        assert answer.chunked
        assert client.until(b"first\r\n") == b"5\r\nfirst\r\n"
        fifo.open("wb").close()
        assert client.until(b"\r\n0\r\n\r\n").endswith(b"6\r\nsecond\r\n0\r\n\r\n")


def test_an_http_1_0_stream_ends_with_the_connection(server: Server) -> None:
    """Without chunks, the end of the connection ends the body."""
    with server.connect() as client:
        client.send(b"GET /pieces?it=a,b,c HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = client.answer()
        assert (answer.body, answer["connection"], answer.chunked) == (b"abc", "close", False)


@pytest.mark.heavy
def test_a_generator_waits_for_a_slow_reader(server: Server, tmp_path: Path) -> None:
    """The server takes no more pieces than the buffers hold; then the whole body arrives."""
    counter = tmp_path / "counter"
    counter.touch()
    with server.connect(receive_buffer=4096) as client:
        ask(client, f"/endless?path={counter}&count=300", "Connection: close")
        assert settled(lambda: int(counter.read_bytes() or 0)) < 60  # 65536 bytes each: 1 MiB, plus the kernel's buffers
        answer = client.answer()
        assert len(answer.body) == 300 * 65536
        assert answer.whole
    events(server, "closed")


def test_a_disconnect_closes_the_generator(server: Server, tmp_path: Path) -> None:
    """The server soon stops taking pieces for a disconnected client."""
    counter = tmp_path / "counter"
    counter.touch()
    with server.connect() as client:
        ask(client, f"/endless?path={counter}&count=100000")
        client.exactly(1 << 20)
        client.reset()
    events(server, "closed")


def test_inline_requests_run_one_at_a_time(server: Server, request: pytest.FixtureRequest) -> None:
    """An inline request lasts until its iterator is closed; no other request begins before."""
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


def test_requests_in_threads_run_at_the_same_time(server: Server, request: pytest.FixtureRequest) -> None:
    """Four threads serve four requests at once."""
    if request.node.callspec.params["server"] == "0":
        return
    clients = [server.connect() for _ in range(4)]
    for client in clients:
        ask(client, "/barrier")
    for client in clients:
        assert client.answer().body == b"together"
        client.sock.close()


def test_pipelined_responses_are_in_order(server: Server) -> None:
    """Responses of any kind keep the order of their requests."""
    with server.connect() as client:
        for path in ("/pieces?it=a,b", "/unread", "/pieces?it=c,d&list=1", "/pieces?it=e"):
            ask(client, path)
        assert [client.answer().body for _ in range(4)] == [b"ab", b"unread", b"cd", b"e"]


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file larger than any buffer, whose bytes show their position."""
    path = tmp_path_factory.mktemp("file") / "big"
    path.write_bytes(b"".join(b"%015d\n" % number for number in range(1_000_000)))
    return path


FILES = {
    "": b"abcdefghij",
    "&offset=6": b"ghij",
    "&length=10": b"abcdefghij",
    "&length=4": b"abcd",
    "&length=0": b"",
    "&length=20": b"abcdefghij",  # truncated
    "&offset=10": b"",
    "&offset=50": b"",
    "&offset=5&length=5": b"fghij",
    "&status=304%20Not": b"",
}


@pytest.mark.parametrize("memory", ["", "&memory=1"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("query", FILES)
def test_a_file_is_sent_from_its_position(server: Server, tmp_path: Path, memory: str, method: str, query: str) -> None:
    """The file is sent from its current position, up to its Content-Length; it is closed in every case."""
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


def test_responses_are_the_same_without_sendfile(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Without sendfile the files are read instead; the responses have the same bytes."""
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
            assert one.get(f"/file?path={path}&record_read=1").body == b"abcdefghij"
            events(one, *["read"] * reads, "closed")


def test_a_connection_stays_open_after_a_file(server: Server, tmp_path: Path) -> None:
    """Requests pipelined after a file are answered in order."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with server.connect() as client:
        for _ in range(3):
            ask(client, f"/file?path={path}")
        ask(client, "/unread")
        assert [client.answer().body for _ in range(4)] == [b"content", b"content", b"content", b"unread"]
    events(server, *["closed"] * 3)


def test_a_large_file_for_a_slow_reader_is_not_loaded_into_memory(server: Server, big_file: Path) -> None:
    """The file arrives whole."""
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


def test_a_disconnect_closes_the_file(server: Server, big_file: Path) -> None:
    """The file is closed, and no descriptor stays open."""
    open_before, log_start = server.descriptors(), len(server.log)
    for _ in range(3):
        with server.connect(receive_buffer=4096) as client:
            ask(client, f"/file?path={big_file}")
            client.exactly(100_000)
            client.reset()
    events(server, *["closed"] * 3)
    eventually(lambda: server.descriptors() <= open_before)
    assert "ERROR" not in server.log[log_start:]  # the application made no error


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
def test_every_method_of_wsgi_input_works(server: Server, it: str, framing: str) -> None:
    """CONTENT_LENGTH is set also after a chunked body."""
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
def test_a_request_without_body_has_an_empty_input(server: Server, it: str) -> None:
    """Every method returns nothing."""
    given, length = ast.literal_eval(server.get("/input?it=" + quote(it)).body.decode())

    assert (given, length or "0") == (b"", "0")


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("size", [0, 1, 512 * 1024 - 1, 512 * 1024 + 1, 5_000_001])
def test_a_large_body_arrives_whole_and_is_not_kept_in_memory(server: Server, framing: str, size: int) -> None:
    """A body of any size is whole, and large ones are stored in a file."""
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


def test_an_unread_body_is_never_the_next_request(server: Server) -> None:
    """The application does not read its body; the bytes are dropped."""
    smuggled = b"GET /order?it=smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    with server.connect() as client:
        ask(client, "/unread", method="POST", body=smuggled)
        ask(client, "/pieces?it=next")
        assert [client.answer().body for _ in range(2)] == [b"unread", b"next"]
    events(server, "closed")


def test_continue_is_sent_once_the_head_is_accepted(server: Server) -> None:
    """100 Continue is not sent to a refused request, nor to HTTP/1.0."""
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


def test_a_slow_body_does_not_block_the_application(server: Server) -> None:
    """While one client sends its body, other clients are served, also inline."""
    with server.connect() as slow:
        ask(slow, "/size", "Content-Length: 3", method="POST")
        slow.send(b"a")
        assert server.get("/unread").body == b"unread"
        slow.send(b"bc")
        assert slow.answer().body == b"3 294 3"


def test_a_disconnect_within_the_body_does_not_call_the_application(server: Server) -> None:
    """No descriptor stays open."""
    before = server.descriptors()
    for size in (3, 2_000_000):
        with server.connect() as client:
            ask(client, "/order?it=never", f"Content-Length: {size + 1}", method="POST")
            client.send(b"x" * size)
            client.reset()
    eventually(lambda: server.descriptors() <= before)
    assert server.json("/-/events") == []
