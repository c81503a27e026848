"""A client connection: bytes in, bytes out, timeouts and flow control. All meaning is in `http1`, `body` and `exchange`.

Requests of one connection are served one after the other, so pipelined answers are in order by construction. There is
no timer here: each connection has one deadline, and `Site.sweep` looks at all of them once a second.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from forkserve.http.framing.output import Output
from forkserve.http.framing.stall import Stall, waiting_in_kernel
from forkserve.http.framing.transports import half_close, look_at_peer, read_less
from forkserve.http.message.body import ChunkedBody, LengthBody
from forkserve.http.message.errors import RequestError
from forkserve.http.message.http1 import HeadReader
from forkserve.http.message.parsers import new_parser
from forkserve.http.message.response import error_answer

if TYPE_CHECKING:
    import asyncio

    from forkserve.http.app.exchange import Exchange
    from forkserve.http.app.websocket import WebSocket
    from forkserve.http.message.fields import Fields
    from forkserve.http.site import Site

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HELD_INPUT = 65536
"""Bytes that are kept for later, of a body or of further requests; for more, reading pauses."""
TURN = 65536
"""Bytes of a body after which a connection does not read on in the same turn of the loop."""
DISCARDED_BODY = 65536
"""Bytes of an unread body that are read and dropped to keep a connection; for more it is closed."""
CLOSING_TIME = 1.0
"""Seconds that a connection we have closed for writing is read for, so that its answer is not lost to a reset."""
HALF_CLOSED = 600.0
"""Longest time in which a client that sends no more waits for the next piece of its answer: it may have left altogether."""


class Connection(Output):
    """One client connection.

    Args:
        site: What all connections share.
    """

    __slots__ = (
        "_closing", "_continue_due", "_deadline", "_eof", "_fields", "_held", "_held_from", "_reader", "_reading",
        "_sent_at_eof", "_stall", "base", "body", "requests", "template",
    )  # fmt: skip

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.base: Any = None  # the environ without any field section, if no field has a say in it; belongs to wsgi
        self.template: Any = None  # the environ or scope of the last field section; belongs to wsgi and asgi
        self.requests = 0
        self._reader = HeadReader(site.limits, new_parser(site.settings.http))
        self._fields: Fields | None = None
        self.body: LengthBody | ChunkedBody | None = None
        self._held = b""  # what has come and waits for its turn,
        self._held_from = 0  # from here on
        self._reading = True
        self._eof = False
        self._sent_at_eof = 0  # or when the client was last looked at
        self._closing = False
        self._continue_due = False
        self._deadline = inf
        self._stall = Stall()

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected (asyncio)."""
        self.transport = transport
        site = self.site
        site.connections.add(self)
        if site.quota is not None:
            site.quota.coming -= 1
        site.observer.connected(len(site.connections))
        self.endpoints.read(transport)
        if self.endpoints.tls:
            read_less(transport)
        self.limit_output()
        self._deadline = site.loop.time() + site.header_timeout

    def eof_received(self) -> bool:
        """The client sends no more (asyncio); true keeps the connection open for the answer."""
        self._eof = True
        self.site.rest()  # the connection may be about to close
        exchange = self._exchange
        held = bool(self._held) and not self.endpoints.tls  # TLS has no half-close
        if self._closing or exchange is None:
            return held or (self.outgoing is not None and not self.endpoints.tls)  # whole requests may be held, and answers
        if self.body is not None:
            if held or exchange.started:
                return held  # the end of the body may be in there
            self._refuse(RequestError(400, "the request body ends too early"))
            return not self.transport.is_closing()
        if self.endpoints.tls or look_at_peer(self.transport)[0]:
            return False
        exchange.client_half_closed()
        self._wait_for_answer(exchange)
        return True

    def _wait_for_answer(self, exchange: Exchange) -> None:
        """The time begins in which a client that sends no more, and may have left, must get more of its answer."""
        site = self.site
        left = site.interface == "asgi" and site.settings.half_close == "disconnect"
        self._sent_at_eof = exchange.sent
        self._deadline = site.loop.time() + (site.write_timeout if left else HALF_CLOSED)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone (asyncio)."""
        site = self.site
        site.connections.discard(self)
        site.observer.connected(len(site.connections))
        self._closing = True
        self._held = b""
        self.discard_output()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.gone = True
            if self.sending is not None:
                self.sending.cancel()
            exchange.client_gone()

    # Input

    def data_received(self, data: bytes, start: int = 0) -> None:
        """Bytes have come (asyncio), or what is left of such from ``start`` on has its turn.

        A turn of the loop belongs to all connections: in one of them at most one request is begun and a bounded part of its body
        is read, however much has come. The rest is held, and has the next turn or the one behind the answer.
        """
        try:
            if self.body is None:
                if self._exchange is not None or self._held or self.write_paused or self._closing:
                    self._hold(data)
                    return
                end = -1 if self._reader.buffer else data.find(b"\r\n\r\n", start)
                if end >= 0:
                    end += 4
                    head = data if end == len(data) and not start else data[start:end]
                    if end < len(data):
                        self._held, self._held_from = data, end
                else:
                    if not self._reader.buffer and self.requests:
                        self._deadline = self.site.loop.time() + self.site.header_timeout
                    whole, behind = self._reader.feed(data[start:] if start else data)
                    if whole is None:
                        return
                    head, self._held, self._held_from = whole, behind, 0
                self._begin(head)
                if not self._held:
                    return
                if self.body is None:
                    self._hold(b"")
                    return
                data, start, self._held = self._held, self._held_from, b""
            elif self._held:
                self._hold(data)
                return
            self._read_body(data, start)
        except RequestError as error:
            self._refuse(error)

    def _begin(self, head: bytes) -> None:
        target, fields = self._reader.read(head)
        site = self.site
        self.requests += 1
        site.requests = requests = site.requests + 1
        if fields is not self._fields:
            self._fields = fields
            self.template = None
        self._deadline = inf
        if fields.has_body or site.in_hand is not None:
            try:
                if fields.has_body:
                    self._expect_body(fields)
                    self._continue_due = fields.expect_continue and not self._held
                if site.in_hand is not None:
                    site.make_room()
            except RequestError as error:
                error.method = target.method
                raise
        self._exchange = exchange = site.new_exchange(self, target, fields)
        if site.in_hand is not None:
            site.in_hand.add(exchange)
        if requests >= site.spent_at and site.quota is not None:
            site.quota.reached()
        exchange.start()

    def _expect_body(self, fields: Fields) -> None:
        limits, length = self.site.limits, fields.content_length
        if length is not None and length > limits.body:
            raise RequestError(413, "the request body is too large")
        self.body = ChunkedBody(limits) if length is None else LengthBody(length)
        self._wait_for_body()

    def _read_body(self, data: bytes, start: int) -> None:
        body, exchange = self.body, self._exchange
        assert body is not None
        piece, position = body.feed(data, start)
        if position < len(data):
            self._held, self._held_from = data, position
        self._continue_due = False
        self._wait_for_body()
        if body.done:
            self.body = None
            self._deadline = inf
        if exchange is None:
            if body.done:
                self._idle()
        else:
            if piece:
                exchange.body_data(piece)
            if body.done:
                exchange.body_end()
        if self._held:
            self._hold(b"")
            if not body.done:
                self.site.loop.call_soon(self._next)
        elif (len(piece) > TURN or self.endpoints.tls) and not body.done:
            # uvloop reads on in the same turn, and up to 8 MB, as long as there is so much; and TLS may come in tiny records.
            self.pause_reading()
            self.site.loop.call_soon(self._next)

    def _hold(self, data: bytes) -> None:
        """Keep it for later, behind what is kept already."""
        exchange = self._exchange
        if self._closing or (self.body is None and exchange is not None and not exchange.keep_alive):
            self._held = b""  # RFC 9112 9.6: what follows a request with Connection: close is not read
            return
        if data:
            self._held = self._held[self._held_from :] + data if self._held else data
            self._held_from = 0
        if len(self._held) - self._held_from > HELD_INPUT:
            self.pause_reading()

    def pause_reading(self) -> None:
        """Let the client wait with what it sends."""
        if self._reading and not self._closing:
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take from the client again, unless there is too much of other requests."""
        if not self._reading and not self._closing and (not self._held or len(self._held) - self._held_from <= HELD_INPUT):
            self._reading = True
            self._wait_for_body()
            self.transport.resume_reading()

    def _wait_for_body(self) -> None:
        """The client's time for more of a body begins now."""
        if self.body is not None:
            self._deadline = self.site.loop.time() + self.site.body_timeout

    def send_continue(self) -> None:
        """RFC 9110 10.1.1: the body is wanted."""
        if self._continue_due:
            self._continue_due = False
            self._wait_for_body()
            if self._exchange is not None and not self._exchange.started:  # in the middle of an answer it would be part of it
                self.transport.write(CONTINUE)

    # Output

    def may_ask(self, *, last: bool) -> bool:
        """Whether another request may come on it; with ``last``, if every answer that has not begun is the last."""
        exchange = self._exchange
        return not self._closing and (exchange is None or (exchange.keep_alive and (exchange.started or not last)))

    def may_stay_open(self) -> bool:
        """Whether what is left of the request body allows another request on this connection."""
        body = self.body
        if body is None:
            return True
        # RFC 9110 10.1.1: a client that waits for 100 Continue may send the body after all, or not.
        return body.left is not None and body.left <= DISCARDED_BODY and not self._continue_due

    def answered(self, exchange: Exchange) -> None:
        """The last byte of the answer has been written."""
        if self._exchange is not exchange:
            return
        self._exchange = None
        if not exchange.keep_alive:
            self.close(unread=self.body is not None)
        elif self.body is None:
            self._idle()
        else:
            self._wait_for_body()
            self.resume_reading()

    def go_on(self) -> None:
        """Nothing that was answered waits for the client any more: see what does."""
        if self._held or self._eof:
            self._next()

    def _idle(self) -> None:
        site = self.site
        if self._held:
            # Not from here: this may be deep inside an application's call.
            site.loop.call_soon(self._next)
        elif self._eof:
            self.close()
        else:
            self._deadline = site.now + site.keep_alive
            if not self._reading:
                self.resume_reading()

    def _next(self) -> None:
        """The next turn: go on with what is held, and read on."""
        if self._closing:
            return
        if self._held and (self.body is not None or (self._exchange is None and not self.write_paused)):
            data, self._held = self._held, b""
            self.data_received(data, self._held_from)
        exchange = self._exchange
        if exchange is None or exchange.takes_more:
            self.resume_reading()
        if self._eof and not self._held and not self._closing:
            if exchange is None:
                self.close()
            elif self.body is not None and not self.eof_received():
                self.transport.close()

    def _refuse(self, error: RequestError) -> None:
        """Answer a request that cannot be served, and close."""
        self.site.refusals.note("request", self.endpoints.peer, f"{error.status}, {error}")
        exchange, self._exchange = self._exchange, None
        method = error.method
        if exchange is not None:
            method = exchange.target.method
            exchange.client_gone()
        self.body = None
        if exchange is not None and exchange.started:
            self.break_off(reset=exchange.looks_whole)
            return
        site = self.site
        self.send(error_answer(error, method, site.ending))
        if site.access_log is not None:
            site.access_log.refused(self, error, exchange)
        self.close(unread=True)

    def hand_over(self, protocol: WebSocket) -> None:
        """The connection speaks another protocol from here on; bytes that have come already are its first."""
        self._exchange = None
        self.site.connections.discard(self)
        self.site.connections.add(protocol)
        self.transport.set_protocol(protocol)
        held, self._held = self._held, b""
        self.resume_reading()
        if held:
            protocol.data_received(held[self._held_from :])

    def close(self, *, unread: bool = False) -> None:
        """Send what is written, then close in order: no more from us, and for a second read what the client still sends.

        Closing at once with unread input would reset the connection, and the answer could be lost on its way. TLS has no
        half-close here: there the second is spent only where input is known to be unread.
        """
        if self._closing:
            return
        self._held = b""
        self.body = None
        self.resume_reading()
        self._closing = True
        self.when_sent(partial(self._close_transport, unread=unread))

    def _close_transport(self, *, unread: bool) -> None:
        self.site.rest()  # so that the client sees the end before the next call holds the thread
        self._deadline = self.site.loop.time() + CLOSING_TIME
        if self._eof or not (half_close(self.transport) or unread):
            self.transport.close()

    def break_off(self, *, reset: bool) -> None:
        """End a connection in the middle of an answer, so that the client sees that it is not whole."""
        self._exchange = self.body = None
        self._closing = True
        self.site.rest()  # as in `_close_transport`
        if reset:
            self.transport.abort()
        else:
            self.when_sent(self.transport.close)

    def abandon(self) -> None:
        """The process ends now, whatever is in hand."""
        if self._exchange is not None:
            self._exchange.client_gone()
        self.break_off(reset=True)

    # Time

    def drain(self, now: float, linger: float) -> None:
        """The process is about to end: idle connections get ``linger`` seconds for one more request, new ones two seconds."""
        # What is left of a request's body that was answered before is waited for no longer.
        if self._exchange is None and not self._closing:
            self._deadline = min(self._deadline, now + (linger if self.requests and not self._reader.buffer else 2.0))

    @property
    def is_stream(self) -> bool:
        """Whether it is in the middle of an answer whose end nobody knows."""
        return self._exchange is not None and self._exchange.is_stream

    def end_stream(self) -> None:
        """Let that answer end."""
        if self._exchange is not None:
            self._exchange.end_stream()

    @property
    def in_hand(self) -> str | None:
        """The request line being served, for the log; None if there is none."""
        return None if self._exchange is None else self._exchange.describe()

    def sweep(self, now: float, late: float) -> None:
        """Act on what is overdue; called once a second."""
        self._deadline += late
        unsent = self.unsent or self._unsent_below(now)
        if unsent or self.sending is not None:
            written = (self._exchange.sent if self._exchange else 0) + (self.sending.sent if self.sending else 0)
            stalled = self._stall.seconds(now, self._exchange, written, unsent + waiting_in_kernel(self.transport))
            if stalled - late > self.site.write_timeout:
                self.site.log.info("%s: the client has read nothing for too long", self.in_hand or "an answer")
                self.transport.abort()
            if self._exchange is None:
                return
        else:
            self._stall.clear()
        if self._exchange is not None and not self._closing:
            self._exchange.flush_head()
            if self._eof or not self._reading:
                self._look_at_client(self._exchange, now)
                return
        if now < self._deadline:
            return
        if self._closing:
            self.transport.abort()
        elif self.body is not None and self._continue_due:
            self._deadline = now + self.site.body_timeout  # it is we who let the client wait
        elif self._reader.buffer:
            self._refuse(RequestError(408, "the request head did not come in time"))
        elif self.body is not None and self._exchange is not None:
            self._refuse(RequestError(408, "the request body did not come in time"))
        else:
            if not (self.requests or self.site.draining):
                self.site.refusals.note("connection", self.endpoints.peer, "no request came in time (--header-timeout)")
            self.close()

    def _unsent_below(self, now: float) -> int:
        """What the transport below one of TLS may hold of the last answer: it does not say, but the kernel is full then."""
        waiting = waiting_in_kernel(self.transport) if self._closing and self.endpoints.tls else 0
        if waiting:
            self._deadline = now + CLOSING_TIME
        return waiting

    def _look_at_client(self, exchange: Exchange, now: float) -> None:
        """See whether a client still waits for its answer, though nothing is read from it that would tell."""
        gone, sends_no_more = look_at_peer(self.transport)
        if self._eof and exchange.sent != self._sent_at_eof:
            self._wait_for_answer(exchange)
        if gone or (self._eof and now >= self._deadline):
            if not gone:
                self.site.refusals.note("request", self.endpoints.peer, "it sends no more, and its answer does not go on")
            self.transport.abort()
        elif not self._reading and sends_no_more:
            exchange.client_half_closed()
        if not self._reading and self.body is not None:
            self._deadline = now + self.site.body_timeout  # it is we who let the client wait
