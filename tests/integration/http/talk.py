"""Run a conversation through the pure modules alone.

The result shows how `forkserve.http.message.http1` and `body` parse the bytes, however they are split into pieces.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkserve.http.message.body import ChunkedBody, LengthBody
from forkserve.http.message.errors import RequestError
from forkserve.http.message.http1 import HeadReader, RequestLimits, Target
from forkserve.http.message.readers import chosen, new_reader

if TYPE_CHECKING:
    from forkserve.http.message.fields import Fields

READERS = ("c", "python", "h11") if chosen("auto") == "c" else ("python", "h11")
"""The readers that are installed."""
LIMITS = RequestLimits(line=16384, fields=128, head=65536, body=1 << 30)


@dataclass(frozen=True)
class Request:
    """A complete request."""

    method: str
    path: bytes
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    keep_alive: bool


@dataclass(frozen=True)
class Refusal:
    """A request was refused with a status; nothing is read after it."""

    status: int


@dataclass(frozen=True)
class Unfinished:
    """The bytes ended within a message: in its head or in its body."""

    within: str


Outcome = list[Request | Refusal | Unfinished]


def converse(reader: str, pieces: Iterable[bytes], limits: RequestLimits = LIMITS) -> Outcome:
    """Read requests from pieces of bytes until the bytes end, a request is refused, or a request is the last of its connection."""
    return Conversation(reader, limits).run(pieces)


class Conversation:
    """The requests of one connection, without a socket."""

    def __init__(self, reader: str, limits: RequestLimits) -> None:
        self.outcome: Outcome = []
        self.reader = HeadReader(limits, new_reader(reader, limits))
        self.limits = limits
        self.current: tuple[Target, Fields] | None = None
        self.framing: LengthBody | ChunkedBody | None = None
        self.body = b""

    def run(self, pieces: Iterable[bytes]) -> Outcome:
        """Parse the pieces; return all outcomes."""
        try:
            for piece in pieces:
                data = piece
                while data:
                    if self.outcome and not self.open:
                        return self.outcome
                    data = self._feed(data)
        except RequestError as error:
            return [*self.outcome, Refusal(error.status)]
        if self.current is not None:
            return [*self.outcome, Unfinished("body")]
        return [*self.outcome, Unfinished("head")] if self.reader.buffer else self.outcome

    @property
    def open(self) -> bool:
        """Whether another request may follow."""
        last = self.outcome[-1]
        return isinstance(last, Request) and last.keep_alive

    def _feed(self, data: bytes) -> bytes:
        if self.framing is None:
            head, data = self.reader.feed(data)
            if head is None:
                return b""
            self.current = _, fields = self.reader.read(head)
            if fields.content_length is not None and fields.content_length > self.limits.body:
                raise RequestError(413, "too large")
            if fields.chunked:
                self.framing = ChunkedBody(self.limits)
            elif fields.content_length:
                self.framing = LengthBody(fields.content_length)
            else:
                self._complete()
            return data
        piece, end = self.framing.feed(data, 0)
        self.body += piece
        if self.framing.done:
            self._complete()
        return data[end:]

    def _complete(self) -> None:
        assert self.current is not None
        target, fields = self.current
        self.outcome.append(
            Request(target.method, target.path, target.query, tuple(fields.headers), self.body, fields.keep_alive)
        )
        self.current = self.framing = None
        self.body = b""
