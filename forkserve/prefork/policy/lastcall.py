"""Last calls: workers for connections that wait at a listener which is about to be closed. Pure.

A slot may be removed by scaling, or the server stopped, while the slot has no ready worker: its worker boots, or has just died.
If connections wait in its queue then, the worker may finish its boot, or another one is forked. It drains as soon as it is
ready, and a drain empties the queue.

All of this is bounded. From the moment at which the slot may be removed, boot and drain together may take as long as a drain may.
A worker that does not boot is not tried again. At most TRIES workers are ended without success. Then the listener is closed, even
if connections wait. A worker may be assigned again, as clients come and go: as long as it boots, it is no failed try.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from forkserve.prefork.policy.states import Member, State

TRIES: Final = 2  # workers: the first may be killed
DRAINING: Final = 5.0  # seconds of the remaining time for the drain and the end of a mold, at most a quarter of it

_NOT_READY_YET: Final = (State.BACKOFF, State.BOOTING)


@dataclass(eq=False, slots=True)
class _Call:
    boot_until: float
    due: float
    member: Member | None = None  # the worker that is to accept
    assigned: dict[int, Member] = field(default_factory=dict)  # by ident, all that were ever assigned
    given_up: bool = False

    @property
    def tries(self) -> int:
        """How many workers were forked and assigned, and do not boot any more."""
        return sum(one.row >= 0 and one.state not in _NOT_READY_YET for one in self.assigned.values())

    @property
    def open(self) -> bool:
        """Whether its worker is still to become ready."""
        return not self.given_up and self.member is not None and self.member.state in _NOT_READY_YET

    @property
    def failed(self) -> bool:
        """Whether its worker has ended without having been ready."""
        return self.member is not None and self.member.state is State.GONE and self.member.ready_at is None


class LastCalls:
    """The slots where connections wait for a worker that is needed for nothing else; None: the shared addresses."""

    def __init__(self) -> None:
        self._calls: dict[int | None, _Call] = {}

    def forget(self, closing: AbstractSet[int | None]) -> None:
        """Forget all slots but these, whose listeners are to be closed."""
        for slot in self._calls.keys() - closing:
            del self._calls[slot]

    def needs_worker(self, slot: int | None, gone_at: float, longest: float, now: float) -> bool:
        """Return whether a worker must be assigned to a slot where connections wait and none is ready.

        Args:
            slot: The slot.
            gone_at: When the slot could have been removed if no connection had waited.
            longest: Seconds that boot and drain may take from then on.
            now: The time.
        """
        due = gone_at + longest
        call = self._calls.setdefault(slot, _Call(due - min(DRAINING, longest / 4), due))
        call.given_up = call.given_up or now >= call.boot_until or call.failed
        return not call.given_up and not call.open and call.tries < TRIES

    def assign(self, slot: int | None, member: Member) -> None:
        """Set the worker that the connections of a slot wait for."""
        call = self._calls[slot]
        call.member = call.assigned[member.ident] = member

    def release(self, waited_for: AbstractSet[int | None]) -> None:
        """Let go of the workers of all slots but these, where connections wait."""
        for slot, call in self._calls.items():
            if call.open and slot not in waited_for:
                call.member = None

    def keeps(self, member: Member) -> bool:
        """Whether connections wait for this member, although its slot does not need it."""
        return any(call.open and call.member is member for call in self._calls.values())

    def due(self, member: Member) -> float | None:
        """Return when an assigned member must have ended; None for any other member."""
        return max((call.due for call in self._calls.values() if call.member is member), default=None)

    @property
    def open(self) -> set[int | None]:
        """The slots that must keep their listener for now."""
        return {slot for slot, call in self._calls.items() if call.open}

    def next_deadline(self) -> float | None:
        """Return when the next one is given up; None for never."""
        return min((call.boot_until for call in self._calls.values() if call.open), default=None)


def first_ready(slot: int | None, members: Iterable[Member]) -> Member | None:
    """Return the member that will be the first to accept there; None if none will."""
    found = [
        one
        for one in members
        if one.state in _NOT_READY_YET and slot in (None, one.slot) and not (one.end_requested or one.canary)
    ]
    return min(found, key=lambda one: (one.state is State.BACKOFF, one.since + one.limit), default=None)
