"""Which processes should exist, and what to do next about those that do. Pure.

The master tells the pool what happened, and asks `plan(now)` what to do. A plan is the difference
between what is wanted and what is: when it has been made, and nothing happens in between, the next
one is empty. Only values go in and come out, and the time is one of them, so that what the pool
promises is tested over random histories, without a process:

- never is a process forked when `wanted + surge` of them exist already;
- every state that a process can be stuck in has a deadline, and every deadline leads on, to the
  stacks, to SIGKILL, and to giving the process up;
- a slot whose processes fail is tried again ever more slowly, and heals;
- after `stop` it ends, whatever the processes do.

Every change of state is in TRANSITIONS (states.py).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from types import MappingProxyType

from forkserve.errors import ExitCode
from forkserve.prefork.actions import Action, Announce, CloseListener, Drain, DumpStacks, Fork, GiveUp, Kill
from forkserve.prefork.states import TRANSITIONS, Event, Exit, Limits, Member, Slot, State

# Seconds.
LATE = 1.0  # a master that wakes up so much too late was itself suspended
FIRST_DELAY = 0.5  # before the second try; the first comes at once
LONGEST_DELAY = 30.0
HEALED = 10.0  # a process that was ready for so long is no part of a crash loop

_SIGTERM = 15
_REASONS = MappingProxyType(
    {
        State.BOOTING: "not ready after {:g} s (--boot-timeout)",
        State.READY: "stuck for {:g} s (--timeout)",
        State.DRAINING: "not drained after {:g} s (--graceful-timeout)",
    }
)


class Phase(IntEnum):
    """Where the server is in its life. It only goes forward."""

    FIRST_BOOT = 0  # until every wanted slot has been ready once
    SERVING = 1
    STOPPING = 2
    QUITTING = 3  # stopping at once


class Pool:
    """The workers of a server, as the master knows them.

    `random` returns numbers from 0 to 1, for the jitter of delays.
    """

    def __init__(self, wanted: int, limits: Limits, random: Callable[[], float]) -> None:
        self.wanted = wanted
        self.generation = 1  # the committed one
        self.newest_generation = 1  # that was ever tried
        self.phase = Phase.FIRST_BOOT
        self.exit_code = ExitCode.OK
        self.limits = limits
        self._random = random
        self._idents = itertools.count(1)
        self._listening: set[int | None] = {None, *range(1, wanted + 1)}
        self._kept = wanted  # slots up to here keep their listeners; more than wanted if suspended
        self._slots: defaultdict[int, Slot] = defaultdict(Slot)
        self._members: dict[int, Member] = {}
        self._owed: list[Action] = []

    # What the master reads.

    @property
    def done(self) -> bool:
        """Whether the server has stopped: nothing is wanted, and nothing is left."""
        return self.phase >= Phase.STOPPING and not self._members and not self._owed

    @property
    def processes(self) -> int:
        """How many processes there are, in whatever state."""
        return sum(member.exists for member in self._members.values())

    @property
    def degraded(self) -> bool:
        """Whether a slot that failed waits for another try."""
        waiting = (member.slot for member in self._members.values() if member.state is State.BACKOFF)
        return self.phase is Phase.SERVING and any(self._slots[slot].failures for slot in waiting)

    def members(self) -> list[Member]:
        """Return the members, in the order of their slots; for reading only."""
        return sorted(self._members.values(), key=lambda one: (one.slot, one.ident))

    def last_exit(self, slot: int) -> Exit | None:
        """Return how the slot's last process ended."""
        return self._slots[slot].last_exit

    def next_deadline(self) -> float | None:
        """Return when `plan` must be asked again if nothing happens before; None for never."""
        if self.done:
            return 0.0  # nothing will happen any more
        room = self._room() > 0
        waiting = (one for one in self._members.values() if (one.pid if one.exists else room))
        return min((due for one in waiting if (due := one.deadline) is not None), default=None)

    # What is wanted.

    def want(self, count: int) -> None:
        """Have so many workers from now on. The listeners of new slots must be open already."""
        if self.phase >= Phase.STOPPING:
            return
        for number in range(self.wanted + 1, count + 1):
            self._slots[number].failures, self._slots[number].retry_at = 0, float("-inf")
        self._kept = max(self._kept, count) if count >= self.wanted else count
        self._listening.update(range(1, self._kept + 1))
        self.wanted = count

    def suspend(self) -> None:
        """Have no workers, but keep every listener, so that connections wait in their queues."""
        if self.phase < Phase.STOPPING:
            self.wanted = 0

    def stop(self) -> None:
        """Drain everything and end. It cannot be taken back."""
        self.phase = max(self.phase, Phase.STOPPING)
        self.wanted = self._kept = 0

    def stop_at_once(self) -> None:
        """Kill everything and end."""
        self.stop()
        self.phase = Phase.QUITTING

    def replace(self, slot: int) -> None:
        """Put a new process in the place of the slot's; the old one serves until it is ready."""
        for member in self._slots[slot].members:
            member.outdated = member.exists

    def keep(self, slot: int, now: float) -> None:
        """Take `replace` back, as a new process failed: the old one stays, unless its successor is ready already."""
        members = list(self._slots[slot].members)
        ready = [member for member in members if member.state is State.READY]
        if not ready or not all(member.outdated for member in ready):
            return
        for member in members:
            if member.state is State.BACKOFF:
                self._apply(member, Event.RETIRE, now)
            elif member.state is State.BOOTING and not member.outdated:
                self.withdraw(member, now)
            member.outdated = False

    def hurry(self) -> None:
        """Try at once what is to be tried again: the reason why it failed may be gone."""
        for slot in self._slots.values():
            slot.failures, slot.retry_at = 0, float("-inf")
        for member in self._members.values():
            if member.state is State.BACKOFF:
                member.limit = 0.0

    def withdraw(self, member: Member, now: float) -> None:
        """Have a process end that is not wanted any more."""
        if member.pid and member.state in (State.BOOTING, State.READY):
            self._owed.append(Drain(member, booting=member.state is State.BOOTING))
            self._apply(member, Event.DRAIN, now)

    def try_out(self, slot: int, generation: int, now: float) -> Member:
        """Put a process of a new generation beside the slot's, which goes on serving. Return its member: the canary."""
        for member in list(self._slots[slot].members):
            if member.state is State.BACKOFF:
                self._apply(member, Event.RETIRE, now)
        self.newest_generation = generation
        return self._add(slot, generation, now, canary=True)

    def commit(self, generation: int) -> None:
        """The new generation is good: everything older is replaced, and whatever is forked from now on is new."""
        self.generation = generation
        for member in self._members.values():
            member.canary = False
            member.outdated = member.exists and member.generation != generation

    # What happened.

    def forked(self, ident: int, pid: int) -> None:
        """A `Fork` was done."""
        self._members[ident].pid = pid

    def fork_failed(self, ident: int, reason: str, now: float) -> None:
        """A `Fork` could not be done: too many processes, or too little memory."""
        member = self._members[ident]
        self._not_booted(ExitCode.BOOT)
        self._fail(member, Exit(reason, None, None, now))
        self._apply(member, Event.FORK_FAILED, now)

    def ready(self, ident: int, now: float) -> None:
        """A worker said that it is ready."""
        if member := self._members.get(ident):
            self._apply(member, Event.READY, now)
            if member.state is State.READY:
                member.ready_at = now
                self._slots[member.slot].was_ready = True

    def draining(self, ident: int, now: float) -> None:
        """A worker said that it drains, because somebody else told it to."""
        if member := self._members.get(ident):
            self._apply(member, Event.DRAIN, now)

    def released(self, ident: int) -> None:
        """A worker said that it accepts no more."""
        if member := self._members.get(ident):
            member.released = True

    def beat(self, ident: int, at: float) -> None:
        """A worker showed a sign of life at that time."""
        member = self._members.get(ident)
        if member and member.state is State.READY and at > member.since:
            member.since, member.renewed = at, False

    def misbehaved(self, ident: int, reason: str, now: float) -> None:
        """A worker did what it must not do: it is killed, and replaced as after a crash."""
        member = self._members.get(ident)
        if member and (member.state, Event.KILL) in TRANSITIONS:
            member.reason = reason
            self._apply(member, Event.KILL, now)

    def exited(self, ident: int, now: float, *, code: int | None, signal: int | None, why: str | None = None) -> bool:
        """A process ended, and said why. Return whether that was a failure, rather than what somebody asked."""
        member = self._members.get(ident)
        if member is None:
            return False
        asked = member.asked or signal == _SIGTERM or self.phase >= Phase.STOPPING
        if not asked and member.ready_at is None:
            self._not_booted(code)
        end = Exit(member.reason or why or ("ended" if signal is None else "killed"), code, signal, now)
        if asked and member.ready_at is not None:
            self._slots[member.slot].last_exit = end
        else:
            # A TERM during the boot is no failure to boot, but an app that sends it to itself
            # must not be forked again and again.
            self._fail(member, end)
        self._apply(member, Event.EXIT, now)
        return not asked

    # What to do next.

    def plan(self, now: float) -> list[Action]:
        """Return what to do now. Each action is returned once; the master does them in order."""
        self._forgive_lateness(now)
        for member in self.members():
            self._escalate(member, now)
        for member in self.members():
            self._retire(member, now)
        self._fill(now)
        self._close_listeners()
        self._announce()
        owed, self._owed = self._owed, []
        # What ended before its order was made needs it no more.
        needless = (Drain, DumpStacks, Kill)
        return [one for one in owed if not (isinstance(one, needless) and one.member.state is State.GONE)]

    def _forgive_lateness(self, now: float) -> None:
        """Renew every deadline, once, if the master comes much too late to one of them.

        Then it was stopped, or the whole machine was, and the workers may have had no more chance
        to move than it had.
        """
        mortal = [one for one in self._members.values() if one.state in _REASONS and one.limit and one.pid]
        if any(now - one.since > one.limit + LATE and not one.renewed for one in mortal):
            for member in mortal:
                if not member.renewed:
                    member.since, member.renewed = now, True

    def _escalate(self, member: Member, now: float) -> None:
        if not member.pid:
            return
        if self.phase is Phase.QUITTING and (member.state, Event.KILL) in TRANSITIONS:
            self._apply(member, Event.KILL, now)
        elif member.deadline is not None and member.deadline <= now:
            if member.state in _REASONS:
                member.reason = _REASONS[member.state].format(member.limit)
            if member.state is State.KILLED:
                self._fail(member, Exit("could not be killed", None, None, now))
            self._apply(member, Event.OVERDUE, now)

    def _retire(self, member: Member, now: float) -> None:
        """Let go of what its slot does not need any more."""
        if member.slot <= self.wanted and not (member.outdated and self._superseded(member)):
            return
        if member.state is State.BACKOFF:
            self._apply(member, Event.RETIRE, now)
        else:
            self.withdraw(member, now)

    def _superseded(self, member: Member) -> bool:
        """Whether a newer process of the slot is ready.

        It may be outdated itself: two that wait for a third would leave no room for it.
        """
        members = self._slots[member.slot].members
        return any(one.state is State.READY and one.ident > member.ident for one in members)

    def _fill(self, now: float) -> None:
        """See that each wanted slot has a process or waits for one, and fork what is due."""
        for number in range(1, self.wanted + 1):
            slot = self._slots[number]
            # One that is stuck holds its place until it is gone, so that its end counts first.
            if all(one.asked or one.outdated for one in slot.members):
                self._add(number, self.generation, now, limit=max(0.0, slot.retry_at - now))
        due = [one for one in self.members() if one.state is State.BACKOFF and one.since + one.limit <= now]
        due.sort(key=lambda one: len(self._slots[one.slot].members))  # an empty slot goes first
        for member in due[: max(0, self._room())]:
            taken = {one.row for one in self._members.values()}
            member.row = next(row for row in itertools.count() if row not in taken)
            if not member.canary:
                member.generation = self.generation
            member.born = now
            self._apply(member, Event.FORK, now)
            self._owed.append(Fork(member))

    def _add(self, slot: int, generation: int, now: float, *, limit: float = 0.0, canary: bool = False) -> Member:
        member = Member(next(self._idents), slot, generation, State.BACKOFF, since=now, limit=limit, canary=canary)
        self._slots[slot].members.append(member)
        self._members[member.ident] = member
        return member

    def _room(self) -> int:
        return self.wanted + self.limits.surge - self.processes

    def _close_listeners(self) -> None:
        holders = [one for one in self._members.values() if one.exists and not one.released]
        unused: set[int | None] = self._listening - {one.slot for one in holders}
        unused -= set(range(1, self._kept + 1))
        if self.phase < Phase.STOPPING or holders:
            unused.discard(None)
        self._listening -= unused
        self._owed += [CloseListener(slot) for slot in sorted(unused, key=lambda one: one or 0)]

    def _announce(self) -> None:
        if self.phase is Phase.FIRST_BOOT and all(self._slots[slot].was_ready for slot in range(1, self.wanted + 1)):
            self.phase = Phase.SERVING
            self._owed.append(Announce(self.wanted))

    # How a member changes.

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
        member.limit = self.limits.of(after)
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
        slot.last_exit = replace(end, generation=member.generation, failed=True)
        if member.canary:
            return
        healed = member.ready_at is not None and end.at - member.ready_at >= HEALED
        slot.failures = 1 if healed else slot.failures + 1
        delay = 0.0
        if slot.failures > 1:
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(slot.failures - 2, 10))
        # Up to a quarter less, so that slots that failed together do not try again together.
        slot.retry_at = end.at + delay * (1 - self._random() / 4)

    def _not_booted(self, code: int | None) -> None:
        """Give up the server if this is its first boot: what fails now would fail again."""
        if self.phase is Phase.FIRST_BOOT and not self.limits.patient:
            self.exit_code = ExitCode(code) if code in (ExitCode.APP_LOAD, ExitCode.USAGE) else ExitCode.BOOT
            self.stop()
