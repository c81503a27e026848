"""Members: how one of them changes, whatever it is for, and what follows from that. Pure.

The pool decides which should exist; what becomes of each is decided here, with TRANSITIONS (states.py).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from forkserve.base.handover import Exported, fields_of, made
from forkserve.prefork.policy.actions import Action, Drain, DumpStacks, Fork, GiveUp, Kill, ServeOn
from forkserve.prefork.policy.states import ANSWER_TIME, MOLD, TRANSITIONS, Event, Exit, Limits, Member, Slot, State

# Seconds.
LATE: Final = 1.0  # a master that wakes up so much too late was itself suspended
FIRST_DELAY: Final = 0.5  # before the second try; the first comes at once
LONGEST_DELAY: Final = 30.0
HEALED: Final = 10.0  # a process that was ready for so long is no part of a crash loop
ORDER_TIME: Final = 10.0  # for a mold to fork a worker, which takes it some milliseconds

REASONS: Final = MappingProxyType(
    {
        State.BOOTING: "not ready after {:g} s (--boot-timeout)",
        State.READY: "stuck for {:g} s (--timeout)",
        State.DRAINING: "not drained after {:g} s (--graceful-timeout)",
    }
)


class Members:
    """Every process that there is, or is to be.

    `random` returns numbers from 0 to 1, for the jitter of delays. With `preload` workers are ordered from a mold, so that
    it takes a while until they are there.
    """

    def __init__(self, limits: Limits, random: Callable[[], float], *, preload: bool) -> None:
        self.limits = limits
        self.preload = preload
        self._random = random
        self._idents = itertools.count(1)
        self._slots: defaultdict[int, Slot] = defaultdict(Slot)
        self._members: dict[int, Member] = {}
        self._owed: list[Action] = []

    def export(self) -> Exported:
        """Describe them, for an upgrade, which comes when nothing is owed."""
        assert not self._owed
        return {
            "next": next(self._idents),
            "members": [fields_of(member) for member in self._members.values()],
            "slots": {str(number): fields_of(slot, "members") for number, slot in self._slots.items()},
        }

    def adopt(self, found: Exported, now: float) -> None:
        """Go on with them in the new program; deadlines begin anew, as nobody has heard the workers meanwhile."""
        self._idents = itertools.count(found["next"])
        for number, slot in found["slots"].items():
            end = slot["last_exit"]
            self._slots[int(number)] = made(Slot, slot, last_exit=end and made(Exit, end))
        for one in found["members"]:
            member = made(Member, one, state=State(one["state"]))
            if member.state in REASONS:
                member.since, member.renewed = now, False
            self._slots[member.slot].members.append(member)
            self._members[member.ident] = member

    def members(self) -> list[Member]:
        """Return the workers, in the order of their slots; for reading only."""
        return sorted((one for one in self._members.values() if one.slot != MOLD), key=lambda one: (one.slot, one.ident))

    def molds(self) -> list[Member]:
        """Return the molds, the oldest first; for reading only."""
        return [one for one in self._members.values() if one.slot == MOLD]

    @property
    def processes(self) -> int:
        """How many workers there are, in whatever state."""
        return sum(member.exists and member.slot != MOLD for member in self._members.values())

    def last_exit(self, slot: int) -> Exit | None:
        """Return how the slot's last process ended; that of MOLD is the last mold's end."""
        return self._slots[slot].last_exit

    def withdraw(self, member: Member, now: float) -> None:
        """Have a process end that is not wanted any more."""
        if member.pid and member.state in (State.BOOTING, State.READY):
            member.withdrawn = True
            self._owed.append(Drain(member, booting=member.state is State.BOOTING))
            self._apply(member, Event.DRAIN, now)

    def misbehaved(self, ident: int, reason: str, now: float) -> None:
        """A process did what it must not do: it is killed, and replaced as after a crash."""
        member = self._members.get(ident)
        if member and (member.state, Event.KILL) in TRANSITIONS:
            member.reason = reason
            self._apply(member, Event.KILL, now)

    def dumped(self, ident: int, now: float) -> None:
        """A process that is past its deadline has written down its stacks: it is killed without further delay.

        One that drains keeps its second: its application's shutdown has a moment when requests have used up the graceful timeout.
        """
        member = self._members.get(ident)
        if member and member.state is State.DUMPING:
            if member.asked:
                member.limit = ANSWER_TIME
            else:
                self._apply(member, Event.KILL, now)

    def _answers(self, number: int, *, wanted: bool) -> bool:
        """Whether a process of the slot is ready, or soon will be: it was, and if it failed, the next try comes at once."""
        slot = self._slots[number]
        return any(one.state is State.READY for one in slot.members) or (wanted and slot.was_ready and slot.failures <= 1)

    def _add(self, slot: int, generation: int, now: float, *, limit: float = 0.0, canary: bool = False) -> Member:
        member = Member(next(self._idents), slot, generation, State.BACKOFF, since=now, limit=limit, canary=canary)
        self._slots[slot].members.append(member)
        self._members[member.ident] = member
        return member

    def _fork(self, member: Member, now: float) -> None:
        taken = {one.row for one in self._members.values()}
        member.row = next(row for row in itertools.count() if row not in taken)
        member.born = now
        self._apply(member, Event.FORK, now)
        if self.preload and member.slot != MOLD:
            member.ordered, member.limit = True, ORDER_TIME
        self._owed.append(Fork(member))

    def _forgive_lateness(self, now: float) -> None:
        """Renew every deadline, once, if the master comes much too late to one of them.

        Then it was stopped, or the whole machine was, and the workers may have had no more chance
        to move than it had.
        """
        mortal = [one for one in self._members.values() if one.state in REASONS and one.limit and (one.pid or one.ordered)]
        if any(now - one.since > one.limit + LATE and not one.renewed for one in mortal):
            for member in mortal:
                if not member.renewed:
                    member.since, member.renewed = now, True

    def _overdue(self, member: Member, now: float) -> None:
        """Go on with a member whose deadline has come."""
        if member.state in REASONS:
            member.reason = REASONS[member.state].format(member.limit)
        if member.state is State.KILLED:
            self._fail(member, Exit("could not be killed", None, None, now))
        self._apply(member, Event.OVERDUE, now)

    def _apply(self, member: Member, event: Event, now: float) -> None:
        """Take a member through TRANSITIONS; what they do not hold is a bug, and its end."""
        before = member.state
        after = TRANSITIONS.get((before, event))
        if after is None:
            self.misbehaved(member.ident, f"{event.value} while {before.value}", now)
            return
        if event is Event.DRAIN:
            member.asked = True
        if after is before:
            return
        member.state, member.since, member.renewed = after, now, False
        member.limit = self.limits.of(after, member.slot)
        if after is State.DUMPING:
            self._owed.append(DumpStacks(member))
        elif after is State.KILLED:
            self._owed.append(Kill(member, dumped=before is State.DUMPING))
        elif after is State.GONE:
            if before is State.KILLED and event is Event.OVERDUE:
                self._owed.append(GiveUp(member))
            del self._members[member.ident]
            self._slots[member.slot].members.remove(member)
        elif after is State.BOOTING:
            self._slots[member.slot].retry_at = float("-inf")

    def _fail(self, member: Member, end: Exit) -> None:
        """Remember a failure of a slot, and when to try again."""
        slot = self._slots[member.slot]
        slot.last_exit = replace(end, generation=member.generation, failed=True, booted=member.ready_at is not None)
        if member.canary:
            return
        healed = member.ready_at is not None and end.at - member.ready_at >= HEALED
        slot.failures = 1 if healed else slot.failures + 1
        delay = 0.0
        if slot.failures > 1:
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(slot.failures - 2, 10))
        # Up to a quarter less, so that slots that failed together do not try again together.
        slot.retry_at = end.at + delay * (1 - self._random() / 4)
        if member.ready_at is None:
            self._lift(member.slot)

    def _lift(self, slot: int) -> None:
        """Let those serve on that wait for a successor in the slot, or for a mold to fork it from."""
        for one in self._members.values():
            if one.spent and not one.lifted and one.state is State.READY and slot in (MOLD, one.slot):
                one.lifted, one.full = True, False
                self._owed.append(ServeOn(one))
