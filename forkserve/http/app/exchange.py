"""One request and its response: what WSGI and ASGI have in common. The application's side is in `wsgi` and `asgi`."""

from __future__ import annotations

import re
from bisect import bisect_left
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from forkserve.base.logforms import RequestLine, Trace
from forkserve.base.tally import BOUNDS, BUCKET, SHIFT, SHORT, TABLED
from forkserve.http.message.errors import ClientGoneError, ResponseError
from forkserve.http.message.response import BODILESS, ResponseHead, read_code

if TYPE_CHECKING:
    from forkserve.http.app.site import Site
    from forkserve.http.framing.writer import ResponseWriter
    from forkserve.http.message.errors import RequestError
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target
    from forkserve.http.message.response import Field


_TRACEPARENT = re.compile(
    rb"(?P<known>(?P<version>(?!ff)[0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?P<more>-.*)?"
)


class Exchange:
    """One request and its response; implements `RequestHandler`. Runs on the loop's thread unless a method says otherwise.

    A subclass calls the application in `start` or, if there is a body, when it likes. It answers by setting ``head`` and calling
    `write` until ``more`` is false.

    Args:
        site: What all requests share.
        writer: Sends the response.
        target: The request line.
        fields: The header section.

    Attributes:
        context: The context of this request (PEP 567): all code of the application for it runs there, and in no other.
        head: The head that the application has given.
        started: The head has been given to the writer.
        complete: The last byte has been given to the writer, or the response was aborted.
        gone: The client can no longer be reached.
        hook_request: The request as users' hooks see it; set only where there are such hooks.
        bodiless: The response has no body, whatever its head says. Set when it begins in pieces, as `left` is.
        left: The bytes of the body that are still to come by Content-Length.
        sent: The bytes of the body so far.
        began: When the head had been read, in monotonic nanoseconds.
        queued: Since when the request waits for the application: `began`, without the time that the client needed for the
            body, and with what the framing knows of a wait before.
        scope_or_environ: What the application was called with.
        waited: For how many nanoseconds the request has waited for the application; set by `has_waited`.
        request_id: The field with the identifier of the request; set only with --request-id-header.
    """

    # Subclasses have no __init__ but set their own attributes in `start`: there is one exchange for every request.
    __slots__ = (
        "began", "bodiless", "complete", "context", "fields", "gone", "head", "hook_request", "left", "queued", "request_id",
        "scope_or_environ", "sent", "site", "started", "target", "waited", "writer",
    )  # fmt: skip

    hook_request: Any
    request_id: Field
    waited: int

    def __init__(self, site: Site, writer: ResponseWriter, target: Target, fields: Fields) -> None:
        self.site = site
        self.writer = writer
        self.context = site.context.copy()
        self.target = target
        self.fields = fields
        self.head: ResponseHead | None = None
        self.started = False
        self.complete = False
        self.gone = False
        self.sent = 0
        self.scope_or_environ: dict[str, Any] | None = None
        self.began = self.queued = site.tally.now = monotonic_ns()

    keeps_pieces = False
    """Whether the application keeps a piece that is not the last until the client has taken it."""

    # Called by the framing; see `RequestHandler`

    def start(self, body: bytes | None = None) -> None:
        """Begin: the head has been read; without ``body``, bytes of one may follow."""
        raise NotImplementedError

    def body_data(self, data: bytes) -> None:
        """Take bytes of the request body."""
        raise NotImplementedError

    def body_end(self) -> None:
        """Take note that the request body is complete."""
        raise NotImplementedError

    def refused(self, error: RequestError) -> None:
        """Take note that the framing answers with an error, as the request body cannot be read."""
        self.client_gone()
        if self.site.on_refused is not None:
            self.site.on_refused(self, error)

    def client_half_closed(self) -> None:
        """Take note that the client sends no more; it may still be reading."""

    def client_gone(self) -> None:
        """Take note that the connection is lost, or that its bytes cannot be trusted any more."""
        self.gone = True

    @property
    def takes_more(self) -> bool:
        """Whether there is room for more of the request body."""
        return True

    def end_stream(self) -> None:
        """End a response of unknown length soon: the process is about to end."""

    def flush_head(self) -> None:
        """Send the head if the application has given it and its body has not begun."""

    @property
    def is_stream(self) -> bool:
        """Whether the response has begun and its length is unknown."""
        head = self.head
        return head is not None and head.content_length is None and not (self.complete or (self.started and self.bodiless))

    def writable(self) -> None:
        """Write on: the client has taken enough of what was written."""

    # Called by the application's side

    def answer(self, data: bytes) -> int | None:
        """Send the whole body at once: the same as a single `write`, but with less to do in the usual case.

        Returns:
            The time at the end in monotonic nanoseconds, if it was taken.

        Raises:
            ResponseError: As `write`.
            ClientGoneError: As `write`.
        """
        head = self.head
        if (
            head is None
            or data.__class__ is not bytes
            or head.content_length != (size := len(data))
            or not head.plain
            or self.target.method == "HEAD"
            or self.started
            or self.gone
        ):
            self.write(data, more=False)
            return None
        self.sent = size
        self.started = self.complete = True
        self.writer.respond(head, data)
        now = self.count()
        if self.site.on_answer is not None:
            self.site.on_answer(self)
        return now

    def write(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body, with the head in front of it if that has not been sent, in one write.

        Raises:
            ResponseError: The head is not set or the response has ended (nothing has been written then), the body is no bytes, or
                it is longer than its Content-Length (the part that fits has been written).
            ClientGoneError: The client can no longer be reached.
        """
        if self.gone:
            raise ClientGoneError
        if self.complete:  # the writer may send the response to the next request by now
            raise ResponseError("the response has ended")
        if data.__class__ is not bytes:
            data = as_bytes(data)
        if not self.started:
            self._begin(len(data), more=more)
        writer, surplus = self.writer, False
        if self.bodiless:
            data = b""
        elif self.left is not None:
            surplus = len(data) > self.left
            if surplus:
                data = data[: self.left]
            self.left -= len(data)
        self.sent += len(data)
        if surplus:
            writer.close_after()
            writer.data(data)
            raise ResponseError("the body is longer than its Content-Length")
        if more:
            writer.data(data, spill=not self.keeps_pieces)
            return
        if self.left and not self.bodiless:
            writer.close_after()
            self.site.log.error("%s: the body is %d bytes shorter than its Content-Length", self.describe(), self.left)
        self.complete = True
        writer.end(data)
        self.count()
        if self.site.on_answer is not None:
            self.site.on_answer(self)

    def _begin(self, size: int, *, more: bool) -> None:
        """Begin the response; ``size`` bytes are its first piece, or with ``more`` false the whole body."""
        head = self.head
        if head is None:
            raise ResponseError("the body came before the start of the response")
        length = head.content_length
        self.left: int | None = None
        self.bodiless = self.target.method == "HEAD" or head.code in BODILESS
        if self.bodiless:
            if length is None and size and not more and head.code != 204:
                self.head = head = head.with_length(size)
        elif length is not None:
            self.left = length
        elif not more:
            self.head = head = head.with_length(size)
            self.left = size
        self.started = True
        self.writer.start(head, bodiless=self.bodiless)

    def add_length(self, length: int) -> None:
        """Announce the length of the body, where the application did not but it is known."""
        head = self.head
        if head is not None and head.content_length is None and head.code not in BODILESS:
            self.head = head.with_length(length)

    def fail(self, error: BaseException | None, what: str) -> None:
        """Handle an application that did not answer as it should: log it, and answer 500, or abort if the response has begun.

        Args:
            error: The exception that it raised, for the traceback; None if it raised none.
            what: What happened, for the log line.
        """
        self.site.log.error("%s: %s", self.describe(), what, exc_info=error)
        if self.gone or self.complete:
            return
        self.writer.close_after()
        if not self.started:
            self.head = ResponseHead(*read_code(500), str)
            headers, body = self.failure_page(error, what)
            self.head.add(headers)
            self.write(body, more=False)
            return
        self.abort()

    def failure_page(self, error: BaseException | None, what: str) -> tuple[tuple[tuple[str, str], ...], bytes]:
        """Return headers and body of the answer 500, for the arguments of `fail`."""
        return (("Content-Type", "text/plain; charset=utf-8"),), b"500 Internal Server Error\n"

    def abort(self) -> None:
        """End the response where it stands."""
        self.complete = True
        self.writer.abort()
        if self.started:
            self.count()
        if self.site.on_answer is not None:
            self.site.on_answer(self)

    def count(self) -> int:
        """Count the response, which has begun and has ended: by the status that was sent, also if it is not whole.

        Returns:
            The time in monotonic nanoseconds.
        """
        tally, now = self.site.tally, monotonic_ns()
        tally.now = now
        took = now - self.began
        tally.codes[self.head.code] += 1  # type: ignore[union-attr]  # it has begun
        tally.sent += self.sent
        if took > SHORT:
            tally.latencies[BUCKET[took >> SHIFT] if took < TABLED else bisect_left(BOUNDS, took)] += 1
        tally.latency_sum += took
        return now

    def has_waited(self, time: int) -> None:
        """Count that the request has waited for the application for this many nanoseconds."""
        self.waited = time
        self.site.tally.waited(time)

    def describe(self) -> RequestLine:
        """Return the request line, escaped for a log."""
        return RequestLine.of(self.site.printable(self.target.line.decode("ascii")), self.trace)

    @property
    def trace(self) -> Trace:
        """What records of this request have in common."""
        return Trace(traceparent=traceparent(self.fields))


def traceparent(fields: Fields) -> str:
    """Return the field traceparent of a request if it is valid (W3C Trace Context, level 1); else a dash.

    Of a version after 00 it is the part that this version has.
    """
    value = fields.get(b"traceparent")
    found = None if value is None else _TRACEPARENT.fullmatch(value)
    if found is None or (found["version"] == b"00" and found["more"]):
        return "-"
    return found["known"].decode()


def as_bytes(data: object) -> bytes:
    """Return a piece of a body as bytes. Raises ResponseError if it is none."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ResponseError(f"the body must be bytes, not {type(data).__name__}")
    return bytes(data)
