"""Clients that read slowly or never: the worker continues, and the master does not consider it stuck."""

from __future__ import annotations

import select
import socket
import ssl
import subprocess
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import Command, eventually, sockets
from tests.integration.conftest import Start

TIMEOUT = 6
STEADY = 9.0
"""Seconds after which a worker without heartbeats would be killed."""
LOOPS = pytest.mark.parametrize("loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.heavy)])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = path.with_name("key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", path],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


@pytest.fixture
def trust(certificate: Path) -> ssl.SSLContext:
    """A client's context that trusts the certificate."""
    return ssl.create_default_context(cafile=str(certificate))


def secure(serve: Start, certificate: Path, *options: object) -> Command:
    """Start an app behind TLS."""
    return serve("tests.integration.small_apps:who_asgi", "--base-port", 0, "--certfile", certificate, *options)


@pytest.mark.heavy
def test_a_tls_client_that_never_reads_is_closed_and_the_worker_s_clock_runs_on(
    serve: Start, certificate: Path, trust: ssl.SSLContext
) -> None:
    """The worker's heartbeats depend on its clock; the Date header shows that the clock runs."""
    command = secure(serve, certificate, "--keyfile", certificate, "--loop", "asyncio", "--keep-alive", 1, "--timeout", 20)
    (worker,) = command.workers
    before = sockets(worker)
    with Client(command.port, trust) as client:
        assert client.get().status == 200
        eventually(lambda: sockets(worker) == before, "the worker closes the connection")

        def date() -> float:
            answer = get(command.port, tls=trust)
            assert answer.json["pid"] == worker
            return parsedate_to_datetime(answer["date"]).timestamp()

        began = date()
        eventually(lambda: date() > began + 2, "the clock runs")
    assert command.workers == [worker]
    assert "ERROR" not in command.stderr


@pytest.mark.heavy
@LOOPS
def test_a_slow_tls_reader_gets_the_whole_last_response(
    serve: Start, certificate: Path, trust: ssl.SSLContext, loop: str
) -> None:
    """The TCP transport below the TLS transport still holds the end of the response when the TLS transport is empty."""
    key = ("--certfile", certificate, "--keyfile", certificate)
    command = serve("tests.integration.http.flood_apps:application", "--threads", 1, "--base-port", 0, "--loop", loop, *key)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.connect(("127.0.0.1", command.port))
        with trust.wrap_socket(sock, server_hostname="localhost") as client:
            client.sendall(b"GET /generated HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            count = 0
            while data := client.recv(16384):
                count += len(data)
                if count > 200_000:
                    select.select([], [], [], len(data) / 300_000)  # a slow reader is what is tested
    assert count > 48 * 65536


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["file", "generator"])
def test_a_worker_that_waits_for_a_slow_reader_is_not_killed(serve: Start, tmp_path: Path, kind: str) -> None:
    """The only thread waits for the client; the application is not stuck."""
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 << 30)
    app = "tests.integration.http.wsgi_apps:application"
    command = serve(app, "--bind", "127.0.0.1:0", "--workers", 1, "--threads", 1, "--timeout", TIMEOUT)
    workers = command.workers
    with Client(command.port) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.request(f"/file?path={big}" if kind == "file" else f"/endless?path={big}")
        assert client.head().status == 200
        end = time.monotonic() + STEADY
        while time.monotonic() < end:
            assert client.receive()
            select.select([], [], [], 0.02)  # a slow reader is what is tested
        assert command.workers == workers
    assert get(command.port, "/pieces?it=x").text == "x"
    assert command.workers == workers
    assert not [line for line in command.log if "WARNING" in line or "ERROR" in line]


@pytest.mark.heavy
@LOOPS
def test_an_idle_tls_client_does_not_delay_a_drain(serve: Start, certificate: Path, trust: ssl.SSLContext, loop: str) -> None:
    """The server has sent the close, although the keep-alive client does not read it."""
    command = secure(serve, certificate, "--keyfile", certificate, "--loop", loop, "--linger", 0.2, "--graceful-timeout", 60)
    with Client(command.port, trust) as client:
        assert client.get().status == 200
        stop_within(command, 20)


@pytest.mark.heavy
@LOOPS
def test_a_client_without_a_tls_handshake_does_not_delay_a_drain(serve: Start, certificate: Path, loop: str) -> None:
    """It gets two seconds, the same as a client without TLS that has sent nothing."""
    command = secure(serve, certificate, "--keyfile", certificate, "--loop", loop, "--linger", 0.2, "--graceful-timeout", 60)
    (worker,) = command.workers
    before = sockets(worker)
    with Client(command.port):
        eventually(lambda: sockets(worker) == before + 1)
        stop_within(command, 20)


def stop_within(command: Command, seconds: float) -> None:
    """Stop a command and check that it exits in time, without an error."""
    began = time.monotonic()
    command.process.terminate()
    command.wait()
    assert time.monotonic() - began < seconds, command.stderr
    assert "still open" not in command.stderr
    assert "ERROR" not in command.stderr
