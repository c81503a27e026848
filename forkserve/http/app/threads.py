"""WSGI calls in a pool of threads: the application runs beside the loop, and only the loop's thread touches connections."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from forkserve.base.tally import SHORT
from forkserve.http.app.filewrapper import FileWrapper, file_to_send
from forkserve.http.app.wsgi import WSGICall, grouped
from forkserve.http.framing.outgoing import PIECE
from forkserve.http.message.errors import ClientGoneError, is_departure
from forkserve.http.message.response import BODILESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PIECES_AHEAD = 16
"""Pieces of one body that an application may be ahead of the loop; a large one counts as several."""


def _weight(data: bytes) -> int:
    """Return the number of pieces that it counts as; an object that is no bytes raises an error later."""
    return min(PIECES_AHEAD, 1 + len(data) // PIECE) if data.__class__ is bytes else 1


class ThreadedExchange(WSGICall):
    """One request answered by a WSGI application in a thread of the pool."""

    __slots__ = ("_ahead", "_called", "_due", "_handed_over", "waited_for_thread")

    def start(self, body: bytes | None = None) -> None:
        """Have a thread call the application, or wait until the request body is whole."""
        self._ahead: threading.Semaphore | None = None  # made for the first piece: most responses come at once
        self._due = 0  # pieces written that the client has not taken
        self._called = False
        self._handed_over = False
        self.waited_for_thread = 0
        if body is not None:
            self.keep(body)
        elif self.fields.has_body:
            self.spool()
            return
        else:
            self.input = None
        self.site.pool.take(self)

    def ready(self, now: int) -> None:
        """Have a thread call the application."""
        self.site.pool.take(self)

    # In the thread

    def call(self) -> None:
        """Call the application and hand its response to the loop. Runs in a thread of the pool."""
        self._called = True
        result: Iterable[bytes] | None = None
        try:
            result = self.site.app(self.environ(), self.start_response)
            if isinstance(result, list):
                self._answer_list(result)
            elif type(result) is FileWrapper and not self._handed_over and (file := file_to_send(self, result)):
                self._hand_over(self.start_file, *file)
            else:
                for piece in result:
                    if piece.__class__ is bytes and not piece:
                        continue
                    self.write_now(piece)
                    if self.target.method == "HEAD" or (self.head is not None and self.head.code in BODILESS):
                        break  # it may never end
                self._hand_over(self._write_end)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in an app ends a request, not the worker
            if self.gone and is_departure(error):
                self.site.log.debug("%s: the client has left: %r", self.describe(), error)
            else:
                self._hand_over(self.fail, error, "the application raised an exception")
        finally:
            if type(result) is not list:  # which has nothing to close
                self.close_result(result)

    def _answer_list(self, result: list[bytes]) -> None:
        pieces = grouped(result)
        if len(pieces) == 1 and len(pieces[0]) <= PIECE:
            self._hand_over(self.answer, pieces[0])
            return
        # Wait until the loop has taken it: else threads could pile up large bodies in front of a busy loop.
        taken = threading.Lock()
        taken.acquire()
        self._hand_over(self._answer_large, pieces, taken)
        self.site.pool.waiting(taken.acquire)

    @property
    def committed(self) -> bool:
        """Whether it is too late to replace the headers."""
        return self._handed_over

    def write_now(self, data: bytes) -> None:
        """Hand the loop a piece; wait if the client is too far behind."""
        self._handed_over = True
        if self._ahead is None:
            self._ahead = threading.Semaphore(PIECES_AHEAD)
        for _ in range(_weight(data)):
            if not self._ahead.acquire(blocking=False):
                self.site.pool.waiting(self._ahead.acquire)
        if self.gone:  # looked at after the semaphore is there: the loop releases it after it has set this
            raise ClientGoneError
        self._hand_over(self._write_piece, data)

    def _hand_over(self, call: Callable[..., object], *arguments: object) -> None:
        self.site.pool.hand_over(self._on_loop, call, *arguments)

    # On the loop

    def _on_loop(self, call: Callable[..., object], *arguments: object) -> None:
        if self.waited_for_thread > SHORT:
            self.has_waited(self.waited_for_thread)
            self.waited_for_thread = 0
        try:
            call(*arguments)
        except ClientGoneError:
            self.client_gone()
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread must go on
            self.fail(error, "the answer cannot be sent")
            self.client_gone()

    def _answer_large(self, pieces: list[bytes], taken: threading.Lock) -> None:
        try:
            self.answer_pieces(pieces)
        finally:
            taken.release()

    def _write_end(self) -> None:
        self.write(b"", more=False)

    def _write_piece(self, data: bytes) -> None:
        self.write(data, more=True)
        self._due += _weight(data)
        if not self.writer.paused:
            self.writable()

    def writable(self) -> None:
        """Let the thread go on."""
        due, self._due = self._due, 0
        if due:
            assert self._ahead is not None
            self._ahead.release(due)

    def client_gone(self) -> None:
        """Let the thread go on; it finds `gone` set."""
        self.gone = True
        if self._ahead is not None:
            self._ahead.release(PIECES_AHEAD)
        if not self._called:
            self.discard_input()
