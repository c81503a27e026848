"""The queue in front of an application that is called on the loop's thread: one call at a time."""

from __future__ import annotations

from collections import deque
from functools import partial
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING

from forkserve.base.tally import SHORT

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from forkserve.base.tally import Tally
    from forkserve.http.app.calls import Call, Observer

BATCH = 0.001
"""Seconds after which the loop must have a turn before the next of the calls that wait."""
BATCH_CALLS = 16
"""Waiting calls after which it must have one, however short they are."""
LONG = 5_000_000
"""Nanoseconds after which a call is so long that the loop must have a turn before the next one."""
RESTS = 4
"""Turns in a row that the loop may have between two calls, to end connections."""


class Turns:
    """Lets one call at a time begin, in the order of arrival. On the loop's thread.

    Args:
        loop: The loop whose thread the calls hold.
        observer: Is notified of each call.
        tally: Counts the time of the calls, and for how long they have waited.
    """

    __slots__ = (
        "_began", "_begin", "_end", "_holder", "_loop", "_notify", "_observer_end", "_rested", "_scheduled", "_tally", "_waiting",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, observer: Observer, tally: Tally) -> None:
        self._tally = tally
        self._loop = loop
        self._begin = observer.begin
        self._end = self._observer_end = observer.end
        self._holder: Call | None = None
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False  # whether the first of them is about to get its turn
        self._notify: dict[Callable[[], None], None] = {}  # called when a call has ended
        self._rested = 0  # turns that the loop has had since the last call

    @property
    def held(self) -> bool:
        """Whether an application call is under way."""
        return self._holder is not None

    def take(self, call: Call, now: int) -> None:
        """Call the application now, or when the calls in front have ended; `now` is in monotonic nanoseconds."""
        if self._holder is not None or self._waiting:
            self._waiting.append(partial(self._call_unless_gone, call))
            return
        self._holder = call
        self._began = now
        if now - call.queued > SHORT:
            call.has_waited(now - call.queued)
        begin = self._begin  # not a method: Python calls it faster by a local name, as `end` below
        begin(call.target.line, now)
        call.call()  # ends with `leave`

    def _call_unless_gone(self, call: Call) -> None:
        if call.gone:  # the client did not wait: spare the application the call
            call.discard_input()
            return
        self._holder = call
        self._rested = 0
        self._began = now = monotonic_ns()
        if now - call.queued > SHORT:
            call.has_waited(now - call.queued)
        self._begin(call.target.line, now)
        call.call()

    def between(self, call: Callable[[], None]) -> None:
        """Call back now, or when the application call under way, and those that wait in front, have ended."""
        if self._holder is None and not self._waiting:
            call()
        else:
            self._waiting.append(call)

    def when_one_has_ended(self, call: Callable[[], None]) -> None:
        """Call back when the application call under way, or else the next one, has ended."""
        self._notify[call] = None
        self._end = self._end_and_notify

    def _end_and_notify(self) -> None:
        self._end = self._observer_end
        self._end()
        notify, self._notify = self._notify, {}
        for call in notify:
            call()

    def rest(self) -> None:
        """Give the loop a turn before the next call: to end a connection that we close, or see that its client has.

        uvloop sends an end only in its next turn, and both loops close only then what the client has closed. Without the turn
        that would be after the calls for all the requests that have come meanwhile.
        """
        if self._rested < RESTS and not (self._waiting and self._waiting[0] is _nothing):
            self._rested += 1  # clients that come and go all the time must not keep the application from all others
            self._waiting.appendleft(_nothing)
            if self._holder is None:
                self._schedule()

    def leave(self, now: int | None = None) -> None:
        """Take note that the call has ended; `now` is in monotonic nanoseconds, if the time was taken just before."""
        self._holder = None
        if self._waiting:
            self._schedule()
        took = (monotonic_ns() if now is None else now) - self._began
        self._tally.busy += took
        if took > LONG:
            self.rest()
        end = self._end
        end()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Make the first calls in the queue.

        One in each turn of the loop would be fair as well. But then a queue that has formed under load stays: in the turn of each
        call another request comes, and every request pays for a turn.
        """
        self._scheduled = False
        waiting, until = self._waiting, monotonic() + BATCH
        for _ in range(BATCH_CALLS):
            if self._holder is not None or not waiting:
                break
            call = waiting.popleft()
            call()
            if call is _nothing or monotonic() > until:
                break
        if self._holder is not None:
            return
        if waiting:
            self._schedule()
        else:
            self._rested = 0


def _nothing() -> None:
    """Do nothing, which is a turn for the loop."""
