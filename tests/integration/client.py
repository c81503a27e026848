"""A client that shows what came over the wire."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.integration.command import DEADLINE

Where = int | str | tuple[str, int]


@dataclass(frozen=True)
class Answer:
    """One answer: status, fields in order, body."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str:
        """Return the value of a field that occurs once."""
        values = [value for key, value in self.fields if key.lower() == name.lower()]
        assert len(values) == 1, f"{name} occurs {len(values)} times in {self.fields}"
        return values[0]

    def __contains__(self, name: str) -> bool:
        """Whether there is a field of that name."""
        return any(key.lower() == name.lower() for key, _ in self.fields)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


def dial(where: Where) -> socket.socket:
    """Connect to a port of this machine, to (host, port), or to the path of a unix socket (`@` for an abstract one)."""
    if isinstance(where, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE)
        try:
            sock.connect("\0" + where[1:] if where.startswith("@") else where)
        except BaseException:
            sock.close()
            raise
        return sock
    return socket.create_connection(("127.0.0.1", where) if isinstance(where, int) else where, DEADLINE)


def refuses(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        dial(port).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


class Client:
    """One connection; a context manager."""

    def __init__(self, where: Where, tls: ssl.SSLContext | None = None) -> None:
        self.sock = dial(where)
        if tls is not None:
            try:
                self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
            except BaseException:
                self.sock.close()
                raise
        self._read = b""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connection."""
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def request(self, target: str = "/", *lines: str, method: str = "GET", body: bytes = b"") -> None:
        """Send a request, with further header lines."""
        head = [f"{method} {target} HTTP/1.1", "Host: localhost", *lines]
        if body:
            head.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*head, "", ""]).encode("latin-1") + body)

    def get(self, target: str = "/", *lines: str, method: str = "GET", body: bytes = b"") -> Answer:
        """Send a request and return the answer."""
        self.request(target, *lines, method=method, body=body)
        return self.answer(method=method)

    def more(self) -> bytes:
        """Return what comes next; empty at the end."""
        if self._read:
            data, self._read = self._read, b""
            return data
        return self.sock.recv(65536)

    def until(self, mark: bytes) -> bytes:
        """Read up to and including a mark."""
        while mark not in self._read:
            data = self.sock.recv(65536)
            assert data, f"end of connection before {mark!r}, after {self._read!r}"
            self._read += data
        found, _, self._read = self._read.partition(mark)
        return found + mark

    def rest(self) -> bytes:
        """Read to the end of the connection."""
        with contextlib.suppress(ConnectionResetError):
            while data := self.sock.recv(65536):
                self._read += data
        data, self._read = self._read, b""
        return data

    def head(self) -> Answer:
        """Read the head of an answer only."""
        first, *lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines if line)]
        return Answer(int(first.split(" ", 2)[1]), fields, b"")

    def chunks(self) -> Iterator[bytes]:
        """Read the chunks of a body, as they come."""
        while size := int(self.until(b"\r\n"), 16):
            yield self._exactly(size + 2)[:-2]
        self.until(b"\r\n")

    def answer(self, method: str = "GET") -> Answer:
        """Read a whole answer."""
        head = self.head()
        if method == "HEAD" or head.status in (204, 304):
            body = b""
        elif "transfer-encoding" in head:
            body = b"".join(self.chunks())
        elif "content-length" in head:
            body = self._exactly(int(head["content-length"]))
        else:
            body = self.rest()
        return Answer(head.status, head.fields, body)

    def _exactly(self, size: int) -> bytes:
        while len(self._read) < size:
            data = self.sock.recv(65536)
            assert data, f"end of connection {size - len(self._read)} bytes too early"
            self._read += data
        found, self._read = self._read[:size], self._read[size:]
        return found


def get(
    where: Where, target: str = "/", *lines: str, method: str = "GET", body: bytes = b"", tls: ssl.SSLContext | None = None
) -> Answer:
    """Ask once, on a connection of its own."""
    with Client(where, tls) as client:
        return client.get(target, *lines, method=method, body=body)
