"""Drain gate: a slot that is to go serves on until requests are no longer sent there. Pure.

A slot waits first until it is no longer advertised, at most as long as a drain may take, so that a front end that cannot be
updated holds up nothing for ever. Then it waits for `delay` seconds, for clients and balancers that notice later or are not
notified. Only then may its workers drain, and its listener be closed.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from forkserve.prefork.policy.states import PoolLimits

LONGEST: Final = 30.0  # seconds to wait for a front end where drains may take for ever


@dataclass(slots=True)
class _Departure:
    since: float
    unadvertised_at: float | None = None
    due: float = 0.0  # when to look again


class DrainGate:
    """Holds the slots that are to go; None stands for the shared addresses."""

    def __init__(self) -> None:
        self._slots: dict[int | None, _Departure] = {}
        self.held: set[int | None] = set()  # must not go yet

    def update(self, slots: AbstractSet[int | None], advertised: AbstractSet[int | None], now: float, limits: PoolLimits) -> None:
        """Set which slots are to go, and which slots requests may still be sent to."""
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
        """Return when a slot that is to go may go."""
        return self._slots[slot].due
