"""An HTTP/1 connection: bytes in, requests out. The meaning of the bytes is in `http.message`, the response in `h1response`.

Requests of one connection are served one after the other, so pipelined responses are in order by construction. There is no timer
here: each connection has one deadline, and `ServerState.sweep` looks at all connections once a second.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from forkserve.http.framing import sweep
from forkserve.http.framing.h1head import error_answer
from forkserve.http.framing.h1response import H1Response
from forkserve.http.framing.held import HeldInput
from forkserve.http.framing.outgoing import PIECE
from forkserve.http.framing.output import Output
from forkserve.http.framing.stall import Stall
from forkserve.http.framing.transports import half_close, look_at_peer, read_less, waited_in_kernel
from forkserve.http.message.body import ChunkedBody, LengthBody
from forkserve.http.message.errors import RequestError
from forkserve.http.message.http1 import HeadReader

if TYPE_CHECKING:
    import asyncio

    from forkserve.http.framing.endpoints import Endpoints
    from forkserve.http.framing.state import ServerState
    from forkserve.http.framing.writer import RequestHandler, Successor
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

TURN = 65536
"""Bytes of a body after which a connection does not read on in the same turn of the loop."""
CLOSING_TIME = 1.0
"""Seconds for which a connection that we have closed for writing is still read, so that no reset destroys its last response."""
BRIEF_CLOSING_TIME = 0.1
"""The same in a development server that ends, for a connection without unread input: browsers leave idle ones open, and a user
waits for it."""
NEWCOMER_TIME = 2.0
"""Seconds that a connection without a request has for one when the process begins to drain."""


class H1Connection(Output):
    """One client connection.

    Args:
        state: What all connections share.
        endpoints: The two ends.

    Attributes:
        requests: The number of requests that have come over it.
        response: The response to the request that is being served, or to the last one.
        body: The rest of a request body that is being read.
        reader: Reads request heads.
        held: Input that waits for its turn.
        reading: Whether the transport reads.
        eof: Whether the client sends no more.
        closing: Whether nothing more is written, and input is dropped.
        continue_due: Whether the client waits for 100 (Continue).
        deadline: The loop's time by which the client must have sent or taken something.
        stall: Watches whether the client takes what is sent.
        sent_at_eof: The size of the sent response body when the client was last seen waiting after its end of input.
    """

    __slots__ = (
        "_usual", "body", "closing", "continue_due", "deadline", "eof", "held", "reader", "reading",
        "requests", "response", "sent_at_eof", "stall", "template",
    )  # fmt: skip

    def __init__(self, state: ServerState, endpoints: Endpoints) -> None:
        super().__init__(state, endpoints)
        self.template: Any = None  # see `ClientConnection`
        self.requests = 0
        self.response: H1Response  # from `connection_made` on, as it refers to this object: a TLS handshake may fail before
        self.reader = HeadReader(state.limits, state.read_head, state.read_ordinary)
        self._usual = False  # version and keep_alive of the response are those of a usual request; and it is not the first
        self.body: LengthBody | ChunkedBody | None = None
        self.held = HeldInput()
        self.reading = True
        self.eof = False
        self.sent_at_eof = 0
        self.closing = False
        self.continue_due = False
        self.deadline = inf
        self.stall = Stall()

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: a client has connected (asyncio)."""
        self.transport = transport
        self.response = H1Response(self)
        state = self.state
        state.coming -= 1
        state.connected(self)
        self.endpoints.read(transport)
        if self.endpoints.tls:
            read_less(transport)
        self.limit_output()
        self.deadline = state.loop.time() + state.header_timeout

    def eof_received(self) -> bool:
        """Take note that the client sends no more (asyncio); true keeps the connection open for the response."""
        self.eof = True
        self.state.rest()  # the connection may be about to close
        exchange = self.exchange
        held = bool(self.held.data) and not self.endpoints.tls  # TLS has no half-close
        if self.closing or exchange is None:
            return held or (self.outgoing is not None and not self.endpoints.tls)  # whole requests may be held, and responses
        if self.body is not None:
            if held or exchange.started:
                return held  # the end of the body may be in there
            self.refuse(RequestError(400, "the request body ends too early"))
            return not self.transport.is_closing()
        if self.endpoints.tls or look_at_peer(self.transport)[0]:
            return False
        exchange.client_half_closed()
        sweep.wait_for_response(self, exchange)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """End: the connection is gone (asyncio)."""
        self.state.disconnected(self)
        self.closing = True
        self.held.clear()
        self.discard_output()
        del self.response  # it refers to this object
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            _give_up(self, exchange)

    # Input

    def data_received(self, data: bytes, start: int = 0) -> None:
        """Read bytes that have come (asyncio), or bytes that were held, from ``start`` on.

        A turn of the loop belongs to all connections: in one of them at most one request is begun and a bounded part of its body
        is read, however much has come. The rest is held until the next turn, or until the response has ended.
        """
        try:
            held = self.held
            if self.body is None:
                if self.exchange is not None or held.data or self.write_paused or self.closing:
                    self._hold(data)
                    return
                reader = self.reader
                if not (start or reader.buffer) and (read := reader.read_whole(data)) is not None:
                    self._begin(read)
                    return
                end = -1 if reader.buffer else data.find(b"\r\n\r\n", start)
                if end >= 0:
                    end += 4
                    if end < len(data):
                        head = data[start:end]
                        held.data, held.start = data, end
                    else:
                        head = data[start:] if start else data
                else:
                    if not reader.buffer and self.requests:
                        self.deadline = self.state.loop.time() + self.state.header_timeout
                    whole, behind = reader.feed(data[start:] if start else data)
                    if whole is None:
                        return
                    head, held.data, held.start = whole, behind, 0
                self._begin(reader.read(head))
                if not held.data:
                    return
                if self.body is None:
                    self._hold(b"")
                    return
                data, start = held.take()
            elif held.data:
                self._hold(data)
                return
            self._read_body(data, start)
        except RequestError as error:
            self.refuse(error)

    def _begin(self, head: tuple[Target, Fields]) -> None:
        target, fields = head
        state = self.state
        self.requests += 1
        state.requests = requests = state.requests + 1
        response, waited = self.response, 0
        if not (fields.usual and self._usual):
            if self.requests == 1:
                waited = waited_in_kernel(self.transport)  # in the queue of the listener
            if fields.version != response.version:
                self.template = None
            self._usual = fields.usual
            response.version, response.keep_alive = fields.version, fields.keep_alive
        self.deadline = inf
        body = None
        in_progress = state.in_progress
        if in_progress is not None or fields.has_body:
            try:
                if fields.has_body:
                    body = self._expect_body(fields)
                if in_progress is not None:
                    state.make_room(in_progress)
            except RequestError as error:
                error.method = target.method
                raise
        new_exchange = state.new_exchange  # not a method: Python calls it faster by a local name
        self.exchange = exchange = new_exchange(response, target, fields)
        if waited:
            exchange.queued -= waited
        if in_progress is not None:
            in_progress.add(exchange)
        if requests >= state.spent_at:
            state.on_spent()
        exchange.start(body)

    def _expect_body(self, fields: Fields) -> bytes | None:
        """Return the body if it is small and all of it has come with the head, as most have; else prepare to read it."""
        limits, length, held = self.state.limits, fields.content_length, self.held
        if length is not None and length > limits.body:
            raise RequestError(413, "the request body is too large")
        if length == len(held.data) - held.start <= PIECE:
            body, held.data = held.data[held.start :], b""
            self.state.tally.received += len(body)
            return body
        self.body = ChunkedBody(limits) if length is None else LengthBody(length)
        self.continue_due = fields.expect_continue and not held.data
        if not held.data:  # else it is read at once
            self.wait_for_body()
        return None

    def _read_body(self, data: bytes, start: int) -> None:
        body, exchange, held = self.body, self.exchange, self.held
        assert body is not None
        piece, position = body.feed(data, start)
        self.state.tally.received += len(piece)
        if position < len(data):
            held.data, held.start = data, position
        self.continue_due = False
        done = body.done
        if done:
            self.body = None
            self.deadline = inf
        else:
            self.wait_for_body()
        if exchange is None:
            if done:
                self.idle()
        else:
            if piece:
                exchange.body_data(piece)
            if done:
                exchange.body_end()
        if held.data:
            self._hold(b"")
            if not done:
                self.state.loop.call_soon(self._next)
        elif not done and (len(piece) > TURN or self.endpoints.tls):
            # uvloop reads on in the same turn, up to 8 MB, while there is more; and TLS may come in tiny records.
            self.pause_reading()
            self.state.loop.call_soon(self._next)

    def _hold(self, data: bytes) -> None:
        """Hold bytes for later, behind those that are held already."""
        if self.closing or (self.body is None and self.exchange is not None and not self.response.keep_alive):
            self.held.clear()  # RFC 9112 9.6: what follows a request with Connection: close is not read
            return
        if data:
            self.held.add(data)
        if self.held.is_full:
            self.pause_reading()

    def pause_reading(self) -> None:
        """Stop reading from the client."""
        if self.reading and not self.closing:
            self.reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read from the client again, unless too much is held."""
        if not self.reading and not self.closing and not self.held.is_full:
            self.reading = True
            self.wait_for_body()
            self.transport.resume_reading()

    def wait_for_body(self) -> None:
        """Start the time limit for the next bytes of a body."""
        if self.body is not None:
            self.deadline = self.state.loop.time() + self.state.body_timeout

    def refuse(self, error: RequestError) -> None:
        """Answer a request that cannot be served, and close."""
        state = self.state
        state.refusals.note("request", self.endpoints.peer, f"{error.status}, {error}")
        exchange = self.exchange
        if exchange is not None and exchange.started:
            self.response.abort()
            _give_up(self, exchange)
            return
        self.exchange = self.body = None
        state.tally.untimed_response(error.status)
        self.send(error_answer(error, error.method if exchange is None else exchange.target.method, state.common))
        if exchange is not None:
            exchange.refused(error)
        elif state.on_refused is not None:
            state.on_refused(self, error)
        self.close(unread=True)

    # From one request to the next

    def finished(self) -> None:
        """Continue after a response: its last byte has been written."""
        if self.exchange is None:
            return
        self.exchange = None
        if not self.response.keep_alive:
            self.close(unread=self.body is not None)
        elif self.body is not None:
            self.wait_for_body()
            self.resume_reading()
        else:
            self.idle()

    def go_on(self) -> None:
        """Continue with what is held: no response waits for the client any more."""
        if self.held.data or self.eof:
            self._next()

    def idle(self) -> None:
        """Wait for the next request, or begin with one that is held."""
        state = self.state
        if self.held.data:
            # Not from here: this may be deep inside an application's call.
            state.loop.call_soon(self._next)
        elif self.eof:
            self.close()
        else:
            self.deadline = state.now + state.keep_alive
            if not self.reading:
                self.resume_reading()

    def _next(self) -> None:
        """Continue in the next turn of the loop: with what is held, and with reading."""
        if self.closing:
            return
        if self.held.data and (self.body is not None or (self.exchange is None and not self.write_paused)):
            self.data_received(*self.held.take())
        exchange = self.exchange
        if exchange is None or exchange.takes_more:
            self.resume_reading()
        if self.eof and not self.held.data and not self.closing:
            if exchange is None:
                self.close()
            elif self.body is not None and not self.eof_received():
                self.transport.close()

    def may_bring_request(self, *, last: bool) -> bool:
        """Return whether another request may come; see `Client`."""
        exchange = self.exchange
        return not self.closing and (exchange is None or (self.response.keep_alive and (exchange.started or not last)))

    def hand_over(self, successor: Successor) -> None:
        """Let the connection speak another protocol from here on; bytes that are held are its first."""
        self.exchange = None
        del self.response  # it refers to this object
        self.state.connections.discard(self)
        self.state.connections.add(successor)
        self.transport.set_protocol(successor)
        if self.write_paused:
            successor.pause_writing()
        data, start = self.held.take()
        self.resume_reading()
        if data:
            successor.data_received(data[start:])

    # The end

    def close(self, *, unread: bool = False) -> None:
        """Send what is written, then close in order: send no more, and for a second read what the client still sends.

        Closing at once with unread input would reset the connection, and the response could be lost on its way. TLS has no
        half-close here: there the second is spent only where input is known to be unread.
        """
        if self.closing:
            return
        self.held.clear()
        self.body = None
        self.resume_reading()
        self.closing = True
        self.when_sent(partial(self._close_transport, unread=unread))

    def _close_transport(self, *, unread: bool) -> None:
        self.state.rest()  # so that the client sees the end before the next call holds the thread
        brief = self.state.draining and self.state.settings.reload and not unread
        self.deadline = self.state.loop.time() + (BRIEF_CLOSING_TIME if brief else CLOSING_TIME)
        if self.eof or not (half_close(self.transport) or unread):
            self.transport.close()

    def break_off(self, *, reset: bool) -> None:
        """End a connection in the middle of a response, so that the client sees that it is not whole."""
        self.exchange = self.body = None
        self.closing = True
        self.state.rest()  # as in `_close_transport`
        if reset:
            self.transport.abort()
        else:
            self.when_sent(self.transport.close)

    def abandon(self) -> None:
        """Close the connection, whatever is being served: the process ends now."""
        if self.exchange is not None:
            _give_up(self, self.exchange)
        self.break_off(reset=True)

    def drain(self, now: float, linger: float) -> None:
        """Prepare for the end of the process: idle connections get ``linger`` seconds for one more request, or end now."""
        # The response has ended: the rest of its request body gets no more time.
        if self.exchange is None and not self.closing:
            idle = self.requests and not self.reader.buffer
            if idle and not linger:
                self.break_off(reset=False)
            else:
                self.deadline = min(self.deadline, now + (linger if idle else NEWCOMER_TIME))

    def sweep(self, now: float, late: float) -> None:
        """Act on what is overdue; called once a second."""
        sweep.sweep(self, now, late)


def _give_up(connection: H1Connection, exchange: RequestHandler) -> None:
    """End an exchange whose response will not be whole."""
    exchange.gone = True
    if connection.sending is not None:
        connection.sending.cancel()  # before the count, as it tells how much of the file was sent
    if exchange.started and not exchange.complete:
        exchange.count()
    exchange.client_gone()
