"""The threads that call a WSGI application beside the loop, and the way back from them to the loop.

A switch between threads costs more than a small application, so there are few:

- A thread is woken at the end of the loop's turn, when all requests of that turn have come.
- It is woken by a byte in a pipe. `os.write` lets the interpreter's lock go, which the thread needs at once. `Lock.release` would
  keep the interpreter's lock: the thread would run, wait for it, and run again.
- One thread is woken at a time. If more calls wait when it has taken one, it wakes the next thread before it makes the call.
  If calls are short, few threads make all of them. If they block, the next thread goes on.
- The loop is woken once for all results that are handed over until it takes them.

Where threads are greenlets (`greenlets`), they sleep at a semaphore instead: to read a pipe would stop all of them.

No wake-up is lost, though there is no lock. The side that adds a call or a result looks afterwards whether the other side has to
be woken. The other side notes first that it sleeps, or that it is awake, and looks for calls or results afterwards.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING

from forkserve.base import greenlets

if TYPE_CHECKING:
    import asyncio
    import logging
    from collections.abc import Callable

    from forkserve.http.app.calls import Observer, QueuedCall

MOMENT = 1.0
"""Seconds that threads which are not in the application get to end."""


class _Thread(threading.Thread):
    """A thread that the end of the process does not wait for."""

    is_servers = True

    def run(self) -> None:
        """Do the work. Threads that are started here inherit `daemon`, which it is too late to change in public."""
        self._daemonic = False
        super().run()


class ThreadPool:
    """Threads that call the application; first come, first served.

    Args:
        loop: Gets the results.
        observer: Is notified of each call.
        log: Where a shortage of threads is logged.
        count: The number of threads. One that hangs cannot keep a worker from ending, but threads that the application starts in
            them are no daemons, as in a main thread.

    Raises:
        RuntimeError: Not even one thread can be started.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, observer: Observer, log: logging.Logger, count: int) -> None:
        self._loop = loop
        self._next_entry = observer.next_entry
        self._calls: deque[QueuedCall] = deque()
        self._bell, self._ringer = os.pipe()  # a byte in it wakes one of the threads that sleep
        self._ring: Callable[[], object] = partial(os.write, self._ringer, b"\0")
        self._await_ring: Callable[[], object] = partial(os.read, self._bell, 1)
        if greenlets.library() is not None:
            bell = threading.Semaphore(0)
            self._ring, self._await_ring = bell.release, bell.acquire
        self._idle: list[int] = []  # one for each thread that sleeps, or is about to, and for which no byte is on its way
        self._wake_due = False  # whether a thread is to be woken at the end of this turn
        self._waking = False  # whether a thread has been woken that does not run yet
        self._results: deque[tuple[contextvars.Context, Callable[..., object], tuple[object, ...]]] = deque()
        self._loop_waking = False  # whether the loop has been woken, and takes the results soon
        self._own = threading.local()  # the number of this thread
        self._began: list[int | None] = []  # when each thread called the application it is in, in monotonic nanoseconds
        self._busy: list[int] = []  # nanoseconds that each was in the application, without the present call
        self._threads: list[_Thread] = []
        self._closed = False
        self._holds: list[int] = []  # after `close`, one for each thread that uses the pipe; to take one is atomic
        for number in range(count):
            self._began.append(None)
            self._busy.append(0)
            thread = _Thread(target=self._work, args=(number,), name=f"wsgi-{number + 1}", daemon=True)
            try:
                thread.start()
                self._threads.append(thread)
            except RuntimeError:  # the limit of processes is reached
                del self._began[number], self._busy[number]
                if not number:
                    raise
                log.warning("only %d of %d threads can be started (see `ulimit -u`)", number, count)
                break

    # On the loop

    def take(self, call: QueuedCall) -> None:
        """Have a thread call the application."""
        self._calls.append(call)
        if self._idle and not (self._waking or self._wake_due):
            self._wake_due = True
            self._loop.call_soon(self._wake_at_last)

    @property
    def descriptors(self) -> tuple[int, int]:
        """The pipe that wakes threads."""
        return self._bell, self._ringer

    @property
    def in_progress(self) -> int:
        """The number of calls under way or waiting."""
        # In this order: a call that a thread takes meanwhile counts at least once.
        return len(self._calls) + len(self._began) - len(self._idle)

    def stuck(self, seconds: float) -> bool:
        """Return whether every thread has been in one call of the application for longer than ``seconds``."""
        limit = monotonic_ns() - seconds * 1e9
        return all(began is not None and began < limit for began in tuple(self._began))

    @property
    def busy(self) -> int:
        """The nanoseconds that the threads have been in the application, as a mean of them; present calls included."""
        now = monotonic_ns()
        present = sum(now - began for began in tuple(self._began) if began is not None)
        return (sum(self._busy) + present) // len(self._busy)

    def close(self) -> None:
        """End the threads; one that is in the application ends when it returns. No call may be taken any more."""
        self._calls.clear()
        self._holds = list(range(len(self._threads) + 1))
        self._closed = True
        for _ in self._threads:
            self._ring()
        for number, thread in enumerate(self._threads):
            if self._began[number] is None:
                thread.join(MOMENT)
        self._let_go()

    def _wake_at_last(self) -> None:
        self._wake_due = False
        self._wake_one()

    def _take_results(self) -> None:
        self._loop_waking = False
        results = self._results
        try:
            for _ in range(len(results)):  # no more: threads can add some all the time
                context, call, arguments = results.popleft()
                context.run(call, *arguments)
        finally:
            if results:
                self._wake_loop()

    # In any thread

    def _let_go(self) -> None:
        """Close the pipe, if this is the last thread that uses it: the one of the loop, or one of the pool."""
        if self._holds.pop() == 0:
            os.close(self._ringer)
            os.close(self._bell)

    def _wake_one(self) -> None:
        """Wake a thread if calls wait, unless one is being woken: it will do the same."""
        while self._calls and self._idle and not self._waking:
            self._waking = True
            try:
                self._idle.pop()
            except IndexError:  # it has found the call itself
                self._waking = False
            else:
                self._ring()

    # In a thread of the pool

    def hand_over(self, call: Callable[..., object], *arguments: object) -> None:
        """Have the loop call something in a copy of the context here, behind what was handed over before."""
        self._results.append((contextvars.copy_context(), call, arguments))
        self._wake_loop()

    def _wake_loop(self) -> None:
        if not self._loop_waking:
            self._loop_waking = True
            with suppress(RuntimeError):  # the loop has ended, and the process ends now
                self._loop.call_soon_threadsafe(self._take_results)

    def waiting(self, wait: Callable[[], object]) -> None:
        """Wait for a client, which is no sign that the application is stuck."""
        number = self._own.number
        began = self._began[number]
        self._began[number] = None
        if began is not None:
            self._busy[number] += monotonic_ns() - began
        wait()
        self._began[number] = monotonic_ns()

    def _work(self, number: int) -> None:
        self._own.number = number
        calls, next_entry = self._calls, self._next_entry
        while True:
            try:
                call = calls.popleft()
            except IndexError:
                if self._sleep(number):
                    continue
                self._let_go()
                return
            if calls and not self._waking:
                self._wake_one()
            if not call.gone:
                self._began[number] = began = monotonic_ns()
                call.waited_for_thread = began - call.queued
                entry = next_entry()
                entry.enter(call, call.target.line)
                call.context.run(call.call)
                entry.leave(call)
                took = monotonic_ns() - (self._began[number] or began)
            else:
                took = 0
            call.discard_input()
            self._began[number] = None
            self._busy[number] += took
            del call  # the next one may be long in coming

    def _sleep(self, number: int) -> bool:
        """Sleep until a byte comes, unless a call has come meanwhile; return whether the pool is still open."""
        self._idle.append(number)
        if self._calls:
            with suppress(IndexError):  # a byte is on its way
                self._idle.pop()
                return True
        self._await_ring()
        self._waking = False
        return not self._closed
