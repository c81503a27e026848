"""The first request of a TLS connection comes in the same bytes as the end of the handshake, or in pieces."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TypeVar

import pytest

from tests.integration.certificates import Authority
from tests.integration.client import dial
from tests.integration.conftest import Start

BODY = bytes(range(256)) * 150
REQUEST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BODY) + BODY
T = TypeVar("T")


def exchange(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None, piece: int) -> tuple[bytes, ssl.SSLObject]:
    """Send a request with the last bytes of the handshake; return the answer and the state of TLS.

    Args:
        port: The server's port.
        context: The client's context.
        session: A session to resume.
        piece: The largest number of bytes that are sent at once.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost", session=session)

    def flush() -> None:
        data = outgoing.read()
        for start in range(0, len(data), piece):
            sock.sendall(data[start : start + piece])

    def wait(call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                flush()
                data = sock.recv(65536)
                assert data, "the server has closed the connection"
                incoming.write(data)

    with dial(port) as sock:
        wait(tls.do_handshake)
        tls.write(REQUEST)  # the client's last bytes of the handshake are still in `outgoing`
        answer = b""
        while data := wait(lambda: tls.read(65536)):
            answer += data
        return answer, tls


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_request_comes_with_the_end_of_the_handshake(serve: Start, authority: Authority, loop: str) -> None:
    pair = authority.server
    command = serve("example_apps.echo:app", "--base-port", 0, "--loop", loop, "--certfile", pair.cert, "--keyfile", pair.key)

    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context, session = authority.trust(), None
        context.minimum_version = context.maximum_version = version
        for piece in (1 << 20, 1 << 20, 1000, 7):
            answer, tls = exchange(command.port, context, session, piece)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b'"length": %d' % len(BODY) in answer
            assert tls.session_reused == (session is not None)
            session = tls.session
