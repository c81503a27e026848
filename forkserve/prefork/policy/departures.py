"""Departures: which listeners are open, which of them are to be closed, and what must happen before. Pure.

No listener is closed, and no worker behind it drained, while requests are still sent there (drain_gate.py); nor while
connections wait in its queue, unless no worker could be started for them in time (lastcall.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from forkserve.base.records import record
from forkserve.prefork.policy.actions import CloseListener
from forkserve.prefork.policy.drain_gate import LONGEST, DrainGate
from forkserve.prefork.policy.lastcall import LastCalls, first_ready
from forkserve.prefork.policy.states import Member, State

if TYPE_CHECKING:
    from forkserve.prefork.policy.members import Members


@record
class DeparturesState:
    """The listeners in an upgrade: the slots that have open ones (null: the shared), and how many slots keep theirs."""

    open: Sequence[int | None]
    kept: int


class Departures:
    """The slots with open listeners, and how these are closed; in sets of slots None stands for the shared addresses."""

    def __init__(self, members: Members, wanted: int) -> None:
        self._members = members
        self.open: set[int | None] = {None, *range(1, wanted + 1)}
        self.kept = range(1, wanted + 1)  # slots that keep their listeners; more than are wanted after `Pool.suspend`
        self.closing = False  # the server stops, so the shared listeners are not kept either
        self.public = False  # requests may be sent here: from the announcement on, until the server stops at once
        # Set by the master:
        self.advertised: AbstractSet[int | None] = frozenset()  # slots that a front end may send requests to
        self.moved: AbstractSet[int] = frozenset()  # slots that have new workers on another address than some old ones
        self.advertised_before: AbstractSet[int] = frozenset()  # those of them where requests may be sent to the old address
        self.queued: AbstractSet[int | None] = frozenset()  # those of `unattended` where connections wait
        self.last_calls = LastCalls()
        self._leaving = DrainGate()
        self._moving = DrainGate()  # the old workers of slots that have a ready one elsewhere

    def export(self) -> DeparturesState:
        """Return the open and the kept listeners for an upgrade."""
        return DeparturesState(list(self.open), len(self.kept))

    def adopt(self, found: DeparturesState, *, closing: bool, public: bool) -> None:
        """Take them over in the new program."""
        self.open = set(found.open)
        self.keep(found.kept)
        self.closing, self.public = closing, public

    def keep(self, count: int) -> None:
        """Keep the listeners of the slots up to this number, and no others."""
        self.kept = range(1, count + 1)

    def close_all(self) -> None:
        """Keep no listener, not even the shared ones."""
        self.keep(0)
        self.closing = True

    def is_held(self, member: Member) -> bool:
        """Whether a member that is to go must stay, as requests may still be sent to it."""
        return member.slot in self._leaving.held or (member.outdated and member.slot in self._moving.held)

    def holds(self, slot: int) -> bool:
        """Whether a slot is on its way out, or to another address, and its workers must not drain yet."""
        return slot in self._leaving.held or slot in self._moving.held

    @property
    def is_waiting_for_frontend(self) -> bool:
        """Whether any slot is held."""
        return bool(self._leaving.held or self._moving.held)

    def next_deadline(self) -> float | None:
        """Return when something here changes if nothing happens before; None for never."""
        deadlines = [one.next_deadline() for one in (self._leaving, self._moving, self.last_calls)]
        return min((due for due in deadlines if due is not None), default=None)

    def unattended(self, now: float) -> set[int | None]:
        """Return the slots with a listener that is to be closed now, and without a ready worker that accepts.

        The master looks whether connections wait there (`queued`) before it asks for a plan.
        """
        self._update_gates(now)
        workers = self._members.workers()
        there = {one.slot for one in workers if one.exists and not one.released and one.state is not State.BOOTING}
        return self._to_close() - self._leaving.held - there - ({None} if there else set())

    def _to_close(self) -> set[int | None]:
        if not self.public:
            return set()
        return {slot for slot in self.open if (self.closing if slot is None else slot not in self.kept)}

    def _update_gates(self, now: float) -> None:
        members, slots = self._members, self._to_close()
        # A request that is sent to a shared address reaches any of the workers.
        all_are = self.closing and None in self.advertised
        self._leaving.update(slots, slots if all_are else self.advertised, now, members.limits)
        outdated = [one for one in members.workers() if one.state is State.READY and one.outdated]
        moving = {one.slot for one in outdated if members.has_successor(one)} & self.moved
        self._moving.update(moving, self.advertised_before, now, members.limits)

    def answer_queued(self, generation: int, now: float) -> None:
        """Let a worker of the generation boot for connections that wait where none would be ready any more."""
        members = self._members
        self.last_calls.forget(self._to_close())
        waited_for = self.unattended(now) & self.queued
        for slot in sorted(waited_for, key=lambda one: (one is None, one)):  # a worker of a slot also serves the shared addresses
            gone_at, longest = self._leaving.opens_at(slot), members.limits.graceful or LONGEST
            if self.last_calls.needs_worker(slot, gone_at, longest, now):
                there, number = first_ready(slot, members.workers()), slot or 1
                delay = max(0.0, members.slots[number].retry_at - now)
                self.last_calls.assign(slot, there or members.add(number, generation, now, limit=delay))
        self.last_calls.release(waited_for)

    def close_unused(self) -> None:
        """Close the listeners that are not kept, and that neither a worker nor a connection needs."""
        holders = [one for one in self._members.workers() if one.exists and not one.released]
        unused: set[int | None] = self.open - {one.slot for one in holders}
        unused -= self._leaving.held | self.last_calls.open | set(self.kept)
        if not self.closing or holders:
            unused.discard(None)
        self.open -= unused
        self._members.actions += [CloseListener(slot) for slot in sorted(unused, key=lambda one: one or 0)]
