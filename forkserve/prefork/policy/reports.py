"""Reports: what the master has received from a process, or observed. Pure.

Each method is one event. A report of a process that has left the pool changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkserve.prefork.policy.members import REASONS
from forkserve.prefork.policy.states import ANSWER_TIME, Event, State

if TYPE_CHECKING:
    from forkserve.prefork.policy.members import Members


class Reports:
    """Applies events of single processes to the table of members."""

    def __init__(self, members: Members) -> None:
        self._members = members

    def forked(self, ident: int, pid: int) -> None:
        """A process was forked."""
        member, limits = self._members.by_ident[ident], self._members.limits
        member.pid = pid
        if member.ordered:
            member.ordered, member.limit = False, limits.of(member.state, member.slot)

    def ready(self, ident: int, now: float) -> None:
        """A process is ready."""
        if member := self._members.by_ident.get(ident):
            self._members.apply(member, Event.READY, now)
            if member.state in (State.READY, State.DRAINING):
                member.ready_at = now
            if member.state is State.READY:
                self._members.slots[member.slot].was_ready = True

    def beat(self, ident: int, at: float) -> None:
        """A worker sent a heartbeat at this time."""
        member = self._members.by_ident.get(ident)
        if member and member.state is State.READY and at > member.since:
            member.since, member.renewed = at, False

    def spent(self, ident: int, *, full: bool) -> bool:
        """A worker has answered `--max-requests` requests. With `full` it takes no more before it is replaced.

        Returns whether that is new. A canary is not replaced before its generation is committed.
        """
        member = self._members.by_ident.get(ident)
        if not member or member.state is not State.READY or member.lifted:
            return False
        new, member.spent, member.full = not member.spent, True, full
        member.outdated = member.outdated or not member.canary
        return new

    def draining(self, ident: int, now: float) -> None:
        """A worker drains, although the pool has not ordered it: it has received a signal."""
        if member := self._members.by_ident.get(ident):
            self._members.apply(member, Event.DRAIN, now)

    def released(self, ident: int) -> None:
        """A worker accepts no more connections."""
        if member := self._members.by_ident.get(ident):
            member.released = True

    def lingering(self, ident: int) -> None:
        """A draining worker has only streams or threads left."""
        member = self._members.by_ident.get(ident)
        if member and member.state is State.DRAINING:
            member.lingering = True

    def debugging(self, ident: int, now: float, *, active: bool) -> None:
        """A debugger has stopped a process, or it goes on: then it has the whole time of its state again."""
        if member := self._members.by_ident.get(ident):
            member.debugged = active
            if member.state in REASONS:
                member.since, member.renewed = now, False

    def dumped(self, ident: int, now: float) -> None:
        """A process past its deadline has written its stacks. It is killed at once.

        One that drains has a second in all, counted from the order to write them, so that the application can shut down even if
        requests have used up the timeout.
        """
        member = self._members.by_ident.get(ident)
        if member and member.state is State.DUMPING:
            if member.end_requested:
                member.limit = ANSWER_TIME
            else:
                self._members.apply(member, Event.KILL, now)
