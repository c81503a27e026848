"""Members: the table of all processes, and how one of them changes. Pure.

The pool decides which processes should exist. What happens to each of them is decided here, by TRANSITIONS (states.py).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from forkserve.base.handover import copied
from forkserve.base.records import record
from forkserve.prefork.policy.actions import Action, Drain, DumpStacks, Fork, GiveUp, Kill, ServeOn
from forkserve.prefork.policy.states import MOLD, TRANSITIONS, Event, Exit, Member, PoolLimits, Slot, State

# Seconds.
LATE: Final = 1.0  # if the master wakes up this long after a deadline, it was suspended itself
FIRST_DELAY: Final = 0.5  # before the second try; the first follows at once
LONGEST_DELAY: Final = 30.0
HEALED: Final = 10.0  # a process that was ready for this long is not part of a crash loop
ORDER_TIME: Final = 10.0  # for a mold to fork a worker, which takes it some milliseconds

REASONS: Final = MappingProxyType(
    {
        State.BOOTING: "not ready after {:g} s (--boot-timeout)",
        State.READY: "stuck for {:g} s (--timeout)",
        State.DRAINING: "not drained after {:g} s (--graceful-timeout)",
    }
)


@record
class SlotState:
    """A slot in an upgrade; the fields are those of `Slot`."""

    failures: int
    retry_at: float
    was_ready: bool
    last_exit: Exit | None


@record
class MembersState:
    """The table of members in an upgrade: the next ident, the members, and the history of each slot."""

    next: int
    members: Sequence[Member]
    slots: dict[int, SlotState]


class Members:
    """All processes of the server, those that exist and those that are to be forked.

    Args:
        limits: How long each state may last, and how many processes there may be.
        random: Returns numbers from 0 to 1, for the jitter of delays.
        preload: Workers are forked by a mold on the master's order, so a worker has no pid for a while.
    """

    def __init__(self, limits: PoolLimits, random: Callable[[], float], *, preload: bool) -> None:
        self.limits = limits
        self.preload = preload
        self.slots: defaultdict[int, Slot] = defaultdict(Slot)
        self.by_ident: dict[int, Member] = {}
        self.actions: list[Action] = []  # decided, and not returned by `Pool.plan` yet
        self._random = random
        self._idents = itertools.count(1)

    def export(self) -> MembersState:
        """Return the table for an upgrade, which begins only when no action is pending."""
        assert not self.actions
        slots = {number: copied(slot, SlotState) for number, slot in self.slots.items()}
        return MembersState(next(self._idents), list(self.by_ident.values()), slots)

    def adopt(self, found: MembersState, now: float) -> None:
        """Take the table over in the new program. Deadlines start again, as no message was read meanwhile."""
        self._idents = itertools.count(found.next)
        self.slots |= {number: copied(slot, Slot) for number, slot in found.slots.items()}
        for member in found.members:
            if member.state in REASONS:
                member.since, member.renewed = now, False
            self.slots[member.slot].members.append(member)
            self.by_ident[member.ident] = member

    # Questions.

    def workers(self) -> list[Member]:
        """Return the workers in the order of their slots; for reading only."""
        return sorted((one for one in self.by_ident.values() if one.slot != MOLD), key=lambda one: (one.slot, one.ident))

    def molds(self) -> list[Member]:
        """Return the molds, the oldest first; for reading only."""
        return [one for one in self.by_ident.values() if one.slot == MOLD]

    def debugged(self) -> list[Member]:
        """Return the processes that a debugger has stopped."""
        return [one for one in self.by_ident.values() if one.debugged]

    @property
    def processes(self) -> int:
        """The number of worker processes, whatever their state."""
        return sum(member.exists and member.slot != MOLD for member in self.by_ident.values())

    def last_exit(self, slot: int) -> Exit | None:
        """Return how the slot's last process ended; for MOLD, how the last mold ended."""
        return self.slots[slot].last_exit

    def is_vacant(self, slot: int) -> bool:
        """Whether the slot has no process that takes requests or soon will."""
        return not any(one.exists and not (one.end_requested or one.full) for one in self.slots[slot].members)

    def is_served(self, slot: int, *, wanted: bool) -> bool:
        """Whether a process of the slot is ready, or soon will be: one was ready, and has failed at most once since."""
        found = self.slots[slot]
        return any(one.state is State.READY for one in found.members) or (wanted and found.was_ready and found.failures <= 1)

    def has_successor(self, member: Member) -> bool:
        """Whether a newer process of its slot is ready, or an older one that stays. A canary does not count: it may still fail.

        The newer one may be outdated itself: if both waited for a third process, there would be no room for that.
        """
        others = [one for one in self.slots[member.slot].members if one is not member]
        ready = [one for one in others if one.state is State.READY and not one.canary]
        return any(one.ident > member.ident or not one.outdated for one in ready)

    # Changes.

    def add(self, slot: int, generation: int, now: float, *, limit: float = 0.0, canary: bool = False) -> Member:
        """Add a member without a process, to be forked in `limit` seconds."""
        member = Member(next(self._idents), slot, generation, State.BACKOFF, since=now, limit=limit, canary=canary)
        self.slots[slot].members.append(member)
        self.by_ident[member.ident] = member
        return member

    def fork(self, member: Member, now: float) -> None:
        """Have the process of a member forked, by the master or by the mold."""
        taken = {one.row for one in self.by_ident.values()}
        member.row = next(row for row in itertools.count() if row not in taken)
        member.born = now
        self.apply(member, Event.FORK, now)
        if self.preload and member.slot != MOLD:
            member.ordered, member.limit = True, ORDER_TIME
        self.actions.append(Fork(member))

    def withdraw(self, member: Member, now: float) -> None:
        """End a process that is not wanted any more."""
        if member.pid and member.state in (State.BOOTING, State.READY):
            member.withdrawn = True
            self.actions.append(Drain(member, booting=member.state is State.BOOTING))
            self.apply(member, Event.DRAIN, now)

    def discard(self, member: Member, now: float) -> None:
        """End a member, which may have no process yet."""
        if member.state is State.BACKOFF:
            self.apply(member, Event.RETIRE, now)
        else:
            self.withdraw(member, now)

    def protocol_violation(self, ident: int, reason: str, now: float) -> None:
        """Kill a process that has broken the protocol; it is replaced as after a crash."""
        member = self.by_ident.get(ident)
        if member and (member.state, Event.KILL) in TRANSITIONS:
            member.reason = reason
            self.apply(member, Event.KILL, now)

    def forgive_lateness(self, now: float) -> None:
        """Renew every deadline, once, if the master is much too late for one of them.

        Then the master, or the whole machine, was stopped, and perhaps the workers could not run either.
        """
        mortal = [
            one
            for one in self.by_ident.values()
            if one.state in REASONS and one.deadline is not None and (one.pid or one.ordered)
        ]
        if any(now - one.since > one.limit + LATE and not one.renewed for one in mortal):
            for member in mortal:
                if not member.renewed:
                    member.since, member.renewed = now, True

    def expire(self, member: Member, now: float) -> None:
        """Take the next step with a member after its deadline."""
        if member.state in REASONS:
            member.reason = REASONS[member.state].format(member.limit)
        if member.state is State.KILLED:
            self.fail(member, Exit("could not be killed", None, None, now))
        self.apply(member, Event.OVERDUE, now)

    def apply(self, member: Member, event: Event, now: float) -> None:
        """Change a member's state by TRANSITIONS. An event without a transition is a bug: the process is killed."""
        before = member.state
        after = TRANSITIONS.get((before, event))
        if after is None:
            self.protocol_violation(member.ident, f"{event.value} while {before.value}", now)
            return
        if event is Event.DRAIN:
            member.end_requested = True
        if after is before:
            return
        member.state, member.since, member.renewed = after, now, False
        member.limit = self.limits.of(after, member.slot)
        if after is State.DUMPING:
            self.actions.append(DumpStacks(member))
        elif after is State.KILLED:
            self.actions.append(Kill(member, dumped=before is State.DUMPING))
        elif after is State.GONE:
            if before is State.KILLED and event is Event.OVERDUE:
                self.actions.append(GiveUp(member))
            del self.by_ident[member.ident]
            self.slots[member.slot].members.remove(member)
        elif after is State.BOOTING:
            self.slots[member.slot].retry_at = float("-inf")

    def fail(self, member: Member, end: Exit) -> None:
        """Record a failure of a slot, and the time of the next try."""
        slot = self.slots[member.slot]
        slot.last_exit = replace(end, generation=member.generation, failed=True, booted=member.ready_at is not None)
        if member.canary:
            return
        healed = member.ready_at is not None and end.at - member.ready_at >= HEALED
        slot.failures = 1 if healed else slot.failures + 1
        delay = 0.0
        if slot.failures > 1:
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(slot.failures - 2, 10))
        # Up to a quarter less, so that slots that have failed together are not retried together.
        slot.retry_at = end.at + delay * (1 - self._random() / 4)
        if member.ready_at is None:
            self._lift_request_limits(member.slot)

    def _lift_request_limits(self, slot: int) -> None:
        """Let workers keep serving that wait for a successor in the slot, or for a mold to fork it from."""
        for one in self.by_ident.values():
            if one.spent and not one.lifted and one.state is State.READY and slot in (MOLD, one.slot):
                one.lifted, one.full = True, False
                self.actions.append(ServeOn(one))
