"""A finished connection is closed at once, not after the next application calls.

An inline call blocks the event loop, and a loop closes connections only in its next turn. A connection may close because of
`Connection: close` from the client or the application, HTTP/1.0, no keep-alive, a drain; a refused request; an incomplete
body; a client that half-closed before or during the response; with TLS. Each case runs on both loops, and while other
requests, read in the same turn of the loop, are next.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from pathlib import Path

import pytest

from forkserve.http.app.turns import LONG
from tests.integration.certificates import Authority
from tests.integration.client import Client
from tests.integration.command import Command, eventually
from tests.integration.conftest import Start

APP = "tests.integration.small_apps:gated"
HEADS = {
    "close": "GET {} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "http-1.0": "GET {} HTTP/1.0\r\n\r\n",
    "half-closed": "GET {} HTTP/1.1\r\nHost: a\r\n\r\n",
    "drained": "GET {} HTTP/1.1\r\nHost: a\r\n\r\n",
    "not-kept": "GET {} HTTP/1.1\r\nHost: a\r\n\r\n",
}
USUAL = [("close", "uvloop"), ("half-closed", "asyncio")]
FIN_WAIT2 = 5  # the state of a TCP connection whose end the peer's kernel has (linux/tcp_states.h)
KINDS = [
    pytest.param(kind, loop, marks=() if (kind, loop) in USUAL else pytest.mark.heavy)
    for kind in (*HEADS, "tls")
    for loop in ("uvloop", "asyncio")
]


class Gates:
    """Requests that wait for files in a directory."""

    def __init__(self, directory: Path, command: Command) -> None:
        self.directory, self.command, self.notes = directory, command, directory / "notes"

    def target(self, name: str) -> str:
        """The target of a request that waits for its file."""
        return f"/{name}?{self.directory / name}"

    def running(self, names: set[str]) -> str:
        """Wait until one of these requests is in its call, and return its name."""
        return next(iter(eventually(lambda: names & {line.partition("/")[2] for line in self.arrived}, names)))

    @property
    def arrived(self) -> list[str]:
        """The targets of the requests that have reached the app."""
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def open(self, name: str) -> None:
        """Let the app answer this request after a long call. The loop has a turn before the next call only after a long one."""
        opened = time.monotonic()
        eventually(lambda: time.monotonic() > opened + LONG / 1e9)
        (self.directory / name).touch()


@pytest.mark.parametrize(("kind", "loop"), KINDS)
def test_a_connection_is_closed_before_the_next_call(
    serve: Start,
    tmp_path: Path,
    authority: Authority,
    kind: str,
    loop: str,
) -> None:
    options = {"not-kept": ("--keep-alive", 0), "tls": ("--certfile", authority.server.cert, "--keyfile", authority.server.key)}
    command = serve(APP, "--bind", "127.0.0.1:0", "--loop", loop, *options.get(kind, ()), env={"NOTES": str(tmp_path / "notes")})
    gates = Gates(tmp_path, command)
    tls = authority.trust() if kind == "tls" else None
    with contextlib.ExitStack() as stack:
        first, *clients = [stack.enter_context(Client(command.port, tls)) for _ in range(4)]
        left = {str(number): client for number, client in enumerate(clients)}
        if kind != "not-kept":
            gates.open("warm")
            assert {client.get(gates.target("warm")).status for client in clients} == {200}  # so all connections are accepted
        first.request(gates.target("first"))
        gates.running({"first"})
        for name, client in left.items():
            client.send(HEADS.get(kind, HEADS["close"]).format(gates.target(name)).encode())
            if kind == "half-closed":
                client.sock.shutdown(socket.SHUT_WR)
                eventually(lambda client=client: client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == FIN_WAIT2)
        if kind == "drained":
            command.kill(signal.SIGTERM)
        gates.open("first")
        while left:
            name = gates.running(left.keys())
            gates.open(name)
            client = left.pop(name)
            assert client.answer().status == 200
            assert client.rest() == b"", "the connection closes before the next gate is opened"


@pytest.mark.parametrize("loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("request_", [b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_refused_connection_is_closed_before_the_next_call(serve: Start, tmp_path: Path, request_: bytes, loop: str) -> None:
    command = serve(APP, "--bind", "127.0.0.1:0", "--loop", loop, env={"NOTES": str(tmp_path / "notes")})
    gates = Gates(tmp_path, command)
    with contextlib.ExitStack() as stack:
        first, bad, other = [stack.enter_context(Client(command.port)) for _ in range(3)]
        gates.open("warm")
        assert {client.get(gates.target("warm")).status for client in (bad, other)} == {200}
        first.request(gates.target("first"))
        gates.running({"first"})
        bad.send(request_)
        other.request(gates.target("other"))
        gates.open("first")
        assert bad.answer().status == 400
        assert bad.rest() == b""
        gates.open("other")
        assert other.answer().status == 200
