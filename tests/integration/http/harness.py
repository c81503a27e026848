"""A server in a process of its own, and a client that speaks raw bytes and reads answers strictly."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[3]
PATIENCE = 60.0
"""Seconds after which what a test waits for is taken not to come."""
_TROUBLE = re.compile(
    r"Exception ignored|never retrieved|Exception in callback|never awaited|Fatal error|Fatal Python|ResourceWarning|destroyed"
)


def command(app: str, bind: str, settings: dict[str, object]) -> list[str]:
    """The command that serves ``app`` at ``bind`` and says so on stderr."""
    return [
        sys.executable,
        "-m",
        "tests.integration.http.serve",
        app,
        bind,
        *(f"{name}={value}" for name, value in settings.items()),
    ]


class Server:
    """A running server; a context manager that ends it and then looks at how it ended.

    Args:
        app: ``module:attr``.
        bind: ``unix:PATH`` or ``HOST:PORT``.
        faults: Whether the application is at fault in some tests, so that the log may hold its tracebacks.
        settings: By their names.
    """

    def __init__(self, app: str, bind: str, *, faults: bool = False, **settings: object) -> None:
        self.lines: list[str] = []
        self._faults = faults
        self._news = threading.Condition()
        self._over = False  # it writes no more
        # Warnings are errors there as well: a file left open shows in the log.
        environ = os.environ | {"PYTHONWARNINGS": "error::ResourceWarning", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command(app, bind, settings),
            cwd=ROOT,
            env=environ,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.wait_for_log("Ready: 1 worker")
        except AssertionError:
            self.process.kill()
            self._end()
            raise
        self.address: str | tuple[str, int]
        if bind.startswith("unix:"):
            self.address = bind.removeprefix("unix:")
        else:
            url = next(line.split()[2] for line in self.lines if line.startswith("Listening on "))
            host, _, port = url.partition("://")[2].rpartition(":")
            self.address = (host, int(port))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    @property
    def log(self) -> str:
        """What the server has written to stderr."""
        with self._news:
            return "\n".join(self.lines)

    def wait_for_log(self, text: str) -> None:
        """Wait until a line of the log holds ``text``."""
        with self._news:
            found = self._news.wait_for(lambda: any(text in line for line in self.lines) or self._over, PATIENCE)
            present = found and any(text in line for line in self.lines)
            assert present, f"{text!r} is not in the log:\n" + "\n".join(self.lines)

    def connect(self, **options: Any) -> "Client":
        """Another client."""
        return Client(self.address, **options)

    def get(self, path: str = "/", **options: Any) -> "Answer":
        """The answer to a plain GET on a connection of its own."""
        with self.connect(**options) as client:
            client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            answer = client.answer()
            assert client.rest() == b""
            return answer

    def json(self, path: str) -> Any:
        """What a plain GET gives, as a value."""
        answer = self.get(path)
        assert answer.status == 200, answer
        return json.loads(answer.body)

    def memory(self) -> int:
        """Bytes of memory that the process itself holds."""
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no Pss")

    def descriptors(self) -> int:
        """How many descriptors the process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def _end(self) -> None:
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self._end()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self._end()
            raise AssertionError(f"the server did not end after SIGTERM:\n{self.log}") from None
        if kind is None:
            assert self.process.returncode == 0, self.log
            assert not _TROUBLE.search(self.log), self.log
            assert self._faults or "Traceback" not in self.log, self.log


@dataclass
class Answer:
    """One answer; ``whole`` is false if the connection ended in the middle of it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    interim: list[int] = field(default_factory=list)
    whole: bool = True
    chunked: bool = False

    def __getitem__(self, name: str) -> str:
        (value,) = (value for key, value in self.headers if key == name.lower())
        return value

    def get(self, name: str) -> list[str]:
        """All values of a field."""
        return [value for key, value in self.headers if key == name.lower()]


class Client:
    """A client connection. Every wait ends after `PATIENCE` with an error.

    Args:
        address: Path of a unix socket, or host and port.
        receive_buffer: Bytes that the kernel keeps for us, for a slow reader; 0 for its default.
        tls: To speak TLS.
    """

    def __init__(self, address: str | tuple[str, int], *, receive_buffer: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.socket.settimeout(PATIENCE)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(address)
        if not isinstance(address, str):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self.held = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def send_apart(self, pieces: Iterable[bytes]) -> None:
        """Send pieces, each when the server has read the one before (unix sockets only)."""
        for piece in pieces:
            try:
                self.socket.send(piece)
            except (BrokenPipeError, ConnectionResetError):
                return  # refused already; the answer is there to be read
            wait_until(lambda: _unread(self.socket) == 0)

    def end(self) -> None:
        """Send no more; still read."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Be gone at once."""
        if self.socket.family != socket.AF_UNIX:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def receive(self) -> bytes:
        """What comes next; empty at the end of the connection."""
        data, self.held = self.held, b""
        return data or self.socket.recv(65536)

    def rest(self) -> bytes:
        """Everything until the server closes, which it must do in order, without a reset."""
        pieces = []
        while data := self.receive():
            pieces.append(data)
        return b"".join(pieces)

    def until(self, mark: bytes) -> bytes:
        """Everything up to ``mark``, which is the last of it."""
        while mark not in self.held:
            data = self.socket.recv(65536)
            assert data, f"the connection ended before {mark!r}: {self.held!r}"
            self.held += data
        before, _, self.held = self.held.partition(mark)
        return before + mark

    def exactly(self, count: int) -> bytes:
        """So many bytes, fewer if the connection ends."""
        pieces = [self.held[:count]]
        self.held = self.held[count:]
        count -= len(pieces[0])
        while count and (data := self.socket.recv(min(count, 1 << 20))):
            pieces.append(data)
            count -= len(data)
        return b"".join(pieces)

    def head(self) -> Answer:
        """The head of the next final answer, judged by RFC 9112."""
        interim = []
        while True:
            head = self.until(b"\r\n\r\n")
            start, *lines = head[:-4].split(b"\r\n")
            assert b"\n" not in head.replace(b"\r\n", b""), head
            assert b"\r" not in head.replace(b"\r\n", b""), head
            match = re.fullmatch(rb"HTTP/1\.1 ([1-5][0-9]{2}) [\t\x20-\x7e\x80-\xff]*", start)
            assert match, head
            status = int(match[1])
            if status >= 200 or status == 101:
                break
            interim.append(status)
            assert not lines, head
        headers = []
        for line in lines:
            assert re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*", line), head
            name, _, value = line.decode("latin-1").partition(":")
            headers.append((name.lower(), value.strip(" \t")))
        answer = Answer(status, headers, interim=interim)
        assert len(answer.get("date")) == 1, head
        assert len(answer.get("content-length")) <= 1, head
        answer.chunked = bool(answer.get("transfer-encoding"))
        assert not (answer.chunked and answer.get("content-length")), head
        return answer

    def answer(self, method: str = "GET") -> Answer:
        """The next final answer."""
        answer = self.head()
        if method == "HEAD" or answer.status in (101, 204, 304):
            assert not answer.chunked or method == "HEAD", answer
        elif answer.chunked:
            assert answer["transfer-encoding"] == "chunked"
            self._chunks(answer)
        elif length := answer.get("content-length"):
            answer.body = self.exactly(int(length[0]))
            answer.whole = len(answer.body) == int(length[0])
        else:
            assert answer["connection"] == "close", answer
            answer.body = self.rest()
        return answer

    def _chunks(self, answer: Answer) -> None:
        body = b""
        try:
            while True:
                line = self.until(b"\r\n")
                assert re.fullmatch(rb"[0-9a-fA-F]{1,16}\r\n", line), line
                size = int(line, 16)
                piece = self.exactly(size + 2)
                if len(piece) < size + 2:
                    answer.whole = False
                    break
                assert piece.endswith(b"\r\n")
                body += piece[:-2]
                if not size:
                    break
        except AssertionError as error:
            if "ended before" not in str(error):
                raise
            answer.whole = False
        answer.body = body


def _unread(sock: socket.socket) -> int:
    """Bytes that the peer of a unix socket has not read yet (SIOCOUTQ, unix(7))."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0])


def wait_until(condition: Any, what: str = "") -> None:
    """Wait until ``condition()`` is true; looks often, gives up after `PATIENCE`."""
    end = time.monotonic() + PATIENCE
    pause = 0.0
    while not condition():
        assert time.monotonic() < end, what or "it did not come true"
        time.sleep(pause)
        pause = min(pause + 0.00005, 0.01)


@contextlib.contextmanager
def serving(app: str, directory: Path, **settings: Any) -> Iterator[Server]:
    """A server on a unix socket in ``directory``."""
    with Server(app, f"unix:{directory / 's'}", **settings) as server:
        yield server


def happened(server: Server, count: int) -> list[str]:
    """What the application has written down, when there is so much of it."""
    seen: list[str] = []

    def enough() -> bool:
        seen.extend(server.json("/-/events"))
        return len(seen) >= count

    wait_until(enough, f"only this has happened: {seen}")
    return seen


def events(server: Server, *expected: str) -> None:
    """Wait until exactly this has happened."""
    assert happened(server, len(expected)) == list(expected)


def settled(number: Callable[[], int]) -> int:
    """A number that grows, when it does so no more: who makes it grow is waiting."""
    last, since = 0, 0

    def still() -> bool:
        nonlocal last, since
        now = number()
        since = since + 1 if now == last and now else 0
        last = now
        return since > 30

    wait_until(still, "it goes on for ever")
    return last
