"""One request and its answer: what WSGI and ASGI have in common. The application's side is in `wsgi` and `asgi`."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from forkserve.http.framing.outgoing import PIECE
from forkserve.http.message.errors import ClientGoneError, ResponseError
from forkserve.http.message.response import BODILESS, CHUNKED, HOP_LINES, ResponseHead, read_code

if TYPE_CHECKING:
    from forkserve.http.framing.connection import Connection
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target
    from forkserve.http.site import Site


class Exchange:
    """One request and its answer. Runs on the loop's thread unless a method says otherwise.

    A subclass calls the application in `start` or, if there is a body, when it likes; it answers by setting ``head`` and calling
    `write` until ``more`` is false.

    Args:
        connection: Where it came from and where the answer goes.
        target: The request line.
        fields: The header section.
    """

    # Subclasses have no __init__ but set their own attributes in `start`: there is one exchange for every request.
    __slots__ = (
        "began", "bodiless", "chunked", "complete", "connection", "context", "fields", "given", "gone", "head", "keep_alive",
        "left", "sent", "site", "started", "target",
    )  # fmt: skip

    def __init__(self, connection: Connection, target: Target, fields: Fields) -> None:
        self.connection = connection
        self.site: Site = (site := connection.site)
        # All code of the application that belongs to this request runs in this context (PEP 567), and in no other.
        self.context = site.context.copy()
        self.target = target
        self.fields = fields
        self.keep_alive = fields.keep_alive
        self.head: ResponseHead | None = None
        self.started = False  # the head has been written
        self.complete = False  # the last byte has been written
        self.gone = False  # the client can no longer be reached
        self.chunked = False
        self.bodiless = False
        self.left: int | None = None  # bytes to come by Content-Length
        self.sent = 0
        self.began = monotonic() if site.on_answer is not None else 0.0
        self.given: dict[str, Any] | None = None  # the environ or scope that the application got

    keeps_pieces = False
    """Whether the application keeps a piece that is not the last until the client has taken it."""

    # What the connection tells

    def start(self) -> None:
        """The head has been read; body bytes, if any, follow."""
        raise NotImplementedError

    def body_data(self, data: bytes) -> None:
        """Bytes of the request body."""
        raise NotImplementedError

    def body_end(self) -> None:
        """The request body is complete."""
        raise NotImplementedError

    def client_half_closed(self) -> None:
        """The client sends no more; it may still be reading."""

    def client_gone(self) -> None:
        """The connection is lost, or what came over it cannot be trusted any more."""
        self.gone = True

    @property
    def takes_more(self) -> bool:
        """Whether there is room for more of the request body."""
        return True

    def end_stream(self) -> None:
        """The process is about to end: an answer whose end nobody knows should end now."""

    def flush_head(self) -> None:
        """Send the head of an answer that the application has begun, if its body has not begun by now."""

    @property
    def is_stream(self) -> bool:
        """Whether this is an answer that has begun and whose length nobody knows."""
        head = self.head
        return head is not None and head.content_length is None and not (self.complete or self.bodiless)

    def writable(self) -> None:
        """The client has taken enough of what was written to go on."""

    # What the application's side uses

    def answer(self, data: bytes) -> None:
        """Send the whole body at once; the same as a single `write`, but with nothing to look at in the usual case.

        Raises:
            ResponseError: As `write`.
            ClientGoneError: As `write`.
        """
        head, connection, site = self.head, self.connection, self.site
        if (
            head is None
            or data.__class__ is not bytes
            or head.content_length != (size := len(data))
            or size > PIECE
            or not head.plain
            or self.target.method == "HEAD"
            or self.started
            or self.gone
            or not self.keep_alive
            or site.closing
            or connection.body is not None
        ):
            self.write(data, more=False)
            return
        self.sent = size
        self.started = self.complete = True
        version = self.fields.version
        if head.block and version == "1.1" and site.on_answer is None:
            connection.transport.write(b"".join((head.block, site.ending.whole, data)))
        else:
            self.head = head = head.own()
            connection.transport.write(head.finish(HOP_LINES[version, True], site.ending) + data)
            if site.on_answer is not None:
                site.on_answer(self)
        connection.answered(self)

    def write(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body, with the head in front of it if that has not been sent, in one write.

        Raises:
            ResponseError: The head is not set (nothing has been written then), the body is no bytes, or it is longer than its
                Content-Length (what fits has been written).
            ClientGoneError: Nobody is there to read it.
        """
        if self.gone:
            raise ClientGoneError
        if data.__class__ is not bytes:
            data = _as_bytes(data)
        out = b"" if self.started else self._frame(len(data), more=more)
        surplus = False
        if self.bodiless:
            data = b""
        elif self.left is not None:
            surplus = len(data) > self.left
            if surplus:
                data = data[: self.left]
            self.left -= len(data)
        if data:
            self.sent += len(data)
            out = self._wrap(out, data, last=not more)
        if self.chunked and not more:
            out += b"0\r\n\r\n"
        if out:
            self.connection.send(out)
        if surplus:
            self.keep_alive = False
            raise ResponseError("the body is longer than its Content-Length")
        if more:
            return
        if self.left and not self.bodiless:
            self.keep_alive = False
            self.site.log.error("%s: the body is %d bytes shorter than its Content-Length", self.describe(), self.left)
        self.complete = True
        if self.site.on_answer is not None:
            self.site.on_answer(self)
        self.connection.answered(self)

    def _wrap(self, out: bytes, data: bytes, *, last: bool) -> bytes:
        """The data with what comes before it and, if it is chunked, behind it; but large data is sent here, without a copy."""
        chunked = self.chunked
        if len(data) <= PIECE:
            return b"%b%x\r\n%b\r\n" % (out, len(data), data) if chunked else out + data
        connection = self.connection
        if chunked:
            out = b"%b%x\r\n" % (out, len(data))
        if out:
            connection.send(out)
        connection.send(data, spill=last or not self.keeps_pieces)
        return b"\r\n" if chunked else b""

    def _frame(self, size: int, *, more: bool) -> bytes:
        if self.head is None:
            raise ResponseError("the body came before the start of the response")
        self.head = head = self.head.own()
        site, version = self.site, self.fields.version
        length = head.content_length
        if head.close or site.closing or (self.keep_alive and not self.connection.may_stay_open()):
            self.keep_alive = False
        if self.target.method == "HEAD" or head.code in BODILESS:
            self.bodiless = True
            if length is None and size and not more and head.code != 204:
                head.add_length(size)
        elif length is not None:
            self.left = length
        elif not more:
            head.add_length(size)
            self.left = size
        elif version == "1.1":
            self.chunked = True
        else:
            self.keep_alive = False
        self.started = True
        hop = HOP_LINES[version, self.keep_alive]
        return head.finish(hop + CHUNKED if self.chunked else hop, site.ending)

    def add_length(self, length: int) -> None:
        """Say how long the body is, where the application did not but it is known."""
        head = self.head
        if head is not None and head.content_length is None and head.code not in BODILESS:
            self.head = head.own()
            self.head.add_length(length)

    def fail(self, error: BaseException | None, what: str) -> None:
        """The application did not answer as it should: log it, and answer 500 if nothing has been sent, else break off.

        Args:
            error: What it raised, for the traceback; None if it raised nothing.
            what: What happened, for the log line.
        """
        self.site.log.error("%s: %s", self.describe(), what, exc_info=error)
        if self.gone or self.complete:
            return
        self.keep_alive = False
        if not self.started:
            self.head = ResponseHead(*read_code(500), str)
            self.head.add((("Content-Type", "text/plain; charset=utf-8"),))
            self.write(b"500 Internal Server Error\n", more=False)
            return
        self.break_off()

    def break_off(self) -> None:
        """End the answer where it stands, and the connection with it."""
        self.complete = True
        if self.site.on_answer is not None:
            self.site.on_answer(self)
        self.connection.break_off(reset=self.looks_whole)

    @property
    def looks_whole(self) -> bool:
        """Whether the client would take what it has got for the whole answer if the connection closed in order.

        That is so where the body has neither length nor chunks; a reset tells it otherwise.
        """
        return not self.chunked and self.left is None

    def describe(self) -> str:
        """The request line, escaped, as it stands in log lines."""
        return self.site.printable(self.target.line.decode("ascii"))


def _as_bytes(data: object) -> bytes:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ResponseError(f"the body must be bytes, not {type(data).__name__}")
    return bytes(data)
