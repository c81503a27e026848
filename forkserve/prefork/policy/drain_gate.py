"""Leaving: a slot that is wanted no more goes on serving until whoever sends it requests knows of that. Pure.

Each slot waits first until it is no longer advertised, at most as long as a drain may take, so that a front end that cannot
be told holds up nothing for ever; then for `delay` seconds, for those who hear of it later, or whom nobody tells. Only then
may its workers drain, and its listener be closed.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from forkserve.prefork.policy.states import Limits

LONGEST: Final = 30.0  # seconds to wait for a front end where drains may take for ever


@dataclass(slots=True)
class _Departure:
    since: float
    known: float | None = None  # since when nobody is sent there any more
    due: float = 0.0  # when to look again


class Leaving:
    """The slots that are on their way out; None is the shared addresses."""

    def __init__(self) -> None:
        self._slots: dict[int | None, _Departure] = {}
        self.held: set[int | None] = set()  # must not go yet

    def update(self, slots: AbstractSet[int | None], advertised: AbstractSet[int | None], now: float, limits: Limits) -> None:
        """Take note that just these slots are to go, and which slots requests may still be sent to."""
        for slot in self._slots.keys() - slots:
            del self._slots[slot]
        longest = limits.graceful or LONGEST
        for slot in slots:
            one = self._slots.setdefault(slot, _Departure(now))
            if one.known is None and (slot not in advertised or now >= one.since + longest):
                one.known = now
            one.due = one.since + longest if one.known is None else one.known + limits.delay
        self.held = {slot for slot, one in self._slots.items() if one.due > now}

    def next_deadline(self) -> float | None:
        """When `update` must be called if nothing happens before; None for never."""
        return min((self._slots[slot].due for slot in self.held), default=None)

    def gone_at(self, slot: int | None) -> float:
        """When a slot could go that is on its way out."""
        return self._slots[slot].due
