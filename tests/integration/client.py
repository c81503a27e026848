"""A client that shows the bytes of a response, and accepts nothing that RFC 9112 forbids."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import socket
import ssl
import struct
import termios
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from tests.integration.command import DEADLINE, eventually

Where = int | str | tuple[str, int]
FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class EndedError(AssertionError):
    """The connection ended within a response."""


@dataclass(frozen=True)
class Answer:
    """One response.

    Attributes:
        status: The status of the final response.
        fields: The fields as they were sent, in order.
        body: The body without its framing.
        interim: The statuses of the interim responses before it.
        whole: False if the connection ended within the body.
    """

    status: int
    fields: list[tuple[str, str]]
    body: bytes = b""
    interim: list[int] = field(default_factory=list)
    whole: bool = True

    def __getitem__(self, name: str) -> str:
        """Return the value of a field that occurs once."""
        values = self.get(name)
        assert len(values) == 1, f"{name} occurs {len(values)} times in {self.fields}"
        return values[0]

    def __contains__(self, name: str) -> bool:
        """Whether there is a field of that name."""
        return bool(self.get(name))

    def get(self, name: str) -> list[str]:
        """Return all values of a field."""
        return [value for key, value in self.fields if key.lower() == name.lower()]

    @property
    def chunked(self) -> bool:
        """Whether the body is sent in chunks."""
        return "transfer-encoding" in self

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


def dial(where: Where, receive_buffer: int = 0) -> socket.socket:
    """Connect to a port of this machine, to (host, port), or to the path of a unix socket (`@` for an abstract one)."""
    address: str | tuple[str, int]
    if isinstance(where, str):
        family, address = socket.AF_UNIX, "\0" + where[1:] if where.startswith("@") else where
    else:
        address = ("127.0.0.1", where) if isinstance(where, int) else where
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.settimeout(DEADLINE)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(address)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def unread(sock: socket.socket) -> int:
    """Return the number of bytes that the peer of a unix socket has not read yet (SIOCOUTQ, unix(7))."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0])


def refuses(port: int) -> bool:
    """Whether connections to this port are refused."""
    try:
        dial(port).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


class Client:
    """One connection that checks its input against RFC 9112; a context manager. Every wait fails after `DEADLINE`.

    Args:
        where: As for `dial`.
        tls: The context for TLS; None: no TLS.
        receive_buffer: Size of the kernel's receive buffer, for a slow reader; 0: the default.
        whole: Whether a truncated response is an error; if not, `Answer.whole` is False for it.
        dated: Whether a response without Date is an error, as it is for an origin server by default.
    """

    def __init__(
        self, where: Where, tls: ssl.SSLContext | None = None, *, receive_buffer: int = 0, whole: bool = True, dated: bool = False
    ) -> None:
        self.sock = dial(where, receive_buffer)
        if tls is not None:
            try:
                self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
            except BaseException:
                self.sock.close()
                raise
        self.held = b""
        self._whole, self._dated = whole, dated

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connection."""
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.sock.sendall(data)

    def send_apart(self, pieces: Iterable[bytes]) -> None:
        """Send pieces, each after the server has read the previous one (unix sockets only)."""
        for piece in pieces:
            try:
                self.sock.send(piece)
            except (BrokenPipeError, ConnectionResetError):
                return  # the request is refused already; the response can still be read
            eventually(lambda: unread(self.sock) == 0, "the server has read the piece")

    def end(self) -> None:
        """Close the sending side only."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close the connection at once, with a reset."""
        if self.sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def request(self, target: str = "/", *lines: str, method: str = "GET", body: bytes = b"") -> None:
        """Send a request with further header lines."""
        head = [f"{method} {target} HTTP/1.1", "Host: localhost", *lines]
        if body:
            head.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*head, "", ""]).encode("latin-1") + body)

    def get(self, target: str = "/", *lines: str, method: str = "GET", body: bytes = b"") -> Answer:
        """Send a request and return the response."""
        self.request(target, *lines, method=method, body=body)
        return self.answer(method=method)

    def receive(self) -> bytes:
        """Return held or newly received bytes; empty at the end of the connection."""
        data, self.held = self.held, b""
        return data or self.sock.recv(65536)

    def until(self, mark: bytes) -> bytes:
        """Read up to and including a mark."""
        while mark not in self.held:
            data = self.sock.recv(65536)
            if not data:
                raise EndedError(f"end of connection before {mark!r}, after {self.held!r}")
            self.held += data
        found, _, self.held = self.held.partition(mark)
        return found + mark

    def exactly(self, size: int) -> bytes:
        """Read exactly `size` bytes, or fewer if the connection ends before."""
        pieces = [self.held[:size]]
        self.held = self.held[size:]
        left = size - len(pieces[0])
        while left and (data := self.sock.recv(min(left, 1 << 20))):
            pieces.append(data)
            left -= len(data)
        return b"".join(pieces)

    def rest(self, *, reset: bool = False) -> bytes:
        """Read to the end of the connection; a reset is an error unless `reset` is true."""
        pieces = []
        with contextlib.suppress(*[ConnectionResetError] * reset):
            while data := self.receive():
                pieces.append(data)
        return b"".join(pieces)

    def head(self) -> Answer:
        """Read only the head of a final response."""
        interim: list[int] = []
        while True:
            head = self.until(b"\r\n\r\n")
            first, *lines = head[:-4].split(b"\r\n")
            assert len(re.findall(rb"[\r\n]", head)) == 2 * len(lines) + 4, head
            found = re.fullmatch(rb"HTTP/1\.1 ([1-5][0-9]{2}) [\t\x20-\x7e\x80-\xff]*", first)
            assert found, head
            status = int(found[1])
            if status >= 200 or status == 101:
                break
            interim.append(status)
            assert not lines, head
        fields = []
        for line in lines:
            assert FIELD.fullmatch(line), head
            name, _, value = line.decode("latin-1").partition(":")
            fields.append((name, value.strip(" \t")))
        answer = Answer(status, fields, interim=interim)
        assert self._dated <= len(answer.get("date")) <= 1, head
        assert len(answer.get("content-length")) + len(answer.get("transfer-encoding")) <= 1, head
        return answer

    def chunks(self) -> Iterator[bytes]:
        """Read the chunks of a body one by one."""
        while True:
            line = self.until(b"\r\n")
            assert re.fullmatch(rb"[0-9a-fA-F]{1,16}\r\n", line), line
            size = int(line, 16)
            piece = self.exactly(size + 2)
            if size and piece[:size]:
                yield piece[:size]
            if len(piece) < size + 2:
                raise EndedError("end of connection within a chunk")
            assert piece.endswith(b"\r\n"), piece[-2:]
            if not size:
                return

    def answer(self, method: str = "GET") -> Answer:
        """Read a whole response."""
        head, pieces, whole = self.head(), list[bytes](), True
        try:
            pieces.extend(self._body(head, method))
        except EndedError:
            if self._whole:
                raise
            whole = False
        return replace(head, body=b"".join(pieces), whole=whole)

    def _body(self, head: Answer, method: str) -> Iterator[bytes]:
        if method == "HEAD" or head.status in (101, 204, 304):
            assert not head.chunked or method == "HEAD", head
        elif head.chunked:
            assert head["transfer-encoding"] == "chunked", head
            yield from self.chunks()
        elif "content-length" in head:
            size = int(head["content-length"])
            body = self.exactly(size)
            yield body
            if len(body) < size:
                raise EndedError(f"end of connection {size - len(body)} bytes too early")
        else:
            assert head["connection"] == "close", head
            yield self.rest()


def get(
    where: Where, target: str = "/", *lines: str, method: str = "GET", body: bytes = b"", tls: ssl.SSLContext | None = None
) -> Answer:
    """Send one request on a new connection."""
    with Client(where, tls) as client:
        return client.get(target, *lines, method=method, body=body)
