"""Last calls: connections that wait where there will be no worker any more are answered before their listener is closed. Pure.

A slot may be scaled away, or the server stopped, while it has no ready worker: it boots, or has just died. Then a worker is let
boot, or forked once more, if connections wait in the queue. It drains as soon as it is ready, and a drain empties the queue.

It is bounded: boot and drain together may take as long as a drain may, from the time on when the slot may go; a worker that
does not boot is not tried again, and no more than TRIES are. Then the listener is closed, whoever waits there.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from forkserve.prefork.policy.states import Member, State

TRIES: Final = 2  # workers; the first may be killed, too
DRAINING: Final = 5.0  # seconds of the time that are left for the drain and the end of a mold, at most a quarter

_AHEAD: Final = (State.BACKOFF, State.BOOTING)


@dataclass(eq=False, slots=True)
class _Call:
    boot_until: float
    due: float
    member: Member | None = None  # who is to answer
    tries: int = 0
    given_up: bool = False

    @property
    def open(self) -> bool:
        """Whether that one is still to come."""
        return not self.given_up and self.member is not None and self.member.state in _AHEAD

    @property
    def failed(self) -> bool:
        """Whether it has ended without having been ready."""
        return self.member is not None and self.member.state is State.GONE and self.member.ready_at is None


class LastCalls:
    """The slots where somebody waits for a worker that must come for that alone; None is the shared addresses."""

    def __init__(self) -> None:
        self._calls: dict[int | None, _Call] = {}

    def forget(self, leaving: AbstractSet[int | None]) -> None:
        """Only these slots are on their way out any more."""
        for slot in self._calls.keys() - leaving:
            del self._calls[slot]

    def needs_worker(self, slot: int | None, gone_at: float, longest: float, now: float) -> bool:
        """Connections wait there, and nobody is ready: whether somebody must come for them who has not been found yet.

        Args:
            slot: Where.
            gone_at: When the slot could have gone, had nobody waited.
            longest: Seconds that boot and drain may take from then on.
            now: The time.
        """
        due = gone_at + longest
        call = self._calls.setdefault(slot, _Call(due - min(DRAINING, longest / 4), due))
        call.given_up = call.given_up or now >= call.boot_until or call.failed
        return not call.given_up and not call.open and call.tries < TRIES

    def assign(self, slot: int | None, member: Member) -> None:
        """Somebody was found."""
        call = self._calls[slot]
        call.member, call.tries = member, call.tries + 1

    def release(self, waited_for: AbstractSet[int | None]) -> None:
        """Only there somebody waits any more."""
        for slot, call in self._calls.items():
            if call.open and slot not in waited_for:
                call.member = None

    def keeps(self, member: Member) -> bool:
        """Whether a member that its slot does not need is still to come."""
        return any(call.open and call.member is member for call in self._calls.values())

    def due(self, member: Member) -> float | None:
        """When a member must have ended that came for this alone; None for any other."""
        return max((call.due for call in self._calls.values() if call.member is member), default=None)

    @property
    def open(self) -> set[int | None]:
        """The slots that must not be closed yet."""
        return {slot for slot, call in self._calls.items() if call.open}

    def next_deadline(self) -> float | None:
        """When the next one is given up; None for never."""
        return min((call.boot_until for call in self._calls.values() if call.open), default=None)


def who_comes(slot: int | None, members: Iterable[Member]) -> Member | None:
    """Return the member that will be ready first and accept there, if one is on its way."""
    found = [one for one in members if one.state in _AHEAD and slot in (None, one.slot) and not (one.asked or one.canary)]
    return min(found, key=lambda one: (one.state is State.BACKOFF, one.since + one.limit), default=None)
