"""A load of all kinds of requests, each with a unique name. Each response is checked: it must belong to its request and be whole.

The app is echo_app.py. Wrong responses are counted apart from missing ones: only a missing one can have a reason, such as
a killed process.
"""

from __future__ import annotations

import itertools
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from tests.integration.client import Answer
from tests.integration.echo_app import pattern
from tests.integration.load import Clients, Connection, Failure

PATIENCE = 60.0  # seconds for one response: workers may be suspended, and the machine busy
UNUSED = 2.0  # seconds that a stopping worker keeps an unused connection open
TRIES = 5  # connections for one request, if the server closes them before the request
FAREWELLS = (1001, 1012)  # close codes of a WebSocket in a draining worker


@dataclass(frozen=True)
class Request:
    """A request, and the response that it must get.

    Args:
        ident: Its unique name.
        method: GET, HEAD or POST.
        target: Path and query.
        body: The request body.
        expected: The response body.
        chunked: Whether the body is sent in chunks.
        streamed: Whether the response has no length.
        close: Whether the connection is to be closed after it.
    """

    ident: str
    method: str
    target: str
    body: bytes
    expected: bytes
    chunked: bool = False
    streamed: bool = False
    close: bool = False

    def wire(self) -> bytes:
        """Return the bytes of the request."""
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: localhost", f"X-Ident: {self.ident}"]
        lines += ["Connection: close"] * self.close
        body = self.body
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
            size = max(1, len(body) // 3)
            pieces = [body[start : start + size] for start in range(0, len(body), size)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        elif self.method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode() + body

    def wrong(self, answer: Answer) -> str:
        """Return the error in a response; empty if there is none."""
        fields = Counter(name.lower() for name, _ in answer.fields)
        found = {name.lower(): value for name, value in answer.fields}
        expected = {"x-ident": self.ident, "x-request": f"{self.method} {self.target} {len(self.body)}"}
        if not self.streamed:
            expected["content-length"] = str(len(self.expected))
        for name, value in expected.items():
            if fields[name] != 1 or found[name] != value:
                return f"{name}: {value} expected in {answer.fields}"
        if answer.body != (b"" if self.method == "HEAD" else self.expected):
            return f"the body has {len(answer.body)} bytes, not these {len(self.expected)}: {answer.body[:100]!r}"
        return ""


class Wrong(Exception):  # noqa: N818 - it is an answer
    """A response that belongs to another request, or is not whole."""


class Refused(Exception):  # noqa: N818 - it is an answer
    """A front end had no worker for the request."""


class CheckedLoad(Clients):
    """Clients that send requests within a `with` block. The results are read afterwards.

    Args:
        ports: The ports of the server; each client chooses among them for each visit.
        seed: The seed of all random choices.
        clients: The number of clients.
        websockets: Whether the app speaks WebSocket.
        linger: Seconds that a stopping worker keeps an idle connection open.
        front: Whether the ports belong to a front end, which may close idle connections at any time, and respond with 502.
    """

    def __init__(
        self,
        ports: Sequence[int],
        seed: int,
        *,
        clients: int = 8,
        websockets: bool = False,
        linger: float = 1.0,
        front: bool = False,
    ) -> None:
        super().__init__()
        self.ports, self.linger, self.front = list(ports), linger, front
        self.failures: list[Failure] = []
        self.wrong: list[str] = []
        self.answered: Counter[str] = Counter()  # by kind of visit
        self.versions: Counter[str] = Counter()
        self.longest = 0.0
        self.lock = threading.Lock()
        visits = [*VISITS, *[Visitor.websocket] * websockets]
        self._visitors = [Visitor(self, number, random.Random(f"{seed} {number}"), visits) for number in range(clients)]
        self.threads = [threading.Thread(target=visitor.run) for visitor in self._visitors]

    @property
    def total(self) -> int:
        """The number of requests with a response."""
        return sum(self.answered.values())


class Visitor:
    """One client: it makes one visit after the other, each over its own connections."""

    def __init__(
        self, load: CheckedLoad, number: int, chance: random.Random, visits: Sequence[Callable[[Visitor], None]]
    ) -> None:
        self._load, self._number, self._chance, self._visits = load, number, chance, visits
        self._count = itertools.count()
        self._port = 0  # the port of the current visit
        self._connection: Connection | None = None
        self._began = 0.0

    def run(self) -> None:
        """Make visits until the load is over."""
        while not self._load.over.wait(self._chance.uniform(0.0, 0.02)):
            visit = self._chance.choice(self._visits)
            self._port = self._chance.choice(self._load.ports)
            self._began = time.monotonic()
            try:
                visit(self)
            except Wrong as error:
                with self._load.lock:
                    self._load.wrong.append(f"{visit.__name__} of {self._port} at {time.monotonic():.3f}: {error}")
            except (OSError, AssertionError, EOFError, ConnectionClosed, InvalidHandshake, Refused) as error:
                self._fail(visit.__name__, error)
                self._load.over.wait(0.1)  # avoids a busy loop while connections are refused
            finally:
                self._leave()

    def _fail(self, kind: str, error: BaseException) -> None:
        connection = self._connection
        client = (None, self._began) if connection is None else (connection.port, connection.opened)
        with self._load.lock:
            failure = Failure(kind, self._began, time.monotonic(), repr(error), *client, self._port)
            self._load.failures.append(failure)

    # The visits.

    def fresh(self) -> None:
        """One request on a connection that is closed after it."""
        self._converse([self._request(close=True)])

    def left(self) -> None:
        """One request on a connection that could be kept, but is closed."""
        self._converse([self._request()])

    def kept(self) -> None:
        """Many requests on one connection."""
        self._converse(
            [self._request() for _ in range(self._chance.randint(2, 30))], pause=self._chance.choice([0.0, 0.0, 0.01, 0.05])
        )

    def idle(self) -> None:
        """Two requests with a long pause between them."""
        self._converse([self._request(), self._request()], pause=self._chance.uniform(0.2, 1.5 * self._load.linger))

    def pipelined(self) -> None:
        """Requests that are sent before the responses to the previous ones have arrived."""
        self._converse([self._request() for _ in range(self._chance.randint(2, 12))], depth=self._chance.randint(2, 4))

    def stream(self) -> None:
        """A response in pieces, without a length."""
        self._converse([self._streamed() for _ in range(self._chance.randint(1, 2))])

    def slow_reader(self) -> None:
        """A large response that is read slowly."""
        self._converse([self._sized(self._chance.choice([100_000, 400_000, 1_500_000]))], slowly=True)

    def slow_writer(self) -> None:
        """A request that is sent in pieces."""
        self._converse([self._request(method="POST"), self._request(method="POST")], pieces=3)

    def websocket(self) -> None:
        """Messages that are echoed."""
        ident = self._name()
        connection = self._connect()
        url = f"ws://localhost:{self._port}/ws"
        with connect(url, sock=connection.sock, open_timeout=PATIENCE, additional_headers={"X-Ident": ident}) as client:
            for number in range(self._chance.randint(1, 10)):
                text = pattern(f"{ident}.{number}", self._chance.choice([10, 200, 70_000])).decode()
                began = time.monotonic()
                try:
                    client.send(text)
                    answer = client.recv(PATIENCE)
                except ConnectionClosed as error:
                    if error.rcvd is None or error.rcvd.code not in FAREWELLS:
                        raise
                    return
                if answer != f"{ident}:{text}":
                    raise Wrong(f"{text[:100]!r} came back as {answer[:100]!r}")
                self._done("websocket", began)
                time.sleep(self._chance.choice([0.0, 0.05]))

    # The requests.

    def _name(self) -> str:
        return f"{self._number}-{next(self._count)}"

    def _request(self, *, method: str = "", close: bool = False) -> Request:
        method = method or self._chance.choice(["GET", "GET", "POST", "POST", "HEAD"])
        size = self._chance.choice([0, 1, 10, 1000, 1000, 20_000, 150_000])
        pause = self._chance.choice([0.0] * 8 + [0.1])
        ident = self._name()
        if method != "POST":
            return Request(ident, method, f"/echo/{ident}?size={size}&pause={pause}", b"", pattern(ident, size), close=close)
        body, chunked = pattern(f"{ident}+", size), self._chance.random() < 0.5
        return Request(
            ident, "POST", f"/echo/{ident}?size=7&pause={pause}", body, body or pattern(ident, 7), chunked=chunked, close=close
        )

    def _sized(self, size: int) -> Request:
        ident = self._name()
        return Request(ident, "GET", f"/echo/{ident}?size={size}", b"", pattern(ident, size), close=True)

    def _streamed(self) -> Request:
        ident, parts, size = self._name(), self._chance.randint(1, 8), self._chance.choice([1, 500, 20_000])
        expected = b"".join(pattern(f"{ident}.{part}", size) for part in range(parts))
        pause = self._chance.choice([0.0, 0.01, 0.05])
        target = f"/stream/{ident}?parts={parts}&size={size}&pause={pause}"
        return Request(ident, "GET", target, b"", expected, streamed=True)

    # The conversation.

    def _connect(self) -> Connection:
        self._began = time.monotonic()
        self._connection = None  # a failure from here on has no connection
        self._connection = Connection(self._port)
        self._connection.sock.settimeout(PATIENCE)
        return self._connection

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.sock.close()
            self._connection = None

    def _converse(
        self, requests: Sequence[Request], *, depth: int = 1, pause: float = 0.0, slowly: bool = False, pieces: int = 1
    ) -> None:
        """Send all requests; use another connection only after the server has announced the end of the previous one.

        Args:
            requests: The requests, in this order.
            depth: The number of requests sent at once.
            pause: Seconds between a response and the next request.
            slowly: Whether the responses are read slowly.
            pieces: The number of pieces of a request.

        Raises:
            Wrong: A response did not match its request.
            OSError, AssertionError: The connection ended before the response.
        """
        waiting, tries = list(requests), 0
        while waiting:
            used = self._connection is not None
            last_sent = self._began
            connection = self._connection or self._connect()
            silent_since = last_sent if used else connection.opened
            self._began = silence_ends = time.monotonic()
            batch, answered = waiting[:depth], 0
            try:
                self._send(connection, b"".join(request.wire() for request in batch), pieces)
                silence_ends = time.monotonic()
                if slowly:
                    self._read_slowly(connection)
                for request in batch:
                    last = self._receive(connection, request, more=request is not batch[-1])
                    answered += 1
                    if last:
                        self._leave()  # requests after it must be sent again
                        break
            except (OSError, AssertionError):
                silence = silence_ends - silent_since
                may_end = silence >= (self._load.linger if used else UNUSED) or (self._load.front and used)
                tries += 1
                if answered or connection.held or not may_end or tries == TRIES:
                    raise
                self._leave()
            else:
                tries = 0
            del waiting[:answered]
            if waiting and pause:
                time.sleep(pause)

    def _send(self, connection: Connection, data: bytes, pieces: int) -> None:
        size = len(data) // pieces + 1
        for start in range(0, len(data), size):
            if start:
                time.sleep(0.03)
            connection.send(data[start : start + size])

    def _read_slowly(self, connection: Connection) -> None:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        for _ in range(15):
            data = connection.sock.recv(8192)
            assert data or connection.held, "end of connection before the response"
            connection.held += data
            time.sleep(0.03)

    def _receive(self, connection: Connection, request: Request, *, more: bool) -> bool:
        """Read and check a response; return whether it is the last of its connection."""
        if not connection.held:
            connection.held = connection.sock.recv(65536)
            assert connection.held, "end of connection before the response"
        try:
            answer = connection.answer(request.method)
        except (ValueError, IndexError) as error:
            raise Wrong(f"the answer to {request.target} is none: {error!r}; after it {connection.held[:200]!r}") from error
        if self._load.front and answer.status == 502:
            raise Refused(f"502 for {request.method} {request.target}")
        if answer.status != 200 or (wrong := request.wrong(answer)):
            reason = wrong if answer.status == 200 else f"{answer.status} {answer.fields} {answer.body[:300]!r}"
            raise Wrong(f"{request.method} {request.target}: {reason}")
        last = request.close or any(name.lower() == "connection" and value.lower() == "close" for name, value in answer.fields)
        if not connection.held and not more and select.select([connection.sock], [], [], 0)[0]:
            connection.held = connection.sock.recv(1000)
            if not connection.held and not last:
                assert time.monotonic() - self._began >= self._load.linger or self._load.front, (
                    "an unannounced end of the connection"
                )
                last = True
        if connection.held and (last or not more):
            raise Wrong(f"{request.method} {request.target}: after the response comes {connection.held[:200]!r}")
        self._done(answer["x-version"], self._began, version=True)
        return last

    def _done(self, what: str, began: float, *, version: bool = False) -> None:
        with self._load.lock:
            self._load.longest = max(self._load.longest, time.monotonic() - began)
            self._load.answered["http" if version else what] += 1
            if version:
                self._load.versions[what] += 1


VISITS = (
    Visitor.fresh,
    Visitor.left,
    Visitor.kept,
    Visitor.idle,
    Visitor.pipelined,
    Visitor.stream,
    Visitor.slow_reader,
    Visitor.slow_writer,
)
