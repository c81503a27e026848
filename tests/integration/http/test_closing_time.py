"""A client that is refused may finish sending, so that no reset destroys the answer."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.integration.client import Client
from tests.integration.command import eventually
from tests.integration.http.harness import Server, serving


def _accepts(server: Server) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(server.address) == 0


def _send_on(client: Client) -> None:
    while True:
        client.sock.sendall(b"x")


def test_also_while_a_development_server_ends(tmp_path: Path) -> None:
    """Only connections without unread input are ended sooner."""
    directory = Path(os.path.relpath(tmp_path))
    with (
        serving("tests.integration.http.apps:recorder", directory, reload=True, limit_request_body=10) as server,
        server.connect() as client,
    ):
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        server.kill(signal.SIGTERM)
        eventually(lambda: not _accepts(server), "it drains")
        client.send(b"ff\r\n")
        assert client.answer().status == 413
        answered = time.monotonic()
        with pytest.raises(ConnectionError):
            _send_on(client)
        assert time.monotonic() - answered > 0.3  # of `CLOSING_TIME`
        assert server.end() == 0
