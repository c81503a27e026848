"""Finds what is overdue on an HTTP/1 connection, once a second: slow heads, bodies and readers, and clients that left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkserve.http.framing.stall import waiting_in_kernel
from forkserve.http.framing.transports import look_at_peer
from forkserve.http.message.errors import RequestError

if TYPE_CHECKING:
    from forkserve.http.framing.h1 import H1Connection
    from forkserve.http.framing.writer import RequestHandler

FLUSH_TIME = 1.0
"""Seconds for which the layer below TLS may still write the last response, counted from zero while it does."""


def sweep(connection: H1Connection, now: float, late: float) -> None:
    """Act on what is overdue.

    Args:
        connection: The connection to look at.
        now: The loop's time.
        late: Seconds by which the call is late because an application held the thread.
    """
    connection.deadline += late
    exchange, state = connection.exchange, connection.state
    unsent = connection.unsent or _unsent_below(connection, now)
    if unsent or connection.sending is not None:
        written = (exchange.sent if exchange else 0) + (connection.sending.sent if connection.sending else 0)
        waiting = unsent + waiting_in_kernel(connection.transport)
        stalled = connection.stall.seconds(now, exchange, written, waiting)
        if stalled - late > state.write_timeout:
            connection.stall.give_up(state.log, connection.transport, exchange.describe() if exchange else "an answer")
        if exchange is None:
            return
    else:
        connection.stall.clear()
    if exchange is not None and not connection.closing:
        exchange.flush_head()
        if connection.eof or not connection.reading:
            _look_at_client(connection, exchange, now)
            return
    if now >= connection.deadline:
        _act_on_deadline(connection, now)


def _act_on_deadline(connection: H1Connection, now: float) -> None:
    state = connection.state
    if connection.closing:
        connection.transport.abort()
    elif connection.body is not None and connection.continue_due:
        connection.deadline = now + state.body_timeout  # the client waits for us
    elif connection.reader.buffer:
        connection.refuse(RequestError(408, "the request head did not come in time"))
    elif connection.body is not None and connection.exchange is not None:
        connection.refuse(RequestError(408, "the request body did not come in time"))
    else:
        if not (connection.requests or state.draining):
            state.refusals.note("connection", connection.endpoints.peer, "no request came in time (--header-timeout)")
        connection.close()


def wait_for_response(connection: H1Connection, exchange: RequestHandler) -> None:
    """Start the time limit for the next bytes of a response to a client that sends no more, and may have left."""
    connection.sent_at_eof = exchange.sent
    connection.deadline = connection.state.loop.time() + connection.state.half_close_timeout


def _unsent_below(connection: H1Connection, now: float) -> int:
    """Return what the transport below TLS may hold of the last response: it does not say, but the kernel's is full then."""
    waiting = waiting_in_kernel(connection.transport) if connection.closing and connection.endpoints.tls else 0
    if waiting:
        connection.deadline = now + FLUSH_TIME
    return waiting


def _look_at_client(connection: H1Connection, exchange: RequestHandler, now: float) -> None:
    """Check whether a client still waits for its response, while nothing is read from it."""
    gone, sends_no_more = look_at_peer(connection.transport)
    if connection.eof and exchange.sent != connection.sent_at_eof:
        wait_for_response(connection, exchange)
    if gone or (connection.eof and now >= connection.deadline):
        if not gone:
            why = "it sends no more, and its answer does not go on"
            connection.state.refusals.note("request", connection.endpoints.peer, why)
        connection.transport.abort()
    elif not connection.reading and sends_no_more:
        exchange.client_half_closed()
    if not connection.reading and connection.body is not None:
        connection.deadline = now + connection.state.body_timeout  # the client waits for us
