"""The interface between exchanges and framings: what each of them calls on the other.

An exchange (`http.app`) knows one request and its response as values. A framing converts between them and bytes: HTTP/1.1 is
in `h1`. A framing calls `RequestHandler` and hands it a `ResponseWriter`, one for each request.

HTTP/2 is the next framing. What it needs has its place here: each stream is a writer of its own, so `paused` and `unsent` are its
flow-control window; `client_gone` is a stream that the client has reset, and `abort` is RST_STREAM; `close_after` does nothing or
sends GOAWAY; `pause_body` withholds WINDOW_UPDATE. Trailers become an argument of `end`. An informational response with fields
(103) becomes a method beside `want_body`, which sends 100 (Continue).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from forkserve.http.framing.endpoints import Endpoints
    from forkserve.http.framing.state import ServerState
    from forkserve.http.message.errors import RequestError
    from forkserve.http.message.http1 import LastHead, Target
    from forkserve.http.message.response import Field, ResponseHead


class ClientConnection(Protocol):
    """What all requests of one connection share.

    Attributes:
        template: What an environ or a scope has from the connection and the HTTP version. Kept here by WSGI and ASGI,
            and reset by the framing when the version changes.
    """

    template: Any

    @property
    def reader(self) -> LastHead:
        """What is kept of the last request head."""
        ...

    @property
    def endpoints(self) -> Endpoints:
        """The two ends."""
        ...


class ResponseWriter(Protocol):
    """Sends the response to one request. On the loop's thread.

    The order of calls is ``start``, any number of ``data``, ``end``; or ``respond`` for all of them. ``abort`` ends it anywhere.
    After `RequestHandler.client_gone` nothing that is written has an effect.
    """

    @property
    def connection(self) -> ClientConnection:
        """The connection that the request came over."""
        ...

    # The response

    def respond(self, head: ResponseHead, data: bytes) -> None:
        """Send a whole response, in one write.

        Args:
            head: Its Content-Length is the length of `data`, and it has a body.
            data: The whole body.
        """

    def start(self, head: ResponseHead, *, bodiless: bool) -> None:
        """Begin a response. The head is sent with the next call of `data` or `end`.

        Args:
            head: Status and fields.
            bodiless: Whether there is no body, whatever the head says: the method is HEAD, or the status has none.
        """

    def data(self, data: bytes, *, spill: bool = True) -> None:
        """Send a piece of the body; more follows.

        Args:
            data: The bytes; perhaps none, to send the head alone. Many of them are not copied.
            spill: Whether they may go to a temporary file, since the application does not keep them either.
        """

    def end(self, data: bytes = b"") -> None:
        """Send the last piece of the body, and end the response."""

    def abort(self) -> None:
        """End the response where it stands, so that the client does not take it for a whole one."""

    def close_after(self) -> None:
        """Take no further request over this connection when the response has ended."""

    def added_fields(self, head: ResponseHead) -> Sequence[Field]:
        """Return the fields that the framing has added to the head; valid when the response has ended."""
        ...

    # A file as the whole body

    @property
    def sends_files(self) -> bool:
        """Whether the system can send a file (sendfile(2)): nothing between file and socket changes the bytes."""
        ...

    def send_file(self, file: int, offset: int, count: int, done: Callable[[int, bool], None]) -> None:
        """Send a part of a regular file as the body, behind what has been written.

        Args:
            file: Its descriptor; closed when done.
            offset: The first byte to send.
            count: The number of bytes to send.
            done: Called with the number of bytes sent, which is smaller if the file was shorter, and whether the client is gone.
        """

    # Flow control

    @property
    def paused(self) -> bool:
        """Whether the client has not taken what was written; `RequestHandler.writable` is called when it has."""
        ...

    @property
    def unsent(self) -> int:
        """The bytes that wait for the client in this process, besides those that the transport holds."""
        ...

    # The request body

    def want_body(self) -> None:
        """Let a client that waits for 100 (Continue) send the body (RFC 9110 10.1.1)."""

    def pause_body(self) -> None:
        """Read no more of the body from the client, until `resume_body` or the end of the response."""

    def resume_body(self) -> None:
        """Read on."""


class RawConnection(ClientConnection, Protocol):
    """A connection that is handed over to another protocol, such as WebSocket.

    Attributes:
        transport: asyncio's or uvloop's; the latter is no subclass of `asyncio.Transport`.
        requests: The number of requests that came over it.
    """

    transport: Any
    requests: int

    def pause_reading(self) -> None:
        """Read no more from the client."""

    def resume_reading(self) -> None:
        """Read on."""


class UpgradeWriter(ResponseWriter, Protocol):
    """A writer whose connection can change to another protocol (RFC 9110 7.8)."""

    @property
    def connection(self) -> RawConnection:
        """The connection that the request came over."""
        ...

    def expect_upgrade(self) -> None:
        """Keep the bytes that follow the request: they belong to the other protocol, if the request is accepted."""

    def upgrade(self, head: ResponseHead, protocol: bytes, successor: Successor) -> None:
        """Send 101 (Switching Protocols); from then on the connection belongs to the other protocol.

        Args:
            head: Status 101 and the fields of the other protocol.
            protocol: Its name in the Upgrade field.
            successor: What the transport calls from now on.
        """


class RequestHandler(Protocol):
    """One request and its response, as a framing drives it. On the loop's thread.

    Attributes:
        started: The head of the response has been given to the writer.
        complete: The last byte of the response has been given to the writer, or it was aborted.
        gone: The client can no longer be reached.
        sent: The bytes of the response body so far.
        queued: Since when the request waits, in monotonic nanoseconds. A framing that knows of a wait before reduces it.
    """

    started: bool
    complete: bool
    gone: bool
    sent: int
    queued: int

    @property
    def target(self) -> Target:
        """The request line."""
        ...

    @property
    def takes_more(self) -> bool:
        """Whether there is room for more of the request body."""
        ...

    @property
    def is_stream(self) -> bool:
        """Whether the response has begun and its length is unknown."""
        ...

    def start(self, body: bytes | None = None) -> None:
        """Begin: the head has been read.

        Args:
            body: The request body, if all of it has come with the head and it is at most `PIECE` bytes. Else `body_data` and
                `body_end` follow, if the request has one.
        """

    def body_data(self, data: bytes) -> None:
        """Take bytes of the request body.

        Raises:
            RequestError: They cannot be kept; the framing answers.
        """

    def body_end(self) -> None:
        """Take note that the request body is complete.

        Raises:
            RequestError: As `body_data`.
        """

    def refused(self, error: RequestError) -> None:
        """Take note that the framing answers the request with an error: its body is malformed, too large or late."""

    def client_half_closed(self) -> None:
        """Take note that the client sends no more; it may still be reading."""

    def client_gone(self) -> None:
        """Take note that the client can no longer be reached."""

    def writable(self) -> None:
        """Write on: the client has taken enough of what was written."""

    def flush_head(self) -> None:
        """Send the head if the application has given it; called when its body has not begun for some time."""

    def end_stream(self) -> None:
        """End a response of unknown length soon: the process is about to end."""

    def count(self) -> object:
        """Count the response, which has begun and has ended without being whole."""

    def describe(self) -> str:
        """Return the request line, escaped for a log."""
        ...


class Client(Protocol):
    """One open connection, as code that handles all connections sees it.

    Attributes:
        requests: The number of requests that have come over it.
    """

    requests: int

    @property
    def exchange(self) -> RequestHandler | None:
        """The request that is being served."""
        ...

    def drain(self, now: float, linger: float) -> None:
        """Prepare for the end of the process.

        Args:
            now: The loop's time.
            linger: Seconds that an idle connection has for one more request; 0: close it now.
        """

    def may_bring_request(self, *, last: bool) -> bool:
        """Return whether another request may come over it.

        Args:
            last: Whether every response that has not begun is the last on its connection.
        """
        ...

    def sweep(self, now: float, late: float) -> None:
        """Act on what is overdue; called once a second.

        Args:
            now: The loop's time.
            late: Seconds by which the call is late because an application held the thread.
        """

    def abandon(self) -> None:
        """Close it, whatever is being served: the process ends now."""


class Framing(Protocol):
    """Makes the connection for an accepted socket, as the class `H1Connection` does."""

    def __call__(self, state: ServerState, endpoints: Endpoints) -> asyncio.Protocol:
        """Return a `Client` that is the protocol of the transport.

        Its `connection_made` reduces `ServerState.coming` by one, and calls `ServerState.connected` and `Endpoints.read`. With
        TLS it is made before the handshake, and `connection_made` is called after that: then the protocol of ALPN is known.

        Args:
            state: What all connections share.
            endpoints: The two ends; with a PROXY header those that it names.
        """
        ...


class Successor(Client, Protocol):
    """The protocol that takes a connection over; also an `asyncio.Protocol`."""

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""

    def pause_writing(self) -> None:
        """Take note that the client reads slowly."""
