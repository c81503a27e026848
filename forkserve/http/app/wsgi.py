"""WSGI (PEP 3333): the environ, start_response, and calls on the loop's thread; calls in a pool of threads are in `threads`.

On the loop's thread, one application call at a time holds it, from the call to the ``close()`` of its iterator, as in thin.
Lists, files and small generators are closed at once and sent later; a larger generator gives its next piece when the client has
taken the pieces before. During a call no other call starts; `Turns` is the queue in front.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, BinaryIO

from forkserve.http.app.environ import Environ, put_ends, shared_environ
from forkserve.http.app.exchange import Exchange, as_bytes
from forkserve.http.app.filewrapper import FileWrapper, file_to_send
from forkserve.http.app.hiddenloop import HiddenLoop
from forkserve.http.framing.outgoing import PIECE
from forkserve.http.message.errors import ClientGoneError, RequestError, ResponseError, is_departure
from forkserve.http.message.response import BODILESS, read_head

if TYPE_CHECKING:
    from forkserve.http.framing.writer import ClientConnection

ExcInfo = tuple[type[BaseException], BaseException, Any] | tuple[None, None, None]

BODY_IN_MEMORY = 512 * 1024
"""Bytes of a request body that are kept in memory; more goes to a temporary file."""
SURPLUS = 8
"""Pieces that an iterator may give beyond its Content-Length before other requests get a turn on the loop."""
OUTPUT_IN_MEMORY = 1 << 20
"""Bytes of unsent output beyond which an iterator has to wait for the client."""
_END: Any = object()
"""Marks the end of an iterator."""
_ITERATORS_OF_LISTS: tuple[type, ...] = (type(iter([])), type(iter(())))
"""Such an iterator runs no code of the application: every piece is there. Django's responses have one."""


class WSGICall(Exchange):
    """One request answered by a WSGI application, in whatever thread it is called.

    The request body is kept in memory or on disk until it is whole, so that a slow client never holds the application; then
    `ready` is called.
    """

    __slots__ = ("_counted", "_length", "input")

    def ready(self, now: int) -> None:
        """Have the application called: the request is whole. `now` is in monotonic nanoseconds."""
        raise NotImplementedError

    def keep(self, body: bytes) -> None:
        """Keep a small request body, which is whole."""
        self.input: BinaryIO | None = BytesIO(body)
        self._length = len(body)
        self._counted: int | None = 0  # bytes of it that are counted as memory; None if it is on disk

    def spool(self) -> None:
        """Wait for all of the request body."""
        self.input = None
        self._length = self._counted = 0
        self.writer.want_body()

    def body_data(self, data: bytes) -> None:
        """Keep the bytes, in memory or on disk."""
        self._length += len(data)
        try:
            if self._length > PIECE and self._counted is not None:
                self._count_input()
            if self.input is None:
                self.input = BytesIO(data)  # which does not copy them: most bodies come in one piece
                return
            if self._counted is not None:
                self.input.seek(0, os.SEEK_END)  # it is made with its position at the start
            self.input.write(data)
        except OSError as error:
            raise self._cannot_store(error) from error

    def _cannot_store(self, error: OSError) -> RequestError:
        self.site.log.error("%s: the request body cannot be stored: %s", self.describe(), error.strerror)
        return RequestError(507, "the request body cannot be stored")

    def _count_input(self) -> None:
        """See whether more of the body may be kept in memory."""
        buffered = self.site.server.buffered
        assert self._counted is not None
        if self._length > BODY_IN_MEMORY or buffered.full:
            kept = self.input
            self.input = tempfile.TemporaryFile(dir=self.site.settings.tmp_upload_dir)  # noqa: SIM115 - lives as long as the exchange
            if isinstance(kept, BytesIO):
                self.input.write(kept.getvalue())
            buffered.total -= self._counted
            self._counted = None
        else:
            buffered.total += self._length - self._counted
            self._counted = self._length

    def body_end(self) -> None:
        """Have the application called: the body is whole."""
        if self.input is None:
            self.input = BytesIO()
        try:
            self.input.seek(0)  # which writes what is in the buffer of a file
        except OSError as error:
            raise self._cannot_store(error) from error
        now = monotonic_ns()
        self.queued += now - self.began  # the client needed this time
        self.ready(now)

    def discard_input(self) -> None:
        """Close the request body. Whatever the application has done with it, this raises nothing."""
        if self.input is not None:
            try:  # noqa: SIM105 - `suppress` would take longer than all the rest
                self.input.close()
            except (OSError, ValueError, BufferError):
                # The disk is full, and it would have written what is in its buffer; or the application has detached the file, or
                # keeps a view of the bytes.
                pass
            counted, self._counted = self._counted, None
            if counted:
                self.site.server.buffered.returned.append(counted)

    def environ(self) -> Environ:
        """Return what the application is called with."""
        connection = self.writer.connection
        last = connection.reader
        if last.repeats and last.fields is self.fields:
            if last.environ is None:
                last.environ = self._new_environ(connection)
            environ = last.environ.copy()
        else:
            environ = self._new_environ(connection)
        if self.input is None:
            environ["wsgi.input"] = BytesIO()
        else:
            environ["wsgi.input"] = self.input
            environ["CONTENT_LENGTH"] = str(self._length)
        if script := environ["SCRIPT_NAME"]:
            path = environ["PATH_INFO"]
            if path == script or path.startswith(script + "/"):
                environ["PATH_INFO"] = path[len(script) :]
        self.scope_or_environ = environ
        return environ

    def _new_environ(self, connection: ClientConnection) -> Environ:
        fields, endpoints = self.fields, connection.endpoints
        if connection.template is None:
            connection.template = shared_environ(self.site, endpoints, fields.version)
        shared, address, port = connection.template
        environ: Environ = shared.copy()
        environ["REMOTE_ADDR"] = address
        environ["REMOTE_PORT"] = port
        environ["wsgi.errors"] = sys.stderr  # an app may replace it for a while: the template outlives that
        self.target.put_line(environ)
        fields.put_fields(environ)
        if fields.forwarded or endpoints.is_unix:
            put_ends(environ, self.site, endpoints, fields)
        return environ

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """Take status and headers (PEP 3333). Nothing is sent before the first piece of the body."""
        if self.head is not None:
            if exc_info is None:
                raise ResponseError("start_response was called twice without exc_info")
            if self.committed and exc_info[1] is not None:
                raise exc_info[1].with_traceback(exc_info[2])
        self.head = read_head(status, headers, str)
        return self.write_now

    @property
    def committed(self) -> bool:
        """Whether it is too late to replace the headers."""
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
        """Send ``rest`` bytes of a file from ``offset`` on; the descriptor is closed in any case."""
        try:
            self.add_length(rest)
            self.write(b"", more=True)
        except BaseException:
            os.close(file)
            raise
        assert self.head is not None
        size = 0 if self.bodiless else min(rest, self.head.content_length or 0)
        self.writer.send_file(file, offset, size, self._file_sent)

    def _file_sent(self, count: int, gone: bool) -> None:  # noqa: FBT001 - a callback
        if self.left is not None:
            self.left -= count
        self.sent += count
        self.gone |= gone
        with suppress(ClientGoneError):
            self.write(b"", more=False)


class WSGIExchange(WSGICall):
    """One request answered by a WSGI application on the loop's thread."""

    __slots__ = ("_iterable", "_iterator", "_waits")

    def start(self, body: bytes | None = None) -> None:
        """Call the application, or wait until the request body is whole."""
        self._iterable: Iterable[bytes] | None = None
        self._waits = False
        if self.site.hides_loop_per_call:
            self.context = HiddenLoop(self.context)  # type: ignore[assignment]  # it has what is used of a Context
        if body is not None:
            self.keep(body)
        elif self.fields.has_body:
            self.spool()
            return
        else:
            self.input = None
        self.site.turns.take(self, self.began)

    def ready(self, now: int) -> None:
        """Call the application when its turn comes."""
        self.site.turns.take(self, now)

    def client_gone(self) -> None:
        """End the call under way: its response cannot be sent."""
        self.gone = True
        if self._iterable is not None:
            self._close()
        elif self.scope_or_environ is None:  # not called yet
            self.discard_input()

    def writable(self) -> None:
        """Take the next piece from the iterator, if it waits for the client."""
        if self._waits:
            self._waits = False
            self.site.loop.call_soon(self._go_on)

    def call(self) -> None:
        """Call the application and send its response."""
        site = self.site
        try:
            result = self.context.run(site.app, self.environ(), self.start_response)
            if site.observer.is_drain_ordered():
                site.server.closing = True
            if type(result) is list:
                # Everything is there: one write, and done.
                if len(result) == 1:
                    self._leave(self.answer(result[0]))
                else:
                    self.answer_pieces(grouped(result))
                    self._leave()
                return
            self._iterable = result
            self._iterate(result)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in an app ends a request, not the worker
            self._failed(error)

    def write_now(self, data: bytes) -> None:
        """PEP 3333's ``write()``: the application calls it on the loop's thread, so it cannot wait for the client."""
        self.write(data, more=True)

    def _iterate(self, result: Iterable[bytes]) -> None:
        if type(result) is FileWrapper and not self.started:
            file = self.context.run(file_to_send, self, result)
            if file is not None:
                self.start_file(*file)
                self._close()
                return
        run = self.context.run
        iterator = run(iter, result)
        head = self.head
        if head is not None and head.code not in BODILESS and not self.started:
            if type(iterator) in _ITERATORS_OF_LISTS:
                pieces = list(iterator)
                if set(map(type, pieces)) == {bytes}:
                    self.answer_pieces(grouped(pieces))
                    self._close()
                    return
                iterator = iter(pieces)
            elif head.content_length is None and run(_length_hint, result) == 1:
                self.add_length(len(body := run(next, iterator, b"")))
                iterator = iter((body,))
        self._iterator: Iterator[bytes] = iterator
        self._step()

    def _step(self) -> None:
        """Send pieces while the client takes them; after each, let the loop write it, as the next may take long."""
        surplus = 0
        run, iterator = self.context.run, self._iterator
        try:
            while (piece := run(next, iterator, _END)) is not _END:
                if self.gone:
                    break
                if piece.__class__ is bytes:
                    if not piece:
                        continue
                    if not self.started and self._is_whole(piece):
                        self.answer(piece)
                        continue  # run the iterator to its end
                if self.complete:
                    if not as_bytes(piece):
                        continue
                    raise ResponseError("the body is longer than its Content-Length")  # noqa: TRY301 - the application's error
                self.write(piece, more=True)
                if self.bodiless:
                    break  # it may never end
                surplus += 1
                if self.left == 0 and surplus < SURPLUS:
                    continue  # the whole body is there; run the iterator to its end
                self._waits = self.writer.unsent > OUTPUT_IN_MEMORY
                if not self._waits:
                    self.site.loop.call_soon(self._go_on)
                return
            if not (self.gone or self.complete):
                self.write(b"", more=False)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in an app ends a request, not the worker
            self._failed(error)
            return
        self._close()

    def _is_whole(self, piece: bytes) -> bool:
        """Whether a first piece is the whole body, as its Content-Length says."""
        head = self.head
        return head is not None and head.content_length == len(piece) and head.plain and self.target.method != "HEAD"

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

    def _leave(self, now: int | None = None) -> None:
        try:
            if self.input is not None:
                self.discard_input()
        finally:
            self.site.turns.leave(now)


def _length_hint(result: object) -> int | None:
    try:
        return len(result)  # type: ignore[arg-type]  # it may have no length
    except TypeError:
        return None


def grouped(pieces: list[bytes]) -> list[bytes]:
    """Return the same body: large pieces as they are, and the small ones between them joined."""
    if len(pieces) == 1 and pieces[0].__class__ is bytes:
        return pieces
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
