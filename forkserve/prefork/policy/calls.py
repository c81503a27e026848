"""Calls: the commands that run in workers: which workers have them, which have replied, and the deadlines. Pure.

The user of `Calls` sends the messages that its methods return, and passes it the replies. A call to `any` worker works by offers:
while such a call waits, each ready worker has one offer. A worker takes it up (`free`) when it is idle: between requests, and
with no command in hand. So only the first idle worker gets the call.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from forkserve.prefork.ipc.messages import Command, Message, Offer, Result
from forkserve.prefork.ipc.pending import JSON, Failure, Pending, Reply

if TYPE_CHECKING:
    from forkserve.base.errors import CommandError

OFFER: Final = Offer()
NO_KWARGS: Final[Mapping[str, JSON]] = {}  # a plain dict: it is written as JSON
STATUSES = ("ok", "error", "unknown")  # that a worker can send; the master finds out the others


class CallTarget(NamedTuple):
    """A worker that takes commands: its member's ident, and the values that its reply contains."""

    ident: int
    id: int
    pid: int
    generation: int


class Send(NamedTuple):
    """A message for one worker."""

    ident: int
    message: Message


@dataclass(eq=False, slots=True)
class _Call:
    number: int
    name: str
    args: Sequence[JSON]
    began: float
    deadline: float | None
    kwargs: Mapping[str, JSON]
    pending: Pending = field(default_factory=Pending)
    open: dict[int, tuple[CallTarget, float]] = field(default_factory=dict)  # by ident: no reply yet, and since when
    replies: list[Reply] = field(default_factory=list)
    without: int | None = None  # the ident of a worker that must not get it

    @property
    def message(self) -> Command:
        return Command(self.number, self.name, self.args, self.deadline, self.kwargs)


class Calls:
    """All calls of one master. Times are the monotonic clock's."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[int, _Call] = {}
        self._waiting: deque[_Call] = deque()  # for any worker
        self._offered: set[int] = set()

    def export(self) -> int:
        """Return the number of the next call, for an upgrade: a late reply must not count for another call."""
        return next(self._numbers)

    def adopt(self, number: int) -> None:
        """Continue with this number in the new program, which has none of the open calls."""
        self._numbers = itertools.count(number)

    def next_deadline(self) -> float | None:
        """Return when `expire` must be called; None: never."""
        return min((call.deadline for call in self._open.values() if call.deadline is not None), default=None)

    def ask(
        self,
        name: str,
        args: Sequence[JSON],
        targets: Iterable[CallTarget],
        now: float,
        deadline: float | None,
        kwargs: Mapping[str, JSON] = NO_KWARGS,
    ) -> tuple[Pending, list[Send]]:
        """Call each of the targets. The value will be their replies, in the order of their ids."""
        call = self._new(name, args, now, deadline, kwargs)
        call.open = {target.ident: (target, now) for target in targets}
        message = call.message
        sends = [Send(ident, message) for ident in call.open]
        self._finish_if_complete(call)
        return call.pending, sends

    def ask_any(
        self,
        name: str,
        args: Sequence[JSON],
        ready: Iterable[CallTarget],
        now: float,
        deadline: float | None,
        without: int | None = None,
        kwargs: Mapping[str, JSON] = NO_KWARGS,
    ) -> tuple[Pending, list[Send]]:
        """Call the first idle worker other than `without`. The value will be a list of one reply."""
        call = self._new(name, args, now, deadline, kwargs)
        call.without = without
        self._waiting.append(call)
        return call.pending, [send for target in ready for send in self.offer(target.ident)]

    def offer(self, ident: int) -> list[Send]:
        """Return the message to send to a ready worker: an offer, if a call waits and the worker has none."""
        if not self._waiting or ident in self._offered:
            return []
        self._offered.add(ident)
        return [Send(ident, OFFER)]

    def free(self, target: CallTarget, now: float) -> list[Send]:
        """A worker has taken up its offer. Return a call for it, if one still waits, and another offer, if more wait.

        The next offer goes with the call: a worker that starts the call too late does not reply, and still needs an offer.
        """
        self._offered.discard(target.ident)
        for call in self._waiting:
            if call.without != target.ident and (call.deadline is None or now < call.deadline):
                self._waiting.remove(call)
                call.open[target.ident] = target, now
                return [Send(target.ident, call.message), *self.offer(target.ident)]
        return []

    def replied(self, ident: int, result: Result, now: float) -> str | None:
        """A worker has replied. Return an error for the log if the reply is late or has an impossible status."""
        call = self._open.get(result.call)
        if call is None or ident not in call.open:
            return f"a late reply to a command was dropped: {result.name!r:.80}"
        if result.status not in STATUSES:
            return f"a reply without a status was dropped: {result.status!r:.80}"
        target, since = call.open.pop(ident)
        self._note(call, target, since, now, result.status, result.value, result.error)
        return None

    def gone(self, ident: int, now: float) -> None:
        """A worker has died, or cannot be reached."""
        self._offered.discard(ident)
        for call in [one for one in self._open.values() if ident in one.open]:
            if ident in call.open:  # the end of another call may have ended this one, by a callback
                target, since = call.open.pop(ident)
                self._note(call, target, since, now, "died")

    def expire(self, now: float) -> None:
        """End the calls whose deadline has passed."""
        for call in [one for one in self._open.values() if one.deadline is not None and one.deadline <= now]:
            if call.pending.done:
                continue  # the end of another call may have ended it, by a callback
            late, call.open = call.open, {}
            call.replies += [self._reply(target, since, now, "timeout") for target, since in late.values()]
            if call in self._waiting:
                self._waiting.remove(call)
                call.replies.append(Reply(0, None, 0, "timeout", seconds=now - call.began))
            self._finish_if_complete(call)

    def refuse(self, error: CommandError) -> None:
        """End the calls that wait for any worker: no worker will be ready any more."""
        while self._waiting:
            call = self._waiting.popleft()
            del self._open[call.number]
            call.pending.fail(error)

    def _new(self, name: str, args: Sequence[JSON], now: float, deadline: float | None, kwargs: Mapping[str, JSON]) -> _Call:
        call = _Call(next(self._numbers), name, args, now, deadline, kwargs)
        self._open[call.number] = call
        return call

    def _note(self, call: _Call, target: CallTarget, since: float, now: float, status: str, *rest: Any) -> None:
        call.replies.append(self._reply(target, since, now, status, *rest))
        self._finish_if_complete(call)

    @staticmethod
    def _reply(
        target: CallTarget, since: float, now: float, status: str, value: JSON = None, error: Failure | None = None
    ) -> Reply:
        return Reply(target.id, target.pid, target.generation, status, value, error, round(now - since, 6))

    def _finish_if_complete(self, call: _Call) -> None:
        if not call.open and call not in self._waiting:
            del self._open[call.number]
            call.pending.resolve(sorted(call.replies, key=lambda reply: reply.id))
