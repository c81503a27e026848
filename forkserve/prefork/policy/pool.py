"""Pool: which processes should exist, and the next actions to get there. Pure.

The master reports events to the pool, and calls `plan(now)` for the next actions. A plan is the difference between what is
wanted and what exists: as long as nothing happens after a plan, the next plan is empty. Only values go in and come out, and the
time is one of them. So the pool's promises are tested over random histories, without a process:

- no process is forked while `wanted + surge + lingering` exist; and none to replace one that serves, unless at most
  `wanted + surge` exist beside those (at most `lingering`) that have only long answers left (capacity.py);
- the first worker of all boots alone, as apps prepare their database at import; the others follow when it is ready;
- every state that a process can be stuck in has a deadline, and every deadline leads on: to the stacks, to SIGKILL, and to
  giving the process up (members.py);
- a slot with failing processes is retried ever more slowly, and recovers;
- after `stop` the server ends, whatever the processes do, and whether or not a front end notices;
- no listener is closed while connections wait in its queue, unless no worker could be started for them in time (departures.py);
- with `preload` there are at most two molds, and every worker is forked from a ready mold of its generation (molds.py).

Every change of a process's state is in TRANSITIONS (states.py).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from enum import IntEnum
from typing import Final

from forkserve.base.errors import ExitCode
from forkserve.base.records import record
from forkserve.prefork.policy.actions import Action, Announce, Drain, DumpStacks, GiveUp, Kill, ServeOn
from forkserve.prefork.policy.capacity import Capacity
from forkserve.prefork.policy.departures import Departures, DeparturesState
from forkserve.prefork.policy.generations import Generations, GenerationsState
from forkserve.prefork.policy.members import ORDER_TIME, Members, MembersState
from forkserve.prefork.policy.molds import Molds
from forkserve.prefork.policy.reports import Reports
from forkserve.prefork.policy.states import TRANSITIONS, Event, Exit, Member, PoolLimits, State

_SIGTERM: Final = 15
LEAST: Final = 0.001  # seconds: a limit of 0 means none


class Phase(IntEnum):
    """The phases of the server's life. It only goes forward."""

    FIRST_BOOT = 0  # until every wanted slot has been ready once
    SERVING = 1
    STOPPING = 2
    QUITTING = 3  # stopping at once


@record
class PoolState:
    """A pool in an upgrade.

    Attributes:
        members: The processes and the slots.
        generations: The generations.
        departures: The listeners that are open or kept.
        wanted: How many workers are wanted.
        phase: The phase of the server.
        peak: The highest number of workers.
    """

    members: MembersState
    generations: GenerationsState
    departures: DeparturesState
    wanted: int
    phase: Phase
    peak: int


class Pool:
    """The processes of a server: how many are wanted, and the plan that leads there.

    Args:
        wanted: The number of workers.
        limits: How long each state may last, and how many processes there may be.
        random: Returns numbers from 0 to 1, for the jitter of delays.
        preload: Workers are forked from molds.
    """

    def __init__(self, wanted: int, limits: PoolLimits, random: Callable[[], float], *, preload: bool = False) -> None:
        self.wanted = wanted
        self.record: Callable[[object], object] = lambda _: None  # gets each event (history.py) before it is applied
        self.phase = Phase.FIRST_BOOT
        self.exit_code = ExitCode.OK
        self.members = Members(limits, random, preload=preload)
        self.reports = Reports(self.members)
        self.generations = Generations(self.members)
        self.departures = Departures(self.members, wanted)
        self._molds = Molds(self.members, self.generations)
        self.capacity = Capacity(self.members, self._molds, wanted)

    def export(self) -> PoolState:
        """Return the state for an upgrade."""
        members, generations, departures = self.members.export(), self.generations.export(), self.departures.export()
        return PoolState(members, generations, departures, self.wanted, self.phase, self.capacity.peak)

    def adopt(self, found: PoolState, now: float) -> None:
        """Take the state over in the new program."""
        self.members.adopt(found.members, now)
        self.generations.adopt(found.generations)
        self.wanted, self.phase = found.wanted, found.phase
        self.departures.adopt(found.departures, closing=self.phase >= Phase.STOPPING, public=self.phase >= Phase.SERVING)
        self.capacity.peak = found.peak

    # Questions of the master.

    @property
    def has_pending_actions(self) -> bool:
        """Whether the next plan has something to do at once."""
        return bool(self.members.actions)

    @property
    def done(self) -> bool:
        """Whether the server has stopped: nothing is wanted, and nothing is left."""
        return self.phase >= Phase.STOPPING and not (self.members.by_ident or self.members.actions or self.departures.open)

    @property
    def degraded(self) -> bool:
        """Whether a failed slot, or the mold, waits for its next try."""
        waiting = (member.slot for member in self.members.by_ident.values() if member.state is State.BACKOFF)
        return self.phase is Phase.SERVING and any(self.members.slots[slot].failures for slot in waiting)

    def down_slots(self) -> AbstractSet[int | None]:
        """Return the slots that requests should not be sent to; None among them stands for the shared addresses.

        These are the slots that are to be removed, and those that will have no worker soon: none was ever ready, or each fails.
        But if no slot is better, no wanted slot is down: connections may as well wait in their queues.
        """
        open_slots, kept = self.departures.open, {None, *self.departures.kept}
        if self.phase >= Phase.STOPPING:
            return set(open_slots)
        kept &= open_slots
        good = {slot for slot in kept if slot is not None and self.members.is_served(slot, wanted=slot <= self.wanted)}
        return open_slots - {None} - (good if good and self.phase is Phase.SERVING else kept)

    def ready_generations(self) -> dict[int, int]:
        """Return the generation of each slot's ready worker, canaries left out; of several, the committed one."""
        ready = [one for one in self.members.workers() if one.state is State.READY and not one.canary]
        return {one.slot: one.generation for one in sorted(ready, key=lambda one: one.generation == self.generations.committed)}

    def is_relieved(self, member: Member) -> bool:
        """Whether a successor accepts where this member does, so that it may leave the waiting connections to it."""
        stays = member.slot <= self.wanted and member.slot not in self.departures.moved
        return stays and self.members.has_successor(member)

    def next_deadline(self) -> float | None:
        """Return when `plan` must be called if nothing happens before; None for never."""
        if self.done:
            return 0.0  # nothing will happen any more
        room, mold_room = self.capacity.room(self.wanted), self._molds.room > 0
        waiting = [
            one
            for one in self.members.workers()
            if (one.pid or one.ordered if one.exists else self.capacity.may_fork(one, room, self.wanted))
        ]
        waiting += [one for one in self.members.molds() if (one.pid if one.exists else mold_room)]
        deadlines = [self.departures.next_deadline(), *(one.deadline for one in waiting)]
        return min((due for due in deadlines if due is not None), default=None)

    # What is wanted.

    def want(self, count: int) -> None:
        """Set the number of workers. The listeners of new slots must be open already."""
        if self.phase >= Phase.STOPPING:
            return
        for number in range(self.wanted + 1, count + 1):
            slot = self.members.slots[number]
            slot.failures, slot.retry_at = 0, float("-inf")
            slot.was_ready = any(one.state is State.READY for one in slot.members)
        self.departures.keep(max(len(self.departures.kept), count) if count >= self.wanted else count)
        self.departures.open.update(self.departures.kept)
        self.wanted, self.capacity.peak = count, max(self.capacity.peak, count)

    def suspend(self) -> None:
        """Have no workers, but keep every listener, so that connections wait in their queues."""
        self.wanted = 0

    def stop(self) -> None:
        """Drain all workers, once no requests are sent here any more, and end. This cannot be undone."""
        self.phase = max(self.phase, Phase.STOPPING)
        self.wanted = 0
        self.departures.close_all()

    def stop_at_once(self) -> None:
        """Kill all processes and end."""
        self.stop()
        self.phase, self.departures.public = Phase.QUITTING, False

    # Events that may end the server; all other events are in `reports`.

    def fork_failed(self, ident: int, reason: str, now: float) -> None:
        """A `Fork` has failed: there are too many processes, or too little memory."""
        member = self.members.by_ident[ident]
        self._boot_failed(ExitCode.BOOT)
        self.members.fail(member, Exit(reason, None, None, now))
        self.members.apply(member, Event.FORK_FAILED, now)

    def exited(self, ident: int, now: float, *, code: int | None, signal: int | None, why: str | None = None) -> bool:
        """A process has ended; `why` is the reason that it gave. Return whether it has failed: no end was requested."""
        member = self.members.by_ident.get(ident)
        if member is None:
            return False
        requested = member.end_requested or signal == _SIGTERM or self.phase >= Phase.STOPPING
        if not requested and member.ready_at is None:
            self._boot_failed(code)
        end = Exit(member.reason or why or ("ended" if signal is None else "killed"), code, signal, now)
        if requested and (member.withdrawn or member.ready_at is not None):
            self.members.slots[member.slot].last_exit = end
        else:
            # A TERM during the boot is no failure to boot. But an app that sends it to itself must not be forked again and again.
            self.members.fail(member, end)
        self.members.apply(member, Event.EXIT, now)
        return not requested

    def _boot_failed(self, code: int | None) -> None:
        """Stop the server if this is its first boot: what fails now would fail again."""
        if self.phase is Phase.FIRST_BOOT and not self.members.limits.patient:
            self.exit_code = ExitCode(code) if code in (ExitCode.APP_LOAD, ExitCode.USAGE) else ExitCode.BOOT
            self.stop()

    # What to do next.

    def plan(self, now: float) -> list[Action]:
        """Return what to do now, in order. Each action is returned once."""
        self.members.forgive_lateness(now)
        for member in [one for one in self.members.workers() if one.ordered and _is_overdue(one, now)]:
            self._give_up_order(member, now)  # first, as this may stop the server, which is escalated differently
        for member in [*self.members.workers(), *self.members.molds()]:
            self._escalate(member, now)
        self._announce()
        self.departures.answer_queued(self.generations.committed, now)
        self._update_peak()
        for member in self.members.workers():
            self._retire(member, now)
        serves = self.phase < Phase.STOPPING
        self._molds.plan(now, needed=serves or bool(self.departures.last_calls.open), trying=serves)
        self._fill(now)
        self._update_peak()
        self.departures.close_unused()
        actions, self.members.actions = self.members.actions, []
        return [one for one in actions if not _is_needless(one)]

    def _escalate(self, member: Member, now: float) -> None:
        if not member.pid:
            return
        # A process that a debugger has stopped cannot drain, and no deadline ends it.
        at_once = self.phase is Phase.QUITTING or (self.phase is Phase.STOPPING and member.debugged)
        if at_once and (member.state, Event.KILL) in TRANSITIONS:
            self.members.apply(member, Event.KILL, now)
        elif _is_overdue(member, now):
            self.members.expire(member, now)

    def _give_up_order(self, member: Member, now: float) -> None:
        """Give up a worker that was ordered from its mold, and the mold too, since it does not work."""
        why = f"not forked in {ORDER_TIME:g} s"
        for mold in self.members.molds():
            if mold.generation == member.generation:
                self.members.protocol_violation(mold.ident, f"worker {member.slot} was {why}", now)
        self.members.actions.append(GiveUp(member))
        self.fork_failed(member.ident, why, now)

    def _update_peak(self) -> None:
        """Count the workers to be forked for waiting connections, and let the capacity follow what is wanted."""
        kept = [one for one in self.members.workers() if one.slot > self.wanted and self.departures.last_calls.keeps(one)]
        self.capacity.update_peak(self.wanted, sum(not one.exists for one in kept))

    def _retire(self, member: Member, now: float) -> None:
        """End a member that its slot does not need any more, unless it is held."""
        superfluous = member.outdated and self.members.has_successor(member)
        if member.state is State.BACKOFF and not member.canary:
            # It was added beside a canary on another address; the generation of the canary has been committed meanwhile.
            others = [one for one in self.members.slots[member.slot].members if one is not member]
            superfluous = any(one.exists and not (one.end_requested or one.outdated or one.canary) for one in others)
        if (member.slot <= self.wanted and not superfluous) or self.departures.last_calls.keeps(member):
            return
        if member.state is State.READY and self.departures.holds(member.slot):
            return
        self.members.discard(member, now)
        due = self.departures.last_calls.due(member)
        if due is not None and member.state is State.DRAINING and member.limit:
            member.limit = min(member.limit, max(LEAST, due - member.since))

    def _fill(self, now: float) -> None:
        """Give each wanted slot a process, or a member that waits for one, and fork what is due."""
        for number in range(1, self.wanted + 1):
            slot = self.members.slots[number]
            # A stuck process keeps its place until it is gone, so that its end counts first. A canary on another address takes no
            # place: requests to the old address must be answered there.
            moved = number in self.departures.moved
            if all(one.end_requested or one.outdated or (one.canary and moved) for one in slot.members):
                self.members.add(number, self.generations.committed, now, limit=max(0.0, slot.retry_at - now))
        due = [one for one in self.members.workers() if one.state is State.BACKOFF and one.since + one.limit <= now]
        due.sort(key=lambda one: (not self.members.is_vacant(one.slot), len(self.members.slots[one.slot].members)))
        for member in due:
            if not self.capacity.may_fork(member, self.capacity.room(self.wanted), self.wanted):
                continue
            if not member.canary:
                member.generation = self.generations.committed
            self.members.fork(member, now)

    def _announce(self) -> None:
        slots = (self.members.slots[number] for number in range(1, self.wanted + 1))
        if self.phase is Phase.FIRST_BOOT and all(slot.was_ready for slot in slots):
            self.phase, self.departures.public = Phase.SERVING, True
            self.members.actions.append(Announce(self.wanted))


def _is_overdue(member: Member, now: float) -> bool:
    return member.deadline is not None and member.deadline <= now


def _is_needless(action: Action) -> bool:
    """Whether the action has become needless, as the member has changed since."""
    match action:
        case Drain(member) | DumpStacks(member) | Kill(member):
            return member.state is State.GONE
        case ServeOn(member):
            return member.state is not State.READY
    return False
