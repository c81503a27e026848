"""A refusal is reported to the client if possible, in one debug line with peer and reason, and by a counter for TLS.

Each place where the server refuses a connection or a request is covered here: plain HTTP on a TLS port; TLS handshakes (cipher,
protocol, certificate, garbage, timeout); a head that is malformed, too large or late; a connection without a request; a body that is
too large, late or cut short; too many concurrent requests; an HTTP/2 preface; a WebSocket handshake; Expect; a PROXY header; a
half-closed client whose response does not come; a TLS handshake that a drain does not wait for. Two cases are no refusal and have no
line: a client that disconnects before it has sent a byte, and an idle connection that times out. A client that does not read has a
line at a higher level.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.certificates import Authority
from tests.integration.client import Client, get
from tests.integration.command import Command, eventually
from tests.integration.conftest import Start
from tests.integration.site import Site

LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
LOOPS_IN_FULL = pytest.mark.parametrize("loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.heavy)])
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
PLAIN = (
    GET,
    b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000),
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\r\n" + GET,
    b"SSH-2.0-x\r\n",
    b"G",
)
GARBAGE = (b"\x16\x03\x01\xff\xff" + bytes(100), b"\x80\x2e\x01", bytes(10), b"\x16", b"\xff\xf4")


def refusal_lines(command: Command) -> list[str]:
    """Return the text of each log line about a refusal."""
    return re.findall(r"\[DEBUG\] worker \d+ gen \d+: (.* refused: .*)$", command.stderr, re.MULTILINE)


def failed_handshakes(site: Site) -> int:
    """Return the number of failed TLS handshakes."""
    return sum(row["handshakes_failed"] for row in site.rows())


@contextlib.contextmanager
def sent(port: int, data: bytes, *, end: bool = True) -> Iterator[Client]:
    """Send this data only; yield the client."""
    with Client(port) as client:
        client.send(data)
        if end:
            client.sock.shutdown(socket.SHUT_WR)
        yield client


def tls_client(authority: Authority, version: ssl.TLSVersion, ciphers: str) -> ssl.SSLContext:
    """Return the context of a client that supports only this TLS version and these ciphers."""
    context = authority.trust()
    context.minimum_version = context.maximum_version = version
    context.set_ciphers(ciphers)
    return context


@LOOPS
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
@pytest.mark.parametrize("proxied", [False, pytest.param(True, marks=pytest.mark.heavy)])
def test_every_refusal_on_a_tls_port_is_logged_and_counted(
    start: Start,
    tmp_path: Path,
    authority: Authority,
    loop: str,
    proxied: bool,  # noqa: FBT001
) -> None:
    secure = (
        "--certfile",
        authority.server.cert,
        "--keyfile",
        authority.server.key,
        "--ciphers",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
    )
    options = ("--loop", loop, "--log-level", "debug", "--header-timeout", 1, *(("--proxy-protocol", "v1") if proxied else ()))
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, *secure, *options)
    header = b"PROXY TCP4 127.0.0.1 127.0.0.1 5 6\r\n" if proxied else b""
    port = site.command.port

    for number, data in enumerate(PLAIN):
        with sent(port, header + data, end=number != 1) as client:
            answer = client.answer()
            assert (answer.status, answer["connection"]) == (400, "close")
            assert answer.text == "400 Bad Request: plain HTTP was sent where TLS is spoken: use https\n"
            assert client.rest() == b""
    for data in GARBAGE:
        with sent(port, header + data) as client:
            assert not client.rest().startswith(b"HTTP")
    with sent(port, header + b"\x16\x03", end=False) as client:
        assert client.rest() == b""  # --header-timeout is over
    with sent(port, header) as client:
        assert client.rest() == b""  # a port scan: connects and closes
    for context in (
        tls_client(authority, ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256"),
        tls_client(authority, ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
    ):
        with sent(port, header, end=False) as client, pytest.raises(ssl.SSLError):
            context.wrap_socket(client.sock, server_hostname="localhost")

    failed = len(PLAIN) + len(GARBAGE) + 3
    eventually(lambda: failed_handshakes(site) == failed, lambda: (failed_handshakes(site), refusal_lines(site.command)))
    said = refusal_lines(site.command)
    assert said[: len(PLAIN)] == [
        "request from 127.0.0.1 refused: 400, plain HTTP was sent where TLS is spoken: use https"
    ] * len(PLAIN)
    assert all(line.startswith("TLS handshake from 127.0.0.1 refused: ") for line in said[len(PLAIN) :])
    assert [line.rpartition(" ")[2] for line in said[-2:]] == ["NO_SHARED_CIPHER", "UNSUPPORTED_PROTOCOL"]
    assert len(said) == failed, said
    if not proxied:
        assert get(port, tls=authority.trust()).status == 200


@LOOPS_IN_FULL
def test_a_missing_or_unknown_client_certificate_is_logged_and_counted(
    start: Start, tmp_path: Path, authority: Authority, loop: str
) -> None:
    secure = (
        "--certfile",
        authority.server.cert,
        "--keyfile",
        authority.server.key,
        "--cert-reqs",
        2,
        "--ca-certs",
        authority.ca.cert,
    )
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, *secure, "--loop", loop, "--log-level", "debug")
    for own in (None, authority.stranger):
        with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
            get(site.command.port, tls=authority.trust(own))
    eventually(lambda: failed_handshakes(site) == 2, lambda: refusal_lines(site.command))
    missing, stranger = refusal_lines(site.command)
    assert missing == "TLS handshake from 127.0.0.1 refused: PEER_DID_NOT_RETURN_A_CERTIFICATE"
    assert re.fullmatch(
        "TLS handshake from 127.0.0.1 refused: .*self.signed certificate.*|.* CERTIFICATE_VERIFY_FAILED", stranger
    )


def head(*fields: str, method: str = "GET") -> bytes:
    """Return the head of a request."""
    return "\r\n".join([f"{method} / HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


@pytest.mark.heavy
@LOOPS_IN_FULL
def test_every_refusal_without_tls_is_answered_and_logged(serve: Start, loop: str) -> None:
    limits = (
        "--header-timeout",
        1,
        "--body-timeout",
        1,
        "--limit-request-body",
        1000,
        "--limit-request-head",
        2000,
        "--limit-request-line",
        1000,
    )
    more = ("--limit-concurrency", 1, "--proxy-protocol", "v1", "--proxy-allow-from", "::1", "--bind", "[::1]:0")
    command = serve("example_apps.echo:app", "--bind", "127.0.0.1:0", "--loop", loop, "--log-level", "debug", *limits, *more)
    port, proxy = command.ports

    def refused(data: bytes, status: int, *, end: bool = False) -> None:
        with sent(port, data, end=end) as client:
            assert client.answer().status == status
            assert client.rest() == b""

    with sent(port, b"", end=False) as client:
        assert client.rest() == b""
    refused(b"GET / HTTP/1.1\r\n", 408)
    refused(b"nonsense\r\n\r\n", 400)
    refused(head("X: " + "x" * 2000), 431)
    refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505)
    refused(head("Expect: x"), 417)
    refused(head("Connection: upgrade", "Upgrade: websocket"), 426)
    refused(head("Content-Length: 1001", method="POST"), 413)
    refused(head("Content-Length: 10", method="POST"), 408)
    refused(head("Content-Length: 10", method="POST") + b"12345", 400, end=True)
    with sent(port, head("Content-Length: 10", method="POST"), end=False) as holding:
        eventually(lambda: holding.sock.send(b"1"), "the byte is sent")
        refused(GET, 503)
        holding.send(b"x" * 9)
        assert holding.answer().status == 200
        with Client(port) as kept:
            assert kept.get().status == 200
    for _ in range(2):
        with Client(("::1", proxy)) as client:
            client.send(GET)
            assert client.rest(reset=True) == b""

    wanted = [
        "connection from 127.0.0.1 refused: no request came in time (--header-timeout)",
        *(f"request from 127.0.0.1 refused: {status}, " for status in (408, 400, 431, 505, 417, 426, 413, 408, 400, 503)),
        "connection from ::1 refused: its PROXY header is missing, or not of v1 (--proxy-protocol v1)",
    ]
    eventually(lambda: len(refusal_lines(command)) == len(wanted), lambda: refusal_lines(command))
    assert [line[: len(want)] for line, want in zip(refusal_lines(command), wanted, strict=True)] == wanted


SILENT = """
import asyncio
async def app(scope, receive, send):
    if scope["type"] == "http":
        await asyncio.Event().wait()
"""


@pytest.mark.heavy
def test_a_half_closed_request_and_a_late_handshake_are_logged(start: Start, tmp_path: Path, authority: Authority) -> None:
    secure = ("--certfile", authority.server.cert, "--keyfile", authority.server.key, "--bind", "127.0.0.1:0")
    options = ("--log-level", "debug", "--write-timeout", 1, "--graceful-timeout", 1)
    half_closed = Site(start, tmp_path, "app:app", "--base-port", 0, *options, code=SILENT)
    with sent(half_closed.command.port, GET) as client, contextlib.suppress(ConnectionError):
        assert client.rest() == b""
    wanted = ["request from 127.0.0.1 refused: it sends no more, and its answer does not go on"]
    eventually(lambda: refusal_lines(half_closed.command) == wanted, lambda: half_closed.command.stderr)
    half_closed.command.stop()

    command = start("example_apps.hello_wsgi:app", *secure, "--log-level", "debug").ready()
    with Client(command.port) as client:
        client.send(b"\x16\x03")
        assert get(command.port, tls=authority.trust()).status == 200
        command.kill(signal.SIGTERM)
        command.wait()
        assert refusal_lines(command) == ["connection from 127.0.0.1 refused: it had not begun when this process came to its end"]
