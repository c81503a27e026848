"""WSGI (PEP 3333): the environ, start_response, and the inline way to call an application; the other one is in `threads`.

Inline, one application call at a time holds the loop's thread, from the call to the ``close()`` of its iterator, as
in thin. Lists, files and small generators are closed at once and sent later; a larger generator is asked for its next
piece when the client has taken what it was given. While it lasts no other call starts; `Turns` is the queue in front
of it.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, BinaryIO

from forkserve.http.app.environ import Environ, environ_template
from forkserve.http.app.exchange import Exchange
from forkserve.http.app.sendfile import FileWrapper, SendFile, file_to_send
from forkserve.http.framing.outgoing import PIECE
from forkserve.http.message.errors import ClientGoneError, RequestError, ResponseError, is_departure
from forkserve.http.message.response import BODILESS, read_head

if TYPE_CHECKING:
    from forkserve.http.site import Site

ExcInfo = tuple[type[BaseException], BaseException, Any] | tuple[None, None, None]

BODY_IN_MEMORY = 512 * 1024
"""Bytes of a request body that are kept in memory; more goes to a temporary file."""
SURPLUS = 8
"""How often an iterator is asked whether it ends, once its Content-Length is there, before others get a turn on the loop."""
OUTPUT_IN_MEMORY = 1 << 20
"""Bytes of unsent output beyond which an iterator has to wait for the client."""
LONG = 5_000_000
"""Nanoseconds after which a call is so long that the loop must have a turn before the next one."""
RESTS = 4
"""Turns in a row that the loop may have between two calls, to end connections."""
_END: Any = object()
"""What an iterator gives that has ended."""


class Turns:
    """Who may call the application: one exchange at a time, in the order of arrival."""

    __slots__ = ("_asked", "_began", "_begin", "_end", "_ended", "_holder", "_loop", "_rested", "_scheduled", "_waiting")

    def __init__(self, site: Site) -> None:
        self._loop = site.loop
        self._begin = site.observer.begin
        self._end = self._ended = site.observer.end
        self._holder: WSGIExchange | None = None
        self._waiting: deque[WSGIExchange | Callable[[], None]] = deque()
        self._scheduled = False  # whether the first of them is about to get its turn
        self._asked: dict[Callable[[], None], None] = {}  # who is to be told when a call has ended
        self._rested = 0  # turns that the loop has had since the last call

    @property
    def held(self) -> bool:
        """Whether an application call is under way."""
        return self._holder is not None

    def take(self, exchange: WSGIExchange) -> None:
        """Call the application now, or when those in front have ended."""
        if self._holder is None and not self._waiting:
            self._call(exchange)
        else:
            self._waiting.append(exchange)

    def _call(self, exchange: WSGIExchange) -> None:
        """Call the application; it ends with `leave`."""
        self._holder = exchange
        self._began = monotonic_ns()
        self._rested = 0
        self._begin(exchange.target.line)
        exchange.call()

    def between(self, call: Callable[[], None]) -> None:
        """Call it now, or when the application call under way, and those that wait in front, have ended."""
        if self._holder is None and not self._waiting:
            call()
        else:
            self._waiting.append(call)

    def when_one_has_ended(self, call: Callable[[], None]) -> None:
        """Call it when the application call under way, or else the next one, has ended."""
        self._asked[call] = None
        self._end = self._tell_ended

    def _tell_ended(self) -> None:
        self._end = self._ended
        self._ended()
        asked, self._asked = self._asked, {}
        for call in asked:
            call()

    def rest(self) -> None:
        """Let the loop have a turn before the next call: to end a connection that is closed, or see that its client has.

        uvloop sends an end only when it comes round again, and both close only then what its client has closed; that would be
        after the calls for all the requests that have come meanwhile.
        """
        if self._rested < RESTS and not (self._waiting and self._waiting[0] is _nothing):
            self._rested += 1  # clients that come and go all the time must not keep the application from all others
            self._waiting.appendleft(_nothing)
            if self._holder is None:
                self._schedule()

    def leave(self) -> None:
        """The call has ended."""
        self._holder = None
        if self._waiting:
            self._schedule()
        if monotonic_ns() - self._began > LONG:
            self.rest()
        self._end()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Call what is first in the queue: one in a turn of the loop."""
        self._scheduled = False
        if self._holder is not None or not self._waiting:
            return
        first = self._waiting.popleft()
        if not isinstance(first, WSGIExchange):
            first()
        elif first.gone:  # the client did not wait: spare the application the call
            first.discard_input()
        else:
            self._call(first)
            return
        if self._waiting:
            self._schedule()
        else:
            self._rested = 0


def _nothing() -> None:
    """Have nothing to call."""


class WSGICall(Exchange):
    """One request answered by a WSGI application: what is the same wherever the application is called.

    The request body is spooled, to memory first and then to disk, so that a slow client never holds the application; `ready` is
    called when it is whole.
    """

    __slots__ = ("_counted", "_length", "input")

    def ready(self) -> None:
        """The request is whole: have the application called."""
        raise NotImplementedError

    def spool(self) -> None:
        """Wait for all of the request body."""
        self._length = 0
        self._counted: int | None = 0  # bytes of it that are counted as memory; None if it is on disk
        self.input: BinaryIO | None = tempfile.SpooledTemporaryFile(max_size=BODY_IN_MEMORY)  # type: ignore[assignment]  # noqa: SIM115 - lives as long as the exchange
        self.connection.send_continue()

    def body_data(self, data: bytes) -> None:
        """Keep it, in memory or on disk."""
        assert self.input is not None
        self._length += len(data)
        try:
            if self._length > PIECE and self._counted is not None:
                self._count_input()
            self.input.write(data)
        except OSError as error:
            raise self._cannot_store(error) from error

    def _cannot_store(self, error: OSError) -> RequestError:
        self.site.log.error("%s: the request body cannot be stored: %s", self.describe(), error.strerror)
        return RequestError(507, "the request body cannot be stored")

    def _count_input(self) -> None:
        """See whether more of the body may be kept in memory."""
        buffered = self.site.buffered
        assert self._counted is not None
        if self._length > BODY_IN_MEMORY or buffered.full:
            self.input.rollover()  # type: ignore[union-attr]  # a SpooledTemporaryFile
            buffered.total -= self._counted
            self._counted = None
        else:
            buffered.total += self._length - self._counted
            self._counted = self._length

    def body_end(self) -> None:
        """The body is whole: now the application may be called."""
        assert self.input is not None
        try:
            self.input.seek(0)  # which writes what is in its buffer
        except OSError as error:
            raise self._cannot_store(error) from error
        self.ready()

    def discard_input(self) -> None:
        """Close the request body."""
        if self.input is not None:
            with suppress(OSError):  # the disk is full, and it would have written the rest
                self.input.close()
            if self._counted:
                self.site.buffered.returned.append(self._counted)
                self._counted = None

    def environ(self) -> Environ:
        """What the application gets."""
        connection = self.connection
        template = connection.template
        if template is None:
            template = connection.template = environ_template(connection, self.fields)
        environ: Environ = template | self.target.environ
        if self.input is None:
            environ["wsgi.input"] = io.BytesIO()
        else:
            environ["wsgi.input"] = self.input
            environ["CONTENT_LENGTH"] = str(self._length)
        if script := environ["SCRIPT_NAME"]:
            path = environ["PATH_INFO"]
            if path == script or path.startswith(script + "/"):
                environ["PATH_INFO"] = path[len(script) :]
        self.given = environ
        return environ

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """PEP 3333: the application says how its answer begins. Nothing is sent before the first piece of the body."""
        if self.head is not None:
            if exc_info is None:
                raise ResponseError("start_response was called twice without exc_info")
            if self.committed and exc_info[1] is not None:
                raise exc_info[1].with_traceback(exc_info[2])
        self.head = read_head(status, headers, str)
        return self.write_now

    @property
    def committed(self) -> bool:
        """Whether headers can no longer be replaced."""
        return self.started

    def write_now(self, data: bytes) -> None:
        """PEP 3333's ``write()``."""
        raise NotImplementedError

    def answer_pieces(self, pieces: list[bytes]) -> None:
        """Send a whole body at once; large pieces of it are not copied."""
        if len(pieces) == 1:
            self.answer(pieces[0])
            return
        self.add_length(sum(map(len, pieces)))
        for piece in pieces:
            self.write(piece, more=True)
        self.write(b"", more=False)

    def close_result(self, result: Any) -> None:
        """Close what the application returned, whatever happened (PEP 3333)."""
        try:
            if hasattr(result, "close"):
                result.close()
        except BaseException:  # sys.exit() in an app ends a request, not the worker
            self.site.log.exception("%s: close() of the response raised an exception", self.describe())

    def start_file(self, file: int, offset: int, rest: int) -> None:
        """Send ``rest`` bytes of a file from ``offset`` on; the descriptor is ours from here on."""
        try:
            self.add_length(rest)
            self.write(b"", more=True)
        except BaseException:
            os.close(file)
            raise
        assert self.head is not None
        size = 0 if self.bodiless else min(rest, self.head.content_length or 0)
        SendFile(self.connection, file, offset, size, self._file_sent).start()

    def _file_sent(self, count: int) -> None:
        if self.left is not None:
            self.left -= count
        self.sent += count
        self.gone = self.gone or self.connection.transport.is_closing()
        with suppress(ClientGoneError):
            self.write(b"", more=False)


class WSGIExchange(WSGICall):
    """One request answered by a WSGI application on the loop's thread."""

    __slots__ = ("_iterable", "_iterator", "_waits")

    def start(self) -> None:
        """Without a body, call the application; else wait for all of it."""
        self._iterable: Iterable[bytes] | None = None
        self._waits = False
        if self.fields.has_body:
            self.spool()
        else:
            self.input = None
            self.site.inline.take(self)

    def ready(self) -> None:
        """Call the application when it is its turn."""
        self.site.inline.take(self)

    def client_gone(self) -> None:
        """Nobody will read the answer: end what is under way."""
        self.gone = True
        if self._iterable is not None:
            self._close()
        elif self.given is None:  # not called yet
            self.discard_input()

    def writable(self) -> None:
        """Ask the iterator for more, if it waits for the client."""
        if self._waits:
            self._waits = False
            self.site.loop.call_soon(self._go_on)

    def call(self) -> None:
        """Call the application and send what it gives."""
        site = self.site
        try:
            result = self.context.run(site.app, self.environ(), self.start_response)
            if site.observer.is_drain_ordered():
                site.closing = True
            if type(result) is list:
                # Everything is there: one write, and done.
                if len(result) == 1:
                    self.answer(result[0])
                else:
                    self.answer_pieces(grouped(result))
                self._leave()
                return
            self._iterable = result
            self._iterate(result)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in an app ends a request, not the worker
            self._failed(error)

    def write_now(self, data: bytes) -> None:
        """PEP 3333's ``write()``: called by the application during its call, so it can neither wait nor be asked again."""
        self.write(data, more=True)

    def _iterate(self, result: Iterable[bytes]) -> None:
        if type(result) is FileWrapper and not self.started:
            file = self.context.run(file_to_send, self, result)
            if file is not None:
                self.start_file(*file)
                self._close()
                return
        self._iterator: Iterator[bytes]
        head = self.head
        if (
            head is not None
            and head.content_length is None
            and head.code not in BODILESS
            and not self.started
            and self.context.run(_length_hint, result) == 1
        ):
            self.add_length(len(body := self.context.run(_first, result)))
            self._iterator = iter((body,))
        else:
            self._iterator = self.context.run(iter, result)
        self._step()

    def _step(self) -> None:
        """Send pieces while the client takes them; after each, let the loop write it out, for the next may take its time."""
        surplus = 0
        run, iterator = self.context.run, self._iterator
        try:
            while (piece := run(next, iterator, _END)) is not _END:
                if self.gone:
                    break
                if piece.__class__ is bytes and not piece:
                    continue
                self.write(piece, more=True)
                if self.bodiless:
                    break  # it may never end
                surplus += 1
                if self.left == 0 and surplus < SURPLUS:
                    continue  # all that will be sent is there; hear the iterator to its end
                outgoing = self.connection.outgoing
                self._waits = outgoing is not None and outgoing.size > OUTPUT_IN_MEMORY
                if not self._waits:
                    self.site.loop.call_soon(self._go_on)
                return
            if not self.gone:
                self.write(b"", more=False)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in an app ends a request, not the worker
            self._failed(error)
            return
        self._close()

    def _go_on(self) -> None:
        if self._iterable is not None:
            self._step()

    def _failed(self, error: BaseException) -> None:
        if self.gone and is_departure(error):
            self.site.log.debug("%s: the client has left: %r", self.describe(), error)
            self._close()
            return
        # The call must have ended before the connection reads on.
        try:
            self.fail(error, "the application raised an exception")
        finally:
            self._close()

    def _close(self) -> None:
        """Close the iterator, whatever happened (PEP 3333), and let the next one in."""
        iterable, self._iterable = self._iterable, None
        self.context.run(self.close_result, iterable)
        self._leave()

    def _leave(self) -> None:
        if self.input is not None:
            self.discard_input()
        self.site.inline.leave()


def _length_hint(result: object) -> int | None:
    try:
        return len(result)  # type: ignore[arg-type]  # asked, not assumed
    except TypeError:
        return None


def _first(result: Iterable[bytes]) -> bytes:
    return next(iter(result), b"")


def grouped(pieces: list[bytes]) -> list[bytes]:
    """The same body: large pieces as they are, and what is between them in one."""
    if not pieces or max(map(len, pieces)) <= PIECE:
        return [b"".join(pieces)]
    found: list[bytes] = []
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) <= PIECE:
            small.append(piece)
            continue
        if small:
            found.append(b"".join(small))
            small = []
        found.append(piece)
    return [*found, b"".join(small)] if small else found
