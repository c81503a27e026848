# one case, one line
"""Timeouts and the end of connections: no wait exceeds its timeout, and no response is lost."""

import contextlib
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command import eventually
from tests.integration.http.harness import Server, serving

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SMALL = {"header_timeout": 1, "body_timeout": 1, "keep_alive": 1, "write_timeout": 1}
PATIENT = {"body_timeout": 4, "write_timeout": 4}
PAGES = {"wsgi": "tests.integration.http.wsgi_apps:application", "asgi": "tests.integration.http.asgi_apps:app"}


@pytest.fixture(scope="module", params=PAGES)
def interface(request: pytest.FixtureRequest) -> str:
    """Each interface."""
    return str(request.param)


@pytest.fixture(scope="module")
def hasty_server(interface: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with timeouts of one second (and up to one more, since it checks once a second)."""
    with serving(PAGES[interface], Path(os.path.relpath(tmp_path_factory.mktemp("s"))), **SMALL) as server:
        yield server


@pytest.fixture(scope="module")
def patient_server(interface: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with timeouts that are long enough for a client on a busy machine."""
    with serving(PAGES[interface], Path(os.path.relpath(tmp_path_factory.mktemp("s"))), **PATIENT) as server:
        yield server


@pytest.fixture(scope="module")
def server(interface: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the default timeouts."""
    with serving(PAGES[interface], Path(os.path.relpath(tmp_path_factory.mktemp("s")))) as server:
        yield server


def page(interface: str) -> bytes:
    """A request for a small page."""
    return (b"GET /pieces?it=x" if interface == "wsgi" else b"GET /after") + b" HTTP/1.1\r\nHost: a\r\n\r\n"


def upload(interface: str, *lines: bytes) -> bytes:
    """The head of a request whose body is read."""
    return b"\r\n".join([b"POST /%b HTTP/1.1" % (b"size" if interface == "wsgi" else b"body"), b"Host: a", *lines, b"", b""])


def test_each_kind_of_silence_ends_at_its_timeout(interface: str, hasty_server: Server) -> None:
    """An incomplete request gets a 408; a connection without a request is closed without a response."""
    with hasty_server.frozen():
        silent, within_line, within_head, idle, within_length, within_chunks, after_empty = clients = [
            hasty_server.connect() for _ in range(7)
        ]
        within_line.send(b"GET / HT")
        within_head.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        idle.send(page(interface))
        within_length.send(upload(interface, b"Content-Length: 10") + b"abc")
        within_chunks.send(upload(interface, b"Transfer-Encoding: chunked") + b"5\r\nab")
        after_empty.send(b"\r\n")
        began = time.monotonic()

    assert idle.answer().status == 200
    assert silent.rest() == b""
    assert idle.rest() == b""
    for client in (within_line, within_head, within_length, within_chunks):
        answer = client.answer()
        assert (answer.status, answer["connection"]) == (408, "close")
        assert client.rest() == b""
    after_empty.rest()
    assert 0.9 < time.monotonic() - began < 20
    for client in clients:
        client.sock.close()


@pytest.mark.heavy
def test_a_trickle_of_bytes_does_not_extend_the_header_timeout(hasty_server: Server) -> None:
    """A head that arrives byte by byte gets a 408."""
    began = time.monotonic()
    with hasty_server.connect() as client:
        client.sock.settimeout(0.1)
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        data = b""
        while not data:
            assert time.monotonic() - began < 20
            with contextlib.suppress(BrokenPipeError):
                client.send(b"X: y\r\n")
            with contextlib.suppress(TimeoutError):
                data = client.receive()
        assert data.startswith(b"HTTP/1.1 408 ")


def test_an_incomplete_second_head_gets_408(interface: str, hasty_server: Server) -> None:
    """A connection with part of a next request is not idle."""
    with hasty_server.connect() as client:
        client.send(page(interface) + b"GET / HT")
        assert client.answer().status == 200
        assert client.answer().status == 408
        assert client.rest() == b""


@pytest.mark.heavy
def test_a_slow_body_is_not_cut(interface: str, patient_server: Server) -> None:
    """The body timeout runs only while no byte arrives."""
    with patient_server.connect() as client:
        client.send(upload(interface, b"Content-Length: 6"))
        client.sock.settimeout(1.1)
        for byte in (b"a", b"b", b"c", b"d", b"e"):
            client.send(byte)
            with pytest.raises(TimeoutError):
                client.receive()
        client.send(b"f")
        client.sock.settimeout(10)
        assert client.answer().body.startswith(b"6 597")


def test_no_timeout_runs_while_the_application_works(hasty_server: Server, interface: str, tmp_path: Path) -> None:
    """A slow application does not close the connection."""
    if interface == "asgi":
        with hasty_server.connect() as client:
            client.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
            client.sock.settimeout(2.5)
            with pytest.raises(TimeoutError):
                client.receive()
            hasty_server.get("/-/release")
            assert client.answer().body == b"0 0"


@pytest.mark.heavy
def test_a_client_that_stops_reading_is_cut(hasty_server: Server, interface: str, tmp_path: Path) -> None:
    """The connection of a client that reads nothing for the write timeout is closed."""
    path = tmp_path / "big"
    path.write_bytes(b"x" * 20_000_000)
    (tmp_path / "counter").touch()
    pages = (
        ["/pour?count=300"] if interface == "asgi" else [f"/file?path={path}", f"/endless?path={tmp_path / 'counter'}&count=300"]
    )
    for target in pages:
        log_start = len(hasty_server.log)
        with hasty_server.connect(receive_buffer=4096) as client:
            client.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            client.head()
            eventually(lambda: "has read nothing" in hasty_server.log[log_start:])  # noqa: B023  # called at once
            with contextlib.suppress(ConnectionResetError):
                assert len(client.rest()) < 20_000_000


@pytest.mark.heavy
def test_a_client_that_reads_slowly_is_not_cut(patient_server: Server, interface: str, tmp_path: Path) -> None:
    """The response continues while the client reads now and then."""
    path = tmp_path / "big"
    path.write_bytes(b"x" * 6_000_000)
    target = "/pour?count=90" if interface == "asgi" else f"/file?path={path}"
    with patient_server.connect(receive_buffer=4096) as client:
        client.send(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        answer = client.head()
        end = time.monotonic() + 6
        data = b""
        while time.monotonic() < end:
            data += client.exactly(200_000)
            time.sleep(0.4)  # the test is about a slow reader
        data += client.rest()
    assert len(data) >= (6_000_000 if not answer.chunked else 90 * 65536)


@pytest.mark.parametrize("surplus", [1, 100, 100_000, 5_000_000])
def test_bytes_after_the_last_request_do_not_spoil_its_response(server: Server, interface: str, surplus: int) -> None:
    """Bytes after a request with Connection: close are ignored, and the response stays whole."""
    with server.connect() as client:
        client.send(page(interface).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"GET / HTTP/1.1\r\n"[:surplus])
        try:
            for _ in range(surplus // 100_000):
                client.send(b"x" * 100_000)
        except (BrokenPipeError, ConnectionResetError):
            assert surplus > 1_000_000
        answer = client.answer()
        assert (answer.status, answer.whole, answer["connection"]) == (200, True, "close")


@pytest.mark.parametrize("surplus", [0, 100_000])
def test_a_refusal_reaches_a_client_that_is_still_sending(server: Server, surplus: int) -> None:
    """The response to a bad request is not lost to a reset."""
    with server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nBad header\r\n\r\n" + b"x" * surplus)
        answer = client.answer()
        assert (answer.status, answer["connection"]) == (400, "close")
        assert client.rest() == b""


def test_a_half_closed_client_gets_whole_responses(server: Server, interface: str) -> None:
    """A client that half-closes after its requests gets all responses."""
    with server.connect() as client:
        client.send(page(interface) * 3)
        client.end()
        assert [client.answer().status for _ in range(3)] == [200] * 3
        assert client.rest() == b""
    with server.connect() as client:
        client.send(upload(interface, b"Content-Length: 3") + b"abc")
        client.end()
        assert client.answer().body.startswith(b"3 294")
        assert client.rest() == b""


def test_a_half_closed_slow_reader_gets_a_long_response(server: Server, interface: str, tmp_path: Path) -> None:
    """A long response arrives whole at a half-closed client that reads slowly."""
    path = tmp_path / "big"
    path.write_bytes(b"x" * 5_000_000)
    target = "/pour?count=80" if interface == "asgi" else f"/file?path={path}"
    with server.connect(receive_buffer=4096) as client:
        client.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        client.end()
        answer = client.answer()
        assert answer.whole
        assert len(answer.body) == (5_000_000 if interface == "wsgi" else 80 * 65536)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = path.with_name("key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", key, "-out", path],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def tls_server(request: pytest.FixtureRequest, interface: str, certificate: Path) -> Iterator[Server]:
    """A server with TLS, on each event loop."""
    with Server(
        PAGES[interface], "127.0.0.1:0", certfile=certificate, keyfile=certificate, loop=request.param, body_timeout=3
    ) as server:
        yield server


def trusting(certificate: Path) -> ssl.SSLContext:
    """A client's context that trusts the certificate."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def test_tls_serves_requests_on_one_connection(tls_server: Server, interface: str, certificate: Path) -> None:
    """Requests, keep-alive, scheme and ALPN work over TLS."""
    with tls_server.connect(tls=trusting(certificate)) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.selected_alpn_protocol() == "http/1.1"
        for _ in range(3):
            client.send(page(interface))
            assert client.answer().status == 200
        client.send(
            b"GET /%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % (b"environ" if interface == "wsgi" else b"scope/")
        )
        body = client.answer().body
        assert b"'https'" in body or b'"wsgi.url_scheme": "https"' in body
        assert client.rest() == b""


def test_tls_carries_large_bodies_and_files(tls_server: Server, interface: str, certificate: Path, tmp_path: Path) -> None:
    """Large bodies arrive whole in both directions."""
    with tls_server.connect(tls=trusting(certificate)) as client:
        client.send(upload(interface, b"Content-Length: 3000000") + b"a" * 3_000_000)
        assert client.answer().body.startswith(b"3000000 291000000")
        if interface == "wsgi":
            path = tmp_path / "big"
            path.write_bytes(bytes(range(256)) * 20_000)
            client.send(f"GET /file?path={path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert client.answer().body == path.read_bytes()
        else:
            client.send(b"GET /pour?count=50 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert len(client.answer().body) == 50 * 65536


@pytest.mark.heavy
def test_tls_refuses_bad_requests_and_bad_clients(tls_server: Server, interface: str, certificate: Path) -> None:
    """A bad request gets its response over TLS; a plain-text client or a reset does not affect other clients."""
    with tls_server.connect(tls=trusting(certificate)) as client:
        client.send(b"GET / HTTP/1.1\r\nBad header\r\n\r\n" + b"x" * 50_000)
        assert client.answer().status == 400
    with tls_server.connect(tls=trusting(certificate)) as client:
        client.send(upload(interface, b"Content-Length: 10") + b"abc")
        assert client.answer().status == 408
    with tls_server.connect() as client:
        client.send(GET)
        assert b"HTTP/1.1 200" not in client.rest()
    with tls_server.connect(tls=trusting(certificate)) as client:
        client.send(b"GET / HT")
        client.reset()
    with tls_server.connect(tls=trusting(certificate)) as client:
        client.send(page(interface))
        assert client.answer().status == 200
