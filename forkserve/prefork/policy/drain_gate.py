"""Drain gate: a slot that is to be removed keeps serving until no more requests are sent there. Pure.

A slot waits first until it is no longer advertised, at most as long as a drain may take, so that a front end that cannot be
updated delays nothing for ever. Then it waits for `delay` seconds, for clients and load balancers that notice later. Only then
may its workers drain, and its listener be closed.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from forkserve.prefork.policy.states import PoolLimits

LONGEST: Final = 30.0  # seconds to wait for a front end if drains have no time limit


@dataclass(slots=True)
class _Departure:
    since: float
    unadvertised_at: float | None = None
    due: float = 0.0  # when to check again


class DrainGate:
    """Holds the slots that are to be removed; None stands for the shared addresses."""

    def __init__(self) -> None:
        self._slots: dict[int | None, _Departure] = {}
        self.held: set[int | None] = set()  # must not be removed yet

    def update(self, slots: AbstractSet[int | None], advertised: AbstractSet[int | None], now: float, limits: PoolLimits) -> None:
        """Set the slots that are to be removed, and the slots that requests may still be sent to."""
        for slot in self._slots.keys() - slots:
            del self._slots[slot]
        longest = limits.graceful or LONGEST
        for slot in slots:
            one = self._slots.setdefault(slot, _Departure(now))
            if one.unadvertised_at is None and (slot not in advertised or now >= one.since + longest):
                one.unadvertised_at = now
            one.due = one.since + longest if one.unadvertised_at is None else one.unadvertised_at + limits.delay
        self.held = {slot for slot, one in self._slots.items() if one.due > now}

    def next_deadline(self) -> float | None:
        """Return when `update` must be called if nothing happens before; None for never."""
        return min((self._slots[slot].due for slot in self.held), default=None)

    def opens_at(self, slot: int | None) -> float:
        """Return when the slot may be removed."""
        return self._slots[slot].due
