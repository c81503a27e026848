"""One response as HTTP/1.1 sends it: chunks, persistence and the server's own fields (RFC 9112)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkserve.http.framing.h1head import CHUNKED, CONTINUE, PERSISTENCE, encode_head
from forkserve.http.framing.outgoing import PIECE
from forkserve.http.framing.sendfile import SendFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from forkserve.http.framing.h1 import H1Connection
    from forkserve.http.framing.writer import Successor
    from forkserve.http.message.response import Field, ResponseHead

DISCARDED_BODY = 65536
"""Bytes of an unread body that are read and dropped to keep a connection; for more it is closed."""


class H1Response:
    """The response that a connection sends at present; implements `UpgradeWriter`.

    A connection of HTTP/1.1 sends one response at a time, so it has one of these for all of them: an object for each request
    would cost 2 % of the time of a small one.

    Args:
        connection: Refers to this object until it is lost or handed over: no reference cycle is left to the collector.

    Attributes:
        version: The HTTP version of the request; set by the connection, as `keep_alive` is.
        keep_alive: Whether the connection takes another request after this one.
    """

    __slots__ = ("_added", "_chunked", "_common", "_delimited", "_head", "connection", "keep_alive", "version")

    def __init__(self, connection: H1Connection) -> None:
        self.connection = connection
        self.version = "1.1"
        self.keep_alive = True
        self._added: tuple[Field, ...] = ()
        self._common = connection.state.common  # as the head had them
        # The rest is set by `start`: most responses are sent by `respond`.
        self._head: bytes  # waits for the first piece of the body
        self._chunked: bool
        self._delimited: bool  # the client knows where the body ends without the end of the connection

    # The response

    def respond(self, head: ResponseHead, data: bytes) -> None:
        """Send a whole response, in one write."""
        connection = self.connection
        state = connection.state
        if state.closing or not self.keep_alive or connection.body is not None or len(data) > PIECE:
            self.start(head, bodiless=False)
            self.end(data)
            return
        self._common = common = state.common
        if head.encoded and self.version == "1.1":
            self._added = ()
            connection.transport.write(b"".join((head.encoded, common.encoded, data)))
        else:
            self._added = PERSISTENCE[self.version, True]
            connection.transport.write(encode_head(head, self._added, common) + data)
        connection.exchange = None
        # The usual case of `finished` and `idle`: every request would pay for the calls.
        if connection.held.data or connection.eof or not connection.reading:
            connection.idle()
        else:
            connection.deadline = state.now + state.keep_alive

    def start(self, head: ResponseHead, *, bodiless: bool) -> None:
        """Begin a response; the head is sent together with what follows."""
        state = self.connection.state
        if head.close or state.closing or not self._rest_is_short():
            self.keep_alive = False
        sized = head.content_length is not None
        self._chunked = not (bodiless or sized) and self.version == "1.1"
        self._delimited = self._chunked or (sized and not bodiless)
        if not (bodiless or self._delimited):
            self.keep_alive = False
        self._added = PERSISTENCE[self.version, self.keep_alive]
        if self._chunked:
            self._added += CHUNKED
        self._common = state.common
        self._head = encode_head(head, self._added, self._common)

    def data(self, data: bytes, *, spill: bool = True) -> None:
        """Send a piece of the body; more follows."""
        self._write(data, b"", spill=spill)

    def end(self, data: bytes = b"") -> None:
        """Send the last piece of the body, and end the response."""
        self._write(data, b"0\r\n\r\n" if self._chunked else b"", spill=True)
        self.connection.finished()

    def _write(self, data: bytes, end: bytes, *, spill: bool) -> None:
        """Send the head if it waits, a piece of the body, and its end: in one write unless the piece is large."""
        out, self._head = self._head, b""
        send, chunked = self.connection.send, self._chunked
        if not data:
            out += end
        elif len(data) <= PIECE:
            out = b"%b%x\r\n%b\r\n%b" % (out, len(data), data, end) if chunked else out + data
        else:
            if chunked:
                out = b"%b%x\r\n" % (out, len(data))
            if out:
                send(out)
            send(data, spill=spill)
            out = b"\r\n" + end if chunked else b""
        if out:
            send(out)

    def abort(self) -> None:
        """End the response where it stands.

        A client that reads the body up to the end of the connection would take it for whole: it gets a reset.
        """
        exchange = self.connection.exchange
        self.connection.break_off(reset=exchange is None or not exchange.started or not self._delimited)

    def close_after(self) -> None:
        """Close the connection when the response has ended."""
        self.keep_alive = False

    def added_fields(self, head: ResponseHead) -> Sequence[Field]:
        """Return the fields that were sent besides those of the head."""
        return [*self._added, *self._common.beside(own_date=head.own_date, own_server=head.own_server)]

    # A file as the whole body

    @property
    def sends_files(self) -> bool:
        """Whether the system can send a file: not through TLS."""
        return not self.connection.endpoints.tls

    def send_file(self, file: int, offset: int, count: int, done: Callable[[int, bool], None]) -> None:
        """Send a part of a regular file as the body."""
        connection = self.connection

        def ended(sent: int) -> None:
            connection.sending = None
            done(sent, connection.transport.is_closing())

        connection.sending = sending = SendFile(connection.state.loop, connection.transport, file, offset, count, ended)
        connection.when_drained(sending.start)

    # Flow control and the request body

    @property
    def paused(self) -> bool:
        """Whether the client has not taken what was written."""
        return self.connection.write_paused

    @property
    def unsent(self) -> int:
        """The bytes that wait besides those that the transport holds."""
        outgoing = self.connection.outgoing
        return 0 if outgoing is None else outgoing.size

    def want_body(self) -> None:
        """Send 100 (Continue) if the client waits for it."""
        connection = self.connection
        if connection.continue_due:
            connection.continue_due = False
            connection.wait_for_body()
            # In the middle of the response it would be a part of it.
            if connection.exchange is not None and not connection.exchange.started:
                connection.transport.write(CONTINUE)

    def pause_body(self) -> None:
        """Read no more of the body from the client."""
        self.connection.pause_reading()

    def resume_body(self) -> None:
        """Read on."""
        self.connection.resume_reading()

    def _rest_is_short(self) -> bool:
        """Whether the rest of the request body is so short that it is read for the sake of the connection."""
        connection = self.connection
        body = connection.body
        if body is None:
            return True
        # RFC 9110 10.1.1: a client that waits for 100 Continue may send the body after all, or not.
        return body.left is not None and body.left <= DISCARDED_BODY and not connection.continue_due

    # Another protocol

    def expect_upgrade(self) -> None:
        """Keep what follows the request, even if the client sent ``Connection: close``."""
        self.keep_alive = True

    def upgrade(self, head: ResponseHead, protocol: bytes, successor: Successor) -> None:
        """Send 101 (Switching Protocols) and hand the connection over."""
        connection = self.connection
        self._added = ((b"Upgrade", protocol), (b"Connection", b"Upgrade"))
        self._common = connection.state.common
        connection.transport.write(encode_head(head, self._added, self._common))
        connection.hand_over(successor)
