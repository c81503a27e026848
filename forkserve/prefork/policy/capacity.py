"""Capacity: how many more workers may be forked now. Pure."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from forkserve.prefork.policy.members import Members
    from forkserve.prefork.policy.molds import Molds
    from forkserve.prefork.policy.states import Member


class Room(NamedTuple):
    """How many more workers may be forked."""

    replacements: int  # in slots where a process serves
    vacancies: int  # in slots where none serves


class Capacity:
    """Bounds the number of worker processes by the number wanted, `surge`, `lingering` and the rows of the scoreboard."""

    def __init__(self, members: Members, molds: Molds, wanted: int) -> None:
        self._members = members
        self._molds = molds
        self.rows = sys.maxsize  # of the scoreboard, for workers
        self.peak = wanted  # the highest number wanted, while more processes exist than the present one allows

    def room(self, wanted: int) -> Room:
        """Return how many more workers there may be.

        A slot without a serving process need not wait for others to drain: it may use the room of those that linger. If fewer
        workers are wanted than before, it may also use the room of the higher number.
        """
        there, surge = self._members.processes, self._members.limits.surge
        most = self._most_lingering(self.peak)
        lingering = min(most, sum(one.lingering for one in self._members.workers()))
        free = self.rows - there
        return Room(min(free, wanted + surge + lingering - there), min(free, self.peak + surge + most - there))

    def may_fork(self, member: Member, room: Room, wanted: int) -> bool:
        """Whether a member may be forked now, if `room` is left."""
        if not self._molds.can_fork(member) or (self._first_boots(wanted) and not member.canary):
            return False
        return (room.vacancies if self._members.is_vacant(member.slot) else room.replacements) > 0

    def update_peak(self, wanted: int, awaited: int) -> None:
        """Forget the higher number as soon as all processes, with those still to be forked, fit the present one.

        Args:
            wanted: The number of workers wanted.
            awaited: The number of workers to be forked in slots that are not wanted, for connections that wait there.
        """
        vacant = sum(map(self._members.is_vacant, range(1, wanted + 1))) + awaited
        if self._members.processes + vacant <= wanted + self._members.limits.surge + self._most_lingering(wanted):
            self.peak = wanted

    def _first_boots(self, wanted: int) -> bool:
        """Whether a worker boots before any was ready: it boots alone, since apps that prepare a database at import may race."""
        if self._members.preload or any(self._members.slots[slot].was_ready for slot in range(1, wanted + 1)):
            return False
        return any(one.exists and not one.end_requested and one.ready_at is None for one in self._members.workers())

    def _most_lingering(self, wanted: int) -> int:
        limit = self._members.limits.lingering
        return wanted if limit is None else limit
