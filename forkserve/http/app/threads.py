"""WSGI in a pool of threads: the application runs beside the loop, which alone touches connections."""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

from forkserve.http.app.sendfile import FileWrapper, file_to_send
from forkserve.http.app.wsgi import WSGICall, grouped
from forkserve.http.framing.outgoing import PIECE
from forkserve.http.message.errors import ClientGoneError, is_departure
from forkserve.http.message.response import BODILESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from forkserve.http.site import Site

PIECES_AHEAD = 16
"""Pieces of one body that an application may be ahead of the loop; a large one counts as several."""


def _weight(data: bytes) -> int:
    """As how many pieces it counts; what is no bytes fails later."""
    return min(PIECES_AHEAD, 1 + len(data) // PIECE) if data.__class__ is bytes else 1


class _Thread(threading.Thread):
    """One that nobody waits for at the end of the process."""

    is_servers = True

    def run(self) -> None:
        """Do the work. What is started here takes after this thread, for which it is too late to be waited for."""
        self._daemonic = False
        super().run()


class ThreadPool:
    """Threads that call the application; first come, first served.

    Args:
        site: Whose application.
        count: How many threads. One that hangs cannot keep a worker from ending, but threads that the application starts in
            them are no daemons, as they would not be in a main thread.
    """

    def __init__(self, site: Site, count: int) -> None:
        self._observer = site.observer
        self._queue: SimpleQueue[ThreadedExchange] = SimpleQueue()
        self._own = threading.local()  # the number of this thread
        self._began: list[float | None] = []  # when each thread called the application it is in
        self._busy: list[bool] = []
        for number in range(count):
            self._began.append(None)
            self._busy.append(False)
            try:
                _Thread(target=self._work, args=(number,), name=f"wsgi-{number + 1}", daemon=True).start()
            except RuntimeError:  # the limit of processes is reached
                del self._began[number], self._busy[number]
                if not number:
                    raise
                site.log.warning("only %d of %d threads can be started (see `ulimit -u`)", number, count)
                break

    def take(self, exchange: ThreadedExchange) -> None:
        """Have a thread call the application."""
        self._queue.put(exchange)

    @property
    def in_hand(self) -> int:
        """How many exchanges are under way or waiting."""
        return sum(self._busy) + self._queue.qsize()

    def stuck(self, seconds: float) -> bool:
        """Whether every thread has been in one request of the application for longer than ``seconds``."""
        limit = monotonic() - seconds
        return all(began is not None and began < limit for began in tuple(self._began))

    def waiting(self, wait: Callable[[], object]) -> None:
        """Wait for a client, which is no sign that the application is stuck. Called in a thread of the pool."""
        number = self._own.number
        self._began[number] = None
        wait()
        self._began[number] = monotonic()

    def _work(self, number: int) -> None:
        self._own.number = number
        while True:
            exchange = self._queue.get()
            self._busy[number] = True
            self._began[number] = monotonic()
            if not exchange.gone:
                entered = self._observer.enter(exchange.target.line)
                exchange.context.run(exchange.call)
                self._observer.leave(entered)
            exchange.discard_input()
            self._began[number] = None
            self._busy[number] = False


class ThreadedExchange(WSGICall):
    """One request answered by a WSGI application in a thread of the pool."""

    __slots__ = ("_ahead", "_called", "_due", "_handed_over")

    def start(self) -> None:
        """Without a body, have a thread call the application; else wait for all of it."""
        self._ahead = threading.Semaphore(PIECES_AHEAD)
        self._due = 0  # pieces written that the client has not taken
        self._called = False
        self._handed_over = False
        if self.fields.has_body:
            self.spool()
        else:
            self.input = None
            self.ready()

    def ready(self) -> None:
        """Have a thread call the application."""
        self.site.pool.take(self)

    # In the thread

    def call(self) -> None:
        """Call the application and hand the loop what it gives. Runs in a thread of the pool."""
        self._called = True
        result: Iterable[bytes] | None = None
        try:
            result = self.site.app(self.environ(), self.start_response)
            if isinstance(result, list):
                self._answer_list(grouped(result))
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
            self.close_result(result)

    def _answer_list(self, pieces: list[bytes]) -> None:
        if len(pieces) == 1 and len(pieces[0]) <= PIECE:
            self._hand_over(self.answer_pieces, pieces)
            return
        # Were it not waited for, threads could pile up large bodies in front of a busy loop.
        taken = threading.Event()
        self._hand_over(self._answer_large, pieces, taken)
        self.site.pool.waiting(taken.wait)

    @property
    def committed(self) -> bool:
        """Whether headers can no longer be replaced."""
        return self._handed_over

    def write_now(self, data: bytes) -> None:
        """Hand the loop a piece; wait if the client is too far behind."""
        self._handed_over = True
        for _ in range(_weight(data)):
            self.site.pool.waiting(self._ahead.acquire)
        if self.gone:
            raise ClientGoneError
        self._hand_over(self._write_piece, data)

    def _hand_over(self, call: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has ended: the process does so now
            self.site.loop.call_soon_threadsafe(self._on_loop, call, *arguments)

    # On the loop

    def _on_loop(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments)
        except ClientGoneError:
            self.client_gone()
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread must be let go
            self.fail(error, "the answer cannot be sent")
            self.client_gone()

    def _answer_large(self, pieces: list[bytes], taken: threading.Event) -> None:
        try:
            self.answer_pieces(pieces)
        finally:
            taken.set()

    def _write_end(self) -> None:
        self.write(b"", more=False)

    def _write_piece(self, data: bytes) -> None:
        self.write(data, more=True)
        self._due += _weight(data)
        if not self.connection.write_paused:
            self.writable()

    def writable(self) -> None:
        """Let the thread go on."""
        due, self._due = self._due, 0
        if due:
            self._ahead.release(due)

    def client_gone(self) -> None:
        """Let the thread go on, to find out that nobody listens."""
        self.gone = True
        self._ahead.release(PIECES_AHEAD)
        if not self._called:
            self.discard_input()
