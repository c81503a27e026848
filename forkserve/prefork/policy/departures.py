"""Departures: which listeners are open, which are to be closed, and what must happen first. Pure.

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
    """The listeners in an upgrade: the slots with open ones (null: the shared ones), and the number of slots that keep theirs."""

    open: Sequence[int | None]
    kept: int


class Departures:
    """The slots with open listeners, and the closing of these. In sets of slots, None stands for the shared addresses."""

    def __init__(self, members: Members, wanted: int) -> None:
        self._members = members
        self.open: set[int | None] = {None, *range(1, wanted + 1)}
        self.kept = range(1, wanted + 1)  # slots that keep their listeners; more than are wanted after `Pool.suspend`
        self.closing = False  # the server stops, so the shared listeners are not kept either
        self.public = False  # requests may be sent here: from the announcement on, until the server stops at once
        # Set by the master:
        self.advertised: AbstractSet[int | None] = frozenset()  # slots that a front end may send requests to
        self.moved: AbstractSet[int] = frozenset()  # slots that have new workers on another address than some old ones
        self.advertised_before: AbstractSet[int] = frozenset()  # moved slots whose old address requests may be sent to
        self.queued: AbstractSet[int | None] = frozenset()  # slots of `unattended` where connections wait
        self.last_calls = LastCalls()
        self._drain_gate = DrainGate()  # the slots whose listeners are to be closed
        self._change_gate = DrainGate()  # the old workers of slots that have a ready one on another address

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
        """Whether a member that is to end must stay for now, as requests may still be sent to it."""
        return member.slot in self._drain_gate.held or (member.outdated and member.slot in self._change_gate.held)

    def holds(self, slot: int) -> bool:
        """Whether a slot is to be removed, or to move to another address, and its workers must not drain yet."""
        return slot in self._drain_gate.held or slot in self._change_gate.held

    @property
    def is_waiting_for_frontend(self) -> bool:
        """Whether any slot is held."""
        return bool(self._drain_gate.held or self._change_gate.held)

    def next_deadline(self) -> float | None:
        """Return when something changes here if nothing happens before; None for never."""
        deadlines = [one.next_deadline() for one in (self._drain_gate, self._change_gate, self.last_calls)]
        return min((due for due in deadlines if due is not None), default=None)

    def unattended(self, now: float) -> set[int | None]:
        """Return the slots whose listener is to be closed now, and that have no ready worker to accept.

        Before the master calls for a plan, it checks whether connections wait there (`queued`).
        """
        self._update_gates(now)
        workers = self._members.workers()
        # A worker whose boot was ended accepts nothing. It counts only if it had become ready before the order arrived.
        there = {one.slot for one in workers if one.ready_at is not None and not one.released}
        return self._to_close() - self._drain_gate.held - there - ({None} if there else set())

    def _to_close(self) -> set[int | None]:
        if not self.public:
            return set()
        return {slot for slot in self.open if (self.closing if slot is None else slot not in self.kept)}

    def _update_gates(self, now: float) -> None:
        members, slots = self._members, self._to_close()
        # A request to a shared address may reach any of the workers.
        all_advertised = self.closing and None in self.advertised
        self._drain_gate.update(slots, slots if all_advertised else self.advertised, now, members.limits)
        outdated = [one for one in members.workers() if one.state is State.READY and one.outdated]
        moving = {one.slot for one in outdated if members.has_successor(one)} & self.moved
        self._change_gate.update(moving, self.advertised_before, now, members.limits)

    def answer_queued(self, generation: int, now: float) -> None:
        """Let a worker of the generation boot for connections that wait where no worker would be ready any more."""
        members = self._members
        self.last_calls.forget(self._to_close())
        waited_for = self.unattended(now) & self.queued
        for slot in sorted(waited_for, key=lambda one: (one is None, one)):  # a slot's worker also serves the shared addresses
            gone_at, longest = self._drain_gate.opens_at(slot), members.limits.graceful or LONGEST
            if self.last_calls.needs_worker(slot, gone_at, longest, now):
                there, number = first_ready(slot, members.workers()), slot or 1
                delay = max(0.0, members.slots[number].retry_at - now)
                self.last_calls.assign(slot, there or members.add(number, generation, now, limit=delay))
        self.last_calls.release(waited_for)

    def close_unused(self) -> None:
        """Close the listeners that are not kept, and that neither a worker nor a connection needs."""
        holders = [one for one in self._members.workers() if one.exists and not one.released]
        unused: set[int | None] = self.open - {one.slot for one in holders}
        unused -= self._drain_gate.held | self.last_calls.open | set(self.kept)
        if not self.closing or holders:
            unused.discard(None)
        self.open -= unused
        self._members.actions += [CloseListener(slot) for slot in sorted(unused, key=lambda one: one or 0)]
