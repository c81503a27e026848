"""Which processes should exist, and what to do next about those that do. Pure.

The master tells the pool what happened, and asks `plan(now)` what to do. A plan is the difference
between what is wanted and what is: when it has been made, and nothing happens in between, the next
one is empty. Only values go in and come out, and the time is one of them, so that what the pool
promises is tested over random histories, without a process:

- never is a process forked when `wanted + surge + lingering` of them exist already; and to replace one that serves, only when
  no more than `wanted + surge` exist beside those (at most `lingering`) that have nothing left but long answers;
- the first worker of all boots alone, as apps prepare their database at import; the others follow when it is ready;
- every state that a process can be stuck in has a deadline, and every deadline leads on, to the
  stacks, to SIGKILL, and to giving the process up;
- a slot whose processes fail is tried again ever more slowly, and heals;
- after `stop` it ends, whatever the processes do, and whether or not a front end takes note;
- no listener is closed while connections wait in its queue, unless no worker could be had for them in time (lastcall.py);
- with `preload` there are at most two molds, and no worker is forked but from a ready mold of its generation.

What one process goes through is in members.py, and every change of its state in TRANSITIONS (states.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from forkserve.base.errors import ExitCode
from forkserve.prefork.policy.actions import Action, Announce, CloseListener, Drain, DumpStacks, GiveUp, Kill, ServeOn
from forkserve.prefork.policy.drain_gate import LONGEST, Leaving
from forkserve.prefork.policy.generations import Generations
from forkserve.prefork.policy.lastcall import LastCalls, who_comes
from forkserve.prefork.policy.members import ORDER_TIME
from forkserve.prefork.policy.states import MOLD, TRANSITIONS, Event, Exit, Limits, Member, State

if TYPE_CHECKING:
    from forkserve.base.handover import Exported

MANY_MOLDS: Final = 2  # each holds a copy of the app
_SIGTERM: Final = 15
LEAST: Final = 0.001  # seconds: a limit of 0 is none


class Phase(IntEnum):
    """Where the server is in its life. It only goes forward."""

    FIRST_BOOT = 0  # until every wanted slot has been ready once
    SERVING = 1
    STOPPING = 2
    QUITTING = 3  # stopping at once


class Pool(Generations):
    """The workers of a server, as the master knows them, and with `preload` the molds that they are forked from."""

    def __init__(self, wanted: int, limits: Limits, random: Callable[[], float], *, preload: bool = False) -> None:
        super().__init__(limits, random, preload=preload)
        self.wanted = wanted
        self.phase = Phase.FIRST_BOOT
        self.exit_code = ExitCode.OK
        self.public = False  # requests may come: from the announcement on, until it is to stop at once
        self.advertised: AbstractSet[int | None] = frozenset()  # slots that a front end may send requests to; None: the shared
        self.moved: AbstractSet[int] = frozenset()  # slots whose new workers listen elsewhere than some old ones
        self.sought: AbstractSet[int] = frozenset()  # those of them where a front end may send requests to the old address
        self.waiting: AbstractSet[int | None] = frozenset()  # of those that are `unattended`: where connections wait
        self._leaving = Leaving()
        self._last_calls = LastCalls()
        self._moving = Leaving()  # the old workers of slots that have a ready one elsewhere
        self.listening: set[int | None] = {None, *range(1, wanted + 1)}  # slots whose listeners are open; None: the shared
        self._kept = wanted  # slots up to here keep their listeners; more than wanted if suspended
        self.places = sys.maxsize  # how many workers the scoreboard has rows for
        self._peak = wanted  # how many were wanted, as long as the processes of then are more than are allowed now

    def export(self) -> Exported:
        """Describe it, for an upgrade."""
        own = {"wanted": self.wanted, "phase": self.phase, "listening": list(self.listening), "kept": self._kept}
        own["peak"] = self._peak
        return super().export() | own

    def adopt(self, found: Exported, now: float) -> None:
        """Go on with it in the new program."""
        super().adopt(found, now)
        self.wanted, self._kept, self.listening = found["wanted"], found["kept"], set(found["listening"])
        self.phase = Phase(found["phase"])
        self.public = self.phase >= Phase.SERVING
        self._peak = found.get("peak", self.wanted)

    # What the master reads.

    @property
    def owes(self) -> bool:
        """Whether there is something to be done at once."""
        return bool(self._owed)

    @property
    def sees_off(self) -> bool:
        """Whether a slot is on its way out, or from one address to another, and must wait."""
        return bool(self._leaving.held or self._moving.held)

    def is_held(self, member: Member) -> bool:
        """Whether a member is to go, but not yet: whoever is still sent there must be answered."""
        return member.slot in self._leaving.held or (member.outdated and member.slot in self._moving.held)

    @property
    def kept(self) -> range:
        """The slots whose listeners are wanted, whether or not they have workers."""
        return range(1, self._kept + 1)

    @property
    def done(self) -> bool:
        """Whether the server has stopped: nothing is wanted, and nothing is left."""
        return self.phase >= Phase.STOPPING and not (self._members or self._owed or self.listening)

    @property
    def degraded(self) -> bool:
        """Whether a slot that failed, or the mold, waits for another try."""
        waiting = (member.slot for member in self._members.values() if member.state is State.BACKOFF)
        return self.phase is Phase.SERVING and any(self._slots[slot].failures for slot in waiting)

    def down(self) -> AbstractSet[int | None]:
        """Return the slots that requests had better not be sent to; None among them stands for the shared addresses.

        Those that leave, and those whose worker will not be there soon: it has never been ready, or fails again and again.
        But where no other is there, connections may as well wait in their queues.
        """
        if self.phase >= Phase.STOPPING:
            return set(self.listening)
        kept = {slot for slot in self.listening if slot is None or slot <= self._kept}
        good = {slot for slot in kept if slot is not None and self._answers(slot, wanted=slot <= self.wanted)}
        return self.listening - {None} - (good if good and self.phase is Phase.SERVING else kept)

    def serving(self) -> dict[int, int]:
        """Return the generation of each slot's ready worker, if it has one beside a canary; of several, the committed one."""
        ready = [one for one in self.members() if one.state is State.READY and not one.canary]
        return {one.slot: one.generation for one in sorted(ready, key=lambda one: one.generation == self.generation)}

    def next_deadline(self) -> float | None:
        """Return when `plan` must be asked again if nothing happens before; None for never."""
        if self.done:
            return 0.0  # nothing will happen any more
        rooms, mold_room = self._rooms(), self._mold_room() > 0
        waiting = [one for one in self.members() if (one.pid or one.ordered if one.exists else self._may_fork(one, *rooms))]
        waiting += [one for one in self.molds() if (one.pid if one.exists else mold_room)]
        deadlines = [one.next_deadline() for one in (self._leaving, self._moving, self._last_calls)]
        deadlines += [one.deadline for one in waiting]
        return min((due for due in deadlines if due is not None), default=None)

    def unattended(self, now: float) -> set[int | None]:
        """Return the slots whose listeners are to be closed now, and where nobody who is ready accepts; None: the shared ones.

        The master looks whether connections wait there (`waiting`) before it asks for a plan.
        """
        self._see_off(now)
        there = {one.slot for one in self.members() if one.exists and not one.released and one.state is not State.BOOTING}
        return self._on_their_way() - self._leaving.held - there - ({None} if there else set())

    def _on_their_way(self) -> set[int | None]:
        stopping = self.phase >= Phase.STOPPING
        return {slot for slot in self.listening if (stopping if slot is None else slot > self._kept)} if self.public else set()

    # What is wanted.

    def want(self, count: int) -> None:
        """Have so many workers from now on. The listeners of new slots must be open already."""
        if self.phase >= Phase.STOPPING:
            return
        for number in range(self.wanted + 1, count + 1):
            self._slots[number].failures, self._slots[number].retry_at = 0, float("-inf")
            self._slots[number].was_ready = any(one.state is State.READY for one in self._slots[number].members)
        self._kept = max(self._kept, count) if count >= self.wanted else count
        self.listening.update(range(1, self._kept + 1))
        self.wanted, self._peak = count, max(self._peak, count)

    def suspend(self) -> None:
        """Have no workers, but keep every listener, so that connections wait in their queues."""
        if self.phase < Phase.STOPPING:
            self.wanted = 0

    def stop(self) -> None:
        """Drain everything, when nobody is sent here any more, and end. It cannot be taken back."""
        self.phase = max(self.phase, Phase.STOPPING)
        self.wanted = self._kept = 0

    def stop_at_once(self) -> None:
        """Kill everything and end."""
        self.stop()
        self.phase, self.public = Phase.QUITTING, False

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
            member.outdated = member.spent

    # What happened.

    def forked(self, ident: int, pid: int) -> None:
        """A `Fork` was done."""
        member = self._members[ident]
        member.pid = pid
        if member.ordered:
            member.ordered, member.limit = False, self.limits.of(member.state, member.slot)

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

    def lingering(self, ident: int) -> None:
        """A worker that drains said that it has nothing left but streams or threads."""
        member = self._members.get(ident)
        if member and member.state is State.DRAINING:
            member.lingering = True

    def spent(self, ident: int, *, full: bool) -> bool:
        """A worker said that it has answered as many requests as it should; `full`: it takes no more before it is replaced.

        Return whether that is new. A canary is not replaced before its generation is committed.
        """
        member = self._members.get(ident)
        if not member or member.state is not State.READY or member.lifted:
            return False
        new, member.spent, member.full = not member.spent, True, full
        member.outdated = member.outdated or not member.canary
        return new

    def beat(self, ident: int, at: float) -> None:
        """A worker showed a sign of life at that time."""
        member = self._members.get(ident)
        if member and member.state is State.READY and at > member.since:
            member.since, member.renewed = at, False

    def exited(self, ident: int, now: float, *, code: int | None, signal: int | None, why: str | None = None) -> bool:
        """A process ended, and said why. Return whether that was a failure, rather than what somebody asked."""
        member = self._members.get(ident)
        if member is None:
            return False
        asked = member.asked or signal == _SIGTERM or self.phase >= Phase.STOPPING
        if not asked and member.ready_at is None:
            self._not_booted(code)
        end = Exit(member.reason or why or ("ended" if signal is None else "killed"), code, signal, now)
        if asked and (member.withdrawn or member.ready_at is not None):
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
        for member in [*self.members(), *self.molds()]:
            self._escalate(member, now)
        self._attend(now)
        self._settle_peak()
        for member in self.members():
            self._retire(member, now)
        self._keep_molds(now)
        self._fill(now)
        self._settle_peak()
        self._close_listeners()
        self._announce()
        owed, self._owed = self._owed, []
        return [one for one in owed if not _is_needless(one)]

    def _escalate(self, member: Member, now: float) -> None:
        overdue = member.deadline is not None and member.deadline <= now
        if member.ordered and overdue:
            self._lost(member, now)
        if not member.pid:
            return
        if self.phase is Phase.QUITTING and (member.state, Event.KILL) in TRANSITIONS:
            self._apply(member, Event.KILL, now)
        elif overdue:
            self._overdue(member, now)

    def _lost(self, member: Member, now: float) -> None:
        """Give up a worker that its mold was told to fork, and the mold too, since it is of no use."""
        why = f"not forked in {ORDER_TIME:g} s"
        for mold in self.molds():
            if mold.generation == member.generation:
                self.misbehaved(mold.ident, f"worker {member.slot} was {why}", now)
        self._owed.append(GiveUp(member))
        self.fork_failed(member.ident, why, now)

    def _see_off(self, now: float) -> None:
        """See which slots are on their way out, and which of them must wait."""
        stopping, slots = self.phase >= Phase.STOPPING, self._on_their_way()
        all_are = stopping and None in self.advertised  # whoever is sent to a shared address meets any of them
        self._leaving.update(slots, slots if all_are else self.advertised, now, self.limits)
        replaced = [one for one in self.members() if one.state is State.READY and one.outdated and self._superseded(one)]
        self._moving.update({one.slot for one in replaced} & self.moved, self.sought, now, self.limits)

    def _attend(self, now: float) -> None:
        """See that somebody comes to where connections wait and nobody would be any more."""
        self._last_calls.forget(self._on_their_way())
        waited_for = self.unattended(now) & self.waiting
        for slot in sorted(waited_for, key=lambda one: (one is None, one)):  # whoever comes to a slot comes to the shared ones
            gone_at, longest = self._leaving.gone_at(slot), self.limits.graceful or LONGEST
            if self._last_calls.needs_worker(slot, gone_at, longest, now):
                there, number = who_comes(slot, self.members()), slot or 1
                delay = max(0.0, self._slots[number].retry_at - now)
                self._last_calls.assign(slot, there or self._add(number, self.generation, now, limit=delay))
        self._last_calls.release(waited_for)

    def _is_vacant(self, number: int) -> bool:
        """Whether the slot has no process that takes requests, or soon will."""
        return not any(one.exists and not (one.asked or one.full) for one in self._slots[number].members)

    def _retire(self, member: Member, now: float) -> None:
        """Let go of what its slot does not need any more."""
        superfluous = member.outdated and self._superseded(member)
        if member.state is State.BACKOFF and not member.canary:
            # It was to serve beside a canary that listens elsewhere, whose generation has been committed meanwhile.
            others = [one for one in self._slots[member.slot].members if one is not member]
            superfluous = any(one.exists and not (one.asked or one.outdated or one.canary) for one in others)
        if member.slot <= self.wanted and not superfluous:
            return
        if self._last_calls.keeps(member):
            return
        if member.state is State.BACKOFF:
            self._apply(member, Event.RETIRE, now)
        elif member.state is not State.READY or member.slot not in (self._leaving.held | self._moving.held):
            self.withdraw(member, now)
            due = self._last_calls.due(member)
            if due is not None and member.state is State.DRAINING and member.limit:
                member.limit = min(member.limit, max(LEAST, due - member.since))

    def relieved(self, member: Member) -> bool:
        """Whether a successor accepts where this one does: then what waits there need not be taken by it."""
        return member.slot <= self.wanted and member.slot not in self.moved and self._superseded(member)

    def _superseded(self, member: Member) -> bool:
        """Whether a newer process of the slot is ready, or an older one that is to stay; a canary may yet fail.

        A newer one may be outdated itself: two that wait for a third would leave no room for it.
        """
        ready = [
            one for one in self._slots[member.slot].members if one.state is State.READY and one is not member and not one.canary
        ]
        return any(one.ident > member.ident or not one.outdated for one in ready)

    def _keep_molds(self, now: float) -> None:
        """See that each generation that workers may be forked of has a mold, or waits for one; let go of the others."""
        serves = self.phase < Phase.STOPPING or self._last_calls.open
        needed = {self.generation, self.fallback} - {None} if self.preload and serves else set()
        ordered = {one.generation for one in self.members() if one.ordered}
        for mold in self.molds():
            tried = mold.canary and not mold.outdated and self.phase < Phase.STOPPING
            if tried or mold.generation in needed or (mold.exists and mold.generation in ordered):
                continue
            if mold.state is State.BACKOFF:
                self._apply(mold, Event.RETIRE, now)
            else:
                self.withdraw(mold, now)
        there = {one.generation for one in self.molds() if not one.asked}
        for generation in needed - there:
            assert generation is not None
            self._add(MOLD, generation, now, limit=max(0.0, self._slots[MOLD].retry_at - now))
        due = [one for one in self.molds() if one.state is State.BACKOFF and one.since + one.limit <= now]
        due.sort(key=lambda one: one.generation != self.generation)
        for mold in due[: max(0, self._mold_room())]:
            self._fork(mold, now)

    def _mold_room(self) -> int:
        return MANY_MOLDS - sum(mold.exists for mold in self.molds())

    def _can_fork(self, member: Member) -> bool:
        """Whether there is what a worker is forked from: the master itself, or a mold that is ready."""
        generation = member.generation if member.canary else self.generation
        return not self.preload or any(one.state is State.READY and one.generation == generation for one in self.molds())

    def _fill(self, now: float) -> None:
        """See that each wanted slot has a process or waits for one, and fork what is due."""
        for number in range(1, self.wanted + 1):
            slot = self._slots[number]
            # One that is stuck holds its place until it is gone, so that its end counts first. A canary that listens elsewhere
            # holds none: whoever asks at the address of before must be answered there.
            if all(one.asked or one.outdated or (one.canary and number in self.moved) for one in slot.members):
                self._add(number, self.generation, now, limit=max(0.0, slot.retry_at - now))
        due = [one for one in self.members() if one.state is State.BACKOFF and one.since + one.limit <= now]
        due.sort(key=lambda one: (not self._is_vacant(one.slot), len(self._slots[one.slot].members)))
        for member in due:
            if not self._may_fork(member, *self._rooms()):
                continue
            if not member.canary:
                member.generation = self.generation
            self._fork(member, now)

    def _may_fork(self, member: Member, room: int, ample: int) -> bool:
        if not self._can_fork(member) or (self._first_boots() and not member.canary):
            return False
        return (ample if self._is_vacant(member.slot) else room) > 0

    def _first_boots(self) -> bool:
        """Whether a worker boots while none has been ready yet: an app may prepare its database at import, and lose a race."""
        if self.preload or any(self._slots[slot].was_ready for slot in range(1, self.wanted + 1)):
            return False
        return any(one.exists and not one.asked and one.ready_at is None for one in self.members())

    @property
    def room(self) -> int:
        """How many processes may be started to replace others."""
        return self._rooms()[0]

    def _rooms(self) -> tuple[int, int]:
        """How many more workers there may be: to replace others that serve, and for slots that have nobody to serve.

        A slot that nobody serves need not wait for others to drain: it may have the room of those that linger. And if fewer
        are wanted than before, that of those who were.
        """
        there, surge = self.processes, self.limits.surge
        most = self._most_lingering(self._peak)
        lingering = min(most, sum(one.lingering for one in self._members.values()))
        free = self.places - there
        return min(free, self.wanted + surge + lingering - there), min(free, self._peak + surge + most - there)

    def _settle_peak(self) -> None:
        vacant = sum(map(self._is_vacant, range(1, self.wanted + 1)))
        vacant += sum(one.slot > self.wanted and self._last_calls.keeps(one) and not one.exists for one in self.members())
        if self.processes + vacant <= self.wanted + self.limits.surge + self._most_lingering(self.wanted):
            self._peak = self.wanted

    def _most_lingering(self, wanted: int) -> int:
        return wanted if self.limits.lingering is None else self.limits.lingering

    def _close_listeners(self) -> None:
        holders = [one for one in self.members() if one.exists and not one.released]
        unused: set[int | None] = self.listening - {one.slot for one in holders}
        unused -= self._leaving.held | self._last_calls.open | set(range(1, self._kept + 1))
        if self.phase < Phase.STOPPING or holders:
            unused.discard(None)
        self.listening -= unused
        self._owed += [CloseListener(slot) for slot in sorted(unused, key=lambda one: one or 0)]

    def _announce(self) -> None:
        if self.phase is Phase.FIRST_BOOT and all(self._slots[slot].was_ready for slot in range(1, self.wanted + 1)):
            self.phase, self.public = Phase.SERVING, True
            self._owed.append(Announce(self.wanted))

    def _not_booted(self, code: int | None) -> None:
        """Give up the server if this is its first boot: what fails now would fail again."""
        if self.phase is Phase.FIRST_BOOT and not self.limits.patient:
            self.exit_code = ExitCode(code) if code in (ExitCode.APP_LOAD, ExitCode.USAGE) else ExitCode.BOOT
            self.stop()


def _is_needless(action: Action) -> bool:
    """Whether the member has changed since the order was made, so that it needs it no more."""
    match action:
        case Drain(member) | DumpStacks(member) | Kill(member):
            return member.state is State.GONE
        case ServeOn(member):
            return member.state is not State.READY
    return False
